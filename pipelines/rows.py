"""A packing group → its sequences as a table of segments: where each piece of text will stand."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.mixture import Source
from pipelines.packing import (
    Packing,
    pack_documents,
    pad_documents,
    queue_documents,
    stream_documents,
)
from pipelines.shards import SPAN
from pipelines.spans import Spans

Int64 = npt.NDArray[np.int64]

SEGMENT_SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("start", pa.int32()),
        ("length", pa.int32()),
        ("batch", pa.int32()),
        ("token", pa.int64()),
        ("offset", pa.int64()),
        ("head_cut", pa.bool_()),
        ("tail_cut", pa.bool_()),
        ("continues", pa.bool_()),
        ("no_loss", pa.list_(SPAN)),
        ("uid", pa.binary(16)),
    ]
)
"""Of each segment: its sequence and place there; batch and first token in the store; offset in
the document and whether some of it stands elsewhere; whether it goes on with the context of the
segment before; its tokens without loss; document id."""


def lay_out(documents: pa.Table, source: Source, *, seq_len: int, eos: int) -> pa.Table:
    """Pack a group (`planning.GROUP_SCHEMA`) into sequences (`SEGMENT_SCHEMA`), by row and start.

    A group of the `stream` policy fills its last unit of k sequences with empty ones. `eos` is the
    number of tokens behind the text of each document, which a context leaves out.
    """
    take = _column(documents, "take")
    unit = _column(documents, "unit")
    lengths = np.bincount(unit, weights=take).astype(np.int64)
    stream = queue_documents if source.is_whole else stream_documents
    pack = {"pack": pack_documents, "pad": pad_documents, "stream": stream,
            "few_shot": pack_documents}  # fmt: skip
    packing = _expand(pack[source.policy](lengths, seq_len=seq_len), unit, take)
    document = packing.document
    begin = _column(documents, "begin")[document]
    offset = begin + packing.offset
    n_tokens = _column(documents, "n_tokens")[document]
    framed = source.policy == "few_shot"  # what a context leaves out is BOS and EOS, not text
    spans = Spans.of(documents["no_loss"]).take(document).clip(offset, offset + packing.length)
    columns = {
        "row": packing.row,
        "start": packing.start,
        "length": packing.length,
        "batch": _column(documents, "batch")[document],
        "token": _column(documents, "start")[document] + offset,
        "offset": offset,
        "head_cut": (packing.offset > 0) if framed else (offset > 0),
        "tail_cut": (offset + packing.length < n_tokens - (eos if framed else 0)),
        "continues": _continues(packing, unit) if framed else np.zeros(len(document), np.bool_),
        "no_loss": spans.column(),
        "uid": documents["uid"].take(pa.array(document)),
    }
    return pa.table(
        {k: pa.array(v) if isinstance(v, np.ndarray) else v for k, v in columns.items()}
    ).cast(SEGMENT_SCHEMA)


def _column(table: pa.Table, name: str) -> Int64:
    return np.asarray(table[name].to_numpy(), np.int64)


def _expand(packing: Packing, unit: Int64, take: Int64) -> Packing:
    """A packing of units as one of their pieces; a unit of several pieces is never cut."""
    n_pieces = np.bincount(unit)
    if len(unit) == len(n_pieces):
        return packing
    n = n_pieces[packing.document]
    first_piece = np.cumsum(n_pieces) - n_pieces
    segment = np.repeat(np.arange(len(n)), n)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(n) - n, n)
    piece = first_piece[packing.document[segment]] + within
    before = np.cumsum(take) - take
    start = packing.start[segment] + before[piece] - before[first_piece[unit[piece]]]
    return Packing(
        packing.n_rows, packing.row[segment], start, piece, np.zeros_like(piece), take[piece]
    )


def _continues(packing: Packing, unit: Int64) -> npt.NDArray[np.bool_]:
    """Whether a piece stands behind another one of its unit."""
    of = unit[packing.document]
    return np.concatenate([[False], of[1:] == of[:-1]]) if len(of) else np.zeros(0, np.bool_)


@dataclass(frozen=True, slots=True)
class RowFigures:
    """What the training order needs to know of each sequence. Arrays are [R]."""

    n_real: Int64
    n_loss: Int64
    sum_len_sq: Int64
    """Sum of the squared lengths of contexts: what attention costs."""

    first: Int64
    """[R + 1] first segment of each sequence."""


def row_figures(segments: pa.Table) -> RowFigures:
    """Count the sequences of a layout."""
    row = segments["row"].to_numpy()
    n_rows = int(row[-1]) + 1 if len(row) else 0
    first = np.searchsorted(row, np.arange(n_rows + 1))
    length = _column(segments, "length")
    loss = length - Spans.of(segments["no_loss"]).lengths()
    context = _context_lengths(segments, length)
    sums = [_row_sums(values, row, n_rows) for values in (length, loss, context * context)]
    return RowFigures(*sums, first=first)


def _context_lengths(segments: pa.Table, length: Int64) -> Int64:
    """The length of each context where its first segment stands, else 0."""
    begins = np.flatnonzero(~np.asarray(segments["continues"].to_numpy(), np.bool_))
    lengths = np.zeros_like(length)
    if len(begins):
        lengths[begins] = np.add.reduceat(length, begins)
    return lengths


def _row_sums(values: Int64, row: npt.NDArray[np.int32], n_rows: int) -> Int64:
    total = np.concatenate([[0], np.cumsum(values)])
    return np.diff(total[np.searchsorted(row, np.arange(n_rows + 1))])
