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
    Selection,
    apportion,
    keyed_hash,
    plan_passes,
    select_all,
    select_tokens,
)
from pipelines.mixture import Mixture, Source

GROUP_DOCUMENTS = 1 << 17
"""Documents packed together: more would not lower the padding any further."""

_HALVED_SEQUENCES = 16

GROUP_SCHEMA = pa.schema(
    [
        ("batch", pa.int32()),
        ("start", pa.int64()),
        ("take", pa.int64()),
        ("n_tokens", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("uid", pa.binary(16)),
    ]
)


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """How one source fills its quota. All figures are tokens."""

    quota: int
    """Of the unit that the mixture weighs by."""

    available: int
    """Tokens of the documents that may be used, duplicates left out."""

    passes: Passes


@dataclass(frozen=True, slots=True)
class Usable:
    """The documents of a source that may be used. Arrays are [M]."""

    document: Int64
    """Index into the corpus."""

    n_tokens: Int64
    prompt_tokens: Int64
    """Tokens and loss-free tokens that a sequence can hold of the document."""

    unweighed: Int64
    """Tokens at the beginning that do not count towards the quota."""


def usable_documents(corpus: Corpus, source: Source, mixture: Mixture) -> Usable:
    """Leave out duplicates (unless kept), and count what a sequence can hold."""
    keep = corpus.is_unique if mixture.duplicates == "drop" else np.ones(len(corpus.uid), np.bool_)
    document = np.flatnonzero(keep)
    n_tokens = corpus.n_tokens[document]
    if source.policy == "pad":
        n_tokens = np.minimum(n_tokens, mixture.seq_len)
    prompt = np.minimum(corpus.prompt_tokens[document], n_tokens)
    unweighed = prompt if mixture.weight_by == "loss_tokens" else np.zeros_like(prompt)
    return Usable(document, n_tokens, prompt, unweighed)


def plan_sources(mixture: Mixture, corpora: Mapping[str, Corpus]) -> dict[str, SourcePlan]:
    """Quotas and passes.

    Raises:
        FaultsError: the sources cannot fill their shares within their `max_passes`.
    """
    weights: dict[str, Fraction] = {n: s.weight for n, s in mixture.sources.items()}
    quotas = apportion(weights, mixture.tokens)
    tokens: dict[str, int] = {}
    units: dict[str, int] = {}
    for name, source in mixture.sources.items():
        usable = usable_documents(corpora[name], source, mixture)
        tokens[name] = int(corpora[name].n_tokens[usable.document].sum())
        units[name] = int((usable.n_tokens - usable.unweighed).sum())
    limits = {name: source.max_passes for name, source in mixture.sources.items()}
    passes = plan_passes(weights, mixture.tokens, units, limits)
    return {n: SourcePlan(quotas[n], tokens[n], passes[n]) for n in mixture.sources}


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that are packed together, in random order."""

    source: str
    pass_: int
    documents: pa.Table
    """Schema `GROUP_SCHEMA`."""


def form_groups(
    name: str, mixture: Mixture, corpus: Corpus, plan: SourcePlan, *, first_batch: int
) -> Iterator[Group]:
    """The packing groups of one source, pass by pass.

    `first_batch` is the number of this source's first batch among the batches of all sources.

    Each pass has an order of its own, by a hash of (seed, source, pass, document id); groups are
    runs of that order. So groups do not depend on how the input is cut into files.
    """
    source = mixture.sources[name]
    usable = usable_documents(corpus, source, mixture)
    uids = [corpus.uid[i] for i in usable.document.tolist()]
    for number in range(plan.passes.whole + bool(plan.passes.partial)):
        keys = keyed_hash(uids, seed=mixture.seed, source=name, purpose=f"pass {number}")
        if number < plan.passes.whole:
            selection = select_all(keys, usable.n_tokens)
        else:
            quota = plan.passes.partial
            selection = select_tokens(keys, usable.n_tokens, usable.unweighed, quota)
        # Best fit packs equal lengths equally in whatever order they come: in later passes, halves
        # drawn anew keep the same documents from sharing their sequences again.
        # Where a pass is short, the half-filled sequence that each half may leave would cost more.
        long = int(selection.take.sum()) >= _HALVED_SEQUENCES * mixture.seq_len
        least = 2 if number and source.policy == "pack" and long else 1
        yield from _cut(name, number, first_batch, selection, usable, corpus, uids, least)


def _cut(
    name: str,
    number: int,
    first_batch: int,
    selection: Selection,
    usable: Usable,
    corpus: Corpus,
    uids: list[bytes],
    least_groups: int,
) -> Iterator[Group]:
    n_documents = len(selection.document)
    n_groups = min(max(least_groups, round(n_documents / GROUP_DOCUMENTS)), n_documents)
    for part in np.array_split(np.arange(n_documents), n_groups):
        chosen = selection.document[part]
        place = usable.document[chosen]
        columns = {
            "batch": corpus.batch[place] + first_batch,
            "start": corpus.start[place],
            "take": selection.take[part],
            "n_tokens": corpus.n_tokens[place],
            "prompt_tokens": usable.prompt_tokens[chosen],
            "uid": pa.array([uids[i] for i in chosen.tolist()], pa.binary(16)),
        }
        yield Group(name, number, pa.table(columns, schema=GROUP_SCHEMA))
