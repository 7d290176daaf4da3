"""What a chat template writes: the variables it is given, and its output with marks and without.

It is given what `apply_chat_template` of transformers gives it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.conversations import Conversation
from pipelines.rendering import BadRecordError
from pipelines.templates.jinja_compile import Compiled
from pipelines.templates.text_marks import Marked, Marks

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names for what the model thought before an answer. Templates read the first two."""


class Look(NamedTuple):
    """Where marks stand in the strings of a record."""

    answers: bool = True
    """At the ends of the assistant's contents."""

    given: bool = True
    """At the ends of all other contents."""

    kept: frozenset[str] = frozenset()
    """Special tokens that are left in what the assistant says, see `looks`."""


def messages_of(conversation: Conversation, system: str | None) -> list[Message]:
    """The messages of a conversation; `system` is for one without a system turn."""
    prompt = system if conversation.system is None else conversation.system
    first: list[Message] = [] if prompt is None else [{"role": "system", "content": prompt}]
    turns = conversation.turns
    plain = [{"role": turn.role, "content": turn.text} for turn in turns]
    full = (
        with_reasoning({**message, **turn.fields}) if turn.fields else message
        for message, turn in zip(plain, turns, strict=True)
    )
    return [*first, *full]


def with_reasoning(message: dict[str, Any]) -> Message:
    """Reasoning under both names that templates read, as transformers does it."""
    found = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


@dataclass(frozen=True)
class JinjaOutput:
    """A chat template with its variables."""

    plain: Compiled
    """For conversations without tools."""

    tool_use: Compiled
    """For those with tools; mostly the same."""

    variables: Mapping[str, Any]
    """`bos_token` and others, and what the mixture adds."""

    marks: Marks
    in_parts: bool = False
    """Whether contents are lists of parts, of which each has one, for templates that need it."""

    def of(self, tools: Tools) -> Compiled:
        """The template for a conversation with these tools."""
        return self.tool_use if tools else self.plain

    def looks(self, messages: Sequence[Message], tools: Tools) -> Iterator[Look]:
        """Ways to mark a conversation, the one that tells most first.

        Templates may read contents: a mark at the beginning then changes the output. Where they
        look for special tokens in what the assistant says (`</think>`, where the vocabulary has
        it), these are a part of the form of the record, and those that come out are the
        template's.
        """
        yield Look()
        yield Look(answers=False)
        yield Look(answers=False, given=False)
        said = "".join(str(m["content"]) for m in messages if m["role"] == "assistant")
        read = frozenset(tag for tag in self.of(tools).tags if tag in said)
        if read:
            yield Look(answers=False, kept=read)

    def real(self, messages: Sequence[Message], tools: Tools) -> str:
        """The output.

        Raises:
            BadRecordError: template_failed.
        """
        return self._render(messages, tools, marked=False, prompt=False)

    def marked(
        self, messages: Sequence[Message], tools: Tools, look: Look, *, prompt: bool = False
    ) -> Marked:
        """The output with marks in it.

        Args:
            messages: of a conversation, or the first of them.
            tools: descriptions of functions.
            look: where marks stand.
            prompt: whether the generation prompt follows.

        Raises:
            BadRecordError: template_failed.
        """
        shown = [self._marked(message, i, look) for i, message in enumerate(messages)]
        if tools:
            tools = self.marks.protect(tools)
        return self.marks.read(self._render(shown, tools, marked=True, prompt=prompt))

    def _marked(self, message: Message, place: int, look: Look) -> Message:
        answer = message["role"] == "assistant"
        content: str = message["content"]
        if len(message) > 2 or self.marks.needed(content):
            message = self.marks.protect(message, look.kept if answer else frozenset())
        if look.answers if answer else look.given:
            content = self.marks.enclose(message["content"], place)
            return {**message, "content": content}
        return message

    def _render(
        self, messages: Sequence[Message], tools: Tools, *, marked: bool, prompt: bool
    ) -> str:
        compiled = self.of(tools)
        given = [self._in_parts(m) for m in messages] if self.in_parts else list(messages)
        variables = {
            **self.variables,
            "messages": given,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        try:
            return (compiled.marked if marked else compiled.plain).render(variables)
        except Exception as error:  # a template can fail in any way that Python can
            raise BadRecordError("template_failed", f"{type(error).__name__}: {error}") from None

    def _in_parts(self, message: Message) -> dict[str, Any]:
        return {**message, "content": [{"type": "text", "text": message["content"]}]}
