"""Word hashes → MinHash signatures, as datasketch 2.0 makes them (`scheme="affine32"`).

A shingle is `shingle` words in a row; a document of fewer words is one shingle. The hash of a
shingle is a polynomial of its words' hashes, finalized to 64 bits. Given the lower 32 bits of all
shingles' hashes and the same seed, datasketch's `MinHash` has the same signature, bit for bit.

A document without words has no shingle: its signature is EMPTY everywhere, it resembles nothing,
and no search finds it.

Shapes: W words, D documents, S shingles, P permutations.
"""
# pyright: basic, reportCallIssue=false

import numpy as np
import numpy.typing as npt
from numba import njit

from decontam.character_kernels import mix

UInt64s = npt.NDArray[np.uint64]
UInt32s = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]

EMPTY = np.uint32(0xFFFFFFFF)
"""At every position of the signature of a document without words; at no other document's all."""

UNROLLED = 8
"""Shingles that one pass over a signature takes in; buffers of them are a multiple of this long."""

_BUFFER = 512
_BASE = np.uint64(0x9E3779B97F4A7C15)


def permutation_parameters(permutations: int, seed: int) -> tuple[UInt32s, UInt32s]:
    """Factors and summands, uint32 [P] each, that datasketch 2.0 draws for a seed."""
    generator = np.random.RandomState(seed)
    factors = generator.randint(0, 1 << 31, permutations, dtype=np.uint32)
    summands = generator.randint(0, 1 << 32, permutations, dtype=np.uint32)
    return factors * np.uint32(2) + np.uint32(1), summands


def shingle_hashes(word_hashes: UInt64s, offsets: Ints, *, shingle: int) -> tuple[UInt64s, Ints]:
    """Hashes of the shingles of all documents.

    Args:
        word_hashes: uint64 [W], the words of all documents.
        offsets: int64 [D + 1]; document d is `word_hashes[offsets[d] : offsets[d + 1]]`.
        shingle: words in a shingle, >= 1.

    Returns:
        uint64 [S], and int64 [D + 1]: where the shingles of each document begin and end.

    Raises:
        ValueError: the offsets do not fit the words, or a shingle would have no word.
    """
    check_words(word_hashes, offsets, shingle)
    n_words = np.diff(offsets)
    n_shingles = np.where(n_words == 0, 0, np.maximum(n_words - shingle + 1, 1))
    bounds = np.concatenate([[0], np.cumsum(n_shingles)]).astype(np.int64)
    hashes = np.empty(int(bounds[-1]), np.uint64)
    _all_shingles(word_hashes, offsets, shingle, bounds, hashes)
    return hashes, bounds


def signatures(
    word_hashes: UInt64s, offsets: Ints, *, shingle: int, permutations: int = 128, seed: int = 1
) -> UInt32s:
    """MinHash signatures of all documents, uint32 [D, P].

    Give some megabytes of text at a time: a call costs about 20 microseconds.

    Args:
        word_hashes: uint64 [W], the words of all documents.
        offsets: int64 [D + 1]; document d is `word_hashes[offsets[d] : offsets[d + 1]]`.
        shingle: words in a shingle, >= 1.
        permutations: P; the estimate of a Jaccard similarity J has the standard deviation
            sqrt(J * (1 - J) / P).
        seed: signatures of different seeds cannot be compared.

    Raises:
        ValueError: the offsets do not fit the words, or a shingle would have no word.
    """
    check_words(word_hashes, offsets, shingle)
    factors, summands = permutation_parameters(permutations, seed)
    result = np.full((len(offsets) - 1, permutations), EMPTY, np.uint32)
    ranges = offsets[:-1], offsets[1:]
    signatures_of_ranges(word_hashes, ranges, shingle, (factors, summands), result)
    return result


