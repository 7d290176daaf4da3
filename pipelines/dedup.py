"""Sketches in the token store → which near duplicates of a source are dropped for what.

A task takes one band of all documents of a source and writes the edges it finds; one more task
finds what is contained in longer documents. Nothing is shuffled: a task reads one column of 8
bytes a document, sorts it, and reads signatures (512 bytes) only of documents that share the band
with another, a million at a time. The driver reads the edges, joins what they connect, and decides
which documents are kept of each connected group, a million documents at a time or one group.
Results lie in the token store under names that say what they were made from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import files
from pipelines.cleaning import Dedup
from pipelines.corpus import Corpus, NearDuplicates
from pipelines.mixture import digest
from pipelines.sketch import BANDS, PERMUTATIONS, band_column
from pipelines.store import sketches_path

if TYPE_CHECKING:  # numba takes a second to import
    from pipelines.near_duplicates import Contained

Ints = npt.NDArray[np.int64]

TASKS = BANDS + 1
"""Of a source: one a band, and one for what is contained in longer documents."""

_LEAST_SAMPLES = 16
_TOGETHER = 1 << 20  # documents whose signatures are held: 512 MB


@dataclass(frozen=True)
class Comparison:
    """One source whose documents are compared with each other."""

    batches: list[str]
    """Paths without endings."""

    n_documents: list[int]
    """Of each batch."""

    first: str
    """Path of a table of one column: which documents are no exact duplicate of one before."""

    settings: Dedup
    results: str
    """Path of the results without their endings."""

    def result(self, task: int) -> str:
        """What a task writes."""
        return f"{self.results}-{task:02d}.arrow"

    @property
    def todo(self) -> list[int]:
        """Tasks whose results are not there."""
        folder, _, name = self.results.rpartition("/")
        there = set(files.list_names(folder))
        least = 0 if self.settings.contained is not None else 1
        return [t for t in range(TASKS - least) if f"{name}-{t:02d}.arrow" not in there]


def compare(corpus: Corpus, settings: Dedup, *, store: str, work: str, program: str) -> Comparison:
    """What the tasks of a source need; writes what they cannot read from the store."""
    names = [path.rpartition("/")[2] for path in corpus.batches]
    key = digest(names, settings, program)
    first = files.join(work, f"first-{key}.arrow")
    files.write_table(first, pa.table({"first": pa.array(corpus.is_first)}))
    counts = np.bincount(corpus.batch, minlength=len(names)).tolist()
    return Comparison(corpus.batches, counts, first, settings, files.join(store, "near", key))


def run_task(comparison: Comparison, task: int) -> None:
    """Write the edges of a band, or what is contained in what."""
    path = comparison.result(task)
    if files.exists(path):
        return
    columns = _edges(comparison, task) if task < BANDS else _contained(comparison)
    files.write_table(path, pa.table({name: pa.array(c) for name, c in columns.items()}))


def _edges(comparison: Comparison, band: int) -> dict[str, npt.NDArray[Any]]:
    """Pairs of documents that share the band and resemble each other."""
    from pipelines.near_duplicates import Edges, band_edges, join_edges

    documents = np.flatnonzero(_first(comparison))
    column = [
        table[band_column(band)].to_numpy() for table in _batches(comparison, [band_column(band)])
    ]
    hashes = np.concatenate([np.zeros(0, np.uint64), *column])[documents]
    order = np.argsort(hashes)
    found: list[Edges] = []
    for part in _slices(hashes[order]):
        rows = np.sort(order[part])
        sketches = load_sketches(comparison, documents[rows], signatures=True)
        edges = band_edges(
            hashes[rows], sketches.signatures, sketches.uids,
            threshold=comparison.settings.threshold,
        )  # fmt: skip
        one, other = documents[rows][edges.one], documents[rows][edges.other]
        found.append(Edges(one, other, edges.equal))
    return join_edges(found)._asdict()


def _slices(ordered: npt.NDArray[Any]) -> Iterator[Ints]:
    """Indices into a sorted array of values that occur more than once, equal ones together.

    At most `_TOGETHER` at a time, unless one value occurs more often.
    """
    same = ordered[1:] == ordered[:-1]
    shared = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(same) else []
    values = ordered[shared]
    start = 0
    while start < len(values):
        end = min(start + _TOGETHER, len(values))
        if end < len(values):  # not in the middle of a value's run
            first = int(np.searchsorted(values, values[end]))
            end = first if first > start else int(np.searchsorted(values, values[end], "right"))
        yield np.asarray(shared[start:end], np.int64)
        start = end


def _contained(comparison: Comparison) -> dict[str, npt.NDArray[Any]]:
    """Documents of which a share of the sampled shingles is in a longer one."""
    from pipelines.near_duplicates import contained_documents

    share = comparison.settings.contained or 0.0
    counts = [
        np.diff(table["samples"].combine_chunks().offsets.to_numpy())
        for table in _batches(comparison, ["samples"])
    ]
    n_samples = np.concatenate([np.zeros(0, np.int64), *counts])
    documents = np.flatnonzero(_first(comparison) & (n_samples >= _LEAST_SAMPLES * share))
    sketches = load_sketches(comparison, documents, samples=True)
    found = contained_documents(
        sketches.samples, np.append(0, np.cumsum(n_samples[documents])), sketches.n_words,
        sketches.uids, threshold=share, least=_LEAST_SAMPLES,
    )  # fmt: skip
    inner, outer = documents[found.inner], documents[found.outer]
    return {"inner": inner, "outer": outer, "share": found.share}


def near_duplicates(comparison: Comparison) -> NearDuplicates:
    """Which documents of the source are dropped for what, of the results of all tasks."""
    from pipelines import near_duplicates as near

    bands = [_result(comparison, band) for band in range(BANDS)]
    edges = near.join_edges([near.Edges(r["one"], r["other"], r["equal"]) for r in bands])
    whole: dict[str, npt.NDArray[Any]] = dict.fromkeys(("inner", "outer", "share"), edges.one[:0])
    if comparison.settings.contained is not None:
        whole = _result(comparison, BANDS)
    ends = (edges.one, edges.other, whole["inner"], whole["outer"])
    # From here on documents are numbers among those that have an edge.
    documents = np.unique(np.concatenate(ends))
    one, other, inner, outer = (np.searchsorted(documents, end) for end in ends)
    labels = near.components(
        len(documents), np.concatenate([one, inner]), np.concatenate([other, outer])
    )
    order = np.argsort(labels, kind="stable")
    contained = near.Contained(inner, outer, whole["share"])
    parts = [
        _choose(comparison, documents, np.sort(order[part]), contained)
        for part in _slices(labels[order])
    ]
    return NearDuplicates.join([NearDuplicates.none(), *parts])


def _result(comparison: Comparison, task: int) -> dict[str, npt.NDArray[Any]]:
    table = files.read_table(comparison.result(task))
    return {name: table[name].to_numpy() for name in table.column_names}


def _choose(
    comparison: Comparison, documents: Ints, members: Ints, contained: "Contained"
) -> NearDuplicates:
    """What is dropped of some of the documents, whose edges all lie among themselves.

    Args:
        comparison: of the source.
        documents: that have an edge, ascending.
        members: indices into these, ascending.
        contained: which of all `documents` are contained in which.
    """
    from pipelines.near_duplicates import Contained, choose

    numbers = documents[members]
    sketches = load_sketches(comparison, numbers, signatures=True)
    here = np.isin(contained.inner, members)
    inner, outer = (np.searchsorted(members, end[here]) for end in contained[:2])
    choice = choose(
        sketches.signatures, sketches.n_words, sketches.uids,
        threshold=comparison.settings.threshold, bands=BANDS,
        contained=Contained(inner, outer, contained.share[here]),
    )  # fmt: skip
    dropped = np.flatnonzero(choice.kept != np.arange(len(members)))
    return NearDuplicates(
        numbers[dropped], numbers[choice.kept[dropped]], choice.similarity[dropped],
        choice.contained[dropped],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadedSketches:
    """Rows of `sketch.SKETCH_SCHEMA`, N of them; what was not asked for is empty."""

    uids: npt.NDArray[np.uint8]
    """[N, 16]"""

    n_words: Ints
    signatures: npt.NDArray[np.uint32]
    """[N, PERMUTATIONS]"""

    samples: npt.NDArray[np.uint64]
    """Of all documents, one after the other."""


def load_sketches(
    comparison: Comparison, documents: Ints, *, signatures: bool = False, samples: bool = False
) -> LoadedSketches:
    """Sketches of some documents, given by ascending numbers."""
    n = len(documents)
    uids, n_words = np.empty((n, 16), np.uint8), np.empty(n, np.int64)
    made = np.empty((n if signatures else 0, PERMUTATIONS), np.uint32)
    columns = ["uid", "n_words", *["signature"] * signatures, *["samples"] * samples]
    sampled = [np.zeros(0, np.uint64)]
    ends = np.cumsum(comparison.n_documents)
    cuts = np.searchsorted(documents, np.append(0, ends))
    for batch, (first, last) in enumerate(pairwise(cuts.tolist())):
        if first == last:
            continue
        rows = documents[first:last] - (ends[batch] - comparison.n_documents[batch])
        table = _read(comparison.batches[batch], columns).take(rows)
        uids[first:last] = _bytes(table, "uid")
        n_words[first:last] = table["n_words"].to_numpy()
        if signatures:
            made[first:last] = _bytes(table, "signature").view("<u4")
        if samples:
            sampled.append(table["samples"].combine_chunks().flatten().to_numpy())
    return LoadedSketches(uids, n_words, made, np.concatenate(sampled))


def _bytes(table: pa.Table, column: str) -> npt.NDArray[np.uint8]:
    """[N, width] of a column of fixed width that was just taken."""
    array = table[column].combine_chunks()
    width = array.type.byte_width
    content = np.frombuffer(array.buffers()[1], np.uint8)
    return content[array.offset * width :][: len(array) * width].reshape(-1, width)


def _first(comparison: Comparison) -> npt.NDArray[np.bool_]:
    return files.read_table(comparison.first)["first"].to_numpy()


def _batches(comparison: Comparison, columns: list[str]) -> Iterator[pa.Table]:
    for path in comparison.batches:
        yield _read(path, columns)


def _read(batch: str, columns: list[str]) -> pa.Table:
    return files.read_table(sketches_path(batch), columns)
