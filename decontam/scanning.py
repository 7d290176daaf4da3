"""Corpora × index → every overlap, in the order of the input whatever the workers.

A worker writes the overlaps of each batch as one record batch of a file of its own; they are put
in order and completed when all are there. Memory holds a batch of text at a time.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from decontam.comparing import Outcome, ScanSpec, pairs_path, part_path, scan_unit
from decontam.corpora import Corpus, DatasetCorpus, Unit
from decontam.frequent import PAIR
from decontam.report import OVERLAP_SCHEMA, SourceTotals
from pipelines import files
from pipelines.benchmark_index import load_index
from pipelines.errors import UserError


class Found(NamedTuple):
    """The outcome of a scan."""

    totals: dict[str, SourceTotals]
    unread: dict[str, Counter[str]]
    """Records that could not be read, by corpus, and the reason."""

    pairs: npt.NDArray[np.void]
    """Of `frequent.PAIR`: n-grams and the texts that hold them; empty where none were counted."""


@dataclass
class Scan:
    """A scan of corpora: `run` it, and then write its overlaps in order."""

    corpora: Sequence[Corpus]
    spec: ScanSpec
    workers: int
    progress: Callable[[int], None]
    """Called with bytes of input that are done."""

    _outcomes: dict[int, Outcome] = field(default_factory=dict[int, Outcome])

    def run(self) -> Found:
        """Scan everything.

        Raises:
            UserError: input that cannot be trusted, or a corpus of which nothing can be read.
        """
        self._units = [unit for corpus in self.corpora for unit in corpus.units(self.workers)]
        if self.workers == 1:
            for number, unit in enumerate(self._units):
                self._outcomes[number] = scan_unit(self.spec, number, unit, self.progress)
        else:
            self._run_apart()
        return self._found()

    def _run_apart(self) -> None:
        load_index(self.spec.index)  # its faults are found before any process is started
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            order = sorted(range(len(self._units)), key=lambda i: -self._units[i].n_bytes)
            futures: dict[Future[Outcome], int] = {
                pool.submit(scan_unit, self.spec, i, self._units[i]): i for i in order
            }
            try:
                for future in as_completed(futures):
                    number = futures[future]
                    self._outcomes[number] = future.result()
                    self.progress(self._outcomes[number].n_bytes)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _found(self) -> Found:
        sums: Counter[tuple[str, str]] = Counter()
        unread: dict[str, Counter[str]] = {}
        read: Counter[str] = Counter()
        for number, unit in enumerate(self._units):
            outcome, name = self._outcomes[number], unit.corpus.name
            sums.update(outcome.totals)
            unread.setdefault(name, Counter()).update(outcome.unread)
            read[name] += sum(n for (_, what), n in outcome.totals.items() if what == "documents")
        for corpus in self.corpora:
            if isinstance(corpus, DatasetCorpus):
                sums.update({(s, "documents"): n for s, n in self._documents(corpus, sums).items()})
            elif not read[corpus.name]:
                raise UserError(_nothing_read(corpus.name, unread.get(corpus.name, Counter())))
        given = [corpus.name for corpus in self.corpora]
        names = [name for name in given if (name, "documents") in sums]
        names += sorted({source for source, _ in sums} - set(given))
        kinds = ("documents", "words", "words_removed")
        totals = {name: SourceTotals(*(sums[name, kind] for kind in kinds)) for name in names}
        return Found(totals, unread, self._pairs())

    def _documents(self, corpus: DatasetCorpus, sums: Mapping[tuple[str, str], int]) -> Any:
        """Documents where segments were counted, as a difference."""
        documents = corpus.count_documents()
        return {name: n - sums.get((name, "documents"), 0) for name, n in documents.items()}

    def _pairs(self) -> npt.NDArray[np.void]:
        if not self.spec.count_ngrams:
            return np.zeros(0, PAIR)
        return np.unique(
            np.concatenate([np.load(pairs_path(self.spec, i)) for i in self._outcomes])
        )

    def overlaps(self) -> Iterator[pa.Table]:
        """The overlaps in the order of the input, some at a time; of `OVERLAP_SCHEMA`."""
        numbered = list(enumerate(self._units))
        for corpus in self.corpora:
            own = [(number, unit) for number, unit in numbered if unit.corpus is corpus]
            lines: Counter[str] = Counter()
            for _, group in groupby(own, key=lambda pair: pair[1].number):
                for unit, n_lines, batch in self._in_order(list(group)):
                    first = lines[unit.split.file.name] if unit.split else 0
                    if unit.split:
                        lines[unit.split.file.name] += n_lines
                    if batch.num_rows:
                        yield _complete(batch, corpus, first)

    def _in_order(
        self, units: Sequence[tuple[int, Unit]]
    ) -> Iterator[tuple[Unit, int, pa.RecordBatch]]:
        """The batches of units that share a split, with the lines each covers."""
        opened = {n: pa.ipc.open_file(pa.memory_map(part_path(self.spec, n))) for n, _ in units}
        places = [
            (index, number, place, n_lines, unit)
            for number, unit in units
            for place, (index, n_lines) in enumerate(self._outcomes[number].batches)
        ]
        for _, number, place, n_lines, unit in sorted(places, key=lambda p: p[:3]):
            yield unit, n_lines, opened[number].get_batch(place)


def _nothing_read(name: str, unread: Mapping[str, int]) -> str:
    if not unread:
        return f"{name}: has no record to read; is it the right path?"
    return (
        f"{name}: none of its {sum(unread.values()):,} records can be read: {_reasons(unread)}; "
        "say how they keep their text with --schema or --fields"
    )


def unread_lines(unread: Mapping[str, Counter[str]]) -> Iterator[str]:
    """What a person should know of records that could not be read."""
    for name, reasons in unread.items():
        if reasons:
            yield f"{name}: {sum(reasons.values()):,} records cannot be read: {_reasons(reasons)}"


def _reasons(unread: Mapping[str, int]) -> str:
    """How many for each reason, with an example of the evidence."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for why, n in sorted(unread.items()):
        reason, _, evidence = why.partition(" (")
        counts[reason] += n
        examples.setdefault(reason, f" ({evidence}" if evidence else "")
    return ", ".join(f"{n:,} {reason}{examples[reason]}" for reason, n in counts.most_common())


def _complete(batch: pa.RecordBatch, corpus: Corpus, first_line: int) -> pa.Table:
    """Overlaps with the places of their documents."""
    rows = batch.to_pylist()
    if isinstance(corpus, DatasetCorpus):
        places = corpus.places(sorted({row["uid"] for row in rows}))
        for row in rows:
            place = places.get((row["source"], row["uid"]), ("", 0, ""))
            row["file"], row["line"], row["origin"] = place
    else:
        for row in rows:
            row["line"] += 1 + (first_line if row["offset"] >= 0 else 0)
    return pa.Table.from_pylist(
        [{n: row[n] for n in OVERLAP_SCHEMA.names} for row in rows], OVERLAP_SCHEMA
    )


def write_overlaps(tables: Iterator[pa.Table], path: str) -> None:
    """One Arrow file of all overlaps, written aside and renamed."""
    with files.write_atomic(path) as file, pa.ipc.new_file(file, OVERLAP_SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
