"""The stage that finds near duplicates, and what its results make of the sources."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from pipelines.corpus import Corpus
from pipelines.dedup import TASKS, Comparison, compare, near_duplicates, run_task
from pipelines.job import Job, program_digest
from pipelines.progress import Reporter
from pipelines.stages import Stage, explain_full_disk, load_tasks, save_tasks

_DOCUMENTS_PER_WORKER = 1 << 20


class FindNear:
    """Sketches in the token store → edges between near duplicates."""

    def __init__(self, work: str) -> None:
        self._comparisons: list[Comparison] = load_tasks(work, "near")

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        """Of each source the tasks whose results are not there."""
        for number, comparison in enumerate(load_tasks(work, "near")):
            yield from (number * TASKS + task for task in comparison.todo)

    def run(self, task: int) -> None:
        """Do one task of one source."""
        number, task = divmod(task, TASKS)
        with explain_full_disk(self._comparisons[number].results):
            run_task(self._comparisons[number], task)


def deduplicate(
    job: Job,
    corpora: dict[str, Corpus],
    *,
    run_stage: Callable[[type[Stage], str, int], None],
    report: Reporter,
    workers: int,
) -> dict[str, Corpus]:
    """The same sources, knowing the near duplicates of those that have `dedup`.

    What was found once is not looked for again.
    """
    comparisons = {
        s.name: compare(
            corpora[s.name], settings, store=s.store, work=job.work, program=program_digest()
        )
        for s in job.sources
        if (settings := job.mixture.sources[s.name].dedup)
    }
    if any(comparison.todo for comparison in comparisons.values()):
        save_tasks(job.work, "near", list(comparisons.values()))
        n_documents = sum(len(corpora[name].uid) for name in comparisons)
        report.say(f"near     | comparing {n_documents:,} documents with each other")
        run_stage(FindNear, job.work, min(workers, 1 + n_documents // _DOCUMENTS_PER_WORKER))
    found = {name: near_duplicates(comparison) for name, comparison in comparisons.items()}
    return corpora | {name: replace(corpora[name], near=near) for name, near in found.items()}
