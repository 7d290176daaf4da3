"""The build, stage by stage. `build.py` is its command line."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from pipelines import files
from pipelines.after import mark_used
from pipelines.arrange import GroupRows, arrange
from pipelines.audit import (
    SourceAudit,
    close_accounts,
    enter_group,
    enter_shard,
    open_account,
    too_many_bad,
)
from pipelines.clusters import write_clusters
from pipelines.corpus import Corpus, load_corpus
from pipelines.errors import FaultsError, UserError, did_you_mean
from pipelines.estimate import expected_bytes
from pipelines.evidence import write_overlaps, write_tasks
from pipelines.finish import (
    describe_shard,
    dropped_records,
    write_documents,
    write_dropped,
    write_manifest,
)
from pipelines.job import Job
from pipelines.mixing import apportion
from pipelines.near_stage import deduplicate
from pipelines.ordering import TrainingOrder
from pipelines.planning import SourcePlan, form_groups, plan_sources
from pipelines.progress import Done, Reporter, Total
from pipelines.records import BAD_REASONS, Split
from pipelines.rows import RowFigures, row_figures
from pipelines.sources import BLOCK_BYTES, spread
from pipelines.stages import (
    Pack,
    PackTasks,
    Prepare,
    PrepareTasks,
    Stage,
    Write,
    WriteTasks,
    clear_faults,
    explain_full_disk,
    group_path,
    layout_path,
    order_path,
    raise_faults,
    save_tasks,
)
from pipelines.store import finished_batches, split_key
from pipelines.tasks import decide_tasks
from pipelines.tokenizer import REFERENCE, Tokenizer

RunStage = Callable[[type[Stage], str, int], None]
"""Runs all tasks of a stage in a work folder, with so many workers: a Beam pipeline, or in tests
and benchmarks a plain loop."""

# Starting a worker process costs seconds; below these sizes it costs more than it saves.
_BYTES_PER_WORKER = 256 << 20
_DOCUMENTS_PER_WORKER = 1 << 20
_PLACES_SHOWN = 3
_LEFTOVER_SECONDS = 3600.0
"""Younger ones in the token store may belong to another build that runs now."""


def build(
    job: Job,
    tokenizer: Tokenizer,
    *,
    run_stage: RunStage,
    report: Reporter,
    max_bad: float,
    workers: int,
) -> list[SourceAudit]:
    """Build the data set of a job whose output folder is claimed.

    `max_bad` is the share of a source's records that may be broken.

    Raises:
        UserError: inputs, limits or the disk stop the build; nothing was published.
    """
    with explain_full_disk(job.output):
        job = _without_tasks(job, run_stage=run_stage, report=report, workers=workers)
        corpora, plans = _prepare_and_plan(
            job, tokenizer.engine_name, run_stage=run_stage, report=report,
            max_bad=max_bad, workers=workers,
        )  # fmt: skip
        names = list(job.mixture.sources)
        accounts = [open_account(n, job.mixture, corpora[n], plans[n]) for n in names]
        order = _pack(job, corpora, plans, accounts, run_stage=run_stage, workers=workers)
        n_shards = write(
            job, corpora, token_type=tokenizer.token_type, run_stage=run_stage, report=report,
            workers=workers,
        )  # fmt: skip
        entries = [_enter_shard(job, accounts, number) for number in range(n_shards)]
        close_accounts(accounts, job.mixture)
        write_documents(job, corpora)
        write_dropped(job, corpora)
        write_clusters(job, corpora)
        write_overlaps(job, corpora, accounts)
        write_tasks(job)
        write_manifest(job, tokenizer, accounts, order, entries)
        files.remove(job.work)
    return accounts


def _without_tasks(job: Job, *, run_stage: RunStage, report: Reporter, workers: int) -> Job:
    """The job without tasks that are a benchmark's; the output is let go where that fails."""
    try:
        return decide_tasks(job, run_stage=run_stage, report=report, workers=workers)
    except UserError:
        _release_output(job)
        raise


def _prepare_and_plan(
    job: Job, engine: str, *, run_stage: RunStage, report: Reporter, max_bad: float, workers: int
) -> tuple[dict[str, Corpus], dict[str, SourcePlan]]:
    """What is in the store, and what to take of it; the output is let go where that fails."""
    try:
        corpora = prepare(job, engine, run_stage=run_stage, report=report, workers=workers)
        if faults := too_many_bad(corpora, BAD_REASONS, max_bad):
            way_out = "mend or leave out these files, or allow more with --max-bad"
            raise FaultsError("broken input", [*faults, *_first_bad(corpora), way_out])
        if unknown := _held_out_nothing(job, corpora):
            raise FaultsError("tasks to hold out", unknown)
        if empty := _without_documents(job, corpora):
            raise FaultsError("nothing to take a share of", empty)
        corpora = deduplicate(job, corpora, run_stage=run_stage, report=report, workers=workers)
        corpora = mark_used(corpora, job.mixture.after)
        return corpora, plan_sources(job.mixture, corpora)
    except UserError:
        _release_output(job)
        raise


