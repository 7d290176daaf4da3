"""Spans of tokens of many documents, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.shards import SPAN

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans [start, end) of N documents: ascending, disjoint and not empty within each."""

    first: Int64
    """[N + 1] first span of each document."""

    start: Int64
    """[S]"""

    end: Int64
    """[S]"""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.first) - 1

    @classmethod
    def none(cls, n: int) -> "Spans":
        """Documents without spans."""
        return cls(np.zeros(n + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> "Spans":
        """Those of an Arrow column of lists of `SPAN`."""
        array = column.combine_chunks()
        first = np.asarray(array.offsets.to_numpy(), np.int64)
        flat: Any = array.flatten()
        start, end = (np.asarray(flat.field(i).to_numpy(), np.int64) for i in (0, 1))
        return cls(first - first[0], start, end)

    @classmethod
    def concatenate(cls, parts: Sequence["Spans"]) -> "Spans":
        """The documents of several, one after the other."""
        if not parts:
            return cls.none(0)
        shifts = np.cumsum([0, *(len(part.start) for part in parts)])
        firsts = [part.first[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(
            np.append(np.concatenate(firsts), shifts[-1]),
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.end for part in parts]),
        )

    def take(self, documents: Int64) -> "Spans":
        """The spans of some documents, in their order."""
        if not len(self.start):
            return Spans.none(len(documents))
        n = self.first[documents + 1] - self.first[documents]
        first = np.concatenate([[0], np.cumsum(n)])
        index = np.repeat(self.first[documents] - first[:-1], n) + np.arange(int(n.sum()))
        return Spans(first, self.start[index], self.end[index])

    def clip(self, begin: Int64, end: Int64) -> "Spans":
        """What of the spans lies in [begin, end) of each document, [N] and [N], from `begin` on."""
        if not len(self.start):
            return self
        document = np.repeat(np.arange(len(self)), np.diff(self.first))
        low = np.maximum(self.start, begin[document]) - begin[document]
        high = np.minimum(self.end, end[document]) - begin[document]
        keep = high > low
        n = np.bincount(document[keep], minlength=len(self))
        return Spans(np.concatenate([[0], np.cumsum(n)]), low[keep], high[keep])

    def lengths(self) -> Int64:
        """[N] tokens that the spans of each document cover."""
        total = np.concatenate([[0], np.cumsum(self.end - self.start)])
        return total[self.first[1:]] - total[self.first[:-1]]

    def column(self) -> pa.ListArray:
        """As Arrow lists of `SPAN`."""
        fields = [pa.array(self.start, pa.int32()), pa.array(self.end, pa.int32())]
        spans = pa.StructArray.from_arrays(fields, fields=list(SPAN))
        return pa.ListArray.from_arrays(pa.array(self.first, pa.int32()), spans)


def tokens_holding(wanted: int, n_tokens: int, no_loss: Sequence[tuple[int, int]]) -> int:
    """The least number of tokens from a document's beginning that hold `wanted` with loss.

    Args:
        wanted: from 1 to the document's tokens with loss.
        n_tokens: of the document.
        no_loss: its spans without loss.
    """
    at = held = 0
    for start, end in [*no_loss, (n_tokens, n_tokens)]:
        if held + start - at >= wanted:
            return at + wanted - held
        held, at = held + start - at, end
    raise ValueError(f"{wanted} tokens with loss asked of a document that has {held}")
