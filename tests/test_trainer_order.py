"""The order of training: every pass is a permutation, and ranks get equal work."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.order import PassOrder, deal


@st.composite
def orders(draw):
    unit = draw(st.sampled_from([0, 1, 1, 2, 3]))
    step = max(1, unit)
    length = draw(st.integers(1, 300)) * step
    block = draw(st.integers(1, 50)) * step
    return PassOrder(length, block, unit, draw(st.integers(0, 2**70)))


def one_pass(order: PassOrder, number: int) -> np.ndarray:
    return order.indices(np.arange(number * order.length, (number + 1) * order.length))


@given(orders(), st.integers(0, 5))
def test_every_pass_is_a_permutation(order, number):
    assert np.sort(one_pass(order, number)).tolist() == list(range(order.length))


@given(orders())
def test_the_first_pass_is_the_order_of_the_data_set(order):
    assert one_pass(order, 0).tolist() == list(range(order.length))


@given(orders(), st.integers(1, 5))
def test_units_stay_together_and_in_order(order, number):
    units = one_pass(order, number).reshape(-1, max(1, order.unit))
    assert (units == units[:, :1] + np.arange(max(1, order.unit))).all()
    assert (units[:, 0] % max(1, order.unit) == 0).all()


@given(orders(), st.integers(1, 5))
def test_blocks_stay_together_and_the_partial_one_last(order, number):
    whole = order.length // order.block * order.block
    indices = one_pass(order, number)
    blocks = indices[:whole].reshape(-1, order.block) // order.block
    assert (blocks == blocks[:, :1]).all()
    assert (indices[whole:] >= whole).all()
    if not order.unit:
        inside = indices[:whole].reshape(-1, order.block) % order.block
        assert (inside == np.arange(order.block)).all()
        assert indices[whole:].tolist() == list(range(whole, order.length))


@given(orders(), st.lists(st.integers(0, 5000), min_size=1, max_size=40))
def test_a_position_is_enough(order, positions):
    together = order.indices(np.array(positions))
    assert together.tolist() == [order.indices(np.array([p]))[0] for p in positions]


def test_passes_and_seeds_differ_and_blocks_are_permuted_each_its_own_way():
    passes = [one_pass(PassOrder(1000, 100, 1, seed), n).tolist()
              for seed in (0, 1) for n in (1, 2)]  # fmt: skip
    assert len({tuple(p) for p in passes}) == 4
    inside = np.array(passes[0]).reshape(10, 100) % 100
    assert len({tuple(row) for row in inside.tolist()}) == 10


def test_a_permutation_moves_everything_everywhere():
    """Over 400 passes each of 8 blocks stands about equally often at each place."""
    order = PassOrder(8, 1, 1, 7)
    table = np.zeros((8, 8))
    for number in range(1, 401):
        table[np.arange(8), one_pass(order, number)] += 1
    assert 20 < table.min() <= table.max() < 90


def test_the_order_does_not_change_between_versions():
    indices = one_pass(PassOrder(24, 8, 2, 5), 3).tolist()
    assert indices[:16] == [12, 13, 10, 11, 14, 15, 8, 9, 0, 1, 6, 7, 4, 5, 2, 3]
    assert indices[16:] == [18, 19, 22, 23, 20, 21, 16, 17]


def manifest(*streams, shards=(16, 8), sequences=12):
    names = [f"s{i}" for i in range(len(streams))]
    return {
        "order": {"global_batch": 4, "window": 2},
        "shards": [{"sequences": n} for n in shards],
        "sources": [{"name": name, "sequences": sequences} for name in names],
        "recipe": {"sources": {name: {"stream_sequences": k}
                               for name, k in zip(names, streams, strict=True)}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("streams", "unit", "block"),
    [((1, 1), 1, 8), ((4, 4), 4, 8), ((3, 3), 3, 9), ((3, 1), 0, 8), ((2, 4), 0, 8)],
)
def test_sequences_stay_together_where_all_sources_stream_equally_many(streams, unit, block):
    assert PassOrder.of(manifest(*streams), seed=1) == PassOrder(24, block, unit, 1)


def test_a_source_without_sequences_does_not_count():
    m = manifest(4, 1)
    m["sources"][1]["sequences"] = 0
    assert PassOrder.of(m, seed=0).unit == 4


# --- dealing to ranks ----------------------------------------------------------------------


@st.composite
def deals(draw):
    unit, ranks = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 6))
    micro_batch = unit * draw(st.integers(1, 4))
    n = ranks * micro_batch * draw(st.integers(1, 5))
    costs = draw(st.lists(st.integers(0, 1000), min_size=n, max_size=n))
    return np.array(costs), {"ranks": ranks, "micro_batch": micro_batch, "unit": unit}


@given(deals())
def test_every_sequence_is_dealt_once_in_whole_units(case):
    costs, how = case
    dealt = deal(costs, **how)
    assert dealt.shape[0] == how["ranks"]
    assert dealt.shape[2] == how["micro_batch"]
    assert sorted(dealt.ravel().tolist()) == list(range(len(costs)))
    units = dealt.reshape(-1, how["unit"])
    assert (units == units[:, :1] + np.arange(how["unit"])).all()
    assert (units[:, 0] % how["unit"] == 0).all()


@given(deals())
def test_accumulation_steps_hold_units_from_costly_to_cheap(case):
    costs, how = case
    work = costs.reshape(-1, how["unit"]).sum(axis=1)
    steps = np.swapaxes(deal(costs, **how), 0, 1)[..., :: how["unit"]] // how["unit"]
    for before, after in pairwise(steps):
        assert work[before].min() >= work[after].max()


@given(deals())
def test_equal_costs_are_dealt_by_position(case):
    costs, how = case
    dealt = deal(np.zeros(len(costs)), **how)
    first = np.swapaxes(dealt, 0, 1).reshape(dealt.shape[1], -1)
    assert (np.sort(first, axis=1).ravel() == np.arange(len(costs))).all()


def test_an_example_by_hand():
    dealt = deal(np.array([1, 9, 5, 4, 8, 3, 2, 7]), ranks=2, micro_batch=2)
    assert dealt.tolist() == [[[1, 2], [0, 3]], [[4, 7], [5, 6]]]


def test_the_rank_with_less_work_so_far_gets_the_costliest():
    dealt = deal(np.array([9, 5, 4, 1]), ranks=2, micro_batch=1)
    assert dealt.tolist() == [[[0], [3]], [[1], [2]]]


@pytest.mark.parametrize(("ranks", "micro_batch"), [(2, 1), (8, 1), (2, 4), (8, 4)])
def test_ranks_wait_little_for_each_other(ranks, micro_batch):
    rng = np.random.default_rng(0)
    costs = rng.lognormal(0, 1, (50, 128)).clip(0, 5)
    slowest = dealt_mean = plain = 0.0
    for step in costs:
        work = step[deal(step, ranks=ranks, micro_batch=micro_batch)].sum(axis=2)
        slowest, dealt_mean = slowest + work.max(axis=0).sum(), dealt_mean + work.mean(axis=0).sum()
        plain += step.reshape(-1, ranks, micro_batch).sum(axis=2).max(axis=1).sum()
    assert slowest / dealt_mean < 1.1
    assert plain / dealt_mean > 1.2
