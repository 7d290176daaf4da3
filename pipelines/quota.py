"""What each pass over a source uses: everything, and of the last pass what fills the quota.

A text may lose its end so that the quota is met to the token. A dialogue, a question or a context
of examples would lose its answer, so of these others are taken that add up to the quota. Where no
choice does and loss is on answers alone, prompts lose their beginnings; answers stay whole.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.contexts import subset_of
from pipelines.corpus import Corpus
from pipelines.errors import UserError
from pipelines.mixing import Passes, Selection, keyed_hash, random_order, select_tokens
from pipelines.mixture import Mixture
from pipelines.prompt_cuts import beginnings, from_token, loss_mask, room_before_answers
from pipelines.units import Units, cut_unit, last_unit, units_of

Int64 = npt.NDArray[np.int64]

_GIVEN_UP = 32  # of those chosen, how many may be exchanged
_TAKEN_UP = 256  # of the others, how many may be taken instead


class Used(NamedTuple):
    """What a pass uses."""

    units: Units
    """All units of the pass, and behind them those that are used in part."""

    chosen: Int64
    """Which of them, in their order."""


class _Fill(NamedTuple):
    """What the last pass uses."""

    used: Used
    owed: int = 0
    """Tokens that it uses beyond the quota, so that its answers are whole; passes before it have
    to do without as many."""


def used_before(units: Units, corpus: Corpus) -> npt.NDArray[np.bool_]:
    """[U] whether the data set that this one follows has used an example or document of a unit."""
    used = corpus.used_before[units.document] & (corpus.header[units.document] == 0)
    return units.sum(used.astype(np.int64)) > 0


def used_units(name: str, mixture: Mixture, corpus: Corpus, passes: Passes) -> Iterator[Used]:
    """What each pass over a source uses.

    Each pass has an order of its own, by a hash of (seed, source, pass, document id); what was
    used before comes last.

    Raises:
        UserError: the last pass is to hold so few tokens that none could be learned.
    """
    known: dict[int, Used] = {}
    if passes.partial:
        number = passes.whole
        last = _all_units(name, mixture, corpus, number)
        fill = _fill_quota(name, last, passes.partial, corpus, mixture)
        known[number], owed = fill
        while owed and number:
            number -= 1
            used, owed = _without(_all_units(name, mixture, corpus, number), owed, corpus)
            known[number] = used
        if owed:
            known = {passes.whole: _cut_answer(name, last, passes.partial, corpus)}
    for number in range(passes.whole + bool(passes.partial)):
        yield known.pop(number, None) or _all_units(name, mixture, corpus, number)


def _all_units(name: str, mixture: Mixture, corpus: Corpus, number: int) -> Used:
    units = units_of(name, mixture, corpus, pass_=number)
    keys = keyed_hash(units.key, seed=mixture.seed, source=name, purpose=f"pass {number}")
    return Used(units, random_order(keys, used_before(units, corpus)))


def _fill_quota(name: str, all_: Used, quota: int, corpus: Corpus, mixture: Mixture) -> _Fill:
    """Units of a pass that hold exactly `quota` weighed tokens, the beginning of an order."""
    source = mixture.sources[name]
    units, order = all_
    weighed = units.sum(units.weighed)
    selection = select_tokens(order, weighed, quota)
    whole = selection.chosen[:-1]
    _, last = last_unit(name, units, order[len(whole) :], selection.of_last, corpus, mixture)
    if int(last.take.sum()) == int(last.n_tokens[0]) or not source.is_whole:
        return _Fill(_followed(units, whole, [last]))
    exact = whole_units(order, weighed, selection)
    if exact is not None:
        return _Fill(Used(units, exact))
    if source.loss == "all":
        return _Fill(_followed(units, whole, [last]))
    candidates = order[len(whole) :][:_TAKEN_UP]
    if mixture.weight_by == "loss_tokens":
        return _Fill(_whole_answers(units, whole, candidates, selection.of_last, corpus))
    return _shorter_prompts(units, whole, candidates, selection.of_last, corpus)


def _followed(units: Units, chosen: Int64, last: Sequence[Units]) -> Used:
    """Some units, and behind them others that are used in part."""
    n = len(units.key)
    for unit in last:
        units = units.followed_by(unit)
    return Used(units, np.append(chosen, np.arange(n, n + len(last))))


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


def _whole_answers(
    units: Units, whole: Int64, candidates: Int64, wanted: int, corpus: Corpus
) -> Used:
    """Whole units, and the beginning of another one with `wanted` tokens with loss.

    It ends with an answer if any of the candidates has answers of so many tokens; else the last
    answer loses its end.
    """
    for unit in candidates.tolist():
        loss = np.flatnonzero(loss_mask(units, unit, corpus))
        if len(loss) == wanted or (len(loss) > wanted and loss[wanted] > loss[wanted - 1] + 1):
            return _followed(units, whole, [cut_unit(units, unit, wanted, corpus)])
    return _followed(units, whole, [cut_unit(units, int(candidates[0]), wanted, corpus)])


def _shorter_prompts(
    units: Units, whole: Int64, candidates: Int64, wanted: int, corpus: Corpus
) -> _Fill:
    """Whole units, and the end of another one of `wanted` tokens with the answers in it.

    If those of all candidates have more, the fewest more are taken, and the prompts of whole units
    are shorter instead.
    """
    owed, unit, begin = wanted, -1, 0
    for candidate in candidates.tolist():
        mask = loss_mask(units, candidate, corpus)
        possible = beginnings(mask)
        possible = possible[possible <= len(mask) - wanted]
        if len(possible) and (unit < 0 or len(mask) - int(possible[-1]) - wanted < owed):
            unit, begin = candidate, int(possible[-1])
            owed = len(mask) - begin - wanted
        if unit >= 0 and not owed:
            break
    used, owed = _without(Used(units, whole), owed, corpus)
    last = [from_token(units, unit, begin)] if unit >= 0 else []
    return _Fill(_followed(used.units, used.chosen, last), owed)


def _without(used: Used, tokens: int, corpus: Corpus) -> tuple[Used, int]:
    """Units with `tokens` fewer before their answers, the last of them first.

    Returns:
        What is used, and how many tokens are still too many.
    """
    chosen, shorter = used.chosen.copy(), list[Units]()
    for place in reversed(range(len(chosen))):
        if not tokens:
            break
        unit = int(chosen[place])
        if room := min(room_before_answers(loss_mask(used.units, unit, corpus)), tokens):
            chosen[place] = len(used.units.key) + len(shorter)
            shorter.append(from_token(used.units, unit, room))
            tokens -= room
    return Used(_followed(used.units, chosen[:0], shorter).units, chosen), tokens


def _cut_answer(name: str, all_: Used, quota: int, corpus: Corpus) -> Used:
    """Whole units and a part of another one that has at least a part of an answer.

    Raises:
        UserError: no such part is so short.
    """
    units, order = all_
    selection = select_tokens(order, units.sum(units.weighed), quota)
    whole, wanted = selection.chosen[:-1], selection.of_last
    for unit in order[len(whole) :][:_TAKEN_UP].tolist():
        n = int(units.take_units(np.array([unit])).take.sum())
        if n >= wanted:
            for cut in (
                cut_unit(units, unit, wanted, corpus),
                from_token(units, unit, n - wanted),
            ):
                if loss_mask(cut, 0, corpus)[1:].any():
                    return _followed(units, whole, [cut])
    raise UserError(
        f"sources.{name}: its last pass is to hold {quota:,} tokens, of which {wanted:,} are too "
        "few for any part of an answer, and its prompts are too short to leave it more; take "
        "`tokens` or weights that give the source a few tokens more or fewer"
    )
