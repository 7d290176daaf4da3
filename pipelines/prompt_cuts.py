"""Cuts that leave answers whole: a unit loses the beginning of what stands before its answers.

With loss on answers alone, a unit without its end teaches nothing, or half an answer. So where a
quota asks for fewer tokens than whole units hold, prompts lose their beginnings instead.
"""

import numpy as np
import numpy.typing as npt

from pipelines.corpus import Corpus
from pipelines.units import Units

Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


def loss_mask(units: Units, unit: int, corpus: Corpus) -> Bools:
    """[T] which tokens of a unit carry loss."""
    pieces = slice(int(units.first[unit]), int(units.first[unit + 1]))
    begin, take = units.begin[pieces], units.take[pieces]
    spans = corpus.no_loss.take(units.document[pieces]).clip(begin, begin + take)
    mask = np.ones(int(take.sum()), np.bool_)
    place = np.repeat(np.cumsum(take) - take, np.diff(spans.first))
    for start, end in zip(
        (spans.start + place).tolist(), (spans.end + place).tolist(), strict=True
    ):
        mask[start:end] = False
    return mask


def beginnings(mask: Bools) -> Int64:
    """Tokens that a unit may begin with so that an answer follows and none is cut, ascending.

    Args:
        mask: [T] which tokens carry loss.
    """
    loss = np.flatnonzero(mask)
    return np.flatnonzero(~mask[: loss[-1]]) if len(loss) else loss


def room_before_answers(mask: Bools) -> int:
    """The most tokens that a unit can lose from its beginning, in any number up to it, with no
    answer being lost or cut and one token left before the first.
    """
    return max(int(mask.argmax()) - 1, 0) if mask.any() else 0


def from_token(units: Units, unit: int, begin: int) -> Units:
    """One unit without its first `begin` tokens, every token of which counts."""
    whole = units.take_units(np.array([unit]))
    ends = np.cumsum(whole.take)
    piece = int(np.searchsorted(ends, begin, side="right"))
    document, starts, take = (x[piece:].copy() for x in (whole.document, whole.begin, whole.take))
    lost = begin - int(ends[piece] - whole.take[piece])
    starts[0] += lost
    take[0] -= lost
    first = np.array([0, len(take)])
    return Units(whole.key, first, document, starts, take, take, whole.n_tokens)
