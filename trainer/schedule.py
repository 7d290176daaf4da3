"""Which local contexts see which in crossbatch training (Tworkowski et al. 2023, §3.2).

r, k and the stepping are `cross_batch_range`, `dataset_packing` and `cross_batch_stepping` of the
published code.
"""

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipelines.options import Frozen, Whole

Natural = Annotated[Whole, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]


class Memory(Frozen):
    """Memory layers, and what they see in training (crossbatch)."""

    layers: Annotated[tuple[Natural, ...], Field(min_length=1)]
    """Numbers of the memory layers, from 0; LongLLaMA-3B has 6, 12, 18 and 7B 8, 16, 24."""

    local_context: Count | None = None
    """L: tokens of a local context; default: `seq_len` of the data set, which it must divide."""

    packing: Count = 1
    """k: local contexts that follow each other in one stream; a divisor of those that the data set
    keeps together (`stream_sequences` times `seq_len` / L), in the published recipes all."""

    stepping: bool = True
    """Whether the first of k local contexts sees none, and each later one more than the one before;
    otherwise all see as many."""

    range: Natural | None = None
    """r: the most local contexts that one sees beside its own; 0 turns memory off."""

    range_from: dict[Natural, Natural] | None = None
    """Instead: r by the step (counted from 0) that it begins at."""

    range_choices: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = None
    """Instead: one of these is drawn for every step."""

    positionals: bool = True
    """Whether queries and local keys of memory layers are rotated; plain Llama needs it."""

    @model_validator(mode="after")
    def _consistent(self) -> "Memory":
        names = ("range", "range_from", "range_choices")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            have = " and ".join(f"`{name}`" for name in given) or "none"
            raise ValueError(
                f"give one of `range`, `range_from` and `range_choices` (given: {have})"
            )
        if self.range_from is not None and 0 not in self.range_from:
            raise ValueError("`range_from` must say what r is from step 0 on")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"`layers` names one twice: {list(self.layers)}")
        return self

    def ranges(self) -> set[int]:
        """Every r that a step may have."""
        if self.range is not None:
            return {self.range}
        return set((self.range_from or {}).values()) | set(self.range_choices or ())

    def range_at(self, step: int, *, seed: int) -> int:
        """r of a step, counted from 0."""
        if self.range is not None:
            return self.range
        if self.range_from is not None:
            return self.range_from[max(s for s in self.range_from if s <= step)]
        choices = self.range_choices or ()
        return choices[int(np.random.default_rng([seed, step]).integers(len(choices)))]


def extra_contexts(
    entries: int, *, range: int, packing: int, stepping: bool
) -> npt.NDArray[np.int64]:
    """How many local contexts before it each one sees: int64 [entries].

    None sees later ones. Of those that local context i sees, the nearest i mod `packing` are of its
    own stream. As `cross_batch_attention` of the published code counts them.
    """
    place = np.arange(entries)
    most = 1 + range
    step = -(-most // max(packing - 1, 1))
    seen = np.full(entries, most)
    if stepping and packing > 1:
        seen = np.minimum(place % packing * step + 1, most)
    return np.minimum(seen, place + 1) - 1


def positives_and_negatives(
    *, range: int, packing: int, stepping: bool, together: int
) -> list[tuple[int, int]]:
    """How many local contexts of its own stream, and of others, each of them sees at the most.

    Args:
        range: r.
        packing: k.
        stepping: whether the first of k sees none.
        together: local contexts of a stream that stay together, a multiple of k; so many pairs.
    """
    first = -(-range // together) * together  # of a stream that has enough others before it
    extra = extra_contexts(first + together, range=range, packing=packing, stepping=stepping)
    extra = extra[first:]
    own = [min(slot, seen) for slot, seen in enumerate(extra.tolist())]
    return [(near, seen - near) for near, seen in zip(own, extra.tolist(), strict=True)]
