"""What exact shares, passes and the choice of documents promise, for any counts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.errors import FaultsError
from pipelines.mixing import (
    Passes,
    apportion,
    first_occurrences,
    keyed_hash,
    plan_passes,
    random_order,
    select_tokens,
)

weights_lists = st.lists(
    st.fractions(min_value=Fraction(1, 1000), max_value=1000), min_size=1, max_size=6
)


def named(values: Sequence) -> dict:
    return {f"s{i}": value for i, value in enumerate(values)}


def ints(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


# Shares


@given(weights_lists, st.integers(0, 10**12))
def test_quotas_add_up_and_each_is_within_one_token_of_its_share(weights, total):
    quotas = apportion(named(weights), total)
    assert sum(quotas.values()) == total
    for quota, weight in zip(quotas.values(), weights, strict=True):
        assert abs(quota - weight * total / sum(weights)) < 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 12))
def test_no_other_quotas_are_nearer_to_the_shares(weights, total):
    exact = [Fraction(w * total, sum(weights)) for w in weights]
    candidates = itertools.product(*([int(e), int(e) + 1] for e in exact))
    fitting = [c for c in candidates if sum(c) == total]
    # Of equally near ones, the earlier names get the tokens.
    best = min(fitting, key=lambda c: (sum((q - e) ** 2 for q, e in zip(c, exact, strict=True)),
                                       [-q for q in c]))  # fmt: skip
    quotas = apportion(named([Fraction(w) for w in weights]), total)
    assert tuple(quotas.values()) == best


def test_equal_remainders_go_to_the_names_that_come_first():
    thirds = dict.fromkeys(("z", "a", "m"), Fraction(1, 3))
    assert apportion(thirds, 2) == {"z": 1, "a": 1, "m": 0}
    assert list(apportion(thirds, 2)) == ["z", "a", "m"]


@given(weights_lists, st.integers(0, 10**9), st.fractions(Fraction(1, 99), 99))
def test_only_the_proportion_of_weights_counts(weights, total, factor):
    scaled = named([w * factor for w in weights])
    assert apportion(named(weights), total) == apportion(scaled, total)


def test_decimal_weights_do_not_drift_as_floats_do():
    weights = {"a": Fraction("0.1"), "b": Fraction("0.2"), "c": Fraction("0.7")}
    assert apportion(weights, 10**18) == {"a": 10**17, "b": 2 * 10**17, "c": 7 * 10**17}


# Passes


@given(weights_lists, st.integers(1, 10**6), st.data())
def test_passes_hold_exactly_the_quota_and_stay_within_the_limit(weights, total, data):
    some = st.lists(st.integers(1, 10**6), min_size=len(weights), max_size=len(weights))
    available, weights = named(data.draw(some)), named(weights)
    limits = dict.fromkeys(weights, 10.0**7)
    for name, passes in plan_passes(weights, total, available, limits).items():
        assert passes.whole * available[name] + passes.partial == apportion(weights, total)[name]
        assert 0 <= passes.partial < available[name]


def test_a_quota_that_fits_to_the_token_is_planned_and_one_more_token_is_refused():
    limits = {"a": 2.5}
    assert plan_passes({"a": Fraction(1)}, 250, {"a": 100}, limits) == {"a": Passes(2, 50)}
    with pytest.raises(FaultsError):
        plan_passes({"a": Fraction(1)}, 251, {"a": 100}, limits)


def test_limits_are_decimals_not_floats():
    # As floats, 1.1 * 10 is 11.000000000000002 and 0.7 * 10 is 6.999999999999999.
    for limit, most in ((1.1, 11), (0.7, 7), (0.3, 3)):
        one = {"a": Fraction(1)}
        plan_passes(one, most, {"a": 10}, {"a": limit})
        with pytest.raises(FaultsError):
            plan_passes(one, most + 1, {"a": 10}, {"a": limit})


def test_the_error_names_every_source_that_is_short_and_a_budget_that_fits():
    weights = {"books": Fraction(1), "web": Fraction(1), "code": Fraction(2)}
    available = {"books": 100, "web": 90, "code": 10_000}
    with pytest.raises(FaultsError) as caught:
        plan_passes(weights, 2_000, available, dict.fromkeys(weights, 1.0))
    assert caught.value.faults == (
        "sources.books: takes 500 tokens, has 100: that needs 5.00 passes, and max_passes is 1",
        "sources.web: takes 500 tokens, has 90: that needs 5.56 passes, and max_passes is 1",
        "a budget of `tokens: 360` would fit, or raise max_passes, lower the weight, or add "
        "documents",
    )


def test_no_budget_is_named_where_none_would_fit():
    with pytest.raises(FaultsError) as caught:
        plan_passes({"a": Fraction(1)}, 10, {"a": 0}, {"a": 1.0})
    assert caught.value.faults == (
        "sources.a: takes 10 tokens, has 0: that needs documents, but it has none, and "
        "max_passes is 1",
        "raise max_passes, lower the weight, or add documents",
    )


@given(weights_lists, st.integers(1, 10**5), st.data())
def test_the_budget_that_the_error_names_fits_and_is_the_largest_to_rounding(weights, total, data):
    size = len(weights)
    available = named(data.draw(st.lists(st.integers(0, 10**4), min_size=size, max_size=size)))
    limits = named(data.draw(st.lists(st.sampled_from([0.3, 1.0, 2.5]), min_size=size,
                                      max_size=size)))  # fmt: skip
    weights = named(weights)

    def budget(tokens: int) -> int | None:
        """What the error names, or None where all is well."""
        try:
            plan_passes(weights, tokens, available, limits)
        except FaultsError as error:
            found = re.search(r"`tokens: (\d+)` would fit", error.faults[-1])
            return int(found[1]) if found else 0
        return None

    fits = budget(total)
    assume(fits is not None)
    assert fits < total
    if fits:
        assert budget(fits) is None
    # Enough tokens more for every source to be owed two more, whatever the rounding.
    rounding = 1 + int(2 * sum(weights.values()) / min(weights.values()))
    assert budget(fits + rounding) is not None


def test_a_source_whose_share_rounds_to_no_token_needs_no_documents():
    weights = {"all": Fraction(10**9), "none": Fraction(1)}
    plan = plan_passes(weights, 100, {"all": 100, "none": 0}, dict.fromkeys(weights, 1.0))
    assert plan == {"all": Passes(1, 0), "none": Passes(0, 0)}


# Hashes


def test_hashes_are_the_same_on_every_machine():
    uids = [bytes(16), bytes(range(16))]
    keys = keyed_hash(uids, seed=7, source="books", purpose="pass 0")
    assert keys.dtype == np.uint64
    assert keys.tolist() == [0xBAB77739CAB2E9C6, 0xC87908D07669EEF5]


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=9), st.integers(0, 2**64))
def test_a_documents_hash_depends_on_itself_alone(uids, seed):
    together = keyed_hash(uids, seed=seed, source="a", purpose="p").tolist()
    alone = [keyed_hash([u], seed=seed, source="a", purpose="p").tolist()[0] for u in uids]
    assert together == alone


def test_hashes_of_other_seeds_sources_and_purposes_are_independent():
    uids = [i.to_bytes(16) for i in range(4000)]
    base = {"seed": 1, "source": "a", "purpose": "pass 0"}
    keys = [keyed_hash(uids, **base)]
    for change in ({"seed": 11}, {"source": "b"}, {"purpose": "pass 1"}, {"purpose": "sequences"}):
        keys.append(keyed_hash(uids, **(base | change)))
    ranks = np.stack([np.argsort(np.argsort(k)) for k in keys]).astype(float)
    correlation = np.corrcoef(ranks) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.07  # four and a half standard deviations


def test_the_parts_of_a_hash_cannot_run_into_each_other():
    def key(seed: int, source: str, purpose: str) -> int:
        return int(keyed_hash([bytes(16)], seed=seed, source=source, purpose=purpose)[0])

    assert len({key(1, "1a", "p"), key(11, "a", "p"), key(1, "1", "ap"), key(11, "", "ap")}) == 4


# Selection


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys (with ties), lengths and loss-free tokens of documents, at least one token of loss."""
    n = draw(st.integers(1, 12))
    keys = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    lengths = draw(st.lists(st.integers(1, 20), min_size=n, max_size=n))
    without = [draw(st.integers(0, length)) for length in lengths]
    assume(sum(lengths) > sum(without))
    return np.array(keys, np.uint64), ints(lengths), ints(without)


