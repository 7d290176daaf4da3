"""What becomes of task files and prompts that are to share contexts: kept, dropped, held out."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from conftest import Built, prose, write_jsonl
from few_shot_corpora import (
    NI,
    P3,
    contexts,
    known,
    per_pass,
    prompts,
    sequences,
    task,
    uid,
    write_tasks,
)

T = 256


def dropped(built: Built) -> list[dict[str, Any]]:
    path = str(built.dataset.folder / "dropped.jsonl.zst")
    content = pa.input_stream(path, compression="zstd").read()
    return [json.loads(line) for line in content.splitlines()]


def test_tasks_are_held_out_by_pattern_and_listed(builder):
    write_tasks(builder, {f"{name}_x": task(i) for i, name in enumerate(("task1", "task12", "qa"))})
    built = builder.build({"ni": NI | {"hold_out": ["task1_*", "*a_?"]}}, tokens=900)
    (account,) = built.accounts
    assert account.documents_dropped == {"held_out_task": 162}
    assert (account.documents_kept, account.definitions) == (82, 1)
    evidence = Counter((r["file"], r["evidence"]) for r in dropped(built))
    assert evidence == {
        ("ni/qa_x.json", "qa_x is *a_?"): 81, ("ni/task1_x.json", "task1_x is task1_*"): 81
    }  # fmt: skip


def test_an_instance_that_is_a_shown_example_is_dropped(builder):
    content = json.loads(json.dumps(task(1)))
    shown = content["Positive Examples"][0]
    content["Instances"].insert(3, {"input": shown["input"], "output": [shown["output"]]})
    content["Instances"].append(content["Instances"][0])
    write_tasks(builder, {"task1": content})
    documents_of = known({"task1": content})
    built = builder.build({"ni": NI}, tokens=per_pass(builder, NI))
    assert built.accounts[0].documents_dropped == {"duplicate": 2}
    assert [r["line"] for r in dropped(built)] == [5, 83]
    for sequence in sequences(built):
        for context in contexts(sequence):
            headers = [documents_of[s["document"]][1] for s in context]
            assert headers[:3] == [1, 2, 0]
            assert headers.count(2) == 1


def test_the_same_sequences_come_from_any_cut_and_order_of_the_input(builder):
    records = prompts(2)
    write_jsonl(builder.folder / "p3.jsonl", records)
    one = builder.build({"p3": P3}, output="one", tokens=1_300)
    (builder.folder / "p3.jsonl").unlink()
    shuffled = random.Random(3).sample(records, len(records))
    for part in range(3):
        write_jsonl(builder.folder / f"p3-{part}.jsonl", shuffled[part * 30 : part * 30 + 30])
    many = builder.build({"p3": P3}, output="many", tokens=1_300)
    assert many.shard_bytes() == one.shard_bytes()


def test_definitions_of_records_are_said_once_a_task_however_the_input_is_cut(builder):
    records = [r | {"definition": f"About {r['task']}."} for r in prompts(2)]
    for part in range(3):
        write_jsonl(builder.folder / f"p3-{part}.jsonl", records[part * 30 : part * 30 + 30])
    size = per_pass(builder, P3)
    cut = builder.build({"p3": P3}, tokens=size)
    assert (cut.accounts[0].definitions, cut.accounts[0].documents_dropped) == (9, {"duplicate": 6})
    texts = {uid(f"{name}\0Definition: About {name}.\n\n") for name in ("qa_0", "qa_1", "qa_2")}
    for sequence in sequences(cut):
        for context in contexts(sequence):
            assert [s["document"] in texts for s in context] == [
                i == 0 for i in range(len(context))
            ]


def test_records_that_are_no_example_are_dropped_with_the_reason(builder):
    bad = [
        {"inputs": "Who?", "targets": " \n", "task": "qa_0"},
        {"inputs": "Who?", "targets": "I."},
        {"inputs": prose(random.Random(1), 400), "targets": "I.", "task": "qa_0"},
    ]
    write_jsonl(builder.folder / "p3.jsonl", [*prompts(1), *bad])
    built = builder.build({"p3": P3}, tokens=1_000)
    assert built.accounts[0].documents_dropped == {
        "missing_task": 1, "no_answer": 1, "too_many_tokens": 1
    }  # fmt: skip
    assert [(r["line"], r["evidence"]) for r in dropped(built)] == [
        (91, "' \\n'"), (92, "no task to share a context with"), (93, f"more than {T}")
    ]  # fmt: skip


@pytest.mark.parametrize("schema", ["natural_instructions", "p3"])
def test_a_definition_that_is_no_text_costs_no_build(builder, schema):
    if schema == "p3":
        records = [r | {"definition": "Half a \ud800 pair."} for r in prompts(1)]
        write_jsonl(builder.folder / "p3.jsonl", records)
    else:
        for i, definition in enumerate((["Half a \ud800 pair."], None, "", [], [" "], 5, {"a": 1})):
            write_tasks(builder, {f"task{i}": task(i) | {"Definition": definition}})
    built = builder.build({"a": P3 if schema == "p3" else NI}, tokens=1_000)
    assert built.accounts[0].definitions <= (3 if schema == "p3" else 1)


def test_a_definition_stands_in_a_context_once_where_duplicates_are_kept_too(builder):
    records = [r | {"definition": f"About {r['task']}."} for r in prompts(2)]
    for part in range(3):
        write_jsonl(builder.folder / f"p3-{part}.jsonl", records[part * 30 : part * 30 + 30])
    built = builder.build({"p3": P3}, tokens=1_000, duplicates="keep")
    texts = {uid(f"{name}\0Definition: About {name}.\n\n") for name in ("qa_0", "qa_1", "qa_2")}
    for sequence in sequences(built):
        for context in contexts(sequence):
            assert [s["document"] in texts for s in context].count(True) == 1
