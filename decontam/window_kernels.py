"""Numba kernels: the words of documents → windows that resemble an entry; see `windows.py`.

A step is _STEP blocks of a document; its windows reach over _OVERLAP blocks behind them.
"""
# pyright: basic, reportCallIssue=false

import numpy as np
from numba import njit

from decontam.bands import PROBED, grown
from decontam.lsh import passing_bands, probe_scratch, run_of
from decontam.minhash import (
    EMPTY,
    equal_positions,
    fill_shingles,
    lower,
    open_shingle,
    power_of,
    premix,
)
from decontam.word_kernels import fill_words

BLOCK = 16
"""Shingles between the places where windows may begin."""

SIZES = 32, 64, 128, 256
"""Shingles in windows: level l has 2**(l + 1) blocks in each, and one every 2**l blocks."""

_LEVELS = len(SIZES)
_OVERLAP = SIZES[-1] // BLOCK // 2
_STEP = PROBED  # blocks of a document that are looked at together; all levels fit in the cache
_ROOM = _STEP + _OVERLAP

ROOM_WORDS = _ROOM * BLOCK
"""Shingles that a step can look at."""


@njit(cache=True, nogil=True)
def search_words(words, offsets, shingle, parameters, tables, limits):
    """Rows of (document, start, end, entry, equal positions), at most one of document and entry."""
    n_entries, least = limits
    room, scratch = _rooms(parameters, tables, n_entries)
    rows, n = np.empty((1024, 5), np.int64), 0
    for d in range(len(offsets) - 1):
        first_row = n
        start, n_words = offsets[d], offsets[d + 1] - offsets[d]
        size = min(shingle, n_words)
        n_shingles = n_words - size + 1 if size else 0
        for at in range(0, -(-n_shingles // BLOCK), _STEP):
            place = (d, at, n_words, size)
            there = _take_blocks(words, start, place, n_shingles, parameters, room)
            rows, n = _probe_levels(room[3], there, place, tables, least, scratch, rows, n)
        _forget(rows, first_row, n, scratch)
    return rows[:n].copy()


@njit(cache=True, nogil=True)
def search_texts(texts, stream, shingle, parameters, tables, limits):
    """As `search_words`, of texts: data, bounds, tables of the normalizer.

    Of the words of a text a chunk is held at a time.
    """
    data, bounds, characters = texts
    words, (n_entries, least) = stream[0], limits
    room, scratch = _rooms(parameters, tables, n_entries)
    rows, n = np.empty((1024, 5), np.int64), 0
    position = np.empty(2, np.int64)
    needed = ROOM_WORDS + shingle - 1  # words from the first block of a step on
    for d in range(len(bounds)):
        first_row, at = n, 0
        position[:] = 0
        base = there = 0  # words[0] is word `base` of the document; `there` are in the stream
        while True:
            first = at * BLOCK - base
            if there - first < needed and position[0] == 0:
                words[: there - first] = words[first:there].copy()
                base, there = base + first, there - first
                there, _ = fill_words(
                    data, bounds[d : d + 1], characters, stream, there, 0, position
                )
            n_words = base + there
            size = min(shingle, n_words)
            n_shingles = n_words - size + 1 if size else 0
            if at * BLOCK >= n_shingles:
                break
            place = (d, at, n_words, size)
            blocks = _take_blocks(words, -base, place, n_shingles, parameters, room)
            rows, n = _probe_levels(room[3], blocks, place, tables, least, scratch, rows, n)
            at += _STEP
        _forget(rows, first_row, n, scratch)
    return rows[:n].copy()


@njit(cache=True, nogil=True)
def _rooms(parameters, tables, n_entries):
    """Room for hashes, permuted hashes, blocks and windows of a step; and what probing needs."""
    blocks = np.empty((_ROOM, len(parameters[0])), np.uint32)
    levels = np.empty((_LEVELS, *blocks.shape), np.uint32)
    hashes, mixed = np.empty(_ROOM * BLOCK, np.uint64), np.empty(_ROOM * BLOCK, np.uint32)
    groups = np.empty((_LEVELS, _STEP), np.uint8)
    for i in range(_LEVELS):
        groups[i] = i
    row_of = np.full(n_entries, -1, np.int64)
    seen = np.full(len(tables[1]), -1, np.int64)
    scratch = (groups, row_of, seen, probe_scratch(tables), np.zeros(1, np.int64))
    return (hashes, mixed, blocks, levels), scratch


@njit(cache=True, nogil=True)
def _take_blocks(words, start, place, n_shingles, parameters, room):
    """Fill the windows of a step; return of how many blocks.

    Args:
        words: word i of the document is words[start + i].
        start: negative where the document's first words are gone.
        place: document, first block of the step, words and words in a shingle of the document.
        n_shingles: of the document, as far as it is known; more than a step has is enough.
        parameters: of the permutations.
        room: see `_rooms`. Changed.
    """
    hashes, mixed, blocks, levels = room
    _, at, _, size = place
    carried = _OVERLAP if at else 0
    blocks[:carried] = blocks[_STEP : _STEP + carried]
    there = min(_ROOM, -(-n_shingles // BLOCK) - at)
    if there > carried:
        begin = (at + carried) * BLOCK
        count = min((at + there) * BLOCK, n_shingles) - begin
        h = open_shingle(words, start + begin, size)
        fill_shingles(words, start + begin, count, size, power_of(size), h, hashes)
        _fill_blocks(hashes, count, mixed, parameters, blocks[carried:])
    _fill_levels(blocks, there, levels)
    return there


@njit(cache=True, nogil=True)
def _forget(rows, first, last, scratch):
    """Let the next document begin without rows."""
    for row in range(first, last):
        scratch[1][rows[row, 3]] = -1


@njit(cache=True, nogil=True)
def _fill_blocks(hashes, count, mixed, parameters, blocks):
    """Signatures of each BLOCK of `count` shingles."""
    padded = premix(hashes, count, mixed)
    for first in range(0, padded, BLOCK):
        row = first // BLOCK
        blocks[row] = EMPTY
        lower(mixed, first, min(first + BLOCK, padded), parameters, blocks, row)


@njit(cache=True, nogil=True)
def _windows(there, level):
    """Windows that begin in some blocks, but for those that only repeat the end of another."""
    return -(-there // (1 << level)) - 1


@njit(cache=True, nogil=True)
def _fill_levels(blocks, there, levels):
    """levels[l, j] becomes the signature of the 2**(l + 1) blocks from block j * 2**l on."""
    last = there - 1
    for j in range(max(_windows(there, 0), 1)):
        other = min(j + 1, last)
        for p in range(blocks.shape[1]):
            levels[0, j, p] = min(blocks[j, p], blocks[other, p])
    for level in range(1, _LEVELS):
        last = max(_windows(there, level - 1), 1) - 1
        for j in range(max(_windows(there, level), 1)):
            one, other = min(2 * j, last), min(2 * j + 2, last)
            for p in range(blocks.shape[1]):
                levels[level, j, p] = min(levels[level - 1, one, p], levels[level - 1, other, p])


@njit(cache=True, nogil=True)
def _probe_levels(levels, there, place, tables, least, scratch, rows, n):
    """Look up the windows of all sizes that begin in the next _STEP of the blocks that are there.

    Adds rows of entries that are new to the document, and betters those it has.
    """
    document, at, n_words, size = place
    stored, owners, entries = tables[1], tables[3][0], tables[4]
    sections = tables[2][1]
    groups, row_of, seen, probing, serial = scratch
    for level in range(min(_LEVELS, len(sections) - 1)):
        if sections[level] == sections[level + 1]:
            continue
        windows = min(_windows(there, level), _STEP >> level)
        windows = windows if at else max(windows, 1)
        signatures = levels[level, :windows]
        for k in range(passing_bands(signatures, groups[level], tables, probing)):
            j = probing[1][k]
            for found in range(*run_of(probing[0][k], tables)):
                owner = owners[found]
                if seen[owner] == serial[0] + j:
                    continue
                seen[owner] = serial[0] + j
                equal = equal_positions(signatures[j], stored[owner])
                if equal < least:
                    continue
                row = row_of[entries[owner]]
                if row < 0:
                    rows = grown(rows) if n == len(rows) else rows
                    row, n = n, n + 1
                    row_of[entries[owner]] = row
                    rows[row, 4] = -1
                if equal > rows[row, 4]:
                    start = (at + (j << level)) * BLOCK
                    end = min(start + (2 * BLOCK << level) + size - 1, n_words)
                    rows[row, 0], rows[row, 1], rows[row, 2] = document, start, end
                    rows[row, 3], rows[row, 4] = entries[owner], equal
        serial[0] += windows
    return rows, n
