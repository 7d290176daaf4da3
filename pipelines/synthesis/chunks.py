"""What is drawn for a document: its rank, its chunk, the kind of question, seeds of requests.

All of it depends on (seed, uid) alone.
"""

import re
from typing import NamedTuple

import xxhash

from pipelines.rendering import keyed_random
from pipelines.synthesis.prompts import Kind

LONGEST_WORD = 12
"""Characters that a word of a chunk has on average at most; longer chunks lose their end, so that
text without spaces still fits the model."""

_WORD = re.compile(r"\S+")


class Chunk(NamedTuple):
    """Characters [start, end) of a document."""

    start: int
    end: int


def document_uid(text: str) -> bytes:
    """The id of a document, 16 bytes; builds call the same text by the same id."""
    return xxhash.xxh3_128_digest(text.encode())


def rank(seed: int, uid: bytes) -> int:
    """Documents of the lowest ranks are chosen."""
    return keyed_random(seed, "synthesis document", uid).getrandbits(64)


def choose_kind(seed: int, uid: bytes) -> Kind:
    """Normal or short answer, with equal odds."""
    return "short" if keyed_random(seed, "synthesis kind", uid).random() < 0.5 else "normal"


def choose_chunk(text: str, *, words: int, seed: int, uid: bytes) -> Chunk:
    """One of the chunks of `words` words that a document is cut into, each with equal odds.

    What is left behind the last whole chunk is never chosen; a document of fewer words is one
    chunk.
    """
    starts = [found.start() for found in _WORD.finditer(text)]
    drawn = keyed_random(seed, "synthesis chunk", uid)
    first = drawn.randrange(max(len(starts) // words, 1)) * words
    start = starts[first] if starts else 0
    end = starts[first + words] if first + words < len(starts) else len(text)
    end = min(end, start + LONGEST_WORD * words)
    return Chunk(start, start + len(text[start:end].rstrip()))


def request_seed(seed: int, uid: bytes, purpose: str) -> int:
    """The sampling seed of a request, 31 bits."""
    return keyed_random(seed, f"synthesis {purpose}", uid).getrandbits(31)
