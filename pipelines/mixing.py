"""Weights and counts → how many tokens of each source, how often, and which documents.

All arithmetic is in integers or exact fractions: the shares of a finished data set are those of
the mixture to within the rounding of one token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import xxhash

from pipelines.errors import FaultsError

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]


def apportion(weights: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Split `total` in proportion to weights, in integers that add up (largest remainder).

    Equal remainders go to the name that comes first in `weights`.
    """
    whole = sum(weights.values())
    exact = {name: weight * total / whole for name, weight in weights.items()}
    quotas = {name: int(share) for name, share in exact.items()}
    left = total - sum(quotas.values())
    by_remainder = sorted(exact, key=lambda name: quotas[name] - exact[name])
    return {name: quotas[name] + (name in by_remainder[:left]) for name in exact}


@dataclass(frozen=True, slots=True)
class Passes:
    """How often a source is used to fill its quota."""

    whole: int
    """Times every document is used."""

    partial: int
    """Tokens taken in one more pass over some of the documents."""


def plan_passes(
    weights: Mapping[str, Fraction],
    total: int,
    available: Mapping[str, int],
    max_passes: Mapping[str, float],
) -> dict[str, Passes]:
    """Passes over each source that fill its share of `total`, if the limits allow them.

    Raises:
        FaultsError: a quota needs more passes than allowed; it names a budget that would fit,
            the largest one to within the rounding of quotas.
    """
    quotas = apportion(weights, total)
    most = {name: int(Fraction(str(max_passes[name])) * available[name]) for name in quotas}
    faults = [
        _shortage(name, quota, available[name], max_passes[name])
        for name, quota in quotas.items()
        if quota > most[name]
    ]
    if faults:
        # Not from the quotas: a quota that was rounded down would name a budget that is too large.
        fits = min(int(most[n] * sum(weights.values()) / weights[n]) for n in quotas)
        budget = f"a budget of `tokens: {fits}` would fit, or " if fits else ""
        raise FaultsError(
            "not enough tokens for the shares",
            [*faults, f"{budget}raise max_passes, lower the weight, or add documents"],
        )
    return {
        name: Passes(*divmod(quota, available[name])) if quota else Passes(0, 0)
        for name, quota in quotas.items()
    }


def _shortage(name: str, quota: int, available: int, limit: float) -> str:
    needed = f"{quota / available:.2f} passes" if available else "documents, but it has none"
    return (
        f"sources.{name}: takes {quota:,} tokens, has {available:,}: that needs {needed}, "
        f"and max_passes is {limit:g}"
    )


def keyed_hash(uids: Sequence[bytes], *, seed: int, source: str, purpose: str) -> UInt64:
    """A pseudo-random number for each document: the only randomness of the build.

    Args:
        uids: [N] ids of 16 bytes.
        seed: the mixture's.
        source: name of the source.
        purpose: what the number is for, so that different uses are independent.
    """
    salt = f"{seed}\0{source}\0{purpose}\0".encode()
    return np.array([xxhash.xxh3_64_intdigest(salt + uid) for uid in uids], np.uint64)


def random_order(keys: UInt64, last: npt.NDArray[np.bool_] | None = None) -> Int64:
    """Everything in keyed-hash order, [N]; equal keys (equal texts) in input order.

    Args:
        keys: [N] see `keyed_hash`.
        last: [N] what comes behind all else; None for nothing.
    """
    return np.argsort(keys, kind="stable") if last is None else np.lexsort((keys, last))


@dataclass(frozen=True, slots=True)
class Selection:
    """What a partial pass uses."""

    chosen: Int64
    """[M] the beginning of an order."""

    of_last: int
    """Weighed tokens that the last of them gives; the others give all."""


def select_tokens(order: Int64, weighed: Int64, quota: int) -> Selection:
    """The beginning of an order that holds exactly `quota` tokens, if the last of it is cut.

    Args:
        order: [N] indices.
        weighed: [N] tokens that count.
        quota: how many to take.

    Raises:
        ValueError: all together hold less than `quota`.
    """
    if not quota:
        return Selection(order[:0], 0)
    total = np.cumsum(weighed[order])
    last = int(np.searchsorted(total, quota))
    if last == len(order):
        held = int(total[-1]) if last else 0
        raise ValueError(f"{quota} tokens asked of documents that hold {held}")
    before = int(total[last]) - int(weighed[order[last]])
    return Selection(order[: last + 1], quota - before)


def first_occurrences(uids: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """[N] true where a document's id has not occurred before it."""
    if not uids:
        return np.zeros(0, np.bool_)
    halves = np.frombuffer(b"".join(uids), np.uint64).reshape(-1, 2)
    _, first = np.unique(halves, axis=0, return_index=True)
    mask = np.zeros(len(uids), np.bool_)
    mask[first] = True
    return mask
