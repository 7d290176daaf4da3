"""Which tasks of a build are a benchmark in another format, and are dropped whole.

Before the prepare stage, the documents of sources with tasks are compared with all benchmark
inputs; what decides is the rule in `decontam/tasks.py` and the mixture's `decontam.tasks`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines import files
from pipelines.benchmark_index import load_index
from pipelines.candidates import SourceCandidates, candidates_digest, merge, read_candidates
from pipelines.cleaning import TaskRules
from pipelines.errors import FaultsError, did_you_mean
from pipelines.estimate import expected_bytes
from pipelines.job import Job, SourceJob, program_digest
from pipelines.progress import Done, Reporter, Total
from pipelines.records import Split
from pipelines.shards import TASKS
from pipelines.sources import BLOCK_BYTES, spread
from pipelines.stages import Compare, CompareTasks, Stage, clear_faults, raise_faults, save_tasks
from pipelines.store import finished_batches, split_key

if TYPE_CHECKING:
    from decontam.index import Index
    from decontam.tasks import Example, Verdict

_BYTES_PER_WORKER = 64 << 20
_TASKS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one task of one source."""

    source: str
    task: str
    documents: int
    dropped: bool
    override: str | None
    """The reason that the mixture gives, where it decides."""

    verdict: "Verdict"
    """What the rule says."""

    @property
    def evidence(self) -> str:
        """Why it is dropped, for people."""
        if self.override is not None:
            return f"as the mixture says: {self.override}"
        return str(self.verdict.same)

    def as_json(self) -> dict[str, Any]:
        """A line of `tasks.jsonl`."""
        same, shared = self.verdict.same, self.verdict.shared
        return {
            "source": self.source,
            "task": self.task,
            "documents": self.documents,
            "decision": "dropped" if self.dropped else "kept",
            "override": self.override,
            "same": same and same.describe(),
            "shared": shared and shared.describe(),
        }


def decide_tasks(
    job: Job,
    *,
    run_stage: Callable[[type[Stage], str, int], None],
    report: Reporter,
    workers: int,
) -> Job:
    """The job without the tasks that are dropped whole.

    `tasks.jsonl` in the work folder says what becomes of each task.

    Raises:
        FaultsError: inputs that cannot be trusted, or the mixture names tasks that there are not.
    """
    if job.mixture.decontam is None or job.benchmark is None:
        return job
    sources = [source for source in job.sources if source.has_tasks]
    folders = {source.name: _folder(source) for source in sources}
    _compare(job, sources, folders, run_stage=run_stage, report=report, workers=workers)
    index, rules = load_index(job.benchmark), job.mixture.decontam.tasks
    decisions: list[Decision] = []
    for source in sources:
        folder = folders[source.name]
        finished = finished_batches(folder, source.splits)
        decisions += decide(source.name, merge(folder, source.splits, finished), index, rules)
    _check_names(rules, {d.task for d in decisions})
    _report(decisions, report)
    lines = [json.dumps(d.as_json(), ensure_ascii=False) + "\n" for d in decisions]
    files.write_bytes(files.join(job.work, TASKS), "".join(lines).encode())
    evidence: dict[str, dict[str, str]] = defaultdict(dict)
    for d in decisions:
        if d.dropped:
            evidence[d.source][d.task] = d.evidence
    left = [s.without(evidence[s.name]) if s.has_tasks else s for s in job.sources]
    return replace(job, sources=left)


def decide(
    source: str, candidates: SourceCandidates, index: "Index", rules: TaskRules
) -> Iterator[Decision]:
    """What becomes of each task of a source, by name."""
    from decontam.tasks import judge

    examples = _examples(candidates, index)
    for task, documents in candidates.documents.items():
        verdict = judge(examples.get(task, []), min_examples=rules.min_examples)
        override = rules.keep.get(task, rules.drop.get(task))
        dropped = task in rules.drop or (verdict.dropped and task not in rules.keep)
        yield Decision(source, task, documents, dropped, override, verdict)


def _examples(candidates: SourceCandidates, index: "Index") -> Mapping[str, list["Example"]]:
    """The candidates that repeat words of a benchmark, by task."""
    from decontam.tasks import Example, Kind

    examples: dict[str, list[Example]] = defaultdict(list)
    for row in candidates.table.to_pylist():
        if (kind := Kind(row["kind"])) is not Kind.RESEMBLES:
            e = index.entries[row["entry"]]
            example = Example(
                kind, row["similarity"], e.scenario, e.variant, e.split, e.instance, row["words"],
                row["passage"], row["uid"].hex(), row["file"], row["line"],
            )  # fmt: skip
            examples[row["task"]].append(example)
    return examples


def _check_names(rules: TaskRules, tasks: set[str]) -> None:
    faults = [
        f"{list_name}.{name}: no source has such a task{did_you_mean(name, tasks)}"
        for list_name, names in (("keep", rules.keep), ("drop", rules.drop))
        for name in names
        if name not in tasks
    ]
    if faults:
        raise FaultsError("decontam.tasks", faults)


def _report(decisions: Sequence[Decision], report: Reporter) -> None:
    dropped = [d for d in decisions if d.dropped]
    for d in dropped[:_TASKS_SHOWN]:
        report.say(f"tasks    | dropped {d.source}/{d.task}: {d.evidence[:120]}")
    if len(dropped) > _TASKS_SHOWN:
        report.say(f"tasks    | and {len(dropped) - _TASKS_SHOWN:,} more, see {TASKS}")


def _folder(source: SourceJob) -> str:
    """Where a source's candidates are kept: beside its batches in the token store."""
    store = source.store.rpartition("/")[0]
    return files.join(store, f"candidates-{candidates_digest(source.spec, program_digest())}")


def _compare(
    job: Job,
    sources: Sequence[SourceJob],
    folders: Mapping[str, str],
    *,
    run_stage: Callable[[type[Stage], str, int], None],
    report: Reporter,
    workers: int,
) -> None:
    """Find the candidates of all sources with tasks; what is there is not done again."""
    finished = {s.name: finished_batches(folders[s.name], s.splits) for s in sources}
    todo = [x for s in sources for x in s.splits if split_key(x) not in finished[s.name]]
    if not todo:
        return
    n_bytes, exact = expected_bytes(todo)
    workers = min(workers, 1 + n_bytes // _BYTES_PER_WORKER)
    specs = {s.name: s.spec for s in sources}
    splits = spread(todo, workers=workers)
    save_tasks(job.work, "compare", CompareTasks(splits, specs, dict(folders)))
    clear_faults(job.work)
    total = Total(max(len(todo), -(-n_bytes // BLOCK_BYTES)), n_bytes, exact)
    with report.stage("tasks", total, _poll(folders, todo)):
        run_stage(Compare, job.work, workers)
    raise_faults(job.work)


def _poll(folders: Mapping[str, str], todo: Sequence[Split]) -> Callable[[], Done]:
    """Counts what the splits to be done have in the folders."""
    keys = {split_key(split) for split in todo}
    seen: dict[str, int] = {}

    def poll() -> Done:
        for folder in set(folders.values()):
            for name in files.list_names(folder):
                path = files.join(folder, name)
                if name.endswith(".arrow") and name[:32] in keys and path not in seen:
                    seen[path] = read_candidates(path.removesuffix(".arrow"))[1].n_bytes
        return Done(len(seen), sum(seen.values()), 0)

    return poll
