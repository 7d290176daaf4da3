"""Documents of a block × benchmark inputs → the pairs that are most alike, as a file.

What "alike" means is decided in `decontam/likeness.py`. A file of candidates holds, of each input,
the documents of one block that resemble it most, so files can be merged in any grouping: the most
alike of a source are among the most alike of its blocks.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines import files
from pipelines.benchmark_index import load_index
from pipelines.documents import DocumentReader
from pipelines.mixture import digest
from pipelines.prepare_spec import PrepareSpec
from pipelines.readers import Block
from pipelines.records import InputFile, Split
from pipelines.store import batch_path, split_key

CANDIDATE_SCHEMA = pa.schema(
    [
        ("entry", pa.int32()),
        ("task", pa.string()),
        ("similarity", pa.float32()),
        ("kind", pa.int8()),
        ("uid", pa.binary(16)),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("words", pa.string()),
        ("passage", pa.string()),
    ]
)
"""`entry`: number of the benchmark input; `kind`: of `decontam.tasks.Kind`; `file` and `line`: the
record's, the line (JSON lines) counted within the block."""

_PASSAGE_CHARACTERS = 400
_MERGED_ROWS = 1 << 20  # candidates that are held before they are cut to the most alike


class BlockCounts(NamedTuple):
    """What a file of candidates was made of; kept in its metadata."""

    n_lines: int
    n_bytes: int
    documents: Mapping[str, int]
    """By task."""


@dataclass(frozen=True, slots=True)
class SourceCandidates:
    """The documents of a source that resemble each benchmark input most."""

    table: pa.Table
    """Rows of `CANDIDATE_SCHEMA`; `line` counted within the file, from 1."""

    documents: Mapping[str, int]
    """All documents by task."""


def candidates_digest(spec: PrepareSpec, code: str) -> str:
    """Names the folder of a source's candidates: by all that they depend on, beside the input."""
    if spec.decontam is None:
        raise ValueError("a source that is not compared has no candidates")
    abstracts = spec.abstracts.rsplit("/", 1)[-1] if spec.abstracts else None
    return digest(
        spec.documents_digest, abstracts, spec.decontam.code, spec.decontam.index_digest, code
    )


class BlockComparer:
    """Finds the candidates among the documents of one source, block by block."""

    def __init__(self, spec: PrepareSpec) -> None:
        from decontam.likeness import Comparer  # numba takes a second to import

        if spec.decontam is None:
            raise ValueError("a source that is not compared has no candidates")
        self._reader = DocumentReader(spec)
        self._comparer = Comparer(load_index(spec.decontam.index))

    def needs_column(self, name: str) -> bool:
        """Whether a column of a table has to be read."""
        return self._reader.needs_column(name)

    def compare(self, block: Block, inputs: Sequence[InputFile]) -> pa.Table:
        """The candidates of a block, with `BlockCounts`; documents without a task are none."""
        texts = [t for t in self._reader.read(block, inputs).texts if t.document.group]
        rows: list[dict[str, Any]] = []
        for text, likenesses in zip(
            texts, self._comparer.compare([t.utf8 for t in texts]), strict=True
        ):
            document = text.document
            for likeness in likenesses:
                rows.append(
                    {
                        "entry": likeness.entry,
                        "task": document.group,
                        "similarity": likeness.similarity,
                        "kind": int(likeness.kind),
                        "uid": text.uid,
                        "file": inputs[document.file].name,
                        "line": document.line + 1,
                        "words": likeness.words[:_PASSAGE_CHARACTERS],
                        "passage": likeness.passage[:_PASSAGE_CHARACTERS],
                    }
                )
        documents = Counter(text.document.group for text in texts)
        counts = BlockCounts(block.n_lines, block.n_bytes, dict(sorted(documents.items())))
        table = most_alike(pa.Table.from_pylist(rows, CANDIDATE_SCHEMA))
        return table.replace_schema_metadata({"counts": json.dumps(counts._asdict())})


def most_alike(table: pa.Table) -> pa.Table:
    """The rows of the documents that resemble each input most, in an order of their own."""
    from decontam.likeness import top_documents

    if not len(table):
        return table
    tasks = table["task"].to_pylist()
    numbers = {task: number for number, task in enumerate(sorted(set(tasks)))}
    uids = np.frombuffer(b"".join(table["uid"].to_pylist()), np.uint8).reshape(-1, 16)
    kept = top_documents(
        np.asarray(table["entry"].to_numpy(), np.int64),
        np.array([numbers[task] for task in tasks], np.int64),
        np.asarray(table["similarity"].to_numpy(), np.float32),
        uids,
    )
    return table.take(pa.array(kept))


def merge(folder: str, splits: Sequence[Split], finished: Mapping[str, int]) -> SourceCandidates:
    """The candidates of a source out of those of its blocks.

    Args:
        folder: of the candidates.
        splits: of the source, in the order of the input.
        finished: blocks of each split, by key.
    """
    held: list[pa.Table] = []
    documents: Counter[str] = Counter()
    for table, counts in _tables(folder, splits, finished):
        documents.update(counts.documents)
        held.append(table)
        if sum(map(len, held)) > _MERGED_ROWS:
            held = [most_alike(pa.concat_tables(held))]
    table = most_alike(pa.concat_tables([CANDIDATE_SCHEMA.empty_table(), *held]))
    return SourceCandidates(table, dict(sorted(documents.items())))


def _tables(
    folder: str, splits: Sequence[Split], finished: Mapping[str, int]
) -> Iterator[tuple[pa.Table, BlockCounts]]:
    """The blocks' rows with lines counted within the input file, and their counts."""
    lines: Counter[str] = Counter()
    for split in splits:
        for index in range(finished[split_key(split)]):
            table, counts = read_candidates(batch_path(folder, split_key(split), index))
            if split.format == "jsonl":
                place = table.column_names.index("line")
                moved = np.asarray(table["line"].to_numpy(), np.int64) + lines[split.file.name]
                table = table.set_column(place, "line", pa.array(moved, pa.int64()))
                lines[split.file.name] += counts.n_lines
            yield table, counts


def read_candidates(path: str) -> tuple[pa.Table, BlockCounts]:
    """The candidates of a block, and what they were made of; `path` is that of a batch."""
    table = files.read_table(f"{path}.arrow")
    counts = BlockCounts(**json.loads((table.schema.metadata or {})[b"counts"]))
    return table.replace_schema_metadata(None), counts
