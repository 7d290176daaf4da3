"""The token store: documents as tokens, one batch a block of input, named by what made them.

A folder holds the batches of one `PrepareSpec`. A batch is three files, or up to five:

    KEY-00000.tokens          ids of all documents, little endian, uint16 or uint32
    KEY-00000.dropped.arrow   records that became no document, with reasons
    KEY-00000.overlaps.arrow  overlaps with benchmarks, where the mixture compares with any
    KEY-00000.sketches.arrow  by which near duplicates are found, where the source has `dedup`
    KEY-00000.arrow           one row a document; written last, so that it marks the batch complete

KEY is a digest of the input split. `KEY.end` says how many batches the split has.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import files
from pipelines.decontaminate import BATCH_SCHEMA
from pipelines.mixture import digest
from pipelines.prepare import Prepared
from pipelines.readers import Block
from pipelines.records import DROPPED_SCHEMA, Split
from pipelines.shards import SPAN
from pipelines.sketch import sketch_table

INDEX_SCHEMA = pa.schema(
    [
        ("uid", pa.binary(16)),
        ("n_tokens", pa.int64()),
        ("no_loss", pa.list_(SPAN)),
        ("n_bytes", pa.int64()),
        ("line", pa.int64()),
        ("offset", pa.int64()),
        ("file", pa.int32()),
        ("origin", pa.string()),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("header", pa.int8()),
    ]
)


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """What a batch was made of; kept in the metadata of its index."""

    n_read: int
    n_not_sampled: int
    n_lines: int
    n_bytes: int
    token_type: str
    n_split_off: int
    """Pieces of documents beyond the first piece of each."""

    n_windows: int
    """Windows that documents longer than a sequence were divided into, beyond the first of each."""

    n_definitions: int
    """Documents that are no record's: definitions of tasks."""

    n_shortened: int
    """Tokens that were cut out of documents to make them fit."""

    decontam: Mapping[str, int]
    """What decontamination counted, see `decontaminate.count_document`."""


def split_key(split: Split) -> str:
    """Names the batches of a split: by the files' paths and identities, and the range."""
    inputs = [(file.path, file.identity) for file in split.files]
    return digest(split.format, inputs, split.first, split.last)


def batch_path(folder: str, key: str, index: int) -> str:
    """A batch's path without its endings."""
    return files.join(folder, f"{key}-{index:05d}")


def sketches_path(path: str) -> str:
    """The file of a batch that has rows of `sketch.SKETCH_SCHEMA`."""
    return f"{path}.sketches.arrow"


def write_batch(path: str, prepared: Prepared, block: Block) -> None:
    """Write one batch; the index comes last and makes it count."""
    tokens = prepared.tokens.astype(prepared.tokens.dtype.newbyteorder("<"), copy=False)
    with files.write_atomic(f"{path}.tokens") as file:
        file.write(tokens.data if len(tokens) else b"")
    rows = [d._asdict() for d in prepared.dropped]
    files.write_table(f"{path}.dropped.arrow", pa.Table.from_pylist(rows, DROPPED_SCHEMA))
    if prepared.overlaps is not None:
        overlaps = pa.Table.from_pylist(prepared.overlaps, BATCH_SCHEMA)
        files.write_table(f"{path}.overlaps.arrow", overlaps)
    if prepared.sketches is not None:
        sketches = sketch_table(prepared.uids, prepared.sketches)
        files.write_table(sketches_path(path), sketches)
    counts = BatchCounts(
        n_read=prepared.n_read,
        n_not_sampled=prepared.n_not_sampled,
        n_lines=block.n_lines,
        n_bytes=block.n_bytes,
        token_type=str(prepared.tokens.dtype),
        n_split_off=prepared.n_split_off,
        n_windows=prepared.n_windows,
        n_definitions=prepared.n_definitions,
        n_shortened=prepared.n_shortened,
        decontam=prepared.decontam,
    )
    files.write_table(f"{path}.arrow", _index(prepared, counts))


