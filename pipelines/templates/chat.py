"""Conversations as text: the published templates, and the one that a mixture names."""

import json
from collections.abc import Callable, Sequence
from functools import partial

from pipelines.chat_options import Chat
from pipelines.conversations import Conversation, Turn
from pipelines.rendering import BOS, EOS, BadRecordError, Rendered, Writer
from pipelines.templates.jinja_chat import jinja_renderer
from pipelines.templates.jinja_source import ChatTemplate, read_template

LONGLLAMA_SYSTEM = (
    "A chat between a user (denoted as USER:) and an artificial intelligence assistant (denoted as "
    "ASSISTANT:). The assistant gives helpful, detailed, and polite answers to the user's "
    "questions."
)
"""What LongLLaMA-Instruct's chats begin with, a blank line behind it."""

_LLAMA2_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def chat_renderer(
    options: Chat,
    *,
    special: Sequence[str],
    bos: str | None,
    eos: str | None,
    jinja: ChatTemplate | None = None,
) -> Callable[[Conversation], Rendered]:
    """A function that renders conversations as the options say.

    It raises BadRecordError for conversations that the template has no form for.

    Args:
        options: which template.
        special: how the vocabulary spells its special tokens; only Jinja templates look at them.
        bos: its begin-of-sequence token among them; None where it has none.
        eos: the same for end-of-sequence.
        jinja: the template that `options.jinja` names, where it was read before.

    Raises:
        UserError: the Jinja template cannot be read or used.
    """
    if options.jinja is not None:
        return jinja_renderer(
            jinja or read_template(options.jinja),
            special=special,
            bos=bos,
            eos=eos,
            system=options.system,
            date=options.date,
            arguments=options.arguments,
            without_end=options.without_end,
        )
    if options.template == "llama2":
        return partial(_llama2, system=options.system or "")
    if options.template == "longllama":
        given = LONGLLAMA_SYSTEM if options.system is None else options.system
        return partial(_longllama, system=given)
    return partial(_longllama_instruct, system=options.system or "")


def _llama2(conversation: Conversation, system: str) -> Rendered:
    """Llama 2 Chat, as Meta's reference puts it together.

    Each question and its answer stand between a BOS and an EOS. The space behind an answer is
    part of it: the model has to write it to come to the EOS. Like the reference, refuse
    conversations that hold the template's own tags.
    """
    system = _system(conversation, system)
    turns = conversation.turns
    _refuse_fields(turns)
    if any(turn.role != ("assistant" if i % 2 else "user") for i, turn in enumerate(turns)):
        raise BadRecordError("turns_do_not_alternate", " ".join(turn.role for turn in turns))
    for text in (system, *(turn.text for turn in turns)):
        if tag := next((tag for tag in _LLAMA2_TAGS if tag in text), None):
            raise BadRecordError("template_tag_in_text", tag)
    writer = Writer()
    before = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        writer.control(BOS)
        writer.put(f"[INST] {(before + question.text).strip()} [/INST]")
        _answer(writer, answer, f" {answer.text.strip()} ")
        before = ""
    return writer.rendered(framed=True)


def _longllama(conversation: Conversation, system: str) -> Rendered:
    """The chats of LongLLaMA-Instruct: USER and ASSISTANT, an EOS behind each answer."""
    _refuse_fields(conversation.turns)
    writer = Writer()
    writer.control(BOS)
    writer.put(f"{_system(conversation, system)}\n\n")
    for turn in conversation.turns:
        if turn.role == "assistant":
            writer.put("\nASSISTANT:")
            _answer(writer, turn, f" {turn.text}")
        else:
            writer.put(f"\nUSER: {turn.text}")
    return writer.rendered(framed=True)


def _longllama_instruct(conversation: Conversation, system: str) -> Rendered:
    """The instructions of LongLLaMA-Instruct: system prompt, question and response in lines."""
    turns = conversation.turns
    if [turn.role for turn in turns] != ["user", "assistant"]:
        raise BadRecordError("not_one_question", " ".join(turn.role for turn in turns))
    _refuse_fields(turns)
    writer = Writer()
    writer.control(BOS)
    writer.put(f"{_system(conversation, system)}\n{turns[0].text}\n")
    _answer(writer, turns[1], turns[1].text)
    return writer.rendered(framed=True)


def _system(conversation: Conversation, default: str) -> str:
    """The system prompt, and behind it the descriptions of functions as JSON."""
    prompt = default if conversation.system is None else conversation.system
    tools = json.dumps(conversation.tools, ensure_ascii=False) if conversation.tools else ""
    return "\n\n".join(filter(None, (prompt, tools)))


def _refuse_fields(turns: Sequence[Turn]) -> None:
    for place, turn in enumerate(turns, 1):
        if turn.role == "tool":
            said = "the template has no form for what a function returned"
            raise BadRecordError("tool_turn", said)
        if turn.fields:
            said = f"turn {place}: the template has no form for '{next(iter(turn.fields))}'"
            raise BadRecordError("field_not_rendered", said)


def _answer(writer: Writer, turn: Turn, text: str) -> None:
    """An answer and its EOS, both learned or both not."""
    if turn.loss:
        writer.answer(text)
    else:
        writer.put(text)
    writer.control(EOS, loss=turn.loss)
