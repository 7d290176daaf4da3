"""The stages of a build, as tasks that any worker can run in any order.

A stage reads what it needs from the build's work folder and writes files whose names and bytes
depend on the task alone. So a task may run twice, or be killed, without harm. No Beam here: the
wiring is in `transforms.py`.
"""

import errno
import pickle
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from pipelines import files
from pipelines.candidates import BlockComparer
from pipelines.errors import FaultsError, InputFault, UserError
from pipelines.gather import describe_rows, fill_rows, shard_segments, write_shard
from pipelines.job import program_digest
from pipelines.mixture import Mixture
from pipelines.prepare import Preparer
from pipelines.prepare_spec import PrepareSpec
from pipelines.readers import Block, read_blocks
from pipelines.records import Split
from pipelines.rows import lay_out
from pipelines.shards import shard_name
from pipelines.store import TokenReader, batch_path, split_key, write_batch, write_end
from pipelines.tokenizer import Tokenizer, load_tokenizer


class Stage(Protocol):
    """One kind of work."""

    def __init__(self, work: str) -> None: ...

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        """Numbers of the tasks to do."""
        ...

    def run(self, task: int) -> None:
        """Do one task."""
        ...


@contextmanager
def explain_full_disk(path: str) -> Generator[None]:
    """A full disk is the user's to mend; other errors of the system are not explained here."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{path}: no space left on the device; what is finished is kept: make room and run the "
            "same command again"
        ) from error


@contextmanager
def leave_fault(work: str, split: Split) -> Generator[None]:
    """A file that cannot be trusted leaves a fault for the driver, so that all are found."""
    try:
        yield
    except InputFault as fault:
        path = files.join(work, "faults", uuid.uuid4().hex)
        files.write_json(path, {"place": split.place(), "fault": str(fault)})


def clear_faults(work: str) -> None:
    """Forget the faults that were left."""
    files.remove(files.join(work, "faults"))


def raise_faults(work: str) -> None:
    """Stop a build whose inputs left faults.

    Raises:
        FaultsError: there are some; all are named.
    """
    folder = files.join(work, "faults")
    faults = {
        files.read_json(files.join(folder, name))["fault"] for name in files.list_names(folder)
    }
    if faults:
        raise FaultsError("input that cannot be trusted", sorted(faults))


def missing_blocks(
    split: Split, folder: str, *, max_record: int, columns: Callable[[str], bool]
) -> Iterator[tuple[Block, str]]:
    """The blocks of a split that a folder has no batch of, and the paths of their batches.

    `columns` says which columns of tables are needed; it is asked when one is opened. When all
    blocks are done it is noted how many the split has.
    """
    key = split_key(split)
    done = {name for name in files.list_names(folder) if name.startswith(key)}
    seen = -1

    def skip(index: int) -> bool:
        nonlocal seen
        seen = index
        return f"{key}-{index:05d}.arrow" in done

    for block in read_blocks(split, max_record=max_record, skip=skip, columns=columns):
        yield block, batch_path(folder, key, block.index)
        seen = block.index
    write_end(folder, key, seen + 1)


@dataclass(frozen=True)
class PrepareTasks:
    """What the prepare stage needs; kept in the work folder."""

    splits: list[Split]
    specs: dict[str, PrepareSpec]
    """By source."""

    stores: dict[str, str]
    """Folder of each source's batches."""

    engine: str
    """The tokenizer engine that was proved to agree with the reference."""


def save_tasks(work: str, name: str, tasks: Any) -> None:
    """Keep what a stage needs where its workers find it."""
    content = program_digest().encode() + pickle.dumps(tasks)
    files.write_bytes(files.join(work, f"{name}.pickle"), content)


def load_tasks(work: str, name: str) -> Any:
    """What `save_tasks` kept.

    Raises:
        UserError: another version of this program kept it.
    """
    program = program_digest().encode()
    content = files.read_bytes(files.join(work, f"{name}.pickle"))
    if not content.startswith(program):
        raise UserError(
            "a worker runs another version of this program than the command that started it; "
            "install the same one on the workers"
        )
    return pickle.loads(content[len(program) :])


