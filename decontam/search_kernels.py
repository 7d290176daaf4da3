"""Numba kernels: find the n-grams and the short texts of an index in documents.

Names here as in `word_kernels.py`, and: key = 64-bit hash of the words of an n-gram; home = the
slot at which a search for a key begins; slot = the low half of a key and a payload; payload = the
ordinal of a word of the index, or the place of a list of them in `postings`.
"""
# pyright: basic, reportCallIssue=false

import numpy as np
from numba import njit

from decontam.character_kernels import mix
from decontam.word_kernels import MOST_PIECES, fill_words, join_readings

NGRAM, WHOLE = 0, 1
"""Kinds of hits."""

SHORTEST = 3
"""Words of the shortest text that is looked for whole; its last words are its anchor."""

LIST = np.uint32(1 << 31)
"""Set in payloads that point into `postings`."""

GAP = 1 << 62
"""Where a word would begin that stands between two runs of words."""

EMPTY = np.uint64(0xFFFFFFFF)
"""The payload of a free slot."""

_BASE = np.uint64(0xD6E8FEB86659FD93)
_FILTER = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@njit(cache=True, nogil=True)
def window_keys(hashes, n, keys):
    """Keys of all runs of n words: keys[i] is of words i to i + n - 1; uint64 [W - n + 1]."""
    highest = np.uint64(1)
    for _ in range(n):
        highest *= _BASE
    h = np.uint64(0)
    for i in range(len(hashes)):
        h = h * _BASE + hashes[i]
        if i >= n:
            h -= hashes[i - n] * highest
        if i >= n - 1:
            keys[i - n + 1] = mix(h)


@njit(cache=True, nogil=True)
def fill_filter(keys, bits):
    """Enter keys into a filter: a power of two of 64-bit words, three bits of one for each key."""
    shift = np.uint64(64 - _log2(len(bits)))
    for key in keys:
        bits[_block(key, shift)] |= _three_bits(key)


@njit(cache=True, nogil=True, inline="always")
def _block(key, shift):
    return (key * _FILTER) >> shift


@njit(cache=True, nogil=True, inline="always")
def _three_bits(key):
    one, low = np.uint64(1), np.uint64(63)
    first = one << (key & low)
    second = one << ((key >> np.uint64(6)) & low)
    return first | second | (one << ((key >> np.uint64(12)) & low))


@njit(cache=True, nogil=True)
def _log2(x):
    n = 0
    while (1 << n) < x:
        n += 1
    return n


@njit(cache=True, nogil=True)
def fill_slots(keys, payloads, slots):
    """Enter keys, sorted and unique, into an open-addressing table of any size."""
    slots[:] = EMPTY
    for i in range(len(keys)):
        at = _home(keys[i], len(slots))
        while (slots[at] & _LOW) != EMPTY:
            at = at + 1 if at + 1 < len(slots) else 0
        slots[at] = ((keys[i] & _LOW) << _32) | np.uint64(payloads[i])


@njit(cache=True, nogil=True, inline="always")
def _home(key, size):
    return np.int64(((key >> _32) * np.uint64(size)) >> _32)


@njit(cache=True, nogil=True)
def count_words(hashes, first, n, counts):
    """Distinct words with a letter among n words, for each first word."""
    for i in range(len(first)):
        for k in range(first[i], first[i] + n):
            if hashes[k] & np.uint64(1):
                new = True
                for before in range(first[i], k):
                    new &= hashes[before] != hashes[k]
                counts[i] += new


@njit(cache=True, nogil=True)
def _lookup(key, slots, skip):
    """(payload or -1, slots passed) of a key; `skip` slots of the same low half are passed over."""
    at, passed = _home(key, len(slots)), 0
    while (slots[at] & _LOW) != EMPTY:
        if (slots[at] >> _32) == (key & _LOW):
            if passed == skip:
                return np.int64(slots[at] & _LOW), passed
            passed += 1
        at = at + 1 if at + 1 < len(slots) else 0
    return np.int64(-1), passed


@njit(cache=True, nogil=True)
def _same_words(hashes, first, n, words, ordinal):
    """Whether n words of a document are n words of the index."""
    for k in range(n):  # noqa: SIM110
        if (hashes[first + k] >> _32) != words[ordinal + k]:
            return False
    return True


@njit(cache=True, nogil=True)
def _room(hits, count):
    if count < len(hits):
        return hits
    more = np.empty((2 * len(hits), hits.shape[1]), np.int64)
    more[:count] = hits
    return more


