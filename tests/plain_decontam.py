"""The rules of `decontam` in plain Python: slow, without numba, with words that are strings.

Written from what `decontam/normalize.py` and `decontam/index.py` promise, to be compared with
what their kernels do.
"""

from __future__ import annotations

import html.entities
import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from decontam.index import ANSWER_WORDS, FEWEST_WORDS, MANY_SCENARIOS
from decontam.records import Instance
from decontam.search_kernels import SHORTEST
from decontam.word_kernels import MOST_PIECES

LAST_PLANE = 0x32400
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)  # Thai and Lao, Burmese, Khmer, kana, Han
_ENTITY = re.compile(rb"(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,7}|[A-Za-z][A-Za-z0-9]*);")
_TAG = re.compile(rb"</?[A-Za-z][A-Za-z0-9]{0,9}(/?>|[\x00-\x20][^<>]*>)")
_COMMAND = re.compile(rb"\\[A-Za-z]*")
_LINE_END = re.compile(rb"[ \t\r]*\n[ \t]{0,62}(?=[A-Za-z\x80-\xff])")
_HYPHENS = "-\u00ad\u2010\u2011"
_HELM_GAP = re.compile(rf"[\s{re.escape(string.punctuation)}]+")


class Word(NamedTuple):
    """A word and the bytes that it stands on."""

    text: str
    start: int
    end: int


class _Char(NamedTuple):
    kind: str  # letter, single, space, punctuation, nothing, optional
    text: str
    start: int
    end: int


def words(text: bytes, rule: str = "default") -> tuple[list[Word], list[Word]]:
    """The split and the joined reading of a text."""
    if rule == "helm":
        return _helm_words(text), _helm_words(text)
    groups = list(_groups(_characters(text)))
    split = [piece for pieces, _ in groups for piece in pieces]
    joined = [
        Word("".join(p.text for p in pieces), pieces[0].start, pieces[-1].end)
        for pieces, optional in groups
        if not optional
    ]
    return split, joined


def _helm_words(text: bytes) -> list[Word]:
    """`re.split` of HELM, character for character (so the final sigma is a sigma)."""
    chars, found, at = text.decode(), [], 0
    gaps = [*((m.start(), m.end()) for m in _HELM_GAP.finditer(chars)), (len(chars), len(chars))]
    for start, end in gaps:
        word = "".join(c.lower() for c in chars[at:start])
        first, last = len(chars[:at].encode()), len(chars[:start].encode())
        found.append(Word(word, first, last))
        at = end
    return found


def _characters(text: bytes) -> Iterator[_Char]:
    at, behind_letter = 0, False
    while at < len(text):
        char, size, letters = _read(text, at)
        kind, form = ("space", "") if letters else fold(char)
        line_end = _LINE_END.match(text, at + size)
        if char in _HYPHENS and behind_letter and line_end:
            kind, size = "punctuation", line_end.end() - at
        yield _Char(kind, form, at, at + size)
        at += size
        if letters:
            yield _Char("optional", text[at : at + letters].decode().lower(), at, at + letters)
            at += letters
        behind_letter = kind == "letter" or (behind_letter and kind == "nothing")


def _read(text: bytes, at: int) -> tuple[str, int, int]:
    """What begins at a byte: the character it stands for, its bytes, and letters behind that only
    the split reading reads."""
    first = text[at : at + 1]
    if first == b"&":
        return _entity(text, at)
    if first == b"<":
        tag = _TAG.match(text, at)
        if tag and len(tag[0]) <= 512 and _is_tag(tag[1]):
            return " ", len(tag[0]), 0
        return "<", 1, 0
    if first == b"\\":
        command = _COMMAND.match(text, at)
        assert command
        if command[0][1:2] in (b"n", b"r", b"t"):
            return "\n", 2, len(command[0]) - 2
        return "!", len(command[0]), 0
    size = 1 + (first >= b"\xc0") + (first >= b"\xe0") + (first >= b"\xf0")
    return text[at : at + size].decode(), size, 0


def _is_tag(behind_name: bytes) -> bool:
    """ "a <b and c> d" has none."""
    return behind_name == b">" or behind_name.endswith(b"/>") or b"=" in behind_name


def _entity(text: bytes, at: int) -> tuple[str, int, int]:
    """An entity, whose `&` may be written as `&amp;`, however often."""
    char, size = "", 1
    while match := _ENTITY.match(text, at + size):
        inner = _named(match[1].decode()) if len(match[0]) < 34 else ""
        if not inner:
            break
        char, size = inner, size + len(match[0])
        if char != "&":
            break
    return char or "&", size, 0


