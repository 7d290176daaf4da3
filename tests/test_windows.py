"""Dialogues longer than a sequence in windows: every answer once, in order, each window fits."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from conftest import Builder, prose, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_runs import assemble_source, document_runs, learned

from pipelines.conversations import Turn
from pipelines.prepare import Prepared, Preparer
from pipelines.readers import Block
from pipelines.records import RawRecord
from pipelines.tokenizer import Tokenizer, load_tokenizer
from pipelines.windows import exchanges, longest_runs

SEQ_LEN = 128
USER_END = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
TEMPLATES: dict[str, dict[str, Any]] = {
    "llama2": {"template": "llama2"},
    "longllama": {"template": "longllama"},
    "jinja": {"jinja": USER_END},
}


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 60))
def test_runs_are_those_of_taking_part_after_part(sizes, room):
    def fit(start: int, end: int) -> int | None:
        total = sum(sizes[start:end])
        return total if total <= room else None

    expected: list[tuple[int, int, int | None]] = []
    start = 0
    while start < len(sizes):
        end = start + 1
        while end < len(sizes) and fit(start, end + 1) is not None:
            end += 1
        expected.append((start, end, fit(start, end)))
        start = end
    assert list(longest_runs(len(sizes), fit)) == expected


@given(st.lists(st.sampled_from(["user", "assistant", "tool"]), min_size=1, max_size=20))
def test_exchanges_begin_with_questions_and_hold_all_turns(roles):
    found = exchanges([Turn(role, "x") for role in roles])
    assert [i for start, end in found for i in range(start, end)] == list(range(len(roles)))
    for start, end in found:
        assert start == 0 or roles[start] == "user" != roles[start - 1]
        after = roles[start:end]
        asked = [i for i, role in enumerate(after) if role == "user"]
        assert asked in ([], list(range(after.count("user")))) or start == 0


@pytest.fixture(scope="module")
def preparers(tmp_path_factory, tokenizer_model):
    made: dict[str, tuple[Any, Tokenizer, Preparer]] = {}
    for name, chat in TEMPLATES.items():
        folder = tmp_path_factory.mktemp("chat")
        write_jsonl(folder / "a.jsonl", [{}])
        source = {"path": "a.jsonl", "schema": "messages", "chat": chat | {"too_long": "windows"}}
        job = assemble_source(source, root=folder, work=folder, vocabulary=str(tokenizer_model),
                              seq_len=SEQ_LEN)  # fmt: skip
        tokenizer = load_tokenizer(job.tokenizer)
        made[name] = job, tokenizer, Preparer(job.sources[0].spec, tokenizer)
    return made


def prepare(made: tuple[Any, Tokenizer, Preparer], records: list[Any]) -> Prepared:
    job, _, preparer = made
    rows = [RawRecord(record, line, -1) for line, record in enumerate(records)]
    return preparer.prepare(Block(0, 0, 0, rows, []), job.sources[0].inputs)


def dialogue(lengths: list[tuple[int, int]], *, seed: int, system: bool) -> dict[str, Any]:
    rng = random.Random(seed)
    turns = [{"role": "system", "content": "Be brief."}] if system else []
    for number, (asked, said) in enumerate(lengths):
        turns.append({"role": "user", "content": f"Q{number} {prose(rng, asked)}".strip()})
        turns.append({"role": "assistant", "content": f"A{number} {prose(rng, said)}".strip()})
    return {"messages": turns}


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=14),
    system=st.booleans(),
)
def test_every_answer_is_learned_once_and_in_order_or_counted(name, lengths, system, preparers):
    made = preparers[name]
    _, tokenizer, _ = made
    record = dialogue(lengths, seed=len(lengths), system=system)
    prepared = prepare(made, [record])
    assert 1 + prepared.n_windows == len(prepared.documents) + len(prepared.dropped)
    assert len(set(prepared.uids)) == len(prepared.uids)
    answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
    places: list[int] = []
    for number, document in enumerate(prepared.documents):
        runs = document_runs(prepared, number, tokenizer)
        for text in learned(runs):
            (place,) = re.findall(r"^ ?A(\d+)", text)
            assert text.strip().startswith(answers[int(place)].strip())
            places.append(int(place))
        assert prepared.offsets[number + 1] - prepared.offsets[number] <= SEQ_LEN
        assert ("Be brief." in document.text) == system, "the system prompt stands in each window"
        first = document.text.index("Q") if "Q" in document.text else -1
        assert first >= 0 and first < document.text.index("A" + document.text[first + 1])
    assert places == sorted(set(places)), "in order, none twice"
    assert {d.reason for d in prepared.dropped} <= {"too_many_tokens"}
    assert len(answers) - len(places) == len(prepared.dropped)
    again = prepare(made, [record])
    assert again.uids == prepared.uids
    assert again.tokens.tolist() == prepared.tokens.tolist()


def test_windows_fill_a_build_whose_account_closes(builder: Builder) -> None:
    rng = random.Random(3)
    rows = [
        dialogue([(rng.randint(1, 30), rng.randint(1, 30)) for _ in range(12)], seed=i, system=True)
        for i in range(20)
    ]
    rows[3]["messages"][2]["content"] = prose(rng, 500)  # one exchange that fits nowhere
    write_jsonl(builder.folder / "a.jsonl", [*rows, rows[0]])
    source = {"weight": 1, "path": "a.jsonl", "schema": "messages", "loss": "answers",
              "chat": {"template": "llama2", "too_long": "windows"}}  # fmt: skip
    built = builder.build({"a": source}, tokens=6_000)
    (account,) = built.accounts
    assert account.documents_read == 21
    assert account.documents_windowed > 40
    assert account.documents_dropped["too_many_tokens"] == 1
    assert account.documents_dropped["duplicate"] > 1, "those of a dialogue that stood before"
    assert account.documents_read + account.documents_windowed == account.documents_kept + sum(
        account.documents_dropped.values()
    )
    dropped = builder.build(
        {"a": source | {"chat": {"template": "llama2"}}}, tokens=100, output="none", seq_len=1024
    )
    assert dropped.accounts[0].documents_windowed == 0


def test_a_call_of_a_function_and_its_result_stay_together(preparers) -> None:
    turns = [
        Turn("user", "a"), Turn("assistant", "call"), Turn("tool", "result"),
        Turn("assistant", "b"), Turn("user", "c"), Turn("user", "d"), Turn("assistant", "e"),
    ]  # fmt: skip
    assert exchanges(turns) == [(0, 4), (4, 7)]


def test_context_without_loss_goes_with_the_answer_behind_it(preparers) -> None:
    silent = {"role": "assistant", "content": "not learned", "weight": 0}
    long = prose(random.Random(2), 60)
    turns = [{"role": "user", "content": "one"}, silent, {"role": "user", "content": "two"},
             {"role": "assistant", "content": "yes"}, {"role": "user", "content": long},
             silent]  # fmt: skip
    rest = [{"role": "user", "content": "three"}, {"role": "assistant", "content": "no"}]
    prepared = prepare(preparers["llama2"], [{"messages": [*turns, *rest]}])
    texts = [document.text for document in prepared.documents]
    assert len(texts) == 2
    assert "one" in texts[0] and "not learned" in texts[0] and "yes" in texts[0]
    assert "no" in texts[1]
