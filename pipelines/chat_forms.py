"""The forms that a list of turns has in published data → a list of turns as objects."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines.chat_turns import SIDE_NAMES, RawTurn, from_json, role_of, side_of, turn_text
from pipelines.conversations import Record
from pipelines.record_fields import is_empty
from pipelines.rendering import BadRecordError

Roles = Literal["named", "alternate"]
"""Whether turns name the side that speaks, or user and assistant take turns."""

_ALTERNATING = ("user", "assistant")
_PAIRS = (
    (("prompt", "chosen"), "prompt_completion"),
    (("prompt", "completion"), "prompt_completion"),
    (("prompt", "response"), "prompt_completion"),
    (("question", "chosen"), "prompt_completion"),
    (("question", "answer"), "prompt_completion"),
    (("query", "response"), "prompt_completion"),
    (("question", "response"), "openorca"),
    (("instruction", "output"), "alpaca"),
    (("instruction", "response"), "alpaca"),
    (("conversations",), "sharegpt"),
    (("messages",), "messages"),
)
"""Fields of other forms, and the schema that reads them."""

FORM_REASONS = frozenset(
    {"missing_turns", "turns_without_roles", "unknown_turn_form", "turn_not_an_object",
     "unknown_role", "chosen_is_text", "turns_in_one_text"}
)  # fmt: skip
"""Reasons that mean that a record has another form than its schema. Where no sampled record is
read and these are all of the reasons, the plan stops."""


def listed_turns(value: Any, *, roles: Roles) -> list[RawTurn] | None:
    """The turns of one field, or None where it holds none.

    A list of objects; of objects written as JSON; of texts, where the mixture says that sides take
    turns; one object of lists of equal length, as `datasets` writes lists of objects; or any of
    these written as JSON.

    Raises:
        BadRecordError: turns_without_roles, turn_not_an_object.
    """
    value = _transposed(from_json(value))
    if not isinstance(value, list):
        return None
    items = [_parsed(item) for item in value]
    if roles == "alternate":
        return [_placed(item, place) for place, item in enumerate(items)]
    if items and all(isinstance(item, str) for item in items):
        raise BadRecordError(
            "turns_without_roles",
            "turns are plain texts; `chat: {roles: alternate}` reads them as user and assistant in "
            "turn",
        )
    for item in items:
        if not isinstance(item, Mapping):
            raise BadRecordError("turn_not_an_object", type(item).__name__)
    return items


def refuse_dialogue(text: str, name: str) -> None:
    """Refuse a text that is a whole dialogue, as Anthropic's preference data writes it.

    Raises:
        BadRecordError: turns_in_one_text.
    """
    if _DIALOGUE.match(text):
        raise BadRecordError(
            "turns_in_one_text",
            f"'{name}' is a dialogue in one text (Human: …, Assistant: …); make it a list of turns",
        )


_DIALOGUE = re.compile(r"\s*Human: .*\n\nAssistant:", re.DOTALL)


def as_turns(value: Any) -> list[RawTurn] | None:
    """Turns that name their sides, or None where a value is something else."""
    found = from_json(value)
    return found if isinstance(found, list) and found and all(map(_is_turn, found)) else None


def turns_in(value: Any) -> list[RawTurn] | None:
    """The turns of a field that may hold a text instead; None where it does.

    Raises:
        BadRecordError: as `listed_turns`.
    """
    turns = as_turns(value)
    return turns if turns or isinstance(value, str) else listed_turns(value, roles="named")


def only_one(record: Record, names: Sequence[str], reason: str) -> str | None:
    """Which of some fields a record has; None where it has none.

    Raises:
        BadRecordError: it has several that differ, with this reason.
    """
    given = [name for name in names if record.get(name) is not None]
    full = [name for name in given if not is_empty(record[name])]
    if any(record[name] != record[full[0]] for name in full):
        raise BadRecordError(reason, f"{' and '.join(full)} differ; see `ignore_fields`")
    return next(iter([*full, *given]), None)


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and any(name in value for name in SIDE_NAMES)


def _parsed(item: Any) -> Any:
    """A turn written as JSON as an object; texts stay texts."""
    found = from_json(item)
    return found if _is_turn(found) else item


def _placed(item: Any, place: int) -> RawTurn:
    if isinstance(item, Mapping) and side_of(item):
        raise BadRecordError("unknown_turn_form", "turns name their sides; leave `roles` out")
    if not isinstance(item, str):
        raise BadRecordError("turn_not_an_object", f"{type(item).__name__}, not a text")
    return {"role": _ALTERNATING[place % 2], "content": item}


def _transposed(value: Any) -> Any:
    """An object of lists of one length as a list of objects; anything else as it is."""
    if not _is_turn(value):
        return value
    columns = {name: column for name, column in value.items() if column is not None}
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        return value
    return [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]  # fmt: skip


def turns_of(record: Record, names: Sequence[str], *, roles: Roles) -> list[RawTurn]:
    """The turns of a record, with the answer that people chose at the end.

    Args:
        record: its fields.
        names: fields that may hold the turns; the first that is there does.
        roles: whether turns name their sides.

    Raises:
        BadRecordError: as `listed_turns`; missing_turns, two_conversations, chosen_is_text.
    """
    name = only_one(record, names, "two_conversations")
    turns = listed_turns(record[name], roles=roles) if name else None
    if name and turns is None:
        raise BadRecordError("missing_turns", f"field '{name}' is no list of turns")
    chosen = record.get("chosen")
    if chosen is not None:
        if turns is None and record.get("prompt") is not None:
            turns = turns_in(record["prompt"])
        return with_chosen(turns or [], chosen)
    if turns is None:
        raise BadRecordError("missing_turns", f"no list '{names[0]}'{_other_form(record)}")
    return turns


def with_chosen(turns: list[RawTurn], chosen: Any) -> list[RawTurn]:
    """Turns and the answer that people chose: a turn, or a list that may repeat the turns.

    Raises:
        BadRecordError: two_conversations, chosen_is_text.
    """
    one = isinstance(chosen, Mapping) and side_of(chosen)
    answer = turns_in([chosen] if one else chosen)
    if answer is None:
        if isinstance(chosen, str):
            refuse_dialogue(chosen, "chosen")
        if not turns or not isinstance(chosen, str):
            raise BadRecordError("chosen_is_text", "'chosen' is no list of turns")
        answer = [_answered(chosen)]
    if not answer:
        return turns
    same = min(len(turns), len(answer))
    if [_said(turn) for turn in answer[:same]] == [_said(turn) for turn in turns[:same]]:
        return answer if len(answer) > len(turns) else turns
    if turns and _said(turns[-1]) == _said(answer[0]):
        return [*turns, *answer[1:]]
    if not turns or (role_of(turns[-1]) != "assistant" and role_of(answer[0]) == "assistant"):
        return [*turns, *answer]
    raise BadRecordError("two_conversations", "'chosen' does not go on with the turns")


def _answered(text: str) -> RawTurn:
    return {"role": "assistant", "content": text}


def _said(turn: RawTurn) -> tuple[str, str]:
    return role_of(turn), turn_text(turn)


def _other_form(record: Record) -> str:
    """What the record has instead, and the schema that reads it."""
    for names, schema in _PAIRS:
        if all(record.get(name) is not None for name in names):
            fields = " and ".join(f"'{name}'" for name in names)
            return f"; the record has {fields}: `schema: {schema}` reads these"
    held = ", ".join(f"'{name}'" for name in record) or "nothing"
    return f"; the record has {held}"
