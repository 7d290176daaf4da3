"""Input files → long documents: which are chosen, and where they are found again."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from pipelines.listing import list_files
from pipelines.mixture import Source
from pipelines.readers import Block, read_blocks
from pipelines.records import Document, Dropped, RawRecord, Split
from pipelines.schemas import SCHEMAS, column_chooser, document_parser
from pipelines.sources import plan_splits
from pipelines.synthesis.chunks import document_uid, rank

MAX_RECORD = 64 << 20
"""Bytes of the largest record that is read."""

PER_TASK = 64
"""Documents of one task at most."""


class Candidate(NamedTuple):
    """A document that may be chosen. In the order of fields, the first of them are."""

    rank: int
    uid: bytes
    split: int
    block: int
    place: int
    """Among the records of its block."""

    line: int
    """Of its file, from 1; of its split until `number_lines`."""

    n_words: int
    n_bytes: int


class Found(NamedTuple):
    """A document, and where it is."""

    uid: bytes
    document: Document
    file: str
    line: int


@dataclass(frozen=True)
class Inputs:
    """Where documents come from."""

    splits: list[Split]
    schema: str


def list_inputs(paths: Sequence[str], schema: str) -> Inputs:
    """The input files, cut into splits.

    Raises:
        UserError: a path names nothing that can be read.
    """
    source = Source.model_validate({"weight": 1, "path": list(paths), "schema": schema})
    inputs = list_files(paths, root=None, any_ending=False).files
    return Inputs(plan_splits("synthesis", source, inputs), schema)


def parser_of(schema: str) -> Callable[[RawRecord], Document | Dropped]:
    """Raw records of a published schema → documents. The one place that knows how."""
    return document_parser(SCHEMAS[schema], answers_only=False)


def _blocks(inputs: Inputs, split: int, *, skip: Callable[[int], bool]) -> Iterator[Block]:
    columns = column_chooser(SCHEMAS[inputs.schema], None)
    return read_blocks(inputs.splits[split], max_record=MAX_RECORD, skip=skip, columns=columns)


def rank_documents(
    inputs: Inputs, split: int, *, seed: int, min_words: int, limit: int
) -> tuple[list[Candidate], Counter[str]]:
    """The documents of a split that rank lowest, and how many records it has of each kind.

    The counts are `lines`, `read`, `eligible`, and `dropped: REASON` for each reason.
    """
    parse = parser_of(inputs.schema)
    counts: Counter[str] = Counter()

    def candidates() -> Iterator[Candidate]:
        for block in _blocks(inputs, split, skip=lambda _: False):
            counts["read"] += len(block.records) + len(block.dropped)
            counts.update(f"dropped: {d.reason}" for d in block.dropped)
            for place, record in enumerate(block.records):
                parsed = _checked(parse(record), min_words)
                if isinstance(parsed, str):
                    counts[f"dropped: {parsed}"] += 1
                    continue
                counts["eligible"] += 1
                uid, line = document_uid(parsed.text), counts["lines"] + record.line + 1
                n_words, n_bytes = len(parsed.text.split()), len(parsed.text.encode())
                where = (split, block.index, place, line)
                yield Candidate(rank(seed, uid), uid, *where, n_words, n_bytes)
            counts["lines"] += block.n_lines

    return heapq.nsmallest(limit, _distinct(candidates())), counts


def number_lines(
    inputs: Inputs, ranked: Sequence[Sequence[Candidate]], lines: Sequence[int]
) -> list[Candidate]:
    """The candidates of all splits with the lines of their files.

    Args:
        inputs: a file's splits stand one behind the other.
        ranked: candidates by split.
        lines: of each split.
    """
    numbered: list[Candidate] = []
    before = 0
    for number, candidates in enumerate(ranked):
        file = inputs.splits[number].file.path
        if number == 0 or inputs.splits[number - 1].file.path != file:
            before = 0
        numbered += [candidate._replace(line=candidate.line + before) for candidate in candidates]
        before += lines[number]
    return numbered


def _distinct(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    seen: set[bytes] = set()
    for candidate in candidates:
        if candidate.uid not in seen:
            seen.add(candidate.uid)
            yield candidate


def _checked(parsed: Document | Dropped, min_words: int) -> Document | str:
    """The document, or why it is not eligible."""
    if isinstance(parsed, Dropped):
        return parsed.reason
    try:
        parsed.text.encode()
    except UnicodeEncodeError:
        return "lone_surrogate"
    return parsed if len(parsed.text.split()) >= min_words else "too_short"


def first_of_each(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Candidates in order, of equal texts the first."""
    ordered = sorted(candidates)
    return [next(group) for _, group in groupby(ordered, lambda c: c.uid)]


def plan_tasks(chosen: Iterable[Candidate]) -> list[list[Candidate]]:
    """Chosen documents in the order of the input, in groups that each lie in one split."""
    groups: list[list[Candidate]] = []
    ordered = sorted(chosen, key=lambda c: (c.split, c.block, c.place))
    for _, of_split in groupby(ordered, lambda c: c.split):
        group = list(of_split)
        groups += [group[i : i + PER_TASK] for i in range(0, len(group), PER_TASK)]
    return groups


def fetch(inputs: Inputs, group: Sequence[Candidate]) -> Iterator[Found]:
    """Read the documents of a task again, in the order of the input."""
    number = group[0].split
    split = inputs.splits[number]
    parse = parser_of(inputs.schema)
    wanted = {(candidate.block, candidate.place): candidate.line for candidate in group}
    blocks = {block for block, _ in wanted}
    for block in _blocks(inputs, number, skip=lambda index: index not in blocks):
        for place, record in enumerate(block.records):
            if (line := wanted.get((block.index, place))) is not None:
                document = parse(record)
                if isinstance(document, Dropped):
                    raise TypeError(f"{split.place()}: a document is gone: {document.reason}")
                uid = document_uid(document.text)
                yield Found(uid, document, split.files[document.file].name, line)
