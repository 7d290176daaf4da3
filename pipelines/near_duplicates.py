"""Near duplicates within a source: bands → edges → components → which documents are kept.

Two documents are alike where their MinHash signatures agree in a share `threshold` of their
positions. Only those are compared that share a band: 32 bands of 4 rows find all but 1 in
30,000,000 of the pairs with a similarity of 0.8.

A similarity of whole documents does not see that one book is the first volume of another. So what
a document shares with a longer one is counted too, on a sample of the shingles: a document is
*contained* where the share is high.

Documents are taken in one order, the longest first. Each is kept unless it is like a document
that is kept, or contained in one: what is dropped has its likeness among what is kept, and what is
kept has none there. To be connected over others is no reason to be dropped.

Documents are numbered in any order: the uids alone decide between equals. What a build reads of
them when is in `dedup.py`.

Shapes: N documents, P permutations, S sampled shingles.
"""
# pyright: basic, reportCallIssue=false

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from decontam.bands import band_hashes, least_equal
from decontam.candidates import uid_numbers
from decontam.edge_kernels import bucket_edges, run_pairs, stay_or_go, unite
from decontam.minhash import is_empty

Ints = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Uids = npt.NDArray[np.uint8]


class Edges(NamedTuple):
    """Pairs of near duplicates, each once, by ascending numbers."""

    one: Ints
    other: Ints
    """Greater than `one`."""

    equal: Ints
    """Positions in which the signatures agree."""


class Contained(NamedTuple):
    """Documents that are in great part in a longer one."""

    inner: Ints
    outer: Ints
    share: npt.NDArray[np.float64]
    """Share of the inner document's sampled shingles that the outer one has."""


def band_edges(
    hashes: UInt64s, signatures: npt.NDArray[np.uint32], uids: Uids, *, threshold: float
) -> Edges:
    """Near duplicates among documents that share one band.

    Args:
        hashes: uint64 [N], one row of `decontam.bands.band_hashes`.
        signatures: uint32 [N, P]; those of documents without words have no edges.
        uids: uint8 [N, 16].
        threshold: least share of equal positions.
    """
    high, low = uid_numbers(uids)
    order = np.lexsort((low, high, hashes))
    ordered = hashes[order]
    shared = np.zeros(len(order), np.bool_)
    shared[1:] = ordered[1:] == ordered[:-1]
    shared[:-1] |= shared[1:]
    order, ordered = order[shared], ordered[shared]
    words = ~is_empty(signatures[order])
    least = least_equal(threshold, signatures.shape[1])
    found = bucket_edges(ordered[words], order[words], signatures, least)
    return join_edges([Edges(found[:, 0], found[:, 1], found[:, 2])])


def join_edges(parts: Sequence[Edges]) -> Edges:
    """The edges of several bands, each once."""
    if not parts:
        return Edges(*np.zeros((3, 0), np.int64))
    one, other, equal = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((other, one))
    one, other, equal = one[order], other[order], equal[order]
    new = np.ones(len(one), np.bool_)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return Edges(one[new], other[new], equal[new])


def components(n: int, one: Ints, other: Ints) -> Ints:
    """The least member of each document's connected component, int64 [N]."""
    parents = np.arange(n)
    unite(one, other, parents)
    return parents


