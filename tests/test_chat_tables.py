"""Conversations in tables: every object has every field, and what is null is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Never

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.chat_schemas import conversation_reader
from pipelines.conversations import Conversation, Turn
from pipelines.mixture import Source
from pipelines.readers import read_blocks
from pipelines.records import Dropped
from pipelines.rendering import BadRecordError
from pipelines.schemas import document_parser, schema_of
from pipelines.sources import list_source, plan_splits
from pipelines.templates.choice import Renderer

SOURCE = {"weight": 1, "schema": "messages", "chat": {"template": "llama2"}}


def conversations(folder: Path, table: pa.Table) -> list[Conversation | Dropped]:
    """What a table's rows become, read from Parquet as a build does it."""
    pq.write_table(table, folder / "a.parquet")
    source = Source.model_validate(SOURCE | {"path": str(folder / "a.parquet")})
    found: list[Conversation | Dropped] = []
    read = conversation_reader("messages")

    def render(record: Any) -> Never:
        found.append(read(record))
        raise BadRecordError("seen")

    parse = document_parser(
        schema_of(source), answers_only=False, renderer=Renderer(frozenset(), render, is_chat=True)
    )
    inputs = list_source("a", source, data_root=None)
    for split in plan_splits("a", source, inputs.files):
        for block in read_blocks(split, max_record=1 << 20, skip=lambda _: False):
            for record in block.records:
                dropped = parse(record)
                assert isinstance(dropped, Dropped)
                if dropped.reason != "seen":
                    found.append(dropped)
    return found


CALLS = [
    {"role": "user", "content": "Rain in Rome, and six times seven?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "function": {"name": "rain", "arguments": {"city": "Rome"}}},
        {"id": "2", "function": {"name": "times", "arguments": {"a": 6, "b": 7}}}]},
    {"role": "tool", "content": "no", "tool_call_id": "1"},
    {"role": "assistant", "content": "No, and 42.", "reasoning_content": "6 · 7"},
]  # fmt: skip


def test_nulls_of_structs_are_no_fields_whatever_other_records_have(tmp_path):
    plain = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    table = pa.table({"messages": pa.array([CALLS, plain]), "images": pa.nulls(2, pa.string())})
    struct = table.schema.field("messages").type.value_type
    assert {"tool_calls", "tool_call_id", "reasoning_content"} <= {f.name for f in struct.fields}
    first, second = conversations(tmp_path, table)
    assert first == conversation_reader("messages")({"messages": CALLS})
    assert second == Conversation(None, (Turn("user", "q"), Turn("assistant", "a")))
    assert isinstance(first, Conversation)
    calls = first.turns[1].fields["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == [{"city": "Rome"}, {"a": 6, "b": 7}]


def test_messages_that_a_column_holds_as_json_are_read_and_their_nulls_stay(tmp_path):
    call = {"function": {"name": "f", "arguments": {"x": None}}}
    turns = [CALLS[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    tools = [{"name": "f", "parameters": {"default": None}}]
    table = pa.table({"messages": [json.dumps(turns)], "tools": [json.dumps(tools)]})
    (found,) = conversations(tmp_path, table)
    assert isinstance(found, Conversation)
    assert found.turns[1].fields == {"tool_calls": [call]}
    assert found.tools == tuple(tools)


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("images", [[{"bytes": b"\x00\xff", "path": None}]], "has_images"),
        ("label", [0], "label_is_false"),
        ("loss_mask", [[0]], "no_answer"),
        ("train_it", [False], "unknown_loss_field"),
        ("context", ["c"], "unread_field"),
    ],
)
def test_columns_beside_the_messages_are_judged_as_fields_are(tmp_path, column, values, reason):
    table = pa.table({"messages": [CALLS[:1] + CALLS[3:]], column: pa.array(values)})
    (found,) = conversations(tmp_path, table)
    assert isinstance(found, Dropped)
    assert found.reason == reason
