"""What the last context of a partial pass holds: exactly the tokens that are still wanted."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pytest
from few_shot_corpora import Task, corpus_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contexts import Frame
from pipelines.corpus import Corpus
from pipelines.mixture import Mixture
from pipelines.units import Units, last_unit, units_of

By = Literal["tokens", "loss_tokens"]
SEQ_LEN = 128
TASK = st.builds(
    Task,
    st.none() | st.integers(2, 12),
    st.lists(st.integers(4, 9), max_size=2),
    st.lists(st.integers(4, 40), min_size=1, max_size=9),
)
quick = settings(max_examples=100)


def mixture_of(frame: Frame, *, by: By, policy: str = "few_shot", loss: str = "answers") -> Mixture:
    values: dict[str, Any] = {
        "name": "test", "tokens": 1, "seq_len": SEQ_LEN, "weight_by": by,
        "tokenizer": {"path": "-", "bos": bool(frame.bos), "eos": bool(frame.eos)},
        "sources": {"a": {"weight": 1, "path": "-", "policy": policy, "loss": loss,
                          "schema": "natural_instructions"}},
    }  # fmt: skip
    return Mixture.model_validate(values)


def weighed(units: Units, corpus: Corpus, by: By) -> list[int]:
    """Tokens of each piece that count, by the spans of its document."""
    if by == "tokens":
        return units.take.tolist()
    spans, found = corpus.no_loss, []
    for document, begin, take in zip(units.document, units.begin, units.take, strict=True):
        of = range(spans.first[document], spans.first[document + 1])
        silent = {t for s in of for t in range(spans.start[s], spans.end[s])}
        found.append(sum(t not in silent for t in range(begin, begin + take)))
    return found


def is_whole(units: Units, corpus: Corpus, frame: Frame) -> bool:
    """Whether every piece is all of its text, framed as a context is."""
    last = len(units.document) - 1
    return all(
        begin == (0 if i == 0 else frame.bos)
        and begin + take == corpus.n_tokens[document] - (0 if i == last else frame.eos)
        for i, (document, begin, take) in enumerate(
            zip(units.document, units.begin, units.take, strict=True)
        )
    )


def reachable(whole: Units, corpus: Corpus, frame: Frame, by: By) -> set[int]:
    """What contexts of whole examples hold, behind all that stands before them or without it."""
    inner = {}
    for document, n in zip(whole.document.tolist(), weighed(whole, corpus, by), strict=True):
        tokens = int(corpus.n_tokens[document]) - frame.bos - frame.eos
        inner[document] = tokens if by == "tokens" else n
    around = frame.bos + frame.eos if by == "tokens" else 0
    headers = sum(n for d, n in inner.items() if corpus.header[d])
    examples = [n for d, n in inner.items() if not corpus.header[d]]
    sums = {sum(c) for r in range(1, len(examples) + 1) for c in combinations(examples, r)}
    return {s + around for s in sums} | {s + headers + around for s in sums}


@pytest.mark.parametrize("by", ["tokens", "loss_tokens"])
@quick
@given(task=TASK, bos=st.integers(0, 1), eos=st.integers(0, 1), data=st.data())
def test_a_context_is_cut_to_exactly_what_is_wanted_and_at_examples_where_that_is_possible(
    by: By, task: Task, bos: int, eos: int, data: st.DataObject
) -> None:
    frame = Frame(bos, eos)
    corpus = corpus_of([task], frame, random.Random(0))
    mixture = mixture_of(frame, by=by)
    units = units_of("a", mixture, corpus, pass_=0)
    unit = data.draw(st.integers(0, len(units.key) - 1))
    whole = units.take_units(np.array([unit]))
    assert whole.weighed.tolist() == weighed(whole, corpus, by)
    wanted = data.draw(st.integers(1, int(whole.weighed.sum())))
    chosen, cut = last_unit("a", units, np.array([unit]), wanted, corpus, mixture)
    assert chosen == unit
    assert cut.weighed.tolist() == weighed(cut, corpus, by)
    assert int(cut.weighed.sum()) == wanted
    assert cut.key == whole.key
    assert cut.first.tolist() == [0, len(cut.document)]
    assert set(cut.document.tolist()) <= set(whole.document.tolist())
    assert len(set(cut.document.tolist())) == len(cut.document)
    assert int(cut.take.min()) > 0
    assert int(cut.take.sum()) <= int(whole.take.sum())
    headers = [int(corpus.header[i]) for i in cut.document.tolist()]
    assert headers == [*sorted(h for h in headers if h), *[0] * headers.count(0)]
    if wanted in reachable(whole, corpus, frame, by):
        assert is_whole(cut, corpus, frame)
        assert cut.n_tokens.tolist() == [int(cut.take.sum())], "what is left out is left over"
    else:  # all but the last piece
        assert cut.document.tolist() == whole.document.tolist()[: len(cut.document)]
        assert cut.take.tolist()[:-1] == whole.take.tolist()[: len(cut.document) - 1]
        assert cut.begin.tolist() == whole.begin.tolist()[: len(cut.document)]
        assert cut.n_tokens.tolist() == whole.n_tokens.tolist(), "what is cut off is cut"


@pytest.mark.parametrize("by", ["tokens", "loss_tokens"])
@quick
@given(task=TASK, data=st.data())
def test_a_document_loses_its_end(by: By, task: Task, data: st.DataObject) -> None:
    frame = Frame(1, 1)
    corpus = corpus_of([task], frame, random.Random(0))
    mixture = mixture_of(frame, by=by, policy="pack")
    units = units_of("a", mixture, corpus, pass_=0)
    unit = data.draw(st.sampled_from(np.flatnonzero(units.weighed).tolist() or [None]))
    if unit is None:
        return
    wanted = data.draw(st.integers(1, int(units.weighed[unit])))
    chosen, cut = last_unit("a", units, np.array([unit]), wanted, corpus, mixture)
    assert chosen == unit
    assert weighed(cut, corpus, by) == [wanted] == cut.weighed.tolist()
    assert (cut.document.tolist(), cut.begin.tolist()) == ([units.document[unit]], [0])


def test_the_first_context_with_examples_that_hold_what_is_wanted_is_the_last_one_used() -> None:
    frame = Frame(1, 1)
    tasks = [Task(None, [], [20] * 6), Task(None, [], [21] * 5), Task(None, [], [33] * 3)]
    corpus = corpus_of(tasks, frame, random.Random(0))
    mixture = mixture_of(frame, by="tokens")
    units = units_of("a", mixture, corpus, pass_=0)
    sizes = units.n_tokens.tolist()
    assert sorted(sizes) == [101, 107, 122]
    order = np.argsort(-units.n_tokens)
    for wanted, size in ((42, 122), (44, 107), (68, 101), (107, 107)):
        chosen, cut = last_unit("a", units, order, wanted, corpus, mixture)
        assert sizes[chosen] == size
        assert int(cut.take.sum()) == wanted
        assert is_whole(cut, corpus, frame)
    chosen, cut = last_unit("a", units, order, 43, corpus, mixture)
    assert (chosen, int(cut.take.sum())) == (int(order[0]), 43)


def test_loss_on_all_weighs_every_token_whatever_the_mixture_weighs_by() -> None:
    frame = Frame(1, 1)
    corpus = corpus_of([Task(9, [5], [20] * 9)], frame, random.Random(0))
    units = units_of("a", mixture_of(frame, by="loss_tokens", loss="all"), corpus, pass_=0)
    assert units.weighed.tolist() == units.take.tolist()


def test_units_can_be_taken_and_joined_without_mixing_their_pieces() -> None:
    frame = Frame(1, 1)
    corpus = corpus_of([Task(9, [5], [20] * 9), Task(None, [], [30] * 9)], frame, random.Random(0))
    units = units_of("a", mixture_of(frame, by="tokens"), corpus, pass_=0)
    n = len(units.key)
    assert n > 3
    one, other = units.take_units(np.array([2, 0])), units.take_units(np.array([1]))
    both = one.followed_by(other)
    assert both.key == [units.key[i] for i in (2, 0, 1)]
    for place, unit in enumerate((2, 0, 1)):
        here, there = slice(*both.first[place : place + 2]), slice(*units.first[unit : unit + 2])
        for name in ("document", "begin", "take", "weighed"):
            assert getattr(both, name)[here].tolist() == getattr(units, name)[there].tolist()
    assert both.sum(both.take).tolist() == both.n_tokens.tolist()


def test_each_pass_groups_the_examples_anew() -> None:
    frame = Frame(1, 1)
    corpus = corpus_of([Task(9, [5], list(range(10, 40)) * 3)], frame, random.Random(0))
    mixture = mixture_of(frame, by="tokens")
    found = []
    for pass_ in range(2):
        units = units_of("a", mixture, corpus, pass_=pass_)
        pieces = np.split(units.document, units.first[1:-1])
        found.append({frozenset(part.tolist()) for part in pieces})
    assert len(found[0] & found[1]) <= 1
    assert len(found[0]) == len(found[1])