def in_order(keys: np.ndarray) -> list[int]:
    return sorted(range(len(keys)), key=lambda i: (keys[i], i))


@given(corpora(), st.booleans(), st.data())
def test_the_selection_holds_exactly_the_quota_and_cuts_only_its_last_document(corpus, free, data):
    keys, lengths, without = corpus
    weighed = lengths - without if free else lengths
    quota = data.draw(st.integers(0, int(weighed.sum())))
    selection = select_tokens(random_order(keys), weighed, quota)
    assert weighed[selection.chosen[:-1]].sum() + selection.of_last == quota
    if quota:
        assert 1 <= selection.of_last <= weighed[selection.chosen[-1]], "the last one is needed"


@given(corpora(), st.data())
def test_the_selection_is_what_taking_documents_one_by_one_gives(corpus, data):
    keys, lengths, without = corpus
    weighed = lengths - without
    quota = data.draw(st.integers(0, int(weighed.sum())))
    expected: list[int] = []
    missing = quota
    for i in in_order(keys):
        if missing <= 0:
            break
        expected.append(i)
        missing -= int(weighed[i])
    selection = select_tokens(random_order(keys), weighed, quota)
    assert selection.chosen.tolist() == expected


@given(corpora(), st.data())
def test_a_smaller_quota_selects_a_prefix(corpus, data):
    keys, lengths, _ = corpus
    most = int(lengths.sum())
    small, large = sorted(data.draw(st.tuples(st.integers(0, most), st.integers(0, most))))
    less, more = (select_tokens(random_order(keys), lengths, q) for q in (small, large))
    n = len(less.chosen)
    assert less.chosen.tolist() == more.chosen[:n].tolist()
    assert len(more.chosen) > n or less.of_last <= more.of_last


