"""Checkpoints of a run: written while training goes on, each complete or not there at all.

    RUN/checkpoints/step-00000500/   PyTorch's distributed checkpoint (model, optimizer),
                                     rng-00000.pt of every rank, progress.json
    RUN/checkpoints/latest           name of the newest

A checkpoint is written as `step-….partial` and renamed when every rank is done. All ranks have to
see the folder, and all call each method.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from warnings import catch_warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from pipelines.errors import FaultsError, UserError

_CHECKPOINTS, _LATEST, _RECORD, _PARTIAL = "checkpoints", "latest", "progress.json", ".partial"
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run; at most one is being written."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Take over a run's folder: what an earlier process left half written is removed."""
        self._run, self._root, self._keep = folder, folder / _CHECKPOINTS, keep
        # Its own group: what is written in the background must not mix its messages with those of
        # training. They are Python objects: gloo, whatever the training uses.
        self._group: Any = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._rank = dist.get_rank() if self._group else 0
        self._ranks = dist.get_world_size() if self._group else 1
        self._publisher = ThreadPoolExecutor(max_workers=1)
        self._writing: tuple[int, Future[None]] | None = None
        if self._rank == 0:
            self._root.mkdir(parents=True, exist_ok=True)
            for left in self._root.glob(f"*{_PARTIAL}"):
                shutil.rmtree(left)
        self._of_all(None)

    def save(
        self, step: int, *, model: nn.Module, optimizer: Optimizer, progress: dict[str, Any]
    ) -> None:
        """Begin a checkpoint; return when the state is copied to the CPU, so training may go on.

        Args:
            step: steps done.
            model: wrapped by FSDP2, activation checkpointing or compilation, or plain.
            optimizer: of that model's parameters, after one step at least.
            progress: JSON values, the same on all ranks, for `restore` to give back.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        self.finish()
        if not optimizer.state:
            raise ValueError("no step was done: there is nothing to save")
        record = {"step": step, "ranks": self._ranks, "progress": progress}
        partial = self._root / f"{_name(step)}{_PARTIAL}"
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        state, file = (torch.get_rng_state(), cuda), _rng_file(partial, self._rank)
        self._together(partial.mkdir if self._rank == 0 else lambda: None)
        self._together(lambda: torch.save(state, file))
        of_model, of_optimizer = get_state_dict(model, optimizer)
        written = async_save(
            {"model": of_model, "optimizer": of_optimizer},
            storage_writer=FileSystemWriter(partial),
            process_group=self._group,
            no_dist=self._group is None,
            # Other stagers keep their copy of everything until the garbage collector finds it,
            # which a training loop turns off.
            async_stager=BlockingAsyncStager(),
        )
        self._writing = step, self._publisher.submit(self._publish, written, partial, record)

    def finish(self) -> None:
        """Wait until what is being written is complete, on every rank.

        Raises:
            UserError: it could not be written.
        """
        if self._writing is None:
            return
        (step, published), self._writing = self._writing, None
        error = published.exception()
        reason = next(filter(None, self._of_all(_reason(error) if error else "")), "")
        if reason:
            latest = newest(self._run)
            raise UserError(
                f"{self._root}: the checkpoint of step {step:,} could not be written: {reason}; "
                f"{shutil.disk_usage(self._root).free / 2**30:.1f} GiB are free there; the newest "
                f"complete one is {latest.name if latest else 'none'}; make room, or keep fewer "
                "(`checkpoints.keep`), and start again: the run goes on from there"
            ) from error

    def find(self) -> Path | None:
        """The newest complete checkpoint; torn ones are named in the log and passed over."""
        return self._of_all(newest(self._run) if self._rank == 0 else None)[0]

    def restore(self, path: Path, *, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """Load a checkpoint, on any number of ranks; gives its `progress`, with `step`.

        torch's random generators go on where they were; on another number of ranks than wrote the
        checkpoint they are seeded from step and rank.

        Raises:
            UserError: it is torn, or cannot be read.
            FaultsError: it is of another model; some of its parameters are named.
        """
        if fault := _fault(path):
            raise UserError(f"{path}: the checkpoint is torn: {fault}")
        of_model, of_optimizer = get_state_dict(model, optimizer)
        here = {name: cast(torch.Tensor, tensor).shape for name, tensor in of_model.items()}
        if faults := _differences(saved_shapes(path), here):
            raise FaultsError(f"{path}: the checkpoint is of another model", faults)
        read_into(path, {"model": of_model, "optimizer": of_optimizer}, group=self._group)
        set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer)
        record = json.loads((path / _RECORD).read_bytes())
        if record["ranks"] == self._ranks:
            cpu, cuda = torch.load(_rng_file(path, self._rank), weights_only=True)
            torch.set_rng_state(cpu)
            if cuda is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(cuda)
        else:
            _log.warning("%s: of %d ranks, not %d: new random seeds", path, record["ranks"],
                         self._ranks)  # fmt: skip
            torch.manual_seed(record["step"] * 2**20 + self._rank)
        return {**record["progress"], "step": record["step"]}

    def _publish(self, written: Any, partial: Path, record: dict[str, Any]) -> None:
        """Make a checkpoint that all ranks have written the latest, and delete old ones."""
        written.result()
        if self._rank:
            return
        files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        write_whole(partial / _RECORD, json.dumps({**record, "files": files}, indent=1))
        complete = partial.with_name(partial.name.removesuffix(_PARTIAL))
        _remove(complete)  # torn, or the run would have gone on from there
        partial.rename(complete)
        write_whole(self._root / _LATEST, complete.name + "\n")
        for path in [p for p in _by_age(self._run) if p.name <= complete.name][self._keep :]:
            _remove(path)

    def _together(self, work: Callable[[], Any]) -> None:
        """Do something on every rank; what fails on one is an error on all."""
        reason = ""
        try:
            work()
        except (OSError, RuntimeError) as error:
            reason = _reason(error)
        if reason := next(filter(None, self._of_all(reason)), ""):
            raise UserError(f"{self._root}: a checkpoint cannot be written: {reason}")

    def _of_all(self, value: Any) -> list[Any]:
        """What each rank gives; waits for all of them."""
        values = [value] * self._ranks
        if self._group:
            dist.all_gather_object(values, value, group=self._group)
        return values


def newest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run; torn ones are named in the log and passed over."""
    for path in _by_age(run):
        if not (fault := _fault(path)):
            return path
        _log.warning("%s: the checkpoint is torn and passed over: %s", path, fault)
    return None