def _named(name: str) -> str:
    if name[0] != "#":
        char = html.entities.html5.get(name + ";", "")
        return char if len(char) == 1 else ""
    number = int(name[2:], 16) if name[1] in "xX" else int(name[1:])
    return chr(number) if number < LAST_PLANE else "!"


def fold(char: str) -> tuple[str, str]:
    """The kind of a character, and what it is without case, accents and compatibility forms."""
    category = unicodedata.category(char)
    if char in "&<\\" or ord(char) >= LAST_PLANE:
        return "punctuation", ""
    if char.isspace() or char == "~" or category[0] == "Z":
        return "space", ""
    if category[0] == "M" or category in ("Cf", "Cc"):
        return "nothing", ""
    form = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    form = "".join(c for c in form if unicodedata.category(c)[0] in "LN")
    is_sign = 0x2B0 <= ord(char) < 0x300 and form == char
    if category[0] not in "LN" or not form or (is_sign and category == "Lm"):
        return "punctuation", ""
    return ("single" if _NO_SPACES.match(char) else "letter"), form


def _groups(chars: Iterable[_Char]) -> Iterator[tuple[list[Word], bool]]:
    """Pieces with no space between them, and whether only the split reading has them."""
    group: list[Word] = []
    gap = "space"
    for char in chars:
        if char.kind in ("space", "punctuation"):
            gap = "space" if "space" in (gap, char.kind) else "punctuation"
        elif char.kind in ("single", "optional"):
            if group:
                yield group, False
            yield [Word(*char[1:])], char.kind == "optional"
            group, gap = [], "space"
        elif char.kind == "letter":
            if group and gap == "nothing":
                group[-1] = Word(group[-1].text + char.text, group[-1].start, char.end)
            else:
                if group and (gap == "space" or len(group) == MOST_PIECES):
                    yield group, False
                    group = []
                group.append(Word(*char[1:]))
            gap = "nothing"
    if group:
        yield group, False


class PlainFound(NamedTuple):
    """What a document repeats."""

    entries: set[tuple[int, str]]
    """All benchmark texts (inputs and references in order, from 0) that it repeats, and by which
    rule."""

    longest: dict[tuple[int, bool], int]
    """By entry, and whether it is boilerplate: words of the longest passage."""

    spans: list[tuple[int, int]]
    boilerplate: list[tuple[int, int]]


class _Hit(NamedTuple):
    start: int
    end: int
    second: int
    """Where its second word begins."""

    rule: str
    place: tuple[int, int, int]
    """Entry, reading and first word."""


@dataclass(frozen=True)
class _Entry:
    scenario: str
    readings: tuple[list[Word], list[Word]]
    shorts: list[tuple[str, ...]]
    answers: list[str]


