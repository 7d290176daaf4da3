"""Which n-grams of an index stand in many texts of a corpus: candidates for boilerplate.

What stands in very many documents was hardly learnt from a benchmark. Such n-grams are listed for
a person to review, and given to `decontam.build_index --frequent`, which reports them apart.
"""

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from decontam.index import Index

PAIR = np.dtype([("key", np.uint64), ("high", np.uint64), ("low", np.uint64)])
"""An n-gram, and the two halves of the id of a text that holds it."""

Keys = npt.NDArray[np.uint64]
_BASE = np.uint64(0x9E3779B97F4A7C15)


def passage_keys(words: npt.NDArray[np.uint32], n: int) -> Keys:
    """Keys of all runs of n words; [W - n + 1], or none."""
    size = max(len(words) - n + 1, 0)
    keys = np.zeros(size, np.uint64)
    for i in range(n):
        keys = keys * _BASE + words[i : i + size].astype(np.uint64) + np.uint64(1)
    return keys


class NgramCounter:
    """Says which n-grams of an index a passage holds."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def pairs(
        self, text: bytes, spans: Iterable[tuple[int, int]], uid: bytes
    ) -> npt.NDArray[np.void]:
        """Of `PAIR`, each once: the n-grams of the index within spans of a text."""
        found = [np.zeros(0, np.uint64)]
        readings = self._index.normalizer.words([text[start:end] for start, end in spans])
        for reading in readings:
            for span in range(len(reading.offsets) - 1):
                words = (reading.of(span).hashes >> np.uint64(32)).astype(np.uint32)
                found.append(passage_keys(words, self._index.n))
        keys = np.unique(np.concatenate(found))
        at = np.minimum(np.searchsorted(self._known, keys), max(len(self._known) - 1, 0))
        keys = keys[self._known[at] == keys] if len(self._known) else keys[:0]
        pairs = np.zeros(len(keys), PAIR)
        pairs["key"] = keys
        pairs["high"], pairs["low"] = np.frombuffer(uid, np.uint64)
        return pairs

    @cached_property
    def _known(self) -> Keys:
        return np.unique(_index_keys(self._index)[0])


def _index_keys(index: Index) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Keys of all n-grams of the index, and the first word of each."""
    keys = passage_keys(np.asarray(index.arrays.words), index.n)
    begins = index.arrays.sequences[:, 0].astype(np.int64)
    ends = np.append(begins[1:], len(index.arrays.words))
    left = np.repeat(ends, np.diff(np.append(begins, len(index.arrays.words))))
    left = left[: len(keys)] - np.arange(len(keys))
    first = np.flatnonzero(left >= index.n)
    return keys[first], first


def frequent_lines(index: Index, pairs: npt.NDArray[np.void], *, more_than: int) -> Iterator[str]:
    """A line of JSON for each n-gram that more than so many texts hold, the most frequent first.

    Args:
        index: the index that was looked for.
        pairs: [P] of `PAIR`, each once.
        more_than: texts.
    """
    keys, counts = np.unique(pairs["key"], return_counts=True)
    often = counts > more_than
    lines = _describe(index, keys[often], counts[often])
    for line in sorted(lines, key=lambda line: (-line["documents"], line["ngram"])):
        yield json.dumps(line, ensure_ascii=False)


def _describe(index: Index, keys: Keys, counts: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    if not len(keys):
        return
    known, words = _index_keys(index)
    at = np.minimum(np.searchsorted(keys, known), len(keys) - 1)
    here = keys[at] == known
    at, words = at[here], words[here]
    sequence = np.searchsorted(index.arrays.sequences[:, 0], words, side="right") - 1
    scenarios = index.entries.columns(["scenario"])["scenario"].to_pylist()
    entries = index.arrays.sequences[sequence, 1]
    order = np.argsort(at, kind="stable")
    bounds = np.searchsorted(at[order], np.arange(len(keys) + 1))
    for number, count in enumerate(counts.tolist()):
        places = order[bounds[number] : bounds[number + 1]]
        yield {
            "ngram": _text(index, int(words[places[0]]), int(sequence[places[0]])),
            "documents": count,
            "scenarios": sorted({scenarios[entry] for entry in entries[places].tolist()}),
        }


def _text(index: Index, word: int, sequence: int) -> str:
    """What a benchmark text has at a word and the n - 1 behind it, on one line."""
    begin, entry, reading, _ = index.arrays.sequences[sequence].tolist()
    text = index.entries[entry].text.encode()
    spans = index.normalizer.words([text])[reading].spans
    first = word - begin
    passage = text[int(spans[first, 0]) : int(spans[first + index.n - 1, 1])]
    return " ".join(passage.decode(errors="replace").split())
