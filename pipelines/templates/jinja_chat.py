"""Conversations by a chat template in Jinja, as Hugging Face tokenizers bring it along.

A template is rendered with a mark in place of every content, so that what comes from the template
and what comes from the record can be told apart: special tokens are looked for in the template's
own text alone, and a record's text stays text whatever it holds. Rendering once more, with the
contents themselves, must give the same text; a template that reads contents, not only places
them (by dividing them at `</think>`, say), is found out by that, record by record.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.conversations import Conversation, Turn
from pipelines.errors import UserError
from pipelines.rendering import BadRecordError, Rendered, Writer
from pipelines.templates.jinja_source import ChatTemplate, compiled

Message = tuple[str, str, bool]
"""Role, content, whether an answer is learned."""

_PAD = "\u2005"
"""White space that no template writes itself: where it is missing, contents are trimmed."""

_MARK = re.compile(f"({_PAD}?)\ue000(\\d+)\ue001({_PAD}?)")
_LONE_SPACE = re.compile(r"(?<!\s) \Z")


def jinja_renderer(
    template: ChatTemplate,
    *,
    special: Sequence[str],
    bos: str | None,
    eos: str | None,
    system: str = "",
) -> Callable[[Conversation], Rendered]:
    """A function that renders conversations by a Jinja template.

    It raises BadRecordError: template_failed, template_lost_turn, template_changed_text.

    Args:
        template: as `read_template` gives it.
        special: how the vocabulary spells its special tokens.
        bos: what the template calls `bos_token`, unless its own configuration names one.
        eos: the same for `eos_token`.
        system: the system prompt of conversations without one.

    Raises:
        UserError: the template is broken, or cannot be used for a plain conversation.
    """
    renderer = _Renderer(template, special=special, bos=bos, eos=eos, system=system)
    _try_out(renderer, template.place)
    return renderer.render


@dataclass
class _Piece:
    """A part of the output."""

    kind: Literal["own", "control", "given", "answer"]
    """The template's own text, a control token of it, a content, a content that is learned."""

    text: str
    loss: bool = False
    """Of a control token: whether the model has to produce it."""


