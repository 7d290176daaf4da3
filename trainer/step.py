"""One optimizer step: forward and backward of every microbatch, clipping, AdamW."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from pipelines.errors import UserError
from trainer.attention import Backend, plan_of
from trainer.config import TrainConfig, learning_rate
from trainer.crossbatch import LocalContexts
from trainer.loader import Loader, Microbatch, documents_of
from trainer.memory import CrossBatch
from trainer.metrics import Cost, Step


@dataclass(slots=True)
class Training:
    """All that a step needs, and how far the run is."""

    config: TrainConfig
    loader: Loader
    model: nn.Module
    optimizer: Optimizer
    cost: Cost
    backend: Backend
    device: torch.device
    steps: int
    """Steps of the whole run."""
    contexts: LocalContexts | None = None
    """Of a model with memory layers."""
    done: int = 0
    """Steps done."""
    skipped: int = 0
    """Of these, steps that changed neither weights nor states: no token carried loss, or a number
    was not finite."""
    asked: bool = False
    """Whether this process was asked to stop; `take_step` tells all ranks."""
    stop: bool = False
    """Whether any rank was asked before the last step was done; all ranks have the same."""


def take_step(run: Training, batches: Sequence[Microbatch], *, begin: float, waited: float) -> Step:
    """Train on one global batch; sets `run.stop` on all ranks if `run.asked` is set on any.

    Args:
        run: changed: model, optimizer, `done`, `skipped`, `stop`.
        batches: this rank's.
        begin: `time.perf_counter()` when the step began, before its data came.
        waited: the loader's `wait_seconds` at that time.

    Raises:
        UserError: a number is not finite, and `non_finite` is `stop`.
    """
    memory, looked_up = None, 0
    pairs = [b.visible_pairs for b in batches]
    if run.contexts:
        memory, looked_up = run.contexts.lookup(run.done, run.device)
        pairs = [run.contexts.local_pairs] * len(batches)
    counts = sum(b.n_loss for b in batches), sum(pairs), looked_up * len(batches)
    sums = _to(run.device, torch.tensor(counts))
    dist.all_reduce(sums)
    n = sums[0].clamp(min=1)
    losses = torch.stack([_forward_backward(run, b, n, memory) for b in batches])
    shared = torch.stack([losses.sum(), losses.new_full((), run.asked)])
    dist.all_reduce(shared)
    norm: Any = clip_grad_norm_(run.model.parameters(), run.config.clip or math.inf)
    # The host waits for the device here and nowhere else; AdamW then keeps it busy meanwhile.
    *values, stop = torch.stack([shared[0], norm.full_tensor(), shared[1]]).tolist()
    n_loss, seen, looked_up = sums.tolist()
    run.stop = stop > 0
    rate = learning_rate(run.config, run.done, run.steps)
    if not n_loss:  # gradients of zero would still let momentum and decay move the weights
        values = [math.nan] * len(values)
        _report_silence(run, batches)
        run.skipped += 1
    elif all(map(math.isfinite, values)):
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.optimizer.step()
    else:
        _report(run, batches, losses, values)
        run.skipped += 1
    run.optimizer.zero_grad()
    run.done += 1
    seq_len = run.loader.dataset.seq_len
    tokens, seconds = run.config.global_batch * seq_len, time.perf_counter() - begin
    width = run.contexts.length if run.contexts else seq_len
    return Step(
        number=run.done,
        loss=values[0],
        gradient_norm=values[1],
        learning_rate=rate,
        tokens=tokens,
        loss_tokens=n_loss,
        seconds=seconds,
        data_wait=(run.loader.wait_seconds - waited) / seconds,
        flops_visible=run.cost.visible(tokens, seen, looked_up),
        flops_non_causal=run.cost.non_causal(tokens, width, looked_up),
        skipped=run.skipped,
    )


def _forward_backward(
    run: Training, batch: Microbatch, n_loss: Tensor, memory: CrossBatch | None
) -> Tensor:
    """Gradients of a microbatch's share of the mean loss; gives that share."""
    tokens, positions, labels, borders = (
        _to(run.device, torch.from_numpy(array))
        for array in (batch.tokens, batch.positions, batch.labels, batch.borders)
    )
    plan: dict[str, Any] = {}
    if run.contexts:
        tokens, labels = run.contexts.cut(tokens), run.contexts.cut(labels)
        positions = run.contexts.cut(positions) % run.contexts.length
        borders, plan = run.contexts.borders(run.device), {"memory": memory}
    plan |= plan_of(borders, shape=(tokens.shape[0], tokens.shape[1]), backend=run.backend)
    loss: Tensor = run.model(tokens, positions, labels, **plan) / n_loss
    loss.backward()
    return loss.detach()


def _to(device: torch.device, tensor: Tensor) -> Tensor:
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _report_silence(run: Training, batches: Sequence[Microbatch]) -> None:
    """Name the sequences of a step in which no token carries loss, on rank 0."""
    names = ", ".join(map(str, _of_all_ranks([int(i) for b in batches for i in b.indices])))
    if dist.get_rank() == 0:
        print(
            f"warning: step {run.done + 1:,}: no token of its sequences carries loss (sequences "
            f"{names}); the data counts as seen, weights and optimizer stay as they are",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _of_all_ranks(indices: list[int]) -> list[int]:
    of_all: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_all, indices)
    return sorted(i for some in of_all for i in some)


def _report(
    run: Training, batches: Sequence[Microbatch], losses: Tensor, values: Sequence[float]
) -> None:
    """Name the documents of a step whose loss or gradient is not finite, on rank 0."""
    bad = [b for b, loss in zip(batches, losses.tolist(), strict=True) if not math.isfinite(loss)]
    indices = sorted(int(i) for batch in bad or batches for i in batch.indices)
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, (bool(bad), indices))
    certain = any(known for known, _ in of_all)
    found = sorted(i for known, some in of_all if known or not certain for i in some)
    where = "sequences whose loss is not finite" if certain else "sequences of the step"
    documents = [f"  sequence {i}: {', '.join(documents_of(run.loader.dataset, i))}" for i in found]
    message = (
        f"step {run.done + 1:,}: loss {values[0]}, gradient norm {values[1]}: not finite; "
        f"{where}, with their documents:\n" + "\n".join(documents)
    )
    if run.config.non_finite == "stop":
        raise UserError(
            f"{message}\nnothing of this step was kept; go on from the last checkpoint, if there "
            "is one, with `--set non_finite=skip`, which leaves such steps out, or begin anew with "
            "a lower rate"
        )
    if dist.get_rank() == 0:
        print(f"warning: {message}\n  the step was left out", file=sys.stderr, flush=True)
