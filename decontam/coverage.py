"""What an index holds of each scenario, and how much of the scenario that is.

HELM's run directories hold what a run took: of a scenario of thousands perhaps three instances. So
the number found is compared with the number that is published (`helm_core.yaml` has them, with
their sources).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NotRequired, TypedDict

from decontam.grid import Grid


class CoverageRow(TypedDict):
    """What the index holds of one scenario, or that it holds nothing."""

    scenario: str
    splits: Mapping[str, int]
    """Instances by split; empty where the scenario is missing."""

    where: str
    """The file or hub name it was read from; for a missing one, why or what to do."""

    asked: NotRequired[Sequence[str]]
    """Splits that the index was to hold."""

    published: NotRequired[Mapping[str, int]]
    """Instances of the whole scenario by split, where they are known."""

    distinct: NotRequired[Mapping[str, int]]
    """Instances found by split, without augmented and contrast copies; of all splits."""

    limits: NotRequired[Sequence[int]]
    """Values of `max_eval_instances` that runs reached, ascending."""


def counts(row: CoverageRow) -> dict[str, tuple[int, int]]:
    """(Found, published) by split, of the splits that are asked for and known."""
    published, found = row.get("published", {}), row.get("distinct", {})
    asked = row.get("asked", [])
    return {s: (min(found.get(s, 0), n), n) for s, n in published.items() if s in asked}


def share_of(row: CoverageRow) -> float | None:
    """Share of a scenario's published instances that the index holds; None where unknown."""
    known = counts(row).values()
    return sum(found for found, _ in known) / sum(n for _, n in known) if known else None


def share_text(row: CoverageRow) -> str:
    """The share as people read it: 100% only where nothing is missing."""
    share = share_of(row)
    if not sum(row["splits"].values()):
        return ""
    if share is None:
        return "unknown"
    if share == 1:
        return "100%"
    return "<0.1%" if 0 < share < 0.001 else f"{min(share, 0.999):.1%}"


def partial_text(row: CoverageRow) -> str:
    """What is there of what is published, by split, and why there is no more."""
    known = ", ".join(f"{split} {found:,} of {n:,}" for split, (found, n) in counts(row).items())
    limits = ", ".join(f"{limit:,}" for limit in row.get("limits", ()))
    why = f"runs were limited to {limits} instances (max_eval_instances)" if limits else ""
    return "; ".join(filter(None, (known, why)))


def partial_rows(coverage: Iterable[CoverageRow]) -> list[CoverageRow]:
    """Scenarios of which there is something, and less than all, as far as anybody knows."""
    held = [row for row in coverage if sum(row["splits"].values())]
    return [row for row in held if share_of(row) != 1 and (counts(row) or row.get("limits"))]


def partial_lines(coverage: Iterable[CoverageRow]) -> Iterator[str]:
    """The scenarios that are there in part only."""
    rows = partial_rows(coverage)
    if rows:
        yield "in part only; what is not there is not looked for:"
    for row in rows:
        yield f"  {row['scenario']}: {partial_text(row)}"


def coverage_table(coverage: Iterable[CoverageRow]) -> str:
    """What the index holds of each scenario and where it came from; or that it is missing."""
    return str(coverage_grid(coverage))


def coverage_grid(coverage: Iterable[CoverageRow]) -> Grid:
    """As `coverage_table`."""
    rows_of = list(coverage)
    rows: list[tuple[str, ...]] = []
    missing: list[str] = []
    for row in rows_of:
        n_instances = sum(row["splits"].values())
        splits = ", ".join(f"{name} {n:,}" for name, n in row["splits"].items())
        if not n_instances:
            missing.append(row["scenario"])
        rows.append((row["scenario"], f"{n_instances:,}", share_text(row),
                     splits if n_instances else "missing", row["where"]))  # fmt: skip
    note = f"{len(rows) - len(missing):,} of {len(rows):,} scenarios"
    note += f"; missing: {', '.join(missing)}" if missing else ""
    note = "\n".join([note, *partial_lines(rows_of)])
    header = ("scenario", "instances", "share", "splits", "from")
    return Grid("What the index holds", header, "<>><<", rows, note)
