"""What of a record a chat template would lose: contents, fields of turns, descriptions of tools.

Templates leave something out on purpose, above all the reasoning of earlier turns. So a field that
does not stand in the output is looked for in the output for a small conversation: a template that
writes it there has a form for it, and one that never writes it would lose it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.conversations import Turn
from pipelines.rendering import BadRecordError, Span
from pipelines.templates.jinja_output import JinjaOutput, Look, Message, Tools, with_reasoning
from pipelines.templates.jinja_seams import ANSWER, CALL, QUESTION, TOOLS
from pipelines.templates.text_marks import Marked

_TELLS_NOTHING = {"tool": ("name", "tool_name", "tool_call_id")}
"""Fields by role that only say to which call a result belongs."""

_CALLS = ("tool_calls", "function_call")
_SAMPLE = "A value."
"""An argument of `CALL` that stands nowhere else in it."""


class Lost:
    """Looks for what of a record the outputs of one template do not hold."""

    def __init__(self, output: JinjaOutput) -> None:
        self._output = output
        self._written: dict[tuple[str, str, bool], bool | None] = {}

    def refuse_lost_contents(
        self,
        messages: Sequence[Message],
        tools: Tools,
        marked: Marked,
        look: Look,
        turns: Mapping[int, Span],
    ) -> None:
        """Refuse a record of which a content is not in the output, or is another one there.

        Args:
            messages: of the record.
            tools: its descriptions of functions.
            marked: the output for them.
            look: how it was marked.
            turns: where the turns of the assistant stand; needed where these are not marked.

        Raises:
            BadRecordError: template_lost_turn, template_changed_text.
        """
        order = [i for i in marked.order if messages[i]["role"] != "system"]
        if order != sorted(set(order)) or len(set(marked.order)) != len(marked.order):
            raise BadRecordError("template_lost_turn", "messages are moved or repeated")
        before = 0
        for place, message in enumerate(messages):
            answer = message["role"] == "assistant"
            if not message["content"].strip():
                continue
            start, end = turns.get(place, (0, len(marked.text))) if answer else (0, None)
            if look.answers if answer else look.given:
                if place not in marked.ends:
                    reason = "changed_text" if place in marked.starts else "lost_turn"
                    raise BadRecordError(f"template_{reason}", f"message {place + 1}")
                end = marked.ends[place]
                start = marked.starts.get(place, min(before, end))
                before = end
            out = marked.text[start:end]
            if not self._holds(out, message["content"], tools, only_last=answer):
                said = f"message {place + 1} is not in it as it is"
                raise BadRecordError("template_changed_text", said)

    def _holds(self, out: str, content: str, tools: Tools, *, only_last: bool) -> bool:
        """Whether a part of an output holds a content.

        A template may divide contents at words that it looks for. It may leave out what stands
        before the last of them in an answer, which is the reasoning.
        """
        if _within(content, out):
            return True
        tags = [re.escape(tag) for tag in self._output.of(tools).tags if tag in content]
        if not tags:
            return False
        pieces = [piece for piece in re.split("|".join(sorted(tags)), content) if piece.strip()]
        wanted = pieces[-1:] if only_last else pieces
        return bool(wanted) and all(_within(piece, out) for piece in wanted)

    def refuse_lost_fields(self, turns: Sequence[Turn], tools: Tools, text: str) -> None:
        """Refuse a record with a field that the template never writes, or with tools it ignores.

        Raises:
            BadRecordError: field_not_rendered, tools_not_rendered.
        """
        for tool in tools:
            name = _named(tool)
            if "tools" not in self._output.of(tools).variables or (name and name not in text):
                said = f"the template does not write the description of {name or 'a function'}"
                raise BadRecordError("tools_not_rendered", said)
        for place, turn in enumerate(turns, 1):
            for name, value in turn.fields.items():
                if name in _TELLS_NOTHING.get(turn.role, ()):
                    continue
                written = self._writes(turn.role, name, calls="tool_calls" in turn.fields)
                found = all(_within(said, text) for said in _texts(value))
                if not (written or (found and (written is None or name not in _CALLS))):
                    said = f"turn {place}: the template never writes '{name}'"
                    raise BadRecordError("field_not_rendered", said)

    def _writes(self, role: str, name: str, *, calls: bool) -> bool | None:
        """Whether the template writes a field in the last turn of a role; None if it fails."""
        key = (role, name, calls)
        if key not in self._written:
            self._written[key] = self._tried(role, name, calls=calls)
        return self._written[key]

    def _tried(self, role: str, name: str, *, calls: bool) -> bool | None:
        answer = CALL if calls else ANSWER
        added: dict[str, Any] = {name: _SAMPLE}
        if name == "tool_calls":
            added = {}
        elif name == "function_call":
            added = {name: {"name": "look_up", "arguments": _SAMPLE}}
        messages = [
            with_reasoning({**message, **(added if message["role"] == role else {})})
            for message in (QUESTION, answer)
        ]
        try:
            return _SAMPLE in self._output.real(messages, TOOLS if calls else ())
        except BadRecordError:
            return None


def _within(text: str, out: str) -> bool:
    """Whether an output holds a text as it is, or as JSON, without the blanks at its ends."""
    inner = text.strip()
    if inner in out:
        return True
    for ensure_ascii in (False, True):
        quoted = inner
        for _ in range(2):  # JSON may stand in JSON
            quoted = json.dumps(quoted, ensure_ascii=ensure_ascii)[1:-1]
            if quoted in out:
                return True
    return False


def _named(tool: Mapping[str, Any]) -> str:
    """The name in a description of a function, or in a call of it; empty where there is none."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else function
    return name if isinstance(name, str) else ""


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, at any depth, numbers too; not what only numbers calls."""
    if isinstance(value, Mapping):
        value = [item for name, item in value.items() if name not in ("id", "type", "index")]
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield str(value)
