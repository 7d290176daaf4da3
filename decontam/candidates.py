"""The documents that resemble each benchmark text most."""

from typing import Any

import numpy as np
import numpy.typing as npt

from decontam.minhash import Ints, UInt64s


def top_candidates(
    entry: Ints, similarity: npt.NDArray[Any], uids: npt.NDArray[np.uint8], *, limit: int = 100
) -> Ints:
    """For each entry the documents that resemble it most: which of the candidates they are.

    The best of the best of some candidates and of others are the best of all: batches can be cut
    to `limit` one by one, joined, and cut again, in any order.

    Args:
        entry: [M] of each candidate.
        similarity: [M]; equal ones are ordered by uid.
        uids: uint8 [M, 16] of the documents. Of candidates with equal entry and uid, the same text,
            only the most similar counts.
        limit: documents of an entry.

    Returns:
        Indices of candidates by (entry, descending similarity, uid).
    """
    high, low = uid_numbers(uids)
    order = np.lexsort((-similarity, low, high, entry))
    same = np.zeros(len(order), np.bool_)
    columns = (entry[order], high[order], low[order])
    same[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    order = order[~same]
    order = order[np.lexsort((low[order], high[order], -similarity[order], entry[order]))]
    sorted_entry = entry[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_entry, sorted_entry)
    return order[place < limit]


def uid_numbers(uids: npt.NDArray[np.uint8]) -> tuple[UInt64s, UInt64s]:
    """Uids, uint8 [N, 16], as two numbers each that have the order of the bytes."""
    halves = np.ascontiguousarray(uids).reshape(-1, 16).view(">u8").astype(np.uint64)
    return halves[:, 0], halves[:, 1]
