"""The two stages of a synthesis: documents are chosen, then asked about.

Tasks are as in `pipelines/stages.py`: each writes files whose names and bytes depend on the task
and the model's answers alone, so a task may run twice, or be killed, without harm.
"""

import json
import pickle
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from pipelines import files
from pipelines.stages import leave_fault
from pipelines.synthesis.cache import Cache
from pipelines.synthesis.client import Client
from pipelines.synthesis.documents import Candidate, Inputs, fetch, rank_documents
from pipelines.synthesis.records import Interviewer, Outcome
from pipelines.synthesis.settings import Settings, Transport

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ChooseTasks:
    """What the first stage needs."""

    inputs: Inputs
    settings: Settings


@dataclass(frozen=True)
class InterviewTasks:
    """What the second stage needs."""

    inputs: Inputs
    settings: Settings
    transport: Transport
    groups: list[list[Candidate]]
    cache: str
    """Folder of the answers."""


def save(work: str, tasks: ChooseTasks | InterviewTasks) -> None:
    """Keep what a stage needs where its workers find it."""
    files.write_bytes(files.join(work, f"{type(tasks).__name__}.pickle"), pickle.dumps(tasks))


def _load(work: str, kind: type[Any]) -> Any:
    return pickle.loads(files.read_bytes(files.join(work, f"{kind.__name__}.pickle")))


def ranked_path(work: str, split: int) -> str:
    """The lowest ranks of a split."""
    return files.join(work, f"ranked-{split:05d}.pickle")


class ChooseDocuments:
    """Input splits → the documents of each that rank lowest."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._tasks: ChooseTasks = _load(work, ChooseTasks)

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        """One task a split."""
        tasks: ChooseTasks = _load(work, ChooseTasks)
        yield from range(len(tasks.inputs.splits))

    def run(self, task: int) -> None:
        """Rank one split, unless it was; a file that cannot be trusted leaves a fault."""
        path, tasks = ranked_path(self._work, task), self._tasks
        if files.exists(path):
            return
        with leave_fault(self._work, tasks.inputs.splits[task]):
            settings = tasks.settings
            ranked = rank_documents(
                tasks.inputs, task, seed=settings.seed, min_words=settings.min_words,
                limit=settings.documents,
            )  # fmt: skip
            files.write_bytes(path, pickle.dumps(ranked))


def result_path(work: str, task: int) -> str:
    """What became of the documents of a task."""
    return files.join(work, f"result-{task:05d}.jsonl.zst")


class Interview:
    """Chosen documents → questions, answers and verdicts. One process: threads send requests."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._tasks: InterviewTasks = _load(work, InterviewTasks)
        client = Client(self._tasks.transport, Cache(self._tasks.cache))
        self._interviewer = Interviewer(client, self._tasks.settings)

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        """One task a group of documents."""
        tasks: InterviewTasks = _load(work, InterviewTasks)
        yield from range(len(tasks.groups))

    def run(self, task: int) -> None:
        """Ask about the documents of a group, unless all of them were."""
        path = result_path(self._work, task)
        if files.exists(path) and not any("unfinished" in row for row in read_rows(path)):
            return
        found = fetch(self._tasks.inputs, self._tasks.groups[task])
        outcomes = in_threads(
            self._interviewer.interview, found, n=self._tasks.transport.concurrency
        )
        model = self._tasks.settings.model
        write_rows(path, (result_row(outcome, model) for outcome in outcomes))


def result_row(outcome: Outcome, model: str) -> dict[str, Any]:
    """The record of an outcome; of an unfinished one, who it is and why."""
    if outcome.unfinished is None:
        return outcome.as_json(model)
    uid = outcome.found.uid.hex()
    return {"uid": uid, "unfinished": outcome.unfinished, "evidence": outcome.evidence}


def write_rows(path: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, compressed, atomically; equal rows are equal bytes."""
    with files.write_atomic(path) as file, pa.CompressedOutputStream(file, "zstd") as out:
        for row in rows:
            out.write(json.dumps(row, sort_keys=True).encode() + b"\n")


def read_rows(path: str) -> Iterator[dict[str, Any]]:
    """Read JSON lines that `write_rows` wrote."""
    with files.open_binary(path) as raw:
        rest = b""
        stream: Any = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
        while content := stream.read(1 << 20):
            *lines, rest = (rest + content).split(b"\n")
            yield from map(json.loads, lines)


def in_threads(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, n: int
) -> list[_Result]:
    """`work` of each item, n at a time, in the order of the items.

    The first error stops the rest and is raised. The threads are daemons: whoever stops the
    program does not wait for a slow server.
    """
    waiting: queue.SimpleQueue[tuple[int, _Item]] = queue.SimpleQueue()
    for numbered in enumerate(items):
        waiting.put(numbered)
    results: dict[int, _Result] = {}
    errors: list[BaseException] = []

    def run() -> None:
        while not errors:
            try:
                number, item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results[number] = work(item)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not errors:
            thread.join(0.05)
    if errors:
        raise errors[0]
    return [results[number] for number in sorted(results)]
