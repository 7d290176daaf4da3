"""What the token store holds of one source: every kept document as arrays."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import files
from pipelines.mixing import first_occurrences
from pipelines.records import Split
from pipelines.spans import Spans
from pipelines.store import batch_path, read_index, split_key

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Documents that are dropped for one that is kept and much like them, K of them."""

    document: Int64
    """[K] index into the corpus, ascending."""

    kept: Int64
    """[K] the document that is kept instead."""

    similarity: npt.NDArray[np.float64]
    """[K] estimated Jaccard similarity of the two."""

    contained: npt.NDArray[np.float64]
    """[K] share of it that the other one contains; NaN unless that is why it is dropped."""

    @classmethod
    def none(cls) -> "NearDuplicates":
        """Where nobody looked for them."""
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, np.zeros(0), np.zeros(0))

    @classmethod
    def join(cls, parts: Sequence["NearDuplicates"]) -> "NearDuplicates":
        """Those of several disjoint sets of documents."""
        document = np.concatenate([part.document for part in parts])
        order = np.argsort(document)
        return cls(
            document[order],
            np.concatenate([part.kept for part in parts])[order],
            np.concatenate([part.similarity for part in parts])[order],
            np.concatenate([part.contained for part in parts])[order],
        )

    def why(self, i: int) -> dict[str, Any]:
        """Why document i of these is dropped, as reports say it."""
        similarity = {"similarity": round(float(self.similarity[i]), 4)}
        if np.isnan(self.contained[i]):
            return similarity | {"because": "similar"}
        share = round(float(self.contained[i]), 4)
        return similarity | {"because": "contained", "contained": share}


@dataclass(frozen=True)
class Corpus:
    """The documents of one source, in the order of the input. Arrays are [N]."""

    batches: list[str]
    """Paths (without endings) of the batches, in the order of the input."""

    batch_files: list[list[str]]
    """Names of the input files of each batch."""

    first_lines: list[int]
    """Lines of the file that stand before each batch."""

    batch: npt.NDArray[np.int32]
    """Which batch holds the document."""

    start: Int64
    """Where its tokens begin in the batch's token file."""

    n_tokens: Int64
    no_loss: Spans
    """Tokens that carry no loss."""

    group: npt.NDArray[np.int32]
    """Which task it belongs to, an index into `groups`."""

    header: npt.NDArray[np.int8]
    """What it is to its task, see `records.Document`."""

    groups: list[str]
    uid: list[bytes]
    n_read: int
    n_not_sampled: int
    n_split_off: int
    """Pieces of documents beyond the first piece of each."""

    n_definitions: int
    """Documents that are no record's: definitions of tasks."""

    n_shortened: int
    """Tokens that were cut out of documents to make them fit."""

    n_text_bytes: int
    """UTF-8 bytes of the kept documents."""

    decontam: Mapping[str, int]
    """What decontamination counted, see `decontaminate.count_document`."""

    n_windows: int = 0
    """Windows that documents longer than a sequence were divided into, beyond the first of each."""

    near: NearDuplicates = field(default_factory=NearDuplicates.none)
    again: npt.NDArray[np.bool_] | None = None
    """Which the data set that this one follows has used; None where it follows none."""

    @cached_property
    def is_first(self) -> npt.NDArray[np.bool_]:
        """[N] false for a document whose text occurred before in this source."""
        return first_occurrences(self.uid)

    @cached_property
    def is_unique(self) -> npt.NDArray[np.bool_]:
        """[N] false for duplicates and near duplicates."""
        unique = self.is_first.copy()
        unique[self.near.document] = False
        return unique

    @cached_property
    def used_before(self) -> npt.NDArray[np.bool_]:
        """[N] whether the data set that this one follows has used it."""
        return np.zeros(len(self.uid), np.bool_) if self.again is None else self.again

    def dropped_reasons(self) -> Counter[str]:
        """How many records were dropped in the prepare stage, by reason."""
        counts: Counter[str] = Counter()
        for path in self.batches:
            counts.update(
                files.read_table(f"{path}.dropped.arrow", ["reason"])["reason"].to_pylist()
            )
        return counts

    def held_out(self) -> Iterator[str]:
        """The evidence for every document of a task that is held out."""
        for path in self.batches:
            table = files.read_table(f"{path}.dropped.arrow", ["reason", "evidence"])
            for reason, evidence in zip(*(c.to_pylist() for c in table.columns), strict=True):
                if reason == "held_out_task":
                    yield evidence

    def line(self, batch: int, line: int, offset: int) -> int:
        """A record's line in its file (JSON lines), or row (tables), counted from 1."""
        return line + 1 + (self.first_lines[batch] if offset >= 0 else 0)


