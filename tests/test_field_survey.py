"""The plan names fields that nobody reads, and stops where a field or a form needs a word."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Builder, write_jsonl

from pipelines import build

CHATML = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
TALK = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]


def plan(
    builder: Builder,
    capfd: pytest.CaptureFixture[str],
    records: list[dict[str, Any]],
    **source: Any,
) -> tuple[int, str]:
    """Exit status and output of a dry run over records."""
    write_jsonl(builder.folder / "in/a.jsonl", records)
    known = {"weight": 1, "path": str(builder.folder / "in"), "schema": "messages",
             "chat": {"jinja": CHATML}, "loss": "answers", "max_passes": 99}  # fmt: skip
    kept = {name: value for name, value in (known | source).items() if value is not None}
    mixture = builder.mixture({"talk": kept}, tokens=600)
    status = build.main(["--mixture", str(mixture), "--dry-run"])
    captured = capfd.readouterr()
    return status, captured.out + captured.err


def test_the_plan_lists_unread_fields_with_the_share_of_records_that_have_them(builder, capfd):
    records: list[dict[str, Any]] = [
        {"id": 1, "messages": TALK, "mood": "good", "notes": "x", "empty": [], "url": "u"},
        {"id": 2, "messages": TALK, "mood": "bad", "notes": None},
        {"id": 3, "messages": [TALK[0], TALK[1] | {"tone": "dry"}], "mood": " "},
        {"id": 4, "messages": TALK, "mood": "good"},
    ]
    status, said = plan(builder, capfd, records)
    assert status == 0
    assert "talk: fields not read: mood 75%, messages.tone 25%, notes 25%\n" in said
    _, said = plan(builder, capfd, records, ignore_fields=["mood", "tone", "notes"])
    assert "not read" not in said


def test_an_answer_that_is_not_to_be_learned_is_never_learned_with_loss_on_all(builder, capfd):
    """Loss on everything and an answer without loss contradict each other."""
    wrong = TALK[1] | {"content": "Five.", "train": False}
    records = [{"messages": TALK}, {"messages": [TALK[0], wrong, *TALK]}]
    status, said = plan(builder, capfd, records, loss="all")
    assert status == 0
    assert "not_to_learn           1 of 2" in said
    status, said = plan(builder, capfd, records)
    assert status == 0
    assert "not_to_learn" not in said


def test_token_labels_beside_the_turns_are_listed(builder, capfd):
    _, said = plan(builder, capfd, [{"messages": TALK, "labels": [-100, 5]}])
    assert "talk: fields not read: labels 100%\n" in said


def test_marks_of_plain_texts_are_understood_and_raise_no_question(builder, capfd):
    records = [{"text": "one two three four"}, {"text": "five six", "train": False}]
    status, said = plan(builder, capfd, records, schema=None, chat=None, loss="all")
    assert status == 0
    assert "not_to_learn           1 of 2" in said


@pytest.mark.parametrize("place", ["turn", "record"])
def test_a_field_that_speaks_of_loss_stops_the_plan_with_its_values_and_the_way_out(
    builder, capfd, place
):
    if place == "turn":
        records = [{"messages": [TALK[0], TALK[1] | {"trainable": flag}]} for flag in (True, False)]
    else:
        records = [{"messages": TALK, "trainable": flag} for flag in (True, False)]
    status, said = plan(builder, capfd, records)
    name = "messages.trainable" if place == "turn" else "trainable"
    assert status == 2
    assert f"sources.talk: field '{name}' speaks of loss or training" in said
    assert "(values: true, false); where it may be passed over, write" in said
    assert "`ignore_fields: [trainable]`" in said
    assert plan(builder, capfd, records, ignore_fields="trainable")[0] == 0


def test_fields_that_speak_of_loss_stop_the_plan_of_plain_texts_too(builder, capfd):
    records = [{"text": "Some text.", "loss_scale": 0.5}]
    plain = {"schema": None, "chat": None, "loss": None}
    status, said = plan(builder, capfd, records, **plain)
    assert status == 2
    assert "field 'loss_scale' speaks of loss or training" in said
    assert plan(builder, capfd, records, ignore_fields=["loss_scale"], **plain)[0] == 0


OTHER_FORMS: list[tuple[dict[str, Any], str]] = [
    ({"messages": ["q", "a"]}, "`chat: {roles: alternate}`"),
    ({"prompt": "q", "completion": "a"}, "`schema: prompt_completion`"),
    ({"messages": [{"speaker": "A", "text": "q"}]}, "no 'role' or 'from' in a turn: speaker, text"),
    ({"messages": [{"role": "A", "content": "q"}]}, "unknown_role: a"),
]


@pytest.mark.parametrize(("record", "way_out"), OTHER_FORMS)
def test_the_plan_stops_and_names_the_form_where_no_record_has_that_of_the_schema(
    builder, capfd, record, way_out
):
    status, said = plan(builder, capfd, [record] * 3)
    assert status == 2
    assert "sources.talk: none of 3 sampled records has the form of the schema" in said
    assert way_out in said
    assert plan(builder, capfd, [record, {"messages": TALK}])[0] == 0


GUARDED: list[tuple[dict[str, Any], str]] = [
    ({"images": ["1.jpg"]}, "has_images"), ({"audio": {"path": "1"}}, "has_audio"),
    ({"video": "1.mp4"}, "has_video"), ({"train": False}, "not_to_learn"),
    ({"loss_mask": 0}, "not_to_learn"), ({"kto_tag": "false"}, "not_to_learn"),
    ({"loss": 2.31}, "unknown_loss_mark"), ({"masked": 1}, "not_to_learn"),
]  # fmt: skip
HARMLESS: list[dict[str, Any]] = [
    {}, {"images": [], "video": None}, {"train": True}, {"label": 0}, {"image_url": "x.jpg"},
    {"masked": False},
]  # fmt: skip
OTHER_SCHEMAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({}, {"text": "Some text."}),
    "p3": ({"schema": "p3"}, {"inputs": "Two?", "targets": "2"}),
    "fields": ({"fields": {"text": ["q", "a"]}}, {"q": "Two?", "a": "2"}),
    "long_qa": ({"long_qa": {"style": "short"}}, {"document": "d", "question": "q", "answer": "a"}),
    "summary": ({"summary": {}}, {"chapter": "c", "summary_text": "s"}),
}


@pytest.mark.parametrize("schema", OTHER_SCHEMAS)
def test_records_that_are_more_than_text_or_not_to_be_learned_are_dropped_by_every_schema(
    builder, schema
):
    source, good = OTHER_SCHEMAS[schema]
    records = [good | {"n": str(n)} | more for n, (more, _) in enumerate(GUARDED)]
    kept = [
        {name: f"{value} {n}" for name, value in good.items()} | more
        for n, more in enumerate(HARMLESS)
    ]
    write_jsonl(builder.folder / "in/a.jsonl", [*records, *kept])
    built = builder.build(
        {"a": {"weight": 1, "path": "in", "max_passes": 99, **source}}, tokens=512
    )
    expected: dict[str, int] = {}
    for _, reason in GUARDED:
        expected[reason] = expected.get(reason, 0) + 1
    assert built.accounts[0].documents_dropped == expected
    assert built.accounts[0].documents_kept == len(HARMLESS)


def test_a_wrong_answer_of_p3_s_tasks_for_evaluation_is_not_learned(builder):
    record = {"inputs_pretokenized": "Two?", "targets_pretokenized": "2", "weight": 1.0}
    write_jsonl(
        builder.folder / "in/a.jsonl",
        [record | {"is_correct": True},
         *(record | {"targets_pretokenized": n, "is_correct": False} for n in "345")],
    )  # fmt: skip
    source = {"weight": 1, "path": "in", "schema": "p3", "loss": "answers", "max_passes": 999}
    built = builder.build({"a": source}, tokens=512)
    assert built.accounts[0].documents_dropped == {"label_is_false": 3}
    assert built.accounts[0].documents_kept == 1
