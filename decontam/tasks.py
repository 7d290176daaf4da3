"""The rule that drops whole tasks: which examples of a task are a benchmark's, and how many do.

Instruction data come as tasks, and a task may be a benchmark in another format. Then dropping the
examples that were found is not enough: the others teach the same test. A document *is the same
example* as a benchmark instance where it repeats its question, in whatever format:

* A question behind a passage (BoolQ, QuAC): n words of the question are repeated, or the whole of
  a shorter one together with n words of the passage. The passage alone is not enough: others ask
  other questions about the same article.
* An input that is nothing but an article (summarization): n words of the article and of a right
  reference of the same instance.
* Any other input: a passage of at least half of its words. Where that is less than 2 n words, a
  right reference has to stand in the document too: people ask "Which of the following is an example
  of a chemical change?" with other answers to choose from.

A *short* example holds the whole of a question of fewer than n words, and a right reference where
the benchmark has one. Many people ask the same short question, so short examples count only where
a task has `SHORT_EXAMPLES` different ones. What else shares n words with an instance is reported
and drops nothing; neither do n-grams that are reported apart as boilerplate.

A task is dropped where `min_examples` instances count. Only the documents that resemble an input
most are looked at, 100 of each (`likeness.top_documents`). On MMLU in the form of Natural
Instructions and IMDB in that of P3 this drops every task, on tasks about the same Wikipedia
articles (HotpotQA, WikiHop, Quoref, BoolQ's own training questions) none.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, NamedTuple

SHORT_EXAMPLES = 3
"""Different short questions of which a task has to hold so many before they count."""

_PASSAGE_CHARACTERS = 200


class Kind(IntEnum):
    """What a document and a benchmark input have in common, from little to much."""

    RESEMBLES = 0
    SHARES = 1
    """Some n words."""

    SHORT = 2
    """The whole of a short question."""

    SAME = 3
    """It is the same example."""


class Repeated(NamedTuple):
    """How a document repeats a benchmark input; what `kind_of` decides by."""

    n: int
    """Words of an n-gram."""

    whole: bool
    """It is the whole of a text of fewer than n words."""

    n_words: int
    """Words of the longest passage."""

    input_words: int
    behind_passage: bool
    """The question stands behind a passage."""

    only_article: bool
    """The input has no question."""

    in_question: bool
    """As in `Overlap`."""


def kind_of(repeated: Repeated, *, answered: bool, summarized: bool) -> Kind:
    """The rule of this module for one document and one benchmark input.

    Args:
        repeated: what they share.
        answered: a right reference stands in the document, or the benchmark has none.
        summarized: n words of a right reference do.
    """
    r = repeated
    if r.only_article:
        return Kind.SAME if summarized else Kind.SHARES
    if r.whole:
        return Kind.SHORT if r.in_question and answered else Kind.SHARES
    if r.behind_passage:
        return Kind.SAME if r.in_question else Kind.SHARES
    long_enough = 2 * r.n_words >= r.input_words
    return Kind.SAME if long_enough and (r.n_words >= 2 * r.n or answered) else Kind.SHARES


class Example(NamedTuple):
    """A document of a task that repeats words of a benchmark input."""

    kind: Kind
    similarity: float
    scenario: str
    variant: str
    split: str
    instance: str
    words: str
    """What the benchmark's text has of the passage."""

    passage: str
    """What the document has of it."""

    uid: str
    file: str
    line: int

    @property
    def input(self) -> tuple[str, ...]:
        """Which benchmark instance."""
        return self.scenario, self.variant, self.split, self.instance

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return self._asdict() | {
            "kind": self.kind.name.lower(),
            "similarity": round(self.similarity, 4),
            "words": self.words[:_PASSAGE_CHARACTERS],
            "passage": self.passage[:_PASSAGE_CHARACTERS],
        }


@dataclass(frozen=True, slots=True)
class Evidence:
    """Examples of one kind that a task has."""

    instances: Mapping[str, int]
    """Different benchmark instances, by scenario."""

    strongest: Example

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"strongest": self.strongest.describe()}

    def __str__(self) -> str:
        counts = ", ".join(f"{n} of {scenario}" for scenario, n in self.instances.items())
        e = self.strongest
        passage = " ".join(e.passage.split())
        return f"{counts}; {e.scenario}/{e.split}/{e.instance}, {e.similarity:.2f}: {passage}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rule says of a task."""

    dropped: bool
    same: Evidence | None
    """The examples that count; None where none does."""

    shared: Evidence | None
    """Those that share words and do not count."""


def judge(examples: Sequence[Example], *, min_examples: int = 1) -> Verdict:
    """Decide about the task that some documents belong to; the order makes no difference."""
    short = {e.words.casefold() for e in examples if e.kind is Kind.SHORT}
    least = Kind.SHORT if len(short) >= SHORT_EXAMPLES else Kind.SAME
    same = [e for e in examples if e.kind >= least]
    instances = {e.input for e in same}
    others = [e for e in examples if e.kind < least and e.input not in instances]
    return Verdict(len(instances) >= min_examples, _evidence(same), _evidence(others))


def _evidence(examples: Iterable[Example]) -> Evidence | None:
    examples = list(examples)
    if not examples:
        return None
    counts = Counter(scenario for scenario, *_ in {e.input for e in examples})
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    first = min(examples, key=lambda e: (-e.kind, -e.similarity, e.input, e.uid, e.file, e.line))
    return Evidence(dict(by_count), first)
