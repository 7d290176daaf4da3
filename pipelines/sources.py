"""Paths of a mixture → the files they name → splits that workers can read on their own."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from pipelines import files, hub
from pipelines.errors import UserError
from pipelines.mixture import Source
from pipelines.records import InputFile, Split

BLOCK_BYTES = 16 << 20
"""Uncompressed bytes of input in one block. Blocks depend on the input alone, so that every
runner and any number of workers make the same ones."""

COMPRESSIONS = {".zst": "zstd", ".gz": "gzip"}
FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".tex": "text",
}


def compression_of(name: str) -> str | None:
    """`zstd`, `gzip` or None, by the ending of the name."""
    return COMPRESSIONS.get(os.path.splitext(name)[1])


def format_of(name: str) -> str | None:
    """The format that the ending of a name stands for, compression ending aside."""
    base, ending = os.path.splitext(name)
    if ending in COMPRESSIONS:
        ending = os.path.splitext(base)[1]
    return FORMATS.get(ending)


def list_files(patterns: Sequence[str], *, root: str | None, any_ending: bool) -> list[InputFile]:
    """All files that paths, folders and globs name, each once, ordered by name.

    Args:
        patterns: as in the mixture file.
        root: what relative patterns are below (--data-root), or None.
        any_ending: take files of a folder whatever their ending (an explicit `format`).

    Raises:
        UserError: a pattern names nothing that can be read.
    """
    found: dict[str, InputFile] = {}  # by what the path really leads to
    for pattern in patterns:
        below_root = root is not None and "://" not in pattern and not os.path.isabs(pattern)
        path = files.join(root, pattern) if root and below_root else pattern
        listed = _list_local(path) if files.is_local(path) else _list_remote(path)
        usable = [f for f in listed if any_ending or format_of(f[0])]
        if not usable:
            ignored = f" ({len(listed)} files of other kinds)" if listed else ""
            raise UserError(f"{path}: no file to read{ignored}; {_way_out(root)}")
        for file_path, size, identity in usable:
            name = file_path.removeprefix(root.rstrip("/") + "/") if root else file_path
            place = os.path.realpath(file_path) if files.is_local(file_path) else file_path
            if place not in found or name < found[place].name:
                found[place] = InputFile(file_path, name, size, identity)
    return sorted(found.values(), key=lambda file: file.name)


def _way_out(root: str | None) -> str:
    where = f"is --data-root {root} right? " if root else "does it exist? "
    return f"{where}Known endings: {', '.join(sorted(FORMATS))}, with .zst or .gz too"


def _list_local(pattern: str) -> list[tuple[str, int, str]]:
    path = pattern.removeprefix("file://")
    if os.path.isdir(path):
        names = list(_walk(path))
    elif os.path.exists(path):
        names = [path]
    else:
        names = [n for n in glob.glob(path, recursive=True) if os.path.isfile(n)]
    if unreadable := [name for name in names if not os.access(name, os.R_OK)]:
        why = "no permission to read it" if os.path.exists(unreadable[0]) else "a link to nothing"
        raise UserError(f"{unreadable[0]}: {why} ({len(unreadable)} such files)")
    try:
        return [(name, os.stat(name).st_size, files.identity(name)) for name in names]
    except OSError as error:
        raise UserError(f"{pattern}: changed while it was listed: {error}") from error


def _walk(folder: str) -> Iterator[str]:
    """All files below a folder; one that cannot be listed stops the build."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot list it: {error.strerror}") from error

    for parent, _, names in os.walk(folder, followlinks=True, onerror=refuse):
        yield from (os.path.join(parent, name) for name in names)


def _list_remote(pattern: str) -> list[tuple[str, int, str]]:
    fs, name = files.filesystem(pattern)
    scheme = pattern.split("://", 1)[0]
    try:
        with files.reachable(pattern):
            names = _remote_names(fs, name, scheme)
            urls = [n if "://" in n else f"{scheme}://{n.lstrip('/')}" for n in names]
            return [
                (url, int(fs.size(n)), files.identity(url))
                for n, url in zip(names, urls, strict=True)
            ]
    except (OSError, ValueError, TypeError) as error:  # TypeError: a size that is not known
        raise UserError(f"{pattern}: cannot list it: {error}") from error


