"""Windows of long documents that resemble a benchmark text, found in one pass over the words.

A benchmark text of 30 words in a document of 30,000 has a Jaccard similarity of 0.001 with it: no
signature of the whole document can tell. So a document's shingles are covered by windows of 32,
64, 128 and 256 shingles, each size with half overlap, and a text is compared with windows of the
smallest size that holds it. A text of 32 words or more that stands in a document word for word
then has a similarity of 0.5 or more with some window, wherever it stands; a shorter one has its
number of shingles divided by 32.

A signature of a union is the positionwise minimum of the signatures. So shingles are permuted once,
for blocks of 16; each size of windows is made of the one before.

Shapes: W words, D documents, E entries (benchmark texts), N signatures of the index.
"""
# pyright: basic, reportCallIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from decontam.bands import least_equal
from decontam.lsh import Lsh
from decontam.minhash import (
    EMPTY,
    Ints,
    UInt64s,
    check_words,
    permutation_parameters,
    signatures_of_ranges,
)
from decontam.normalize import Normalizer, join_texts
from decontam.window_kernels import ROOM_WORDS, SIZES, search_texts, search_words
from decontam.word_kernels import new_stream


class Matches(NamedTuple):
    """The best window of each document for each entry it resembles, by (document, entry)."""

    document: Ints
    start: Ints
    """First word of the window, counted in the document."""

    end: Ints
    """Word behind the last."""

    entry: Ints
    similarity: npt.NDArray[np.float32]
    """Share of equal positions: the estimated Jaccard similarity of window and entry."""


@dataclass(frozen=True, slots=True)
class WindowIndex:
    """Benchmark texts, to be looked up with the windows of documents.

    A text of more than 256 shingles is stored in pieces of 256, the last one reaching to its end;
    a document resembles it as much as its best piece.
    """

    shingle: int
    seed: int
    n_entries: int
    entry: Ints
    """[N] which entry each signature is of."""

    lsh: Lsh

    @classmethod
    def build(
        cls,
        word_hashes: UInt64s,
        offsets: Ints,
        *,
        shingle: int,
        permutations: int = 128,
        seed: int = 1,
        bands: int = 32,
        rows: int = 4,
    ) -> WindowIndex:
        """Index the entries `word_hashes[offsets[e] : offsets[e + 1]]`; one without words is never
        found.

        Raises:
            ValueError: as `minhash.signatures` and `Lsh.build` do.
        """
        check_words(word_hashes, offsets, shingle)
        starts, ends, entry = _pieces(offsets, shingle)
        signatures = np.full((len(starts), permutations), EMPTY, np.uint32)
        parameters = permutation_parameters(permutations, seed)
        signatures_of_ranges(word_hashes, (starts, ends), shingle, parameters, signatures)
        levels = np.searchsorted(SIZES, ends - starts - shingle + 1).astype(np.uint8)
        lsh = Lsh.build(signatures, bands=bands, rows=rows, groups=levels)
        return cls(shingle, seed, len(offsets) - 1, entry, lsh)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything, as arrays that `from_arrays` takes, memory-mapped ones too."""
        settings = np.array([self.shingle, self.seed, self.n_entries], np.int64)
        return {"settings": settings, "entry": self.entry, **self.lsh.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> WindowIndex:
        """An index of what `arrays` gave.

        Raises:
            ValueError: the arrays do not fit together.
        """
        lsh, entry = Lsh.from_arrays(arrays), arrays["entry"]
        shingle, seed, n_entries = arrays["settings"].tolist()
        if len(entry) != len(lsh.signatures) or (len(entry) and entry.max() >= n_entries):
            raise ValueError("the arrays of an index of windows do not fit together")
        return cls(shingle, seed, n_entries, entry, lsh)

    def search(self, word_hashes: UInt64s, offsets: Ints, *, threshold: float) -> Matches:
        """Find the windows that resemble an entry: at most one, the best, per document and entry.

        Of equally good windows the first is taken. A window ends with its document; one that is
        cut off so, or a whole short document, is compared like the others.

        Memory: some 300 KB, 16 bytes per entry, and the matches.

        Args:
            word_hashes: uint64 [W], hashed like those of the entries.
            offsets: int64 [D + 1]; document d is `word_hashes[offsets[d] : offsets[d + 1]]`.
            threshold: least estimated similarity.

        Raises:
            ValueError: the offsets do not fit the words.
        """
        check_words(word_hashes, offsets, self.shingle)
        return self._matches(search_words, threshold, word_hashes, offsets)

    def search_texts(
        self, texts: Sequence[bytes], normalizer: Normalizer, *, threshold: float
    ) -> Matches:
        """As `search`, of the split reading of UTF-8 texts, whose words are never held.

        Memory: a copy of the texts, 500 KB, 16 bytes per entry, and the matches.

        Args:
            texts: the documents; give some megabytes at a time.
            normalizer: the rule by which the entries' words were told.
            threshold: least estimated similarity.
        """
        stream = new_stream(carry=ROOM_WORDS + self.shingle)
        documents = (*join_texts(texts), normalizer.tables)
        return self._matches(search_texts, threshold, documents, stream)

    def _matches(self, kernel: Any, threshold: float, *documents: Any) -> Matches:
        permutations = self.lsh.signatures.shape[1]
        parameters = permutation_parameters(permutations, self.seed)
        limits = self.n_entries, least_equal(threshold, permutations)
        tables = (*self.lsh.tables(), self.entry)
        rows = kernel(*documents, self.shingle, parameters, tables, limits)
        rows = rows[np.lexsort((rows[:, 3], rows[:, 0]))]
        similarity = (rows[:, 4] / permutations).astype(np.float32)
        return Matches(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], similarity)


def _pieces(offsets: Ints, shingle: int) -> tuple[Ints, Ints, Ints]:
    """First word, word behind the last, and entry of the pieces of all entries."""
    n_shingles = np.maximum(np.diff(offsets) - shingle + 1, 1)
    n_pieces = -(-n_shingles // SIZES[-1])
    entry = np.repeat(np.arange(len(n_pieces)), n_pieces)
    number = np.arange(len(entry)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    last = np.maximum(n_shingles - SIZES[-1], 0)[entry]
    starts = offsets[entry] + np.minimum(number * SIZES[-1], last)
    ends = np.minimum(starts + SIZES[-1] + shingle - 1, offsets[entry + 1])
    return starts, ends, entry