@njit(cache=True, nogil=True)
def _candidates(hashes, spans, n_words, new_from, bounds, text, n, bits, s_bits, scratch):
    """Words behind byte `new_from` at which a run of words ends whose key a filter lets pass.

    The filter of short texts is small, and asked at once. That of n-grams is far from the
    processor: its memory is asked for in a loop that does nothing else, many places at a time.

    Returns:
        How many n-grams and how many ends of short texts there may be; their last words and keys
        are the first of `scratch`.
    """
    last, keys, blocks, s_last, s_keys = scratch
    highest, s_highest = np.uint64(1), np.uint64(1)
    for _ in range(n):
        highest *= _BASE
    for _ in range(SHORTEST):
        s_highest *= _BASE
    shift, s_shift = np.uint64(64 - _log2(len(bits))), np.uint64(64 - _log2(len(s_bits)))
    h, short, run, end = np.uint64(0), np.uint64(0), 0, bounds[text, 1]
    size = s_count = 0
    for i in range(n_words):
        if spans[i, 0] > end:
            here = spans[min(i + (spans[i, 0] == GAP), n_words - 1), 0]
            text = _text_at(here, bounds, 0 if spans[i, 0] == GAP else text)
            h, short, run, end = np.uint64(0), np.uint64(0), 0, bounds[text, 1]
            if spans[i, 0] == GAP:
                continue
        run += 1
        h = h * _BASE + hashes[i]
        short = short * _BASE + hashes[i]
        if run > SHORTEST:
            short -= hashes[i - SHORTEST] * s_highest
            if run > n:
                h -= hashes[i - n] * highest
        new = spans[i, 1] > new_from
        keys[size], last[size] = mix(h), i
        size += run >= n and new
        if run >= SHORTEST and new:
            key = mix(short)
            three = _three_bits(key)
            if s_bits[_block(key, s_shift)] & three == three:
                s_keys[s_count], s_last[s_count] = key, i
                s_count += 1
    count = 0
    for k in range(size):
        blocks[k] = bits[_block(keys[k], shift)]
    for k in range(size):
        three = _three_bits(keys[k])
        if blocks[k] & three == three:
            last[count], keys[count] = last[k], keys[k]
            count += 1
    return count, s_count


@njit(cache=True, nogil=True)
def _probe(hashes, spans, n_words, new_from, bounds, text, index, scratch, hits, count):
    """Look up every n-gram and anchor whose last word is behind byte `new_from`.

    Returns:
        The hits, see `search`, and how many there are.
    """
    n, words, slots, bits, postings, shorts, s_slots, s_bits, s_postings = index
    last, keys, _, s_last, s_keys = scratch
    n_grams, n_shorts = _candidates(
        hashes, spans, n_words, new_from, bounds, text, n, bits, s_bits, scratch
    )
    for c in range(n_grams):
        first = last[c] - n + 1
        payload = _find_ngram(keys[c], hashes, first, n, words, slots, postings)
        if payload >= 0:
            hits = _room(hits, count)
            hits[count, 0] = _text_at(spans[last[c], 0], bounds, text)
            hits[count, 1], hits[count, 2] = spans[first, 0], spans[last[c], 1]
            hits[count, 3], hits[count, 4] = NGRAM, payload
            hits[count, 5] = spans[first + 1, 0]
            count += 1
    for c in range(n_shorts):
        payload, _ = _lookup(s_keys[c], s_slots, 0)
        if payload < 0:
            continue
        here = _text_at(spans[s_last[c], 0], bounds, text)
        for k in range(payload + 1, payload + 1 + s_postings[payload]):
            ordinal, size = shorts[s_postings[k], 0], np.int64(shorts[s_postings[k], 1])
            first = s_last[c] - size + 1
            within = first >= 0 and spans[first, 0] >= bounds[here, 0]
            if within and _same_words(hashes, first, size, words, ordinal):
                hits = _room(hits, count)
                hits[count, 0], hits[count, 1], hits[count, 2] = (
                    here,
                    spans[first, 0],
                    spans[s_last[c], 1],
                )
                hits[count, 3], hits[count, 4] = WHOLE, s_postings[k]
                hits[count, 5] = spans[first + 1, 0]
                count += 1
    return hits, count


@njit(cache=True, nogil=True)
def _find_ngram(key, hashes, first, n, words, slots, postings):
    """The payload of n words of a document that are in the index, or -1."""
    skip = 0
    while True:
        payload, _ = _lookup(key, slots, skip)
        if payload < 0:
            return payload
        ordinal = payload
        if payload & LIST:
            ordinal = np.int64(postings[(payload & (LIST - 1)) + 1])
        if _same_words(hashes, first, n, words, ordinal):
            return payload
        skip += 1


