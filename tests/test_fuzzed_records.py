"""Whatever JSON a record is: it becomes documents, or it is dropped with a reason."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_runs import assemble_source
from test_loss_properties import CHATML, PASSAGES, QUESTIONS

from pipelines.errors import InputFault
from pipelines.job import SourceJob
from pipelines.prepare import Prepared, Preparer
from pipelines.readers import Block, read_blocks
from pipelines.records import RawRecord
from pipelines.store import write_batch
from pipelines.tokenizer import load_tokenizer

TALK = {"id": "7", "system": "be brief", "lang": "en", "label": True, "tools": "[]",
        "messages": [{"role": "user", "content": "ask"},
                     {"role": "assistant", "content": [{"type": "text", "text": "say"}],
                      "weight": 1}]}  # fmt: skip
SHARED = {"id": "7", "conversations": [{"from": "human", "value": "ask"}],
          "chosen": {"from": "gpt", "value": "say"}}  # fmt: skip
TREE = {"message_tree_id": "t", "prompt": {
    "text": "ask", "role": "prompter", "lang": "en", "replies": [
        {"text": "say", "role": "assistant", "rank": 0, "review_result": True, "deleted": False,
         "replies": []}]}}  # fmt: skip
QA = {"document": ["one", {"speaker": "A", "content": "two"}], "question": "which?",
      "answer": {"text": ["one"]}, "kind": "short", "chunk": {"start": 0, "end": 3}}  # fmt: skip
ASKED = {"question": "which?", "answers": ["42"], "nq_annotated_gold": {"chunked_long_answer": "x"},
         "ctxs": [{"title": "gold", "text": "it is 42", "isgold": True}]}  # fmt: skip
P3 = {"inputs": "ask", "targets": "say", "meta": {"task": "t"}, "definition": ["do"]}
INSTANCES = {"instruction": "ask", "input": "", "history": [["a", "b"]], "system": "s",
             "instances": [{"input": "x", "output": "say"}]}  # fmt: skip

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"loss": "all"}, {"text": "words", "id": "7"}),
    "redpajama": ({"schema": "redpajama", "loss": "all"}, {"text": "words", "meta": {"url": "u"}}),
    "long_data": ({"schema": "long_data", "loss": "answers"},
                  {"text": "ask say", "prompt": "ask", "meta": {"source": "s"}}),
    "oig": ({"schema": "oig", "fill_in": {}, "loss": "all"},
            {"text": "words to fill in", "metadata": {"source": "s"}}),
    "pile": ({"schema": "pile", "fill_in": {"form": "ul2", "unit": "tokens"}, "loss": "all"},
             {"text": "words to fill in", "meta": {"pile_set_name": "s"}}),
    "c4": ({"schema": "c4", "loss": "all"}, {"text": "words", "warc_headers": {"url": "u"}}),
    "p3": ({"schema": "p3"}, P3),
    "p3, few shot": ({"schema": "p3", "policy": "few_shot", "hold_out": ["a*"]}, P3),
    "fields": ({"fields": {"text": ["q.a", "b"], "origin": ["o"]}, "group": ["g"]},
               {"q": {"a": "ask"}, "b": ["say"], "o": 1, "g": "g"}),
    "promptsource": ({"promptsource": {"path": "templates.yaml"}, "policy": "few_shot"},
                     {"q": "ask", "a": "say"}),
    "long_qa": ({"long_qa": {}}, QA),
    "summary": ({"summary": {"text": "document", "summary": "answer"}}, QA),
    "multi_document": ({"multi_document": {"passages": {"path": "passages.jsonl"},
                                           "documents": [2, 4]}}, ASKED),
    "messages": ({"schema": "messages", "chat": {"jinja": CHATML, "filters": {
        "languages": "^en", "forbidden": ["x+"], "first_turn_below": 99}}}, TALK),
    "sharegpt": ({"schema": "sharegpt", "chat": {"template": "llama2"}}, SHARED),
    "openorca": ({"schema": "openorca", "chat": {"template": "longllama_instruct"}},
                 {"system_prompt": "s", "question": "ask", "response": "say"}),
    "alpaca": ({"schema": "alpaca", "chat": {"template": "longllama"}}, INSTANCES),
    "oasst": ({"schema": "oasst", "chat": {"template": "llama2"}}, TREE),
    "inst_text": ({"schema": "inst_text", "chat": {"template": "llama2"}},
                  {"text": "<s>[INST] <<SYS>>s<</SYS>> ask [/INST] say", "meta": {"source": "s"}}),
}  # fmt: skip

JUNK = st.recursive(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 2**70, 0.5, float("nan"), float("inf"), "", " ", "x", "\0",
         "\ud800 alone", "[INST]", "<extra_id_0>", "[words 1]", "{{ q }}", "|||", "ask", "system"]
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["text", "role", "from", "value", "content", "start", "end", "string",
                         "type", "replies", "\ud800"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a value."""
    if not isinstance(value, dict | list):
        return []
    names = value if isinstance(value, dict) else range(len(value))
    inside = [(*here, name) for name in names]
    return [p for path in inside for p in (path, *places(at(value, path[len(here) :]), path))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


@st.composite
def spoilt(draw: st.DrawFn, good: dict[str, Any]) -> Any:
    """A good record in which a few things are gone or something else."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JUNK)
    record = deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        found = places(record)
        if not found:
            return record
        path = draw(st.sampled_from(found))
        parent = at(record, path[:-1])
        if draw(st.booleans()):
            parent[path[-1]] = draw(JUNK)
        else:
            del parent[path[-1]]
    return record


def as_bytes(value: Any) -> Any:
    """The record as tables give it: strings as bytes, some of which are no UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if isinstance(value, dict):
        return {k: as_bytes(v) for k, v in value.items()}
    return list(map(as_bytes, value)) if isinstance(value, list) else value


@pytest.fixture(scope="module")
def prepared_by(
    tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[SourceJob, Preparer]]:
    @cache
    def make(name: str) -> tuple[SourceJob, Preparer]:
        folder = tmp_path_factory.mktemp("case")
        write_jsonl(folder / "a.jsonl", [{}])
        write_jsonl(folder / "passages.jsonl", PASSAGES)
        (folder / "templates.yaml").write_text(QUESTIONS)
        source = {"path": "a.jsonl", **CASES[name][0]}
        if "promptsource" in source:
            source["promptsource"] = {"path": str(folder / "templates.yaml")}
        job = assemble_source(
            source, root=folder, work=folder, vocabulary=str(tokenizer_model), seq_len=512
        )
        return job.sources[0], Preparer(job.sources[0].spec, load_tokenizer(job.tokenizer))

    return make


def check(prepared: Prepared, n_records: int, folder: Path) -> None:
    """Every record is accounted for, and everything can be stored."""
    kept = len(prepared.documents) - prepared.n_definitions
    assert kept + len(prepared.dropped) == n_records
    assert all(re.fullmatch("[a-z][a-z_0-9]+", d.reason) for d in prepared.dropped)
    write_batch(str(folder / "batch"), prepared, Block(0, n_records, 0, [], []))


@pytest.mark.parametrize("name", CASES)
def test_a_good_record_is_kept(name, prepared_by):
    job, preparer = prepared_by(name)
    for value in (CASES[name][1], json.dumps(CASES[name][1]).encode(), as_bytes(CASES[name][1])):
        prepared = preparer.prepare(Block(0, 1, 0, [RawRecord(value, 0, 0)], []), job.inputs)
        assert prepared.dropped == []


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40)
@given(data=st.data())
def test_any_record_becomes_a_document_or_is_dropped_with_a_reason(
    name, prepared_by, data, tmp_path_factory
):
    job, preparer = prepared_by(name)
    values = data.draw(st.lists(spoilt(CASES[name][1]), min_size=1, max_size=4))
    rows: list[RawRecord] = []
    for line, value in enumerate(values):
        table = isinstance(value, dict) and data.draw(st.booleans())
        rows.append(RawRecord(as_bytes(value) if table else json.dumps(value).encode(), line, 0))
    prepared = preparer.prepare(Block(0, len(rows), 0, rows, []), job.inputs)
    check(prepared, len(rows), tmp_path_factory.getbasetemp())