def _remote_names(fs: Any, name: str, scheme: str) -> list[str]:
    if glob.has_magic(name):
        return list(fs.glob(name))
    return [name] if scheme in ("http", "https") else list(fs.find(name))


def list_source(name: str, source: Source, *, data_root: str | None) -> list[InputFile]:
    """The input files of one source.

    Raises:
        UserError: see `list_files`; the message names the source.
    """
    local = data_root is not None and source.local is not None
    patterns = source.local if local and source.local else source.path
    root = data_root if local or all("://" not in p for p in patterns) else None
    try:
        if hub.is_dataset(patterns[0]):
            return [file for pattern in patterns for file in hub.list_shards(pattern)]
        return list_files(patterns, root=root, any_ending=source.format != "auto")
    except UserError as error:
        raise UserError(f"sources.{name}: {error}") from error


def list_beside(
    key: str, path: Sequence[str], local: Sequence[str] | None, *, data_root: str | None
) -> list[InputFile]:
    """The files that a source needs beside its documents; `key` names the mixture's key.

    Raises:
        UserError: none is there.
    """
    below = data_root is not None and local is not None
    patterns = local if below and local else path
    root = data_root if below or all("://" not in p for p in path) else None
    try:
        return list_files(patterns, root=root, any_ending=False)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def plan_splits(name: str, source: Source, inputs: Iterable[InputFile]) -> list[Split]:
    """Cut input files into splits: byte ranges, row groups, whole files, or bundles of texts."""
    splits: list[Split] = []
    bundle: list[InputFile] = []
    bundle_bytes = 0
    for file in inputs:
        kind = _kind(file, source)
        if kind == "text":
            bundle.append(file)
            bundle_bytes += file.size
            if bundle_bytes >= BLOCK_BYTES:
                splits.append(Split(name, kind, tuple(bundle)))
                bundle, bundle_bytes = [], 0
        else:
            splits += _split_file(Split(name, kind, (file,)))
    return splits + ([Split(name, "text", tuple(bundle))] if bundle else [])


def _kind(file: InputFile, source: Source) -> str:
    if hub.is_dataset(file.path):
        return "hub"
    if source.format != "auto":
        return source.format
    if source.schema_ == "natural_instructions":
        return "tasks"
    return format_of(file.path) or "text"


def _split_file(split: Split) -> list[Split]:
    if split.format == "jsonl" and compression_of(split.file.path) is None:
        starts = range(0, split.file.size, BLOCK_BYTES)
        return [replace(split, first=b, last=min(b + BLOCK_BYTES, split.file.size)) for b in starts]
    if split.format == "parquet":
        try:
            with files.open_binary(split.file.path) as file:
                groups = pq.ParquetFile(file).num_row_groups
        except (OSError, ValueError) as error:
            raise UserError(f"{split.file.name}: not a readable parquet file: {error}") from error
        return [replace(split, first=g, last=g + 1) for g in range(groups)]
    return [split]


def spread(splits: Sequence[Split], *, workers: int) -> list[Split]:
    """Let several workers share compressed files, which cannot be split, and deal big ones first.

    Every worker then decompresses the file, which is fast, and tokenizes its share of the blocks,
    which is slow. Blocks and results stay the same.
    """
    spread_out: list[Split] = []
    for split in splits:
        shareable = split.format == "jsonl" and compression_of(split.file.path) is not None
        share = min(workers, 1 + split.file.size // (4 << 20)) if shareable else 1
        spread_out += [replace(split, stride=i, strides=share) for i in range(share)]
    return sorted(spread_out, key=lambda s: -(s.last - s.first or s.file.size) // s.strides)
