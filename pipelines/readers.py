"""A split → its blocks of raw records, the same blocks whoever reads them.

A block is about `BLOCK_BYTES` of uncompressed input: enough that per-call overheads vanish,
little enough that a worker's memory stays small whatever the corpus.
"""

import lzma
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipelines import files
from pipelines.compression import decompressed
from pipelines.errors import InputFault, UserError
from pipelines.lines import BOM, READ_BYTES, Piece, is_array, line_pieces
from pipelines.records import Dropped, RawRecord, Split
from pipelines.sources import BLOCK_BYTES
from pipelines.table_readers import (
    ArrowBatches,
    Columns,
    Table,
    csv_table,
    hub_table,
    parquet_table,
    table_rows,
)
from pipelines.task_files import task_records
from pipelines.whole_files import tar_rows, text_of

_ROWS_PER_BLOCK = 1 << 16
_LARGEST_TASK_FILE = _LARGEST_ARRAY = 1 << 30

Rows = Iterator[RawRecord | Dropped]


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive records of a split."""

    index: int
    """Place among the blocks of the split, from 0."""

    n_lines: int
    """Lines of the file that the block covers (0 for tables: they count rows themselves)."""

    n_bytes: int
    records: list[RawRecord] = field(repr=False)
    dropped: list[Dropped] = field(repr=False)
    """Records that could not even be held: longer than the largest allowed, or no row."""

    n_file_bytes: int = 0
    """Bytes of the files, compressed where they are, that this block and those before it take up;
    0 for JSON lines and hub data sets."""

    unread: frozenset[str] = frozenset()
    """Columns of the table that were not asked for."""


def read_blocks(
    split: Split, *, max_record: int, skip: Callable[[int], bool], columns: Columns = None
) -> Iterator[Block]:
    """Read a split.

    Args:
        split: what to read.
        max_record: bytes of the largest record that is kept.
        skip: blocks (by index) that are done already; they are passed over without parsing. It
            is asked of every block of the file in order, those of other strides too.
        columns: of tables, which are needed; None for all. JSON comes as it stands.

    Raises:
        InputFault: the file is truncated, damaged, unreadable, or not the one that was listed.
    """
    _check_unchanged(split)
    readers = {
        "jsonl": _lines, "parquet": _parquet, "arrow": _arrow, "text": _texts, "html": _texts,
        "hub": _hub, "tasks": _tasks, "csv": _csv, "tsv": _csv, "tar": _tar,
    }  # fmt: skip
    try:
        with files.reachable(split.file.path):
            yield from readers[split.format](split, max_record, skip, columns)
    except _UNREADABLE as error:
        raise _fault(split.place(), error, split.file.path) from error
    _check_unchanged(split)


# What the libraries raise for a damaged file; of ValueError, undecodable text and odd values.
_UNREADABLE = (
    OSError, EOFError, ValueError, OverflowError, MemoryError, pa.ArrowException,
    lzma.LZMAError, zstandard.ZstdError,
)  # fmt: skip


def _fault(place: str, error: BaseException, path: str) -> InputFault:
    return InputFault(f"{place}: cannot be read to its end: {error}; {_way_out(error, path)}")


def _way_out(error: BaseException, path: str) -> str:
    """What mends it. Damaged bytes have to be fetched again, and nothing else has."""
    aside = "or take it out of the mixture"
    match error:
        case PermissionError():
            way = f"give the user that runs the build the permission to read it, {aside}"
        case FileNotFoundError():
            way = "it was moved or removed while it was read; run again when it stays"
        case MemoryError():
            way = "give the worker more memory, or fetch the file again if it is damaged"
        case pa.ArrowNotImplementedError():
            way = f"pyarrow does not read this; write the file in another type or codec, {aside}"
        case OSError() if "encrypt" in str(error):
            way = f"write the file without encryption, {aside}"
        case OSError() if not files.is_local(path):
            way = "run again; if it fails at the same place, the file is damaged"
        case OSError(errno=int()):
            way = "the disk or its network failed; run again when it works"
        case OSError() | EOFError() | pa.ArrowInvalid() | lzma.LZMAError() | zstandard.ZstdError():
            way = f"fetch the file again {aside}"
        case _:
            way = f"mend the file {aside}"
    return way


def _check_unchanged(split: Split) -> None:
    for file in split.files if split.format != "hub" else ():
        try:
            identity = files.identity(file.path)
        except OSError as error:
            raise InputFault(f"{file.name}: listed, but now unreadable: {error}") from error
        if identity != file.identity:
            raise InputFault(
                f"{file.name}: changed since it was listed (size:time {file.identity}, now "
                f"{identity}); run again when nothing writes to it any more"
            )


def _lines(
    split: Split, max_record: int, skip: Callable[[int], bool], columns: Columns
) -> Iterator[Block]:
    del columns  # lines are cut here and parsed elsewhere
    if is_array(split.file.path):
        yield from _array(split, max_record, skip)
        return
    for index, piece in enumerate(line_pieces(split, max_record)):
        done = skip(index)
        if not done and index % split.strides == split.stride:
            yield line_block(index, piece, max_record)


def _array(split: Split, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    """The records of one JSON array; the split with the beginning of the file has them all."""
    if split.first:
        return
    content = _whole(split.file.path, _LARGEST_ARRAY)
    if len(content) > _LARGEST_ARRAY:
        raise InputFault(
            f"{split.place()}: more than {_LARGEST_ARRAY:,} bytes in one JSON array; put each "
            "record on a line"
        )
    values = msgspec.json.decode(content.removeprefix(BOM), type=list[msgspec.Raw])
    rows = (RawRecord(bytes(value), number, -1) for number, value in enumerate(values))

    def pass_over(index: int) -> bool:
        return skip(index) or index % split.strides != split.stride

    counted = _Counted(rows, split.file.size / max(len(values), 1))
    yield from _row_blocks(counted, max_record, pass_over, counted.tell)


def line_block(index: int, piece: Piece, max_record: int) -> Block:
    """A piece of a stream as a block of records, one a line; blank lines are none."""
    lines = piece.data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    records: list[RawRecord] = []
    dropped: list[Dropped] = []
    offset = piece.offset
    for number, line in enumerate(lines):
        value = line.removeprefix(BOM) if offset == 0 else line
        if len(line) > max_record:
            dropped.append(_too_large(len(line), number, offset))
        elif value and not value.isspace():
            records.append(RawRecord(value, number, offset))
        offset += len(line) + 1
    if piece.oversized:
        dropped.append(_too_large(piece.oversized, len(lines), piece.offset + len(piece.data)))
    n_lines = len(lines) + (1 if piece.oversized else 0)
    return Block(index, n_lines, len(piece.data) + piece.oversized, records, dropped)


def _too_large(size: int, line: int, offset: int, file: int = 0) -> Dropped:
    return Dropped("record_too_large", f"{size} bytes", line, offset, file)


class _Counted:
    """Rows of a file, each of which takes up the same share of its bytes."""

    def __init__(self, rows: Rows, n_bytes: float) -> None:
        self._rows = rows
        self._n_bytes = n_bytes
        self._n = 0

    def __iter__(self) -> Rows:
        for row in self._rows:
            self._n += 1
            yield row

    def tell(self) -> int:
        """Bytes of the rows that were taken."""
        return round(self._n * self._n_bytes)


def _parquet(
    split: Split, max_record: int, skip: Callable[[int], bool], columns: Columns
) -> Iterator[Block]:
    with files.open_binary(split.file.path) as raw:
        file = pq.ParquetFile(raw)
        share = split.file.size / max(file.metadata.num_rows, 1)
        table = parquet_table(file, split.first, columns)
        rows = _Counted(table.rows, share)
        yield from _row_blocks(rows, max_record, skip, rows.tell, table.unread)


def _arrow(
    split: Split, max_record: int, skip: Callable[[int], bool], columns: Columns
) -> Iterator[Block]:
    with files.open_binary(split.file.path) as raw:
        batches = ArrowBatches(raw, columns, split.file.size)
        rows = table_rows(batches, batches.needed, 0)
        yield from _row_blocks(rows, max_record, skip, batches.tell, batches.unread)


def _csv(
    split: Split, max_record: int, skip: Callable[[int], bool], columns: Columns
) -> Iterator[Block]:
    with files.open_binary(split.file.path) as raw:
        stream = decompressed(raw, split.file.path)  # closes `raw` where it is no longer held
        table = csv_table(
            stream,
            split.file.name,
            delimiter="," if split.format == "csv" else "\t",
            columns=columns,
            max_record=max_record,
        )
        yield from _row_blocks(table.rows, max_record, skip, raw.tell, table.unread)


def _tar(
    split: Split, max_record: int, skip: Callable[[int], bool], columns: Columns
) -> Iterator[Block]:
    del columns  # members that are neither JSON nor text are not read anyway
    with files.open_binary(split.file.path) as raw:
        stream = decompressed(raw, split.file.path)
        rows = tar_rows(stream, split.file.name, max_record=max_record)
        yield from _row_blocks(rows, max_record, skip, raw.tell)


def _hub(
    split: Split, max_record: int, skip: Callable[[int], bool], columns: Columns
) -> Iterator[Block]:
    def rows(table: Table) -> Rows:
        with _hub_faults(split):
            yield from table.rows

    with _hub_faults(split):
        table = hub_table(split.file.path, columns)
    yield from _row_blocks(rows(table), max_record, skip, lambda: 0, table.unread)


@contextmanager
def _hub_faults(split: Split) -> Generator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # datasets and its readers raise many kinds
        raise InputFault(
            f"{split.place()}: cannot be read to its end: {type(error).__name__}: {error}; run "
            "again if the network failed, or download the files and name their folder"
        ) from error


def _row_blocks(
    rows: Iterable[RawRecord | Dropped],
    max_record: int,
    skip: Callable[[int], bool],
    tell: Callable[[], int],
    unread: frozenset[str] = frozenset(),
) -> Iterator[Block]:
    """Gather rows into blocks of about `BLOCK_BYTES`; `tell` says how far in the file they are."""
    records: list[RawRecord] = []
    dropped: list[Dropped] = []
    size = index = 0
    for row in rows:
        if isinstance(row, Dropped):
            dropped.append(row)
        elif (length := _text_size(row.value)) > max_record:
            dropped.append(_too_large(length, row.line, -1))
        else:
            records.append(row)
            size += length
        if size >= BLOCK_BYTES or len(records) + len(dropped) >= _ROWS_PER_BLOCK:
            if not skip(index):
                yield Block(index, 0, size, records, dropped, tell(), unread)
            records, dropped, size, index = [], [], 0, index + 1
    if (records or dropped) and not skip(index):
        yield Block(index, 0, size, records, dropped, tell(), unread)


def _text_size(value: Any) -> int:
    """Characters or bytes of all strings in a row, nested ones too."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_text_size, value.values()))
    return sum(map(_text_size, value)) if isinstance(value, list) else 0