SURROGATES: dict[str, tuple[str, dict[str, Any]]] = {
    "a definition": ("p3, few shot", P3 | {"definition": "do \ud800"}),
    "the name of a task": ("p3, few shot", P3 | {"meta": {"task": "\ud800"}}),
    "an unknown role": ("messages", {"messages": [{"role": "\ud800", "content": "a"}]}),
    "a language": ("messages", TALK | {"lang": "\ud800"}),
    "a text that is filtered": ("messages", {"messages": [
        {"role": "user", "content": "xx \ud800 xx"}, {"role": "assistant", "content": "a"}]}),
    "the name of a side": ("oasst", {"prompt": {"role": "\ud800", "text": "a", "replies": []}}),
    "a kind": ("long_qa", QA | {"kind": "\ud800"}),
    "an answer": ("multi_document", ASKED | {"answers": ["\ud800"]}),
    "a field that nobody looks at": ("multi_document", ASKED | {"id": "\ud800"}),
}  # fmt: skip


@pytest.mark.parametrize("where", SURROGATES)
def test_a_lone_surrogate_anywhere_costs_one_record_at_most(where, prepared_by, tmp_path):
    name, record = SURROGATES[where]
    job, preparer = prepared_by(name)
    lines = [json.dumps(value).encode() for value in (record, CASES[name][1] | {"id": "8"})]
    rows = [RawRecord(line, number, 0) for number, line in enumerate(lines)]
    prepared = preparer.prepare(Block(0, 2, 0, rows, []), job.inputs)
    check(prepared, 2, tmp_path)
    assert [d.line for d in prepared.dropped] in ([], [0])


