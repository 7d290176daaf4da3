"""Near duplicates within a source: bands → edges → components → which documents are kept.

Two documents are near duplicates where their MinHash signatures agree in a share `threshold` of
their positions. Only those are compared that share a band: 32 bands of 4 rows find all but 1 in
30,000,000 of the pairs with a similarity of 0.8. What is connected by near duplicates is one
cluster, of which the longest document is kept.

A similarity of whole documents does not see that one book is the first volume of another. So what
a document shares with a longer one is counted too, on a sample of the shingles: a document is
*contained* where the share is high, and is dropped in favour of the longer one.

Documents are numbered in any order: the uids alone decide between equals. What a build reads of
them when is in `dedup.py`.

Shapes: N documents, P permutations, S sampled shingles.
"""
# pyright: basic, reportCallIssue=false

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from decontam.bands import least_equal
from decontam.candidates import uid_numbers
from decontam.edge_kernels import bucket_edges, run_pairs, unite
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


def components(n: int, edges: Edges) -> Ints:
    """The least member of each document's connected component, int64 [N]."""
    parents = np.arange(n)
    unite(edges.one, edges.other, parents)
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


def replacements(
    labels: Ints, n_words: Ints, uids: Uids, contained: Contained | None = None
) -> Ints:
    """For each document the one that is kept instead of it; itself where it is kept.

    Of each component the first in `keeping_order` is kept. A kept document that a longer one
    contains is then replaced by what is kept for that one. So components do not grow by
    containment: two collections that share a story both stay.

    Args:
        labels: [N] of `components`.
        n_words: [N].
        uids: uint8 [N, 16].
        contained: of the same documents, judged by the same lengths.
    """
    order = keeping_order(n_words, uids)
    first = np.full(len(labels), -1, np.int64)
    first[labels[order[::-1]]] = order[::-1]
    kept = first[labels]
    if contained is None:
        return kept
    rank = order.argsort()
    by_inner = np.lexsort((rank[contained.outer], rank[contained.inner]))
    for edge in by_inner.tolist():  # the longest first, so what it points to is settled
        inner, outer = int(contained.inner[edge]), int(contained.outer[edge])
        if kept[inner] == inner:
            kept[inner] = kept[kept[outer]]
    return kept[kept]