class PlainIndex:
    """The n-grams of some instances as tuples of strings."""

    def __init__(
        self,
        instances: Iterable[Instance],
        *,
        n: int,
        rule: str = "default",
        alone_words: int = 6,
        frequent: Collection[str] = (),
    ) -> None:
        self.n, self.rule, self._alone = n, rule, alone_words
        self.entries = [entry for instance in instances for entry in self._entries(instance)]
        self._places: dict[tuple[str, ...], list[tuple[int, int, int]]] = {}
        self._scenarios: dict[tuple[str, ...], set[str]] = {}
        for number, entry in enumerate(self.entries):
            for reading in range(len(entry.readings)):
                for first, ngram in own_ngrams(entry.readings, reading, n):
                    self._places.setdefault(ngram, []).append((number, reading, first))
                    self._scenarios.setdefault(ngram, set()).add(entry.scenario)
        self._frequent = {
            ngram
            for text in frequent
            for reading in words(text.encode(), rule)
            for ngram in ngrams(reading, n)
        }

    def _entries(self, instance: Instance) -> Iterator[_Entry]:
        answers = [r for r, c in zip(instance.references, instance.correct, strict=True) if c]
        readings = words(instance.input.encode(), self.rule)
        question = len(instance.input[: instance.question].encode())
        shorts: list[tuple[str, ...]] = []
        for reading in readings:
            behind = [word for word in reading if word.start >= question]
            for part in (reading, behind):
                alone = len(part) >= self._alone
                if SHORTEST <= len(part) < self.n and (alone or answers):
                    shorts.append(tuple(word.text for word in part))
        if instance.input:
            yield _Entry(instance.scenario, readings, shorts, answers)
        for text in instance.references:
            yield _Entry(instance.scenario, words(text.encode(), self.rule), [], [])

    def rule_of(self, ngram: tuple[str, ...]) -> str:
        """How an n-gram of the index is reported."""
        with_letters = {w for w in ngram if any(unicodedata.category(c)[0] == "L" for c in w)}
        if len(with_letters) < FEWEST_WORDS:
            return "no_words"
        if ngram in self._frequent:
            return "frequent"
        return "many_scenarios" if len(self._scenarios[ngram]) >= MANY_SCENARIOS else "ngram"

    def find(self, text: bytes) -> PlainFound:
        """What a document repeats."""
        hits = list(self._hits(text))
        whole = [
            (number, size, span)
            for r in words(text, self.rule)
            for number, size, span in self._whole(text, r)
        ]
        longest: dict[tuple[int, bool], int] = {}
        sizes = [((h.place[0], h.rule != "ngram"), n) for h, n in chains(hits, self.n)]
        for key, size in [*sizes, *(((number, False), size) for number, size, _ in whole)]:
            longest[key] = max(longest.get(key, 0), size)
        entries = {(h.place[0], h.rule) for h in hits} | {(number, "whole") for number, *_ in whole}
        spans = [(h.start, h.end) for h in hits if h.rule == "ngram"]
        boilerplate = [(h.start, h.end) for h in hits if h.rule != "ngram"]
        return PlainFound(
            entries, longest, union([*spans, *(w[2] for w in whole)]), union(boilerplate)
        )

    def _hits(self, text: bytes) -> Iterator[_Hit]:
        readings = words(text, self.rule)
        for number, reading in enumerate(readings):
            for at, ngram in own_ngrams(readings, number, self.n):
                for place in self._places.get(ngram, ()):
                    span = reading[at].start, reading[at + self.n - 1].end
                    yield _Hit(*span, reading[at + 1].start, self.rule_of(ngram), place)

    def _whole(
        self, text: bytes, reading: list[Word]
    ) -> Iterator[tuple[int, int, tuple[int, int]]]:
        for number, entry in enumerate(self.entries):
            for short in entry.shorts:
                for at, ngram in enumerate(ngrams(reading, len(short))):
                    span = reading[at].start, reading[at + len(short) - 1].end
                    alone = len(short) >= self._alone
                    if ngram == short and (alone or self._answered(text, span, entry.answers)):
                        yield number, len(short), span

    def _answered(self, text: bytes, span: tuple[int, int], answers: Iterable[str]) -> bool:
        for near, part in (
            (text[: span[0]], slice(-ANSWER_WORDS, None)),
            (text[span[1] :], slice(ANSWER_WORDS)),
        ):
            readings = words(near, self.rule)
            for answer in answers:
                for reading, right in zip(readings, words(answer.encode(), self.rule), strict=True):
                    wanted = tuple(word.text for word in right)
                    if wanted and wanted in ngrams(reading[part], len(wanted)):
                        return True
        return False


def chains(hits: Iterable[_Hit], n: int) -> Iterator[tuple[_Hit, int]]:
    """Each n-gram, and the words of the longest passage that ends with it.

    A passage goes on where the next n-gram of the benchmark text begins at the second word.
    """
    sizes: dict[tuple[str, int, tuple[int, int, int]], int] = {}
    for hit in sorted(hits, key=lambda h: (h.place, h.start)):
        size = sizes.get((hit.rule, hit.start, hit.place), n - 1) + 1
        entry, reading, first = hit.place
        behind = hit.rule, hit.second, (entry, reading, first + 1)
        sizes[behind] = max(size, sizes.get(behind, 0))
        yield hit, size


def own_ngrams(
    readings: Sequence[Sequence[Word]], number: int, n: int
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """First word and words of the n-grams of a reading; of the joined one, those of its own."""
    split = readings[0]
    known = {(split[i].start, ngram) for i, ngram in enumerate(ngrams(split, n))}
    for at, ngram in enumerate(ngrams(readings[number], n)):
        if number == 0 or (readings[number][at].start, ngram) not in known:
            yield at, ngram


def ngrams(reading: Sequence[Word], n: int) -> list[tuple[str, ...]]:
    """All runs of n words."""
    texts = [word.text for word in reading]
    return [tuple(texts[i : i + n]) for i in range(len(texts) - n + 1)]


def union(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as spans in order that do not touch."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
