"""The shard format: write, read, verify. numpy and pyarrow only; `docs/formats.md` specifies it.

A data set is a folder of shards and `manifest.json`. A shard is `NNNNN.tok`, sequences of
`seq_len` ids one after the other (little endian uint16 or uint32, no header), and
`NNNNN.meta.arrow`, one row a sequence.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
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
        ("continues", pa.bool_()),
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
MANIFEST, DOCUMENTS, DROPPED = "manifest.json", "documents.arrow", "dropped.jsonl.zst"
OVERLAPS, OVERLAPS_PAGE = "overlaps.arrow", "decontamination.html"
TASKS = "tasks.jsonl"
NEAR_DUPLICATES = "near_duplicates.jsonl"
FORMAT_VERSION = 2


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

    def targets(self) -> npt.NDArray[np.bool_]:
        """[seq_len] which tokens the model learns to predict from those before them.

        Not padding, not what carries no loss, and no first token of a context: nothing before it
        belongs to it.
        """
        mask = np.zeros(len(self.tokens), np.bool_)
        mask[: self.n_real] = True
        for start, end in self.no_loss:
            mask[start:end] = False
        mask[[s["start"] for s in self.segments if not s["continues"]]] = False
        return mask


class ShardedDataset:
    """A finished data set on a local disk, by position in the training order.

    Raises:
        ValueError: the folder holds no finished data set of a format this reads.
    """

    def __init__(self, folder: str | Path) -> None:
        if "://" in str(folder):
            raise ValueError(
                f"{folder}: data sets are read from a local disk; copy it to one first"
            )
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder / MANIFEST)
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
        path, shape = self.folder / f"{shard_name(shard)}.tok", (self._counts[shard], self.seq_len)
        if fault := self._wrong_size(path, shape):
            raise ValueError(fault)
        return np.memmap(path, self.dtype, "r", shape=shape)

    def _wrong_size(self, path: Path, shape: tuple[int, int]) -> str:
        size, expected = path.stat().st_size, shape[0] * shape[1] * self.dtype.itemsize
        return "" if size == expected else f"{path.name}: {size:,} bytes, not {expected:,}"

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
        """What is wrong with the files; nothing if every digest and size holds."""
        if manifest_checksum((self.folder / MANIFEST).read_bytes()) != self.manifest["checksum"]:
            yield f"{MANIFEST}: changed since the build: its checksum does not hold"
        if dataset_id(self.manifest) != self.manifest["dataset_id"]:
            yield f"{MANIFEST}: dataset_id is not that of the shards it lists"
        for number, shard in enumerate(self.manifest["shards"]):
            meta = list(self._file_faults(f"{shard_name(number)}.meta.arrow", shard["sha256_meta"]))
            tokens = list(self._file_faults(f"{shard_name(number)}.tok", shard["sha256_tok"]))
            yield from [*meta, *tokens]
            yield from self._damaged_rows(number, compare=bool(tokens) and not meta)
        for name, digest in self.manifest["files"].items():
            yield from self._file_faults(name, digest)

    def _file_faults(self, name: str, digest: str) -> Iterator[str]:
        path = self.folder / name
        if not path.exists():
            yield f"{name}: missing"
        elif file_sha256(path) != digest:
            yield f"{name}: its sha256 is not the one in the manifest"

    def _damaged_rows(self, number: int, *, compare: bool) -> Iterator[str]:
        """A wrong size, or else where `compare` asks for it the sequences that are damaged."""
        name = f"{shard_name(number)}.tok"
        if not (self.folder / name).exists():
            return
        if fault := self._wrong_size(self.folder / name, (self._counts[number], self.seq_len)):
            yield fault
            return
        if not compare:
            return
        wrong = hash_rows(self.tokens(number)) != self.meta(number)["xxh3"].to_numpy()
        first = int(self._ends[number]) - self._counts[number]
        for row in np.flatnonzero(wrong).tolist():
            yield f"{name}: sequence {first + row} (row {row} of the shard) is damaged"


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path.parent}: no finished data set ({MANIFEST} is missing)")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is not {FORMAT_VERSION}, the only one that this reader knows"
        )
    return manifest


def file_sha256(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dataset_id(manifest: Mapping[str, Any]) -> str:
    """sha256 over what is trained on: vocabulary, names of the sources, every byte of the shards.

    Where the inputs and the tokenizer lay and which versions of libraries were used is left out:
    machines that build the same bytes give the same id.
    """
    keys = ("format_version", "seq_len", "token_type", "pad_id", "tokenizer", "shards")
    parts = {key: manifest[key] for key in keys}
    parts["sources"] = [source["name"] for source in manifest["sources"]]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as a file, with a line that holds the checksum of all the others."""
    layout = json.dumps({**manifest, "checksum": ""}, indent=1, sort_keys=True) + "\n"
    checksum = manifest_checksum(layout.encode())
    return layout.replace('"checksum": ""', f'"checksum": "{checksum}"', 1).encode()


def manifest_checksum(content: bytes) -> str:
    """sha256 of a manifest's file without the line that holds the checksum."""
    return hashlib.sha256(re.sub(rb'(?m)^ "checksum": .*\n', b"", content, count=1)).hexdigest()
