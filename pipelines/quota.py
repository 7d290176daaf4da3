"""The end of a pass that uses only part of a source: what is used, and what of it is cut.

A text may lose its end so that the quota is met to the token. A dialogue, a question or a context
of examples would lose its answer, so of these others are taken that add up to the quota.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.contexts import subset_of
from pipelines.corpus import Corpus
from pipelines.mixing import Selection, select_tokens
from pipelines.mixture import Mixture
from pipelines.units import Units, last_unit

Int64 = npt.NDArray[np.int64]

_GIVEN_UP = 32  # of those chosen, how many may be exchanged
_TAKEN_UP = 256  # of the others, how many may be taken instead


class PartialPass(NamedTuple):
    """Which units a pass uses."""

    chosen: Int64
    """In their order; of the last one perhaps only `last`."""

    last: Units | None
    """What is used of the last one; None for all of it."""


def fill_quota(
    name: str, units: Units, order: Int64, quota: int, corpus: Corpus, mixture: Mixture
) -> PartialPass:
    """Units of a pass that hold exactly `quota` weighed tokens, the beginning of an order.

    Raises:
        ValueError: all together hold less.
    """
    weighed = units.sum(units.weighed)
    selection = select_tokens(order, weighed, quota)
    whole = selection.chosen[:-1]
    unit, last = last_unit(name, units, order[len(whole) :], selection.of_last, corpus, mixture)
    is_cut = int(last.take.sum()) != int(last.n_tokens[0])
    if is_cut and mixture.sources[name].is_whole:
        exact = whole_units(order, weighed, selection)
        if exact is not None:
            return PartialPass(exact, None)
    return PartialPass(np.append(whole, unit), last)


def whole_units(order: Int64, weighed: Int64, selection: Selection) -> Int64 | None:
    """Whole units that hold just as much as a selection that cuts the last of its own.

    All but the last few that were chosen are kept; these and the next ones of the order are what
    the rest is made of.

    Returns:
        Which, in their order; None where no choice of them holds just as much.
    """
    kept = selection.chosen[: max(0, len(selection.chosen) - 1 - _GIVEN_UP)]
    pool = order[len(kept) : len(selection.chosen) + _TAKEN_UP]
    given_up = selection.chosen[len(kept) : -1]
    wanted = int(weighed[given_up].sum()) + selection.of_last
    found = subset_of(weighed[pool], wanted)
    return None if found is None else np.concatenate([kept, pool[found]])