def _texts(
    split: Split, max_record: int, skip: Callable[[int], bool], columns: Columns
) -> Iterator[Block]:
    """Small files of text or web pages, one document each, as one block."""
    del columns
    if skip(0):
        return
    records: list[RawRecord] = []
    dropped: list[Dropped] = []
    size = 0
    for number, file in enumerate(split.files):
        try:
            data = _whole(file.path, max_record)
        except _UNREADABLE as error:
            raise _fault(file.name, error, file.path) from error
        if len(data) > max_record:
            dropped.append(_too_large(file.size, 0, 0, number))
        else:
            text = text_of(data, is_page=split.format == "html")
            value = {"text": text, "name": os.path.basename(file.path)}
            records.append(RawRecord(value, 0, 0, number))
        size += len(data)
    yield Block(0, 0, size, records, dropped, sum(file.size for file in split.files))


def _tasks(
    split: Split, max_record: int, skip: Callable[[int], bool], columns: Columns
) -> Iterator[Block]:
    """A task file of Natural Instructions: one JSON object with many instances."""
    del columns
    content = _whole(split.file.path, _LARGEST_TASK_FILE)
    if len(content) > _LARGEST_TASK_FILE:
        raise InputFault(
            f"{split.place()}: more than {_LARGEST_TASK_FILE:,} bytes, too many for a task file; "
            "cut it into several"
        )
    rows = task_records(content.removeprefix(BOM), split.file.name)
    yield from _row_blocks(rows, max_record, skip, lambda: split.file.size)


def _whole(path: str, max_record: int) -> bytes:
    """A file's content, or its first max_record + 1 bytes and perhaps some more."""
    with files.open_binary(path) as raw:
        stream = decompressed(raw, path)
        data = bytearray()
        while len(data) <= max_record and (chunk := stream.read(READ_BYTES)):
            data += chunk
        return bytes(data)
