"""The account of a build: every document and every token, in integers that must add up."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.corpus import Corpus
from pipelines.decontaminate import CONTAMINATED, CONTAMINATED_TASK
from pipelines.errors import FaultsError
from pipelines.mixture import Mixture
from pipelines.planning import Group, SourcePlan

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"


@dataclass(slots=True)
class SourceAudit:
    """The account of one source; counts are documents, tokens or sequences as named."""

    name: str
    documents_read: int
    documents_not_sampled: int
    documents_dropped: dict[str, int]
    documents_kept: int
    text_bytes: int
    tokens_stored: int
    tokens_duplicate: int
    tokens_available: int
    passes_whole: int
    passes_partial_tokens: int
    quota: int
    tokens_offered: int = 0
    """Tokens of a pass times the passes begun."""

    tokens_used: int = 0
    """Tokens of the documents that were chosen, over all passes."""

    tokens_cut: int = 0
    """Ends of chosen documents that no sequence holds."""

    tokens_placed: int = 0
    tokens_loss: int = 0
    sequences: int = 0
    segments: int = 0
    documents_used: int = 0
    """Documents chosen in at least one pass."""

    padding: int = 0
    share_asked: float = 0.0
    share_got: float = 0.0
    documents_split_off: int = 0
    """Pieces that documents were cut into, beyond the first piece of each."""

    documents_windowed: int = 0
    """Windows that documents longer than a sequence were divided into, beyond the first of each."""

    definitions: int = 0
    """Documents that are no record's: what tasks ask for."""

    tokens_per_pass: int = 0
    """What one pass over the source offers: the available tokens, but for contexts, which repeat
    what stands before their examples and leave out BOS and EOS between them."""

    tokens_shortened: int = 0
    """Tokens cut out of documents so that they fit into a sequence; not among those stored."""

    documents_again: int = 0
    """Documents chosen that the data set which this one follows has used, too."""

    decontam: dict[str, int] = field(default_factory=dict[str, int])
    """What decontamination found and did, see `decontaminate.count_document`."""

    near: dict[str, int] = field(default_factory=dict[str, int])
    """Near duplicates: clusters, documents and tokens dropped; empty where nobody looked."""

    _uids: set[bytes] = field(default_factory=set[bytes], repr=False)
    _again: set[bytes] = field(default_factory=set[bytes], repr=False)

    @property
    def tokens_left_over(self) -> int:
        """Tokens of documents that the partial pass did not choose."""
        return self.tokens_offered - self.tokens_used

    def as_json(self) -> dict[str, Any]:
        """What the manifest keeps."""
        names = [n for n in self.__slots__ if not n.startswith("_")]
        return {n: getattr(self, n) for n in names} | {"tokens_left_over": self.tokens_left_over}


def open_account(name: str, mixture: Mixture, corpus: Corpus, plan: SourcePlan) -> SourceAudit:
    """What is known of a source before it is packed."""
    dropped = corpus.dropped_reasons()
    duplicate = ~corpus.is_first if mixture.duplicates == "drop" else corpus.is_first & False
    if n := int(duplicate.sum()):
        dropped[DUPLICATE] = n
    near = _count_near(corpus) if mixture.sources[name].dedup else {}
    if near.get("documents"):
        dropped[NEAR_DUPLICATE] = near["documents"]
    stored = int(corpus.n_tokens.sum())
    tokens_duplicate = int(corpus.n_tokens[duplicate].sum())
    passes = plan.passes.whole + bool(plan.passes.partial)
    return SourceAudit(
        name=name,
        documents_read=corpus.n_read,
        documents_not_sampled=corpus.n_not_sampled,
        documents_dropped=dict(sorted(dropped.items())),
        documents_kept=len(corpus.uid) - n - near.get("documents", 0),
        text_bytes=corpus.n_text_bytes,
        tokens_stored=stored,
        tokens_duplicate=tokens_duplicate,
        tokens_available=plan.available,
        passes_whole=plan.passes.whole,
        passes_partial_tokens=plan.passes.partial,
        quota=plan.quota,
        tokens_offered=plan.per_pass * passes,
        tokens_per_pass=plan.per_pass,
        tokens_shortened=corpus.n_shortened,
        documents_split_off=corpus.n_split_off,
        documents_windowed=corpus.n_windows,
        definitions=corpus.n_definitions,
        decontam=dict(corpus.decontam),
        near=near,
    )


def _count_near(corpus: Corpus) -> dict[str, int]:
    near = corpus.near
    return {
        "compared": int(corpus.is_first.sum()),
        "clusters": len(np.unique(near.kept)),
        "documents": len(near.document),
        "contained": int((~np.isnan(near.contained)).sum()),
        "tokens": int(corpus.n_tokens[near.document].sum()),
    }


