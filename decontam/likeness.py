"""Documents × index → how much each resembles which benchmark inputs, and the most alike.

The similarity of a document and an input is the larger of two: the estimated Jaccard similarity of
the input and the best window of the document, and, where they have words in a row in common, the
share of the input's words that the longest such passage holds.

Shapes: M pairs of a benchmark input and a document.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from decontam.candidates import top_candidates, uid_numbers
from decontam.index import Index
from decontam.minhash import Ints
from decontam.records import BOILERPLATE_RULES, Overlap
from decontam.search import Found, Searcher
from decontam.tasks import Kind, Repeated, kind_of

LEAST_SIMILARITY = 0.3
"""Windows that resemble an input less are not looked at."""

TOP_DOCUMENTS = 100
_ENTRIES_KEPT = 4096  # texts of the index; documents of one task repeat the same ones


class Likeness(NamedTuple):
    """How a document resembles a benchmark input."""

    entry: int
    """Number of the input in the index."""

    similarity: float
    kind: Kind
    words: str
    """What the input has of the longest passage in common; empty where there is none."""

    passage: str
    """The same passage in the document."""


class _Input(NamedTuple):
    text: bytes
    n_words: int
    question: int
    """Byte of the text at which the question begins."""


class Comparer:
    """Compares documents with the inputs of an index. One for a process."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._searcher = Searcher(index)
        self._input = lru_cache(maxsize=_ENTRIES_KEPT)(self._read_input)
        self._numbers: dict[tuple[str, ...], int] = {}
        self._answers: dict[tuple[str, ...], list[int]] = defaultdict(list)
        columns = ("scenario", "variant", "split", "instance", "part", "correct")
        table = index.entries.columns(columns).to_pydict()
        for number, (*place, part, right) in enumerate(zip(*table.values(), strict=True)):
            if part == "input":
                self._numbers[tuple(place)] = number
            elif right:
                self._answers[tuple(place)].append(number)

    def place(self, entry: int) -> tuple[str, str, str, str]:
        """Scenario, variant, split and instance of an input."""
        e = self._index.entries[entry]
        return e.scenario, e.variant, e.split, e.instance

    def compare(self, texts: Sequence[bytes]) -> list[list[Likeness]]:
        """The inputs that each of some UTF-8 documents resembles, by number.

        Give a megabyte or more at a time.
        """
        if not texts:
            return []
        alike: list[dict[int, Likeness]] = [{} for _ in texts]
        normalizer = self._index.normalizer
        found = self._index.windows.search_texts(texts, normalizer, threshold=LEAST_SIMILARITY)
        entries = self._index.window_entries[found.entry].tolist()
        pairs = zip(found.document.tolist(), entries, found.similarity.tolist(), strict=True)
        for document, entry, similarity in pairs:
            alike[document][entry] = Likeness(entry, similarity, Kind.RESEMBLES, "", "")
        for text, overlapping, seen in zip(texts, self._searcher.search(texts), alike, strict=True):
            for found_words in self._repeated(text, overlapping):
                before = seen.get(found_words.entry, found_words)
                most = max(before.similarity, found_words.similarity)
                better = max(before, found_words, key=lambda likeness: likeness.kind)
                seen[better.entry] = better._replace(similarity=most)
        return [[seen[entry] for entry in sorted(seen)] for seen in alike]

    def _repeated(self, text: bytes, found: Found) -> list[Likeness]:
        """The inputs of which the document repeats words."""
        overlaps = [o for o in found.overlaps if o.rule not in BOILERPLATE_RULES]
        summarized = {o[:4] for o in overlaps if o.part == "reference" and o.in_question}
        return [
            self._likeness(text, o, summarized=o[:4] in summarized)
            for o in overlaps
            if o.part == "input"
        ]

    def _likeness(self, text: bytes, o: Overlap, *, summarized: bool) -> Likeness:
        entry = self._numbers[o[:4]]
        known = self._input(entry)
        repeated = Repeated(
            n=self._index.n,
            whole=o.rule == "whole",
            n_words=o.n_words,
            input_words=known.n_words,
            behind_passage=0 < known.question < len(known.text),
            only_article=known.question >= len(known.text),
            in_question=o.in_question,
        )
        kind = kind_of(repeated, answered=False, summarized=summarized)
        answered = kind_of(repeated, answered=True, summarized=summarized)
        if answered is not kind and self._answered(text, o[:4]):
            kind = answered
        return Likeness(
            entry,
            min(o.n_words / max(known.n_words, 1), 1.0),
            kind,
            known.text[o.benchmark_start : o.benchmark_end].decode(),
            text[o.start : o.end].decode(),
        )

    def _answered(self, text: bytes, place: tuple[str, ...]) -> bool:
        """Whether a right reference stands in the document, or there is none."""
        numbers = self._answers.get(place, [])
        answers = [self._index.entries[number].text.encode() for number in numbers]
        readings = self._index.normalizer.words([text, *answers])
        return not answers or any(
            holds(reading.of(0).hashes, reading.of(1 + i).hashes)
            for reading in readings
            for i in range(len(answers))
        )

    def _read_input(self, number: int) -> _Input:
        entry = self._index.entries[number]
        text = entry.text.encode()
        return _Input(text, len(self._index.normalizer.words([text]).split.hashes), entry.question)


def holds(words: npt.NDArray[np.uint64], some: npt.NDArray[np.uint64]) -> bool:
    """Whether some words, at least one, stand within others one after the other."""
    if not 0 < len(some) <= len(words):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(words, len(some))
    return bool((windows == some).all(axis=1).any())


def top_documents(
    entry: Ints,
    task: Ints,
    similarity: npt.NDArray[np.float32],
    uids: npt.NDArray[np.uint8],
    *,
    limit: int = TOP_DOCUMENTS,
) -> Ints:
    """For each input the documents that resemble it most, tasks taking turns.

    First come the best documents of all tasks, then the second ones, and so on: a hundred near
    copies of one example in one task do not hide what another task has. The best of the best of
    some pairs and of others are the best of all, as with `top_candidates`.

    Args:
        entry: [M] of each pair.
        task: [M] number of the document's task; numbers have the order of the names.
        similarity: [M]; equal ones are ordered by uid, then by task.
        uids: uint8 [M, 16]. Of equal texts of one task the most similar, or first, counts.
        limit: documents of an input.

    Returns:
        Indices of pairs, by input and then from the best on.
    """
    both = entry * (int(task.max(initial=0)) + 1) + task
    order = top_candidates(both, similarity, uids, limit=limit)
    turn = np.arange(len(order)) - np.searchsorted(both[order], both[order])
    high, low = uid_numbers(uids[order])
    keys = (task[order], low, high, -similarity[order], turn, entry[order])
    order = order[np.lexsort(keys)]
    place = np.arange(len(order)) - np.searchsorted(entry[order], entry[order])
    return order[place < limit]
