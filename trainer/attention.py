"""Causal attention inside contexts, by a plan made once a microbatch.

A plan says where the contexts of a batch begin and end; no kernel ever sees a mask of T × T. Which
kernel reads it is chosen once, from what is asked for, installed and fastest on the device:

| name | device | contexts | |
|---|---|---|---|
| `fa4` | CUDA, capability 9 to 11 | any | flash-attn-4, extra `[fa4]` |
| `cudnn` | CUDA | whole rows only | PyTorch alone |
| `flex` | CUDA | any | PyTorch alone, Triton |
| `sdpa` | any | any | a loop over contexts, not compiled; for the CPU |

Shapes: B sequences, T tokens each, H heads, K key/value heads, D of a head, n contexts.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from pipelines.errors import UserError

Backend = Literal["fa4", "cudnn", "flex", "sdpa"]
BLOCK = 128
"""Side of the tiles that FlexAttention skips or computes whole."""

_NEEDS = {
    "fa4": "flash-attn-4 (extra `[fa4]`), a Hopper or data-center Blackwell GPU, "
    "`compute: bfloat16` and heads of a multiple of 8",
    "cudnn": "a CUDA device, `documents: false`, `compute: bfloat16` and heads of a multiple of 8",
    "flex": f"a CUDA device and sequences of a multiple of {BLOCK}",
}


def choose_backend(
    asked: Backend | Literal["auto"],
    *,
    device: torch.device,
    documents: bool,
    seq_len: int,
    head_size: int,
    compute: torch.dtype,
) -> Backend:
    """The kernel to use.

    Args:
        asked: a kernel, or `auto` for the fastest that works.
        device: where it runs.
        documents: whether a sequence has several contexts.
        seq_len: T.
        head_size: D.
        compute: type of q, k and v.

    Raises:
        UserError: the one that is asked for cannot do it here, or none can.
    """
    cuda = device.type == "cuda"
    fa4 = cuda and find_spec("flash_attn") is not None and find_spec("flash_attn.cute") is not None
    hopper = cuda and (9, 0) <= torch.cuda.get_device_capability(device) < (12, 0)
    tiles, eights = seq_len % BLOCK == 0, head_size % 8 == 0 and compute.itemsize == 2
    works: dict[Backend, bool] = {
        "fa4": fa4 and hopper and eights,
        "cudnn": cuda and eights and not documents,
        "flex": cuda and tiles,
        "sdpa": not cuda or asked == "sdpa",  # on a GPU only where it is asked for
    }
    for name, can in works.items():
        if can and asked in ("auto", name):
            return name
    if asked != "auto":
        raise UserError(f"attention: `{asked}` needs {_NEEDS[asked]}; `auto` takes what works")
    needs = "; ".join(f"`{name}` needs {what}" for name, what in _NEEDS.items())
    raise UserError(f"attention: no kernel works here: {needs}")


def plan_of(borders: Tensor, *, shape: tuple[int, int], backend: Backend) -> dict[str, Any]:
    """What the layers of a model need to know of a microbatch, as keyword arguments.

    Args:
        borders: int32 [n+1], where contexts begin in the flattened B * T tokens, and B * T; every
            row begins one. On the device, for `sdpa` on the CPU.
        shape: (B, T).
        backend: as `choose_backend` gives it.
    """
    if backend == "cudnn":
        return {}
    if backend == "flex":
        return {"blocks": context_blocks(borders, shape=shape)}
    if backend == "fa4":
        torch._dynamo.mark_dynamic(borders, 0)  # one compiled layer for any number of contexts
    return {"borders": borders}


def context_blocks(borders: Tensor, *, shape: tuple[int, int]) -> BlockMask:
    """FlexAttention's tiles, from borders alone: (T / 128)² numbers a row, never T²."""
    tokens = torch.arange(shape[0] * shape[1], device=borders.device, dtype=torch.int32)
    starts = borders[torch.searchsorted(borders, tokens, right=True) - 1] % shape[1]
    starts = starts.view(shape)
    tiles = torch.arange(shape[1] // BLOCK, device=borders.device)
    # Contexts follow each other: of a tile's queries the first sees farthest back, the last least.
    first, last = starts[:, ::BLOCK, None], starts[:, BLOCK - 1 :: BLOCK, None]
    whole = (tiles < tiles[:, None]) & (tiles * BLOCK >= last)
    part = (tiles <= tiles[:, None]) & (tiles >= first // BLOCK) & ~whole

    def visible(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= starts[b, q]) & (k <= q)

    return BlockMask.from_kv_blocks(
        *tiles_first(part), *tiles_first(whole), BLOCK_SIZE=BLOCK, mask_mod=visible
    )


def tiles_first(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles each row of tiles has, and their numbers first; [B, 1, Q] and [B, 1, Q, K]."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


def _fa4(q: Tensor, k: Tensor, v: Tensor, scale: float, *, borders: Tensor) -> Tensor:
    from trainer.fa4 import fa4_forward

    return fa4_forward(*(t.transpose(1, 2) for t in (q, k, v)), borders, scale)[0]


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.transpose(1, 2)


compiled_flex = torch.compile(flex_attention, dynamic=False)


def _flex(q: Tensor, k: Tensor, v: Tensor, scale: float, *, blocks: BlockMask) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    out = compiled_flex(q, k, v, block_mask=blocks, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, *, borders: Tensor) -> Tensor:
    """One call a context: no token can see what is not in its own slice."""
    b, h, t, d = q.shape
    joined = [x.transpose(0, 1).reshape(1, x.shape[1], b * t, d) for x in (q, k, v)]
    lengths: list[int] = borders.diff().tolist()
    out = [
        scaled_dot_product_attention(*part, is_causal=True, scale=scale, enable_gqa=True)
        for part in zip(*(x.split(lengths, dim=2) for x in joined), strict=True)
    ]
    return torch.cat(out, dim=2).view(h, b, t, d).permute(1, 2, 0, 3)


def _register(name: Backend, kernel: Callable[..., Tensor]) -> None:
    def attend(
        _layer: Any, q: Tensor, k: Tensor, v: Tensor, _mask: None, *, scaling: float, **plan: Any
    ) -> tuple[Tensor, None]:
        """q [B, H, T, D], k and v [B, K, T, D]; float32 where RoPE has just turned them."""
        known = {key: plan[key] for key in ("borders", "blocks") if key in plan}
        return kernel(q.to(v.dtype), k.to(v.dtype), v, scaling, **known), None

    # A name that has no mask function: transformers then builds no mask at all.
    AttentionInterface.register(attention_name(name), attend)


def attention_name(backend: Backend) -> str:
    """Under which name transformers knows a backend."""
    return f"planned_{backend}"


_register("fa4", _fa4)
_register("cudnn", _cudnn)
_register("flex", _flex)
_register("sdpa", _sdpa)
