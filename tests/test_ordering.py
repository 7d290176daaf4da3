"""The training order keeps the mixture in every prefix and the ranks' work equal."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ordering import SourceUnits, TrainingOrder, training_order

T = 128


def units(tokens, costs=None) -> SourceUnits:
    tokens = np.array(tokens, np.int64)
    return SourceUnits(tokens, tokens**2 if costs is None else np.array(costs, np.int64))


def ordered(sources, *, seq_len=T, global_batch=4, window=4, rows=None) -> TrainingOrder:
    return training_order(
        sources,
        unit_tokens=seq_len,
        global_batch=global_batch,
        window=window,
        rows_per_unit=rows or [1] * len(sources),
    )


def deviations(order, sources):
    """|placed - share * placed in total| of every prefix and source, times all tokens."""
    quotas = [int(source.tokens.sum()) for source in sources]
    tokens = [source.tokens.tolist() for source in sources]
    total, clock, placed = sum(quotas), 0, [0] * len(sources)
    for source, unit in zip(order.source.tolist(), order.unit.tolist(), strict=True):
        placed[source] += tokens[source][unit]
        clock += tokens[source][unit]
        yield [abs(p * total - q * clock) for p, q in zip(placed, quotas, strict=True)]


def worst_deviation(order, sources):
    total = sum(int(source.tokens.sum()) for source in sources)
    return Fraction(max(map(max, deviations(order, sources))), total)


@st.composite
def mixtures(draw):
    """1 to 12 sources with shares from 0.1 to 99 %, full, nearly full or uneven units."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.dirichlet(np.full(draw(st.integers(1, 12)), draw(st.sampled_from([0.1, 1, 30]))))
    count = draw(st.integers(1, 400))
    sources = []
    for weight in weights:
        least = draw(st.sampled_from([T, T - 2, T // 2, 1]))
        tokens = rng.integers(least, T, max(1, round(count * weight)), endpoint=True)
        if draw(st.booleans()):
            tokens = np.sort(tokens)
        sources.append(units(tokens, rng.integers(1, tokens**2, endpoint=True)))
    return sources


any_mixture = {
    "sources": mixtures(),
    "global_batch": st.integers(1, 9),
    "window": st.integers(1, 9),
}


@settings(max_examples=100)
@given(**any_mixture)
def test_every_prefix_is_within_one_sequence_of_every_share(sources, global_batch, window):
    order = ordered(sources, global_batch=global_batch, window=window)
    assert worst_deviation(order, sources) == order.max_deviation <= T


@settings(max_examples=50)
@given(mixtures(), st.data())
def test_units_of_several_sequences_stay_within_their_own_size(sources, data):
    rows = [data.draw(st.sampled_from([1, 1, 3])) for _ in sources]
    sources = [units(s.tokens * k, s.costs * k) for s, k in zip(sources, rows, strict=True)]
    order = ordered(sources, rows=rows)
    quotas = [int(source.tokens.sum()) for source in sources]
    bounds = [
        T * k * sum(quotas) + quota * T * (max(rows) - k)
        for k, quota in zip(rows, quotas, strict=True)
    ]
    for prefix in deviations(order, sources):
        assert all(deviation <= bound for deviation, bound in zip(prefix, bounds, strict=True))


@settings(max_examples=50)
@given(**any_mixture)
def test_every_unit_is_placed_exactly_once(sources, global_batch, window):
    order = ordered(sources, global_batch=global_batch, window=window)
    placed = sorted(zip(order.source.tolist(), order.unit.tolist(), strict=True))
    assert placed == [(s, u) for s, given_ in enumerate(sources) for u in range(len(given_.tokens))]


@settings(max_examples=50)
@given(**any_mixture)
def test_units_leave_their_sources_order_only_inside_a_window(sources, global_batch, window):
    order = ordered(sources, global_batch=global_batch, window=window)
    used = [0] * len(sources)
    span = global_batch * window
    for first in range(0, len(order.unit), span):
        for source in range(len(sources)):
            here = order.unit[first : first + span][order.source[first : first + span] == source]
            assert sorted(here) == list(range(used[source], used[source] + len(here)))
            used[source] += len(here)


@pytest.mark.parametrize(("seq_len", "counts"), [(2**22, (2_000, 300, 40)), (2**40, (300, 41, 7))])
def test_large_totals_do_not_overflow(seq_len, counts):
    sources = [units([seq_len - i for i in range(count)], range(1, count + 1)) for count in counts]
    order = ordered(sources, seq_len=seq_len)
    assert worst_deviation(order, sources) == order.max_deviation <= seq_len
    assert order.after.mean < order.before.mean


SEQ_LEN = 32_768


def phase_1(count, *, seed=0, shares=(0.25, 0.25, 0.25, 0.25)):
    """Books cost a full row, arXiv about half, web and Pile 0.2 with a long tail."""
    rng = np.random.default_rng(seed)
    sources = []
    kinds = [(1, 0.02), (0.5, 0.4), (0.2, 0.3), (0.2, 0.3)]
    for share, (cost, spread) in zip(shares, kinds, strict=True):
        size = round(count * share)
        short = rng.random(size) < 0.05
        tokens = SEQ_LEN - short * rng.integers(0, SEQ_LEN // 30, size)
        relative = np.clip(rng.lognormal(np.log(cost), spread, size), 0.03, 1)
        sources.append(units(tokens, relative * SEQ_LEN**2))
    return sources


def work(order, sources, ranks, *, global_batch, window):
    """Sum of costs by window and rank, counted one position at a time."""
    costs = [source.costs.tolist() for source in sources]
    whole = len(order.unit) // (global_batch * window)
    sums = np.zeros((whole, ranks))
    for p in range(whole * global_batch * window):
        sums[p // (global_batch * window), p % ranks] += costs[order.source[p]][order.unit[p]]
    return sums.max(axis=1) / sums.mean(axis=1)


@pytest.mark.parametrize("global_batch", [32, 64])
@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25, 0.25), (0.4, 0.3, 0.2, 0.1)])
def test_ranks_do_equal_work_in_every_window(global_batch, shares):
    sources = phase_1(6_200, shares=shares)
    order = ordered(sources, seq_len=SEQ_LEN, global_batch=global_batch, window=16)
    assert order.max_deviation <= SEQ_LEN
    ranks = 2
    while ranks <= global_batch:
        ratios = work(order, sources, ranks, global_batch=global_batch, window=16)
        assert ratios.mean() < 1.015
        assert ratios.max() < 1.03
        ranks *= 2
    assert order.after.mean == pytest.approx(ratios.mean())
    assert order.after.worst == pytest.approx(ratios.max())
    assert order.before.mean > 1.15


def test_a_periodic_mixture_does_not_give_a_rank_the_same_source_forever():
    full = [units([SEQ_LEN] * 1_000, [cost] * 1_000) for cost in (1_000, 500, 200, 200)]
    order = ordered(full, seq_len=SEQ_LEN, global_batch=32, window=16)
    assert order.before.mean > 2
    assert order.after.worst < 1.05


def test_uneven_units_are_balanced_too():
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, T, 1_500, endpoint=True) for _ in range(4)]
    order = ordered([units(t) for t in tokens], global_batch=16, window=16)
    assert order.max_deviation <= T
    assert order.after.mean < 1.1 < 1.3 < order.before.mean


