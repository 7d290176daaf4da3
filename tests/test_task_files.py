"""Instruction data: task files of Natural Instructions, and P3 as it is published."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import Builder, prose

from pipelines.errors import FaultsError, InputFault
from pipelines.mixture import Source
from pipelines.readers import read_blocks
from pipelines.records import Document, Dropped, RawRecord
from pipelines.rendering import Rendered
from pipelines.schemas import document_parser, schema_of
from pipelines.sources import list_source, plan_splits

V2 = {
    "Definition": ["Answer the question."],
    "Positive Examples": [{"input": "Example?", "output": "Yes.", "explanation": "It is one."}],
    "Negative Examples": [{"input": "Bad?", "output": "No.", "explanation": "It is not."}],
    "Instances": [
        {"id": "task1-0a", "input": "Is it?", "output": ["It is.", "Yes."]},
        {"id": "task1-0b", "input": "Was it?", "output": "It was."},
    ],
}
V1 = {
    "Title": "Asking", "Definition": "Ask.", "Things to Avoid": "-",
    "Examples": {"Positive Examples": V2["Positive Examples"], "Negative Examples": []},
    "Instances": [{"input": "Is it?", "output": ["It is."]}],
}  # fmt: skip


def documents_of(folder: Path, **source: Any) -> list[Document | Dropped]:
    """What a source's records become."""
    described = Source.model_validate(
        {"weight": 1, "path": "ni", "schema": "natural_instructions"} | source
    )
    inputs = list_source("ni", described, data_root=str(folder)).files
    parse = document_parser(
        schema_of(described),
        answers_only=described.loss == "answers",
        few_shot=described.policy == "few_shot",
    )
    return [
        parse(record)
        for split in plan_splits("ni", described, inputs)
        for block in read_blocks(split, max_record=1 << 20, skip=lambda _: False)
        for record in block.records
    ]


def write_task(path: Path, task: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(task, indent=1).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["task1_asking.json", "task1_asking.json.gz"])
def test_a_task_file_is_its_instances_and_positive_examples(tmp_path, name):
    write_task(tmp_path / "ni" / name, V2)
    assert documents_of(tmp_path) == [
        Document(Rendered(text), "task1_asking", row, -1, 0, "task1_asking")
        for row, text in enumerate(["Example?\nYes.", "Is it?\nIt is.", "Was it?\nIt was."])
    ]


def test_a_context_knows_the_definition_the_examples_that_show_it_and_their_answers(tmp_path):
    write_task(tmp_path / "ni/task1.json", V2)
    shown, first, second = documents_of(tmp_path, policy="few_shot")
    assert [d.content.text for d in (shown, first, second)] == [
        "Input: Example?\nOutput: Yes.\n\n",
        "Input: Is it?\nOutput: It is.\n\n",
        "Input: Was it?\nOutput: It was.\n\n",
    ]
    for document, answer in ((shown, " Yes."), (first, " It is."), (second, " It was.")):
        ((start, end),) = document.content.answers
        assert document.text[start:end] == answer
    assert [d.header for d in (shown, first, second)] == [2, 0, 0]
    assert {d.definition for d in (shown, first, second)} == {"Answer the question."}


def test_version_1_keeps_its_examples_elsewhere(tmp_path):
    write_task(tmp_path / "ni/subtask1.json", V1)
    texts = [d.text for d in documents_of(tmp_path) if isinstance(d, Document)]
    assert texts == ["Example?\nYes.", "Is it?\nIt is."]


def test_the_completion_of_joined_fields_is_the_last(tmp_path):
    write_task(tmp_path / "ni/task1.json", V2)
    first = documents_of(tmp_path, loss="answers")[1]
    assert isinstance(first, Document)
    ((start, end),) = first.content.answers
    assert (first.text[start:end], end) == ("It is.", len(first.text))


