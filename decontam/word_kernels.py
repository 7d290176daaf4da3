"""Numba kernels: UTF-8 → words, as `normalize.py` defines them.

Names here: data = UTF-8 of texts, padded; bounds = [T, 2] first byte of each text and first
behind it; a piece = a run of letters and digits, which the split reading takes for a word; a
group = pieces with no space between them, which the joined reading takes for one word; gap = what
stood behind the last letter.
"""
# pyright: basic, reportCallIssue=false

from typing import Any

import numpy as np
from numba import njit

from decontam.character_kernels import (
    DELETED,
    LETTERS,
    NUMBER,
    PRIME,
    PUNCTUATION,
    SINGLE,
    SPACE,
    SPECIAL,
    character,
    decode,
    line_end,
    mix,
)

CHUNK_WORDS = 1 << 12
"""Words that one call gives; they stay in the processor's cache."""

MOST_PIECES = 16
"""A longer group ends here, whatever follows."""

_SPARE = 4 * MOST_PIECES  # words by which a chunk may grow, because groups are not divided

_ONE = np.uint64(1)
_EMPTY = np.uint64(2)
"""HELM's empty word."""


def new_stream(carry: int = 0, chunk: int = CHUNK_WORDS) -> tuple[Any, ...]:
    """Room for the words of a chunk, and for `carry` words of the chunk before.

    Returns:
        hashes, uint64 [N]: the lowest bit says whether the word has a letter.
        spans, int64 [N, 2]: bytes of `data`.
        patches, int64 [N, 2]: words [first, last) of the split reading are one word of the joined
            reading, or none.
        patch_hashes, uint64 [N]: that word; 0 for none.
    """
    n = carry + chunk + _SPARE
    spans, patches = (np.zeros((n, 2), np.int64) for _ in range(2))
    return np.zeros(n, np.uint64), spans, patches, np.zeros(n, np.uint64)


@njit(cache=True, nogil=True)
def fill_words(data, bounds, tables, stream, n_words, n_patches, position):
    """Read on from `position` until the stream is full or the texts are at their end.

    Args:
        data: uint8, padded with 64 zeros.
        bounds: int64 [T, 2].
        tables: `Normalizer.tables`.
        stream: see `new_stream`.
        n_words: words in the stream that stay as they are; new ones come behind them.
        n_patches: likewise.
        position: int64 [2] text and byte to go on at. Changed.

    Returns:
        How many words and patches the stream holds then.
    """
    full = len(stream[0]) - _SPARE
    while position[0] < len(bounds) and n_words < full:
        n_words, n_patches = _fill_text(
            data, bounds, tables, stream, n_words, n_patches, full, position
        )
    return n_words, n_patches


@njit(cache=True, nogil=True)
def _fill_text(data, bounds, tables, stream, n, m, full, position):  # noqa: PLR0912, PLR0915
    """Read one text to its end, or until the stream is full.

    One loop, because calls with this much state would cost more than the work. h is the hash of
    the open piece, g of the open group as far as its pieces are closed.
    """
    kinds, fold_at, folds, ascii_folds, entities, helm = tables
    hashes, spans, patches, patch_hashes = stream
    begin, end = bounds[position[0]]
    at = max(position[1], begin)
    h, h_open, h_start, h_end, h_size, h_letters = np.uint64(0), False, at, at, 0, 0
    g, g_first, g_letters, pieces = np.uint64(0), n, 0, 0
    gap = np.int64(SPACE)
    if helm and at == begin and (at == end or _is_space(data, at, kinds)):
        hashes[n], spans[n, 0], spans[n, 1] = _EMPTY, at, at
        n += 1
    while at < end:
        if gap == SPACE:  # what is open ends here, and plain words may follow
            if h_open:
                hashes[n] = (mix(h) & ~_ONE) | np.uint64(h_letters)
                spans[n, 0], spans[n, 1] = h_start, h_end
                g = g * _power(h_size) + h if pieces else h
                g_letters |= h_letters
                n, pieces, h_open = n + 1, pieces + 1, False
            if pieces > 1:
                patches[m, 0], patches[m, 1] = g_first, n
                patch_hashes[m] = (mix(g) & ~_ONE) | np.uint64(g_letters)
                m += 1
            pieces = 0
            n, at = _plain_words(data, at, end, kinds, ascii_folds, hashes, spans, n, full)
            if at == end:
                break
            if n >= full:
                position[1] = at
                return n, m
            g_first, g_letters = n, 0
        folded, kind, alone = ascii_folds[data[at]], np.int64(LETTERS), 0
        if folded == 0:
            code, used, alone = character(data, at, end, kinds, entities)
            kind = np.int64(kinds[code]) if code < len(kinds) else np.int64(PUNCTUATION)
            if kind == SPECIAL:
                kind = np.int64(PUNCTUATION)
            if kind < LETTERS and not alone:
                if not helm and gap == DELETED and code in (45, 0xAD, 0x2010, 0x2011):
                    more = line_end(data, at + used, end)
                    used += more
                    if more:
                        kind = np.int64(PUNCTUATION)
                gap = max(gap, kind)
                at += used
                continue
        too_many = gap == PUNCTUATION and pieces + 1 >= MOST_PIECES
        if (kind == SINGLE or alone or too_many) and gap != SPACE:
            gap = np.int64(SPACE)  # ends what is open; then this place is read again
            continue
        if alone:
            at += used
            hashes[n] = mix(_run_hash(data, at, alone, ascii_folds)) | _ONE
            spans[n, 0], spans[n, 1] = at, at + alone
            patches[m, 0], patches[m, 1], patch_hashes[m] = n, n + 1, 0
            n, m, at = n + 1, m + 1, at + alone
            continue
        if gap != DELETED or not h_open:
            if h_open:
                hashes[n] = (mix(h) & ~_ONE) | np.uint64(h_letters)
                spans[n, 0], spans[n, 1] = h_start, h_end
                g = g * _power(h_size) + h if pieces else h
                g_letters |= h_letters
                n, pieces = n + 1, pieces + 1
            h, h_open, h_start, h_size, h_letters = np.uint64(0), True, at, 0, 0
        if folded == 0:
            h_letters |= kind != NUMBER
            for i in range(fold_at[code - 1] if code else 0, fold_at[code]):
                h = h * PRIME + np.uint64(folds[i])
                h_size += 1
            at += used
            if kind == SINGLE:
                h_end, gap = at, np.int64(SPACE)
                continue
            folded = ascii_folds[data[at]]
        while folded and at < end:
            h = h * PRIME + np.uint64(folded)
            h_letters |= folded > 57
            h_size += 1
            at += 1
            folded = ascii_folds[data[at]]
        h_end, gap = at, np.int64(DELETED)
    if h_open:
        hashes[n] = (mix(h) & ~_ONE) | np.uint64(h_letters)
        spans[n, 0], spans[n, 1] = h_start, h_end
        g = g * _power(h_size) + h if pieces else h
        g_letters |= h_letters
        n, pieces = n + 1, pieces + 1
    if pieces > 1:
        patches[m, 0], patches[m, 1] = g_first, n
        patch_hashes[m] = (mix(g) & ~_ONE) | np.uint64(g_letters)
        m += 1
    if helm and end > begin and _is_space(data, _last_character(data, end), kinds):
        hashes[n], spans[n, 0], spans[n, 1] = _EMPTY, end, end
        n += 1
    position[0], position[1] = position[0] + 1, 0
    return n, m


