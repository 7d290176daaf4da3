"""SentencePiece models: is this one simple enough to be taken apart, and what are its pieces?"""

import re
import struct
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

SPACE = "\u2581"  # how pieces write a space

# Numbers in sentencepiece_model.proto.
PIECE, TRAINER, NORMALIZER = 1, 2, 3
MODEL_TYPE, SPACE_AS_SUFFIX, BYTE_FALLBACK = 3, 24, 35
CHARSMAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES, RULES = 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"  # appended to a model, it overrides that one field
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_AS_CONTROL = b"\x18\x03"  # appended to a piece, it overrides its type

Pieces = dict[str, tuple[int, float]]
"""Piece, with plain spaces → id and score."""


class Vocabulary(NamedTuple):
    """A model as the segment cache takes it apart."""

    normal: Pieces
    user_defined: Pieces
    dummy_prefix: bool
    """Whether a space is put before each text."""


class UnsupportedModel(ValueError):
    """The model treats text in a way that this engine does not."""


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while message[at] >= 0x80:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protobuf message: an int, a float or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = divmod(tag, 8)
        if wire == 0:
            value, at = _varint(message, at)
        elif wire == 5:
            value, at = struct.unpack_from("<f", message, at)[0], at + 4
        else:
            size, at = (8, at) if wire == 1 else _varint(message, at)
            value, at = message[at : at + size], at + size
        yield number, value


class Model(NamedTuple):
    """What a model says of itself."""

    pieces: list[tuple[str, float, int]]
    """Text with ▁ for spaces, score and type of every piece, by id."""

    trainer: dict[int, Any]
    """By the numbers of TrainerSpec."""

    normalizer: dict[int, Any]


def read_model(model: bytes) -> Model:
    """The pieces and settings of a serialized model."""
    pieces: list[tuple[str, float, int]] = []
    specs: dict[int, dict[int, Any]] = {TRAINER: {}, NORMALIZER: {}}
    for number, value in _fields(model):
        if number == PIECE:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), piece.get(2, 0.0), piece.get(3, NORMAL)))
        elif number in specs:
            specs[number].update(_fields(value))
    return Model(pieces, specs[TRAINER], specs[NORMALIZER])


def with_controls(model: bytes, names: Collection[str]) -> bytes:
    """The model with these pieces as control tokens, which no text makes."""
    if not names:
        return model
    changed = {name.encode() for name in names}
    parts: list[bytes] = []
    rest: list[bytes] = []
    for number, value in _fields(model):
        if number == PIECE:
            made = value + _AS_CONTROL if dict(_fields(value))[1] in changed else value
            parts += [b"\x0a", _as_varint(len(made)), made]
        elif isinstance(value, bytes):
            rest += [_as_varint(number << 3 | 2), _as_varint(len(value)), value]
    return b"".join([*parts, *rest])


def _as_varint(value: int) -> bytes:
    low, value = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _as_varint(value) if value else bytes([low])


def supported_vocabulary(model: bytes) -> Vocabulary:
    """Check that what the segment cache assumes holds of `model`, and return its pieces.

    Raises:
        UnsupportedModel: what does not hold.
    """
    pieces, trainer, normalizer = read_model(model)
    normal = {piece for piece, _, kind in pieces if kind == NORMAL}
    refusals = {
        "it is not BPE": trainer.get(MODEL_TYPE, UNIGRAM) != BPE,
        "it has no byte fallback": not trainer.get(BYTE_FALLBACK, False),
        "it puts spaces behind words": trainer.get(SPACE_AS_SUFFIX, False),
        "it normalizes characters": normalizer.get(CHARSMAP) or normalizer.get(RULES),
        "it removes extra spaces": normalizer.get(REMOVE_SPACES, True),
        "it does not escape spaces": not normalizer.get(ESCAPE_SPACES, True),
        "it has unused pieces": {p[2] for p in pieces}
        - {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE},
        "a special piece is one character": any(
            len(p) < 2 for p, _, k in pieces if k not in (NORMAL, USER_DEFINED)
        ),
        "a piece holds a plain space": any(" " in piece for piece, _, _ in pieces),
        "a piece holds a character that is no piece": set("".join(normal)) - normal,
    }
    if reasons := [reason for reason, applies in refusals.items() if applies]:
        raise UnsupportedModel(f"no segment cache for this model: {'; '.join(reasons)}")
    found: dict[int, Pieces] = {NORMAL: {}, USER_DEFINED: {}}
    for i, (piece, score, kind) in enumerate(pieces):
        if kind in found:
            found[kind][piece.replace(SPACE, " ")] = i, score
    return Vocabulary(found[NORMAL], found[USER_DEFINED], bool(normalizer.get(DUMMY_PREFIX, True)))


def longest_match(texts: Collection[str]) -> re.Pattern[str]:
    """A pattern that matches, wherever one of the texts begins, the longest that does; in a group.

    It is a tree of their characters, so that it takes one step a character however many there are.
    """
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(f"({_branches(tree)})")


def _branches(node: dict[str, Any]) -> str:
    parts: list[str] = []
    for first in filter(None, node):
        run, below = first, node[first]
        while len(below) == 1 and "" not in below:  # no branch and no end: one literal
            following = next(iter(below))
            run, below = run + following, below[following]
        parts.append(re.escape(run) + _branches(below))
    joined = f"(?:{'|'.join(parts)})" if parts else ""
    return f"{joined}?" if parts and "" in node else joined
