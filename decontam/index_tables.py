"""The tables of an index: keys → payloads, payloads → places."""

from typing import Any

import numpy as np
import numpy.typing as npt

from decontam.search_kernels import LIST, SHORTEST, fill_filter, fill_slots, window_keys

Uint64s = npt.NDArray[np.uint64]

_LOAD = 0.75  # of the slots of a table that are taken
_FILTER_BITS = 8  # a key, at least; up to twice as many


def posting_lists(
    first: npt.NDArray[np.int64], begins: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Lists for keys with several places, and the payload of every key."""
    several = sizes > 1
    at = np.cumsum(np.where(several, sizes + 1, 0)) - np.where(several, sizes + 1, 0)
    postings = np.zeros(int(np.where(several, sizes + 1, 0).sum()), np.uint32)
    postings[at[several]] = sizes[several]
    within = np.arange(len(first)) - np.repeat(begins, sizes)
    listed = np.repeat(several, sizes)
    postings[(np.repeat(at, sizes) + 1 + within)[listed]] = first[listed]
    payloads = np.where(several, at | int(LIST), first[begins] if len(first) else begins)
    return postings, payloads.astype(np.uint32)


def slot_table(keys: Uint64s, payloads: npt.NDArray[np.uint32]) -> Uint64s:
    """Unique keys with their payloads, as an open-addressing table."""
    slots = np.empty(int(len(keys) / _LOAD) + 2, np.uint64)
    fill_slots(keys, payloads, slots)
    return slots


def filter_of(keys: Uint64s) -> Uint64s:
    """A filter that lets all of these keys pass, and at most four in a hundred others."""
    n_blocks = 1 << max(int(len(keys) * _FILTER_BITS - 1).bit_length() - 6, 1)
    bits = np.zeros(n_blocks, np.uint64)
    fill_filter(keys, bits)
    return bits


def short_tables(hashes: Uint64s, shorts: npt.NDArray[np.uint32]) -> dict[str, Any]:
    """Short texts by the key of their last words."""
    keys = np.zeros(len(shorts), np.uint64)
    key = np.zeros(1, np.uint64)
    for i, (start, length, _) in enumerate(shorts.tolist()):
        window_keys(hashes[start + length - SHORTEST : start + length], SHORTEST, key)
        keys[i] = key[0]
    order = np.argsort(keys, kind="stable")
    unique, begins, sizes = np.unique(keys[order], return_index=True, return_counts=True)
    postings = np.insert(order, begins, sizes).astype(np.uint32)
    payloads = (begins + np.arange(len(begins))).astype(np.uint32)
    return {
        "shorts": shorts,
        "short_slots": slot_table(unique, payloads),
        "short_bits": filter_of(unique),
        "short_postings": postings,
    }
