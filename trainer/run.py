"""The folder of a run: what it is a run of, so that only the same run goes on in it."""

import json
import shutil
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

RUN = "run.json"


def claim_run(
    folder: Path,
    *,
    config: TrainConfig,
    dataset: ShardedDataset,
    model: str,
    model_config: PreTrainedConfig,
    steps: int,
) -> bool:
    """Begin a run in an empty folder, or check that it is the one that goes on there.

    Writes `run.json`, the model's `config.json`, and the data set's tokenizer file; anew where no
    checkpoint was written yet. Gives whether one was.

    Raises:
        UserError: the folder holds something else.
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
    elif folder.exists() and any(folder.iterdir()) and not (folder / RUN).exists():
        raise UserError(f"{folder}: holds something that is no run; give a new folder to --output")
    dist.barrier()
    if dist.get_rank() == 0 and not begun:
        folder.mkdir(parents=True, exist_ok=True)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_whole(folder / RUN, json.dumps({**record, "versions": versions}, indent=1) + "\n")
        model_config.save_pretrained(folder)
        name = dataset.manifest["tokenizer"]["file"]
        remote = isinstance(dataset, RemoteDataset)
        source = dataset.fetch(name) if remote else dataset.folder / name
        if source.exists():
            shutil.copyfile(source, folder / name)
    dist.barrier()
    return begun


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
