"""Numba kernels: what stands at a place of a UTF-8 text, as `normalize.py` defines it."""
# pyright: basic, reportCallIssue=false

import numpy as np
from numba import njit

DELETED, PUNCTUATION, SPACE, LETTERS, NUMBER, SINGLE, SPECIAL = range(7)
"""Kinds of characters. The first three are also what can stand between two letters."""

ENTITY_SLOTS = 8192
_LONGEST_ENTITY = 34
_LONGEST_TAG = 512
_LONGEST_NAME = 10  # of a tag
_LONGEST_INDENT = 64  # blanks behind a hyphen at a line's end

PRIME = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)


@njit(cache=True, nogil=True, inline="always")
def mix(x):
    """A 64-bit finalizer (splitmix64): every input bit reaches every output bit."""
    x ^= x >> np.uint64(30)
    x *= _M1
    x ^= x >> np.uint64(27)
    x *= _M2
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def entity_hash(data, start, end):
    """Hash of the name of an HTML entity; never 0."""
    h = np.uint64(7)
    for i in range(start, end):
        h = h * PRIME + np.uint64(data[i])
    return mix(h) | _ONE


@njit(cache=True, nogil=True, inline="always")
def _is_letter(byte):
    return 97 <= (byte | 32) <= 122


@njit(cache=True, nogil=True)
def decode(data, at):
    """(code point, bytes) of the UTF-8 character at a place."""
    b = np.int64(data[at])
    if b < 0x80:
        return b, 1
    if b < 0xE0:
        return ((b & 0x1F) << 6) | (np.int64(data[at + 1]) & 0x3F), 2
    if b < 0xF0:
        middle = np.int64(data[at + 1]) & 0x3F
        return ((b & 0xF) << 12) | (middle << 6) | (np.int64(data[at + 2]) & 0x3F), 3
    high = ((b & 7) << 18) | ((np.int64(data[at + 1]) & 0x3F) << 12)
    return high | ((np.int64(data[at + 2]) & 0x3F) << 6) | (np.int64(data[at + 3]) & 0x3F), 4


@njit(cache=True, nogil=True)
def _entity(data, at, end, entities):
    """(code point, bytes) of the entity that begins at `at`, a `&`; (-1, 0) if none does.

    `&amp;` may itself stand for the `&` of another entity, and so on.
    """
    code, used = _one_entity(data, at, end, entities)
    while code == 38:
        inner, more = _one_entity(data, at + used - 1, end, entities)
        if inner < 0:
            break
        code, used = inner, used + more - 1
    return code, used


@njit(cache=True, nogil=True)
def _one_entity(data, at, end, entities):
    """The name or number between the byte at `at`, taken for a `&`, and the next semicolon."""
    i, last = at + 1, min(end, at + _LONGEST_ENTITY)
    while i < last and (_is_letter(data[i]) or 48 <= data[i] <= 57 or data[i] == 35):
        i += 1
    if i >= last or i == at + 1 or data[i] != 59:
        return np.int64(-1), 0
    if data[at + 1] == 35:  # #
        return _number(data, at + 2, i), i + 1 - at
    key = entity_hash(data, at + 1, i)
    slot = np.int64(key % np.uint64(ENTITY_SLOTS))
    while entities[0, slot] != 0:
        if entities[0, slot] == key:
            return np.int64(entities[1, slot]), i + 1 - at
        slot = (slot + 1) % ENTITY_SLOTS
    return np.int64(-1), 0


@njit(cache=True, nogil=True)
def _number(data, start, end):
    """The number in decimal, or behind an `x` in hexadecimal, digits; -1 if it is none."""
    base = 10
    if start < end and (data[start] | 32) == 120:
        base, start = 16, start + 1
    if start == end or end - start > 7:
        return np.int64(-1)
    value = np.int64(0)
    for i in range(start, end):
        digit = np.int64(data[i]) - 48
        if digit > 9:
            digit = (np.int64(data[i]) | 32) - 87
            digit = digit if digit > 9 else np.int64(99)
        if digit < 0 or digit >= base:
            return np.int64(-1)
        value = value * base + digit
    return value


@njit(cache=True, nogil=True)
def _tag(data, at, end):
    """Bytes of the HTML tag that begins at `at`, a `<`; 0 if none does.

    A name must follow at once; what is behind it must hold a `=` or end in `/`, so that "a <b and
    c> d" is no tag.
    """
    name = at + 2 if data[at + 1] == 47 else at + 1
    i = name
    while i < end and (_is_letter(data[i]) or 48 <= data[i] <= 57) and i - name < _LONGEST_NAME:
        i += 1
    if i == name or not _is_letter(data[name]):
        return 0
    behind, last, attributes = i, min(end, at + _LONGEST_TAG), False
    while i < last and data[i] != 62 and data[i] != 60:
        attributes |= data[i] == 61
        i += 1
    if i >= last or data[i] == 60:
        return 0
    closed = data[i - 1] == 47
    if behind == i or (closed and behind == i - 1):
        return i + 1 - at
    return i + 1 - at if data[behind] <= 32 and (attributes or closed) else 0


@njit(cache=True, nogil=True)
def line_end(data, at, end):
    """Bytes from `at`, behind a hyphen, to the first letter of the next line; 0 if none follows."""
    i = at
    while i < end and (data[i] == 32 or data[i] == 9 or data[i] == 13):
        i += 1
    if i >= end or data[i] != 10:
        return 0
    i, last = i + 1, min(end, i + _LONGEST_INDENT)
    while i < last and (data[i] == 32 or data[i] == 9):
        i += 1
    return i - at if i < last and (_is_letter(data[i]) or data[i] >= 0x80) else 0


@njit(cache=True, nogil=True)
def _command(data, at, end):
    """Bytes of the TeX command that begins at `at`, a backslash; 1 if it has no name."""
    i = at + 1
    while i < end and _is_letter(data[i]):
        i += 1
    return i - at


@njit(cache=True, nogil=True)
def _special(data, at, end, entities):
    """(code point, bytes, bytes that only the split reading reads) of what begins at `at`.

    Those bytes are letters behind a backslash that may also be an escaped line end.
    """
    b = np.int64(data[at])
    if b == 38:  # &
        code, used = _entity(data, at, end, entities)
        if code >= 0:
            return code, used, 0
    elif b == 60:  # <
        used = _tag(data, at, end)
        if used:
            return np.int64(32), used, 0
    elif b == 92:  # a backslash
        used = _command(data, at, end)
        first = data[at + 1]
        if used > 1 and first in (110, 114, 116):  # n, r, t
            return np.int64(10), 2, used - 2
        return np.int64(33), used, 0
    return np.int64(33), 1, 0  # any punctuation


@njit(cache=True, nogil=True)
def character(data, at, end, kinds, entities):
    """(code point, bytes, bytes for the split reading alone) of what begins at `at`."""
    if data[at] >= 0x80:
        code, used = decode(data, at)
        return code, used, 0
    if kinds[data[at]] == SPECIAL:
        return _special(data, at, end, entities)
    return np.int64(data[at]), 1, 0
