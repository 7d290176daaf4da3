"""What a scan found, for people: a row for each overlap, and tables of plain text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc

from decontam.coverage import CoverageRow
from decontam.excerpt import excerpt
from decontam.grid import Grid
from decontam.records import BOILERPLATE_RULES, Overlap

_compute = cast(Any, pc)  # made at import time, which type checkers cannot see

NOTHING = "no document repeats a benchmark text"
DECISIONS = ("kept", "cut", "dropped")
"""What became of a passage, or of a document by the strongest of them."""

_DOCUMENT = ("source", "file", "line", "uid")
_INSTANCE = ("scenario", "variant", "split", "instance")

OVERLAP_SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "uid": pa.binary(16),
        "file": pa.string(),
        "line": pa.int64(),
        "origin": pa.string(),
        "scenario": pa.string(),
        "variant": pa.string(),
        "split": pa.string(),
        "instance": pa.string(),
        "part": pa.string(),
        "reference": pa.int32(),
        "rule": pa.string(),
        "decision": pa.string(),
        "n_words": pa.int32(),
        "start": pa.int64(),
        "end": pa.int64(),
        "benchmark_start": pa.int64(),
        "benchmark_end": pa.int64(),
        "in_question": pa.bool_(),
        "before": pa.string(),
        "passage": pa.string(),
        "after": pa.string(),
        "benchmark_before": pa.string(),
        "benchmark": pa.string(),
        "benchmark_after": pa.string(),
    }
)
"""A row for each overlap: the document (`source`, `uid`, `file`, `line`, `origin`), the fields of
`Overlap`, the decision, and the passage as either side has it, each with what stands around it."""


class SourceTotals(NamedTuple):
    """What a scan read of one source, and what the decisions removed."""

    documents: int
    words: int
    words_removed: int


def describe_overlap(text: bytes, overlap: Overlap, benchmark_text: bytes) -> dict[str, Any]:
    """The columns of `OVERLAP_SCHEMA` that an overlap fills.

    Left to the caller: `source`, `uid`, `file`, `line`, `origin` and `decision`.

    Args:
        text: the whole document, UTF-8.
        overlap: where the passage stands in either text.
        benchmark_text: the whole input or reference, UTF-8.
    """
    document = excerpt(text, overlap.start, overlap.end)
    benchmark = excerpt(benchmark_text, overlap.benchmark_start, overlap.benchmark_end)
    return {
        **overlap._asdict(),
        **document._asdict(),
        "benchmark_before": benchmark.before,
        "benchmark": benchmark.passage,
        "benchmark_after": benchmark.after,
    }


def scenario_table(overlaps: pa.Table, coverage: Sequence[CoverageRow]) -> str:
    """What was found of each scenario; boilerplate in a table of its own, where there is any."""
    nothing = [] if len(split_boilerplate(overlaps)[1]) else [NOTHING]
    return "\n\n".join([*nothing, *map(str, scenario_grids(overlaps, coverage))])


def scenario_grids(overlaps: pa.Table, coverage: Sequence[CoverageRow]) -> list[Grid]:
    """As `scenario_table`: none, one or two grids."""
    boilerplate, counted = split_boilerplate(overlaps)
    grids: list[Grid] = []
    if len(counted):
        grids.append(_scenario_grid(counted, coverage))
    if len(boilerplate):
        grids.append(_boilerplate_grid(boilerplate, coverage))
    return grids


def split_boilerplate(overlaps: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(Overlaps of the rules that are reported apart, all others)."""
    rules = pa.array(sorted(BOILERPLATE_RULES))
    apart = _compute.is_in(overlaps["rule"], value_set=rules)
    return overlaps.filter(apart), overlaps.filter(_compute.invert(apart))


def scenario_order(overlaps: pa.Table, coverage: Sequence[CoverageRow]) -> list[str]:
    """Names of scenarios as the coverage lists them, then those it does not know."""
    names = [row["scenario"] for row in coverage]
    return names + sorted(set(overlaps["scenario"].unique().to_pylist()) - set(names))


def _scenario_grid(overlaps: pa.Table, coverage: Sequence[CoverageRow]) -> Grid:
    instances = {row["scenario"]: sum(row["splits"].values()) for row in coverage}
    touched = count_distinct(overlaps, ["scenario"], _INSTANCE)
    parts = count_distinct(overlaps, ["scenario", "part"], _INSTANCE)
    outcomes = _outcomes(overlaps, ["scenario"])
    rows: list[tuple[str, ...]] = []
    for name in scenario_order(overlaps, coverage):
        counts = [touched(name), parts(name, "input"), parts(name, "reference"), *outcomes(name)]
        held = f"{instances[name]:,}" if instances.get(name) else "none"
        rows.append((name, held, *(f"{n:,}" for n in counts)))
    header = ("scenario", "instances", "touched", "inputs", "references", "documents",
              "dropped", "cut", "kept")  # fmt: skip
    caption = "By scenario: instances touched, and the documents that touch them"
    return Grid(caption, header, "<>>>>>>>>", rows)


def _boilerplate_grid(overlaps: pa.Table, coverage: Sequence[CoverageRow]) -> Grid:
    touched = count_distinct(overlaps, ["scenario", "rule"], _INSTANCE)
    outcomes = _outcomes(overlaps, ["scenario", "rule"])
    rows = [
        (name, rule, *(f"{n:,}" for n in (touched(name, rule), *outcomes(name, rule))))
        for name in scenario_order(overlaps, coverage)
        for rule in sorted(BOILERPLATE_RULES)
        if touched(name, rule)
    ]
    header = ("scenario", "rule", "touched", "documents", "dropped", "cut", "kept")
    caption = "Boilerplate, in none of the figures above"
    return Grid(caption, header, "<<>>>>>", rows)


