"""The index of benchmark texts: every n-gram of them, in one file that is memory-mapped.

An *entry* is one text of a benchmark: the input of an instance, or one reference. Its words in
the split reading, and in the joined one where that differs, stand in `words` as 32-bit hashes. An
n-gram is found by a 64-bit key of its n words: a bit filter says no to almost all that are not
there, an open-addressing table gives the place in `words`, and the words there are compared, so
that a false hit would need n equal 32-bit hashes in a row.

Texts shorter than n words cannot be found by n-grams. Inputs (and questions behind a passage) of
at least `SHORTEST` words are looked for whole. Shorter than `alone_words`, they are too common to
mean something by themselves, and count only where a right answer stands within `ANSWER_WORDS`
words of them.

Three kinds of n-grams are told apart, because people write them without having seen a benchmark:
`no_words` (fewer than 3 distinct words with letters), `many_scenarios` (texts of 3 scenarios or
more have it) and `frequent` (on a list that the user gives, for instance of the n-grams that a
scan found in very many documents).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from decontam.index_file import checksum, read_sections, write_sections
from decontam.normalize import Normalizer
from decontam.records import DecontamError, Rule
from decontam.search_kernels import LIST
from decontam.windows import WindowIndex

DEFAULT_N = 10
DEFAULT_ALONE_WORDS = 6
ANSWER_WORDS = 64
MANY_SCENARIOS = 3
WINDOW_SHINGLE = 5  # words that are one element of a set whose similarity is estimated
FEWEST_WORDS = 3
"""Distinct words with letters below which an n-gram is called `no_words`."""

RULES: tuple[Rule, ...] = ("ngram", "whole", "no_words", "many_scenarios", "frequent")
"""Rules by their number; from 2 on they are those for boilerplate."""

ENTRY_SCHEMA = pa.schema(
    [
        ("scenario", pa.string()),
        ("variant", pa.string()),
        ("split", pa.string()),
        ("instance", pa.string()),
        ("part", pa.string()),
        ("reference", pa.int32()),
        ("correct", pa.bool_()),
        ("question", pa.int32()),
        ("answers", pa.list_(pa.string())),
        ("text", pa.string()),
    ]
)
ENTRIES_PER_BATCH = 1024


class Entry(NamedTuple):
    """One text of a benchmark; `Instance` and `Overlap` say what the fields mean."""

    scenario: str
    variant: str
    split: str
    instance: str
    part: str
    reference: int
    correct: bool
    question: int
    """Byte of the text at which the question begins."""

    answers: list[str]
    """Right answers, where the text counts only beside one of them."""

    text: str


@dataclass(frozen=True, slots=True)
class Arrays:
    """What the kernels search; W words, K keys, S short texts."""

    words: npt.NDArray[np.uint32]
    """[W] upper halves of the word hashes of all sequences."""

    sequences: npt.NDArray[np.uint32]
    """[Q, 4] of each sequence its first word, its entry, its reading (0 split, 1 joined), and the
    word at which the question begins."""

    slots: npt.NDArray[np.uint64]
    bits: npt.NDArray[np.uint64]
    postings: npt.NDArray[np.uint32]
    """Lists of first words of n-grams that occur several times: the length, then the words."""

    flagged: npt.NDArray[np.uint32]
    """[F] payloads, sorted, of n-grams that are reported apart."""

    flags: npt.NDArray[np.uint8]
    """[F] by which rule."""

    shorts: npt.NDArray[np.uint32]
    """[S, 3] first word, number of words, and sequence of texts that are looked for whole."""

    short_slots: npt.NDArray[np.uint64]
    short_bits: npt.NDArray[np.uint64]
    short_postings: npt.NDArray[np.uint32]
    """Lists of short texts that end in the same words."""


class Occurrences(NamedTuple):
    """Where n-grams stand in the index; [O] each."""

    hit: npt.NDArray[np.int64]
    """Which of the hits asked for."""

    word: npt.NDArray[np.int64]
    """First word."""

    sequence: npt.NDArray[np.int64]


class Entries:
    """The texts of an index, compressed; a batch of them is read when one is asked for."""

    def __init__(self, content: pa.Buffer) -> None:
        self.content = content
        self._file = pa.ipc.open_file(content)
        self._batch = lru_cache(maxsize=64)(self._read)

    def _read(self, number: int) -> pa.RecordBatch:
        return self._file.get_batch(number)

    def __getitem__(self, number: int) -> Entry:
        row = self._batch(number // ENTRIES_PER_BATCH).slice(number % ENTRIES_PER_BATCH, 1)
        return Entry(**row.to_pylist()[0])

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all entries."""
        return self._file.read_all().select(list(names))