def _pack(job: Job, *known: Any, run_stage: RunStage, workers: int) -> TrainingOrder:
    """What is written where; the output is let go where nothing can be."""
    try:
        return pack(job, *known, run_stage=run_stage, workers=workers)
    except UserError:
        _release_output(job)
        raise


def _held_out_nothing(job: Job, corpora: dict[str, Corpus]) -> list[str]:
    """Patterns of `hold_out` that no task of their source matches: most likely misspelt."""
    faults: list[str] = []
    for name, corpus in corpora.items():
        if patterns := job.mixture.sources[name].hold_out:
            matched = {evidence.rpartition(" is ")[2] for evidence in corpus.held_out()}
            for pattern in patterns:
                if pattern not in matched:
                    close = did_you_mean(pattern, corpus.groups)
                    faults.append(f"sources.{name}.hold_out: no task matches {pattern!r}{close}")
    return faults


def _without_documents(job: Job, corpora: dict[str, Corpus]) -> list[str]:
    """Sources that have a share and no document left, with the reasons."""
    weights = {name: source.weight for name, source in job.mixture.sources.items()}
    quotas = apportion(weights, job.mixture.tokens)
    faults: list[str] = []
    for name, corpus in corpora.items():
        if quotas[name] and not corpus.uid:
            reasons = sorted(corpus.dropped_reasons().items())
            why = ", ".join(f"{n:,} {reason}" for reason, n in reasons) or "it holds no records"
            first = next((r["evidence"] for r in dropped_records(name, corpus)), "")
            why += f" (the first: {first})" if first else ""
            faults.append(f"sources.{name}: none of {corpus.n_read:,} records is left: {why}")
    return faults


def _release_output(job: Job) -> None:
    """Leave no claim on a folder without shards: mended input makes another build of it."""
    if not any(name.endswith(".tok") for name in files.list_names(job.output)):
        files.remove(job.work)
        files.remove(files.join(job.output, "build.json"))
        if not files.list_names(job.output):
            files.remove(job.output)


def _first_bad(corpora: dict[str, Corpus]) -> Iterator[str]:
    """Where the first broken records of each source stand."""
    for name, corpus in corpora.items():
        bad = (r for r in dropped_records(name, corpus) if r["reason"] in BAD_REASONS)
        for record in islice(bad, _PLACES_SHOWN):
            in_lines = f"line {record['line']}, byte {record['offset']}"
            place = in_lines if record["offset"] >= 0 else f"record {record['line']}"
            yield f"{record['file']}: {place}: {record['reason']}: {record['evidence']}"


