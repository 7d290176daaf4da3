"""What a run is made of, from the command's options: checked first, then built or restored."""

import argparse
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

from pipelines.errors import UserError
from pipelines.shards import ShardedDataset
from trainer.attention import Backend, choose_backend
from trainer.cache import open_dataset
from trainer.checkpoint import Checkpoints
from trainer.config import TrainConfig, load_config, microbatches, total_steps
from trainer.crossbatch import LocalContexts, name_memory
from trainer.loader import Loader, check_state
from trainer.memory import add_memory_layers
from trainer.metrics import Cost
from trainer.model import SHAPE, build_model, checkpoint_weights, head_size, model_config
from trainer.parallel import allocate, draw_weights, load_weights, prepare_model
from trainer.run import claim_run
from trainer.step import Training


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run as its options describe it, without faults; nothing is written or allocated yet."""

    config: TrainConfig
    dataset: ShardedDataset
    model: str
    """Name of the weights that the run begins with."""
    model_config: Any
    """Of transformers, with the run's RoPE and memory."""
    contexts: LocalContexts | None
    """Of a model with memory layers."""
    backend: Backend
    compute: torch.dtype
    steps: int
    output: Path

    @classmethod
    def of(cls, options: argparse.Namespace, device: torch.device) -> "Setup":
        """Read the configuration, the data set and the model's configuration.

        Raises:
            UserError: one of them is faulty, or they do not fit each other.
        """
        config = load_config(options.config, options.set)
        dataset = open_dataset(options.data, cache=options.cache)
        if not dataset.manifest["totals"]["loss_tokens"]:
            raise UserError(
                f"{dataset.folder}: no token of this data set carries loss, so nothing can be "
                "learned from it; build it anew, with `loss: all` or records that have answers"
            )
        seq_len = dataset.seq_len
        steps = total_steps(config, len(dataset), seq_len)
        microbatches(config, dist.get_world_size())
        vocabulary = dataset.manifest["tokenizer"]["vocab_size"]
        length = seq_len if config.memory is None else config.memory.local_context or seq_len
        built = model_config(options.model, vocabulary=vocabulary, rope=config.rope, seq_len=length)
        contexts = LocalContexts.of(
            config, dataset, layers=built.num_hidden_layers, steps=steps, cuda=device.type == "cuda"
        )
        name_memory(built, contexts, model=options.model)
        _loader(config, dataset)  # what it refuses is refused before anything is written
        compute = getattr(torch, config.compute)
        backend = choose_backend(
            config.attention,
            device=device,
            documents=config.documents,
            seq_len=length,
            head_size=head_size(built),
            compute=compute,
        )
        return cls(
            config=config,
            dataset=dataset,
            model=options.model,
            model_config=built,
            contexts=contexts,
            backend=backend,
            compute=compute,
            steps=steps,
            output=options.output or Path("runs", Path(options.config).stem),
        )

    def claim(self) -> AbstractContextManager[bool]:
        """Claim the output folder for a while; gives whether the run was begun there before.

        Raises:
            UserError: something else lies there, or another process trains there.
        """
        return claim_run(
            self.output,
            config=self.config,
            dataset=self.dataset,
            model=self.model,
            model_config=self.model_config,
            steps=self.steps,
        )


def begin_run(
    setup: Setup, device: torch.device, *, begun: bool
) -> tuple[Training, Checkpoints, Path | None]:
    """A run ready for its next step, its checkpoints, and the one that it goes on from.

    Raises:
        UserError: it was begun, but has no checkpoint that can be used; or the weights are faulty.
    """
    config = setup.config
    model, cost = _model(setup)
    checkpoints = Checkpoints(setup.output, keep=config.checkpoints.keep)
    newest = checkpoints.find()
    if begun and not newest:
        raise UserError(
            f"{setup.output}: none of the checkpoints is complete; delete "
            f"{setup.output / 'checkpoints'} to begin anew, or restore one"
        )
    _give_weights(model, setup.model, seed=config.seed, device=device, restored=bool(newest))
    optimizer = _optimizer(model, config)
    progress: dict[str, Any] = {}
    if newest:
        progress = checkpoints.restore(newest, model=model, optimizer=optimizer)
    start = check_state(progress["loader"], setup.dataset) if newest else 0
    loader = _loader(config, setup.dataset, cost, start)
    run = Training(
        config, loader, model, optimizer, cost, setup.backend, device, setup.steps, setup.contexts,
        done=progress.get("step", 0), skipped=progress.get("skipped", 0),
    )  # fmt: skip
    return run, checkpoints, newest


def _model(setup: Setup) -> tuple[nn.Module, Cost]:
    """Without weights, ready for FSDP; and what its steps cost."""
    config, contexts = setup.config, setup.contexts
    model = build_model(setup.model_config, backend=setup.backend, loss_chunk=config.loss_chunk)
    layers = contexts.memory.layers if contexts else ()
    if contexts:
        add_memory_layers(model, layers, positionals=contexts.memory.positionals)
    cost = Cost.of(model, memory_layers=len(layers))
    prepare_model(
        model,
        checkpointing=config.activation_checkpointing,
        compiled=config.compile and setup.backend != "sdpa",
        compute=setup.compute,
        backend=setup.backend,
    )
    return model, cost


def _give_weights(
    model: nn.Module, name: str, *, seed: int, device: torch.device, restored: bool
) -> None:
    if restored:
        allocate(model, device)
    elif name.startswith(SHAPE):
        draw_weights(model, seed=seed, device=device)
    else:
        load_weights(model, checkpoint_weights(name) if dist.get_rank() == 0 else None, device)


def _optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW; only matrices decay."""
    decays = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decays, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def _loader(
    config: TrainConfig, dataset: ShardedDataset, cost: Cost | None = None, start: int = 0
) -> Loader:
    """The loader of a run; without its cost it is to be checked only."""
    return Loader(
        dataset,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        rank=dist.get_rank(),
        ranks=dist.get_world_size(),
        documents=config.documents,
        positions=config.positions,
        seed=config.seed,
        start=start,
        linear_cost=cost.matmul_parameters / (cost.layers * cost.width) if cost else 0.0,
        workers=config.loader.workers,
        prefetch=config.loader.prefetch,
    )
