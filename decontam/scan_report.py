"""What a scan says: tables, a page, and a count for every instance of the benchmark."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from decontam.page import write_page
from decontam.report import SourceTotals, instance_counts, scenario_table, source_table
from pipelines import files

if TYPE_CHECKING:  # numba takes a second to import; `--help` does without
    from decontam.corpora import Corpus
    from decontam.index import Index

OVERLAPS, PAGE, INSTANCES = "overlaps.arrow", "report.html", "instances.jsonl"
_MOST_SOURCES = 30
_INSTANCE = ("scenario", "variant", "split", "instance")


def result_lines(
    index: "Index",
    corpora: "Sequence[Corpus]",
    overlaps: pa.Table,
    totals: Mapping[str, SourceTotals],
) -> Iterator[str]:
    """What a scan prints."""
    header = index.header
    yield source_table(*_many_as_one(overlaps, totals))
    yield from _policy_lines(corpora)
    yield f"\n{scenario_table(overlaps, header['coverage'])}\n"
    counts = instance_counts(overlaps)
    touched = sum(n > 0 for n in counts["documents"].to_pylist())
    apart = len(counts) - touched
    n_instances = sum(sum(row["splits"].values()) for row in header["coverage"])
    more = f"; {apart:,} more only by boilerplate" if apart else ""
    yield f"{touched:,} of {n_instances:,} benchmark instances are touched{more}"


def _policy_lines(corpora: "Sequence[Corpus]") -> Iterator[str]:
    """What the figures of a build stand for."""
    actions = sorted({corpus.policy.action for corpus in corpora if corpus.policy})
    if actions:
        named = " and ".join(f"`policy: {action}`" for action in actions)
        yield f"(dropped, cut and removed by a build with {named})"
    if any(corpus.holds_tasks for corpus in corpora):
        yield (
            "(a build also drops whole tasks that are a benchmark in another format, which this "
            "does not look for)"
        )


def _many_as_one(
    overlaps: pa.Table, totals: Mapping[str, SourceTotals]
) -> tuple[pa.Table, Mapping[str, SourceTotals]]:
    """Where there are very many sources: those with overlaps, most first, and others as one."""
    if len(totals) <= _MOST_SOURCES:
        return overlaps, totals
    counts = {r["values"]: r["counts"] for r in overlaps["source"].value_counts().to_pylist()}
    order = sorted(totals, key=lambda name: (-counts.get(name, 0), name))
    n_shown = min(len(counts), _MOST_SOURCES)
    shown, rest = order[:n_shown], order[n_shown:]
    others = f"{len(rest):,} others"
    sums = SourceTotals(*(sum(column) for column in zip(*(totals[n] for n in rest), strict=True)))
    names = [name if name in shown else others for name in overlaps["source"].to_pylist()]
    place = overlaps.schema.get_field_index("source")
    renamed = overlaps.set_column(place, "source", pa.array(names, pa.string()))
    return renamed, {name: totals[name] for name in shown} | {others: sums}


def _instances(index: "Index") -> list[dict[str, str]]:
    """All instances, in the order of the index."""
    table = index.entries.columns(_INSTANCE)
    columns = (table[name].to_pylist() for name in _INSTANCE)
    unique = dict.fromkeys(zip(*columns, strict=True))
    return [dict(zip(_INSTANCE, place, strict=True)) for place in unique]


def write_report(
    folder: str,
    title: str,
    index: "Index",
    overlaps: pa.Table,
    totals: Mapping[str, SourceTotals],
) -> None:
    """The page, and a line for each instance of the benchmark, touched or not."""
    coverage = index.header["coverage"]
    page = write_page(overlaps, coverage, totals, title=title, full_table=OVERLAPS)
    files.write_bytes(files.join(folder, PAGE), page.encode())
    names = ("documents", "boilerplate_only", "longest")
    counts = {
        tuple(row[name] for name in _INSTANCE): {name: row[name] for name in names}
        for row in instance_counts(overlaps).to_pylist()
    }
    nothing = dict.fromkeys(names, 0)
    lines = (
        json.dumps(place | counts.get(tuple(place.values()), nothing), ensure_ascii=False)
        for place in _instances(index)
    )
    content = "".join(f"{line}\n" for line in lines).encode()
    files.write_bytes(files.join(folder, INSTANCES), content)
