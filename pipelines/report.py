"""Tables for people: the plan, the audit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipelines.audit import SourceAudit
from pipelines.estimate import Estimate
from pipelines.job import Job
from pipelines.mixing import apportion
from pipelines.mixture import Mixture


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned first column, right-aligned others."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    aligned = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in aligned)


def count(n: int) -> str:
    """A number as a person reads it: 1.50B, 23.1M, 812."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**4, "K")):
        if n >= size:
            return f"{n / (1000 if unit == 'K' else size):.3g}{unit}"
    return f"{n:,}"


def plural(n: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def size(n_bytes: int) -> str:
    """Bytes as a person reads them."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes} B"


def plan_title(mixture: Mixture) -> str:
    """The first line of a plan."""
    sequences = -(-mixture.tokens // mixture.seq_len)
    return (
        f"{mixture.name}: {count(mixture.tokens)} tokens, at least {sequences:,} sequences of "
        f"{mixture.seq_len:,}"
    )


def estimate_table(mixture: Mixture, estimates: Mapping[str, Estimate]) -> str:
    """The plan as far as a sample tells; figures with `~` are extrapolated."""
    quotas = apportion({n: s.weight for n, s in mixture.sources.items()}, mixture.tokens)
    rows: list[list[str]] = []
    for name, e in estimates.items():
        passes = quotas[name] / e.tokens if e.tokens else float("inf")
        limit = mixture.sources[name].max_passes
        guesses = [f"~{count(n)}" for n in (e.documents, e.documents_kept, e.tokens)]
        share = f"{quotas[name] / mixture.tokens:.1%}"
        row = [name, f"{e.n_files:,}", size(e.input_bytes), *guesses, count(quotas[name])]
        note = f"over max_passes {limit:g}" if passes > limit else ""
        if not e.known:
            row, passes, note = [*row[:2], *"????", row[-1]], None, "size unknown"
        rows.append([*row, "?" if passes is None else f"~{passes:.2f}", share, note])
    header = ("source", "files", "input", "documents", "long enough", "tokens", "takes", "passes",
              "share", "")  # fmt: skip
    return table(header, rows)


def passed_over_lines(job: Job) -> str:
    """Files beside the documents that are not read, a line for each source and reason."""
    return "\n".join(
        f"{source.name}: not read, {over.reason}: {plural(over.count, 'file')} "
        f"({', '.join(over.examples)}{', …' if over.count > len(over.examples) else ''})"
        for source in job.sources
        for over in source.passed_over
    )


def sample_table(estimates: Mapping[str, Estimate]) -> str:
    """What a build would drop of the sampled records, and why; empty if it would keep them all."""
    rows = [
        (name, reason, f"{n:,} of {e.sampled:,}", f"{n / e.sampled:.1%}" if e.sampled else "")
        for name, e in estimates.items()
        for reason, n in e.dropped.items()
    ]
    return table(("source", "dropped because", "sampled records", "share"), rows) if rows else ""


def unread_lines(estimates: Mapping[str, Estimate]) -> str:
    """Fields of the sampled records that nobody reads, a line for each source that has any."""
    return "\n".join(
        f"{name}: fields not read: "
        + ", ".join(f"{field} {share:.0%}" for field, share in e.unread.items())
        for name, e in estimates.items()
        if e.unread
    )


def audit_table(accounts: Iterable[SourceAudit], *, seq_len: int) -> str:
    """What a finished build holds."""
    rows: list[list[str]] = []
    for a in accounts:
        dropped = sum(a.documents_dropped.values())
        rows.append(
            [
                a.name, f"{a.documents_read:,}", f"{dropped:,}", f"{a.documents_kept:,}",
                f"{a.tokens_available:,}", f"{a.tokens_placed:,}",
                f"{a.passes_whole + a.passes_partial_tokens / max(a.tokens_available, 1):.2f}",
                f"{a.tokens_cut:,}", f"{a.tokens_left_over:,}", f"{a.sequences:,}",
                f"{a.padding / max(a.sequences * seq_len, 1):.3%}",
                f"{a.share_asked:.4%}", f"{a.share_got:.4%}",
            ]
        )  # fmt: skip
    header = ("source", "documents", "dropped", "kept", "tokens", "placed", "passes", "cut",
              "left over", "sequences", "padding", "asked", "got")  # fmt: skip
    return table(header, rows)


def dropped_table(accounts: Iterable[SourceAudit]) -> str:
    """Documents dropped by source and reason; empty if there are none."""
    rows = [
        (a.name, reason, f"{n:,}") for a in accounts for reason, n in a.documents_dropped.items()
    ]
    return table(("source", "dropped because", "documents"), rows) if rows else ""


def near_table(accounts: Iterable[SourceAudit]) -> str:
    """Near duplicates found and dropped; empty if nobody looked for any."""
    names = ("compared", "clusters", "documents", "contained", "tokens")
    rows = [(a.name, *(f"{a.near[name]:,}" for name in names)) for a in accounts if a.near]
    header = ("source", "compared with each other", "clusters", "dropped", "of them contained",
              "tokens dropped")  # fmt: skip
    return table(header, rows) if rows else ""


def decontam_table(accounts: Iterable[SourceAudit]) -> str:
    """What decontamination found and removed; empty if nothing was compared with a benchmark."""
    accounts = list(accounts)
    if not any(a.decontam for a in accounts):
        return ""
    rows: list[Sequence[str]] = []
    for a in accounts:
        n = Counter(a.decontam)
        names = ("documents", "touched", "dropped", "task_documents", "cut", "pieces")
        removed = (n["bytes_removed"] + n["task_bytes"]) / max(n["bytes"] + n["task_bytes"], 1)
        rows.append((a.name, *(f"{n[name]:,}" for name in names), f"{removed:.4%}",
                     f"{n['boilerplate']:,}"))  # fmt: skip
    header = ("source", "compared", "with overlaps", "dropped", "dropped tasks'", "cut", "pieces",
              "bytes removed", "boilerplate only")  # fmt: skip
    return table(header, rows)