def sampled_shingles(
    word_hashes: UInt64s, offsets: Ints, *, shingle: int, one_in: int
) -> tuple[UInt64s, Ints]:
    """The distinct shingles of each document whose hashes are in the lowest `one_in`-th part.

    The same shingle is in every document's sample or in none's, so shares of one document that
    are in another can be estimated, however different their lengths.

    Returns:
        uint64 [S], ascending in each document, and int64 [D + 1]: where those of each begin.

    Raises:
        ValueError: as `shingle_hashes` does.
    """
    hashes, bounds = shingle_hashes(word_hashes, offsets, shingle=shingle)
    chosen = np.flatnonzero(hashes <= np.uint64(((1 << 64) - 1) // one_in))
    document = np.searchsorted(bounds, chosen, side="right") - 1
    return distinct_samples(hashes[chosen], document, len(offsets) - 1)


def distinct_samples(hashes: UInt64s, document: Ints, n: int) -> tuple[UInt64s, Ints]:
    """The distinct hashes of each of n documents, as `sampled_shingles` has them."""
    order = np.lexsort((hashes, document))
    hashes, document = hashes[order], document[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]) | (document[1:] != document[:-1])
    counts = np.bincount(document[new], minlength=n)
    return hashes[new], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def is_empty(signatures: UInt32s) -> npt.NDArray[np.bool_]:
    """Which of the signatures [D, P] are those of documents without words; bool [D]."""
    return (signatures == EMPTY).all(axis=1)


def check_words(word_hashes: UInt64s, offsets: Ints, shingle: int) -> None:
    """Raise ValueError where kernels would read beyond their arrays."""
    if shingle < 1:
        raise ValueError(f"a shingle of {shingle} words; it must have at least one")
    fits = offsets[0] >= 0 and offsets[-1] <= len(word_hashes) and (np.diff(offsets) >= 0).all()
    if not fits:
        raise ValueError(f"offsets must rise from 0 to the {len(word_hashes):,} words there are")


@njit(cache=True, nogil=True)
def open_shingle(words, start, size):
    """Polynomial of all but the last word of the shingle of `size` words at `start`."""
    h = np.uint64(0)
    for i in range(start, start + size - 1):
        h = h * _BASE + words[i]
    return h


@njit(cache=True, nogil=True)
def power_of(size):
    """The factor of the first of `size` words in the polynomial."""
    power = np.uint64(1)
    for _ in range(size - 1):
        power *= _BASE
    return power


@njit(cache=True, nogil=True)
def fill_shingles(words, start, n, size, power, h, hashes):
    """Write the hashes of n shingles from `start` on; return `h`, moved on behind them.

    `h` comes from `open_shingle(words, start, size)`, or from the call before this one.
    """
    for i in range(n):
        h = h * _BASE + words[start + i + size - 1]
        hashes[i] = mix(h)
        h -= words[start + i] * power
    return h


@njit(cache=True, nogil=True)
def premix(hashes, n, mixed):
    """Write MurmurHash3's finalizer of the lower halves of n hashes; return how many were written.

    The last is repeated up to a multiple of UNROLLED, which changes no minimum.
    """
    for i in range(n):
        h = np.uint32(hashes[i])
        h ^= h >> np.uint32(16)
        h = np.uint32(h * np.uint32(0x85EBCA6B))
        h ^= h >> np.uint32(13)
        h = np.uint32(h * np.uint32(0xC2B2AE35))
        mixed[i] = h ^ (h >> np.uint32(16))
    padded = -(-n // UNROLLED) * UNROLLED
    for i in range(n, padded):
        mixed[i] = mixed[n - 1]
    return padded


@njit(cache=True, nogil=True)
def lower(mixed, first, last, parameters, signatures, row):
    """Lower each position of signatures[row] to its least permuted value in mixed[first:last]."""
    factors, summands = parameters
    for i in range(first, last, UNROLLED):
        h0, h1, h2, h3 = mixed[i], mixed[i + 1], mixed[i + 2], mixed[i + 3]
        h4, h5, h6, h7 = mixed[i + 4], mixed[i + 5], mixed[i + 6], mixed[i + 7]
        for p in range(signatures.shape[1]):  # becomes vector instructions
            a, b = factors[p], summands[p]
            v0 = min(np.uint32(a * h0 + b), np.uint32(a * h1 + b))
            v1 = min(np.uint32(a * h2 + b), np.uint32(a * h3 + b))
            v2 = min(np.uint32(a * h4 + b), np.uint32(a * h5 + b))
            v3 = min(np.uint32(a * h6 + b), np.uint32(a * h7 + b))
            w0, w1 = min(v0, v1), min(v2, v3)
            w0 = min(w0, w1)
            signatures[row, p] = min(signatures[row, p], w0)


@njit(cache=True, nogil=True)
def equal_positions(one, other):
    """In how many positions two signatures agree."""
    n = 0
    for p in range(len(one)):
        n += one[p] == other[p]
    return n


@njit(cache=True, nogil=True)
def _all_shingles(words, offsets, shingle, bounds, hashes):
    for d in range(len(offsets) - 1):
        start, n = offsets[d], bounds[d + 1] - bounds[d]
        size = min(shingle, offsets[d + 1] - start)
        h = open_shingle(words, start, size)
        fill_shingles(words, start, n, size, power_of(size), h, hashes[bounds[d] :])


@njit(cache=True, nogil=True)
def signatures_of_ranges(words, ranges, shingle, parameters, result):
    """Lower result[d], all EMPTY before, to the signature of words[starts[d] : ends[d]]."""
    starts, ends = ranges
    hashes = np.empty(_BUFFER, np.uint64)
    mixed = np.empty(_BUFFER, np.uint32)
    for d in range(len(starts)):
        start, end = starts[d], ends[d]
        size = min(shingle, end - start)
        power = power_of(size)
        h = open_shingle(words, start, size)
        last = end - size + 1 if size else start
        for at in range(start, last, _BUFFER):
            n = min(_BUFFER, last - at)
            h = fill_shingles(words, at, n, size, power, h, hashes)
            lower(mixed, 0, premix(hashes, n, mixed), parameters, result, d)