def count_distinct(
    overlaps: pa.Table, by: Sequence[str], what: Sequence[str]
) -> Callable[..., int]:
    """A function from values of the columns `by` to the number of distinct rows of `what`."""
    distinct = overlaps.group_by([*dict.fromkeys([*by, *what])]).aggregate([])
    counted = distinct.group_by(list(by)).aggregate([([], "count_all")])
    counts = {tuple(row[name] for name in by): row["count_all"] for row in counted.to_pylist()}
    return lambda *key: counts.get(key, 0)


def _outcomes(overlaps: pa.Table, by: Sequence[str]) -> Callable[..., tuple[int, int, int, int]]:
    """(Documents, of these dropped, cut, kept) for values of `by`, by their strongest decision."""
    strength = _compute.index_in(overlaps["decision"], value_set=pa.array(DECISIONS))
    strongest = (
        overlaps.append_column("strength", strength)
        .group_by([*by, *(name for name in _DOCUMENT if name not in by)])
        .aggregate([("strength", "max")])
    )
    count = count_distinct(strongest, [*by, "strength_max"], _DOCUMENT)

    def outcomes(*key: str) -> tuple[int, int, int, int]:
        kept, cut, dropped = (count(*key, i) for i in range(len(DECISIONS)))
        return kept + cut + dropped, dropped, cut, kept

    return outcomes


def count_documents(overlaps: pa.Table) -> tuple[int, int, int, int]:
    """Documents with overlaps; of these dropped, cut, kept."""
    return _outcomes(overlaps, [])()


def source_table(overlaps: pa.Table, totals: Mapping[str, SourceTotals]) -> str:
    """What was found in each source, and what it cost."""
    return str(source_grid(overlaps, totals)) if totals else NOTHING


def source_grid(overlaps: pa.Table, totals: Mapping[str, SourceTotals]) -> Grid:
    """As `source_table`; documents in which all overlaps are boilerplate stand apart."""
    counted = count_distinct(split_boilerplate(overlaps)[1], ["source"], _DOCUMENT)
    outcomes = _outcomes(overlaps, ["source"])
    rows: list[tuple[str, ...]] = []
    sums = [0] * 7
    for name, (documents, words, removed) in totals.items():
        found, dropped, cut, _ = outcomes(name)
        counts = [documents, counted(name), found - counted(name), dropped, cut, words, removed]
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
        rows.append((name, *_source_cells(counts)))
    if len(rows) > 1:
        rows.append(("all sources", *_source_cells(sums)))
    header = ("source", "documents", "overlapping", "boilerplate", "dropped", "cut",
              "words removed", "share")  # fmt: skip
    return Grid(
        "By source: documents, those with overlaps or only boilerplate, and what was removed",
        header,
        "<>>>>>>>",
        rows,
    )


def _source_cells(counts: Sequence[int]) -> list[str]:
    *figures, words, removed = counts
    share = removed / max(1, words)
    tiny = 0 < share < 0.00001
    return [*(f"{n:,}" for n in (*figures, removed)), "<0.001%" if tiny else f"{share:.3%}"]


def instance_counts(overlaps: pa.Table) -> pa.Table:
    """How many documents touch each benchmark instance that any document touches.

    Returns:
        scenario, variant, split, instance (string); documents, boilerplate_only (int64: documents
        that have nothing of the instance but boilerplate); longest (int32, words). Most touched
        first, ties by name.
    """
    apart = _compute.is_in(overlaps["rule"], value_set=pa.array(sorted(BOILERPLATE_RULES)))
    each = (
        overlaps.append_column("boilerplate_only", apart.cast(pa.int64()))
        .group_by([*_INSTANCE, *_DOCUMENT])
        .aggregate([("boilerplate_only", "min"), ("n_words", "max")])
    )
    counts = each.group_by(list(_INSTANCE)).aggregate(
        [([], "count_all"), ("boilerplate_only_min", "sum"), ("n_words_max", "max")]
    )
    only = _compute.coalesce(counts["boilerplate_only_min_sum"], pa.scalar(0, pa.int64()))
    columns = {name: counts[name] for name in _INSTANCE}
    columns["documents"] = _compute.subtract(counts["count_all"], only)
    columns |= {"boilerplate_only": only, "longest": counts["n_words_max_max"]}
    order = [("documents", "descending"), ("boilerplate_only", "descending")]
    return pa.table(columns).sort_by([*order, *((name, "ascending") for name in _INSTANCE)])


def instance_table(overlaps: pa.Table, *, most: int = 20) -> str:
    """The `most` benchmark instances that most documents touch, and how many others there are."""
    return str(instance_grid(overlaps, most=most)) if len(overlaps) else NOTHING


def instance_grid(overlaps: pa.Table, *, most: int) -> Grid:
    """As `instance_table`."""
    counts = instance_counts(overlaps)
    rows = [
        (
            *(row[name] for name in _INSTANCE),
            *(f"{row[name]:,}" for name in counts.column_names[4:]),
        )
        for row in counts.slice(0, most).to_pylist()
    ]
    rest = counts.slice(most)
    note = ""
    if len(rest):
        each = rest["documents"][0].as_py()
        note = f"and {len(rest):,} more, each touched by at most {each:,} documents"
    header = (*_INSTANCE, "documents", "boilerplate", "longest")
    return Grid(
        "Benchmark instances: documents that touch them, and words of the longest passage",
        header,
        "<<<<>>>",
        rows,
        note,
    )