@pytest.mark.parametrize("instance", [{"input": "x"}, {"input": "x", "output": []}, "text", None])
def test_an_instance_without_input_or_output_is_dropped_with_a_reason(tmp_path, instance):
    write_task(tmp_path / "ni/task1.json", V2 | {"Instances": [instance]})
    example, dropped = documents_of(tmp_path)
    assert isinstance(dropped, Dropped)
    assert dropped.reason in ("missing_text", "text_not_a_string")
    assert isinstance(example, Document)


@pytest.mark.parametrize("task", [[], {"Definition": "x"}, {"Instances": {}}, "text"])
def test_a_file_that_is_no_task_stops_the_build(tmp_path, task):
    write_task(tmp_path / "ni/task1.json", task)
    with pytest.raises(InputFault, match=r"task1\.json: .*it has no list `Instances`"):
        documents_of(tmp_path)


def test_a_build_of_tasks_counts_every_instance(builder: Builder):
    rng = random.Random(1)
    for number in range(3):
        instances = [{"input": prose(rng, 30), "output": [prose(rng, 5)]} for _ in range(20)]
        write_task(builder.folder / f"ni/task{number}.json", V2 | {"Instances": instances})
    built = builder.build(
        {"ni": {"weight": 1, "path": "ni", "schema": "natural_instructions"}}, tokens=2_000
    )
    (account,) = built.accounts
    assert (account.documents_read, account.documents_kept) == (63, 61)
    assert account.documents_dropped == {"duplicate": 2}


def test_a_broken_task_file_is_named(builder: Builder):
    write_task(builder.folder / "ni/task1.json", V2)
    (builder.folder / "ni/task2.json").write_text('{"Instances": [')
    with pytest.raises(FaultsError, match=r"ni/task2\.json: cannot be read to its end"):
        builder.build({"ni": {"weight": 1, "path": "ni", "schema": "natural_instructions"}})


def parse(record: dict[str, Any], **source: Any) -> Document | Dropped:
    described = Source.model_validate({"weight": 1, "path": "-", **source})
    parser = document_parser(schema_of(described), answers_only=described.loss == "answers")
    return parser(RawRecord(json.dumps(record).encode(), 0, 0))


@pytest.mark.parametrize(
    "record",
    [
        {"inputs": "Who?", "targets": "I.", "meta": {"task": "qa_who"}},
        {"inputs": "Who?", "targets": "I.", "meta": '{"task": "qa_who"}'},
        {"inputs": "Who?", "targets": ["I.", "Me."], "task": "qa_who"},
        {"inputs": [1, 2], "targets": [3], "inputs_pretokenized": "Who?",
         "targets_pretokenized": "I.", "task": "qa_who"},
    ],
)  # fmt: skip
def test_p3_records_are_inputs_and_targets_with_their_task(record):
    text = Rendered("Who?\nI.")
    assert parse(record, schema="p3") == Document(text, "qa_who", 0, 0, 0, "qa_who")
    completion = parse(record, schema="p3", loss="answers")
    assert isinstance(completion, Document)
    assert completion.content == Rendered("Who?\nI.", ((5, 7),))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"inputs": "Who?"}, "missing_text"),
        ({"inputs": [1, 2], "targets": [3]}, "text_not_a_string"),
        ({"inputs_pretokenized": "Who?", "targets": "I."}, "missing_text"),
    ],
)
def test_p3_records_without_a_text_are_dropped(record, reason):
    dropped = parse(record, schema="p3")
    assert isinstance(dropped, Dropped)
    assert dropped.reason == reason


def test_fields_of_ones_own_are_joined_too():
    fields = {"text": ["system", "question", "answer"]}
    record = {"system": "Be kind.", "question": "Who?", "answer": "I."}
    document = parse(record, fields=fields, loss="answers")
    assert isinstance(document, Document)
    assert document.content == Rendered("Be kind.\nWho?\nI.", ((14, 16),))


def test_real_task_files_lose_no_instance(shared_data: Path, tmp_path: Path):
    (tmp_path / "ni").symlink_to(shared_data / "ni/v1")
    parsed = documents_of(tmp_path)
    assert len(parsed) > 100_000
    assert all(isinstance(d, Document) and d.group for d in parsed)
