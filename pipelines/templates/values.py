"""Where records keep their texts: paths with dots, and what counts as a text there."""

from collections.abc import Mapping
from typing import Any

from pipelines.record_fields import is_empty
from pipelines.rendering import BadRecordError, is_blank


def at(value: Any, path: str) -> Any:
    """What a record holds at a path, or None. Dots go into objects and, as numbers, into lists."""
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def texts(value: Any) -> list[str]:
    """All texts in a value, stripped, without empty ones.

    Data sets write answers as a text, a list of texts, or objects that keep the text as `text`
    (SQuAD, also as one object of lists) or `string` (QED).
    """
    if isinstance(value, str):
        return [] if is_blank(value) else [value.strip()]
    if isinstance(value, Mapping):
        return texts(value.get("text", value.get("string")))
    return [text for item in value for text in texts(item)] if isinstance(value, list) else []


def first_text(record: Any, path: str, *, missing: str) -> str:
    """The first text at a path.

    Raises:
        BadRecordError: there is none; `missing` is the reason.
    """
    if found := texts(at(record, path)):
        return found[0]
    raise BadRecordError(missing, f"no text in field '{path}'")


def question_text(record: Any, path: str) -> str:
    """The question at a path, which must be whole.

    Raises:
        BadRecordError: `missing_question`; `unread_field`: beside it stand the choices that it
            asks to choose from, which no template shows.
    """
    question = first_text(record, path, missing="missing_question")
    above = path.rpartition(".")[0]
    beside = at(record, above) if above else record
    for name in _CHOICES:
        if isinstance(beside, Mapping) and name in beside and not is_empty(beside[name]):
            raise BadRecordError("unread_field", f"field '{name}' belongs to the question")
    return question


_CHOICES = ("choices", "options", "candidates", "answer_choices")


def long_text(record: Any, path: str, *, missing: str) -> str:
    """The text at a path as it stands; a list is joined by line ends.

    An object in the list is a line of its texts with `: ` between them, so that turns of speakers
    (QMSum's `meeting_transcripts`) become a transcript.

    Raises:
        BadRecordError: there is none; `missing` is the reason.
    """
    found = at(record, path)
    lines = found if isinstance(found, list) else [found]
    text = "\n".join(filter(None, map(_line, lines)))
    if is_blank(text):
        raise BadRecordError(missing, f"no text in field '{path}'")
    return text


def _line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ": ".join(part for part in value.values() if isinstance(part, str))
    return value if isinstance(value, str) else ""