def prepare(
    job: Job, engine: str, *, run_stage: RunStage, report: Reporter, workers: int
) -> dict[str, Corpus]:
    """Fill the token store; what it holds already is not done again."""
    finished = {s.name: finished_batches(s.store, s.splits) for s in job.sources}
    todo = [x for s in job.sources for x in s.splits if split_key(x) not in finished[s.name]]
    if todo:
        total = _prepare_total(todo)
        # Beside the reference, which is slow, starting another worker soon pays.
        per_worker = _BYTES_PER_WORKER // (1 if engine != REFERENCE else 32)
        workers = min(workers, 1 + total.n_bytes // per_worker)
        tasks = spread(todo, workers=workers)
        specs = {s.name: s.spec for s in job.sources}
        save_tasks(
            job.work,
            "prepare",
            PrepareTasks(tasks, specs, {s.name: s.store for s in job.sources}, engine),
        )
        for source in job.sources:
            files.write_json(files.join(source.store, "spec.json"), source.spec.describe())
        clear_faults(job.work)
        with report.stage("prepare", total, _store_poll(job, todo)):
            run_stage(Prepare, job.work, workers)
        raise_faults(job.work)
        for folder in {s.store for s in job.sources}:
            _remove_leftovers(folder, older_than=_LEFTOVER_SECONDS)
        finished = {s.name: finished_batches(s.store, s.splits) for s in job.sources}
    else:
        report.say("prepare  | everything is in the token store already")
    return {s.name: load_corpus(s.store, s.splits, finished[s.name]) for s in job.sources}


def _prepare_total(todo: Sequence[Split]) -> Total:
    n_bytes, exact = expected_bytes(todo)
    return Total(max(len(todo), -(-n_bytes // BLOCK_BYTES)), n_bytes, exact)


def _remove_leftovers(folder: str, *, older_than: float) -> None:
    """Remove what killed workers left half written; only local folders ever hold such files."""
    if not files.is_local(folder):
        return
    for name in files.list_names(folder):
        path = files.filesystem(files.join(folder, name))[1]
        with suppress(FileNotFoundError):  # a worker of another build may have finished it
            if name.endswith(".tmp") and time.time() - os.stat(path).st_mtime >= older_than:
                os.remove(path)


def _store_poll(job: Job, todo: Sequence[Split]) -> Callable[[], Done]:
    """Counts what the splits to be done have in the store."""
    keys = {split_key(split) for split in todo}
    folders = sorted({s.store for s in job.sources})
    seen: dict[str, tuple[int, int]] = {}

    def poll() -> Done:
        for folder in folders:
            for name in files.list_names(folder):
                key, _, rest = name.partition("-")
                if rest[5:] == ".arrow" and key in keys and f"{folder}/{name}" not in seen:
                    seen[f"{folder}/{name}"] = _batch_size(files.join(folder, name))
        return Done(len(seen), sum(b for b, _ in seen.values()), sum(t for _, t in seen.values()))

    return poll


def _batch_size(path: str) -> tuple[int, int]:
    """(input bytes, tokens) of a batch."""
    from pipelines.store import read_index

    table, counts = read_index(path.removesuffix(".arrow"), ["n_tokens"])
    return counts.n_bytes, sum(table["n_tokens"].to_pylist())


def pack(
    job: Job,
    corpora: dict[str, Corpus],
    plans: dict[str, SourcePlan],
    accounts: Sequence[SourceAudit],
    *,
    run_stage: RunStage,
    workers: int,
) -> TrainingOrder:
    """Choose documents, lay them out in sequences, order the sequences."""
    group_sources: list[str] = []
    group_passes: list[tuple[int, bool]] = []
    first_batch = 0
    for account in accounts:
        name = account.name
        corpus = corpora[name]
        for group in form_groups(name, job.mixture, corpus, plans[name], first_batch=first_batch):
            enter_group(account, group)
            files.write_table(group_path(job.work, len(group_sources)), group.documents)
            group_sources.append(name)
            group_passes.append((group.pass_, group.again))
        first_batch += len(corpus.batches)
    save_tasks(job.work, "pack", PackTasks(job.mixture, group_sources))
    n_documents = sum(account.documents_used for account in accounts)
    run_stage(Pack, job.work, min(workers, 1 + n_documents // _DOCUMENTS_PER_WORKER))
    of_source: dict[str, list[GroupRows]] = {account.name: [] for account in accounts}
    for number, name in enumerate(group_sources):
        figures = row_figures(files.read_table(layout_path(job.work, number)))
        _check_loss(name, figures)
        of_source[name].append(GroupRows(number, *group_passes[number], figures))
    table, order = arrange(job.mixture, list(of_source.values()))
    files.write_table(order_path(job.work), table)
    return order


def _check_loss(name: str, figures: RowFigures) -> None:
    """Nothing can be learned from a sequence whose tokens all carry no loss."""
    if n := int(((figures.n_real > 0) & (figures.n_loss == 0)).sum()):
        raise UserError(
            f"sources.{name}: {n:,} sequences would have no token with loss (please report this)"
        )


def write(
    job: Job,
    corpora: dict[str, Corpus],
    *,
    token_type: str,
    run_stage: RunStage,
    report: Reporter,
    workers: int,
) -> int:
    """Write the shards; returns how many there are."""
    mixture = job.mixture
    n_sequences = len(files.read_table(order_path(job.work)))
    batches = [path for corpus in corpora.values() for path in corpus.batches]
    per_shard = mixture.sequences_per_shard
    tasks = WriteTasks(job.output, n_sequences, per_shard, mixture.seq_len, token_type, batches)
    n_shards = -(-n_sequences // per_shard)
    width = 2 if token_type == "uint16" else 4
    n_bytes = n_sequences * mixture.seq_len * width
    _check_disk(job.output, n_bytes)
    save_tasks(job.work, "write", tasks)

    def poll() -> Done:
        names = files.list_names(job.output)
        done = sum(name.endswith(".meta.arrow") for name in names)
        share = done / max(n_shards, 1)
        return Done(done, round(n_bytes * share), round(mixture.tokens * share))

    with report.stage("write", Total(n_shards, n_bytes, exact=True), poll):
        run_stage(Write, job.work, min(workers, 1 + n_bytes // (4 * _BYTES_PER_WORKER)))
    _remove_leftovers(job.output, older_than=0)
    return n_shards


def _check_disk(output: str, n_bytes: int) -> None:
    if not files.is_local(output):
        return
    written = sum(
        entry.stat().st_size for entry in os.scandir(output) if entry.name.endswith(".tok")
    )
    free = shutil.disk_usage(output).free
    if free < n_bytes - written:
        raise UserError(
            f"{output}: the shards need {n_bytes - written:,} bytes, the disk has {free:,} left; "
            "the token store is kept: make room and run the same command again"
        )


def _enter_shard(job: Job, accounts: Sequence[SourceAudit], number: int) -> dict[str, object]:
    entry, meta = describe_shard(job.output, number)
    enter_shard(accounts, meta, seq_len=job.mixture.seq_len)
    return entry
