"""The published schemas of chat and instruction records."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pipelines.chat_forms import (
    Roles,
    as_turns,
    only_one,
    refuse_dialogue,
    turns_in,
    turns_of,
    with_chosen,
)
from pipelines.chat_turns import (
    CALL_SIDES,
    REASONING_NAMES,
    RawRole,
    RawTurn,
    add_turn,
    from_json,
    read_turn,
    role_of,
    side_of,
    tools_of,
    turn_text,
)
from pipelines.conversations import Conversation, Record, Turn, conversation, text_of, texts_in
from pipelines.learn_marks import MARKS, is_learned, learned_turns
from pipelines.record_fields import is_empty, refuse_unread, without
from pipelines.rendering import BadRecordError

T = TypeVar("T")

_SYSTEM = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
_COMMON = (*_SYSTEM, *_TOOLS, *MARKS, "lang", "language")
_ANSWER = (*REASONING_NAMES, "refusal")
_ASKED = ("prompt", "question", "query", "instruction", "input")
"""Beside a list of turns these repeat one of them; a record where they do not is dropped."""


class ChatSchema(NamedTuple):
    """How records of one kind become conversations."""

    turns: Callable[[Record], Iterable[RawTurn]] | None
    """The turns of a record as objects, a system prompt first where it is one of them; None where
    one of `lists` holds them. Raises BadRecordError."""

    fields: tuple[str, ...]
    """All top-level fields that are read."""

    origin: tuple[str, ...]
    """What names a record: the first of these that is there."""

    language: str = "lang"
    """What names its language, with a dot into an object."""

    lists: tuple[str, ...] = ()
    """Fields that hold turns as objects."""

    harmless: tuple[str, ...] = ()
    """Fields that repeat what others say."""


def read_conversation(
    record: Record, schema: ChatSchema, roles: Roles, ignored: frozenset[str]
) -> Conversation:
    """The conversation that a record of a schema holds.

    Raises:
        BadRecordError: it holds none, or something that may not be passed over.
    """
    record = without(record, ignored)
    refuse_unread(record, frozenset(schema.fields))
    given = schema.turns(record) if schema.turns else turns_of(record, schema.lists, roles=roles)
    turns = [without(turn, ignored) for turn in given]
    kinds: list[RawRole] = [role_of(turn) for turn in turns]
    learned = learned_turns(record, kinds)
    system, tools = _system(record), _tools(record)
    if kinds[:1] == ["system"]:
        system = _same(system, _system_text(turns[0]), "two_system_prompts")
        tools = _same(tools or None, _tools(turns[0]) or None, "two_lists_of_tools") or ()
    kept: list[Turn] = []
    for turn, kind, learn in zip(turns, kinds, learned, strict=True):
        if kind != "system":
            add_turn(
                kept, read_turn(turn, kind, learned=learn), is_call=side_of(turn) in CALL_SIDES
            )
        elif turn is not turns[0]:
            raise BadRecordError("system_turn_inside", "a system turn that is not the first")
    if schema.turns is None:
        _refuse_other_question(record, system, kept)
    return conversation(kept, system, tools)


def _system(record: Record) -> str | None:
    """The system prompt of a field; an empty one is none."""
    found: str | None = None
    for name in _SYSTEM:
        if record.get(name):
            found = _same(found, text_of(record[name], name), "two_system_prompts")
    return found


def _system_text(turn: RawTurn) -> str:
    refuse_unread(turn, _SYSTEM_TURN, "system turn: ")
    is_learned(turn, is_answer=False, where="system turn: ")
    return turn_text(turn)


_SYSTEM_TURN = frozenset(("role", "from", "markdown", "value", "content", "text", *_TOOLS, *MARKS))


def _tools(record: Record) -> tuple[Mapping[str, Any], ...]:
    found: tuple[Mapping[str, Any], ...] | None = None
    for name in _TOOLS:
        found = _same(found, tools_of(record.get(name), name) or None, "two_lists_of_tools")
    return found or ()


def _same(one: T | None, other: T | None, reason: str) -> T | None:
    """What is given once, or twice alike."""
    if one is not None and other is not None and one != other:
        raise BadRecordError(reason, "given twice, and not alike")
    return other if one is None else one


def _refuse_other_question(record: Record, system: str | None, turns: Sequence[Turn]) -> None:
    """Drop a record whose question is a field beside the turns, and stands in none of them."""
    said = [system or "", *(turn.text for turn in turns)]
    for name in _ASKED:
        asked = as_turns(record.get(name))
        texts = texts_in(record.get(name)) if asked is None else map(turn_text, asked)
        if not all(any(text.strip() in whole for whole in said) for text in texts):
            raise BadRecordError("unread_field", f"field '{name}' stands in none of the turns")


def _pair(record: Record, question: str, answer: str) -> list[RawTurn]:
    """A question and its answer, with what the record says of how the answer was found."""
    said = {name: record[name] for name in _ANSWER if not is_empty(record.get(name))}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, **said},
    ]


def _question(record: Record, *names: str) -> str:
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        raise BadRecordError("missing_turns", f"no field '{names[0]}'")
    return text_of(record[name], name)


def _answer(record: Record, *names: str) -> str:
    name = only_one(record, names, "two_answers")
    if name is None:
        raise BadRecordError("no_answer", f"no field '{names[0]}'")
    return text_of(record[name], name)


def _openorca(record: Record) -> list[RawTurn]:
    return _pair(record, _question(record, "question"), _answer(record, "response"))


def _prompt_completion(record: Record) -> list[RawTurn]:
    """A prompt and what follows it: two texts, or two lists of turns as TRL has them.

    ms-swift adds `history`, as LLaMA-Factory does to `alpaca`.
    """
    asked = only_one(record, _PROMPTS, "two_questions")
    answered = only_one(record, _COMPLETIONS, "two_answers")
    if asked is None and answered != "chosen":
        raise BadRecordError("missing_turns", f"none of {', '.join(_PROMPTS)}")
    if answered is None:
        raise BadRecordError("no_answer", f"none of {', '.join(_COMPLETIONS)}")
    turns = _history(record)
    if asked is not None:
        found = turns_in(record[asked])
        text = text_of(record[asked], asked) if found is None else ""
        refuse_dialogue(text, asked)
        turns += [{"role": "user", "content": text}] if found is None else found
    if answered == "chosen":
        turns = with_chosen(turns, record[answered])
    else:
        found = turns_in(record[answered])
        text = text_of(record[answered], answered) if found is None else ""
        turns += [{"role": "assistant", "content": text}] if found is None else found
    said = {name: record[name] for name in _ANSWER if not is_empty(record.get(name))}
    return [*turns[:-1], {**turns[-1], **said}] if turns else turns


_PROMPTS = ("prompt", "question", "query")
_COMPLETIONS = ("completion", "response", "answer", "chosen")


def _alpaca(record: Record) -> list[RawTurn]:
    """An instruction, an input behind it on a line of its own, and an output.

    Dolly calls the input `context`. Self-instruct's tasks keep input and output in `instances`, of
    which there must be one. LLaMA-Factory adds `history`: pairs of a question and an answer before.
    """
    answered = _only_instance(record)
    given = [text_of(answered.get(name) or "", name) for name in ("input", "context")]
    question = "\n".join(filter(None, (_question(record, "instruction"), *given)))
    answer = _answer(answered, "output", "response", "completion")
    return [*_history(record), *_pair(record, question, answer)]


def _only_instance(record: Record) -> Record:
    instances = record.get("instances")
    if instances is None:
        return record
    if not isinstance(instances, Sequence) or len(instances) != 1:
        raise BadRecordError("not_one_instance", "'instances' must hold one")
    if not isinstance(instances[0], Mapping):
        raise BadRecordError("turn_not_an_object", type(instances[0]).__name__)
    return instances[0]


def _history(record: Record) -> list[RawTurn]:
    """What was said before: pairs of a question and an answer."""
    pairs = from_json(record.get("history")) or []
    if not isinstance(pairs, list):
        raise BadRecordError("turn_not_an_object", "'history' must hold pairs")
    turns: list[RawTurn] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecordError("turn_not_an_object", "'history' must hold pairs")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": text_of(text, "history")})
    return turns


def _oasst(record: Record) -> list[RawTurn]:
    """A tree of messages (`prompt`), or its root with the `replies`: the best path through it.

    From every message on to the reply of the best rank, and of equal ones the first; a question
    that nobody answered only where there is no other. What reviewers refused is passed over.
    """
    node: Any = record.get("prompt", record)
    if not isinstance(node, Mapping) or "replies" not in node:
        raise BadRecordError("missing_turns", "not a tree: a message without 'replies'")
    turns: list[RawTurn] = []
    while node is not None:
        if node.get("role") not in ("prompter", "assistant"):
            raise BadRecordError("unknown_role", str(node.get("role")))
        text_of(node.get("text"), "text")
        turns.append({name: value for name, value in node.items() if name != "replies"})
        node = min(_replies(node), key=_rank, default=None)
    return turns


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


def _inst_text(record: Record) -> list[RawTurn]:
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
    first: list[RawTurn] = []
    if texts[0].startswith("<<SYS>>"):
        system, end, texts[0] = texts[0].removeprefix("<<SYS>>").partition("<</SYS>>")
        if not end:
            raise BadRecordError("broken_inst_tags", "<<SYS>> without an end")
        first = [{"role": "system", "content": system.strip()}]
    sides = ("user", "assistant")
    return first + [
        {"role": sides[i % 2], "content": text.strip()} for i, text in enumerate(texts)
    ]  # fmt: skip


def _unframed(text: str) -> str:
    return text.strip().removesuffix("<s>").strip().removesuffix("</s>").strip()


_SHAREGPT = ("conversations", "conversation", "data")
_MESSAGES = ("messages", "data")

CHAT_SCHEMAS: Mapping[str, ChatSchema] = {
    "sharegpt": ChatSchema(
        None,
        (*_SHAREGPT, "chosen", "id", *_COMMON, *_ASKED),
        ("id",),
        lists=_SHAREGPT,
    ),
    "messages": ChatSchema(
        None,
        (*_MESSAGES, "chosen", "id", "prompt_id", *_COMMON, *_ASKED),
        ("id", "prompt_id"),
        lists=_MESSAGES,
    ),
    "prompt_completion": ChatSchema(
        _prompt_completion,
        (*_PROMPTS, *_COMPLETIONS, "history", "id", "prompt_id", *_ANSWER, *_COMMON),
        ("id", "prompt_id"),
        lists=("prompt", "completion", "chosen"),
    ),
    "openorca": ChatSchema(_openorca, ("question", "response", "id", *_ANSWER, *_COMMON), ("id",)),
    "alpaca": ChatSchema(
        _alpaca,
        ("instruction", "input", "context", "output", "response", "completion", "instances",
         "history", "id", *_ANSWER, *_COMMON),
        ("id",),
        harmless=("text",),
    ),
    "oasst": ChatSchema(
        _oasst,
        ("prompt", "role", "text", "replies", "message_tree_id", "message_id", *MARKS, "lang"),
        ("message_tree_id", "message_id"),
        "prompt.lang",
    ),
    "inst_text": ChatSchema(
        _inst_text, ("text", "id", "meta", *_COMMON), ("id", "meta.source")
    ),
}  # fmt: skip
"""What each schema reads, and which fields a decoder may leave out."""


def conversation_reader(
    schema: str, *, roles: Roles = "named", ignored: Iterable[str] = ()
) -> Callable[[Record], Conversation]:
    """Records of a schema → conversations; what cannot be one raises BadRecordError.

    Args:
        schema: a name of `CHAT_SCHEMAS`.
        roles: `alternate` reads turns that are plain texts, user and assistant in turn.
        ignored: fields of records and turns that are read as if they were not there.
    """
    return partial(
        read_conversation, schema=CHAT_SCHEMAS[schema], roles=roles, ignored=frozenset(ignored)
    )


def language_of(record: Record, schema: str) -> str:
    """What a record says its language is; empty where it says nothing."""
    value: Any = record
    for name in CHAT_SCHEMAS[schema].language.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return str(value if value is not None else record.get("lang") or "")
