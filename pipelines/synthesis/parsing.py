"""Replies of the model → question and answer."""

import re
from typing import NamedTuple

_TAG = re.compile(r"<\s*(/?)\s*(question|answer)\s*>", re.IGNORECASE)


class Pair(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


class UnparsedError(Exception):
    """A reply without a question and an answer; the record is dropped with this reason."""

    def __init__(self, reason: str, evidence: str = "") -> None:
        super().__init__(reason, evidence)
        self.reason = reason
        self.evidence = evidence[:200]


class _Tag(NamedTuple):
    name: str
    closes: bool
    start: int
    end: int


def parse_pair(reply: str) -> Pair:
    """The first question of a reply and the first answer behind it.

    Each stands between its own two tags, with no other tag of ours inside; what is around them
    does not matter, nor do further pairs.

    Raises:
        UnparsedError: `empty_reply`, `no_question`, `no_answer` (a tag of the pair is missing),
            `tangled_tags` (a tag stands inside the question or the answer), `empty_question`,
            `empty_answer`.
    """
    if not reply.strip():
        raise UnparsedError("empty_reply")
    tags = [_Tag(m[2].lower(), bool(m[1]), m.start(), m.end()) for m in _TAG.finditer(reply)]
    question, rest = _element(reply, tags, "question")
    answer, _ = _element(reply, rest, "answer")
    return Pair(question, answer)


def _element(reply: str, tags: list[_Tag], name: str) -> tuple[str, list[_Tag]]:
    """The text of the first element of a name, and the tags behind it."""
    opens = next((i for i, tag in enumerate(tags) if tag.name == name and not tag.closes), None)
    if opens is None:
        raise UnparsedError(f"no_{name}", "no opening tag")
    if opens + 1 == len(tags):
        raise UnparsedError(f"no_{name}", "no closing tag")
    first, last = tags[opens], tags[opens + 1]
    if not (last.closes and last.name == name):
        raise UnparsedError("tangled_tags", f"{reply[last.start : last.end]} inside the {name}")
    text = " ".join(reply[first.end : last.start].split())
    if not any(map(str.isalnum, text)):
        raise UnparsedError(f"empty_{name}", text)
    return text, tags[opens + 2 :]
