"""One worker's share of a scan: the texts of a unit × index → a file of overlaps, and counts."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from decontam.corpora import Text, Unit
from decontam.frequent import PAIR, NgramCounter
from decontam.policy import Decontaminator, Policy
from decontam.records import Overlap
from decontam.report import OVERLAP_SCHEMA, describe_overlap
from decontam.search import Searcher
from pipelines.benchmark_index import BenchmarkTexts, load_index

_PART_SCHEMA = pa.schema([*OVERLAP_SCHEMA, pa.field("offset", pa.int64())])
_BATCH_BYTES = 1 << 22  # of text that is searched at a time


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """What is done with every text."""

    index: str
    count_ngrams: bool
    folder: str
    """For the files of the workers."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one unit gave, beside the overlaps in its file."""

    batches: list[tuple[int, int]]
    """(Index, lines) of each batch, in the order of the record batches of the file."""

    totals: Counter[tuple[str, str]]
    """Texts, words and words removed by (source, `documents`, `words` or `words_removed`)."""

    unread: Counter[str]
    n_bytes: int
    """Of input, uncompressed."""


def part_path(spec: ScanSpec, number: int) -> str:
    """Overlaps of a unit."""
    return os.path.join(spec.folder, f"{number:06d}.arrow")


def pairs_path(spec: ScanSpec, number: int) -> str:
    """N-grams that texts of a unit hold."""
    return os.path.join(spec.folder, f"{number:06d}.npy")


def scan_unit(
    spec: ScanSpec, number: int, unit: Unit, progress: Callable[[int], None] | None = None
) -> Outcome:
    """Compare the texts of a unit with the index; overlaps go to the unit's file."""
    comparer = _comparer(spec, unit.corpus.policy)
    batches: list[tuple[int, int]] = []
    totals: Counter[tuple[str, str]] = Counter()
    unread: Counter[str] = Counter()
    pairs = [np.zeros(0, PAIR)]
    n_bytes = 0
    with pa.ipc.new_file(part_path(spec, number), _PART_SCHEMA) as writer:
        for batch in unit.read():
            rows: list[dict[str, Any]] = []
            for texts in slices(batch.texts):
                rows += comparer.compare(texts, totals, pairs)
            writer.write_batch(pa.RecordBatch.from_pylist(rows, _PART_SCHEMA))
            batches.append((batch.index, batch.n_lines))
            unread.update(batch.unread)
            n_bytes += batch.n_bytes
            if progress:
                progress(batch.n_bytes)
    if spec.count_ngrams:
        np.save(pairs_path(spec, number), np.unique(np.concatenate(pairs)))
    return Outcome(batches, totals, unread, n_bytes)


def slices(texts: Sequence[Text]) -> Iterator[Sequence[Text]]:
    """Texts in pieces of some megabytes."""
    start = size = 0
    for i, text in enumerate(texts):
        size += len(text.utf8)
        if size >= _BATCH_BYTES:
            yield texts[start : i + 1]
            start, size = i + 1, 0
    if start < len(texts):
        yield texts[start:]


class _Verdict(NamedTuple):
    overlaps: Sequence[Overlap]
    kept: Sequence[tuple[int, int]]
    n_words: int
    words_removed: int


class _Comparer:
    """Searches, applies the policy, counts."""

    def __init__(self, spec: ScanSpec, policy: Policy | None) -> None:
        index = load_index(spec.index)
        self._texts = BenchmarkTexts(index)
        self._searcher = Searcher(index)
        self._decontaminator = Decontaminator(index, policy) if policy else None
        self._counter = NgramCounter(index) if spec.count_ngrams else None

    def compare(
        self,
        texts: Sequence[Text],
        totals: Counter[tuple[str, str]],
        pairs: list[npt.NDArray[np.void]],
    ) -> list[dict[str, Any]]:
        """Rows of the texts' overlaps; totals and pairs are added to."""
        rows: list[dict[str, Any]] = []
        for text, verdict in zip(texts, self._judge([t.utf8 for t in texts]), strict=True):
            totals[text.source, "documents"] += 1
            totals[text.source, "words"] += verdict.n_words
            totals[text.source, "words_removed"] += verdict.words_removed
            rows += (self._row(text, overlap, verdict.kept) for overlap in verdict.overlaps)
            if self._counter and verdict.overlaps:
                (found,) = self._searcher.search([text.utf8])
                spans = [*found.spans, *found.boilerplate]
                pairs.append(self._counter.pairs(text.utf8, spans, text.uid))
        return rows

    def _judge(self, texts: Sequence[bytes]) -> Iterator[_Verdict]:
        if self._decontaminator:
            for v in self._decontaminator.check(texts):
                yield _Verdict(v.overlaps, v.kept, v.n_words, v.words_removed)
        else:
            for text, found in zip(texts, self._searcher.search(texts), strict=True):
                yield _Verdict(found.overlaps, [(0, len(text))], found.n_words, 0)

    def _row(self, text: Text, overlap: Overlap, kept: Sequence[tuple[int, int]]) -> dict[str, Any]:
        whole = any(start <= overlap.start and overlap.end <= end for start, end in kept)
        return {
            **describe_overlap(text.utf8, overlap, self._texts.of(overlap)),
            "source": text.source,
            "uid": text.uid,
            "file": text.file,
            "line": text.line,
            "offset": text.offset,
            "origin": text.origin,
            "decision": "kept" if whole else "cut" if kept else "dropped",
        }


@lru_cache(maxsize=1)
def _comparer(spec: ScanSpec, policy: Policy | None) -> _Comparer:
    """One for a process as long as the policy is the same: it keeps its working memory."""
    return _Comparer(spec, policy)
