"""A long document, a question about it and the answer (Llama 2 Long, arXiv 2309.16039, App. D)."""

import re
from typing import Any, Literal

from pipelines.options import Frozen
from pipelines.rendering import BadRecordError, Rendered, Span, Writer
from pipelines.templates.values import at, first_text, long_text, question_text


class LongQA(Frozen):
    """Where a record keeps document, question and answer.

    Dots in the names of fields go into objects, numbers into lists (`qas.0.question`).
    """

    document: str = "document"
    """The long text; a list of texts or of objects is joined line by line."""

    question: str = "question"
    """The question."""

    answer: str = "answer"
    """The answer; of several, the first."""

    style: Literal["record", "normal", "short"] = "record"
    """The template: `short` asks for a single phrase; `record`: what the field `kind` says."""

    kind: str = "kind"
    """Holds `normal` or `short`; read with `style: record` only."""

    chunk: str = "chunk"
    """Characters of the document that the answer is in, an object of `start` and `end`, or the
    character at which the answer itself stands (SQuAD's `answer_start`; of a list, the first at
    which it does). It may be missing, and a place where the answer does not stand counts as
    missing."""

    keep_chunk: bool = True
    """Whether a document that is too long keeps its chunk and loses the rest; otherwise, and
    without a chunk, it loses its end, as in the paper."""


_OPENING = (
    "[INST] You are given a long text (delimited by triple quotes) and a question. "
    "Read the text and answer the question in the end"
)
_ENDING = {
    "normal": ".",
    "short": (
        " as concisely as you can, using a single phrase or sentence if possible. "
        "Do not provide any explanation."
    ),
}


def render(record: Any, *, options: LongQA, max_characters: int) -> Rendered:
    """The published training template; the answer is what the model has to produce.

    What may be cut off so that the document fits is the text behind the chunk, or the whole
    document where no chunk is kept: question and answer are never lost. Where the chunk lies
    beyond `max_characters`, text is left out before it, in the same proportion as behind it, so
    that answers are found at every depth.

    Args:
        record: document, question and answer.
        options: where they are.
        max_characters: that surely fit into a sequence.

    Raises:
        BadRecordError: `missing_document`, `missing_question`, `unread_field`, `no_answer`,
            `unknown_kind` or `bad_chunk`.
    """
    question = question_text(record, options.question)
    answer = first_text(record, options.answer, missing="no_answer")
    document = long_text(record, options.document, missing="missing_document")
    start, keep = 0, 0
    if options.keep_chunk and (chunk := _chunk(record, document, answer, options)):
        ending = f'\n"""\nQuestion: {question}\n[/INST]\n{answer}'
        room = max_characters - len(_OPENING) - len(_ENDING["short"]) - len(ending)
        start, keep = _window_start(document, chunk, room), chunk[1]
    writer = Writer()
    writer.put(f'{_OPENING}{_ENDING[_kind(record, options)]}\n"""\n{document[start:keep]}')
    if keep < len(document):
        writer.shrinkable(document[keep:])
    writer.put(f'\n"""\nQuestion: {question}\n[/INST]\n')
    writer.answer(answer)
    return writer.rendered()


def _kind(record: Any, options: LongQA) -> str:
    if options.style != "record":
        return options.style
    kind = at(record, options.kind)
    if kind not in ("normal", "short"):
        raise BadRecordError("unknown_kind", f"field '{options.kind}': {kind!r}")
    return kind


def _chunk(record: Any, document: str, answer: str, options: LongQA) -> Span | None:
    """The part of the document that must stay, or None where the record names none."""
    value = at(record, options.chunk)
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(place, int) for place in value):
        return next((found for place in value if (found := _stands(document, answer, place))), None)
    if isinstance(value, int):
        return _stands(document, answer, value)
    start, end = at(value, "start"), at(value, "end")
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(document)):
        raise BadRecordError("bad_chunk", f"field '{options.chunk}': {value!r}")
    return start, end


def _stands(document: str, answer: str, place: int) -> Span | None:
    """The answer at a place of the document, or None where it does not stand there."""
    found = place >= 0 and document.startswith(answer, place)
    return (place, place + len(answer)) if found else None


def _window_start(document: str, chunk: Span, room: int) -> int:
    """The character that the document has to begin with for the chunk to be within `room`.

    What is left out stands before and behind the chunk in the proportion of all that does.
    """
    start, end = chunk
    around = len(document) - (end - start)
    if len(document) <= room or not around:
        return 0
    first = min(start, (len(document) - room) * start // around)
    gap = re.compile(r"\s\S").search(document, max(first - 1, 0), start + 1) if first else None
    return gap.end() - 1 if gap else first
