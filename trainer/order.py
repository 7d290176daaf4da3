"""Which sequence comes when, and on which rank: plain arithmetic of the position in training.

Position p counts the sequences of all steps and never ends; p // length is the pass. The first pass
is the order of the data set. Later ones permute it in the blocks that it was balanced in, so shards
are still read one after the other. No array is stored: a Feistel network (Luby and Rackoff 1988,
four rounds) is a permutation that is computed where it is needed, and cycle walking (Black and
Rogaway 2002, §3) fits it to any size.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
_BLOCKS, _UNITS = 0, 1  # what a key permutes


@dataclass(frozen=True, slots=True)
class PassOrder:
    """The order of every pass over a data set."""

    length: int
    """Sequences of the data set, at least 1; a multiple of `unit`."""

    block: int
    """Sequences that stay near each other, a multiple of `unit`; a partial block stays last."""

    unit: int
    """Neighbours that stay together and in order; 0: nothing inside a block moves."""

    seed: int
    """Of the permutations."""

    @classmethod
    def of(cls, manifest: Mapping[str, Any], *, seed: int) -> "PassOrder":
        """The order of a finished data set.

        Sequences stay together where all sources stream equally many (`stream_sequences`). Where
        they differ, units stand at no regular places, and the inside of blocks is left as it is.
        """
        recipe = manifest["recipe"]["sources"]
        used = [source["name"] for source in manifest["sources"] if source["sequences"]]
        units = {int(recipe[name].get("stream_sequences", 1)) for name in used}
        unit = units.pop() if len(units) == 1 else 0
        block = manifest["order"]["global_batch"] * manifest["order"]["window"]
        block = -(-block // max(1, unit)) * max(1, unit)
        return cls(sum(s["sequences"] for s in manifest["shards"]), block, unit, seed)

    def indices(self, positions: Ints) -> Ints:
        """Index into the data set of each position, [N] of [N]: a bijection in each pass."""
        pass_, place = np.divmod(positions, self.length)
        if not pass_.any():
            return place
        block, inside = np.divmod(place, self.block)
        whole = self.length // self.block
        is_whole = block < whole
        keys = _keys(self.seed, pass_, np.full_like(pass_, _BLOCKS))
        moved = _permute(np.where(is_whole, block, 0), np.full_like(pass_, max(1, whole)), keys)
        moved = np.where(is_whole, moved, block)
        if self.unit:
            size = np.where(is_whole, self.block, self.length - whole * self.block)
            unit, offset = np.divmod(inside, self.unit)
            keys = _keys(self.seed, pass_, np.full_like(pass_, _UNITS), moved)
            inside = _permute(unit, size // self.unit, keys) * self.unit + offset
        return np.where(pass_ == 0, place, moved * self.block + inside)


def _permute(values: Ints, sizes: Ints, keys: _Words) -> Ints:
    """Where each value goes in a permutation of [0, size) that its key chooses; [N] each."""
    bits = np.frexp(np.maximum(sizes - 1, 1).astype(np.float64))[1]
    half = ((bits + 1) // 2).astype(np.uint64)
    result, outside = values.astype(np.uint64), np.arange(values.size)
    while outside.size:  # after at most 4 rounds on average: the network permutes [0, 4 * size)
        result[outside] = _feistel(result[outside], half[outside], keys[outside])
        outside = outside[result[outside] >= sizes[outside].astype(np.uint64)]
    return result.astype(np.int64)


def _feistel(values: _Words, half: _Words, keys: _Words) -> _Words:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for number in range(4):
        left, right = right, left ^ (_mix(right ^ _mix(keys + np.uint64(number))) & low)
    return (left << half) | right


def _keys(seed: int, *parts: Ints) -> _Words:
    keys = np.full(parts[0].shape, seed % 2**64, np.uint64)
    for part in parts:
        keys = _mix(keys) ^ part.astype(np.uint64)
    return _mix(keys)


def _mix(words: _Words) -> _Words:
    """The generator splitmix64 (Steele, Lea and Flood 2014) as a hash; products wrap around."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def deal(costs: npt.NDArray[Any], *, ranks: int, micro_batch: int, unit: int = 1) -> Ints:
    """Share the sequences of a step out to ranks so that they seldom wait for each other.

    Ranks that share parameters meet in every microbatch: a step takes as long as the slowest rank
    of each. Each accumulation step takes the costliest units left; inside it the costliest goes to
    the rank with the least work that has room (Graham 1969, longest processing time first), of
    equals to the one with the least work in the step so far. As the costliest come first, a run
    that lacks memory fails early. Ties go to the first position and the first rank.

    Args:
        costs: [G] work of each sequence; G is a multiple of ranks * micro_batch.
        ranks: data-parallel ranks.
        micro_batch: sequences of one rank and accumulation step; a multiple of `unit`.
        unit: neighbours that stay together and in order.

    Returns:
        [ranks, G / (ranks * micro_batch), micro_batch] indices into `costs`, each once.
    """
    work = np.asarray(costs, np.float64).reshape(-1, unit).sum(axis=1).tolist()
    room = micro_batch // unit
    costliest = sorted(range(len(work)), key=lambda one: -work[one])
    totals, dealt = [0.0] * ranks, list[list[list[int]]]()
    for begin in range(0, len(work), ranks * room):
        dealt.append([[] for _ in range(ranks)])
        free = sorted((0.0, total, rank) for rank, total in enumerate(totals))  # is a heap
        for one in costliest[begin : begin + ranks * room]:
            load, total, rank = heapq.heappop(free)
            dealt[-1][rank].append(one)
            totals[rank] += work[one]
            if len(dealt[-1][rank]) < room:
                heapq.heappush(free, (load + work[one], total, rank))
    units = np.sort(np.array(dealt, np.int64), axis=2).swapaxes(0, 1)
    return (units[..., None] * unit + np.arange(unit)).reshape(ranks, -1, micro_batch)
