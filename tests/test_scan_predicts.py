"""A scan says of every document what a build does with it."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa
import pytest
from conftest import Builder, write_index, write_jsonl
from test_decontam_build import preparer

from decontam import scan
from pipelines.errors import UserError
from pipelines.prepare import Preparer
from pipelines.readers import Block
from pipelines.records import InputFile, RawRecord

QUESTION = (
    "Which marsupial glides between eucalyptus trees after dusk searching for nectar and sap?"
)
FILLER = " ".join(f"plain{i} word{i}" for i in range(60))
QUOTE = f"{FILLER} {QUESTION} {FILLER}"
ANSWER = "A glider does that, as far as anybody knows."
CHAT = {"chat": {"template": "llama2"}}


def turns(question: str, role: str, text: str, names: tuple[str, str]) -> list[dict[str, str]]:
    return [{role: names[0], text: question}, {role: names[1], text: ANSWER}]


def dolly(text: str) -> dict[str, Any]:
    return {"q": text, "a": ANSWER, "task": "quiz"}


SOURCES: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    # A record with a text, the source of a mixture, and what scan is told.
    "text": (lambda t: {"text": t}, {}, []),
    "pile": (lambda t: {"text": t}, {"schema": "pile"}, ["--schema", "pile"]),
    "two fields": (dolly, {"fields": {"text": ["q", "a"]}}, ["--fields", "q,a"]),
    "two fields and a task": (
        dolly,
        {"fields": {"text": ["q", "a"]}, "group": "task"},
        ["--fields", "q,a", "--group", "task"],
    ),
    "the file as a task": (lambda t: {"text": t}, {"group": "file"}, ["--group", "file"]),
    "p3": (
        lambda t: {"inputs": t, "targets": ANSWER},
        {"schema": "p3"},
        ["--schema", "p3"],
    ),
    "natural instructions": (
        lambda t: {"input": t, "output": ANSWER, "task": "quiz"},
        {"schema": "natural_instructions"},
        ["--schema", "natural_instructions"],
    ),
    "messages": (
        lambda t: {"messages": turns(t, "role", "content", ("user", "assistant"))},
        {"schema": "messages"} | CHAT,
        ["--schema", "messages"],
    ),
    "sharegpt": (
        lambda t: {"conversations": turns(t, "from", "value", ("human", "gpt"))},
        {"schema": "sharegpt"} | CHAT,
        ["--schema", "sharegpt"],
    ),
    "openorca": (
        lambda t: {"question": t, "response": ANSWER},
        {"schema": "openorca"} | CHAT,
        ["--schema", "openorca"],
    ),
    "alpaca": (
        lambda t: {"instruction": t, "output": ANSWER},
        {"schema": "alpaca"} | CHAT,
        ["--schema", "alpaca"],
    ),
}
OPTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "as given": ({}, []),
    "drop": ({"policy": "drop"}, ["--policy", "drop"]),
    "excise": (
        {"policy": "excise", "margin_words": 3},
        ["--policy", "excise", "--margin-words", "3"],
    ),
    "threshold": (
        {"policy": "threshold", "threshold": 0.3},
        ["--policy", "threshold", "--threshold", "0.3"],
    ),
}


def built(builder: Builder, worker: Preparer, records: list[Any]) -> Any:
    """Decisions by (line, place) as the prepare stage of a build makes them, and its counts."""
    raw = [RawRecord(json.dumps(record).encode(), i, 9 * i) for i, record in enumerate(records)]
    file = InputFile(str(builder.folder / "quiz.jsonl"), "quiz.jsonl", 1, "1:1")
    prepared = worker.prepare(Block(0, len(raw), 1, raw, []), (file,))
    rows = prepared.overlaps or []
    return {(row["line"] + 1, row["instance"], row["part"], row["decision"]) for row in rows}, (
        prepared.decontam
    )


@pytest.mark.parametrize("name", SOURCES)
def test_the_verdict_of_a_scan_is_that_of_a_build(builder, capsys, name):
    make, source, arguments = SOURCES[name]
    index = write_index(builder.folder / "exam.index", [QUESTION])
    records = [make(text) for text in (FILLER, QUOTE, QUESTION, " ", f"{FILLER} {QUOTE}")]
    corpus = write_jsonl(builder.folder / "quiz.jsonl", records)
    if name == "natural instructions":  # whose files are one object each
        corpus = builder.folder / "quiz.json"
        corpus.write_text(json.dumps({"Instances": records}))
    for option, (decontam, more) in OPTIONS.items():
        command = ["--index", str(index), str(corpus), *arguments, *more, "--workers", "1"]
        folder = builder.folder / option
        try:
            worker = preparer(builder, index, **source, decontam=decontam)
        except UserError as refused:
            assert "cannot be cut" in str(refused)
            assert scan.main(command) == 2
            assert "--policy excise: dialogues, questions, contexts and" in capsys.readouterr().err
            continue
        expected, counts = built(builder, worker, records)
        assert scan.main([*command, "--report", str(folder)]) == 0
        found = pa.ipc.open_file(folder / "overlaps.arrow").read_all().to_pylist()
        assert expected
        assert {(r["line"], r["instance"], r["part"], r["decision"]) for r in found} == expected
        shown = capsys.readouterr().out
        (line,) = re.findall(r"^(?:quiz\S*(?: \(no group\))?|all sources) +(\d.*)$", shown, re.M)
        documents, overlapping, _, dropped, cut, _, _ = line.split()
        assert (int(documents), int(overlapping), int(dropped), int(cut)) == (
            counts["documents"], counts["touched"], counts["dropped"], counts["cut"]
        )  # fmt: skip


def test_of_tasks_a_scan_says_that_a_build_looks_for_whole_ones_too(builder, capsys):
    index = write_index(builder.folder / "exam.index", [QUESTION])
    corpus = write_jsonl(builder.folder / "a.jsonl", [{"inputs": QUOTE, "targets": ANSWER}])
    command = ["--index", str(index), str(corpus), "--workers", "1"]
    assert scan.main([*command, "--schema", "p3"]) == 0
    shown = capsys.readouterr().out
    assert "by a build with `policy: drop`" in shown
    assert "a build also drops whole tasks" in shown
    assert scan.main([*command, "--fields", "inputs,targets"]) == 0
    shown = capsys.readouterr().out
    assert "by a build with `policy: excise`" in shown
    assert "whole tasks" not in shown
