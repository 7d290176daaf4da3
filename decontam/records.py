"""The nouns of decontamination: benchmark instances, and overlaps of documents with them."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Part = Literal["input", "reference"]
Rule = Literal["ngram", "whole", "no_words", "many_scenarios", "frequent"]

BOILERPLATE_RULES: frozenset[Rule] = frozenset({"no_words", "many_scenarios", "frequent"})
"""Overlaps that are reported apart: a policy says whether they count."""


class DecontamError(Exception):
    """Something the user can mend: the message names the place, the value and the way out."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a benchmark scenario, as HELM gives it to a model."""

    scenario: str
    """Name in the benchmark file, such as `mmlu` or `natural_qa_closedbook`."""

    variant: str
    """What tells runs of one scenario apart, such as `subject=anatomy`; may be empty."""

    split: str
    id: str
    input: str
    references: tuple[str, ...] = ()
    correct: tuple[bool, ...] = ()
    """Which references are right answers; as long as `references`."""

    question: int = 0
    """Character of `input` at which the question itself begins, behind a passage that other
    questions may share; `len(input)` where the input is nothing but such a passage (an article to
    be summarized)."""


class Overlap(NamedTuple):
    """A passage of a document that repeats a benchmark text word for word."""

    scenario: str
    variant: str
    split: str
    instance: str
    part: Part
    reference: int
    """Which reference, from 0; -1 for inputs."""

    rule: Rule
    """`ngram`: n words in a row; `whole`: all of a text shorter than n words; the others are
    n-grams that are reported apart, see `index.py`."""

    n_words: int
    """Words of the longest matching passage of this document and this benchmark text."""

    start: int
    """Bytes of the document's UTF-8 text that the passage covers: [start, end)."""

    end: int
    benchmark_start: int
    """The same passage in the UTF-8 text of the input or reference."""

    benchmark_end: int
    in_question: bool
    """Whether some matching passage reaches into the question, not only into what stands before
    it; for references whether the reference is a right answer."""
