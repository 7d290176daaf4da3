"""What records say about which answers are learned is understood, or the record is dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.chat_schemas import conversation_reader
from pipelines.learn_marks import LIKED_MARKS, NO_MARKS, YES_MARKS
from pipelines.record_fields import speaks_of_loss
from pipelines.records import RawRecord
from pipelines.rendering import BadRecordError
from pipelines.schemas import SCHEMAS, Schema, document_parser

YES = (True, 1, 1.0, "true", "True", "1")
NO = (False, 0, 0.0, "false", "False", "0")


def talk(*answers: dict[str, Any]) -> list[dict[str, Any]]:
    """Two and two is asked once for each answer; the fields go to the answers."""
    asked = {"role": "user", "content": "Two and two?"}
    return [
        turn
        for more in answers
        for turn in (asked, {"role": "assistant", "content": "Four.", **more})
    ]


def learned(record: dict[str, Any], schema: str = "messages") -> list[bool] | str:
    """Which answers of a record are learned, or why it is dropped."""
    try:
        found = conversation_reader(schema)(record)
    except BadRecordError as bad:
        return bad.reason
    return [turn.loss for turn in found.turns if turn.role == "assistant"]


@pytest.mark.parametrize("value", [*YES, *NO])
@pytest.mark.parametrize("name", [*YES_MARKS, *NO_MARKS, *LIKED_MARKS])
def test_a_mark_of_a_turn_is_understood_in_every_form(name, value):
    expected = (value in YES) != (name in NO_MARKS)
    assert learned({"messages": talk({name: value}, {})}) == [expected, True]


@pytest.mark.parametrize("name", [*YES_MARKS, *NO_MARKS, *LIKED_MARKS])
def test_a_mark_of_a_record_that_says_no_drops_it(name):
    record = {"messages": talk({}), name: name in NO_MARKS}
    assert learned(record) == ("label_is_false" if name in LIKED_MARKS else "not_to_learn")
    assert learned(record | {name: name not in NO_MARKS}) == [True]
    assert learned(record | {name: None}) == [True]


SYSTEM = [{"role": "system", "content": "s"}]
SPREAD = [
    ("an answer each", talk({}, {}), [0, 1], [False, True]),
    ("a turn each", talk({}, {}), [0, 0, 0, 1], [False, True]),
    ("a turn each, the system prompt too", SYSTEM + talk({}, {}), [1, 1, 1, 1, 0], [True, False]),
    ("a turn each but the system prompt", SYSTEM + talk({}, {}), [1, 1, 1, 0], [True, False]),
    ("an answer each, behind a system prompt", SYSTEM + talk({}, {}), [1, 0], [True, False]),
    ("turns behind the last answer count", [*talk({}, {}), talk({})[0]], [0, 0, 0, 1, 0],
     [False, True]),
    ("as texts", talk({}, {}), ["false", "true"], [False, True]),
    ("none is left", talk({}, {}), [0, 0], "no_answer"),
    ("too few", talk({}, {}), [1], "unknown_loss_mark"),
    ("of tokens", talk({}, {}), [0] * 9 + [1], "unknown_loss_mark"),
    ("no flags", talk({}, {}), [0, 2], "unknown_loss_mark"),
    ("a null among them", talk({}, {}), [0, None], "unknown_loss_mark"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "mask", "expected"), [c[1:] for c in SPREAD],
                         ids=[c[0] for c in SPREAD])  # fmt: skip
def test_a_list_of_marks_has_one_for_each_turn_or_for_each_answer(messages, mask, expected):
    assert learned({"messages": messages, "loss_mask": mask}) == expected


UNKNOWN = [
    ({"messages": talk({"weight": 0.5})}, "unknown_weight"),
    ({"messages": talk({"weight": 2})}, "unknown_weight"),
    ({"messages": talk({"loss_weight": -1})}, "unknown_weight"),
    ({"messages": talk({"weight": float("nan")})}, "unknown_weight"),
    ({"messages": talk({}), "weight": 0.3}, "unknown_weight"),
    ({"messages": talk({"train": "perhaps"})}, "unknown_loss_mark"),
    ({"messages": talk({"loss_mask": [0, 1, 1]})}, "unknown_loss_mark"),
    ({"messages": talk({}), "label": -1}, "unknown_loss_mark"),
    ({"messages": talk({}), "label": 255}, "unknown_loss_mark"),
    ({"messages": talk({}), "label": "positive"}, "unknown_loss_mark"),
    ({"messages": talk({}), "loss": 2.31}, "unknown_loss_mark"),
    ({"messages": talk({}), "mask": "assistant"}, "unknown_loss_mark"),
    ({"messages": [{"role": "user", "content": "q", "train": True}, *talk({})[1:]]},
     "unknown_loss_mark"),
    ({"messages": [{"role": "system", "content": "s", "weight": 1}, *talk({})]}, "unknown_weight"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason"), UNKNOWN)
def test_a_mark_that_is_neither_yes_nor_no_drops_the_record(record, reason):
    assert learned(record) == reason


def test_a_question_may_say_that_it_is_not_learned_and_the_masked_side_may_be_named():
    asked, answered = talk({})
    for mark in ({"train": False}, {"masked": True}, {"masked": False}, {"weight": 0}):
        assert learned({"messages": [asked | mark, answered]}) == [True]
    assert learned({"messages": talk({}), "mask": "User"}) == [True]


def test_one_no_is_enough_where_several_marks_speak():
    assert learned({"messages": talk({"train": True, "weight": 0}, {})}) == [False, True]
    assert learned({"messages": talk({}, {"train": True}), "loss_mask": [1, 0]}) == [True, False]


SPEAKING = ["train_on_turn", "no_loss", "loss_scale", "is_trained", "trainable", "learn",
            "lossMask", "train_detail", "isTrain", "sample_weight", "assistant_masks",
            "LOSS", "requires_grad", "backprop"]  # fmt: skip
SILENT = ["constraint", "glossary", "learning_goal", "label", "taskmaster", "weigh", "restrained"]


@pytest.mark.parametrize("name", SPEAKING)
def test_a_field_that_speaks_of_loss_and_is_not_known_drops_the_record(name):
    assert speaks_of_loss(name)
    assert learned({"messages": talk({name: False})}) == "unknown_loss_field"
    assert learned({"messages": talk({}), name: 1}) == "unknown_loss_field"
    assert learned({"messages": talk({name: None}), name: None}) == [True]
    read = conversation_reader("messages", ignored=[name])
    assert read({"messages": talk({name: False}), name: 1}).turns[-1].loss


@pytest.mark.parametrize("value", [False, 0, "false", "False", "0", b"false"])
def test_an_answer_that_is_called_wrong_is_dropped_however_that_is_written(value):
    parse = document_parser(SCHEMAS["p3"], answers_only=True)
    for wrong in (value, not value):
        record = {"inputs": "q", "targets": "a", "is_correct": wrong}
        found = parse(RawRecord(record, 0, -1))
        expected = "label_is_false" if wrong in (value, False) else None
        assert getattr(found, "reason", None) == expected


@pytest.mark.parametrize(("label", "reason"), [
    (False, "label_is_false"), (True, None), (0, None), ("bad", None), (None, None),
])  # fmt: skip
def test_a_disliked_answer_of_two_texts_is_dropped_and_a_class_is_none_of_our_business(
    label, reason
):
    schema = Schema(text=("prompt", "completion"))
    line = json.dumps({"prompt": "q", "completion": "a", "label": label}).encode()
    for record in (line, json.loads(line)):
        found = document_parser(schema, answers_only=True)(RawRecord(record, 0, -1))
        assert getattr(found, "reason", None) == reason
        found = document_parser(schema, answers_only=False)(RawRecord(record, 0, -1))
        assert getattr(found, "reason", None) is None


@pytest.mark.parametrize("name", SILENT)
def test_a_name_that_only_looks_like_loss_is_no_fault(name):
    assert not speaks_of_loss(name)


@pytest.mark.parametrize(
    ("schema", "record"),
    [
        ("alpaca", {"instruction": "q", "output": "a"}),
        ("openorca", {"question": "q", "response": "a"}),
        ("prompt_completion", {"prompt": "q", "completion": "a"}),
        ("inst_text", {"text": "[INST] q [/INST] a"}),
        ("oasst", {"prompt": {"role": "prompter", "text": "q", "replies": [
            {"role": "assistant", "text": "a", "replies": []}]}}),
    ],
)  # fmt: skip
def test_marks_of_records_hold_for_every_schema(schema, record):
    assert learned(record, schema) == [True]
    assert learned(record | {"kto_tag": False}, schema) == "label_is_false"
    assert learned(record | {"train": 0}, schema) == "not_to_learn"
    assert learned(record | {"no_loss": True}, schema) == "unknown_loss_field"