@dataclass(frozen=True)
class Index:
    """Benchmark texts, ready to be searched for."""

    header: Mapping[str, Any]
    """n, normalization, digest, coverage and counts; JSON values."""

    normalizer: Normalizer
    arrays: Arrays
    windows: WindowIndex
    """The inputs' MinHash signatures, to find what resembles them."""

    window_entries: npt.NDArray[np.uint32]
    """Numbers, as entries of this index, of the entries of `windows`."""

    entries: Entries

    @property
    def n(self) -> int:
        """Words of an n-gram."""
        return self.header["n"]

    @property
    def kernel_arrays(self) -> tuple[Any, ...]:
        """What `search_kernels.search` takes."""
        a = self.arrays
        short = (a.shorts, a.short_slots, a.short_bits, a.short_postings)
        return self.n, a.words, a.slots, a.bits, a.postings, *short

    @cached_property
    def _begins(self) -> npt.NDArray[np.int64]:
        return self.arrays.sequences[:, 0].astype(np.int64)

    def occurrences(self, payloads: npt.NDArray[np.int64]) -> Occurrences:
        """All places of the n-grams with these payloads."""
        postings = self.arrays.postings
        listed = payloads & int(LIST) != 0
        at = payloads & (int(LIST) - 1)
        sizes = np.ones(len(payloads), np.int64)
        sizes[listed] = postings[at[listed]]
        hit = np.repeat(np.arange(len(payloads)), sizes)
        within = np.arange(len(hit)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        word, several = at[hit], listed[hit]
        word[several] = postings[word[several] + 1 + within[several]]
        sequence = np.searchsorted(self._begins, word, side="right") - 1
        return Occurrences(hit, word, sequence)

    def rules(self, payloads: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The rule, by its number, of the n-grams with these payloads."""
        flagged, rules = self.arrays.flagged, np.zeros(len(payloads), np.uint8)
        if len(flagged):
            at = np.minimum(np.searchsorted(flagged, payloads), len(flagged) - 1)
            found = flagged[at] == payloads
            rules[found] = self.arrays.flags[at[found]]
        return rules

    def save(self, path: str) -> None:
        """Write the index as one file, first aside, so that no reader sees half of it.

        Raises:
            DecontamError: the file cannot be written.
        """
        write_sections(path, self.header, self._sections())

    @classmethod
    def load(cls, path: str) -> "Index":
        """Map an index into memory; processes that load the same file share it.

        Raises:
            DecontamError: there is no such file, or it is no whole index of this version.
        """
        header, (entries, numbers, *parts) = read_sections(path)
        table, parts = parts[:4], parts[4:]
        names: list[str] = header["windows"]
        if header["arrays"] != list(Arrays.__slots__):
            raise DecontamError(f"{path}: made by another version; make it again")
        searched, windows = parts[: -len(names)], parts[-len(names) :]
        return cls(
            header=header,
            normalizer=Normalizer(header["normalization"], *table),
            arrays=Arrays(*searched),
            windows=WindowIndex.from_arrays(dict(zip(names, windows, strict=True))),
            window_entries=numbers,
            entries=Entries(pa.py_buffer(entries)),
        )

    def described(self) -> "Index":
        """The same with a header that identifies the content."""
        header = {
            **self.header,
            "normalization_digest": self.normalizer.digest,
            "arrays": list(Arrays.__slots__),
            "windows": list(self.windows.arrays()),
            "checksum": checksum(self._sections()),
        }
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:32]
        return replace(self, header={**header, "digest": digest})

    def _sections(self) -> list[npt.NDArray[Any]]:
        """Everything but the header, in the order of the file."""
        normalizer = self.normalizer
        return [
            np.frombuffer(self.entries.content, np.uint8),
            self.window_entries,
            *(normalizer.kinds, normalizer.fold_at, normalizer.folds, normalizer.entities),
            *(getattr(self.arrays, name) for name in Arrays.__slots__),
            *self.windows.arrays().values(),
        ]