@njit(cache=True, nogil=True)
def _is_space(data, at, kinds):
    code, _ = decode(data, at)
    return code < len(kinds) and kinds[code] == SPACE


@njit(cache=True, nogil=True)
def _last_character(data, end):
    """Where the character before `end` begins."""
    at = end - 1
    while data[at] & 0xC0 == 0x80:
        at -= 1
    return at


@njit(cache=True, nogil=True)
def _plain_words(data, at, end, kinds, ascii_folds, hashes, spans, n, full):
    """Read on for as long as words of ASCII letters have white space behind them.

    That is most of all text, and both readings agree on it.
    """
    while at < end and n < full:
        if data[at] < 0x80 and kinds[data[at]] == SPACE:
            at += 1
            continue
        h, letters, i = np.uint64(0), np.int64(0), at
        folded = ascii_folds[data[i]]
        while folded and i < end:
            h = h * PRIME + np.uint64(folded)
            letters |= folded > 57
            i += 1
            folded = ascii_folds[data[i]]
        behind = i + 1
        kind = kinds[data[i]] if data[i] < 0x80 else np.uint8(SPECIAL)
        if kind == PUNCTUATION and data[i] != 45 and data[behind] < 0x80:
            kind = kinds[data[behind]]
            behind += 1
        if i == at or kind != SPACE or behind > end:
            break
        hashes[n] = (mix(h) & ~_ONE) | np.uint64(letters)
        spans[n, 0], spans[n, 1] = at, i
        n, at = n + 1, behind
    return n, at


@njit(cache=True, nogil=True)
def _power(size):
    """PRIME to the power of `size`."""
    result = _ONE
    for _ in range(size):
        result *= PRIME
    return result


@njit(cache=True, nogil=True)
def _run_hash(data, at, size, ascii_folds):
    """Hash of `size` ASCII letters."""
    h = np.uint64(0)
    for i in range(at, at + size):
        h = h * PRIME + np.uint64(ascii_folds[data[i]])
    return h


@njit(cache=True, nogil=True)
def join_readings(
    hashes, spans, patches, patch_hashes, first, last, p, n, joined, joined_spans, sources
):
    """Words [first, last) of the split reading as the joined reading has them.

    Args:
        hashes: of the split reading.
        spans: of the split reading.
        patches: see `new_stream`; none reaches over `first` or `last`.
        patch_hashes: see `new_stream`.
        first: first word.
        last: first word behind.
        p: the first patch at or behind `first`.
        n: joined words that are there already.
        joined: uint64, receives the hashes.
        joined_spans: int64 [., 2], receives the bytes.
        sources: int64 [., 2], receives the words [first, last) of the split reading.

    Returns:
        The number of joined words, and the first patch not used.
    """
    i = first
    while i < last:
        upto = i + 1
        joined[n] = hashes[i]
        if p < len(patches) and patches[p, 0] == i:
            upto = patches[p, 1]
            joined[n] = patch_hashes[p]
            p += 1
        if joined[n]:
            joined_spans[n, 0], joined_spans[n, 1] = spans[i, 0], spans[upto - 1, 1]
            sources[n, 0], sources[n, 1] = i, upto
            n += 1
        i = upto
    return n, p
