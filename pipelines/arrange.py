"""Layouts of all groups → the training order of the whole data set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.gather import ORDER_SCHEMA
from pipelines.mixing import keyed_hash
from pipelines.mixture import Mixture
from pipelines.ordering import SourceUnits, TrainingOrder, training_order
from pipelines.rows import RowFigures

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GroupRows:
    """The sequences of one packing group."""

    group: int
    pass_: int
    again: bool
    figures: RowFigures


@dataclass(frozen=True, slots=True)
class _Rows:
    """The sequences of one source in the order of their use. Arrays are [R]."""

    group: Int64
    row: Int64
    pass_: Int64
    again: Int64
    tokens: Int64
    costs: Int64


def arrange(
    mixture: Mixture, groups: Sequence[Sequence[GroupRows]]
) -> tuple[pa.Table, TrainingOrder]:
    """Order all sequences.

    Args:
        mixture: weights, seed and what to balance for.
        groups: of each source, in the order of the mixture's sources.

    Returns:
        The order (`gather.ORDER_SCHEMA`), and how well it keeps its promises.
    """
    names = list(mixture.sources)
    together = [mixture.sources[name].stream_sequences for name in names]
    rows = [_source_rows(mixture, n, g, k) for n, g, k in zip(names, groups, together, strict=True)]
    order = training_order(
        [
            SourceUnits(
                tokens=np.maximum(r.tokens.reshape(-1, k).sum(axis=1), 1),
                costs=np.maximum(r.costs.reshape(-1, k).sum(axis=1), k),
            )
            for r, k in zip(rows, together, strict=True)
        ],
        unit_tokens=mixture.seq_len,
        global_batch=mixture.order.global_batch,
        window=mixture.order.window,
        rows_per_unit=together,
    )
    return _table(order, rows, together), order


def _source_rows(mixture: Mixture, name: str, groups: Sequence[GroupRows], k: int) -> _Rows:
    """Sequences of a source, shuffled in units of k within each pass; earlier passes first.

    There are none where the share of the budget rounds to no token.
    """
    parts = [_Rows(*np.zeros((6, 0), np.int64))]
    for group in groups:
        figures = group.figures
        n_units = -(-len(figures.n_real) // k)
        fill = n_units * k - len(figures.n_real)
        weighed = figures.n_real if mixture.weight_by == "tokens" else figures.n_loss
        parts.append(
            _Rows(
                np.full(n_units * k, group.group),
                np.arange(n_units * k),
                np.full(n_units * k, group.pass_),
                np.full(n_units * k, int(group.again)),
                np.pad(weighed, (0, fill)),
                np.pad(figures.sum_len_sq, (0, fill)),
            )
        )
    joined = _Rows(*(np.concatenate(column) for column in zip(*map(_columns, parts), strict=True)))
    return _take(joined, _shuffle_within_passes(mixture, name, joined, k), k)


def _shuffle_within_passes(mixture: Mixture, name: str, rows: _Rows, k: int) -> Int64:
    """Order of the units: by pass, what was used before last, else by hash over all groups."""
    group, row, pass_ = rows.group[::k], rows.row[::k], rows.pass_[::k]
    first = {p: int(group[pass_ == p].min()) for p in np.unique(pass_).tolist()}
    places = zip(pass_.tolist(), group.tolist(), row.tolist(), strict=True)
    ids = [f"{p}:{g - first[p]}:{r}".encode() for p, g, r in places]
    keys = keyed_hash(ids, seed=mixture.seed, source=name, purpose="sequences")
    return np.lexsort((keys, rows.again[::k], pass_))


def _columns(rows: _Rows) -> tuple[Int64, ...]:
    return rows.group, rows.row, rows.pass_, rows.again, rows.tokens, rows.costs


def _take(rows: _Rows, units: Int64, k: int) -> _Rows:
    index = (units[:, None] * k + np.arange(k)).ravel()
    return _Rows(*(column[index] for column in _columns(rows)))


def _table(order: TrainingOrder, rows: Sequence[_Rows], together: Sequence[int]) -> pa.Table:
    k = np.array(together)[order.source]
    source = np.repeat(order.source, k)
    within = np.arange(int(k.sum())) - np.repeat(np.cumsum(k) - k, k)
    row = np.repeat(order.unit * k, k) + within
    columns = {"group": np.zeros(len(row), np.int32), "row": np.zeros(len(row), np.int32)}
    passes = np.zeros(len(row), np.uint16)
    for s, of_source in enumerate(rows):
        here = source == s
        columns["group"][here] = of_source.group[row[here]]
        columns["row"][here] = of_source.row[row[here]]
        passes[here] = of_source.pass_[row[here]]
    return pa.table({**columns, "source": source, "pass": passes}).cast(ORDER_SCHEMA)
