"""Passages: where they come from, what a retriever of them is, and how they are compared."""

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from pydantic import Field

from pipelines.options import Frozen, Names, Paths


class Passages(Frozen):
    """The passages that distractors are taken from."""

    path: Paths
    """Files of passages, or of questions that hold passages."""

    local: Paths | None = None
    """The same below --data-root."""

    items: Names = Field(default=[])
    """Fields of a record that hold a list of passages each; without them a record is one."""

    title: str = "title"
    """Field of a passage with its title."""

    text: str = "text"
    """Field of a passage with its text."""


class Passage(NamedTuple):
    """A passage, in one line."""

    title: str
    text: str


class Retriever(Protocol):
    """Passages by number, and which of them are like a question."""

    def __len__(self) -> int: ...

    def passage(self, number: int) -> Passage:
        """One of them, by its number from 0."""
        ...

    def ranked(self, question: str) -> Iterator[int]:
        """The numbers of passages that share a word with a question, best first."""
        ...


def one_line(text: str) -> str:
    """The text with single spaces for all white space: passages are told apart by lines."""
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """What is compared: runs of letters and digits, without case, accents and compatibility."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in decomposed if not unicodedata.combining(c))
    return re.findall(r"\w+", text.casefold())


def holds(passage: Passage, answers: list[str]) -> bool:
    """Whether the words of an answer stand in a row in the passage or its title."""
    text = f"{passage.title}\n{passage.text}"
    spaced = f" {' '.join(words(text))} "
    return any(
        f" {' '.join(found)} " in spaced if (found := words(answer)) else answer in text
        for answer in answers
    )