def _index(prepared: Prepared, counts: BatchCounts) -> pa.Table:
    documents = prepared.documents
    columns = {
        "uid": pa.array(prepared.uids, pa.binary(16)),
        "n_tokens": np.diff(prepared.offsets),
        "no_loss": [[{"start": a, "end": b} for a, b in spans] for spans in prepared.no_loss],
        "n_bytes": prepared.n_bytes,
        "line": [d.line for d in documents],
        "offset": [d.offset for d in documents],
        "file": [d.file for d in documents],
        "origin": [d.origin for d in documents],
        "group": pa.array([d.group for d in documents], pa.string()).dictionary_encode(),
        "header": [d.header for d in documents],
    }
    fields = {name: getattr(counts, name) for name in BatchCounts.__slots__}
    metadata = {"counts": json.dumps(fields)}
    return pa.table(columns, schema=INDEX_SCHEMA.with_metadata(metadata))


def read_index(path: str, columns: list[str] | None = None) -> tuple[pa.Table, BatchCounts]:
    """The rows of a batch and what it was made of."""
    table = files.read_table(f"{path}.arrow", columns)
    return table, BatchCounts(**json.loads((table.schema.metadata or {})[b"counts"]))


def write_end(folder: str, key: str, n_batches: int) -> None:
    """Note that a split has been read to its end and how many batches that gives."""
    files.write_json(files.join(folder, f"{key}.end"), {"n_batches": n_batches})


def finished_batches(folder: str, splits: Iterable[Split]) -> dict[str, int]:
    """Number of batches of each split (by key) whose batches are all there."""
    names = set(files.list_names(folder))
    finished: dict[str, int] = {}
    for key in {split_key(split) for split in splits}:
        if f"{key}.end" in names:
            count = int(files.read_json(files.join(folder, f"{key}.end"))["n_batches"])
            if all(f"{key}-{i:05d}.arrow" in names for i in range(count)):
                finished[key] = count
    return finished


class TokenReader:
    """Reads pieces of documents out of token files.

    Local files are read, not memory-mapped: mapped pages would count as the worker's memory.
    """

    _MOST_OPEN = 256  # far below the usual limit of open files

    def __init__(self, token_type: str) -> None:
        self._dtype = np.dtype(token_type).newbyteorder("<")
        self._open: dict[str, FileIO] = {}

    def read(
        self, paths: Sequence[str], starts: Sequence[int], lengths: Sequence[int]
    ) -> Iterator[npt.NDArray[Any]]:
        """Pieces `[start, start + length)`, in tokens, of token files, one after the other.

        From object stores all ranges are asked for at once.

        Raises:
            ValueError: a file ends too early (it was changed behind the program's back).
        """
        width = self._dtype.itemsize
        begins = [start * width for start in starts]
        sizes = [length * width for length in lengths]
        parts = self._read_local if all(map(files.is_local, paths)) else _read_remote
        for path, size, part in zip(paths, sizes, parts(paths, begins, sizes), strict=True):
            if len(part) != size:
                raise ValueError(f"{path}: {len(part)} bytes where {size} should be")
            yield np.frombuffer(part, self._dtype)

    def _read_local(
        self, paths: Sequence[str], begins: Sequence[int], sizes: Sequence[int]
    ) -> Iterator[bytes]:
        for path, begin, size in zip(paths, begins, sizes, strict=True):
            if path not in self._open:
                if len(self._open) >= self._MOST_OPEN:
                    self._open.clear()
                self._open[path] = FileIO(files.filesystem(path)[1])
            yield os.pread(self._open[path].fileno(), size, begin)


def _read_remote(
    paths: Sequence[str], begins: Sequence[int], sizes: Sequence[int]
) -> Iterator[bytes]:
    fs, _ = files.filesystem(paths[0])
    names = [files.filesystem(path)[1] for path in paths]
    ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
    yield from fs.cat_ranges(names, list(begins), ends)
