"""Documents × index → overlaps, with the evidence for each."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from decontam.index import ANSWER_WORDS, RULES, Entry, Index
from decontam.normalize import Reading, join_texts
from decontam.records import Overlap
from decontam.search_kernels import WHOLE, carry_words, search
from decontam.word_kernels import new_stream

Int64s = npt.NDArray[np.int64]

MOST_OVERLAPS = 16
"""Overlaps that are listed for one document and one scenario."""

_WHOLE = RULES.index("whole")
_BOILERPLATE = RULES.index("no_words")  # the first number of such a rule
_NO_ENTRIES = np.zeros((0, 2), np.int64)
_ANSWER_BYTES = 12 * ANSWER_WORDS  # of text on each side that surely hold so many words
_ENTRIES_KEPT = 4096  # words of benchmark texts, kept because hits come in runs


class Found(NamedTuple):
    """What a document repeats."""

    overlaps: list[Overlap]
    """One for each benchmark text, its longest passage; apart for boilerplate. Of texts of one
    scenario, which may all begin with the same sentence, the `MOST_OVERLAPS` longest."""

    entries: Int64s
    """[E, 2] all benchmark texts that it repeats, by number, and by which rule (see `RULES`)."""

    spans: list[tuple[int, int]]
    """Bytes [start, end) that repeat a benchmark text, in order, without those that only
    boilerplate covers; they do not touch each other."""

    boilerplate: list[tuple[int, int]]
    """Likewise those that boilerplate covers."""

    n_words: int
    """Words of the document, in the split reading."""


class _Matches(NamedTuple):
    """Runs of hits that follow each other in a document and in a benchmark text; [M] each."""

    start: Int64s
    end: Int64s
    word: Int64s
    """First word in the index."""

    size: Int64s
    """Words."""

    sequence: Int64s
    rule: Int64s
    """Number of the rule."""


class Searcher:
    """Looks for the texts of an index. One for a process: it keeps its working memory."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._stream = new_stream(carry_words(index.n))
        self._arrays = index.kernel_arrays
        self._sequences = index.arrays.sequences.astype(np.int64)
        self._ends = np.append(self._sequences[1:, 0], len(index.arrays.words))
        scenario = index.entries.columns(["scenario"])["scenario"].combine_chunks()
        self._scenarios = np.asarray(scenario.dictionary_encode().indices)
        self._readings = lru_cache(maxsize=_ENTRIES_KEPT)(self._read_entry)

    def search(self, texts: Sequence[bytes]) -> list[Found]:
        """What each of some UTF-8 documents repeats; give a megabyte or more at a time."""
        if not texts:
            return []
        data, bounds = join_texts(texts)
        hits, counts = search(
            data, bounds, self.index.normalizer.tables, self._arrays, self._stream
        )
        hits = hits[np.argsort(hits[:, 0], kind="stable")]
        parts = np.searchsorted(hits[:, 0], np.arange(len(texts) + 1))
        found: list[Found] = []
        for i, (first, last) in enumerate(pairwise(parts.tolist())):
            if first == last:
                found.append(Found([], _NO_ENTRIES, [], [], int(counts[i])))
                continue
            here = hits[first:last, 1:] - [bounds[i, 0], bounds[i, 0], 0, 0, bounds[i, 0]]
            found.append(self._found(texts[i], here, int(counts[i])))
        return found

    def _found(self, text: bytes, hits: Int64s, n_words: int) -> Found:
        """Overlaps from hits (first byte, byte behind, kind, payload) in one document."""
        whole = hits[:, 2] == WHOLE
        ngrams = hits[~whole]
        rules = self.index.rules(ngrams[:, 3]).astype(np.int64)
        shorts = self._whole(text, hits[whole])
        runs = self._runs(ngrams, rules)
        matches = _Matches(*map(np.concatenate, zip(shorts, runs, strict=True)))
        plain = ngrams[rules == 0, :2]
        entry = self._sequences[matches.sequence, 1]
        return Found(
            overlaps=self._overlaps(matches, entry),
            entries=np.unique(np.stack([entry, matches.rule], axis=1), axis=0),
            spans=union(np.concatenate([plain, np.stack(shorts[:2], axis=1)])),
            boilerplate=union(ngrams[rules != 0, :2]),
            n_words=n_words,
        )

    def _whole(self, text: bytes, hits: Int64s) -> _Matches:
        """Short texts that stand in the document and mean something there."""
        word, size, sequence = self.index.arrays.shorts[hits[:, 3]].astype(np.int64).T
        rule = np.full(len(hits), _WHOLE, np.int64)
        matches = _Matches(hits[:, 0], hits[:, 1], word, size, sequence, rule)
        alone = size >= self.index.header["alone_words"]
        counts = [
            bool(alone[i])
            or self._answered(text, int(hits[i, 0]), int(hits[i, 1]), int(sequence[i]))
            for i in range(len(hits))
        ]
        return _Matches(*(column[np.array(counts, bool)] for column in matches))

    def _answered(self, text: bytes, start: int, end: int, sequence: int) -> bool:
        """Whether a right answer stands near a short text."""
        entry = self.index.entries[int(self._sequences[sequence, 1])]
        before = whole_characters(text[max(start - _ANSWER_BYTES, 0) : start])
        behind = whole_characters(text[end : end + _ANSWER_BYTES])
        answers = [answer.encode() for answer in entry.answers]
        for near, last in zip((before, behind), (True, False), strict=True):
            split, joined = self.index.normalizer.words([near, *answers])
            for reading in (split, joined):
                hashes = reading.of(0).hashes
                hashes = hashes[-ANSWER_WORDS:] if last else hashes[:ANSWER_WORDS]
                if any(_holds(hashes, reading.of(i + 1).hashes) for i in range(len(answers))):
                    return True
        return False

    def _runs(self, ngrams: Int64s, rules: Int64s) -> _Matches:
        """N-grams that follow each other in the document and in a benchmark text, as one match."""
        places = self.index.occurrences(ngrams[:, 3])
        order = np.lexsort((ngrams[places.hit, 0], places.word, rules[places.hit]))
        hit, word, sequence = (column[order] for column in places)
        start, end, rule = ngrams[hit, 0], ngrams[hit, 1], rules[hit]
        follower = _followers(word, start, ngrams[hit, 4], rule)
        heads = np.setdiff1d(np.arange(len(word)), follower)
        size, last = _chains(follower)
        size = size[heads] + self.index.n - 1
        return _Matches(
            start[heads], end[last[heads]], word[heads], size, sequence[heads], rule[heads]
        )

    def _overlaps(self, matches: _Matches, entry: Int64s) -> list[Overlap]:
        """The longest match of each benchmark text, apart for boilerplate."""
        boilerplate = matches.rule >= _BOILERPLATE
        order = np.lexsort((matches.start, -matches.size, entry, boilerplate))
        best = order[_firsts(entry[order], boilerplate[order])]
        scenario = self._scenarios[entry[best]]
        best = best[np.lexsort((entry[best], -matches.size[best], scenario, boilerplate[best]))]
        begins = np.flatnonzero(_firsts(self._scenarios[entry[best]], boilerplate[best]))
        rank = np.arange(len(best)) - np.repeat(begins, np.diff(np.append(begins, len(best))))
        asked = set(entry[self._in_question(matches)].tolist())
        return [
            self._overlap(matches, i, int(entry[i]), int(entry[i]) in asked)
            for i in best[rank < MOST_OVERLAPS].tolist()
        ]

    def _in_question(self, matches: _Matches) -> npt.NDArray[np.bool_]:
        """[M] whether a match holds n words of the question, or all of a shorter one."""
        begin, _, _, question = self._sequences[matches.sequence].T
        end = self._ends[matches.sequence]
        asked = end - begin - question
        held = np.minimum(matches.word + matches.size, end) - np.maximum(
            matches.word, begin + question
        )
        return (asked > 0) & (held >= np.minimum(self.index.n, asked))

    def _overlap(self, matches: _Matches, i: int, number: int, in_question: bool) -> Overlap:
        entry, readings = self._readings(number)
        begin, _, reading, _ = self._sequences[matches.sequence[i]].tolist()
        first, size, rule = int(matches.word[i]) - begin, int(matches.size[i]), int(matches.rule[i])
        spans = readings[reading].spans[first : first + size]
        return Overlap(
            *entry[:4],
            part="reference" if entry.part == "reference" else "input",
            reference=entry.reference,
            rule=RULES[rule],
            n_words=size,
            start=int(matches.start[i]),
            end=int(matches.end[i]),
            benchmark_start=int(spans[0, 0]),
            benchmark_end=int(spans[-1, 1]),
            in_question=in_question if entry.part == "input" else entry.correct,
        )

    def _read_entry(self, number: int) -> tuple[Entry, tuple[Reading, Reading]]:
        entry = self.index.entries[number]
        split, joined = self.index.normalizer.words([entry.text.encode()])
        return entry, (split, joined)


