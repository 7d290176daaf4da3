"""A synthesis from its inputs to its published files."""

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from pipelines import files
from pipelines.errors import UserError
from pipelines.job import code_digest
from pipelines.mixture import digest
from pipelines.progress import Reporter
from pipelines.stages import Stage, clear_faults, raise_faults
from pipelines.synthesis.cache import Cache
from pipelines.synthesis.client import Client
from pipelines.synthesis.documents import (
    Candidate,
    Inputs,
    first_of_each,
    number_lines,
    plan_tasks,
    rank_documents,
)
from pipelines.synthesis.finish import (
    REPORT,
    account,
    publish,
    read_results,
    refuse_unfinished,
)
from pipelines.synthesis.progress import shown
from pipelines.synthesis.prompts import prompt_digests
from pipelines.synthesis.sampling import N_REQUESTS, check_sampling, sampling_lines
from pipelines.synthesis.settings import Settings, Transport
from pipelines.synthesis.stages import (
    ChooseDocuments,
    ChooseTasks,
    Interview,
    InterviewTasks,
    ranked_path,
    result_path,
    save,
)

RunStage = Callable[[type[Stage], str, int], None]


@dataclass(frozen=True)
class Chosen:
    """The documents of a synthesis."""

    documents: list[Candidate]
    reading: Counter[str]
    """Records read, eligible, and dropped by reason."""


def synthesize(
    inputs: Inputs,
    settings: Settings,
    transport: Transport,
    *,
    output: str,
    cache: str,
    workers: int,
    run_stage: RunStage,
    report: Reporter,
) -> dict[str, Any]:
    """Choose documents, check the server, ask about them, publish; returns the report.

    A synthesis that was stopped goes on. One that stopped at its budget publishes what is
    finished, and says in its report how much is not.

    Raises:
        UserError: the folder holds another synthesis, an input cannot be trusted, or the server
            failed.
    """
    if (done := claim(output, inputs, settings)) is not None:
        report.say(f"{output}: this very synthesis is there already")
        return done
    work = files.join(output, "build")
    chosen = choose(inputs, settings, work=work, workers=workers, run_stage=run_stage)
    groups = plan_tasks(chosen.documents)
    transport = replace(transport, run=uuid4().hex)
    save(work, InterviewTasks(inputs, settings, transport, groups, cache))
    n = len(chosen.documents)
    client = Client(transport, Cache(cache))
    sampling = check_sampling(client, settings, server=transport.base_url)
    for line in sampling_lines(sampling, settings):
        report.say(line)
    n_requests = N_REQUESTS + n * (1 + len(settings.judges))
    with shown(report, cache, transport, n_requests=n_requests):
        run_stage(Interview, work, 1)
    _refuse(work, len(groups), n)
    sums, reasons = publish(work, output, len(groups), settings)
    result = account(n, chosen.reading, sums, reasons, settings, transport)
    result["sampling"] = sampling.as_json()
    files.write_json(files.join(output, REPORT), result)
    return result


def claim(output: str, inputs: Inputs, settings: Settings) -> dict[str, Any] | None:
    """Take the output folder; returns the report of this very synthesis if it is finished there.

    Raises:
        UserError: the folder holds something else.
    """
    path, mine = files.join(output, "synthesis.json"), fingerprint(inputs, settings)
    if files.exists(path):
        found = files.read_json(path)
        if different := sorted(part for part in mine if found.get(part) != mine[part]):
            raise UserError(
                f"{output}: holds another synthesis; different: {', '.join(different)}. Give "
                "another --output (answers are kept apart from it, none is paid for twice)"
            )
        report = files.join(output, REPORT)
        done = files.read_json(report) if files.exists(report) else None
        return done if done and done["complete"] else None
    if names := files.list_names(output):
        raise UserError(
            f"{output}: not empty, and no synthesis (it holds {names[0]}); give another --output"
        )
    files.write_json(path, mine)
    return None


def fingerprint(inputs: Inputs, settings: Settings) -> dict[str, Any]:
    """What tells one synthesis from another, part by part."""
    listed = sorted({(f.name, f.size, f.identity) for s in inputs.splits for f in s.files})
    return {
        **settings.describe(),
        "schema": inputs.schema,
        "input files": digest(listed),
        "prompts": digest(prompt_digests()),
        "program": code_digest("pipelines"),
    }


def choose(
    inputs: Inputs, settings: Settings, *, work: str, workers: int, run_stage: RunStage
) -> Chosen:
    """Read all inputs and choose the documents, those of lowest rank."""
    save(work, ChooseTasks(inputs, settings))
    clear_faults(work)
    run_stage(ChooseDocuments, work, workers)
    raise_faults(work)
    splits = range(len(inputs.splits))
    return _chosen(
        inputs, settings, [pickle.loads(files.read_bytes(ranked_path(work, s))) for s in splits]
    )


def choose_here(inputs: Inputs, settings: Settings) -> Chosen:
    """The same without a file or a worker, for the dry run."""
    rules = {"seed": settings.seed, "min_words": settings.min_words, "limit": settings.documents}
    splits = range(len(inputs.splits))
    return _chosen(inputs, settings, [rank_documents(inputs, s, **rules) for s in splits])


def _chosen(
    inputs: Inputs, settings: Settings, ranked: list[tuple[list[Candidate], Counter[str]]]
) -> Chosen:
    lines = [counts["lines"] for _, counts in ranked]
    candidates = number_lines(inputs, [of_split for of_split, _ in ranked], lines)
    reading: Counter[str] = sum((counts for _, counts in ranked), Counter())
    del reading["lines"]
    documents = first_of_each(candidates)[: settings.documents]
    if not documents:
        raise UserError(
            f"no document has {settings.min_words:,} words (of {reading['read']:,} records read); "
            "give a lower --min-words, or the right --schema"
        )
    return Chosen(documents, reading)


def _refuse(work: str, n_tasks: int, chosen: int) -> None:
    """Stop where the server failed; what it refused is asked again by the next run."""
    names = ("uid", "reason", "unfinished", "evidence")
    rows = [
        {name: row[name] for name in names if name in row} for row in read_results(work, n_tasks)
    ]
    try:
        refuse_unfinished(rows, chosen)
    except UserError:
        for task in range(n_tasks):
            files.remove(result_path(work, task))
        raise
