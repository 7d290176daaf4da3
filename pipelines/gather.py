"""Sequences in training order → the two files of a shard."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import files
from pipelines.rows import row_figures
from pipelines.shards import META_SCHEMA, SEGMENT
from pipelines.spans import Spans
from pipelines.store import TokenReader
from pipelines.xxh3 import hash_rows

ORDER_SCHEMA = pa.schema(
    [("group", pa.int32()), ("row", pa.int32()), ("source", pa.uint16()), ("pass", pa.uint16())]
)
"""The training order: which sequence of which group stands at each place."""


def shard_segments(order: pa.Table, groups: Mapping[int, pa.Table]) -> pa.Table:
    """The segments of a shard's sequences (`rows.SEGMENT_SCHEMA`), `row` counted in the shard.

    Args:
        order: the shard's part of the training order.
        groups: layouts by number, all that the order names.
    """
    group_of, row_of = order["group"].to_numpy(), order["row"].to_numpy()
    parts: list[pa.Table] = []
    places: list[npt.NDArray[Any]] = []
    for group in np.unique(group_of).tolist():
        here = np.flatnonzero(group_of == group)
        first = row_figures(groups[group]).first
        first = np.append(
            first, np.full(max(0, int(row_of[here].max()) + 2 - len(first)), first[-1])
        )
        begin, end = first[row_of[here]], first[row_of[here] + 1]
        n = end - begin
        index = np.repeat(begin - np.cumsum(n) + n, n) + np.arange(int(n.sum()))
        parts.append(groups[group].take(pa.array(index)).drop_columns("row"))
        places.append(np.repeat(here, n))
    place = np.concatenate(places)
    by_place = np.argsort(place, kind="stable")
    table = pa.concat_tables(parts).take(pa.array(by_place))
    return table.append_column("row", pa.array(place[by_place], pa.int32()))


def fill_rows(
    segments: pa.Table,
    batch_paths: Sequence[str],
    *,
    n_rows: int,
    seq_len: int,
    reader: TokenReader,
    token_type: str,
) -> npt.NDArray[Any]:
    """[n_rows, seq_len] ids, zero where there is padding."""
    rows = np.zeros((n_rows, seq_len), np.dtype(token_type).newbyteorder("<"))
    columns = [
        segments[c].to_numpy().tolist() for c in ("row", "start", "length", "batch", "token")
    ]
    row, start, length, batch, token = columns
    pieces = reader.read([f"{batch_paths[b]}.tokens" for b in batch], token, length)
    for r, s, n, piece in zip(row, start, length, pieces, strict=True):
        rows[r, s : s + n] = piece
    return rows


def describe_rows(segments: pa.Table, order: pa.Table, rows: npt.NDArray[Any]) -> pa.Table:
    """The shard's meta table (`shards.META_SCHEMA`)."""
    n_rows = len(rows)
    row = segments["row"].to_numpy()
    first = np.searchsorted(row, np.arange(n_rows + 1)).astype(np.int32)
    figures = row_figures(segments)
    counts = {}
    for name in ("n_real", "n_loss", "sum_len_sq"):
        values = getattr(figures, name)
        counts[name] = np.append(values, np.zeros(n_rows - len(values), np.int64))
    columns = {
        **counts,
        "source": order["source"],
        "pass": order["pass"],
        "xxh3": hash_rows(rows),
        "segments": pa.ListArray.from_arrays(pa.array(first), _segments(segments)),
        "no_loss": _no_loss(segments, row, n_rows),
    }
    arrays = {k: pa.array(v) if isinstance(v, np.ndarray) else v for k, v in columns.items()}
    return pa.table(arrays).cast(META_SCHEMA)


def _segments(segments: pa.Table) -> pa.StructArray:
    names = ("start", "length", "uid", "offset", "head_cut", "tail_cut", "continues")
    columns = [segments[name].combine_chunks() for name in names]
    return pa.StructArray.from_arrays(columns, fields=list(SEGMENT))


def _no_loss(segments: pa.Table, row: npt.NDArray[Any], n_rows: int) -> pa.ListArray:
    """Spans without loss, counted from the beginning of their sequence."""
    spans = Spans.of(segments["no_loss"])
    n = np.diff(spans.first)
    start = np.repeat(np.asarray(segments["start"].to_numpy(), np.int64), n)
    first = np.searchsorted(np.repeat(row, n), np.arange(n_rows + 1))
    return Spans(first, spans.start + start, spans.end + start).column()


def write_shard(path: str, rows: npt.NDArray[Any], meta: pa.Table) -> None:
    """Write `path.tok`, then `path.meta.arrow`, which marks the shard complete.

    The meta file's own metadata holds the sha256 of the token file.
    """
    with files.write_atomic(f"{path}.tok") as file:
        file.write(rows.data)
    digest = hashlib.sha256(rows.data).hexdigest()
    files.write_table(f"{path}.meta.arrow", meta.replace_schema_metadata({"sha256_tok": digest}))