def test_the_same_input_gives_the_same_order():
    one, two = (ordered(phase_1(2_000), seq_len=SEQ_LEN, global_batch=32) for _ in range(2))
    assert np.array_equal(one.source, two.source)
    assert np.array_equal(one.unit, two.unit)
    assert one.max_deviation == two.max_deviation


def test_a_single_source_never_deviates():
    order = ordered([units([T, 3, T, 7, 1, T])])
    assert sorted(order.unit.tolist()) == list(range(6))
    assert order.max_deviation == 0


@pytest.mark.parametrize("sources", [[], [units([])], [units([]), units([])]])
def test_nothing_to_place_gives_an_empty_order(sources):
    order = ordered(sources)
    assert len(order.source) == len(order.unit) == 0
    assert order.max_deviation == 0
    assert order.after.worst == 1


def test_a_source_without_units_changes_nothing():
    some = phase_1(400)
    with_empty = ordered([*some, units([])], seq_len=SEQ_LEN)
    assert np.array_equal(with_empty.source, ordered(some, seq_len=SEQ_LEN).source)


def test_a_unit_of_several_sequences_weighs_on_every_class_it_covers():
    stream = units([3 * T] * 100, [300] * 100)
    order = ordered([stream, units([T] * 300, [100] * 300)], rows=[3, 1])
    assert order.after == order.before
    assert order.after.worst == 1


@pytest.mark.parametrize("tokens", [[T, 0], [T + 1]])
def test_a_unit_that_cannot_be_is_an_error_that_names_its_source(tokens):
    with pytest.raises(ValueError, match="source 1: "):
        ordered([units([T]), units(tokens)])