def load_corpus(folder: str, splits: Sequence[Split], finished: dict[str, int]) -> Corpus:
    """Read the indexes of all batches of a source.

    Args:
        folder: of the token store.
        splits: of the source, in the order of the input.
        finished: batches of each split, by key.
    """
    columns = ["uid", "n_tokens", "no_loss", "n_bytes", "group", "header"]
    batches: list[str] = []
    batch_files: list[list[str]] = []
    first_lines: list[int] = []
    tables: list[pa.Table] = []
    lines: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    decontam: Counter[str] = Counter()
    for split in splits:
        key = split_key(split)
        for index in range(finished[key]):
            path = batch_path(folder, key, index)
            table, counts = read_index(path, columns)
            batches.append(path)
            batch_files.append([file.name for file in split.files])
            first_lines.append(lines[split.file.name] if len(split.files) == 1 else 0)
            lines[split.file.name] += counts.n_lines
            totals.update(read=counts.n_read, not_sampled=counts.n_not_sampled)
            totals.update(split_off=counts.n_split_off, definitions=counts.n_definitions)
            totals.update(shortened=counts.n_shortened, windows=counts.n_windows)
            decontam.update(counts.decontam)
            tables.append(table)
    group, groups = _groups(tables)
    n_tokens = [_int64(table, "n_tokens") for table in tables]
    starts = [np.concatenate([[0], np.cumsum(n)[:-1]]) if len(n) else n for n in n_tokens]
    return Corpus(
        batches=batches,
        batch_files=batch_files,
        first_lines=first_lines,
        batch=np.repeat(np.arange(len(tables), dtype=np.int32), [len(n) for n in n_tokens]),
        start=_concatenate(starts),
        n_tokens=_concatenate(n_tokens),
        no_loss=Spans.concatenate([Spans.of(table["no_loss"]) for table in tables]),
        group=group,
        header=_concatenate([_int64(table, "header") for table in tables]).astype(np.int8),
        groups=groups,
        uid=[uid for table in tables for uid in table["uid"].to_pylist()],
        n_read=totals["read"],
        n_not_sampled=totals["not_sampled"],
        n_split_off=totals["split_off"],
        n_windows=totals["windows"],
        n_definitions=totals["definitions"],
        n_shortened=totals["shortened"],
        n_text_bytes=int(sum(_int64(table, "n_bytes").sum() for table in tables)),
        decontam=dict(sorted(decontam.items())),
    )


def _groups(tables: Sequence[pa.Table]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The task of every document as a number, and the names of the tasks."""
    columns = [table["group"].cast(pa.string()) for table in tables]
    if not columns:
        return np.zeros(0, np.int32), []
    together = pa.chunked_array([c for column in columns for c in column.chunks], pa.string())
    encoded = together.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.to_numpy(), np.int32), encoded.dictionary.to_pylist()


def _int64(table: pa.Table, column: str) -> Int64:
    return np.asarray(table[column].to_numpy(), np.int64)


def _concatenate(arrays: Sequence[npt.NDArray[Any]]) -> Int64:
    return np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)
