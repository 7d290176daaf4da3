"""Marks inside strings, by which a template's output tells where its parts come from.

A chat template is rendered twice: with the strings of a record as they are, and with marks in
them. Three kinds of marks are put in: at both ends of contents; in place of what is spelled like
a special token, so that a control token in the output can only be the template's own; and by the
template itself around what `{% generation %}` encloses. Without its marks the second output must
equal the first. A template that reads a string in a way that a mark changes is found out by that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.rendering import Span

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}([sepgh])(\\d*){_CLOSE}")
_ESCAPED = re.compile(r"\\u(e00[01])")

GENERATED = (f"{_OPEN}g{_CLOSE}", f"{_OPEN}h{_CLOSE}")
"""What stands around a part that `{% generation %}` encloses."""


@dataclass
class Marked:
    """An output without its marks, and where they stood."""

    text: str
    starts: dict[int, int] = field(default_factory=dict[int, int])
    """Where the content of each message begins, without blanks at its ends."""

    ends: dict[int, int] = field(default_factory=dict[int, int])
    controls: list[Span] = field(default_factory=list[Span])
    """Special tokens that the template wrote: ascending."""

    generated: list[Span] = field(default_factory=list[Span])
    """What `{% generation %}` encloses: ascending, disjoint."""

    order: list[int] = field(default_factory=list[int])
    """Messages by the ends of their contents; one that is written twice stands here twice."""


class Marks:
    """Puts marks into strings, and finds them in outputs."""

    def __init__(self, special: Sequence[str]) -> None:
        """`special`: how the vocabulary spells its special tokens."""
        self._spellings = (_OPEN, _CLOSE, *sorted(set(filter(None, special))))
        self._marks = {x: f"{_OPEN}p{n}{_CLOSE}" for n, x in enumerate(self._spellings)}
        self._special = re.compile(_any_of(self._spellings[2:]))
        self._unit = re.compile(f"{self._special.pattern}|<[^<>\\s]*>|\\w+|(?s:.)")
        self._protected = re.compile(_any_of(self._spellings))

    def needed(self, text: str) -> bool:
        """Whether there is anything in a text that `protect` puts marks in place of."""
        return self._protected.search(text) is not None

    def protect(self, value: Any, but: frozenset[str] = frozenset()) -> Any:
        """A value with marks in place of what is spelled like a special token, at any depth.

        Args:
            value: text, number, list or mapping.
            but: spellings that stay as they are.
        """
        if isinstance(value, str):

            def mark(found: re.Match[str]) -> str:
                spelling = found.group()
                return spelling if spelling in but else self._marks[spelling]

            return self._protected.sub(mark, value) if self.needed(value) else value
        if isinstance(value, Mapping):
            return {self.protect(k, but): self.protect(v, but) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(item, but) for item in value]
        return value

    def enclose(self, text: str, message: int) -> str:
        """A content with marks at its ends, blanks outside; as it is where it is blank."""
        inner = text.strip()
        if not inner:
            return text
        at = text.index(inner)
        begin, end = text[:at], text[at + len(inner) :]
        return f"{begin}{_OPEN}s{message}{_CLOSE}{inner}{_OPEN}e{message}{_CLOSE}{end}"

    def read(self, output: str) -> Marked:
        """The output without marks, and where they stood."""
        own, *rest = _MARK.split(output)
        found = Marked("")
        parts = [own]
        at = self._controls(own, 0, found)
        opened = 0
        for place in range(0, len(rest), 3):
            kind, number, own = rest[place : place + 3]
            if kind == "p":
                spelling = self._spellings[int(number)]
                parts.append(spelling)
                at += len(spelling)
            elif kind == "s":
                found.starts.setdefault(int(number), at)
            elif kind == "e":
                found.ends[int(number)] = at
                found.order.append(int(number))
            elif kind == "g":
                opened = at
            elif at > opened:
                found.generated.append((opened, at))
            parts.append(own)
            at = self._controls(own, at, found)
        found.text = "".join(parts)
        return found

    def units(self, text: str) -> list[int]:
        """Where special tokens, tags, words and signs of a text end, ascending."""
        return [found.end() for found in self._unit.finditer(text)]

    def control_at(self, text: str) -> str | None:
        """The special token that a text begins with."""
        found = self._special.match(text)
        return found.group() if found else None

    def _controls(self, own: str, at: int, found: Marked) -> int:
        """Add the special tokens in a stretch of the template's own text; returns where it ends."""
        for token in self._special.finditer(own):
            found.controls.append((at + token.start(), at + token.end()))
        return at + len(own)


def escaped_marks(text: str) -> str:
    r"""JSON with the characters of marks themselves in it, where they became `\ue000`."""
    return _ESCAPED.sub(lambda found: chr(int(found.group(1), 16)), text)


def _any_of(spellings: Sequence[str]) -> str:
    """An expression for any of these, the longest first; as a tree, so that many are no burden."""
    if not spellings:
        return "(?!)"
    tree: dict[str, Any] = {}
    for spelling in spellings:
        node = tree
        for character in spelling:
            node = node.setdefault(character, {})
        node[""] = {}
    return _expression(tree)


def _expression(tree: dict[str, Any]) -> str:
    ways: list[str] = []
    for character in sorted(filter(None, tree), reverse=True):
        way, below = re.escape(character), tree[character]
        while len(below) == 1 and "" not in below:
            step = next(iter(below))
            way, below = way + re.escape(step), below[step]
        ways.append(way + (_expression(below) if below != {"": {}} else ""))
    joined = f"(?:{'|'.join(ways)})" if ways else ""
    return f"{joined}?" if "" in tree and joined else joined
