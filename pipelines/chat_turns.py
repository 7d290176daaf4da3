"""Turns as records write them → `Turn`: side, text, what else is said, whether it is learned."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines.conversations import Role, Turn, text_of
from pipelines.learn_marks import MARKS, is_learned
from pipelines.record_fields import is_empty, refuse_unread
from pipelines.rendering import BadRecordError

RawTurn = Mapping[str, Any]
RawRole = Literal["system", "user", "assistant", "tool"]

CALL_SIDES = ("function_call", "tool_call")
"""Sides whose text is a call of a function, or a list of calls, as JSON."""

ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    # The model has to write the call, and is given what comes of it.
    **dict.fromkeys(CALL_SIDES, "assistant"),
    **dict.fromkeys(
        ("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"
    ),
}
"""Names of the sides in published data; those of system prompts are in `SYSTEM_SIDES`."""

SYSTEM_SIDES = ("system", "developer")
SIDE_NAMES = ("from", "role")
TEXT_NAMES = ("markdown", "value", "content", "text")
"""Markdown goes first: what it was made of can be HTML."""

REASONING_NAMES = (
    "reasoning_content", "reasoning", "thinking", "thought", "thoughts", "tool_plan",
)  # fmt: skip
"""What the model thought before it answered."""

_TEXT_FIELDS = (*REASONING_NAMES, "refusal", "name", "tool_name", "tool_call_id")
_OBJECT_FIELDS = ("tool_calls", "function_call")
PASSED_ON = (*_TEXT_FIELDS, *_OBJECT_FIELDS)
"""Fields of turns that go to the chat template under their own names."""

TURN_FIELDS = frozenset((*SIDE_NAMES, *TEXT_NAMES, *MARKS, *PASSED_ON))
"""All fields of a turn that are read."""

_TEXT_PARTS = (None, "text", "input_text", "output_text")


def side_of(turn: RawTurn) -> str:
    """What a turn calls the side that speaks, in lower case; empty where it does not say."""
    side = next((turn[name] for name in SIDE_NAMES if turn.get(name) is not None), None)
    return side.lower() if isinstance(side, str) else ""


def role_of(turn: RawTurn) -> RawRole:
    """`system`, or one of the roles of turns.

    Raises:
        BadRecordError: unknown_role, unknown_turn_form.
    """
    side = side_of(turn)
    if side in SYSTEM_SIDES:
        return "system"
    if side not in ROLES:
        if not any(turn.get(name) is not None for name in SIDE_NAMES):
            names = ", ".join(map(str, turn)) or "none"
            raise BadRecordError("unknown_turn_form", f"no 'role' or 'from' in a turn: {names}")
        raise BadRecordError("unknown_role", side or "none")
    return ROLES[side]


def read_turn(turn: RawTurn, role: Role, *, learned: bool) -> Turn:
    """A turn of a record.

    Args:
        turn: its fields.
        role: as `role_of` tells it.
        learned: what marks of the record say of it; its own marks may still say no.

    Raises:
        BadRecordError: text_not_a_string, part_not_text, two_texts, broken_calls; and as
            `refuse_unread` and `is_learned`.
    """
    refuse_unread(turn, TURN_FIELDS, "turn: ")
    said = is_learned(turn, is_answer=role == "assistant", where="turn: ")
    fields: dict[str, Any] = {
        name: text_of(turn[name], name) for name in _TEXT_FIELDS if not is_empty(turn.get(name))
    }
    for name in _OBJECT_FIELDS:
        if not is_empty(given := from_json(turn.get(name))):
            fields[name] = _calls(given, name)
    text = turn_text(turn)
    if side_of(turn) in CALL_SIDES and (calls := _calls_in(text)):
        text, fields = "", {**fields, "tool_calls": calls}
    return Turn(role, text, role != "assistant" or (learned and said), fields)


def add_turn(turns: list[Turn], turn: Turn, *, is_call: bool) -> None:
    """Add a turn; one that is a call is joined to a call right before it, as calls made at once."""
    before = turns[-1] if turns else turn
    alike = before._replace(fields={}) == turn._replace(fields={})
    calls_alone = all(set(each.fields) == {"tool_calls"} for each in (before, turn))
    if is_call and turns and alike and calls_alone:
        calls = [*before.fields["tool_calls"], *turn.fields["tool_calls"]]
        turns[-1] = turn._replace(fields={"tool_calls": calls})
    else:
        turns.append(turn)


def turn_text(turn: RawTurn) -> str:
    """The text of a turn; empty where it has none.

    Raises:
        BadRecordError: text_not_a_string, part_not_text, two_texts.
    """
    given = [name for name in TEXT_NAMES if turn.get(name)]
    if not given:
        return ""
    texts = {name: _joined(turn[name], name) for name in given}
    if "content" in texts and len({*texts.values()}) > 1:
        raise BadRecordError("two_texts", f"{' and '.join(given)} of a turn differ")
    return texts[given[0]]


def _joined(value: Any, name: str) -> str:
    return "".join(map(_part, value)) if isinstance(value, list) else text_of(value, name)


def _part(part: Any) -> str:
    """One of the parts that a turn's content may be divided into."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if not isinstance(part, Mapping) or kind not in _TEXT_PARTS:
        raise BadRecordError("part_not_text", str(kind))
    refuse_unread(part, frozenset(("type", "text", "value")), "part of a turn: ")
    return text_of(part.get("text", part.get("value")), "text")


def _calls(value: Any, name: str) -> Any:
    """Calls of functions; their arguments stay as they are."""
    calls = value if name == "tool_calls" else [value]
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRecordError("broken_calls", f"{name}: {value!r:.80}")
    return value


def _calls_in(text: str) -> list[Mapping[str, Any]]:
    """The calls of functions that a text is, as templates read them; none where it is no JSON."""
    found = from_json(text)
    calls = found if isinstance(found, list) else [found]
    if not all(
        isinstance(call, Mapping) and {"name", "arguments"} <= call.keys() for call in calls
    ):
        return []
    return [{"type": "function", "function": call} for call in calls]


def tools_of(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of functions: objects, a list of them, or either written as JSON.

    Raises:
        BadRecordError: broken_tools.
    """
    if is_empty(value := from_json(value)):
        return ()
    found = [from_json(item) for item in (value if isinstance(value, list) else [value])]
    if not all(isinstance(item, Mapping) for item in found):
        raise BadRecordError("broken_tools", f"{name}: {value!r:.80}")
    return tuple(found)


def from_json(value: Any) -> Any:
    """What a string holds as JSON: a list, an object or null. Anything else as it is."""
    if not isinstance(value, str) or (value != "null" and value.lstrip()[:1] not in ("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def without_nulls(value: Any) -> Any:
    """The value without nulls in its objects, at any depth.

    Every record of a table has every field of every object. That a field is null says that some
    other record has it.
    """
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [without_nulls(item) for item in value]
    return value
