"""What the store holds + the mixture → which documents go where, before a token is moved."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from pipelines.corpus import Corpus
from pipelines.mixing import (
    Int64,
    Passes,
    apportion,
    plan_passes,
)
from pipelines.mixture import Mixture
from pipelines.quota import used_before, used_units
from pipelines.shards import SPAN
from pipelines.units import Units, units_of, usable_documents

GROUP_DOCUMENTS = 1 << 17
"""Documents packed together: more would not lower the padding any further."""

_HALVED_SEQUENCES = 16

GROUP_SCHEMA = pa.schema(
    [
        ("unit", pa.int32()),
        ("batch", pa.int32()),
        ("start", pa.int64()),
        ("begin", pa.int64()),
        ("take", pa.int64()),
        ("n_tokens", pa.int64()),
        ("no_loss", pa.list_(SPAN)),
        ("uid", pa.binary(16)),
    ]
)
"""Of each piece: its unit, whose pieces stand together; batch of the store, and where the document
starts there; first token of it that is used, and how many; tokens of the whole document, which of
them carry no loss, its id."""


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """How one source fills its quota. All figures are tokens."""

    quota: int
    """Of the unit that the mixture weighs by."""

    available: int
    """Tokens of the documents that may be used, duplicates left out."""

    per_pass: int
    """Tokens that one pass places or cuts: `available`, but for contexts, which repeat what
    stands before their examples and leave out BOS and EOS between them."""

    passes: Passes


def plan_sources(mixture: Mixture, corpora: Mapping[str, Corpus]) -> dict[str, SourcePlan]:
    """Quotas and passes.

    Raises:
        FaultsError: the sources cannot fill their shares within their `max_passes`.
    """
    weights: dict[str, Fraction] = {n: s.weight for n, s in mixture.sources.items()}
    quotas = apportion(weights, mixture.tokens)
    available: dict[str, int] = {}
    per_pass: dict[str, int] = {}
    weighed: dict[str, int] = {}
    for name in mixture.sources:
        corpus = corpora[name]
        units = units_of(name, mixture, corpus, pass_=0)
        available[name] = int(corpus.n_tokens[usable_documents(corpus, mixture)].sum())
        per_pass[name] = int(units.n_tokens.sum())
        weighed[name] = int(units.weighed.sum())
    limits = {name: source.max_passes for name, source in mixture.sources.items()}
    passes = plan_passes(weights, mixture.tokens, weighed, limits)
    return {n: SourcePlan(quotas[n], available[n], per_pass[n], passes[n]) for n in mixture.sources}


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that are packed together, in random order."""

    source: str
    pass_: int
    again: bool
    """They were used by the data set that this one follows."""

    uids_again: frozenset[bytes]
    """Ids of those that were; what stands before examples of a task may be, too."""

    documents: pa.Table
    """Schema `GROUP_SCHEMA`."""

    tokens_used: int
    """Tokens that are accounted for, those that no sequence holds too."""


def form_groups(
    name: str,
    mixture: Mixture,
    corpus: Corpus,
    plan: SourcePlan,
    *,
    first_batch: int,
) -> Iterator[Group]:
    """The packing groups of one source, pass by pass.

    `first_batch` is the number of this source's first batch among the batches of all sources.

    Groups are runs of the order of a pass, so they do not depend on how the input is cut into
    files.

    Raises:
        UserError: see `quota.used_units`.
    """
    for number, (units, chosen) in enumerate(used_units(name, mixture, corpus, plan.passes)):
        again = used_before(units, corpus)
        least = _least_groups(name, mixture, number, int(units.sum(units.take)[chosen].sum()))
        for part in _parts(chosen, again, units, least):
            taken = units.take_units(part)
            place = taken.document[corpus.used_before[taken.document]]
            yield Group(
                source=name,
                pass_=number,
                again=bool(again[part[0]]),
                uids_again=frozenset(corpus.uid[i] for i in place.tolist()),
                documents=_table(taken, corpus, first_batch),
                tokens_used=int(taken.n_tokens.sum()),
            )


def _least_groups(name: str, mixture: Mixture, pass_: int, n_tokens: int) -> int:
    """Best fit packs equal lengths equally in whatever order they come.

    In later passes, halves drawn anew keep the same documents from sharing their sequences again.
    Where a pass is short, the half-filled sequence that each half may leave would cost more.
    """
    long = n_tokens >= _HALVED_SEQUENCES * mixture.seq_len
    return 2 if pass_ and mixture.sources[name].policy == "pack" and long else 1


def _parts(chosen: Int64, again: np.ndarray, units: Units, least: int) -> Iterator[Int64]:
    """Runs of the chosen units: what was used before apart, and not too many pieces in one."""
    n_pieces = np.diff(units.first)
    for members in (chosen[~again[chosen]], chosen[again[chosen]]):
        if len(members):
            n = max(least, round(int(n_pieces[members].sum()) / GROUP_DOCUMENTS))
            yield from np.array_split(members, min(n, len(members)))


def _table(units: Units, corpus: Corpus, first_batch: int) -> pa.Table:
    place = units.document
    columns = {
        "unit": np.repeat(np.arange(len(units.key)), np.diff(units.first)),
        "batch": corpus.batch[place] + first_batch,
        "start": corpus.start[place],
        "begin": units.begin,
        "take": units.take,
        "n_tokens": corpus.n_tokens[place],
        "no_loss": corpus.no_loss.take(place).column(),
        "uid": pa.array([corpus.uid[i] for i in place.tolist()], pa.binary(16)),
    }
    return pa.table(columns, schema=GROUP_SCHEMA)