def enter_group(account: SourceAudit, group: Group) -> None:
    """Count the documents of a packing group."""
    uids = group.documents["uid"].to_pylist()
    account.tokens_used += group.tokens_used
    account.tokens_cut += group.tokens_used - sum(group.documents["take"].to_pylist())
    account._uids.update(uids)
    account.documents_used = len(account._uids)
    account._again.update(group.uids_again)
    account.documents_again = len(account._again)


def enter_shard(accounts: Sequence[SourceAudit], meta: pa.Table, *, seq_len: int) -> None:
    """Count what a finished shard really holds."""
    segments = meta["segments"].combine_chunks()
    n_segments = np.diff(segments.offsets.to_numpy())
    table = meta.select(["source", "n_real", "n_loss"])
    table = table.append_column("n_segments", pa.array(n_segments))
    sums = table.group_by("source").aggregate(
        [("n_real", "sum"), ("n_loss", "sum"), ("n_segments", "sum"), ("n_real", "count")]
    )
    for row in sums.to_pylist():
        account = accounts[row["source"]]
        account.tokens_placed += row["n_real_sum"]
        account.tokens_loss += row["n_loss_sum"]
        account.segments += row["n_segments_sum"]
        account.sequences += row["n_real_count"]
        account.padding += row["n_real_count"] * seq_len - row["n_real_sum"]


def close_accounts(accounts: Iterable[SourceAudit], mixture: Mixture) -> None:
    """Fill in the shares and prove the sums.

    Raises:
        FaultsError: documents or tokens do not add up, or a share misses by more than a sequence.
    """
    accounts = list(accounts)
    by_loss = mixture.weight_by == "loss_tokens"
    weighed = {a.name: a.tokens_loss if by_loss else a.tokens_placed for a in accounts}
    weights = {name: source.weight for name, source in mixture.sources.items()}
    total, whole = sum(weighed.values()), sum(weights.values())
    faults: list[str] = []
    for a in accounts:
        asked = weights[a.name] / whole
        a.share_asked = float(asked)
        a.share_got = float(Fraction(weighed[a.name], max(total, 1)))
        faults += _check(a)
        if abs(weighed[a.name] - asked * total) > mixture.seq_len:
            faults.append(
                f"{a.name}: share {a.share_got:.6%} misses {a.share_asked:.6%} by > 1 sequence"
            )
    if total != mixture.tokens:
        faults.append(f"{total} tokens placed, {mixture.tokens} asked")
    if faults:
        raise FaultsError("the account of the build does not close (please report this)", faults)


def _check(a: SourceAudit) -> list[str]:
    n_dropped = sum(a.documents_dropped.values())
    sums = {
        "documents read + split off + windowed + definitions = kept + dropped + not sampled": (
            a.documents_read + a.documents_split_off + a.documents_windowed + a.definitions,
            a.documents_kept + n_dropped + a.documents_not_sampled,
        ),
        "tokens stored = available + duplicate + near duplicate": (
            a.tokens_stored,
            a.tokens_available + a.tokens_duplicate + a.near.get("tokens", 0),
        ),
        "tokens offered = placed + cut + left over": (
            a.tokens_offered,
            a.tokens_placed + a.tokens_cut + a.tokens_left_over,
        ),
    }
    if a.decontam:
        n = Counter(a.decontam)
        dropped = Counter(a.documents_dropped)
        sums |= {
            "contaminated = documents dropped": (dropped[CONTAMINATED], n["dropped"]),
            "contaminated_task = documents of dropped tasks": (
                dropped[CONTAMINATED_TASK],
                n["task_documents"],
            ),
            "pieces = documents cut + split off": (n["pieces"], n["cut"] + a.documents_split_off),
        }
    return [f"{a.name}: {rule}: {x} is not {y}" for rule, (x, y) in sums.items() if x != y]


def too_many_bad(
    corpora: Mapping[str, Corpus], bad_reasons: frozenset[str], limit: float
) -> list[str]:
    """Faults for sources whose share of broken records exceeds `--max-bad`."""
    faults: list[str] = []
    for name, corpus in corpora.items():
        reasons: Counter[str] = corpus.dropped_reasons()
        bad = {reason: n for reason, n in reasons.items() if reason in bad_reasons}
        if sum(bad.values()) > limit * corpus.n_read:
            counts = ", ".join(f"{n} {reason}" for reason, n in sorted(bad.items()))
            faults.append(
                f"sources.{name}: {sum(bad.values())} of {corpus.n_read} records are broken "
                f"({counts}), more than --max-bad {limit:g}"
            )
    return faults