def checkpoint_of(run: Path, step: int | None = None) -> Path:
    """The complete checkpoint of a step, or the newest.

    Raises:
        UserError: there is none.
    """
    path = newest(run) if step is None else run / _CHECKPOINTS / _name(step)
    fault = "no such checkpoint" if path is None or not path.is_dir() else _fault(path)
    if path and not fault:
        return path
    there = ", ".join(str(int(p.name.removeprefix("step-"))) for p in _by_age(run)) or "none"
    wanted = "no complete checkpoint" if path is None else f"{path.name}: {fault}"
    raise UserError(f"{run}: {wanted}; steps that are there: {there}")


def saved_shapes(path: Path) -> dict[str, torch.Size]:
    """The shape of each of the model's tensors in a checkpoint, by name.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    try:
        saved = FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # whatever unpickling damaged bytes gives
        raise UserError(f"{path}: {_unreadable(error)}") from error
    return {
        key.removeprefix("model."): value.size
        for key, value in saved.items()
        if key.startswith("model.") and isinstance(value, TensorStorageMetadata)
    }


def read_into(path: Path, states: dict[str, Any], *, group: Any = None) -> None:
    """Fill nested dictionaries of tensors and values from a checkpoint.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    try:
        with catch_warnings(action="ignore", category=UserWarning):  # one process may be meant
            load(states, storage_reader=FileSystemReader(path), process_group=group,
                 no_dist=group is None)  # fmt: skip
    except CheckpointException as error:
        raise UserError(f"{path}: {_unreadable(error)}") from error


def _unreadable(error: BaseException) -> str:
    return (
        f"the checkpoint cannot be read: {_reason(error)}; delete its folder to go on from the one "
        "before"
    )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _rng_file(path: Path, rank: int) -> Path:
    return path / f"rng-{rank:05d}.pt"


def _by_age(run: Path) -> list[Path]:
    """Folders of checkpoints that were complete once, newest first."""
    return sorted((run / _CHECKPOINTS).glob(f"step-{'[0-9]' * 8}"), reverse=True)


def _fault(path: Path) -> str:
    """What is wrong with a checkpoint; nothing where it is complete."""
    try:
        files: dict[str, int] = json.loads((path / _RECORD).read_bytes())["files"]
        for name, size in files.items():
            if (there := (path / name).stat().st_size) != size:
                return f"{name} has {there:,} bytes, {size:,} were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError):
        return f"{_RECORD} is damaged"
    return ""


def _differences(saved: dict[str, torch.Size], here: dict[str, torch.Size]) -> list[str]:
    """Where the parameters of a checkpoint are not those of the model: the first five."""
    faults = [
        f"{name}: {list(saved.get(name, ())) or 'missing'} in the checkpoint, "
        f"{list(here.get(name, ())) or 'missing'} in the model"
        for name in sorted(saved.keys() | here.keys())
        if saved.get(name) != here.get(name)
    ]
    return faults[:5] + [f"… and {len(faults) - 5:,} more"] * (len(faults) > 5)


def _reason(error: BaseException) -> str:
    """One line for what went wrong, on whichever rank."""
    if isinstance(error, CheckpointException):
        error = next(failure for failure, _ in error.failures.values())
    return " ".join(f"{type(error).__name__}: {error}".split())


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader, or a crash, sees the old one or the new one."""
    aside = path.with_name(path.name + ".new")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _remove(path: Path) -> None:
    """Delete a checkpoint; what a crash leaves of it counts as half written."""
    if path.exists():
        shutil.rmtree(path.rename(path.with_name(f"{path.name}-old{_PARTIAL}")))
