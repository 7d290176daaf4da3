"""The loop over a run's steps: its log, its checkpoints, and how it is asked to stop."""

import gc
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.errors import UserError
from trainer.checkpoint import Checkpoints
from trainer.loader import Microbatch
from trainer.metrics import Log, Step, peak_flops
from trainer.step import Training, take_step


class ToldError(Exception):
    """An error that the rank that met it has told; all ranks end together."""


def take_steps(run: Training, checkpoints: Checkpoints, output: Path) -> None:
    """All steps that are left, or until any rank is asked to stop; logged, with checkpoints.

    Raises:
        ToldError: the data of a rank cannot be read.
        UserError: a number is not finite, and `non_finite` is `stop`; on all ranks.
    """
    log = None
    if dist.get_rank() == 0 and run.done < run.steps:
        peak = peak_flops(run.device)
        log = Log(output, steps=run.steps, ranks=dist.get_world_size(), peak=peak)
    gc.freeze()  # a collection on one rank makes all of them wait
    gc.disable()
    batches = iter(run.loader)
    with _signals(run):
        while run.done < run.steps and not run.stop:
            step = _step(run, batches, checkpoints)
            last = run.stop or run.done == run.steps
            if log and (last or run.done % run.config.log_every == 0):
                log.write(step)
            if last or run.done % run.config.checkpoints.every == 0:
                _save(run, checkpoints)
        run.loader.close()
        checkpoints.finish()
    if log:
        log.close()
        if run.done < run.steps:
            print(f"stopped after step {run.done:,}; the same command goes on from there")


@contextmanager
def _signals(run: Training) -> Generator[None]:
    """SIGTERM and Ctrl-C only ask the run to stop; as always after it."""

    def ask(*_: Any) -> None:
        run.asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    yield
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _step(run: Training, batches: Iterator[list[Microbatch]], checkpoints: Checkpoints) -> Step:
    """The next step, or an error of all ranks after what they are writing is written."""
    begin, waited = time.perf_counter(), run.loader.wait_seconds
    batch, fault = _next(batches)
    if _on_any_rank(fault is not None):
        checkpoints.finish()
        if fault:
            print(f"error: rank {dist.get_rank()}: {fault}", file=sys.stderr, flush=True)
        raise ToldError
    try:
        return take_step(run, batch, begin=begin, waited=waited)
    except UserError:
        checkpoints.finish()
        raise


def _save(run: Training, checkpoints: Checkpoints) -> None:
    progress = {"loader": run.loader.state, "skipped": run.skipped}
    if run.optimizer.state:  # else every step so far was skipped
        checkpoints.save(run.done, model=run.model, optimizer=run.optimizer, progress=progress)
    gc.collect()  # here all ranks meet anyway


def _next(
    batches: Iterator[list[Microbatch]],
) -> tuple[list[Microbatch], UserError | OSError | None]:
    """The next step's data, or why this rank has none."""
    try:
        return next(batches), None
    except (UserError, OSError) as error:
        return [], error


def _on_any_rank(here: bool) -> bool:
    """Whether it is so on any rank; on the CPU, so the device goes on."""
    there = torch.tensor(int(here))
    dist.all_reduce(there)
    return bool(there)
