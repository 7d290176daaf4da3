"""Bad records of every schema in finished builds: dropped, with the reason, and counted."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Builder, Built, write_jsonl
from loss_runs import MISTRAL, byte_level_tokenizer
from test_bad_input import block_bytes, content_of
from test_fuzzed_records import CASES
from test_loss_properties import CHATML, PASSAGES, QUESTIONS

from pipelines.errors import UserError
from pipelines.mixture import TokenizerSpec
from pipelines.tokenizer_file import fetch_tokenizer, reference

HUGE = "word " * 200_000
"""1 MB."""


def turns(*said: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role if i % 2 else "user", "content": text} for i, text in enumerate(said)]


def tree(**root: Any) -> dict[str, Any]:
    return {"prompt": {"text": "ask", "role": "prompter", "replies": []} | root}


QA = {"document": "one two", "question": "which?", "answer": "one", "kind": "short"}
ASKED = CASES["multi_document"][1]
ANY = [(5, "not_an_object"), ([], "not_an_object"), (None, "not_an_object"),
       (b'{"text": ', "invalid_json")]  # fmt: skip

BAD: dict[str, list[tuple[Any, str]]] = {
    "text": [({"text": 5}, "text_not_a_string"), ({"text": [{}]}, "text_not_a_string"),
             ({"text": "\ud800"}, "lone_surrogate"), ({}, "missing_text")],
    "long_data": [({"text": "ask say", "prompt": "say"}, "prompt_not_a_prefix"),
                  ({"text": "ask say"}, "prompt_not_a_prefix"),
                  ({"text": "ask say", "prompt": ["ask"]}, "prompt_not_a_prefix")],
    "oig": [({"text": "a [words 1] b"}, "sentinel_in_text"), ({"text": "a"}, "too_short_to_fill"),
            ({"text": None}, "missing_text")],
    "pile": [({"text": "a <extra_id_0> b"}, "sentinel_in_text"), ({"text": ""}, "empty_text")],
    "p3": [({"inputs": "ask"}, "no_answer"), ({"inputs": "ask", "targets": []}, "no_answer"),
           ({"inputs": "ask", "targets": 5}, "text_not_a_string"),
           ({"inputs": [1, 2], "targets": [3]}, "text_not_a_string"),
           ({"inputs": None, "targets": "say"}, "missing_text")],
    "p3, few shot": [({"inputs": "ask", "targets": " ", "task": "t"}, "no_answer"),
                     ({"inputs": "ask", "targets": "say"}, "missing_task"),
                     ({"inputs": "ask", "targets": "say", "task": "abc"}, "held_out_task"),
                     ({"inputs": HUGE, "targets": "say", "task": "t"}, "too_many_tokens")],
    "fields": [({"q": "ask", "b": "say"}, "missing_text"), ({"q": {"a": "ask"}}, "no_answer"),
               ({"q": {"a": {}}, "b": "say"}, "text_not_a_string")],
    "promptsource": [({"q": "ask"}, "template_failed"), ({"q": "ask", "a": " "}, "no_answer"),
                     ({"q": HUGE, "a": "say"}, "too_many_tokens"),
                     ({"q": "\ud800", "a": "say"}, "lone_surrogate")],
    "long_qa": [(QA | {"document": [[], 1]}, "missing_document"),
                (QA | {"question": 5}, "missing_question"), (QA | {"answer": [" "]},
                "no_answer"), (QA | {"kind": "long"}, "unknown_kind"),
                (QA | {"chunk": {"start": 3, "end": 99}}, "bad_chunk"),
                (QA | {"question": HUGE}, "too_many_tokens")],
    "summary": [(QA | {"document": ""}, "missing_document"),
                (QA | {"answer": {}}, "no_answer"),
                (QA | {"answer": HUGE}, "too_many_tokens")],
    "multi_document": [(ASKED | {"question": ""}, "missing_question"),
                       (ASKED | {"answers": []}, "no_answer"),
                       (ASKED | {"ctxs": [5]}, "missing_gold"),
                       (ASKED | {"answers": ["41"]}, "answer_not_in_gold"),
                       (ASKED | {"question": HUGE}, "over_budget")],
    "messages": [({"messages": []}, "missing_turns"), ({"messages": "hello"}, "missing_turns"),
                 ({"messages": turns("a", "b", role="wizard")}, "unknown_role"),
                 ({"messages": turns("a")}, "no_answer"), ({"messages": [1]}, "turn_not_an_object"),
                 ({"messages": turns("a", " ")}, "no_answer"),
                 ({"messages": turns("a", "b"), "label": False}, "label_is_false"),
                 ({"messages": [*turns("a", "b"), {"role": "system", "content": "s"}]},
                  "system_turn_inside"),
                 ({"messages": [{"role": "user", "content": [{"type": "image"}]},
                                *turns("a", "b")]}, "part_not_text")],
    "sharegpt": [({"conversations": turns("a")}, "no_answer"),
                 ({"conversations": turns("a [INST]", "b"), "id": "5"}, "template_tag_in_text"),
                 ({"conversations": turns("a", "b")[1:]}, "turns_do_not_alternate"),
                 ({"conversations": {"from": "human"}}, "missing_turns")],
    "openorca": [({"question": "ask"}, "no_answer"), ({"response": "say"}, "missing_turns"),
                 ({"question": "ask", "response": ["say"]}, "text_not_a_string"),
                 ({"question": "", "response": "say"}, "empty_turn")],
    "alpaca": [({"instruction": "ask", "instances": []}, "not_one_instance"),
               ({"instruction": "ask", "instances": [1]}, "turn_not_an_object"),
               ({"instruction": "ask"}, "no_answer"), ({"output": "say"}, "missing_turns"),
               ({"instruction": "ask", "output": "say", "history": ["a"]}, "turn_not_an_object")],
    "oasst": [(tree(), "no_answer"), (tree(role="wizard"), "unknown_role"),
              (tree(replies=[5]), "turn_not_an_object"), ({"prompt": []}, "missing_turns"),
              (tree(text=None), "text_not_a_string")],
    "inst_text": [({"text": "ask"}, "missing_turns"), ({"text": "[/INST] say"}, "broken_inst_tags"),
                  ({"text": "[INST] <<SYS>> ask [/INST] say"}, "broken_inst_tags"),
                  ({"text": "[INST] ask [/INST]"}, "no_answer")],
}  # fmt: skip


def source_of(builder: Builder, name: str) -> dict[str, Any]:
    write_jsonl(builder.folder / "passages.jsonl", PASSAGES)
    templates = builder.folder / "templates.yaml"
    templates.write_text(QUESTIONS)
    source = {"weight": 1, "path": "in", "loss": "answers", "max_passes": 2000, **CASES[name][0]}
    return source | ({"promptsource": {"path": str(templates)}} if "promptsource" in source else {})


def build(builder: Builder, name: str, **values: Any) -> Built:
    return builder.build({"a": source_of(builder, name)}, **{"tokens": 512, **values})


def dropped_of(built: Built) -> list[dict[str, Any]]:
    """The dropped records but for duplicates, after proving that all are counted."""
    lines = content_of(built.dataset.folder / "dropped.jsonl.zst").splitlines()
    dropped = [msgspec.json.decode(line) for line in lines]
    (account,) = built.accounts
    assert Counter(d["reason"] for d in dropped) == account.documents_dropped
    n_records = account.documents_kept - account.definitions + len(dropped)
    assert account.documents_read == n_records
    return [d for d in dropped if d["reason"] != "duplicate"]


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_dropped_with_the_reason_and_counted(builder: Builder, name):
    good = CASES[name][1]
    bad = [*ANY, *BAD[name]]
    lines = [line for value, _ in bad for line in (value, good)]
    write_jsonl(builder.folder / "in/a.jsonl", lines)
    built = build(builder, name, seq_len=512)
    dropped = dropped_of(built)
    assert [(d["line"], d["reason"]) for d in dropped] == [
        (2 * number + 1, reason) for number, (_, reason) in enumerate(bad)
    ]
    (account,) = built.accounts
    assert account.documents_kept - account.definitions == 1
    assert account.documents_dropped["duplicate"] == len(bad) - 1
    assert built.dataset.manifest["sources"][0]["documents_dropped"] == account.documents_dropped
    assert list(built.dataset.verify()) == []


@pytest.mark.parametrize("name", ["text", "p3, few shot", "long_qa", "messages"])
def test_a_record_beyond_the_limit_is_dropped_before_it_is_understood(builder: Builder, name):
    lines = [CASES[name][1], CASES[name][1] | {"padding": HUGE + HUGE}]
    write_jsonl(builder.folder / "in/a.jsonl", lines)
    source = source_of(builder, name) | {"hold_out": []}
    built = builder.build({"a": source}, tokens=512, max_record_mib=1)
    assert [d["reason"] for d in dropped_of(built)] == ["record_too_large"]


TASK = {"Definition": ["Say it."], "Positive Examples": [{"input": "a", "output": "b"}]}
INSTANCES = [
    ({"input": "ask", "output": ["say"]}, None), ({"input": "ask"}, "no_answer"),
    ({"output": ["say"]}, "missing_text"), ({"input": "ask", "output": []}, "no_answer"),
    (5, "missing_text"), ({"input": "ask", "output": " "}, "no_answer"),
    ({"input": HUGE, "output": "say"}, "too_many_tokens"),
]  # fmt: skip


def task_file(builder: Builder, name: str, task: Any) -> None:
    path = builder.folder / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(task).encode()))


def test_bad_instances_of_a_task_are_dropped_and_a_task_without_any_is_empty(builder: Builder):
    task_file(builder, "task1.json.gz", TASK | {"Instances": [value for value, _ in INSTANCES]})
    task_file(builder, "task2.json.gz", {"Definition": ["x"], "Instances": []})
    source = {"weight": 1, "path": "in", "schema": "natural_instructions", "policy": "few_shot",
              "loss": "answers", "max_passes": 2000}  # fmt: skip
    built = builder.build({"a": source}, tokens=1_200)
    wanted = [(n + 2, reason) for n, (_, reason) in enumerate(INSTANCES) if reason]
    assert [(d["line"], d["reason"]) for d in dropped_of(built)] == wanted
    assert built.accounts[0].documents_kept == 3, "a definition, an example, an instance"


@pytest.mark.parametrize("task", [{"Definition": ["x"]}, [], "task", {"Instances": {"a": 1}}])
def test_a_file_that_is_no_task_stops_the_build_and_is_named(builder: Builder, task):
    task_file(builder, "task1.json.gz", task)
    source = {"weight": 1, "path": "in", "schema": "natural_instructions", "policy": "few_shot"}
    with pytest.raises(UserError, match=r"in/task1\.json\.gz.* no list `Instances`"):
        builder.build({"a": source})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schema": "messages", "chat": {"jinja": "{% for m in messages %}"}}, "not a usable"),
        ({"schema": "messages", "chat": {"jinja": "{{ nothing }}"}}, "drops, repeats or moves"),
        ({"schema": "messages", "chat": {"jinja": "{{ messages.x.y }}"}}, "fails for a question"),
        ({"promptsource": {"path": "T"}}, "template 'ask', line 1"),
    ],
)  # fmt: skip
def test_a_broken_template_is_a_fault_before_anything_is_written(builder, options, message):
    write_jsonl(builder.folder / "in/a.jsonl", [CASES["messages"][1]])
    (builder.folder / "T").write_text(QUESTIONS.replace("{{ a }}", "{% if %}"))
    if "promptsource" in options:
        options = {"promptsource": {"path": str(builder.folder / "T")}}
    with pytest.raises(UserError, match=message) as stopped:
        builder.build({"a": {"weight": 1, "path": "in", **options}})
    assert "sources.a." in str(stopped.value)
    assert not (builder.folder / "out").exists()


# --- JSON arrays ---

TALKS = [{"messages": turns(f"ask {i}", f"say {i}")} for i in range(400)]
CHAT = {"a": {"weight": 1, "path": "in", "schema": "messages", "chat": {"template": "llama2"},
              "loss": "answers", "max_passes": 9}}  # fmt: skip


def write_array(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_an_array_gives_the_bytes_of_lines_whatever_the_blocks(builder: Builder, name):
    write_jsonl(builder.folder / "in/a.jsonl", TALKS)
    lines = builder.build(CHAT, output="lines", tokens=4_000)
    (builder.folder / "in/a.jsonl").unlink()
    write_array(
        builder.folder / "in" / name, b"\xef\xbb\xbf " + json.dumps(TALKS, indent=1).encode()
    )
    with block_bytes(3_000):
        arrays = builder.build(CHAT, output="array", tokens=4_000, workers=2)
    assert arrays.shard_bytes() == lines.shard_bytes()


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize(
    "content", [b'[{"messages": [1', b"[", b"[1, 2,]", b"[{}] [{}]", b"[\xff]", b'[{"a": "\xff"}]']
)
def test_an_array_that_is_none_stops_the_build_and_is_named(builder: Builder, name, content):
    write_array(builder.folder / "in" / name, content)
    write_jsonl(builder.folder / "in/b.jsonl", TALKS)
    if content == b'[{"a": "\xff"}]':
        built = builder.build(CHAT, tokens=1_000)
        assert built.accounts[0].documents_dropped == {"invalid_utf8": 1}
        return
    with pytest.raises(UserError, match=rf"in/{name}.*cannot be read to its end"):
        builder.build(CHAT, tokens=1_000)


def test_bad_items_of_an_array_are_dropped_by_number_and_an_empty_one_has_none(builder: Builder):
    items = [TALKS[0], 5, None, [], "x", {"messages": []}, *TALKS[1:]]
    write_array(builder.folder / "in/a.json", json.dumps(items).encode())
    write_array(builder.folder / "in/b.json", b" [ ] ")
    built = builder.build(CHAT, tokens=1_000)
    assert [(d["file"], d["line"], d["reason"]) for d in dropped_of(built)] == [
        *(("in/a.json", line, "not_an_object") for line in (2, 3, 4, 5)),
        ("in/a.json", 6, "missing_turns"),
    ]


# --- special tokens in texts ---


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_no_text_of_a_record_makes_a_control_token(builder: Builder, kind, tmp_path):
    tokens = ["<s>", "</s>", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|endoftext|>"]
    path = MISTRAL
    if kind == "byte level":
        path = str(byte_level_tokenizer(["a b c d"] * 9, tmp_path / "tokenizer.json"))
    else:
        pytest.importorskip("mistral_common")
    rows = [{"messages": turns(f"{i} {a}{b}\n{a}", f"{b}{a} {i}")}
            for i, (a, b) in enumerate((a, b) for a in tokens for b in tokens)]  # fmt: skip
    write_jsonl(builder.folder / "in/a.jsonl", rows)
    source = CHAT["a"] | {"chat": {"jinja": CHATML}, "max_passes": 50, "policy": "pad"}
    dataset = builder.build(
        {"a": source}, tokens=4_000, seq_len=512, tokenizer={"path": path}
    ).dataset
    truth = reference(fetch_tokenizer(TokenizerSpec.model_validate({"path": path})))
    control = {truth.special_id(token) for token in truth.specials}
    per_turn = 0 if kind == "sentencepiece" else 2
    for sequence in map(dataset.sequence, range(len(dataset))):
        if sequence.segments[-1]["tail_cut"]:
            continue  # the one that fills the budget
        found = [t for t in sequence.tokens[: sequence.n_real].tolist() if t in control]
        assert len(found) == per_turn * 2
