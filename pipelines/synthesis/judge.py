"""What replies of the model say about a question and its answer.

Texts are compared by their words: lower case, letters and digits, no articles. The thresholds are
ours; docs/synthesis.md has what they let through.
"""

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.synthesis.parsing import Pair
from pipelines.synthesis.prompts import Kind

Critique = Literal["right", "wrong", "unclear"]

AGREEMENT: dict[Kind, float] = {"normal": 0.4, "short": 0.6}
"""F1 of the words from which on two answers say the same."""

SUPPORT: dict[Kind, float] = {"normal": 0.6, "short": 1.0}
"""Share of an answer's content words that the chunk has to hold."""

_WORD = re.compile(r"\w+")
_ARTICLES = frozenset({"a", "an", "the"})
_FUNCTION_WORDS = _ARTICLES | frozenset(
    """
    i you he she it we they me him her us them my your his its our their this that these those is
    are was were be been being am do does did has have had of to in on at by for with from as and
    or but if so not no yes there here what who whom whose which when where why how
    """.split()  # noqa: SIM905
)
_VERDICT = re.compile(r"VERDICT\W*(RIGHT|WRONG)\b", re.IGNORECASE)
_LAST_WORD = re.compile(r"\b(RIGHT|WRONG)\W*\Z")
_ABSTAINS = re.compile(r"\b(?:not in the passage|(?:do not|don['’]t) know)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judges found; None where one was not asked."""

    support: float
    """Share of the answer's content words that stand in the chunk; 0 where it has none."""

    in_chunk: bool
    in_question: bool = False
    """The question holds all that the answer says."""

    critique: Critique | None = None
    round_trip: bool | None = None
    """The model's own answer from the chunk says the same."""

    leaked: bool | None = None
    """So does its answer without the document."""

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        return {
            "support": round(self.support, 4),
            "in_chunk": self.in_chunk,
            "in_question": self.in_question,
            "critique": self.critique,
            "round_trip": self.round_trip,
            "leaked": self.leaked,
        }

    def drop_reason(self) -> str | None:
        """Why the record is dropped, the first reason that holds; None where it is kept."""
        reasons = {
            "critique_wrong": self.critique == "wrong",
            "critique_unclear": self.critique == "unclear",
            "not_in_chunk": not self.in_chunk,
            "answer_in_question": self.in_question,
            "round_trip_differs": self.round_trip is False,
            "leaked": self.leaked is True,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)


def judge(
    pair: Pair,
    chunk: str,
    kind: Kind,
    *,
    critique: str | None,
    round_trip: str | None,
    closed_book: str | None,
) -> Verdict:
    """The verdict on a pair, from the chunk and the raw replies; None for one not asked for."""
    support, given = supported(pair.answer, chunk), content_words(pair.question)
    whole = kind == "short" and holds(words(chunk), words(pair.answer))
    return Verdict(
        support=support,
        in_chunk=support > 0 and (whole or support >= SUPPORT[kind]),
        in_question=support > 0 and content_words(pair.answer) <= given,
        critique=None if critique is None else read_critique(critique),
        round_trip=None if round_trip is None else agree(pair.answer, round_trip, kind, given),
        leaked=None if closed_book is None else agree(pair.answer, closed_book, kind, given),
    )


def words(text: str) -> list[str]:
    """The words that count, lower case."""
    return [word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES]


def content_words(text: str) -> set[str]:
    """The words that say something."""
    return {word for word in _WORD.findall(text.casefold()) if word not in _FUNCTION_WORDS}


def supported(answer: str, chunk: str) -> float:
    """Share of an answer's content words that stand in a chunk; 0 where it has none."""
    wanted = content_words(answer)
    return len(wanted & content_words(chunk)) / len(wanted) if wanted else 0.0


def holds(text: Sequence[str], some: Sequence[str]) -> bool:
    """Whether some words, at least one, stand in a text one after the other."""
    size = len(some)
    some = list(some)
    return size > 0 and any(list(text[i : i + size]) == some for i in range(len(text) - size + 1))


def agree(answer: str, other: str, kind: Kind, given: Set[str] = frozenset()) -> bool:
    """Whether two answers say the same: one holds the other, or they share enough words.

    Args:
        answer: of the record.
        other: the model's later answer.
        kind: which threshold holds.
        given: words of the question, which say nothing where an answer repeats them.
    """
    if _ABSTAINS.search(other):
        return False
    one, two = ([word for word in words(text) if word not in given] for text in (answer, other))
    short, long = sorted((one, two), key=len)
    if content_words(" ".join(short)) and holds(long, short):
        return True
    return _f1(one, two) >= AGREEMENT[kind]


def _f1(one: list[str], two: list[str]) -> float:
    common = sum((Counter(one) & Counter(two)).values())
    return 2 * common / (len(one) + len(two)) if common else 0.0


def read_critique(reply: str) -> Critique:
    """The last verdict of a critique; one in capitals at its very end needs no `VERDICT`."""
    found = _VERDICT.findall(reply) or _LAST_WORD.findall(reply)
    if not found:
        return "unclear"
    return "right" if found[-1].upper() == "RIGHT" else "wrong"
