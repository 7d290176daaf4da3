"""Numba kernels of near duplicates: buckets of equal bands → edges → components → who stays."""
# pyright: basic, reportCallIssue=false

import numpy as np
from numba import njit

from decontam.bands import grown
from decontam.minhash import equal_positions

SMALL_BUCKET = 64
"""Documents that share a band are all compared with each other up to this many. Of more, each is
compared with at most as many representatives: those before it, by uid, that resembled none of the
representatives then."""


@njit(cache=True, nogil=True)
def bucket_edges(hashes, documents, signatures, least):
    """Rows of (one, other, equal positions) for each run of equal hashes."""
    rows = np.empty((1024, 3), np.int64)
    representatives = np.empty(SMALL_BUCKET, np.int64)
    n = begin = 0
    while begin < len(hashes):
        end = begin
        while end < len(hashes) and hashes[end] == hashes[begin]:
            end += 1
        small, held = end - begin <= SMALL_BUCKET, 0
        for i in range(begin, end):
            document, resembles = documents[i], False
            for j in range(held):
                other = representatives[j]
                equal = equal_positions(signatures[document], signatures[other])
                if equal < least:
                    continue
                resembles = True
                rows = grown(rows) if n == len(rows) else rows
                rows[n, 0], rows[n, 1] = min(document, other), max(document, other)
                rows[n, 2] = equal
                n += 1
            if small or (held < SMALL_BUCKET and not resembles):
                representatives[held] = document
                held += 1
        begin = end
    return rows[:n].copy()


@njit(cache=True, nogil=True)
def run_pairs(starts, lengths, documents):
    """Rows of (earlier, later) for all pairs within each run of documents."""
    n_pairs = 0
    for length in lengths:
        n_pairs += length * (length - 1) // 2
    rows, n = np.empty((n_pairs, 2), np.int64), 0
    for run in range(len(starts)):
        end = starts[run] + lengths[run]
        for i in range(starts[run], end):
            for j in range(i + 1, end):
                rows[n, 0], rows[n, 1] = documents[i], documents[j]
                n += 1
    return rows


@njit(cache=True, nogil=True)
def _root(parents, i):
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@njit(cache=True, nogil=True)
def unite(one, other, parents):
    """Make parents[i] the least member of the component of i; parents[i] is i before."""
    for k in range(len(one)):
        a, b = _root(parents, one[k]), _root(parents, other[k])
        parents[max(a, b)] = min(a, b)
    for i in range(len(parents)):
        parents[i] = _root(parents, i)


@njit(cache=True, nogil=True)
def stay_or_go(order, buckets, n_buckets, signatures, least, containment, kept, equal, share):
    """Take documents in order; each stays unless one that stays is like it, or contains it.

    Args:
        order: [N] documents.
        buckets: [B, N] which bucket of each band a document is in, numbered over all bands; of a
            type that holds B * N.
        n_buckets: of all bands.
        signatures: [N, P].
        least: equal positions of two documents that are alike.
        containment: bounds [N + 1], containers [C], shares [C]; those of document d stand from
            bounds[d] on, and come before it in the order.
        kept: [N] result: who stays instead of a document, itself where it stays.
        equal: [N] result: equal positions of the two.
        share: [N] result: the share that is contained; left as it is where that does not matter.
    """
    bounds, containers, shares = containment
    n_bands, n = buckets.shape
    newest = np.full(n_buckets, -1, buckets.dtype)  # of each bucket a list of those that stay
    before = np.full(n * n_bands, -1, buckets.dtype)
    held = np.zeros(n_buckets, np.uint8)
    compared = np.full(n, -1, np.int64)
    rank = np.empty(n, np.int64)
    for i in range(n):
        document = order[i]
        rank[document] = i
        best, best_equal = -1, least - 1
        for band in range(n_bands):
            node = newest[buckets[band, document]]
            while node >= 0:
                other = node // n_bands
                node = before[node]
                if compared[other] == i:
                    continue
                compared[other] = i
                agree = equal_positions(signatures[document], signatures[other])
                if agree > best_equal or (
                    best >= 0 and agree == best_equal and rank[other] < rank[best]
                ):
                    best, best_equal = other, agree
        if best < 0:
            for c in range(bounds[document], bounds[document + 1]):
                other = containers[c]
                if kept[other] != other:
                    continue
                more = best < 0 or shares[c] > share[document]
                if more or (shares[c] == share[document] and rank[other] < rank[best]):
                    best, share[document] = other, shares[c]
        if best >= 0:
            kept[document] = best
            equal[document] = equal_positions(signatures[document], signatures[best])
            continue
        kept[document], equal[document] = document, signatures.shape[1]
        for band in range(n_bands):
            bucket = buckets[band, document]
            if held[bucket] < SMALL_BUCKET:
                node = document * n_bands + band
                before[node] = newest[bucket]
                newest[bucket] = node
                held[bucket] += 1
