"""The shard format: write, read, verify. numpy and pyarrow only; `docs/formats.md` specifies it.

A data set is a folder of shards and `manifest.json`. A shard is `NNNNN.tok`, sequences of
`seq_len` ids one after the other (little endian uint16 or uint32, no header), and
`NNNNN.meta.arrow`, one row a sequence.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.xxh3 import hash_rows

SEGMENT = pa.struct(
    [
        ("start", pa.int32()),
        ("length", pa.int32()),
        ("document", pa.binary(16)),
        ("offset", pa.int64()),
        ("head_cut", pa.bool_()),
        ("tail_cut", pa.bool_()),
    ]
)
SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32())])
META_SCHEMA = pa.schema(
    [
        ("n_real", pa.int32()),
        ("n_loss", pa.int32()),
        ("sum_len_sq", pa.uint64()),
        ("source", pa.uint16()),
        ("pass", pa.uint16()),
        ("xxh3", pa.uint64()),
        ("segments", pa.list_(SEGMENT)),
        ("no_loss", pa.list_(SPAN)),
    ]
)
MANIFEST = "manifest.json"


def shard_name(number: int) -> str:
    """A shard's name without ending."""
    return f"{number:05d}"


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence as the model sees it."""

    tokens: npt.NDArray[Any]
    """[seq_len] ids; padding after the first `n_real`."""

    n_real: int
    source: str
    pass_: int
    segments: list[dict[str, Any]]
    """Where documents stand, see `SEGMENT`; `document` is 16 bytes."""

    no_loss: list[tuple[int, int]]
    """Spans [start, end) that carry no loss."""


class ShardedDataset:
    """A finished data set on a local disk, by position in the training order.

    Raises:
        ValueError: the folder holds no finished data set of a format this reads.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.exists():
            raise ValueError(f"{folder}: no finished data set ({MANIFEST} is missing)")
        self.manifest: dict[str, Any] = json.loads(path.read_text())
        if self.manifest.get("format_version") != 1:
            raise ValueError(f"{path}: format_version is not 1; this reader knows only 1")
        self.seq_len: int = self.manifest["seq_len"]
        self.sources: list[str] = [s["name"] for s in self.manifest["sources"]]
        self.dtype = np.dtype(self.manifest["token_type"]).newbyteorder("<")
        self._counts = [shard["sequences"] for shard in self.manifest["shards"]]
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        """Number of sequences."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def tokens(self, shard: int) -> npt.NDArray[Any]:
        """[sequences, seq_len] of a shard, memory-mapped."""
        path = self.folder / f"{shard_name(shard)}.tok"
        return np.memmap(path, self.dtype, "r", shape=(self._counts[shard], self.seq_len))

    def meta(self, shard: int) -> pa.Table:
        """The shard's rows of `META_SCHEMA`, memory-mapped."""
        path = self.folder / f"{shard_name(shard)}.meta.arrow"
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def locate(self, position: int) -> tuple[int, int]:
        """(shard, row) of a position in the training order.

        Raises:
            IndexError: the data set is shorter.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"sequence {position} of a data set of {len(self)}")
        shard = int(np.searchsorted(self._ends, position, "right"))
        return shard, position - int(self._ends[shard] - self._counts[shard])

    def sequence(self, position: int) -> Sequence:
        """One sequence with its segments."""
        shard, row = self.locate(position)
        meta = self.meta(shard).slice(row, 1).to_pylist()[0]
        return Sequence(
            tokens=self.tokens(shard)[row],
            n_real=meta["n_real"],
            source=self.sources[meta["source"]],
            pass_=meta["pass"],
            segments=meta["segments"],
            no_loss=[(span["start"], span["end"]) for span in meta["no_loss"]],
        )

    def verify(self) -> Iterator[str]:
        """What is wrong with the files; nothing if all digests and counts hold."""
        for number, shard in enumerate(self.manifest["shards"]):
            for ending in ("tok", "meta.arrow"):
                path = self.folder / f"{shard_name(number)}.{ending}"
                if not path.exists():
                    yield f"{path.name}: missing"
                elif file_sha256(path) != shard[f"sha256_{ending.split('.')[0]}"]:
                    yield f"{path.name}: its sha256 is not the one in the manifest"
                    yield from self._damaged_rows(number, shard) if ending == "tok" else ()
        if dataset_id(self.manifest) != self.manifest["dataset_id"]:
            yield f"{MANIFEST}: dataset_id does not match its content"

    def _damaged_rows(self, number: int, shard: dict[str, Any]) -> Iterator[str]:
        path = self.folder / f"{shard_name(number)}.tok"
        expected = shard["sequences"] * self.seq_len * self.dtype.itemsize
        if path.stat().st_size != expected:
            yield f"{path.name}: {path.stat().st_size} bytes, not {expected}"
            return
        wrong = hash_rows(self.tokens(number)) != self.meta(number)["xxh3"].to_numpy()
        for row in np.flatnonzero(wrong).tolist():
            yield f"{path.name}: sequence {row} of the shard is damaged"


def file_sha256(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dataset_id(manifest: dict[str, Any]) -> str:
    """sha256 over what the data set is: its recipe, vocabulary and every byte of its shards.

    Versions of libraries and paths of inputs are left out: they may differ between machines that
    build the same bytes.
    """
    parts = {
        key: manifest[key]
        for key in ("format_version", "recipe", "seq_len", "token_type", "tokenizer", "shards")
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