@njit(cache=True, nogil=True)
def search(data, bounds, tables, index, stream):
    """All hits in some texts, in both readings.

    Args:
        data: uint8, padded with 64 zeros.
        bounds: int64 [T, 2].
        tables: `Normalizer.tables`.
        index: (n, and the arrays of `Index`).
        stream: `new_stream` with room for `carry_words(n)` words.

    Returns:
        int64 [H, 6]: text, first byte, first byte behind, kind, payload, and where the second
        word begins, which tells what follows what; bytes of `data`. And
        int64 [T] the number of words of each text, in the split reading.
    """
    n = index[0]
    hashes, spans, _, _ = stream
    hits, count = np.empty((1024, 6), np.int64), 0
    counts = np.zeros(len(bounds), np.int64)
    joined, joined_spans = (
        np.empty(2 * len(hashes), np.uint64),
        np.empty((2 * len(hashes), 2), np.int64),
    )
    sources = np.empty_like(joined_spans)
    scratch = (
        np.empty(len(joined), np.int64), np.empty_like(joined), np.empty_like(joined),
        np.empty(len(joined), np.int64), np.empty_like(joined),
    )  # fmt: skip
    position = np.zeros(2, np.int64)
    words = m = 0
    while position[0] < len(bounds):
        carried = words
        new_from = spans[carried - 1, 1] if carried else np.int64(-1)
        text = _text_of(spans, carried, bounds)
        words, m = fill_words(data, bounds, tables, stream, carried, m, position)
        _count(spans, carried, words, bounds, text, counts)
        hits, count = _probe(
            hashes, spans, words, new_from, bounds, text, index, scratch, hits, count
        )
        size = _join_clusters(stream, words, m, n, joined, joined_spans, sources)
        if size:
            at = _text_at(joined_spans[0, 0], bounds, text)
            hits, count = _probe(
                joined, joined_spans, size, new_from, bounds, at, index, scratch, hits, count
            )
        words, m = _carry(stream, words, m, carry_words(n))
    return hits[:count], counts


@njit(cache=True, nogil=True)
def carry_words(n):
    """Words that stay for the next chunk: at least n - 1 words of either reading."""
    return MOST_PIECES * (n + 1)


@njit(cache=True, nogil=True)
def _text_of(spans, carried, bounds):
    return _text_at(spans[0, 0], bounds, 0) if carried else 0


@njit(cache=True, nogil=True)
def _text_at(byte, bounds, text):
    """The text that holds a byte; a search among texts in order."""
    low, high = text, len(bounds) - 1
    while low < high:
        middle = (low + high) // 2
        if bounds[middle, 1] < byte:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _count(spans, first, last, bounds, text, counts):
    for i in range(first, last):
        while spans[i, 0] > bounds[text, 1]:
            text += 1
        counts[text] += 1


@njit(cache=True, nogil=True)
def _join_clusters(stream, words, m, n, joined, joined_spans, sources):
    """The joined reading wherever it differs, with n - 1 words around, as one run of words.

    Between clusters, which may overlap, stands a `GAP`, so that no n-gram reaches over it.
    """
    hashes, spans, patches, patch_hashes = stream
    size = p = 0
    while p < m:
        first, last, p_first, p = _cluster(patches, patch_hashes, p, m, words, n)
        if size:
            joined[size] = 0
            joined_spans[size, 0] = joined_spans[size, 1] = GAP
            size += 1
        size, _ = join_readings(
            hashes, spans, patches[:m], patch_hashes, first, last, p_first, size,
            joined, joined_spans, sources,
        )  # fmt: skip
    return size


@njit(cache=True, nogil=True)
def _cluster(patches, patch_hashes, p, m, words, n):
    """Words around patches that stand less than n joined words from each other.

    Returns:
        Words [first, last) that hold n - 1 joined words before and behind the patches, the first
        patch within them, and the first patch behind.
    """
    first, q, back = patches[p, 0], p, 0
    while back < n - 1 and first > 0:
        if q > 0 and patches[q - 1, 1] == first:
            q -= 1
            first = patches[q, 0]
            back += patch_hashes[q] != 0
        else:
            first -= 1
            back += 1
    last, ahead = patches[p, 1], 0
    p += 1
    while ahead < n - 1 and last < words:
        if p < m and patches[p, 0] == last:
            last = patches[p, 1]
            p += 1
            ahead = 0
        else:
            last += 1
            ahead += 1
    return first, last, q, p


@njit(cache=True, nogil=True)
def _carry(stream, words, m, keep):
    """Move the last words, about `keep` of them, to the beginning of the stream."""
    hashes, spans, patches, patch_hashes = stream
    cut, p = max(words - keep, 0), m
    while p > 0 and patches[p - 1, 1] > cut:
        p -= 1
    if p < m:
        cut = min(cut, patches[p, 0])
    hashes[: words - cut] = hashes[cut:words]
    spans[: words - cut] = spans[cut:words]
    for i in range(p, m):
        patches[i - p, 0], patches[i - p, 1] = patches[i, 0] - cut, patches[i, 1] - cut
        patch_hashes[i - p] = patch_hashes[i]
    return words - cut, m - p
