"""The folder of a run: what it is a run of, so that only the same run goes on in it."""

import errno
import fcntl
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers import PreTrainedConfig

from pipelines.errors import FaultsError, UserError
from pipelines.shards import ShardedDataset
from trainer.cache import RemoteDataset
from trainer.checkpoint import write_whole
from trainer.config import FREE, TrainConfig, config_record
from trainer.tokenizer_files import write_tokenizer

RUN, LOCK = "run.json", "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks say."""


@contextmanager
def claim_run(
    folder: Path,
    *,
    config: TrainConfig,
    dataset: ShardedDataset,
    model: str,
    model_config: PreTrainedConfig,
    steps: int,
) -> Generator[bool]:
    """Begin a run in an empty folder, or check that it is the one that goes on there.

    Writes `run.json`, the model's `config.json`, and the data set's tokenizer for AutoTokenizer;
    anew where no checkpoint was written yet. Gives whether one was. The folder is locked as long as
    the context lasts, or the process; not on file systems without locks, which is said.

    Raises:
        UserError: the folder holds something else, or another process trains there.
        FaultsError: the run there is another; every difference is named.
    """
    record = {
        "config": config_record(config),
        "dataset_id": dataset.manifest["dataset_id"],
        "model": model,
        "steps": steps,
    }
    begun = any((folder / "checkpoints").glob("step-" + "[0-9]" * 8))
    if begun:
        if not (folder / RUN).exists():
            raise UserError(f"{folder}: has checkpoints but no {RUN}; give a new --output")
        try:
            before: dict[str, Any] = json.loads((folder / RUN).read_bytes())
        except ValueError as error:
            raise UserError(f"{folder / RUN}: damaged; give a new --output") from error
        if faults := _differences(before, record):
            raise FaultsError(f"{folder}: holds another run; give a new --output", faults)
    elif not (folder / RUN).exists() and any(p.name != LOCK for p in folder.glob("*")):
        raise UserError(f"{folder}: holds something that is no run; give a new folder to --output")
    with _locked(folder):
        if dist.get_rank() == 0 and not begun:
            _begin(folder, record, dataset, model_config)
        dist.barrier()
        yield begun


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Keep other processes out; rank 0 does it, and all ranks learn what came of it."""
    fault, file = [""], None
    if dist.get_rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("a")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fault = [f"{folder}: another process is training there; wait for it, or stop it"]
        except OSError as error:
            if file and error.errno in _NO_LOCKS:
                note = f"note: {folder}: its file system has no locks; start no second run there"
                print(note, file=sys.stderr)
            else:
                fault = [f"--output {folder}: {error.strerror}"]
    dist.broadcast_object_list(fault, device=torch.device("cpu"))
    try:
        if fault[0]:
            raise UserError(fault[0])
        yield
    finally:
        if file:
            file.close()


def _begin(
    folder: Path, record: dict[str, Any], dataset: ShardedDataset, model_config: PreTrainedConfig
) -> None:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_whole(folder / RUN, json.dumps({**record, "versions": versions}, indent=1) + "\n")
    model_config.save_pretrained(folder)
    about = dataset.manifest["tokenizer"]
    remote = isinstance(dataset, RemoteDataset)
    source = dataset.fetch(about["file"]) if remote else dataset.folder / about["file"]
    if source.exists() and (note := write_tokenizer(folder, source.read_bytes(), about)):
        print(f"note: {folder}: {note}", file=sys.stderr)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    free = set(FREE)
    if now["config"]["memory"]:
        free.remove("micro_batch")  # local contexts see others of their microbatch
    old, new = (
        {**run, **_flat({k: v for k, v in run["config"].items() if k not in free})}
        for run in (before, now)
    )
    return [
        f"{key}: {old.get(key)!r} there, {value!r} now"
        for key, value in new.items()
        if key != "config" and old.get(key) != value
    ]


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration as `--set` names them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        flat |= {f"{key}.{k}": v for k, v in value.items()} if nested else {key: value}
    return flat
