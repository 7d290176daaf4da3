"""Paths of a mixture → the files they name → splits that workers can read on their own."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pyarrow.parquet as pq

from pipelines import files, hub
from pipelines.errors import FaultsError, UserError
from pipelines.formats import compression_of, format_of
from pipelines.listing import Listing, list_files
from pipelines.mixture import Source
from pipelines.records import InputFile, Split

BLOCK_BYTES = 16 << 20
"""Uncompressed bytes of input in one block. Blocks depend on the input alone, so that every
runner and any number of workers make the same ones."""


def list_source(name: str, source: Source, *, data_root: str | None) -> Listing:
    """The input files of one source.

    Raises:
        UserError: see `list_files`; the message names the source.
    """
    local = data_root is not None and source.local is not None
    patterns = source.local if local and source.local else source.path
    root = data_root if local or all("://" not in p for p in patterns) else None
    with _named(f"sources.{name}"):
        shards = [f for p in patterns if hub.is_dataset(p) for f in hub.list_shards(p)]
        paths = [p for p in patterns if not hub.is_dataset(p)]
        if not paths:
            return Listing(shards)
        listing = list_files(
            paths,
            root=root,
            any_ending=source.format != "auto",
            unknown_files=source.unknown_files,
        )
        return replace(listing, files=[*shards, *listing.files])


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
    with _named(key):
        return list_files(patterns, root=root, any_ending=False).files


@contextmanager
def _named(key: str) -> Generator[None]:
    """Put a key of the mixture in front of the faults of its paths."""
    try:
        yield
    except FaultsError as error:
        raise FaultsError(error.where, [f"{key}: {fault}" for fault in error.faults]) from error
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def plan_splits(name: str, source: Source, inputs: Iterable[InputFile]) -> list[Split]:
    """Cut input files into splits: byte ranges, row groups, whole files, or bundles of texts."""
    splits: list[Split] = []
    bundles: dict[str, list[InputFile]] = {"text": [], "html": []}
    n_bytes = dict.fromkeys(bundles, 0)
    for file in inputs:
        kind = _kind(file, source)
        if (bundle := bundles.get(kind)) is None:
            splits += _split_file(Split(name, kind, (file,)))
            continue
        bundle.append(file)
        n_bytes[kind] += file.size
        if n_bytes[kind] >= BLOCK_BYTES:
            splits.append(Split(name, kind, tuple(bundle)))
            bundles[kind], n_bytes[kind] = [], 0
    return splits + [Split(name, kind, tuple(b)) for kind, b in bundles.items() if b]


def _kind(file: InputFile, source: Source) -> str:
    if hub.is_dataset(file.path):
        return "hub"
    if source.format != "auto":
        return source.format
    if source.schema_ == "natural_instructions":
        return "tasks"
    return format_of(file.path) or "text"


def _split_file(split: Split) -> list[Split]:
    compression = compression_of(split.file.path)
    if split.format in ("parquet", "arrow") and compression:
        raise UserError(
            f"{split.file.name}: a table that is compressed as a whole, which has to be read from "
            f"its end; decompress it ({compression})"
        )
    if split.format == "jsonl" and compression is None:
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
