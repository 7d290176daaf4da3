"""Conversations: what the records of every chat schema become, and what templates write.

Nothing of a record is changed but this: turns behind the last answer are left out, since nothing
can be learned from them. Neighbouring turns of one role stay two turns, and a conversation that
begins with an answer begins with it; whether that can be shown is for the template to say.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pipelines.rendering import BadRecordError

Role = Literal["user", "assistant", "tool"]
Record = Mapping[str, Any]

MAY_STAND_ALONE = ("tool_calls", "function_call", "refusal")
"""Fields of an answer that are one without any text."""


_END_OF_THOUGHT = ("</think>", "</thinking>", "</thought>", "</reasoning>")
"""What reasoning ends with that stands in a content; behind it comes the answer."""


class Turn(NamedTuple):
    """What one side said at a time."""

    role: Role
    """`tool`: what a called function returned."""

    text: str
    """Empty only in answers that call functions or refuse, see `MAY_STAND_ALONE`."""

    loss: bool = True
    """Of an answer: whether the model learns it. Records can say no."""

    fields: Mapping[str, Any] = MappingProxyType({})
    """What else the record says of the turn, under the names that chat templates read
    (`reasoning_content`, `tool_calls`, `name`, …). None of the values is empty."""


class Conversation(NamedTuple):
    """A system prompt, and at least one answer among the turns."""

    system: str | None
    """None where the record has no system turn, which is not the same as an empty one."""

    turns: tuple[Turn, ...]

    tools: tuple[Mapping[str, Any], ...] = ()
    """Descriptions of functions that the model may call, as chat templates read them."""


def conversation(
    turns: Iterable[Turn],
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Conversation:
    """A conversation up to its last answer.

    Args:
        turns: in their order; a system prompt is not among them.
        system: the system prompt.
        tools: descriptions of functions.

    Raises:
        BadRecordError: missing_turns, no_answer, empty_turn.
    """
    kept = list(turns)
    if not kept:
        raise BadRecordError("missing_turns", "no turns")
    while kept and kept[-1].role != "assistant":
        del kept[-1]
    if not any(turn.loss for turn in kept if turn.role == "assistant"):
        raise BadRecordError("no_answer", "no turn that the model has to produce")
    for place, turn in enumerate(kept, 1):
        said = turn.text.strip()
        thought_alone = turn.role == "assistant" and said.endswith(_END_OF_THOUGHT)
        if (not said or thought_alone) and not any(
            turn.fields.get(name) for name in MAY_STAND_ALONE
        ):
            answer = turn.role == "assistant" and turn.loss
            raise BadRecordError("no_answer" if answer else "empty_turn", f"turn {place}")
    return Conversation(system, tuple(kept), tuple(tools))


def turn_texts(turn: Turn) -> Iterator[str]:
    """Every text of a turn: what it says, its reasoning, its calls of functions."""
    yield turn.text
    yield from texts_in(turn.fields)


def texts_in(value: Any) -> Iterator[str]:
    """Every string in a value, at any depth, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def text_of(value: Any, field: str) -> str:
    """The value, where it is a string.

    Raises:
        BadRecordError: text_not_a_string.
    """
    if not isinstance(value, str):
        raise BadRecordError("text_not_a_string", f"{field}: {type(value).__name__}")
    return value
