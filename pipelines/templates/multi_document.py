"""A question over 10 to 200 retrieved passages, one of which answers it.

The multi-document fine-tuning examples of LLaMA-2-7B-32K: Natural Questions with the prompt of
Lost in the Middle (arXiv 2307.03172).
"""

import random
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from pipelines.options import Frozen, Whole
from pipelines.rendering import BadRecordError, Rendered, Writer
from pipelines.templates.passages import Passage, Passages, Retriever, holds, one_line
from pipelines.templates.values import at, first_text, question_text, texts

Count = Annotated[Whole, Field(ge=2, le=10_000)]


class MultiDocument(Frozen):
    """Questions with the passages that answer them, and where other passages come from.

    Dots in the names of fields go into objects, numbers into lists.
    """

    passages: Passages
    """The passages to choose from."""

    documents: tuple[Count, Count] = (10, 200)
    """Least and greatest number of passages in a document; every number is equally likely."""

    retriever: Literal["bm25", "random"] = "bm25"
    """How distractors are chosen: those most like the question, or any."""

    order: Literal["retrieved", "shuffled"] = "retrieved"
    """How distractors are ordered; the gold passage stands anywhere in either case."""

    label: str = "Document [{number}](Title: {title}) {text}"
    """A passage in the prompt."""

    question: str = "question"
    """Field with the question."""

    answers: str = "answers"
    """Field with the short answers; the first one that the gold passage holds is used, and no
    distractor holds any of them."""

    gold: str = "ctxs"
    """Field with the gold passage: an object with `title` and `text`, a list of such objects (the
    one marked `isgold`, else the first) or a text."""

    title: str = "title"
    """Field with the title of a gold passage that is a text."""

    long_answer: str = "nq_annotated_gold.chunked_long_answer"
    """Field with the long answer; where it is missing, the gold passage's text."""

    @field_validator("documents")
    @classmethod
    def _ascending(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError("must be the least and the greatest number, in this order")
        return value

    @field_validator("label")
    @classmethod
    def _known_names(cls, value: str) -> str:
        parts = [(name, spec, how) for _, name, spec, how in Formatter().parse(value)]
        names = [name for name, _, _ in parts if name is not None]
        plain = not any(spec or how for _, spec, how in parts)
        if not plain or not {"number", "text"} <= {*names} <= {"number", "title", "text"}:
            raise ValueError("must hold {number} and {text}, may hold {title}, and nothing else")
        return value


class _Asked(NamedTuple):
    question: str
    answers: list[str]
    gold: Passage
    short: str
    long: str


_INSTRUCTION = (
    "Write a high-quality answer for the given question using only the provided search results "
    "(some of which might be irrelevant)."
)


def render(
    record: Any,
    passages: Retriever,
    *,
    options: MultiDocument,
    rng: random.Random,
    max_characters: int,
) -> Rendered:
    """The published form; from `Answer:` on it is what the model has to produce.

    There are fewer distractors than drawn where more do not fit or do not exist; nothing is cut.

    Args:
        record: a question with its answers and its gold passage.
        passages: where distractors come from.
        options: where the record keeps what, and how many passages there may be.
        rng: the random choices for this record.
        max_characters: of the whole document.

    Raises:
        BadRecordError: `missing_question`, `unread_field`, `no_answer`, `missing_gold`,
            `answer_not_in_gold`, `too_few_passages`, or `over_budget` where the least number of
            passages does not fit.
    """
    asked = _asked(record, options)
    wanted = rng.randint(*options.documents)
    around = len(_prompt(asked, [], options)) + len(_completion(asked, wanted))
    room = max_characters - around - _length(asked.gold, 1, options)
    chosen = _distractors(asked, passages, wanted - 1, room, options=options, rng=rng)
    if options.order == "shuffled":
        rng.shuffle(chosen)
    place = rng.randrange(len(chosen) + 1)
    chosen.insert(place, asked.gold)
    writer = Writer()
    writer.put(_prompt(asked, chosen, options))
    writer.answer(_completion(asked, place + 1))
    return writer.rendered()


def _prompt(asked: _Asked, passages: list[Passage], options: MultiDocument) -> str:
    lines = [_line(passage, number, options) for number, passage in enumerate(passages, 1)]
    return "\n".join([_INSTRUCTION, "", *lines, "", f"Question: {asked.question}", ""])


def _completion(asked: _Asked, number: int) -> str:
    return f"Answer: {asked.short}\nLong Answer: {asked.long}\nGold Document ID: {number}"


def _asked(record: Any, options: MultiDocument) -> _Asked:
    question = one_line(question_text(record, options.question))
    first_text(record, options.answers, missing="no_answer")
    answers = [one_line(answer) for answer in texts(at(record, options.answers))]
    gold = _gold(record, options)
    held = [answer for answer in answers if holds(gold, [answer])]
    if not held:
        raise BadRecordError("answer_not_in_gold", f"{answers[0]!r}")
    long = texts(at(record, options.long_answer)) or [gold.text]
    return _Asked(question, answers, gold, held[0], one_line(long[0]))


def _gold(record: Any, options: MultiDocument) -> Passage:
    found = at(record, options.gold)
    title = at(record, options.title)
    if isinstance(found, list):
        passages = [item for item in found if isinstance(item, Mapping)]
        if any("isgold" in item for item in passages):
            passages = [item for item in passages if item.get("isgold")]
        found = passages[0] if passages else None
    if isinstance(found, Mapping):
        title, found = at(found, options.passages.title), at(found, options.passages.text)
    if not isinstance(found, str) or not found.strip():
        raise BadRecordError("missing_gold", f"no passage in field '{options.gold}'")
    return Passage(one_line(title) if isinstance(title, str) else "", one_line(found))


def _distractors(
    asked: _Asked,
    passages: Retriever,
    wanted: int,
    room: int,
    *,
    options: MultiDocument,
    rng: random.Random,
) -> list[Passage]:
    """Up to `wanted` passages of `room` characters in all, none of which answers the question."""
    chosen: list[Passage] = []
    least, reason = options.documents[0] - 1, "too_few_passages"
    for number in _candidates(asked.question, passages, options, rng) if wanted else ():
        passage = passages.passage(number)
        if passage.text == asked.gold.text or holds(passage, asked.answers):
            continue
        room -= _length(passage, len(chosen) + 2, options)
        if room < 0:
            reason = "over_budget"
            break
        chosen.append(passage)
        if len(chosen) == wanted:
            break
    if len(chosen) < least:
        raise BadRecordError(reason, f"{len(chosen)} distractors, at least {least} are needed")
    return chosen


def _candidates(
    question: str, passages: Retriever, options: MultiDocument, rng: random.Random
) -> Iterator[int]:
    """All passages in the order in which they are taken, each once."""
    ranked: set[int] = set()
    if options.retriever == "bm25":
        for number in passages.ranked(question):
            ranked.add(number)
            yield number
    yield from (number for number in _shuffled(len(passages), rng) if number not in ranked)


def _shuffled(n: int, rng: random.Random) -> Iterator[int]:
    """The numbers below n in random order, drawn one by one: there may be millions."""
    moved: dict[int, int] = {}
    for i in range(n):
        j = rng.randrange(i, n)
        yield moved.get(j, j)
        moved[j] = moved.pop(i, i)


def _line(passage: Passage, number: int, options: MultiDocument) -> str:
    return options.label.format(number=number, title=passage.title, text=passage.text)


def _length(passage: Passage, number: int, options: MultiDocument) -> int:
    """Characters of a passage in the prompt, its line end counted.

    The sum over all of them does not depend on which one gets which number.
    """
    return len(_line(passage, number, options)) + 1
