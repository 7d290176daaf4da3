"""The end of a partial pass: whole dialogues that add up to the quota, or the end of a text."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import Builder, prose, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import FaultsError
from pipelines.mixing import select_tokens
from pipelines.quota import whole_units

CHAT = {"weight": 1, "path": "chats.jsonl", "schema": "messages", "loss": "answers"}


def dialogues(n: int) -> list[dict[str, object]]:
    rng = random.Random(5)
    return [
        {
            "messages": [
                {"role": "user", "content": prose(rng, rng.randint(4, 40))},
                {"role": "assistant", "content": prose(rng, rng.randint(2, 30))},
            ]
        }
        for _ in range(n)
    ]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.data())
def test_what_is_taken_whole_holds_just_the_quota_and_keeps_what_came_first(lengths, data):
    weighed = np.array(lengths)
    order = np.array(data.draw(st.permutations(range(len(lengths)))))
    quota = data.draw(st.integers(1, int(weighed.sum())))
    selection = select_tokens(order, weighed, quota)
    found = whole_units(order, weighed, selection)
    if found is not None:
        assert weighed[found].sum() == quota
        assert len(set(found.tolist())) == len(found)
        places = [order.tolist().index(i) for i in found.tolist()]
        assert places == sorted(places)
    elif selection.of_last == weighed[selection.chosen[-1]]:
        raise AssertionError("the selection itself was a choice")


@pytest.mark.parametrize("policy", ["pack", "pad"])
def test_no_dialogue_is_cut_where_others_add_up_to_the_quota(builder: Builder, policy: str) -> None:
    write_jsonl(builder.folder / "chats.jsonl", dialogues(200))
    source = CHAT | {"chat": {"template": "llama2"}, "policy": policy}
    built = builder.build({"a": source}, tokens=3_001)
    (account,) = built.accounts
    assert (account.tokens_placed, account.tokens_cut) == (3_001, 0)
    for position in range(len(built.dataset)):
        for segment in built.dataset.sequence(position).segments:
            assert not segment["head_cut"]
            assert not segment["tail_cut"]


def test_a_dialogue_that_does_not_fit_into_a_sequence_is_dropped(builder: Builder) -> None:
    question = {"role": "user", "content": prose(random.Random(1), 400)}
    long = {"messages": [question, {"role": "assistant", "content": "Yes."}]}
    write_jsonl(builder.folder / "chats.jsonl", [long, *dialogues(60)])
    built = builder.build({"a": CHAT | {"chat": {"template": "llama2"}}}, tokens=1_000)
    assert built.accounts[0].documents_dropped == {"too_many_tokens": 1}


def test_a_task_that_is_not_there_cannot_be_held_out(builder: Builder) -> None:
    records = [{"inputs": f"q{i}", "targets": "a", "meta": {"task": "colours"}} for i in range(9)]
    write_jsonl(builder.folder / "p3.jsonl", records)
    source = {"weight": 1, "path": "p3.jsonl", "schema": "p3", "hold_out": ["colors", "col*"]}
    with pytest.raises(FaultsError, match=r"sources\.a\.hold_out: no task matches 'colors'"):
        builder.build({"a": source}, tokens=10)
