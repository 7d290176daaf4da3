"""UL2's denoisers: the paper's rates, and nothing of the text lost."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rendering import BadRecordError, Rendered, keyed_random
from pipelines.templates.denoisers import (
    DENOISERS,
    MODES,
    MOST_UNITS,
    Denoiser,
    denoised,
    hidden_spans,
    word_ends,
)

ALIKE = {"r": 2.0, "s": 1.0, "x": 4.0}
TEXTS = st.text(st.sampled_from("ab.é語\U0001f600 \n\t\u2028"), max_size=300).filter(
    lambda text: len(text.split()) > 1
)


def drawn(text: str, seed: int = 1, **options: object) -> Rendered:
    defaults = {"ends": word_ends, "weights": ALIKE, "piece": 512, "mode_tokens": True}
    return denoised(text, rng=random.Random(seed), **(defaults | options))


def exercises(rendered: Rendered) -> list[tuple[str, str, str]]:
    """(mode, prompt, answer) of each piece; the text is covered exactly."""
    found, end = [], 0
    for start, stop in rendered.answers:
        before = rendered.text[end:start].removeprefix("\n\n" if end else "")
        mode = next(mode for mode in MODES.values() if before.startswith(f"{mode} "))
        found.append((mode, before.removeprefix(f"{mode} "), rendered.text[start:stop]))
        end = stop
    assert end == len(rendered.text)
    return found


def filled(mode: str, prompt: str, answer: str) -> str:
    """The piece of text that an exercise was made from."""
    if mode == "[S2S]":
        return prompt + answer
    *visible, rest = re.split("<extra_id_\\d+>", prompt)
    nothing, *hidden = re.split("<extra_id_\\d+>", answer)
    assert rest == nothing == "" and len(visible) == len(hidden)
    numbers = [f"<extra_id_{i}>" for i in range(len(hidden))]
    assert re.findall("<extra_id_\\d+>", prompt) == numbers
    assert re.findall("<extra_id_\\d+>", answer) == numbers
    return "".join(a + b for a, b in zip(visible, hidden, strict=True))


def test_pieces_read_as_t5_and_openchatkit_write_them():
    only = {"r": 0.0, "s": 0.0, "x": 0.0}
    one = drawn("a b c d", weights=only | {"s": 1})
    assert one == Rendered("[S2S] a b c d", ((11, 13),), divisions=((0, 13),))
    got = drawn("a b c d e f g h i j", 4, weights=only | {"x": 1})
    assert got.text == ("[NLG] a b<extra_id_0> d e f<extra_id_1><extra_id_0> c<extra_id_1> g h i j")
    (span,) = got.answers
    assert got.text[slice(*span)] == "<extra_id_0> c<extra_id_1> g h i j"
    assert drawn("a\n\nb ", weights=only | {"r": 1}, mode_tokens=False).text == (
        "a<extra_id_0><extra_id_0>\n\nb "
    )
    two = drawn("a b c d", weights=only | {"s": 1}, piece=3)
    assert two.text == "[S2S] a b\n\n[S2S]  c d"
    assert [two.text[start:end] for start, end in two.answers] == [" b", " d"]


@given(TEXTS, st.integers(0, 99), st.integers(3, 40))
def test_visible_and_hidden_parts_together_are_the_text(text, seed, piece):
    rendered = drawn(text, seed, piece=piece)
    assert "".join(filled(*exercise) for exercise in exercises(rendered)) == text
    assert rendered == drawn(text, seed, piece=piece)
    assert all(start < end for start, end in rendered.answers)
    assert not rendered.controls and not rendered.framed


@given(TEXTS, st.integers(0, 99), st.sets(st.integers(0, 300)))
def test_units_may_be_any_cut_of_the_text(text, seed, ends):
    inside = sorted(end for end in ends if end < len(text) and end)
    repeated = [0, *inside, *inside[-1:], len(text), len(text)]  # bytes of one character
    if not inside:
        with pytest.raises(BadRecordError, match="too_short_to_fill"):
            drawn(text, seed, ends=lambda _: repeated)
        return
    rendered = drawn(text, seed, ends=lambda _: repeated)
    assert "".join(filled(*exercise) for exercise in exercises(rendered)) == text
    cuts = set(inside) | {0, len(text)}
    ((_, prompt, _),) = exercises(rendered)
    assert len(prompt.split("<extra_id_")[0]) in cuts, "a span begins where a unit does"


@given(
    st.integers(2, MOST_UNITS),
    st.sampled_from([*DENOISERS, Denoiser("x", 0.9, 1)]),
    st.integers(0, 999),
)
def test_hidden_spans_never_touch_and_end_with_the_piece(n, denoiser, seed):
    spans = hidden_spans(n, denoiser, random.Random(seed))
    edges = [0, *(edge for span in spans for edge in span)]
    assert all(a < b for a, b in pairwise(edges))
    assert edges[-1] == n
    assert len(spans) <= 100 and (len(spans) == 1 or denoiser.mean_span is not None)
    hidden = sum(end - start for start, end in spans)
    assert hidden in {max(1, min(int(n * denoiser.share) + up, n - 1)) for up in (0, 1)}


def rates(denoiser: Denoiser, n: int = 512, draws: int = 400) -> tuple[float, float]:
    """Share of units that are hidden, and their mean span."""
    rng = keyed_random(1, "test", f"{denoiser}")
    lengths = [[end - start for start, end in hidden_spans(n, denoiser, rng)] for _ in range(draws)]
    hidden = sum(map(sum, lengths))
    return hidden / (n * draws), hidden / sum(map(len, lengths))


def near(measured: float, stated: float) -> bool:
    return abs(measured / stated - 1) < 0.04


PAPER = [("r", 0.15, 3), ("r", 0.15, 8), ("s", 0.25, 128), ("x", 0.5, 3), ("x", 0.5, 8),
         ("x", 0.15, 64), ("x", 0.5, 64)]  # fmt: skip


@pytest.mark.parametrize("index", range(7))
def test_each_denoiser_has_the_papers_rates(index):
    denoiser = DENOISERS[index]
    kind, share, mean = PAPER[index]
    assert denoiser.kind == kind
    got_share, got_mean = rates(denoiser)
    assert near(got_share, share) and near(got_mean, mean)
    # A parameter that is wrong by a fifth would be seen.
    for factor in (0.8, 1.2):
        assert not near(rates(denoiser._replace(share=denoiser.share * factor))[0], share)
        if denoiser.mean_span is not None:
            assert not near(rates(denoiser._replace(mean_span=mean * factor))[1], mean)


@pytest.mark.parametrize("n", [30, 57, 100, 333])
def test_rates_hold_in_expectation_for_short_pieces_too(n):
    """Rounding to the nearest would hide 5 of 30 units, and 9 of 57 in 3 spans."""
    share, mean = rates(Denoiser("r", 0.15, 3), n, 4000)
    assert near(share, 0.15) and near(mean, 3)


def test_lengths_of_spans_are_any_composition_with_equal_odds():
    denoiser = Denoiser("x", 0.5, 5 / 3)
    rng = random.Random(5)
    seen = Counter(
        tuple(end - start for start, end in spans)
        for spans in (hidden_spans(10, denoiser, rng) for _ in range(6000))
    )
    three = {lengths: count for lengths, count in seen.items() if len(lengths) == 3}
    assert set(three) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert max(three.values()) < 1.2 * min(three.values())


def test_long_documents_are_cut_evenly_and_sentinels_stay_below_100():
    text = " ".join(str(i) for i in range(10 * MOST_UNITS + 1))
    rendered = drawn(text, weights={"r": 0.0, "s": 0.0, "x": 1.0}, piece=MOST_UNITS)
    pieces = [len(filled(*exercise).split()) for exercise in exercises(rendered)]
    assert len(pieces) == 11 and max(pieces) - min(pieces) <= 1
    assert "<extra_id_80>" in rendered.text and "<extra_id_100>" not in rendered.text


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"r": 25, "s": 50, "x": 25}, (0.25, 0.5, 0.25)),
        ({"r": 2, "s": 1, "x": 4}, (2 / 7, 1 / 7, 4 / 7)),
        ({"r": 0, "s": 1, "x": 0}, (0, 1, 0)),
    ],
)
def test_kinds_are_drawn_by_weight_for_each_piece(weights, shares):
    rendered = drawn("a b c d e f " * 4000, weights=weights, piece=6)
    modes = Counter(mode for mode, _, _ in exercises(rendered))
    for kind, share in zip("rsx", shares, strict=True):
        assert modes[MODES[kind]] / 4000 == pytest.approx(share, abs=0.025)


def test_texts_that_cannot_be_filled_in_are_refused_with_a_reason():
    for text in ("", " \n", "word", " word\n"):
        with pytest.raises(BadRecordError, match="too_short_to_fill"):
            drawn(text)
    with pytest.raises(BadRecordError, match="sentinel_in_text"):
        drawn("T5 writes <extra_id_0> here")
