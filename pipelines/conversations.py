"""Records of the published chat schemas → conversations.

Nothing of a record is changed but this: turns behind the last answer are left out, since nothing
can be learned from them. Neighbouring turns of one role stay two turns, and a conversation that
begins with an answer begins with it; whether that can be shown is for the template to say.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pipelines.rendering import BadRecordError

Role = Literal["user", "assistant", "tool"]
Record = Mapping[str, Any]


class Turn(NamedTuple):
    """What one side said at a time."""

    role: Role
    """`tool`: what a called function returned."""

    text: str
    loss: bool = True
    """Of an answer: whether the model learns it. Records can say no, by a weight of 0."""

    fields: Mapping[str, Any] = MappingProxyType({})
    """What else the record says of the turn, under the names that chat templates read
    (`reasoning_content`, `tool_calls`, `name`, …)."""


class Conversation(NamedTuple):
    """A system prompt, and at least one answer among the turns."""

    system: str | None
    """None where the record has no system turn, which is not the same as an empty one."""

    turns: tuple[Turn, ...]

    tools: tuple[Mapping[str, Any], ...] = ()
    """Descriptions of functions that the model may call, as chat templates read them."""


ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    # The model has to write the call, and is given what comes of it.
    "function_call": "assistant",
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}
"""Names of the sides in published data; `system` and `developer` are read apart."""


def conversation(turns: Iterable[Turn], system: str = "", tools: Any = None) -> Conversation:
    """A conversation up to its last answer.

    Args:
        turns: in their order; a system prompt is not among them.
        system: the system prompt.
        tools: descriptions of functions, which stand behind the system prompt after a blank line.

    Raises:
        BadRecordError: missing_turns, no_answer, empty_turn, text_not_a_string.
    """
    kept = list(turns)
    if not kept:
        raise BadRecordError("missing_turns", "no turns")
    while kept and kept[-1].role != "assistant":
        del kept[-1]
    if not any(turn.loss for turn in kept if turn.role == "assistant"):
        raise BadRecordError("no_answer", "no turn that the model has to produce")
    for place, turn in enumerate(kept):
        if not turn.text.strip():
            raise BadRecordError("empty_turn", f"turn {place + 1}: {turn.role}")
    described = "" if tools in (None, [], "[]") else text_of(tools, "tools")
    return Conversation("\n\n".join(filter(None, (system, described))), tuple(kept))


def conversation_of_turns(record: Record, field: str) -> Conversation:
    """A list of turns, each with a side and a text under any of the names in use.

    Raises:
        BadRecordError: as `conversation`; also turn_not_an_object, unknown_role, tool_calls,
            part_not_text, unknown_weight, system_turn_inside, two_system_prompts, label_is_false.
    """
    turns = record.get(field)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRecordError("missing_turns", f"no list '{field}'")
    if record.get("label") is False:
        raise BadRecordError("label_is_false", "an answer that people rejected")
    # Preference data: the answer that people chose ends the conversation.
    chosen = record.get("chosen")
    system, rest = _split_system([*turns, chosen] if isinstance(chosen, Mapping) else [*turns])
    given = record.get("system")
    if given and system and given != system:
        raise BadRecordError("two_system_prompts", "a field and a turn")
    return conversation(
        map(_turn, rest), system or text_of(given or "", "system"), record.get("tools")
    )


def _split_system(turns: list[Any]) -> tuple[str, list[Any]]:
    """The text of a system turn, which can only be the first, and the other turns."""
    if turns and _side(turns[0]) in ("system", "developer"):
        return _turn_text(turns[0]), turns[1:]
    return "", turns


def _side(turn: Any) -> str:
    """What a turn calls the side that speaks."""
    if not isinstance(turn, Mapping):
        raise BadRecordError("turn_not_an_object", type(turn).__name__)
    side = turn.get("from", turn.get("role"))
    return side.lower() if isinstance(side, str) else ""


def _turn(turn: Any) -> Turn:
    side = _side(turn)
    if side in ("system", "developer"):
        raise BadRecordError("system_turn_inside", "a system turn that is not the first")
    if side not in ROLES:
        raise BadRecordError("unknown_role", side or "none")
    if turn.get("tool_calls"):
        raise BadRecordError("tool_calls", "calls that are given as objects have no text")
    role = ROLES[side]
    return Turn(role, _turn_text(turn), _loss(turn, role))


def _turn_text(turn: Mapping[str, Any]) -> str:
    """The text of a turn. Markdown goes first: what it was made of can be HTML."""
    names = ("markdown", "value", "content", "text")
    name = next((name for name in names if turn.get(name)), None)
    found = turn[name] if name else ""
    return "".join(map(_part, found)) if isinstance(found, list) else text_of(found, name or "")


def _part(part: Any) -> str:
    """One of the parts that a turn's content may be divided into."""
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text":
        raise BadRecordError("part_not_text", str(kind))
    return text_of(part.get("text", part.get("value")), "text")


def _loss(turn: Mapping[str, Any], role: Role) -> bool:
    """Whether a turn is learned: `weight` is OpenAI's name for it, `loss_weight` another."""
    weight = turn.get("weight", turn.get("loss_weight"))
    if weight is None or (weight in (0, 1) and role == "assistant"):
        return weight != 0
    if weight:
        raise BadRecordError("unknown_weight", f"{weight!r} for {role}")
    return True  # without effect: only answers are learned


def text_of(value: Any, field: str) -> str:
    """The value, where it is a string.

    Raises:
        BadRecordError: text_not_a_string.
    """
    if not isinstance(value, str):
        raise BadRecordError("text_not_a_string", f"{field}: {type(value).__name__}")
    return value


class ChatSchema(NamedTuple):
    """How records of one kind become conversations."""

    read: Callable[[Record], Conversation]
    """Raises BadRecordError."""

    fields: tuple[str, ...]
    """All top-level fields that are looked at, those below included."""

    origin: tuple[str, ...]
    """What names a record: the first of these that is there."""

    language: str = "lang"
    """What names its language, with a dot into an object."""