@given(corpora())
def test_a_quota_of_all_tokens_selects_what_a_whole_pass_does(corpus):
    keys, lengths, _ = corpus
    order = random_order(keys)
    selection = select_tokens(order, lengths, int(lengths.sum()))
    assert selection.chosen.tolist() == order.tolist() == in_order(keys)
    assert selection.of_last == lengths[order[-1]]


@given(corpora(), st.data())
def test_what_comes_last_comes_behind_all_else_and_in_random_order_too(corpus, data):
    keys, _, _ = corpus
    last = np.array(data.draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys))))
    order = random_order(keys, last).tolist()
    assert order == sorted(range(len(keys)), key=lambda i: (last[i], keys[i], i))


def test_a_quota_above_all_tokens_is_an_error():
    order, lengths = ints([0, 1]), ints([3, 4])
    with pytest.raises(ValueError, match="8 tokens asked of documents that hold 7"):
        select_tokens(order, lengths, 8)
    with pytest.raises(ValueError, match="1 tokens asked of documents that hold 0"):
        select_tokens(order[:0], lengths[:0], 1)


# Duplicates


@given(st.lists(st.sampled_from([bytes([a]) * 8 + bytes([b]) * 8 for a in (0, 1, 255)
                                 for b in (0, 1, 255)]), max_size=20))  # fmt: skip
def test_a_first_occurrence_is_an_id_not_seen_before(uids):
    naive = [uid not in uids[:i] for i, uid in enumerate(uids)]
    assert first_occurrences(uids).tolist() == naive