class Prepare:
    """Input splits → batches of the token store."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._tasks: PrepareTasks = load_tasks(work, "prepare")
        self._tokenizer: Tokenizer | None = None
        self._preparers: dict[str, Preparer] = {}

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        """One task a split."""
        yield from range(len(load_tasks(work, "prepare").splits))

    def run(self, task: int) -> None:
        """Prepare one split; a file that cannot be trusted leaves a fault for the driver."""
        split = self._tasks.splits[task]
        folder = self._tasks.stores[split.source]
        with leave_fault(self._work, split), explain_full_disk(folder):
            self._prepare(split)

    def _prepare(self, split: Split) -> None:
        folder, spec = self._tasks.stores[split.source], self._tasks.specs[split.source]
        blocks = missing_blocks(
            split,
            folder,
            max_record=spec.max_record,
            columns=lambda name: self._preparer(split.source).needs_column(name),
        )
        for block, path in blocks:
            prepared = self._preparer(split.source).prepare(block, split.files)
            write_batch(path, prepared, block)

    def _preparer(self, source: str) -> Preparer:
        spec = self._tasks.specs[source]
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(spec.tokenizer, proved=self._tasks.engine)
        if source not in self._preparers:
            self._preparers[source] = Preparer(spec, self._tokenizer)
        return self._preparers[source]


@dataclass(frozen=True)
class CompareTasks:
    """What the compare stage needs."""

    splits: list[Split]
    specs: dict[str, PrepareSpec]
    """By source."""

    folders: dict[str, str]
    """Folder of each source's candidates."""


class Compare:
    """Input splits → the documents of tasks that resemble benchmark inputs (`candidates.py`)."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._tasks: CompareTasks = load_tasks(work, "compare")
        self._comparers: dict[str, BlockComparer] = {}

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        """One task a split."""
        yield from range(len(load_tasks(work, "compare").splits))

    def run(self, task: int) -> None:
        """Compare the documents of one split; faults are left as by the prepare stage."""
        split = self._tasks.splits[task]
        folder, spec = self._tasks.folders[split.source], self._tasks.specs[split.source]
        with leave_fault(self._work, split), explain_full_disk(folder):
            if split.source not in self._comparers:
                self._comparers[split.source] = BlockComparer(spec)
            comparer = self._comparers[split.source]
            blocks = missing_blocks(
                split, folder, max_record=spec.max_record, columns=comparer.needs_column
            )
            for block, path in blocks:
                table = comparer.compare(block, split.files)
                files.write_table(f"{path}.arrow", table)


@dataclass(frozen=True)
class PackTasks:
    """What the pack stage needs."""

    mixture: Mixture
    groups: list[str]
    """Source of each group."""


def group_path(work: str, number: int) -> str:
    """Documents of a packing group."""
    return files.join(work, f"group-{number:05d}.arrow")


def layout_path(work: str, number: int) -> str:
    """Segments of a packing group's sequences."""
    return files.join(work, f"layout-{number:05d}.arrow")


class Pack:
    """Groups of documents → layouts of sequences. Lengths only; no token moves."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._tasks: PackTasks = load_tasks(work, "pack")

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        """One task a group."""
        yield from range(len(load_tasks(work, "pack").groups))

    def run(self, task: int) -> None:
        """Lay out one group."""
        documents = files.read_table(group_path(self._work, task))
        mixture = self._tasks.mixture
        source = mixture.sources[self._tasks.groups[task]]
        eos = int(mixture.tokenizer.eos is not False)
        layout = lay_out(documents, source, seq_len=mixture.seq_len, eos=eos)
        with explain_full_disk(self._work):
            files.write_table(layout_path(self._work, task), layout)


@dataclass(frozen=True)
class WriteTasks:
    """What the write stage needs."""

    output: str
    n_sequences: int
    sequences_per_shard: int
    seq_len: int
    token_type: str
    batch_paths: list[str]


def order_path(work: str) -> str:
    """The training order."""
    return files.join(work, "order.arrow")


class Write:
    """Layouts and the token store → shards."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._tasks: WriteTasks = load_tasks(work, "write")
        self._order = files.read_table(order_path(work))
        self._reader = TokenReader(self._tasks.token_type)

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        """One task a shard."""
        tasks: WriteTasks = load_tasks(work, "write")
        yield from range(-(-tasks.n_sequences // tasks.sequences_per_shard))

    def run(self, task: int) -> None:
        """Write one shard, unless it is there."""
        tasks = self._tasks
        path = files.join(tasks.output, shard_name(task))
        if files.exists(f"{path}.meta.arrow"):
            return
        order = self._order.slice(task * tasks.sequences_per_shard, tasks.sequences_per_shard)
        groups = {g: self._layout(g) for g in set(order["group"].to_pylist())}
        segments = shard_segments(order, groups)
        rows = fill_rows(
            segments,
            tasks.batch_paths,
            n_rows=len(order),
            seq_len=tasks.seq_len,
            reader=self._reader,
            token_type=tasks.token_type,
        )
        with explain_full_disk(tasks.output):
            write_shard(path, rows, describe_rows(segments, order, rows))

    def _layout(self, group: int) -> pa.Table:
        return files.read_table(layout_path(self._work, group))
