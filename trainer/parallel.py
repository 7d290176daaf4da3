"""Layers made ready for training: recomputed, compiled, sharded; and their first weights.

One path for any number of devices: a single one is a group of one rank. FSDP2 keeps float32
parameters and computes in the compute type.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from trainer.attention import Backend

Checkpointing = Literal["none", "mlp", "attention", "full"]
"""What of a layer is computed again in the backward pass: nothing; its MLP; all but attention
itself; everything."""


@contextmanager
def process_group() -> Generator[torch.device]:
    """The group that torchrun announces, or a group of one; gives this rank's device."""
    cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    # Checkpoints are written in the background by a group on the CPU.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def prepare_model(
    model: nn.Module,
    *,
    checkpointing: Checkpointing,
    compiled: bool,
    compute: torch.dtype,
    backend: Backend,
) -> None:
    """Wrap every layer, in place, in the one order that works: recompute, compile, shard."""
    layers, stem = cast(nn.ModuleList, cast(Any, model).model.layers), cast(Any, model).model
    for i, layer in enumerate(layers):
        layers[i] = _recomputed(layer, checkpointing, backend)
        if compiled:
            layers[i].compile(fullgraph=True)
    # The loss is divided by the global number of tokens, so gradients are summed and not averaged.
    # Inputs stay as they are: cast, float32 angles of RoPE would become bfloat16 again.
    policy = MixedPrecisionPolicy(compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    shard = partial(fully_shard, mp_policy=policy)
    for layer in layers:
        shard(layer)
    if not cast(Any, model).config.tie_word_embeddings:  # one parameter must lie in one group
        shard(stem.embed_tokens)
        shard([stem.norm, cast(Any, model).lm_head], reshard_after_forward=False)
    shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if dist.get_backend() == "gloo":  # which has no scaled sum
                module.set_force_sum_reduction_for_comms(True)


def _recomputed(layer: nn.Module, checkpointing: Checkpointing, backend: Backend) -> nn.Module:
    if checkpointing == "none":
        return layer
    context: dict[str, Any] = {}
    if checkpointing != "full":
        context["context_fn"] = partial(_kept_outputs, checkpointing == "mlp", backend)
    return checkpoint_wrapper(layer, preserve_rng_state=False, **context)


def _kept_outputs(projections: bool, backend: Backend) -> Any:
    """Which outputs of a layer are kept: attention's, and on demand its four projections'.

    Attention costs T² * D for T * D numbers; after it, a projection saves as many FLOPs for its
    memory as any other product, and the MLP's are larger.
    """
    attention = {_attention_operator(backend)}
    if backend != "sdpa":
        attention.add(_attention_operator("flex"))  # of memory layers
    products = Counter[bool]()  # of the forward pass, and of the recomputed one

    def policy(ctx: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        keep = operator in attention
        if projections and operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            products[ctx.is_recompute] += 1
            keep = products[ctx.is_recompute] <= 4  # q, k, v, o; then the MLP's
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _attention_operator(backend: Backend) -> Any:
    aten = torch.ops.aten
    if backend == "fa4":
        from trainer.fa4 import fa4_forward

        return fa4_forward._opoverload
    if backend == "flex":
        return torch.ops.higher_order.flex_attention
    if backend == "cudnn":
        return aten._scaled_dot_product_cudnn_attention.default
    return aten._scaled_dot_product_flash_attention_for_cpu.default


def load_weights(model: nn.Module, weights: dict[str, Tensor] | None, device: torch.device) -> None:
    """Give a prepared model memory, and the weights that rank 0 holds (None on the others)."""
    allocate(model, device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    float32: dict[str, Any] = {name: w.float() for name, w in (weights or {}).items()}
    set_model_state_dict(model, float32, options=options)


def draw_weights(model: nn.Module, *, seed: int, device: torch.device) -> None:
    """Give a prepared model memory and random weights, the same for any number of ranks.

    Each parameter is drawn whole, keyed by its name: matrices are normal with the configuration's
    `initializer_range`, norms 1, biases 0.
    """
    allocate(model, device)
    deviation = float(cast(Any, model).config.initializer_range)
    for name, parameter in model.named_parameters():
        clean = name.replace("_checkpoint_wrapped_module.", "")
        digest = hashlib.sha256(f"{seed}:{clean}".encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
        whole = torch.empty(parameter.shape, device=device)
        if parameter.ndim > 1:
            whole.normal_(0, deviation, generator=generator)
        else:
            whole.fill_(1.0 if clean.endswith("norm.weight") else 0.0)
        mesh, places = cast(DTensor, parameter).device_mesh, cast(DTensor, parameter).placements
        with torch.no_grad():
            parameter.copy_(distribute_tensor(whole, mesh, places, src_data_rank=None))


def allocate(model: nn.Module, device: torch.device) -> None:
    """Give a prepared model memory; what is in it is undefined."""
    model.to_empty(device=device)
    if cast(Any, model).config.tie_word_embeddings:
        cast(Any, model).tie_weights()
    cast(Any, model).model.rotary_emb.reset(device)
