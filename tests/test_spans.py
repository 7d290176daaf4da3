"""Spans of tokens of many documents do what lists of pairs would do."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spans import Spans, tokens_holding

Pairs = list[tuple[int, int]]


@st.composite
def pairs(draw: st.DrawFn) -> Pairs:
    """Spans of one document: ascending, disjoint, not empty; some touch."""
    edges = draw(st.lists(st.integers(0, 5), max_size=12))
    at, found = 0, []
    for gap, length in zip(edges[::2], edges[1::2], strict=False):
        if length:
            found.append((at + gap, at + gap + length))
            at = found[-1][1]
    return found


DOCUMENTS = st.lists(pairs(), max_size=6)


def spans_of(documents: list[Pairs]) -> Spans:
    """Through Arrow, as the token store keeps them."""
    column = pa.array(
        [[{"start": a, "end": b} for a, b in document] for document in documents],
        Spans.none(0).column().type,
    )
    return Spans.of(pa.chunked_array([column]))


def lists(spans: Spans) -> list[Pairs]:
    assert spans.first[0] == 0
    assert spans.first[-1] == len(spans.start) == len(spans.end)
    starts, ends = spans.start.tolist(), spans.end.tolist()
    bounds = zip(spans.first[:-1].tolist(), spans.first[1:].tolist(), strict=True)
    return [list(zip(starts[a:b], ends[a:b], strict=True)) for a, b in bounds]


@given(DOCUMENTS)
def test_an_arrow_column_holds_them_unchanged(documents: list[Pairs]) -> None:
    spans = spans_of(documents)
    assert len(spans) == len(documents)
    assert lists(spans) == documents
    again = Spans.of(pa.chunked_array([spans.column()]))
    assert lists(again) == documents
    assert spans.column().to_pylist() == [
        [{"start": a, "end": b} for a, b in document] for document in documents
    ]


@given(DOCUMENTS, st.data())
def test_a_slice_of_a_column_holds_its_own(documents: list[Pairs], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(documents)))
    stop = data.draw(st.integers(start, len(documents)))
    column = spans_of(documents).column()
    chunks = pa.chunked_array([column.slice(start, stop - start)], column.type)
    assert lists(Spans.of(chunks)) == documents[start:stop]


@given(DOCUMENTS, st.integers(0, 6))
def test_a_column_in_chunks_is_one_column(documents: list[Pairs], at: int) -> None:
    column = spans_of(documents).column()
    chunks = pa.chunked_array([column.slice(0, at), column.slice(at)], column.type)
    assert lists(Spans.of(chunks)) == documents


@given(st.lists(DOCUMENTS, max_size=4))
def test_several_are_joined_in_their_order(parts: list[list[Pairs]]) -> None:
    joined = Spans.concatenate([spans_of(part) for part in parts])
    assert lists(joined) == [document for part in parts for document in part]


@given(DOCUMENTS, st.data())
def test_documents_can_be_taken_in_any_order_and_twice(
    documents: list[Pairs], data: st.DataObject
) -> None:
    number = st.integers(0, len(documents) - 1) if documents else st.nothing()
    taken = data.draw(st.lists(number, max_size=8)) if documents else []
    spans = spans_of(documents).take(np.array(taken, np.int64))
    assert lists(spans) == [documents[i] for i in taken]


@given(DOCUMENTS, st.data())
def test_clipping_keeps_the_tokens_in_range_counted_from_its_beginning(
    documents: list[Pairs], data: st.DataObject
) -> None:
    begin = [data.draw(st.integers(0, 20)) for _ in documents]
    end = [b + data.draw(st.integers(0, 20)) for b in begin]
    clipped = spans_of(documents).clip(np.array(begin, np.int64), np.array(end, np.int64))
    expected = [
        [(max(a, low) - low, min(b, high) - low)
         for a, b in document if max(a, low) < min(b, high)]
        for document, low, high in zip(documents, begin, end, strict=True)
    ]  # fmt: skip
    assert lists(clipped) == expected


@given(DOCUMENTS)
def test_lengths_are_the_tokens_covered(documents: list[Pairs]) -> None:
    expected = [sum(b - a for a, b in document) for document in documents]
    assert spans_of(documents).lengths().tolist() == expected


@given(pairs(), st.integers(0, 6))
def test_the_first_tokens_that_hold_so_many_with_loss_end_with_one_that_has(
    silent: Pairs, behind: int
) -> None:
    n_tokens = (silent[-1][1] if silent else 0) + behind
    carries = [not any(a <= i < b for a, b in silent) for i in range(n_tokens)]
    for wanted in range(1, sum(carries) + 1):
        n = tokens_holding(wanted, n_tokens, silent)
        assert carries[n - 1]
        assert sum(carries[:n]) == wanted
    with pytest.raises(ValueError, match="asked of a document that has"):
        tokens_holding(sum(carries) + 1, n_tokens, silent)


def test_none_is_nothing_for_every_document() -> None:
    assert lists(Spans.none(3)) == [[], [], []]
    assert lists(Spans.concatenate([])) == []
