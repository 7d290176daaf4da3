"""A passage of a text with what stands around it, for people."""

from typing import NamedTuple

from decontam.grid import shorten

PASSAGE_CHARACTERS = 400
CONTEXT_CHARACTERS = 160


class Excerpt(NamedTuple):
    """A passage and its context, cut at whole characters."""

    before: str
    """Up to 160 characters."""

    passage: str
    """Up to 400 characters; longer ones are cut in the middle with `…`."""

    after: str


def excerpt(text: bytes, start: int, end: int) -> Excerpt:
    """What UTF-8 `text` has at bytes [start, end) and on either side.

    Decodes no more than it returns: text and passage may be a book. Control characters stay; bytes
    that are no UTF-8 become U+FFFD.
    """
    before = _last(text, 0, start, CONTEXT_CHARACTERS)
    after = _first(text, end, len(text), CONTEXT_CHARACTERS)
    return Excerpt(before, _passage(text, start, end), after)


def _passage(text: bytes, start: int, end: int) -> str:
    if end - start <= 4 * PASSAGE_CHARACTERS:
        return shorten(_decode(text, start, end), PASSAGE_CHARACTERS)
    half = PASSAGE_CHARACTERS // 2
    return f"{_first(text, start, end, half)}…{_last(text, start, end, half - 1)}"


def _first(text: bytes, start: int, end: int, most: int) -> str:
    return _decode(text, start, min(end, start + 4 * most))[:most]


def _last(text: bytes, start: int, end: int, most: int) -> str:
    return _decode(text, max(start, end - 4 * most), end)[-most:]


def _decode(text: bytes, start: int, end: int) -> str:
    return text[_boundary(text, start) : _boundary(text, end)].decode(errors="replace")


def _boundary(text: bytes, at: int) -> int:
    """`at`, or where the UTF-8 character around it begins."""
    for back in range(min(3, at) + 1):
        if at - back >= len(text) or text[at - back] & 0xC0 != 0x80:
            return at - back
    return at
