"""Signatures that share a band: banded locality-sensitive hashing in frozen arrays.

The positions of a signature are cut into `bands` of `rows`; two signatures of Jaccard similarity J
share at least one band with the probability 1 - (1 - J**rows)**bands. 32 bands of 4 rows find 87 %
of the pairs with J = 0.5 and all but 1 in 6,000 with J = 0.7; 16 of 8 find 6 % and 61 %.

Bands are compared by 64-bit hashes of which an index keeps 32 bits and a place; whatever they find
is checked on the whole signatures, so a false match of hashes costs time and nothing else.

Shapes: N signatures in an index, Q queries, P permutations.
"""
# pyright: basic, reportCallIssue=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from decontam.bands import (
    PROBED,
    band_hashes,
    check_bands,
    grown,
    hash_bands,
    least_equal,
    mixers_of,
)
from decontam.minhash import Ints, UInt32s, UInt64s, equal_positions, is_empty

_LEAST_PLACES = 10
_PARTS = "signatures", "keys", "owners", "first", "filter", "sections"
_KEYS_PER_WORD = 4  # or fewer, with three bits each of 64: one band in 150 passes by chance
_ONE, _SIX, _LAST = np.uint64(1), np.uint64(6), np.uint64(63)


class Pairs(NamedTuple):
    """Queries and signatures of an index that resemble each other, column by column."""

    query: Ints
    signature: Ints
    equal: Ints
    """Positions in which the two agree; divided by P, the estimated Jaccard similarity."""


