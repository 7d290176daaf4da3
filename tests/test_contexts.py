"""Contexts of a task: its definition, then as many of its examples as fit, each once a pass."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
from few_shot_corpora import Task, corpus_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.contexts import Contexts, Frame, compose, subset_of
from pipelines.corpus import Corpus

quick = settings(max_examples=150)
FRAMES = st.builds(Frame, st.integers(0, 1), st.integers(0, 1))


def composed(
    corpus: Corpus, frame: Frame, seq_len: int, *, seed: int = 0, usable: Any = None
) -> Contexts:
    keys = np.random.default_rng(seed).integers(0, 1 << 62, len(corpus.uid)).astype(np.uint64)
    chosen = np.arange(len(corpus.uid)) if usable is None else usable
    return compose(corpus, chosen, keys[chosen], frame=frame, seq_len=seq_len)


def members(contexts: Contexts) -> list[list[int]]:
    """The documents of each context."""
    return [part.tolist() for part in np.split(contexts.document, contexts.first[1:-1])]


def totals(contexts: Contexts) -> list[int]:
    return [int(part.sum()) for part in np.split(contexts.take, contexts.first[1:-1])]


SEQ_LEN = 64
LENGTHS = st.integers(1, 62)
TASKS = st.lists(
    st.builds(
        Task,
        st.none() | st.integers(1, 40),
        st.lists(st.integers(1, 20), max_size=3),
        st.lists(LENGTHS, min_size=1, max_size=20),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@quick
@given(tasks=TASKS, frame=FRAMES, seed=st.integers(0, 9))
def test_every_example_is_in_one_context_behind_what_stands_before_its_task(
    tasks: list[Task], frame: Frame, seed: int
) -> None:
    corpus = corpus_of(tasks, frame, random.Random(seed))
    contexts = composed(corpus, frame, SEQ_LEN, seed=seed)
    used: Counter[int] = Counter()
    for context in members(contexts):
        assert len(set(context)) == len(context), "nothing stands in a context twice"
        (_task,) = {int(corpus.group[i]) for i in context}
        headers = [int(corpus.header[i]) for i in context]
        examples = headers.count(0)
        assert examples
        assert headers == [*sorted(h for h in headers if h), *[0] * examples]
        used.update(i for i in context if corpus.header[i] == 0)
    assert used == Counter(i for i in range(len(corpus.uid)) if corpus.header[i] == 0)
    assert max(totals(contexts)) <= SEQ_LEN
    assert len(set(contexts.key)) == len(contexts.key) == len(contexts.first) - 1


@quick
@given(tasks=TASKS, frame=FRAMES, seed=st.integers(0, 9))
def test_bos_begins_a_context_and_eos_ends_it_and_texts_are_whole(
    tasks: list[Task], frame: Frame, seed: int
) -> None:
    corpus = corpus_of(tasks, frame, random.Random(seed))
    contexts = composed(corpus, frame, SEQ_LEN, seed=seed)
    begins, ends = set(contexts.first[:-1].tolist()), set((contexts.first[1:] - 1).tolist())
    for piece, document in enumerate(contexts.document.tolist()):
        begin, end = 0 if piece in begins else frame.bos, int(corpus.n_tokens[document])
        end -= 0 if piece in ends else frame.eos
        assert (contexts.begin[piece], contexts.begin[piece] + contexts.take[piece]) == (begin, end)


@quick
@given(tasks=TASKS, frame=FRAMES, seed=st.integers(0, 9))
def test_what_stands_before_the_examples_is_the_same_in_every_context_and_no_more_than_a_fourth(
    tasks: list[Task], frame: Frame, seed: int
) -> None:
    corpus = corpus_of(tasks, frame, random.Random(seed))
    room = SEQ_LEN - frame.bos - frame.eos
    inner = corpus.n_tokens - frame.bos - frame.eos
    for context in members(composed(corpus, frame, SEQ_LEN, seed=seed)):
        group = corpus.group[context[0]]
        own = [i for i in np.flatnonzero(corpus.group == group) if corpus.header[i]]
        ordered = sorted(own, key=lambda i: (corpus.header[i], i))
        fitting = [ordered[: n + 1] for n in range(len(ordered))]
        fitting = [some for some in fitting if inner[some].sum() <= room // 4]
        expected = fitting[-1] if fitting else []
        before = [i for i in context if corpus.header[i]]
        if before != expected:  # an example that fits only alone
            assert len(context) == 1
            assert inner[context[0]] + inner[expected].sum() > room


@quick
@given(tasks=TASKS, frame=FRAMES)
def test_how_many_there_are_and_how_full_does_not_depend_on_the_random_order(
    tasks: list[Task], frame: Frame
) -> None:
    found = []
    for seed in range(3):
        corpus = corpus_of(tasks, frame, random.Random(seed))
        contexts = composed(corpus, frame, SEQ_LEN, seed=seed)
        found.append((contexts.key, int(contexts.take.sum())))
    # Which examples show how it is done, where not all fit, goes by their order in the input.
    if all((t.definition or 0) + sum(t.shown) <= (SEQ_LEN - 2) // 4 for t in tasks):
        assert found[0] == found[1] == found[2]
    corpus = corpus_of(tasks, frame, random.Random(0))
    for seed in range(3):
        contexts = composed(corpus, frame, SEQ_LEN, seed=seed)
        assert (contexts.key, int(contexts.take.sum())) == found[0]


def test_where_a_task_has_many_examples_its_contexts_are_full_but_for_the_last() -> None:
    rng, frame = random.Random(1), Frame(1, 1)
    tasks = [
        Task(60, [80, 40], [rng.randint(10, 300) for _ in range(600)]),
        Task(None, [], [int(rng.lognormvariate(4, 1)) % 900 + 1 for _ in range(600)]),
    ]
    corpus = corpus_of(tasks, frame, rng)
    contexts = composed(corpus, frame, 2048)
    held = totals(contexts)
    for group in range(2):
        own = [n for n, context in zip(held, members(contexts), strict=True)
               if corpus.group[context[0]] == group]  # fmt: skip
        assert len(own) > 20
        assert all(n >= 0.99 * 2048 for n in sorted(own)[1:])


def test_other_keys_put_other_examples_together() -> None:
    rng, frame = random.Random(1), Frame(1, 1)
    corpus = corpus_of([Task(9, [], [rng.randint(5, 30) for _ in range(300)])], frame, rng)
    sets = [
        {frozenset(c) for c in members(composed(corpus, frame, 256, seed=seed))} for seed in (1, 2)
    ]
    assert len(sets[0] & sets[1]) <= 1


def test_the_examples_of_a_context_are_of_all_lengths() -> None:
    rng, frame = random.Random(1), Frame(1, 1)
    corpus = corpus_of([Task(None, [], [*[10] * 300, *[100] * 300])], frame, rng)
    found = members(composed(corpus, frame, 1024))
    mixed = [{int(corpus.n_tokens[i]) for i in context} == {12, 102} for context in found]
    assert sum(mixed) > 0.8 * len(mixed)


def test_documents_that_may_not_be_used_are_in_no_context() -> None:
    rng, frame = random.Random(1), Frame(1, 1)
    corpus = corpus_of([Task(9, [5], [7] * 30), Task(9, [5], [7] * 30)], frame, rng)
    usable = np.array([i for i in range(len(corpus.uid)) if i % 3 and corpus.group[i] == 0])
    contexts = composed(corpus, frame, 64, usable=usable)
    assert set(contexts.document.tolist()) <= set(usable.tolist())
    assert {i for i in usable.tolist() if not corpus.header[i]} <= set(contexts.document.tolist())


def test_a_task_without_examples_has_no_context() -> None:
    corpus = corpus_of([Task(9, [5], [])], Frame(1, 1), random.Random(1))
    contexts = composed(corpus, Frame(1, 1), 64)
    assert (contexts.key, contexts.first.tolist(), contexts.document.tolist()) == ([], [0], [])


@quick
@given(lengths=st.lists(st.integers(1, 12), max_size=8), total=st.integers(0, 60))
def test_a_subset_is_found_where_there_is_one(lengths: list[int], total: int) -> None:
    chosen = subset_of(np.array(lengths, np.int64), total)
    sums = {sum(c) for r in range(len(lengths) + 1) for c in combinations(lengths, r)}
    assert (chosen is None) == (total not in sums)
    if chosen is not None:
        assert sum(n for n, taken in zip(lengths, chosen.tolist(), strict=True) if taken) == total


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_a_subset_that_is_a_beginning_is_taken(lengths: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(lengths)))
    assume(sum(lengths[:n]))
    chosen = subset_of(np.array(lengths, np.int64), sum(lengths[:n]))
    assert chosen is not None
    assert chosen.tolist() == [i < n for i in range(len(lengths))]