def contained_documents(
    samples: UInt64s,
    bounds: Ints,
    n_words: Ints,
    uids: Uids,
    *,
    threshold: float,
    least: int = 16,
    frequent: int = 64,
) -> Contained:
    """Documents that a longer one contains, judged by `decontam.minhash.sampled_shingles`.

    Memory: 16 bytes for each sampled shingle, and 16 for each that two documents share, per pair.

    Args:
        samples: uint64 [S], ascending in each document.
        bounds: int64 [N + 1]; those of document d are `samples[bounds[d] : bounds[d + 1]]`.
        n_words: [N], which is longer; uids decide between equals.
        uids: uint8 [N, 16].
        threshold: least share.
        least: samples that a document must have to be judged at all.
        frequent: shingles in more documents than this count for nothing.
    """
    rank = keeping_order(n_words, uids).argsort()
    document = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    order = np.lexsort((rank[document], samples))
    ordered, document = samples[order], document[order]
    new = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else order
    runs = np.diff(np.append(new, len(ordered)))
    judged = np.repeat(runs <= frequent, runs)
    counts = np.bincount(document[judged], minlength=len(bounds) - 1)
    pairs = run_pairs(new[runs <= frequent], runs[runs <= frequent], document)
    codes, shared = np.unique(pairs[:, 0] * len(counts) + pairs[:, 1], return_counts=True)
    outer, inner = np.divmod(codes, max(len(counts), 1))
    share = shared / np.maximum(counts[inner], 1)
    found = (share >= threshold) & (counts[inner] >= least)
    return Contained(inner[found], outer[found], share[found])


def keeping_order(n_words: Ints, uids: Uids) -> Ints:
    """Documents in the order in which they are kept: the longest first, of equals by uid."""
    high, low = uid_numbers(uids)
    return np.lexsort((low, high, -n_words))


class Choice(NamedTuple):
    """Which documents are kept, and for which of them the others are dropped; arrays are [N]."""

    kept: Ints
    """The document that is kept instead of each; itself where it is kept."""

    similarity: npt.NDArray[np.float64]
    """Estimated Jaccard similarity of the two."""

    contained: npt.NDArray[np.float64]
    """Share of a document that the kept one contains; NaN unless that is why it is dropped."""


def choose(
    signatures: npt.NDArray[np.uint32],
    n_words: Ints,
    uids: Uids,
    *,
    threshold: float,
    bands: int,
    contained: Contained | None = None,
) -> Choice:
    """Keep documents in `keeping_order`, each unless one that is kept is like it or contains it.

    A document is dropped for the most similar of those that are kept and share a band with it, or
    else for the one that contains the most of it; of equals for the first in the order. Of the
    documents kept with one value of a band the first 64 are compared, so the work grows with N,
    not with its square.

    Memory: some 700 bytes a document beside the signatures, for 32 bands.

    Args:
        signatures: uint32 [N, P], none of them empty.
        n_words: [N].
        uids: uint8 [N, 16].
        threshold: least share of equal positions of documents that are alike.
        bands: that the positions are cut into.
        contained: of the same documents, judged by the same lengths.
    """
    n, permutations = signatures.shape
    if contained is None:
        contained = Contained(*np.zeros((2, 0), np.int64), np.zeros(0))
    by_inner = np.argsort(contained.inner, kind="stable")
    bounds = np.searchsorted(contained.inner[by_inner], np.arange(n + 1))
    containment = bounds, contained.outer[by_inner], contained.share[by_inner]
    buckets, n_buckets = _buckets(signatures, bands)
    kept, equal, share = np.arange(n), np.zeros(n, np.int64), np.full(n, np.nan)
    stay_or_go(
        keeping_order(n_words, uids), buckets, n_buckets, signatures,
        least_equal(threshold, permutations), containment, kept, equal, share,
    )  # fmt: skip
    return Choice(kept, equal / permutations, share)


def _buckets(
    signatures: npt.NDArray[np.uint32], bands: int
) -> tuple[npt.NDArray[np.signedinteger[Any]], int]:
    """Numbers of the buckets of equal bands, [bands, N], and how many there are."""
    hashes = band_hashes(signatures, bands=bands, rows=signatures.shape[1] // bands)
    dtype = np.int32 if hashes.size < 1 << 31 else np.int64
    buckets, n_buckets = np.empty(hashes.shape, dtype), 0
    for band, row in enumerate(hashes):
        values, places = np.unique(row, return_inverse=True)
        buckets[band] = places + n_buckets
        n_buckets += len(values)
    return buckets, n_buckets
