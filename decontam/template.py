"""The little language of benchmark files: how a record becomes the text that HELM shows a model.

A template is text with fields in braces, such as `"{passage}\\nQuestion: {question|capitalize}?"`.
`{{` and `}}` stand for braces themselves.

A field names a path into the record, keys and positions joined by dots (`question.choices.text`,
`answers.0`). Where the path meets a list, it goes on through each of its items, so one template
may stand for several texts: `{answers.text}` is every answer's. Where a value is null there is no
text; `{references?}` may also be missing. With a `?`, no value is an empty text if the template has
more than this field.

Filters follow behind `|`, first to last; what they take stands behind `:`.

| filter | |
|---|---|
| `strip` | no white space at the ends |
| `capitalize` | first letter upper case, the others lower case |
| `upper_first` | first letter upper case |
| `question_mark`, `full_stop` | `?` or `.` at the end where it is missing |
| `words:512` | the first 512 words, one space between them; `words` alone keeps all |
| `split:;` | one text for each part between the separators; empty parts are left out |
| `map:neg=Negative,pos=Positive` | another text for each value; true, false, numbers as in JSON |
| `letter` | a position for a letter: A is 0 |
| `at_least:0.5` | true or false |

Two smaller ones are here too: patterns of file names, and rules that say a record's split.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any, NamedTuple, cast

from decontam.records import DecontamError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'valid'?` where one of `known` is close to `name`, else nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


class MissingFieldError(DecontamError):
    """A record has not the field that a template names."""


class _Field(NamedTuple):
    path: tuple[str, ...]
    optional: bool
    filters: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template; `parse` makes one."""

    source: str
    parts: tuple[str | _Field, ...]

    @classmethod
    def parse(cls, source: str) -> "Template":
        """Read a template.

        Raises:
            ValueError: a brace without its partner, an empty field, or an unknown filter.
        """
        parts: list[str | _Field] = []
        for piece in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+", source):
            if piece in ("{{", "}}"):
                parts.append(piece[0])
            elif len(piece) == 1 and piece in "{}":
                raise ValueError(f"'{piece}' has no partner; write {piece * 2} for the character")
            else:
                parts.append(_field(piece[1:-1]) if piece[0] == "{" else piece)
        return cls(source, tuple(parts))

    def texts(self, record: Mapping[str, Any]) -> list[str]:
        """The texts that the template stands for; none where a field has no value.

        Raises:
            MissingFieldError: the record lacks a field that is not marked `?`.
            DecontamError: a filter cannot take the value.
        """
        parts = [[part] if isinstance(part, str) else _texts(part, record) for part in self.parts]
        if len(parts) > 1:
            optional = (isinstance(part, _Field) and part.optional for part in self.parts)
            parts = [p or [""] * o for p, o in zip(parts, optional, strict=True)]
        return ["".join(text) for text in product(*parts)]


def parse_split_rule(rule: str) -> tuple[tuple[str, float], ...]:
    """`train 20%, valid` → the first fifth of the records is train, the others are valid.

    Raises:
        ValueError: not a list of split names, each but the last with a percentage.
    """
    shares: list[tuple[str, float]] = []
    items = [item.strip() for item in rule.split(",")]
    for place, item in enumerate(items, 1):
        match = re.fullmatch(r"(train|valid|test)(?: (\d+)%)?", item)
        if not match or (match[2] is None) != (place == len(items)):
            raise ValueError("must be train, valid or test, or 'train 20%, valid'")
        shares.append((match[1], int(match[2]) / 100 if match[2] else 1.0))
    return tuple(shares)


def file_regex(pattern: str) -> str:
    """The regular expression of a pattern of `Location.files`: what the end of a path must be."""
    pieces = re.findall(r"\*|\{\w+\}|[^*{]+|\{", pattern)
    regex = "".join(
        "[^/]*" if p == "*" else f"(?P<{p[1:-1]}>[^/]+)" if p[0] + p[-1] == "{}" else re.escape(p)
        for p in pieces
    )
    return rf"(?:^|/){regex}$"


def _field(source: str) -> _Field:
    name, *filters = source.split("|")
    optional = name.endswith("?")
    path = tuple(name.removesuffix("?").split("."))
    if not all(path):
        raise ValueError(f"'{{{source}}}' names no field")
    parsed: list[tuple[str, str]] = []
    for item in filters:
        key, _, argument = item.partition(":")
        if key not in _FILTERS:
            known = did_you_mean(key, _FILTERS) or f"; known: {', '.join(_FILTERS)}"
            raise ValueError(f"'{{{source}}}': there is no filter '{key}'{known}")
        if not re.fullmatch(_ARGUMENTS.get(key, ""), argument):
            raise ValueError(f"'{{{source}}}': filter '{key}' cannot take '{argument}'")
        parsed.append((key, argument))
    return _Field(path, optional, tuple(parsed))


def _texts(field: _Field, record: Mapping[str, Any]) -> list[str]:
    try:
        texts = [_as_text(value) for value in values(record, field.path) if value is not None]
    except LookupError:
        if field.optional:
            return []
        name, known = ".".join(field.path), ", ".join(map(str, record))
        raise MissingFieldError(f"no field '{name}'; the record has: {known}") from None
    for name, argument in field.filters:
        try:
            texts = [new for text in texts for new in _FILTERS[name](text, argument)]
        except (ValueError, KeyError):
            raise DecontamError(f"filter '{name}:{argument}' cannot take {texts[:3]!r}") from None
    return texts


def values(value: Any, path: tuple[str, ...]) -> list[Any]:
    """All values at a path, going through each item of every list on the way.

    Raises:
        LookupError: a key or position is not there.
    """
    if isinstance(value, list | tuple):
        items = cast("list[Any]", value)
        if path and path[0].isdecimal():
            return values(items[int(path[0])], path[1:])
        return [found for item in items for found in values(item, path)]
    if not path:
        return [value]
    if not isinstance(value, Mapping):
        raise LookupError(path[0])
    return values(cast("Mapping[str, Any]", value)[path[0]], path[1:])


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ending(mark: str) -> Callable[[str, str], list[str]]:
    return lambda text, _: [text if text.endswith(mark) else text + mark]


def _words(text: str, limit: str) -> list[str]:
    return [" ".join(text.split()[: int(limit) if limit else None])]


def _split(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _map(text: str, pairs: str) -> list[str]:
    return [dict(pair.split("=", 1) for pair in pairs.split(","))[text]]


def _letter(text: str, _: str) -> list[str]:
    return [str(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ").index(text.strip()))]


_FILTERS: dict[str, Callable[[str, str], list[str]]] = {
    "strip": lambda text, _: [text.strip()],
    "capitalize": lambda text, _: [text.capitalize()],
    "upper_first": lambda text, _: [text[:1].upper() + text[1:]],
    "question_mark": _ending("?"),
    "full_stop": _ending("."),
    "words": _words,
    "split": _split,
    "map": _map,
    "letter": _letter,
    "at_least": lambda text, least: [_as_text(float(text) >= float(least))],
}

_ARGUMENTS = {
    "words": r"\d*",
    "split": r".+",
    "map": r"[^=,]+=[^,]*(,[^=,]+=[^,]*)*",
    "at_least": r"\d+(\.\d+)?",
}
"""What may stand behind a filter's colon; behind the others, nothing."""
