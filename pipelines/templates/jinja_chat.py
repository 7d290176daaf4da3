"""Conversations by a chat template in Jinja, as Hugging Face tokenizers bring it along.

The text is what `apply_chat_template` gives. What the assistant says in it is learned: what
`{% generation %}` encloses where a template has that, else all that stands between a generation
prompt and the next turn. Special tokens that the template wrote become control tokens; a record's
text stays text whatever it holds. A record of which the template would lose something is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pipelines.conversations import Conversation, Turn
from pipelines.errors import UserError
from pipelines.rendering import BadRecordError, Rendered, Span, Writer
from pipelines.templates.jinja_compile import compiled
from pipelines.templates.jinja_lost import Lost
from pipelines.templates.jinja_output import JinjaOutput, Look, Message, Tools, messages_of
from pipelines.templates.jinja_seams import ANSWER, QUESTION
from pipelines.templates.jinja_source import ChatTemplate
from pipelines.templates.jinja_turns import Turns
from pipelines.templates.text_marks import Marked, Marks


def jinja_renderer(
    template: ChatTemplate,
    *,
    special: Sequence[str],
    bos: str | None,
    eos: str | None,
    system: str | None = None,
    date: datetime | None = None,
    arguments: Mapping[str, Any] | None = None,
    without_end: bool = False,
) -> "JinjaChat":
    """A renderer of conversations by a Jinja template.

    It raises BadRecordError: template_failed, template_lost_turn, template_changed_text,
    turn_not_found, field_not_rendered, tools_not_rendered, no_answer.

    Args:
        template: as `read_template` gives it.
        special: how the vocabulary spells its special tokens.
        bos: what the template calls `bos_token`, unless its own configuration speaks of one.
        eos: the same for `eos_token`.
        system: the system prompt of conversations without a system turn.
        date: what `strftime_now` formats.
        arguments: other variables of the template.
        without_end: accept a template that writes nothing behind an answer.

    Raises:
        UserError: the template is broken, or cannot be used for a plain conversation.
    """
    tokens = {"bos_token": bos, "eos_token": eos, **template.tokens}
    default = compiled(template.place, template.source, date=date)
    tool_use = default
    if template.tool_use is not None:
        tool_use = compiled(f"{template.place} (tool_use)", template.tool_use, date=date)
    read = default.variables | tool_use.variables
    for name in arguments or {}:
        if name not in read:
            raise UserError(
                f"arguments: {template.place} reads no variable '{name}'; "
                f"it reads {', '.join(sorted(read))}"
            )
    given = {name: token for name, token in tokens.items() if token}
    output = JinjaOutput(default, tool_use, {**given, **(arguments or {})}, Marks(special))
    renderer = _tried(output, system=system, special=frozenset(special), tokens=given)
    if without_end or renderer.end_of_answers().strip():
        return renderer
    fault = (
        f"{template.place}: nothing that the chat template writes behind an answer is learned, so "
        "the model would not learn to stop"
    )
    if default.generation:
        renderer.warning = f"{fault}; {{% generation %}} ends before it"
        return renderer
    raise UserError(
        f"{fault}; let the template write an end ({{{{ eos_token }}}}), or accept this with "
        "`without_end: true`"
    )


class JinjaChat:
    """Renders conversations."""

    warning = ""
    """What a person should know of the template."""

    def __init__(self, output: JinjaOutput, system: str | None) -> None:
        self._output = output
        self._system = system
        self._turns = Turns(output)
        self._lost = Lost(output)

    def __call__(self, conversation: Conversation) -> Rendered:
        """Text, answers and control tokens of one conversation."""
        messages = messages_of(conversation, self._system)
        tools = conversation.tools
        marked, look = self._marked(messages, tools)
        first = len(messages) - len(conversation.turns)
        silent = {first + i for i, turn in enumerate(conversation.turns) if not turn.loss}
        generation = self._output.of(tools).generation
        turns: Mapping[int, Span] = {}
        if look.answers:
            self._lost.refuse_lost_contents(messages, tools, marked, look, turns)
        self._lost.refuse_lost_fields(conversation.turns, tools, marked.text)
        if not generation or not look.answers or silent:
            turns = self._turns.find(messages, tools, marked, look)
        if not look.answers:
            self._lost.refuse_lost_contents(messages, tools, marked, look, turns)
        if generation:
            taken_out = [turns[i] for i in silent if i in turns]
            spans = [s for s in marked.generated if not any(_overlap(s, t) for t in taken_out)]
        else:
            spans = [span for i, span in turns.items() if i not in silent]
        return _written(marked, spans)

    def end_of_answers(self) -> str:
        """What is learned behind the content of an answer, in a plain conversation."""
        marked, _ = self._marked([QUESTION, ANSWER], ())
        spans = marked.generated
        if not self._output.plain.generation:
            spans = list(self._turns.find([QUESTION, ANSWER], (), marked, Look()).values())
        at = marked.ends[1]
        return "".join(marked.text[max(start, at) : end] for start, end in spans if end > at)

    def own_text(self, messages: Sequence[Message]) -> str:
        """What of the output comes from the template."""
        marked, _ = self._marked(messages, ())
        edges = [0, *(x for i in marked.order for x in (marked.starts[i], marked.ends[i]))]
        spans = zip(edges[::2], [*edges[1::2], len(marked.text)], strict=True)
        return "\n".join(marked.text[start:end] for start, end in spans)

    def _marked(self, messages: Sequence[Message], tools: Tools) -> tuple[Marked, Look]:
        """The output with marks, where it is otherwise the output without."""
        real = self._output.real(messages, tools)
        for look in self._output.looks(messages, tools):
            try:
                marked = self._output.marked(messages, tools, look)
            except BadRecordError:  # it reads a content that a mark changes
                continue
            if marked.text == real:
                return marked, look
        raise BadRecordError("template_changed_text", "it looks for special tokens in contents")


def _overlap(span: Span, other: Span) -> bool:
    return span[0] < other[1] and other[0] < span[1]


def _written(marked: Marked, spans: Sequence[Span]) -> Rendered:
    """The output as a document in which these spans are learned.

    A lone space before a span of text is learned with it: the model writes it with its first word.

    Raises:
        BadRecordError: no_answer.
    """
    text, writer = marked.text, Writer()
    steps: list[tuple[int, bool]] = []
    begins = {start for start, _ in marked.controls}
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        begin = start if start in begins else _with_space(text, start)
        steps += [(begin, False), (end, True)]
    if not steps:
        raise BadRecordError("no_answer", "nothing of the template's output is learned")
    controls = iter([*marked.controls, (len(text), len(text) + 1)])
    control = next(controls)
    at = 0
    for edge, loss in [*steps, (len(text), False)]:
        put = writer.answer if loss else writer.put
        while control[1] <= edge:
            begin, end = control
            if begin > at:
                put(text[at:begin])
            writer.control(text[begin:end], loss=loss)
            at, control = end, next(controls)
        stop = min(edge, control[0])  # a control token is not divided
        if stop > at:
            put(text[at:stop])
            at = stop
    return writer.rendered(framed=True)


def _with_space(text: str, start: int) -> int:
    """Where a span begins with the lone space before it."""
    lone = text[start - 1 : start] == " " and not text[start : start + 1].isspace()
    return start - 1 if lone and not text[max(start - 2, 0) : start - 1].isspace() else start


def _tried(
    output: JinjaOutput,
    *,
    system: str | None,
    special: frozenset[str],
    tokens: Mapping[str, str],
) -> JinjaChat:
    """A renderer that has rendered plain conversations, of one question and of two.

    Raises:
        UserError: the template fails, loses or moves a message, changes what it says, or calls a
            token special that the vocabulary does not have.
    """
    place = output.plain.place
    once = Turn("user", "A question?"), Turn("assistant", "An answer.")
    twice = *once, Turn("user", "And then?"), Turn("assistant", "This and that.")
    try:
        renderer = JinjaChat(output, system)
        renderer(Conversation(None, once))
    except BadRecordError as bad:
        parts = replace(output, in_parts=True)
        if not _renders(parts, system, once):
            raise _unusable(place, bad) from None
        renderer = JinjaChat(parts, system)
    own = renderer.own_text([QUESTION, ANSWER])
    for name, token in tokens.items():
        if token in own and token not in special:
            raise UserError(
                f"{place}: its {name} '{token}' is no special token of the vocabulary; take the "
                "template that belongs to the vocabulary"
            )
    try:
        renderer(Conversation(None, twice))
    except BadRecordError as bad:
        if bad.reason != "template_failed":  # it may refuse more than one question
            raise _unusable(place, bad) from None
    return renderer


def _renders(output: JinjaOutput, system: str | None, turns: tuple[Turn, ...]) -> bool:
    try:
        JinjaChat(output, system)(Conversation(None, turns))
    except BadRecordError:
        return False
    return True


def _unusable(place: str, bad: BadRecordError) -> UserError:
    what = {
        "template_lost_turn": "drops, repeats or moves messages",
        "template_changed_text": "changes what messages say",
    }
    fault = what.get(bad.reason, "fails for a question and an answer")
    return UserError(f"{place}: the chat template {fault} ({bad.evidence})")
