"""The published schemas of chat and instruction records."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pipelines.conversations import (
    ChatSchema,
    Conversation,
    Record,
    Turn,
    conversation,
    conversation_of_turns,
    text_of,
)
from pipelines.rendering import BadRecordError


def _question(record: Record, *names: str) -> str:
    found = next((record[name] for name in names if record.get(name) is not None), None)
    if found is None:
        raise BadRecordError("missing_turns", f"no field '{names[0]}'")
    return text_of(found, names[0])


def _answer(record: Record, *names: str) -> str:
    found = next((record[name] for name in names if record.get(name) is not None), None)
    if found is None:
        raise BadRecordError("no_answer", f"no field '{names[0]}'")
    return text_of(found, names[0])


def _openorca(record: Record) -> Conversation:
    turns = (
        Turn("user", _question(record, "question")),
        Turn("assistant", _answer(record, "response")),
    )
    return conversation(turns, text_of(record.get("system_prompt") or "", "system_prompt"))


def _alpaca(record: Record) -> Conversation:
    """An instruction, an input behind it on a line of its own, and an output.

    Self-instruct's tasks keep input and output in `instances`, of which there must be one.
    LLaMA-Factory adds `system`, and `history`: pairs of a question and an answer before.
    """
    answered = _only_instance(record)
    history = [
        Turn(role, text_of(text, "history"))
        for pair in _pairs(record.get("history"))
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    given = text_of(answered.get("input") or "", "input")
    question = "\n".join(filter(None, (_question(record, "instruction"), given)))
    turns = [
        *history,
        Turn("user", question),
        Turn("assistant", _answer(answered, "output", "response")),
    ]
    return conversation(turns, text_of(record.get("system") or "", "system"))


def _only_instance(record: Record) -> Record:
    instances = record.get("instances")
    if instances is None:
        return record
    if not isinstance(instances, Sequence) or len(instances) != 1:
        raise BadRecordError("not_one_instance", "'instances' must hold one")
    if not isinstance(instances[0], Mapping):
        raise BadRecordError("turn_not_an_object", type(instances[0]).__name__)
    return instances[0]


def _pairs(history: Any) -> Sequence[Any]:
    if not history:
        return ()
    if isinstance(history, list) and all(isinstance(x, list) and len(x) == 2 for x in history):
        return history
    raise BadRecordError("turn_not_an_object", "'history' must hold pairs")


def _oasst(record: Record) -> Conversation:
    """A tree of messages (`prompt`), or its root with the `replies`: the best path through it.

    From every message on to the reply of the best rank, and of equal ones the first; a question
    that nobody answered only where there is no other. What reviewers refused is passed over.
    """
    node: Any = record.get("prompt", record)
    if not isinstance(node, Mapping) or "replies" not in node:
        raise BadRecordError("missing_turns", "not a tree: a message without 'replies'")
    turns: list[Turn] = []
    while node is not None:
        side = node.get("role")
        if side not in ("prompter", "assistant"):
            raise BadRecordError("unknown_role", str(side))
        text = text_of(node.get("text"), "text")
        turns.append(Turn("assistant" if side == "assistant" else "user", text))
        node = min(_replies(node), key=_rank, default=None)
    return conversation(turns)


def _replies(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Messages that follow, but for deleted and refused ones."""
    found = node.get("replies") or []
    if not isinstance(found, list) or not all(isinstance(reply, Mapping) for reply in found):
        raise BadRecordError("turn_not_an_object", "'replies' must hold messages")
    return [x for x in found if not x.get("deleted") and x.get("review_result") is not False]


def _rank(reply: Mapping[str, Any]) -> tuple[bool, float]:
    rank = reply.get("rank")
    unanswered = reply.get("role") == "prompter" and not _replies(reply)
    return unanswered, rank if isinstance(rank, int) else float("inf")


_INST = re.compile(r"\[(/?)INST\]")


def _inst_text(record: Record) -> Conversation:
    """One text with questions between [INST] and [/INST], as LLaMA-2-7B-32K-Instruct's.

    White space around turns is the form's. `<s>` before the first and around the others is taken
    off too, and `<<SYS>>` at the beginning makes a system prompt.
    """
    before, *rest = _INST.split(_question(record, "text"))
    if not rest:
        raise BadRecordError("missing_turns", "no [INST]")
    expected = ["/" if i % 2 else "" for i in range(len(rest) // 2)]
    if before.strip() not in ("", "<s>") or rest[::2] != expected:
        raise BadRecordError("broken_inst_tags", "[INST] and [/INST] do not alternate")
    texts = [_unframed(text) if before.strip() else text.strip() for text in rest[1::2]]
    system = ""
    if texts[0].startswith("<<SYS>>"):
        system, end, texts[0] = texts[0].removeprefix("<<SYS>>").partition("<</SYS>>")
        if not end:
            raise BadRecordError("broken_inst_tags", "<<SYS>> without an end")
    turns = [Turn("assistant" if i % 2 else "user", text.strip()) for i, text in enumerate(texts)]
    return conversation(turns, system.strip())


def _unframed(text: str) -> str:
    return text.strip().removesuffix("<s>").strip().removesuffix("</s>").strip()


_LISTED = ("system", "tools", "chosen", "label", "lang")

CHAT_SCHEMAS: Mapping[str, ChatSchema] = {
    "sharegpt": ChatSchema(
        partial(conversation_of_turns, field="conversations"),
        ("conversations", "id", *_LISTED),
        ("id",),
    ),
    "messages": ChatSchema(
        partial(conversation_of_turns, field="messages"),
        ("messages", "id", "prompt_id", *_LISTED),
        ("id", "prompt_id"),
    ),
    "openorca": ChatSchema(
        _openorca, ("system_prompt", "question", "response", "id", "lang"), ("id",)
    ),
    "alpaca": ChatSchema(
        _alpaca,
        (
            "instruction",
            "input",
            "output",
            "response",
            "instances",
            "system",
            "history",
            "id",
            "lang",
        ),
        ("id",),
    ),
    "oasst": ChatSchema(
        _oasst,
        ("prompt", "role", "text", "replies", "message_tree_id", "message_id", "lang"),
        ("message_tree_id", "message_id"),
        "prompt.lang",
    ),
    "inst_text": ChatSchema(_inst_text, ("text", "id", "meta", "lang"), ("id", "meta.source")),
}
"""What each schema reads, and which fields a decoder may leave out."""


def conversation_reader(schema: str) -> Callable[[Record], Conversation]:
    """Records of a schema → conversations; what cannot be one raises BadRecordError."""
    return CHAT_SCHEMAS[schema].read


def language_of(record: Record, schema: str) -> str:
    """What a record says its language is; empty where it says nothing."""
    value: Any = record
    for name in CHAT_SCHEMAS[schema].language.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return str(value if value is not None else record.get("lang") or "")