def union(spans: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Spans [S, 2] → the same bytes as spans in order that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for start, end in spans[np.argsort(spans[:, 0], kind="stable")].tolist():
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _followers(word: Int64s, start: Int64s, second: Int64s, rule: Int64s) -> Int64s:
    """[H] the hit that goes on from each, H for none.

    It is the next n-gram of the benchmark text, at the `second` word of this one. Hits are sorted
    by rule, word and start.
    """
    if not len(word):
        return np.zeros(0, np.int64)
    first = _firsts(rule, word)
    begins, group = np.flatnonzero(first), np.cumsum(first) - 1
    next_group = np.append((np.diff(word[begins]) == 1) & (np.diff(rule[begins]) == 0), False)
    room = int(second.max()) + 1
    after = np.searchsorted(group * room + start, (group + 1) * room + second)
    at = np.minimum(after, len(word) - 1)
    goes_on = next_group[group] & (group[at] == group + 1) & (start[at] == second)
    return np.where(goes_on, at, len(word))


def _chains(follower: Int64s) -> tuple[Int64s, Int64s]:
    """[H] how many hits follow each other from each on, and the last of them."""
    n = len(follower)
    ahead = np.append(follower, n)
    size, last = np.append(np.ones(n, np.int64), 0), np.arange(n + 1)
    while (ahead[:n] < n).any():
        size = size + size[ahead]
        last = np.where(ahead < n, last[ahead], last)
        ahead = ahead[ahead]
    return size[:n], last[:n]


def _firsts(*columns: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """[N] whether something differs from the row before."""
    differs = np.arange(len(columns[0])) == 0
    for column in columns:
        differs[1:] |= column[1:] != column[:-1]
    return differs


def _holds(words: npt.NDArray[np.uint64], some: npt.NDArray[np.uint64]) -> bool:
    """Whether some words, at least one, stand within others one after the other."""
    n = len(some)
    if n == 0 or n > len(words):
        return False
    return bool((np.lib.stride_tricks.sliding_window_view(words, n) == some).all(axis=1).any())


def whole_characters(text: bytes) -> bytes:
    """A piece of UTF-8 without the halves of characters at its ends."""
    return text.decode(errors="ignore").encode()
