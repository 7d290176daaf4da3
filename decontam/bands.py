"""Signatures cut into bands: numbers that are equal where the bands are.

Shapes: N signatures, P permutations.
"""
# pyright: basic, reportCallIssue=false

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from decontam.character_kernels import mix
from decontam.minhash import Ints, UInt32s, UInt64s

PROBED = 64
"""Signatures whose bands are looked up together."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_GROUP = np.uint64(0xC2B2AE3D27D4EB4F)


def least_equal(threshold: float, permutations: int) -> int:
    """Equal positions that an estimate of at least `threshold` needs."""
    return math.ceil(threshold * permutations - 1e-9)


def band_hashes(
    signatures: UInt32s, *, bands: int, rows: int, groups: npt.NDArray[np.uint8] | None = None
) -> UInt64s:
    """Hashes of the bands, uint64 [bands, N]; equal bands of equal groups have equal hashes.

    Raises:
        ValueError: a signature has fewer than `bands * rows` positions.
    """
    check_bands(signatures, bands, rows)
    groups = np.zeros(len(signatures), np.uint8) if groups is None else groups
    hashes = np.empty((bands, len(signatures)), np.uint64)
    _all_bands(np.ascontiguousarray(signatures), groups, mixers_of(bands, rows), hashes)
    return hashes


def check_bands(signatures: UInt32s, bands: int, rows: int) -> None:
    """Raise ValueError where a signature has fewer than `bands * rows` positions."""
    if bands < 1 or rows < 1 or bands * rows > signatures.shape[1]:
        there = f"there are {signatures.shape[1]} permutations"
        raise ValueError(f"{bands} bands of {rows} rows need {bands * rows} permutations; {there}")


def mixers_of(bands: int, rows: int) -> tuple[UInt64s, UInt64s, int]:
    """What `hash_bands` mixes with: odd factors of rows, summands of bands, the number of rows."""
    numbers = np.arange(1, bands + rows + 1, dtype=np.uint64) * _GOLDEN
    odd = np.array([mix(number) for number in numbers], np.uint64) | np.uint64(1)
    return odd[:rows], odd[rows:], rows


@njit(cache=True, nogil=True)
def hash_bands(signatures, groups, mixers, wide, hashes):
    """Write the hashes of all bands. `wide` is scratch for the signatures as 64-bit numbers.

    Where the rows are even in number two positions count as one, which is twice as fast.
    """
    factors, summands, rows = mixers
    if rows % 2 == 0:
        values, step = signatures.view(np.uint64), rows // 2
    else:
        wide[: len(signatures)] = signatures
        values, step = wide, rows
    n = len(summands)
    for i in range(len(signatures)):
        offset = np.uint64(groups[i]) * _GROUP
        for band in range(n):
            hashes[i, band] = summands[band] + offset
        for row in range(step):
            for band in range(n):
                hashes[i, band] += values[i, band * step + row] * factors[row]
        for band in range(n):
            hashes[i, band] = mix(hashes[i, band])


@njit(cache=True, nogil=True)
def _all_bands(signatures, groups, mixers, result):
    hashes = np.empty((PROBED, len(result)), np.uint64)
    wide = np.empty((PROBED, signatures.shape[1]), np.uint64)
    for first in range(0, len(signatures), PROBED):
        last = min(first + PROBED, len(signatures))
        hash_bands(signatures[first:last], groups[first:last], mixers, wide, hashes)
        result[:, first:last] = hashes[: last - first].T


@njit(cache=True, nogil=True)
def grown(rows: Ints) -> Ints:
    """The same rows with room for as many again."""
    more = np.empty((2 * len(rows), rows.shape[1]), np.int64)
    more[: len(rows)] = rows
    return more
