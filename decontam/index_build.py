"""Benchmark instances → an index. `index.py` says what is in it, and why."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from decontam.index import (
    DEFAULT_ALONE_WORDS,
    DEFAULT_N,
    ENTRIES_PER_BATCH,
    ENTRY_SCHEMA,
    FEWEST_WORDS,
    MANY_SCENARIOS,
    RULES,
    WINDOW_SHINGLE,
    Arrays,
    Entries,
    Entry,
    Index,
)
from decontam.index_tables import filter_of, posting_lists, short_tables, slot_table
from decontam.normalize import Normalizer, Reading
from decontam.records import DecontamError, Instance
from decontam.search_kernels import (
    EMPTY,
    SHORTEST,
    count_words,
    window_keys,
)
from decontam.windows import WindowIndex

Parts = Literal["both", "input", "reference"]
Uint64s = npt.NDArray[np.uint64]

FOUND_BY = ("by_ngrams", "whole", "with_answer")
"""The ways in which a text can be found, the best first; `too_short` is none."""

_MOST_WORDS = 1 << 31


def build_index(
    instances: Iterable[Instance],
    *,
    n: int = DEFAULT_N,
    normalizer: Normalizer | None = None,
    parts: Parts = "both",
    alone_words: int = DEFAULT_ALONE_WORDS,
    frequent: Iterable[str] = (),
    coverage: Sequence[Mapping[str, Any]] = (),
) -> Index:
    """An index of all n-grams of some benchmark instances.

    Args:
        instances: what must not be found in training data.
        n: words of an n-gram, at least 3.
        normalizer: how text becomes words.
        parts: whether inputs, references or both are looked for.
        alone_words: words of the shortest input that counts without an answer near it.
        frequent: n-grams to be reported apart.
        coverage: rows by scenario, kept in the header.

    Raises:
        DecontamError: there is nothing to look for, or it is too much for one index.
    """
    if n < SHORTEST:
        raise DecontamError(f"n is {n}: an n-gram has at least {SHORTEST} words")
    normalizer = normalizer or Normalizer.of("default")
    builder = _Builder(n, alone_words)
    stream = _entries(instances, parts)
    while batch := list(islice(stream, ENTRIES_PER_BATCH)):
        builder.add(batch, normalizer)
    if not builder.entries:
        raise DecontamError("the benchmark has no text to look for; see its coverage table")
    header = {
        "n": n,
        "normalization": normalizer.name,
        "parts": parts,
        "alone_words": alone_words,
        "entries": len(builder.entries),
        "coverage": [dict(row) | builder.counts(row["scenario"]) for row in coverage],
        "found_by": {name: builder.counts(name) for name in sorted(builder.scenarios)},
    }
    index = Index(
        header=header,
        normalizer=normalizer,
        arrays=builder.arrays(_frequent_keys(frequent, n, normalizer)),
        **builder.windows(),
        entries=Entries(_table(builder.entries)),
    )
    taken = index.arrays.slots & np.uint64(EMPTY) != np.uint64(EMPTY)
    return replace(index, header={**header, "ngrams": int(taken.sum())}).described()


def _entries(instances: Iterable[Instance], parts: Parts) -> Iterator[Entry]:
    for i in instances:
        place = (i.scenario, i.variant, i.split, i.id)
        answers = [r for r, right in zip(i.references, i.correct, strict=True) if right]
        if parts != "reference" and i.input:  # none, where a benchmark file asks for references
            question = len(i.input[: i.question].encode())
            yield Entry(*place, "input", -1, True, question, answers, i.input)
        if parts != "input":
            for number, (text, right) in enumerate(zip(i.references, i.correct, strict=True)):
                yield Entry(*place, "reference", number, right, 0, [], text)


class _Sequence(NamedTuple):
    """The words of an entry in one reading."""

    words: Reading
    entry: int
    reading: int
    question: int


class _Builder:
    def __init__(self, n: int, alone_words: int) -> None:
        self._n, self._alone = n, alone_words
        self.entries: list[Entry] = []
        self.scenarios: dict[str, Counter[str]] = {}
        self._codes: list[int] = []
        self._hashes: list[Uint64s] = []
        self._differs: list[npt.NDArray[np.bool_]] = []
        self._sequences: list[tuple[int, int, int, int]] = []
        self._shorts: list[tuple[int, int, int]] = []
        self._n_words = 0

    def counts(self, scenario: str) -> dict[str, int]:
        """By what the inputs and references of a scenario can be found."""
        return dict(sorted(self.scenarios.get(scenario, Counter[str]()).items()))

    def add(self, entries: Sequence[Entry], normalizer: Normalizer) -> None:
        """Enter texts and their words."""
        split, joined = normalizer.words([entry.text.encode() for entry in entries])
        for i, entry in enumerate(entries):
            counts = self.scenarios.setdefault(entry.scenario, Counter())
            number = len(self.entries)
            found: set[str] = set()
            for reading, words in enumerate((split.of(i), joined.of(i))):
                if reading == 0 or words.differs.any():
                    question = int(np.searchsorted(words.spans[:, 0], entry.question))
                    found |= self._add(_Sequence(words, number, reading, question), entry)
            best = next((way for way in FOUND_BY if way in found), "too_short")
            counts[f"{entry.part}_{best}"] += 1
            # Answers are looked at only beside short texts that need one.
            self.entries.append(entry if "with_answer" in found else entry._replace(answers=[]))
            self._codes.append(list(self.scenarios).index(entry.scenario))

    def _add(self, sequence: _Sequence, entry: Entry) -> set[str]:
        """Enter a sequence; in which ways it can be found."""
        words, start = sequence.words, self._n_words
        size = len(words.hashes)
        self._sequences.append((start, *sequence[1:]))
        self._hashes.append(words.hashes)
        # In the split reading all n-grams count, in the joined one those that are its own.
        self._differs.append(words.differs if sequence.reading else np.ones(size, bool))
        self._n_words += size
        if self._n_words >= _MOST_WORDS:
            raise DecontamError("the benchmark has more than 2^31 words; make several indexes")
        found = {"by_ngrams"} if size >= self._n else set[str]()
        for first in {0, sequence.question} if entry.part == "input" else ():
            length = size - first
            way = "whole" if length >= self._alone else "with_answer"
            if SHORTEST <= length < self._n and (way == "whole" or entry.answers):
                self._shorts.append((start + first, length, len(self._sequences) - 1))
                found.add(way)
        return found

    def arrays(self, frequent: Uint64s) -> Arrays:
        """What the kernels search."""
        hashes = np.concatenate([*self._hashes, np.zeros(0, np.uint64)])
        sequences = np.array(self._sequences, np.uint32).reshape(-1, 4)
        keys, first = self._windows(hashes, sequences)
        order = np.lexsort((first, keys))
        keys, first = keys[order], first[order]
        unique, begins, sizes = np.unique(keys, return_index=True, return_counts=True)
        postings, payloads = posting_lists(first, begins, sizes)
        flags = self._flags(hashes, sequences, keys, first, begins, unique, frequent)
        flagged = np.flatnonzero(flags)
        by_payload = flagged[np.argsort(payloads[flagged])]
        shorts = np.array(self._shorts, np.uint32).reshape(-1, 3)
        return Arrays(
            words=(hashes >> np.uint64(32)).astype(np.uint32),
            sequences=sequences,
            slots=slot_table(unique, payloads),
            bits=filter_of(unique),
            postings=postings,
            flagged=payloads[by_payload],
            flags=flags[by_payload],
            **short_tables(hashes, shorts),
        )

    def windows(self) -> dict[str, Any]:
        """Signatures of the inputs, in the split reading, and the numbers of their entries."""
        inputs = [
            (hashes, entry)
            for hashes, (_, entry, reading, _) in zip(self._hashes, self._sequences, strict=True)
            if reading == 0 and self.entries[entry].part == "input" and len(hashes)
        ]
        offsets = np.cumsum([0, *(len(hashes) for hashes, _ in inputs)], dtype=np.int64)
        hashes = np.concatenate([*(hashes for hashes, _ in inputs), np.zeros(0, np.uint64)])
        return {
            "windows": WindowIndex.build(hashes, offsets, shingle=WINDOW_SHINGLE),
            "window_entries": np.array([entry for _, entry in inputs], np.uint32),
        }

    def _windows(
        self, hashes: Uint64s, sequences: npt.NDArray[np.uint32]
    ) -> tuple[Uint64s, npt.NDArray[np.int64]]:
        """Keys of the n-grams that count, and their first words."""
        n = self._n
        if len(hashes) < n:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        keys = np.empty(len(hashes) - n + 1, np.uint64)
        window_keys(hashes, n, keys)
        ends = np.append(sequences[1:, 0], len(hashes)).astype(np.int64)
        left = np.repeat(ends, np.diff(np.append(0, ends))) - np.arange(len(hashes))
        differs = np.cumsum(np.concatenate([[False], *self._differs]))
        counts = (left[: len(keys)] >= n) & (differs[n:] > differs[:-n])
        first = np.flatnonzero(counts)
        return keys[first], first

    def _flags(
        self,
        hashes: Uint64s,
        sequences: npt.NDArray[np.uint32],
        keys: Uint64s,
        first: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int64],
        unique: Uint64s,
        frequent: Uint64s,
    ) -> npt.NDArray[np.uint8]:
        """[K] the rule of each n-gram, by its number."""
        flags = np.zeros(len(unique), np.uint8)
        entry = sequences[np.searchsorted(sequences[:, 0], first, side="right") - 1, 1]
        scenario = np.array(self._codes, np.uint64)[entry]
        key_number = np.repeat(np.arange(len(unique)), np.diff(np.append(begins, len(keys))))
        pairs = np.unique(key_number.astype(np.uint64) << np.uint64(16) | scenario)
        n_scenarios = np.bincount((pairs >> np.uint64(16)).astype(np.int64), minlength=len(unique))
        flags[n_scenarios >= MANY_SCENARIOS] = RULES.index("many_scenarios")
        flags[np.isin(unique, frequent)] = RULES.index("frequent")
        n_words = np.zeros(len(unique), np.int64)
        count_words(hashes, first[begins], self._n, n_words)
        flags[n_words < FEWEST_WORDS] = RULES.index("no_words")
        return flags


def _frequent_keys(ngrams: Iterable[str], n: int, normalizer: Normalizer) -> Uint64s:
    """Keys of all n-grams of some texts."""
    keys = [np.zeros(0, np.uint64)]
    for reading in normalizer.words([text.encode() for text in ngrams]):
        for text in range(len(reading.offsets) - 1):
            hashes = reading.of(text).hashes
            if len(hashes) >= n:
                keys.append(np.empty(len(hashes) - n + 1, np.uint64))
                window_keys(hashes, n, keys[-1])
    return np.unique(np.concatenate(keys))


def _table(entries: Sequence[Entry]) -> pa.Buffer:
    """The entries as a compressed Arrow file."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, ENTRY_SCHEMA, options=options) as writer:
        for i in range(0, len(entries), ENTRIES_PER_BATCH):
            rows = [entry._asdict() for entry in entries[i : i + ENTRIES_PER_BATCH]]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, ENTRY_SCHEMA))
    return sink.getvalue()
