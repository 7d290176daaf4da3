"""Which benchmark texts a self-test plants, and in which documents."""

import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from decontam.index import RULES, Entry, Index
from decontam.planting import EDITS, POSITIONS, Position, is_plain, one_paragraph, plant
from decontam.search_kernels import SHORTEST
from decontam.word_kernels import CHUNK_WORDS

Length = Literal["long", "whole", "with answer"]
LENGTHS: tuple[Length, ...] = ("long", "whole", "with answer")
"""Texts of n words and more; shorter inputs that count by themselves; those that need an answer."""

_LARGEST_ITEM = 4000  # characters: an article of a benchmark would only repeat itself


class Plant(NamedTuple):
    """A document with something planted in it."""

    kind: str
    group: str
    """Length of the item, or what else the table tells apart."""

    text: bytes
    start: int
    """Bytes of the text that are the item: [start, end)."""

    end: int
    where: str
    """For a person who looks for the reason of a miss."""


class _Item(NamedTuple):
    text: str
    behind: str
    """A right answer, for texts that need one near them."""

    name: str


def choose_items(index: Index, *, most: int, seed: int) -> dict[str, list[_Item]]:
    """Texts of the index without markup, at most so many of each length, and answers alone."""
    rng = random.Random(seed)
    columns = index.entries.columns(["part", "correct", "text"])
    rows = list(zip(*(columns[name].to_pylist() for name in columns.column_names), strict=True))
    order = list(range(len(rows)))
    rng.shuffle(order)
    items: dict[str, list[_Item]] = {length: [] for length in (*LENGTHS, "answer")}
    for number in order:
        part, correct, text = rows[number]
        if all(len(chosen) >= most for chosen in items.values()):
            break
        if len(text) > _LARGEST_ITEM or not is_plain(text):
            continue
        entry = index.entries[number]
        length = _length_of(entry, index, is_answer=part == "reference" and correct)
        if length and len(items[length]) < most:
            name = f"{entry.scenario}/{entry.split}/{entry.instance} {entry.part}"
            behind = f" {entry.answers[0]}" if length == "with answer" else ""
            items[length].append(_Item(text, behind, name))
    return items


def _length_of(entry: Entry, index: Index, *, is_answer: bool) -> str | None:
    readings = index.normalizer.words([entry.text.encode()])
    fewest = min(len(reading.hashes) for reading in readings)
    if fewest >= index.n:
        return "long"
    if is_answer:
        return "answer"
    if entry.part != "input" or fewest < SHORTEST:
        return None
    if fewest >= index.header["alone_words"]:
        return "whole"
    return "with answer" if entry.answers and is_plain(entry.answers[0]) else None


def make_plants(index: Index, hosts: Sequence[str], *, plants: int, seed: int) -> Iterator[Plant]:
    """Every kind of plant, in documents taken in turn."""
    rng = random.Random(seed)
    items = choose_items(index, most=plants, seed=seed)
    for length in LENGTHS:
        for kind, edit in EDITS.items():
            for item in items[length]:
                for position in POSITIONS:
                    planted = edit(item.text) + item.behind
                    yield _plant(kind, length, rng.choice(hosts), planted, position, item.name)
        for item in items[length]:
            text, host = one_paragraph(item.text + item.behind), one_paragraph(rng.choice(hosts))
            yield _plant("one long paragraph", length, host, text, "middle", item.name)
            yield _across_border(index, rng, length, rng.choice(hosts), item)
    for item in items["answer"]:
        yield _plant("answer only", "answer", rng.choice(hosts), item.text, "middle", item.name)
    for text, name in _without_words(index, plants):
        yield _plant("numbers only", "numbers", rng.choice(hosts), text, "middle", name)


def _plant(kind: str, group: str, host: str, item: str, position: Position, name: str) -> Plant:
    text, start, end = plant(host, item, position)
    return Plant(kind, group, text.encode(), start, end, f"{position}, {name}")


def _across_border(index: Index, rng: random.Random, group: str, host: str, item: _Item) -> Plant:
    """The item lies across the end of what is searched at a time."""
    text = host.encode() + b"\n\n"
    n_words = len(index.normalizer.words([text]).split.hashes)
    text *= CHUNK_WORDS // max(n_words, 1) + 1
    spans = index.normalizer.words([text]).split.spans
    size = len(index.normalizer.words([item.text.encode()]).split.hashes)
    first = CHUNK_WORDS - rng.randrange(1, max(size, 2))
    cut = int(spans[first, 0]) if first < len(spans) else len(text)
    planted = (item.text + item.behind).encode()
    whole = text[:cut] + b" " + planted + b" " + text[cut:]
    where = f"word {first:,}, {item.name}"
    return Plant("across a batch border", group, whole, cut + 1, cut + 1 + len(planted), where)


def _without_words(index: Index, most: int) -> Iterator[tuple[str, str]]:
    """N-grams that have hardly a word with letters."""
    flagged = index.arrays.flagged[index.arrays.flags == RULES.index("no_words")].astype(np.int64)
    chosen = flagged[np.linspace(0, len(flagged) - 1, min(most, len(flagged))).astype(int)]
    places = index.occurrences(chosen)
    for hit in range(len(chosen)):
        at = int(np.flatnonzero(places.hit == hit)[0])
        begin, number, reading, _ = index.arrays.sequences[places.sequence[at]].tolist()
        entry = index.entries[number]
        text = entry.text.encode()
        first = int(places.word[at]) - begin
        spans = index.normalizer.words([text])[reading].spans[first : first + index.n]
        passage = text[int(spans[0, 0]) : int(spans[-1, 1])].decode(errors="replace")
        yield passage, f"{entry.scenario}/{entry.split}/{entry.instance} {entry.part}"