class _Renderer:
    def __init__(
        self,
        template: ChatTemplate,
        *,
        special: Sequence[str],
        bos: str | None,
        eos: str | None,
        system: str,
    ) -> None:
        tokens = {"bos_token": template.bos or bos, "eos_token": template.eos or eos}
        self.tokens = {name: token for name, token in tokens.items() if token}
        self.special = frozenset(filter(None, special))
        longest_first = sorted(self.special, key=lambda token: (-len(token), token))
        self._divide = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._template = compiled(template)
        self._system = system

    def render(self, conversation: Conversation) -> Rendered:
        """Text, answers and control tokens of one conversation."""
        pieces = list(self._pieces(conversation))
        for place, piece in enumerate(pieces):
            if piece.kind == "answer":
                self._complete(pieces, place)
        writer = Writer()
        for piece in pieces:
            if piece.kind == "control":
                writer.control(piece.text, loss=piece.loss)
            elif piece.kind == "answer":
                writer.answer(piece.text)
            else:
                writer.put(piece.text)
        return writer.rendered(framed=True)

    def own_text(self, conversation: Conversation) -> str:
        """What of the output comes from the template."""
        return "".join(self._marked(self._messages(conversation))[::4])

    def _pieces(self, conversation: Conversation) -> Iterator[_Piece]:
        messages = self._messages(conversation)
        own, *rest = self._marked(messages)
        whole = own
        yield from self._own_pieces(own)
        for start in range(0, len(rest), 4):
            left, index, right, own = rest[start : start + 4]
            role, text, loss = messages[int(index)]
            text = text if left else text.lstrip()
            text = text if right else text.rstrip()
            whole += text + own
            yield _Piece("answer" if role == "assistant" and loss else "given", text)
            yield from self._own_pieces(own)
        if whole != self._output(messages):
            raise BadRecordError("template_changed_text", "the template does not leave it as it is")

    def _own_pieces(self, own: str) -> Iterator[_Piece]:
        """A stretch of the template's text, divided at special tokens."""
        for place, part in enumerate(self._divide.split(own)):
            if part:
                yield _Piece("control" if place % 2 else "own", part)

    def _complete(self, pieces: list[_Piece], place: int) -> None:
        """Give an answer what the model has to produce beside its content.

        That is a lone space before it, and behind it the control token that ends the turn, with
        white space between.
        """
        answer, before = pieces[place], pieces[max(place - 1, 0)]
        if before.kind == "own" and _LONE_SPACE.search(before.text):
            before.text = before.text[:-1]
            answer.text = f" {answer.text}"
        space, end = _Piece("own", ""), pieces[place + 1 : place + 3]
        if end and end[0].kind == "own" and end[0].text.isspace():
            space = end.pop(0)
        if end and end[0].kind == "control" and not self._begins(end[0].text):
            end[0].loss = True
            answer.text += space.text
            space.text = ""

    def _begins(self, token: str) -> bool:
        """Whether a control token begins texts, and does not end any."""
        return token == self.tokens.get("bos_token") != self.tokens.get("eos_token")

    def _messages(self, conversation: Conversation) -> list[Message]:
        system = conversation.system or self._system
        first = [("system", system, False)] if system else []
        return [*first, *(turn[:3] for turn in conversation.turns)]

    def _marked(self, messages: Sequence[Message]) -> list[str]:
        """The output divided at the marks: own text, (left pad, index, right pad, own text) …"""
        marks = (f"{_PAD}\ue000{place}\ue001{_PAD}" for place in range(len(messages)))
        parts = _MARK.split(
            self._output([(m[0], mark, m[2]) for m, mark in zip(messages, marks, strict=True)])
        )
        found = [int(index) for index in parts[2::4]]
        turns = [place for place, message in enumerate(messages) if message[0] != "system"]
        # The system prompt may stand elsewhere, before the last question for example.
        if [place for place in found if place in turns] != turns or len(found) != len(messages):
            raise BadRecordError("template_lost_turn", f"{len(messages)} messages became {found}")
        return parts

    def _output(self, messages: Sequence[Message]) -> str:
        values = [{"role": role, "content": content} for role, content, _ in messages]
        arguments = {"messages": values, "tools": None, "documents": None, **self.tokens}
        try:
            return self._template.render(arguments, add_generation_prompt=False)
        except Exception as error:  # a template can fail in any way that Python can
            raise BadRecordError("template_failed", f"{type(error).__name__}: {error}") from None


def _try_out(renderer: _Renderer, place: str) -> None:
    """Render plain conversations, of one question and of two.

    Raises:
        UserError: the template fails, loses or moves a message, changes what it says, or calls a
            token special that the vocabulary does not have.
    """
    once = Turn("user", "A question?"), Turn("assistant", "An answer.")
    twice = *once, Turn("user", "And then?"), Turn("assistant", "This and that.")
    try:
        own = renderer.own_text(Conversation("", once))
        renderer.render(Conversation("", once))
    except BadRecordError as bad:
        raise _unusable(place, bad) from None
    for name, token in renderer.tokens.items():
        if token in own and token not in renderer.special:
            raise UserError(
                f"{place}: its {name} '{token}' is no special token of the vocabulary; take the "
                "template that belongs to the vocabulary"
            )
    try:
        renderer.render(Conversation("", twice))
    except BadRecordError as bad:
        if bad.reason != "template_failed":  # it may refuse more than one question
            raise _unusable(place, bad) from None


def _unusable(place: str, bad: BadRecordError) -> UserError:
    what = {
        "template_lost_turn": "drops, repeats or moves messages",
        "template_changed_text": "changes what messages say",
    }
    date = "; write a fixed date into it" if "strftime_now" in bad.evidence else ""
    fault = what.get(bad.reason, "fails for a question and an answer")
    return UserError(f"{place}: the chat template {fault} ({bad.evidence}){date}")