def test_dates_of_tables_are_no_harm(prepared_by):
    columns = {"when": pa.array([1, 2], pa.timestamp("ns")), "q": ["ask", "ask again"],
               "a": ["say", "say"]}  # fmt: skip
    job, preparer = prepared_by("promptsource")
    rows = [RawRecord(row, n, -1) for n, row in enumerate(pa.table(columns).to_pylist())]
    prepared = preparer.prepare(Block(0, 0, 0, rows, []), job.inputs)
    assert [d.text for d in prepared.documents] == ["ask?\nsay\n\n", "ask again?\nsay\n\n"]


TASK = {"Definition": ["do"], "Positive Examples": [{"input": "a", "output": "b"}],
        "Instances": [{"id": "i", "input": "ask", "output": ["say"]}]}  # fmt: skip


@pytest.mark.parametrize("policy", ["few_shot", "pack"])
@settings(max_examples=40)
@given(task=spoilt(TASK))
def test_any_task_file_becomes_documents_or_stops_the_build(
    policy, task, tokenizer_model, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("task")
    (folder / "task1.json.gz").write_bytes(gzip.compress(json.dumps(task).encode()))
    source = {"path": "task1.json.gz", "schema": "natural_instructions", "policy": policy}
    job = assemble_source(source, root=folder, work=folder, vocabulary=str(tokenizer_model))
    preparer = Preparer(job.sources[0].spec, load_tokenizer(job.tokenizer))
    split = job.sources[0].splits[0]
    try:
        (block,) = list(read_blocks(split, max_record=1 << 20, skip=lambda _: False)) or [None]
    except InputFault as fault:
        assert str(fault).startswith("task1.json.gz: cannot be read to its end: not a task")
        return
    if block:
        check(preparer.prepare(block, split.files), len(block.records), folder)
