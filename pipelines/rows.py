"""A packing group → its sequences as a table of segments: where each piece of text will stand."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.mixture import Source
from pipelines.packing import Packing, pack_documents, pad_documents, stream_documents

Int64 = npt.NDArray[np.int64]

SEGMENT_SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("start", pa.int32()),
        ("length", pa.int32()),
        ("batch", pa.int32()),
        ("token", pa.int64()),
        ("offset", pa.int64()),
        ("n_tokens", pa.int64()),
        ("no_loss", pa.int32()),
        ("uid", pa.binary(16)),
    ]
)
"""Of each segment: its sequence and place there; batch and first token in the store; offset in
the document, tokens of the whole document, tokens at its beginning without loss; document id."""


def lay_out(documents: pa.Table, source: Source, *, seq_len: int) -> pa.Table:
    """Pack a group (`planning.GROUP_SCHEMA`) into sequences (`SEGMENT_SCHEMA`), by row and start.

    A group of the `stream` policy fills its last unit of k sequences with empty ones.
    """
    take = documents["take"].to_numpy()
    pack = {"pack": pack_documents, "pad": pad_documents, "stream": stream_documents}
    packing: Packing = pack[source.policy](take, seq_len=seq_len)
    document = packing.document
    prompt = documents["prompt_tokens"].to_numpy()[document]
    columns = {
        "row": packing.row,
        "start": packing.start,
        "length": packing.length,
        "batch": documents["batch"].to_numpy()[document],
        "token": documents["start"].to_numpy()[document] + packing.offset,
        "offset": packing.offset,
        "n_tokens": documents["n_tokens"].to_numpy()[document],
        "no_loss": np.clip(prompt - packing.offset, 0, packing.length),
        "uid": documents["uid"].take(pa.array(document)),
    }
    return pa.table(
        {k: pa.array(v) if isinstance(v, np.ndarray) else v for k, v in columns.items()}
    ).cast(SEGMENT_SCHEMA)


@dataclass(frozen=True, slots=True)
class RowFigures:
    """What the training order needs to know of each sequence. Arrays are [R]."""

    n_real: Int64
    n_loss: Int64
    sum_len_sq: Int64
    first: Int64
    """[R + 1] first segment of each sequence."""


def row_figures(segments: pa.Table) -> RowFigures:
    """Count the sequences of a layout."""
    row = segments["row"].to_numpy()
    n_rows = int(row[-1]) + 1 if len(row) else 0
    first = np.searchsorted(row, np.arange(n_rows + 1))
    length = segments["length"].to_numpy().astype(np.int64)
    loss = length - segments["no_loss"].to_numpy()
    sums = [_row_sums(values, row, n_rows) for values in (length, loss, length * length)]
    return RowFigures(*sums, first=first)


def _row_sums(values: Int64, row: npt.NDArray[np.int32], n_rows: int) -> Int64:
    total = np.concatenate([[0], np.cumsum(values)])
    return np.diff(total[np.searchsorted(row, np.arange(n_rows + 1))])
