"""Data sets of the Hugging Face hub, streamed through `datasets`.

`hf://OWNER/NAME?config=CONFIG&split=SPLIT` (or the path of a local data set folder instead of
OWNER/NAME) is read as `datasets.load_dataset` reads it. Single files of a repository need no
`datasets`: `hf://datasets/OWNER/NAME/…` names them as any other path.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.mixture import digest
from pipelines.records import InputFile

PREFIX = "hf://"
_KEYS = {"config", "split", "revision"}
_ROWS = 64


def is_dataset(path: str) -> bool:
    """Whether the path names a hub data set rather than files."""
    return path.startswith(PREFIX) and not path.startswith("hf://datasets/")


def _parse(path: str) -> tuple[str, dict[str, str]]:
    """The data set's name and what stands behind `?`."""
    name, _, query = path.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - _KEYS):
        raise UserError(f"{path}: no such key '{unknown[0]}'; known: {', '.join(sorted(_KEYS))}")
    return name, options


def _open(path: str) -> Any:
    from datasets import load_dataset  # seconds to import, and only hub sources need it

    name, options = _parse(path)
    split = options.get("split", "train")
    try:
        return load_dataset(
            name,
            options.get("config"),
            split=split,
            revision=options.get("revision"),
            streaming=True,
        )
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be read
        raise UserError(f"{path}: cannot open the data set: {error}") from error


def list_shards(path: str) -> list[InputFile]:
    """One entry for each shard of the data set; its place is the number behind `#`."""
    dataset = _open(path)
    identity = f"{dataset.info.version}:{dataset.info.builder_name}:{_revision(path)}"
    return [
        InputFile(f"{path}#{shard:05d}", f"{path}#{shard:05d}", 0, identity)
        for shard in range(dataset.num_shards)
    ]


def _revision(path: str) -> str:
    """The commit of the repository, or what the files of a local folder are."""
    from huggingface_hub import HfApi

    name, options = _parse(path)
    if (folder := Path(name)).is_dir():
        found = sorted(f for f in folder.rglob("*") if f.is_file())
        return digest(*[(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in found])
    try:
        return str(HfApi().dataset_info(name, revision=options.get("revision")).sha)
    except Exception as error:  # the hub's client raises many kinds
        raise UserError(f"{path}: cannot ask the hub for its revision: {error}") from error


def open_shard(path: str) -> tuple[list[str], Callable[[list[str]], Iterator[pa.RecordBatch]]]:
    """The columns of one shard, and what reads the records of some of them, in order."""
    base, _, shard = path.rpartition("#")
    dataset = _open(base)
    part = dataset.shard(num_shards=dataset.num_shards, index=int(shard))
    names = part.column_names or part._resolve_features().column_names

    def read(columns: list[str]) -> Iterator[pa.RecordBatch]:
        for table in part.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS):
            yield from table.to_batches()

    return list(names), read
