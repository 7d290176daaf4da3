"""What a finished data set says of its decontamination: every overlap, a page, figures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from decontam.page import write_page
from decontam.records import BOILERPLATE_RULES
from decontam.report import OVERLAP_SCHEMA, SourceTotals, count_distinct
from pipelines import files
from pipelines.audit import SourceAudit
from pipelines.benchmark_index import load_index
from pipelines.corpus import Corpus
from pipelines.job import Job
from pipelines.shards import OVERLAPS, OVERLAPS_PAGE, TASKS

_compute = cast(Any, pc)  # made at import time, which type checkers cannot see
_INSTANCE = ("scenario", "variant", "split", "instance")
_DOCUMENT = ("uid", "file", "line")


def write_overlaps(
    job: Job, corpora: Mapping[str, Corpus], accounts: Sequence[SourceAudit]
) -> None:
    """`overlaps.arrow` and the page that shows it; nothing where the mixture compares nothing."""
    if job.benchmark is None:
        return
    path = files.join(job.output, OVERLAPS)
    with files.write_atomic(path) as file, pa.ipc.new_file(file, OVERLAP_SCHEMA) as writer:
        for source in job.sources:
            if source.spec.decontam:
                for table in _overlaps(source.name, corpora[source.name]):
                    writer.write_table(table)
    totals = {
        a.name: SourceTotals(*(a.decontam[n] for n in ("documents", "words", "words_removed")))
        for a in accounts
        if a.decontam.get("documents")
    }
    page = write_page(
        files.read_table(path),
        load_index(job.benchmark).header["coverage"],
        totals,
        title=f"Decontamination of {job.mixture.name}",
        full_table=OVERLAPS,
    )
    files.write_bytes(files.join(job.output, OVERLAPS_PAGE), page.encode())


def write_tasks(job: Job) -> None:
    """`tasks.jsonl`, as the work folder has it; nothing where no source has tasks."""
    if any(source.has_tasks for source in job.sources):
        content = files.read_bytes(files.join(job.work, TASKS))
        files.write_bytes(files.join(job.output, TASKS), content)


def _overlaps(name: str, corpus: Corpus) -> Iterator[pa.Table]:
    """The overlaps of a source, batch by batch."""
    for number, batch in enumerate(corpus.batches):
        table = files.read_table(f"{batch}.overlaps.arrow")
        names = [corpus.batch_files[number][i] for i in table["file"].to_pylist()]
        places = zip(table["line"].to_pylist(), table["offset"].to_pylist(), strict=True)
        columns = {column: table[column] for column in table.column_names}
        columns |= {
            "source": pa.array([name] * len(table), pa.string()),
            "file": pa.array(names, pa.string()),
            "line": pa.array([corpus.line(number, *place) for place in places], pa.int64()),
        }
        yield pa.table([columns[c] for c in OVERLAP_SCHEMA.names], schema=OVERLAP_SCHEMA)


def describe_decontamination(job: Job) -> dict[str, Any] | None:
    """The manifest's `decontamination`; None where the mixture compares nothing."""
    if job.benchmark is None:
        return None
    header = load_index(job.benchmark).header
    return {
        "index_digest": header["digest"],
        "n": header["n"],
        "normalization": header["normalization"],
        "coverage": [dict(row) for row in header["coverage"]],
        "policies": {
            s.name: asdict(s.spec.decontam.policy) if s.spec.decontam else None for s in job.sources
        },
        "tasks": _task_counts(job),
        "overlaps": _counts(files.read_table(files.join(job.output, OVERLAPS))),
    }


def _task_counts(job: Job) -> dict[str, dict[str, int]]:
    """Of each source with tasks how many there are, are dropped, and the mixture decides about."""
    counts = {
        s.name: {"tasks": 0, "dropped": 0, "overridden": 0} for s in job.sources if s.has_tasks
    }
    if counts:
        for line in files.read_bytes(files.join(job.output, TASKS)).splitlines():
            task = json.loads(line)
            count = counts[task["source"]]
            count["tasks"] += 1
            count["dropped"] += task["decision"] == "dropped"
            count["overridden"] += task["override"] is not None
    return counts


def _counts(overlaps: pa.Table) -> list[dict[str, Any]]:
    """Overlaps by source, scenario, whether they are boilerplate, and decision."""
    rules = pa.array(sorted(BOILERPLATE_RULES))
    boilerplate = _compute.is_in(overlaps["rule"], value_set=rules)
    overlaps = overlaps.append_column("boilerplate", boilerplate)
    by = ["source", "scenario", "boilerplate", "decision"]
    rows = overlaps.group_by(by).aggregate([([], "count_all")]).to_pylist()
    distinct = {
        "instances": count_distinct(overlaps, by, _INSTANCE),
        "documents": count_distinct(overlaps, by, _DOCUMENT),
    }
    counts = [
        {name: row[name] for name in by}
        | {"overlaps": row["count_all"]}
        | {name: count(*(row[name] for name in by)) for name, count in distinct.items()}
        for row in rows
    ]
    return sorted(counts, key=lambda row: [row[name] for name in by])
