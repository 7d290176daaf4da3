"""What happens to a document that repeats benchmark text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from decontam.index import Index
from decontam.records import Overlap
from decontam.search import Found, Searcher, union, whole_characters

Action = Literal["drop", "excise", "threshold"]
Span = tuple[int, int]

_BYTES_A_WORD = 24  # text that holds the words of a margin, but for very long words


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rule for the documents of a source."""

    action: Action
    """`drop` the document; `excise` what it repeats and go on with the pieces between; or drop it
    only from a `threshold` on."""

    margin_words: int = 32
    """`excise`: words that are cut on each side of what is repeated."""

    threshold: float = 0.05
    """`threshold`: share of a document's words that it must repeat to be dropped."""

    boilerplate: Literal["keep", "drop"] = "keep"
    """`drop`: what boilerplate covers counts like the rest."""


class Verdict(NamedTuple):
    """What became of one document."""

    kept: list[Span]
    """Bytes [start, end) to keep, in order; the whole text where it is untouched, nothing where
    it is dropped."""

    overlaps: list[Overlap]
    n_words: int
    words_removed: int


class Decontaminator:
    """Applies a policy to documents."""

    def __init__(self, index: Index, policy: Policy) -> None:
        self._searcher = Searcher(index)
        self._words = index.normalizer.words
        self._policy = policy

    def check(self, texts: Sequence[bytes]) -> list[Verdict]:
        """Judge UTF-8 documents, in their order; give a megabyte or more at a time."""
        found = self._searcher.search(texts)
        return [self._judge(text, what) for text, what in zip(texts, found, strict=True)]

    def _judge(self, text: bytes, found: Found) -> Verdict:
        spans = self._counting(found)
        kept = self._keep(text, spans, found.n_words) if spans else [(0, len(text))]
        removed = 0
        if kept != [(0, len(text))]:
            removed = found.n_words - self._count_words(text, kept)
        return Verdict(kept, found.overlaps, found.n_words, removed)

    def _counting(self, found: Found) -> list[Span]:
        """The spans that the policy minds."""
        if self._policy.boilerplate == "keep":
            return found.spans
        return union(np.array([*found.spans, *found.boilerplate], np.int64).reshape(-1, 2))

    def _keep(self, text: bytes, spans: list[Span], n_words: int) -> list[Span]:
        if self._policy.action == "drop":
            return []
        if self._policy.action == "threshold":
            covered = self._count_words(text, spans)
            return [] if covered >= self._policy.threshold * n_words else [(0, len(text))]
        return self._excise(text, spans)

    def _excise(self, text: bytes, spans: list[Span]) -> list[Span]:
        """What is left between spans and their margins, until nothing repeats a benchmark text.

        A cut can divide what the joined reading takes for one word, so pieces are searched again.
        """
        kept: list[Span] = []
        for start, end in self._between(text, spans):
            (found,) = self._searcher.search([text[start:end]])
            again = self._counting(found)
            pieces = self._excise(text[start:end], again) if again else [(0, end - start)]
            kept += [(start + first, start + last) for first, last in pieces]
        return kept

    def _between(self, text: bytes, spans: list[Span]) -> list[Span]:
        cuts = [(self._back(text, start), self._ahead(text, end)) for start, end in spans]
        edges = [0, *(edge for cut in union(np.array(cuts, np.int64)) for edge in cut), len(text)]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return [(start, end) for start, end in pairs if text[start:end].strip()]

    def _back(self, text: bytes, start: int) -> int:
        """Where the margin in front of a span begins."""
        before = whole_characters(text[max(start - self._margin_bytes, 0) : start])
        spans = self._words([before]).split.spans
        first = len(spans) - self._policy.margin_words
        if first == len(spans):
            return start
        return start - len(before) + (int(spans[first, 0]) if first >= 0 else 0)

    def _ahead(self, text: bytes, end: int) -> int:
        """Where the margin behind a span ends."""
        behind = whole_characters(text[end : end + self._margin_bytes])
        spans = self._words([behind]).split.spans
        if len(spans) < self._policy.margin_words:
            return end + len(behind)
        last = self._policy.margin_words - 1
        return end + (int(spans[last, 1]) if last >= 0 else 0)

    @property
    def _margin_bytes(self) -> int:
        return _BYTES_A_WORD * self._policy.margin_words

    def _count_words(self, text: bytes, spans: Sequence[Span]) -> int:
        pieces = [text[start:end] for start, end in spans]
        return len(self._words(pieces).split.hashes)