@dataclass(frozen=True, slots=True)
class Lsh:
    """An index of signatures.

    Memory: 4 P bytes for a signature and 12 to 20 bytes for each of its bands.
    """

    bands: int
    rows: int
    signatures: UInt32s
    """[N, P] as they were given."""

    keys: UInt32s
    """[N * bands] lower halves of the bands' hashes, ascending by whole hash."""

    owners: UInt32s
    """[N * bands] the signature of each key."""

    first: UInt32s
    """[2**k + 1]: the keys whose hashes begin with the k bits of x are first[x] to first[x + 1]."""

    filter: UInt64s
    """Bloom filters of the hashes of each group, one after the other: three bits of one number for
    each hash. Small groups have small filters, which stay in the processor's cache."""

    sections: Ints
    """[groups + 1] where the filter of each group begins; its length is a power of two, or 0."""

    @classmethod
    def build(
        cls,
        signatures: UInt32s,
        *,
        bands: int = 32,
        rows: int = 4,
        groups: npt.NDArray[np.uint8] | None = None,
    ) -> Lsh:
        """Index signatures; those of documents without words are stored, but never found.

        Args:
            signatures: uint32 [N, P], N * bands < 2**32.
            bands: of `rows` positions each, from the first on.
            rows: positions in a band.
            groups: [N]; a query finds only signatures of its own group. All 0 if not given.

        Raises:
            ValueError: a signature has fewer than `bands * rows` positions.
        """
        hashes = band_hashes(signatures, bands=bands, rows=rows, groups=groups)
        found = np.flatnonzero(~is_empty(signatures)).astype(np.uint32)
        flat = hashes[:, found].ravel()
        order = np.argsort(flat, kind="stable")
        flat = flat[order]
        places = max(_LEAST_PLACES, len(flat).bit_length())
        beginnings = np.arange((1 << places) + 1, dtype=np.uint64)
        first = np.searchsorted(flat >> np.uint64(64 - places), beginnings).astype(np.uint32)
        groups = np.zeros(len(signatures), np.uint8) if groups is None else groups
        filter, sections = _filters(hashes, groups, found)
        owners = np.tile(found, bands)[order]
        keys = flat.astype(np.uint32)
        return cls(
            bands, rows, np.ascontiguousarray(signatures), keys, owners, first, filter, sections
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything, as arrays that `from_arrays` takes, memory-mapped ones too."""
        shape = np.array([self.bands, self.rows], np.int64)
        return {
            "shape": shape,
            "signatures": self.signatures,
            "keys": self.keys,
            "owners": self.owners,
            "first": self.first,
            "filter": self.filter,
            "sections": self.sections,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Lsh:
        """An index of what `arrays` gave.

        Raises:
            ValueError: the arrays do not fit together.
        """
        bands, rows = arrays["shape"].tolist()
        parts = [arrays[name] for name in _PARTS]
        signatures, keys, owners, first, filter, sections = parts
        fits = len(keys) == len(owners) == first[-1] and bands * rows <= signatures.shape[1]
        fits = fits and len(first) - 1 == 1 << _places(first) and len(filter) == sections[-1]
        sizes = np.diff(sections)
        fits = fits and (sizes >= 0).all() and not (sizes & (sizes - 1)).any()
        if not fits or (len(owners) and owners.max() >= len(signatures)):
            raise ValueError("the arrays of an index of signatures do not fit together")
        return cls(bands, rows, *parts)

    def query(
        self,
        signatures: UInt32s,
        *,
        threshold: float,
        groups: npt.NDArray[np.uint8] | None = None,
    ) -> Pairs:
        """Find what shares a band with a query and has an estimated similarity of `threshold`.

        Args:
            signatures: uint32 [Q, P], of the same shingles, permutations and seed.
            threshold: least share of equal positions.
            groups: [Q] of the queries.

        Returns:
            Pairs by ascending query and signature.
        """
        check_bands(signatures, self.bands, self.rows)
        groups = np.zeros(len(signatures), np.uint8) if groups is None else groups
        least = least_equal(threshold, signatures.shape[1])
        found = _query(np.ascontiguousarray(signatures), groups, self.tables(), least)
        found = found[np.lexsort((found[:, 1], found[:, 0]))]
        return Pairs(found[:, 0], found[:, 1], found[:, 2])

    def tables(self) -> tuple[Any, ...]:
        """What the kernels of this package read."""
        sizes = np.maximum(np.diff(self.sections), 1)
        shifts = (64 - np.log2(sizes).astype(np.int64)).astype(np.uint64)
        filters = self.filter, self.sections, shifts
        runs = self.owners, self.keys, self.first, np.uint64(64 - _places(self.first))
        return mixers_of(self.bands, self.rows), self.signatures, filters, runs


def _places(first: UInt32s) -> int:
    return (len(first) - 1).bit_length() - 1


def _filters(
    hashes: UInt64s, groups: npt.NDArray[np.uint8], found: UInt32s
) -> tuple[UInt64s, Ints]:
    """The filter of each group, and where each begins; groups without signatures have none."""
    filters: list[UInt64s] = []
    for group in range(int(groups.max(initial=0)) + 1):
        flat = hashes[:, found[groups[found] == group]].ravel()
        bits = max(1, (len(flat) // _KEYS_PER_WORD).bit_length()) if len(flat) else 0
        filters.append(np.zeros(1 << bits if bits else 0, np.uint64))
        _fill_filter(flat, np.uint64(64 - bits), filters[-1])
    sections = np.cumsum([0, *(len(filter) for filter in filters)])
    return np.concatenate(filters), sections


@njit(cache=True, nogil=True, inline="always")
def _filter_bits(h):
    return _ONE << (h & _LAST) | _ONE << (h >> _SIX & _LAST) | _ONE << (h >> _SIX + _SIX & _LAST)


@njit(cache=True, nogil=True)
def _fill_filter(hashes, shift, filter):
    for h in hashes:
        filter[h >> shift] |= _filter_bits(h)


@njit(cache=True, nogil=True)
def probe_scratch(tables):
    """Memory that `passing_bands` needs; the first two arrays are what it finds."""
    bands, permutations = len(tables[0][1]), tables[1].shape[1]
    kept, which = np.empty(PROBED * bands + 1, np.uint64), np.empty(PROBED * bands + 1, np.int64)
    return (
        kept,
        which,
        np.empty((PROBED, bands), np.uint64),
        np.empty((PROBED, permutations), np.uint64),
    )


@njit(cache=True, nogil=True)
def passing_bands(signatures, groups, tables, scratch):
    """Write the hashes of the bands that may occur in the index, and whose they are.

    Takes PROBED signatures or fewer; returns how many hashes they are.
    """
    filter, sections, shifts = tables[2]
    kept, which, hashes, wide = scratch
    hash_bands(signatures, groups, tables[0], wide, hashes)
    n = np.uint64(0)  # unsigned indices need no test for negative ones
    for i in range(np.uint64(len(signatures))):
        group = np.int64(groups[i])
        if group + 1 >= len(sections) or sections[group] == sections[group + 1]:
            continue
        section, shift = np.uint64(sections[group]), shifts[group]
        for band in range(np.uint64(hashes.shape[1])):
            h = hashes[i, band]
            bits = _filter_bits(h)
            kept[n], which[n] = h, i  # no branch: the reads of several bands overlap
            n += np.uint64((filter[section + (h >> shift)] & bits) == bits)
    return np.int64(n)


@njit(cache=True, nogil=True)
def run_of(h, tables):
    """Where in `owners` the signatures with this band begin and end."""
    _, keys, first, shift = tables[3]
    begin = h >> shift
    at, end = np.int64(first[begin]), np.int64(first[begin + _ONE])
    key = np.uint32(h)
    while at < end and keys[at] != key:
        at += 1
    stop = at
    while stop < end and keys[stop] == key:
        stop += 1
    return at, stop


@njit(cache=True, nogil=True)
def _query(signatures, groups, tables, least):
    stored, owners = tables[1], tables[3][0]
    found = np.empty((max(64, len(signatures)), 3), np.int64)
    seen = np.full(len(stored), -1, np.int64)
    scratch = probe_scratch(tables)
    n = 0
    for first in range(0, len(signatures), PROBED):
        part = signatures[first : first + PROBED]
        for k in range(passing_bands(part, groups[first : first + PROBED], tables, scratch)):
            at, stop = run_of(scratch[0][k], tables)
            i = scratch[1][k]
            for place in range(at, stop):
                owner = owners[place]
                if seen[owner] == first + i:
                    continue
                seen[owner] = first + i
                equal = equal_positions(part[i], stored[owner])
                if equal < least:
                    continue
                if n == len(found):
                    found = grown(found)
                found[n, 0], found[n, 1], found[n, 2] = first + i, owner, equal
                n += 1
    return found[:n].copy()
