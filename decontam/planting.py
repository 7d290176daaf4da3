"""Benchmark texts as other people's documents have them: edits, and where they are put.

The edits change no word that `normalize.py`'s default rule compares, so every one of them has to
be found.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal

Position = Literal["start", "middle", "end"]
POSITIONS: tuple[Position, ...] = ("start", "middle", "end")

_SYNTAX = re.compile(r"[&<>\\~{}`]")
_TEX_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"'}


def is_plain(text: str) -> bool:
    """Whether a text has no markup of its own, which an edit of it could change the meaning of."""
    return not _SYNTAX.search(text) and all(c.isprintable() or c == "\n" for c in text)


def as_it_is(text: str) -> str:
    """Word for word."""
    return text


def rewrapped(text: str) -> str:
    """Eight words a line."""
    words = text.split()
    return "\n".join(" ".join(words[i : i + 8]) for i in range(0, len(words), 8))


def bulleted(text: str) -> str:
    """A bullet between any two words."""
    return "\n \N{BULLET} ".join(text.split())


def upper_case(text: str) -> str:
    """All capitals."""
    return text.upper()


def without_punctuation(text: str) -> str:
    """Letters, digits, signs and spaces only."""
    return "".join(c for c in text if unicodedata.category(c)[0] != "P")


def hyphenated(text: str) -> str:
    """Every long word divided at the end of a line."""
    return re.sub(r"\b[a-zA-Z]{8,}\b", lambda m: f"{m[0][:4]}-\n{m[0][4:]}", text)


def with_entities(text: str) -> str:
    """As HTML source that escapes what it can."""
    escaped = html.escape(text, quote=True)
    escaped = "".join(c if ord(c) < 128 else f"&#{ord(c)};" for c in escaped)
    return escaped.replace(" ", "&nbsp;")


def with_zero_width(text: str) -> str:
    """Zero-width spaces and soft hyphens inside words."""
    return re.sub(r"(\w\w)(\w\w)", "\\1\u200b\\2\u00ad", text)


def as_latex(text: str) -> str:
    """As TeX source: escapes, accents, and every fourth word emphasized."""
    escaped = re.sub(r"([%#$_])", r"\\\1", "".join(map(_tex_character, text)))
    words = escaped.split(" ")
    return " ".join(rf"\emph{{{w}}}" if i % 4 == 3 and w else w for i, w in enumerate(words))


def _tex_character(character: str) -> str:
    plain, *marks = unicodedata.normalize("NFD", character)
    if len(marks) == 1 and marks[0] in _TEX_ACCENTS:
        return f"\\{_TEX_ACCENTS[marks[0]]}{plain}"
    return {"\u201c": "``", "\u201d": "''", "\u2014": "---", "\u2013": "--"}.get(
        character, character
    )


EDITS: Mapping[str, Callable[[str], str]] = {
    "verbatim": as_it_is,
    "8 words a line": rewrapped,
    "bullets between words": bulleted,
    "capitals": upper_case,
    "no punctuation": without_punctuation,
    "hyphens at line ends": hyphenated,
    "HTML entities": with_entities,
    "zero-width characters": with_zero_width,
    "LaTeX": as_latex,
}
"""Edits by what a person calls them."""


def plant(host: str, item: str, position: Position) -> tuple[str, int, int]:
    """A text with an item put into it: (text, first byte of the item, first byte behind it)."""
    if position == "start":
        before, between, behind = "", "", f"\n\n{host}"
    elif position == "end":
        before, between, behind = host, "\n\n", ""
    else:
        cut = host.find(" ", len(host) // 2)
        cut = cut if cut >= 0 else len(host)
        before, between, behind = host[:cut], " ", f" {host[cut:]}"
    start = len((before + between).encode())
    return f"{before}{between}{item}{behind}", start, start + len(item.encode())


def one_paragraph(text: str) -> str:
    """All white space is single spaces."""
    return " ".join(text.split())
