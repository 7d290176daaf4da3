"""Where a unit may begin so that its answers stay whole, against all beginnings tried in turn."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
from few_shot_corpora import Task, corpus_of
from hypothesis import given
from hypothesis import strategies as st
from test_units import mixture_of

from pipelines.contexts import Frame
from pipelines.prompt_cuts import beginnings, from_token, loss_mask, room_before_answers
from pipelines.units import units_of

MASKS = st.lists(st.booleans(), min_size=1, max_size=40).map(lambda bits: np.array(bits, np.bool_))


def keeps_answers_whole(mask: np.ndarray, begin: int) -> bool:
    """Whether each answer (a run of loss) is all there or all gone, and one is there."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    whole = all(end <= begin or begin < start for start, end in runs)
    return whole and any(begin < start for start, _ in runs)


@given(MASKS)
def test_beginnings_are_all_that_keep_answers_whole(mask):
    expected = [b for b in range(len(mask)) if keeps_answers_whole(mask, b)]
    assert beginnings(mask).tolist() == expected


@given(MASKS)
def test_any_number_up_to_the_room_can_be_lost_before_the_first_answer(mask):
    room = room_before_answers(mask)
    first = int(mask.argmax()) if mask.any() else 0
    assert room == max(first - 1, 0)
    for begin in range(1, room + 1):
        assert keeps_answers_whole(mask, begin)
        assert mask[begin:].sum() == mask.sum()


@given(
    st.lists(st.integers(4, 9), max_size=2), st.lists(st.integers(4, 40), min_size=1, max_size=9),
    st.integers(0, 1), st.data(),
)  # fmt: skip
def test_a_context_without_its_first_tokens_has_the_others_in_their_places(
    shown, examples, bos, data
):
    frame = Frame(bos, 1)
    corpus = corpus_of([Task(5, shown, examples)], frame, random.Random(0))
    units = units_of("a", mixture_of(frame, by="tokens"), corpus, pass_=0)
    unit = data.draw(st.integers(0, len(units.key) - 1))
    whole = units.take_units(np.array([unit]))

    def tokens(of):
        pieces = zip(of.document.tolist(), of.begin.tolist(), of.take.tolist(), strict=True)
        return [(d, b + i) for d, b, n in pieces for i in range(n)]

    mask = loss_mask(units, unit, corpus)
    assert len(mask) == len(tokens(whole))
    begin = data.draw(st.integers(0, len(mask) - 1))
    cut = from_token(units, unit, begin)
    assert tokens(cut) == tokens(whole)[begin:]
    assert loss_mask(cut, 0, corpus).tolist() == mask[begin:].tolist()
    assert cut.first.tolist() == [0, len(cut.take)]
    assert cut.weighed.tolist() == cut.take.tolist()
    assert cut.n_tokens.tolist() == whole.n_tokens.tolist()
    spans = corpus.no_loss
    for document, (first, last) in enumerate(pairwise(spans.first.tolist())):
        silent = {t for s in range(first, last) for t in range(spans.start[s], spans.end[s])}
        here = [m for (d, t), m in zip(tokens(whole), mask.tolist(), strict=True) if d == document]
        there = [t not in silent for d, t in tokens(whole) if d == document]
        assert here == there
