"""A split → its blocks of raw records, the same blocks whoever reads them.

A block is about `BLOCK_BYTES` of uncompressed input: enough that per-call overheads vanish,
little enough that a worker's memory stays small whatever the corpus.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import files, hub
from pipelines.errors import UserError
from pipelines.records import Dropped, RawRecord, Split
from pipelines.sources import BLOCK_BYTES, compression_of
from pipelines.task_files import task_records

_READ_BYTES = 1 << 20
_ROWS = 64
_ROWS_PER_BLOCK = 1 << 16
_LARGEST_TASK_FILE = _LARGEST_ARRAY = 1 << 30
_BOM = b"\xef\xbb\xbf"


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
    """Records that could not even be held: longer than the largest allowed."""


class InputFault(UserError):
    """An input file that cannot be trusted: it stops the build."""


def read_blocks(split: Split, *, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    """Read a split.

    Args:
        split: what to read.
        max_record: bytes of the largest record that is kept.
        skip: blocks (by index) that are done already; they are passed over without parsing. It
            is asked of every block of the file in order, those of other strides too.

    Raises:
        InputFault: the file is truncated, damaged, unreadable, or not the one that was listed.
    """
    _check_unchanged(split)
    reader = {"jsonl": _lines, "parquet": _parquet, "arrow": _arrow, "text": _texts, "hub": _hub,
              "tasks": _tasks}  # fmt: skip
    try:
        with files.reachable(split.file.path):
            yield from reader[split.format](split, max_record, skip)
    except _UNREADABLE as error:
        raise _fault(split.place(), error) from error
    _check_unchanged(split)


# What the libraries raise for a damaged file; of ValueError, undecodable text and odd values.
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, pa.ArrowException)


def _fault(place: str, error: BaseException) -> InputFault:
    return InputFault(
        f"{place}: cannot be read to its end: {error}; fetch the file again or take it out of the "
        "mixture"
    )


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


def _lines(split: Split, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    if is_array(split.file.path):
        yield from _array(split, max_record, skip)
        return
    with files.open_binary(split.file.path) as raw:
        if compression_of(split.file.path):
            stream = _decompressed(raw, split.file.path)
            pieces = cut_lines(stream.read, max_record=max_record)
        else:
            pieces = _range(raw, split, max_record)
        for index, piece in enumerate(pieces):
            done = skip(index)
            if not done and index % split.strides == split.stride:
                yield line_block(index, piece, max_record)


def is_array(path: str) -> bool:
    """Whether a file that is named .json is one array of records instead of a record a line."""
    if not path.removesuffix(".zst").removesuffix(".gz").endswith(".json"):
        return False
    with files.open_binary(path) as raw:
        beginning = _decompressed(raw, path).read(64)
    return bytes(beginning).removeprefix(_BOM).lstrip()[:1] == b"["


def _array(split: Split, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    """The records of one JSON array; the split with the beginning of the file has them all."""
    if split.first:
        return
    content = _whole(split.file.path, _LARGEST_ARRAY)
    if len(content) > _LARGEST_ARRAY:
        raise ValueError(
            f"more than {_LARGEST_ARRAY:,} bytes in one JSON array; put each record on a line"
        )
    values = msgspec.json.decode(content.removeprefix(_BOM), type=list[msgspec.Raw])
    rows = (RawRecord(bytes(value), number, -1) for number, value in enumerate(values))

    def pass_over(index: int) -> bool:
        return skip(index) or index % split.strides != split.stride

    strided = split.strides > 1
    yield from _row_blocks(rows, max_record, pass_over if strided else skip)


def _decompressed(raw: Any, path: str) -> Any:
    """The content of an open file whose name says whether it is compressed."""
    compression = compression_of(path)
    if compression is None:
        return raw
    if not raw.read(1):  # the decompressor would take it for a stream of nothing
        raise EOFError(f"empty, which no {compression} file is")
    raw.seek(0)
    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression)


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of a stream, and perhaps one line behind them that is too long to hold."""

    offset: int
    data: bytes
    oversized: int = 0
    """Bytes of the line behind `data` that was passed over; 0 if there is none."""


def cut_lines(
    read: Callable[[int], bytes],
    *,
    max_record: int,
    offset: int = 0,
    target: int = BLOCK_BYTES,
) -> Iterator[Piece]:
    r"""Cut a stream at the first `\n` at or after every `target` bytes.

    Lines end at `\n` alone: other Unicode line ends (U+2028, NEL) occur inside real records.
    Memory stays under `target + max_record` and a few read buffers.
    """
    buffer = bytearray()
    while chunk := read(_READ_BYTES):
        buffer += chunk
        while len(buffer) >= target:
            end = buffer.find(b"\n", target - 1) + 1
            if end:
                yield Piece(offset, bytes(buffer[:end]))
                offset += end
                del buffer[:end]
                continue
            start = buffer.rfind(b"\n", 0, target) + 1
            if len(buffer) - start <= max_record:
                break
            lines, length = bytes(buffer[:start]), len(buffer) - start
            buffer.clear()
            while not buffer and (chunk := read(_READ_BYTES)):
                end = chunk.find(b"\n") + 1
                length += end or len(chunk)
                buffer += chunk[end:] if end else b""
                if end:
                    break
            yield Piece(offset, lines, length)
            offset += start + length
    if buffer:
        yield Piece(offset, bytes(buffer))


def _range(raw: Any, split: Split, max_record: int) -> Iterator[Piece]:
    """The lines that begin in [first, last) of a plain file, as one piece."""
    start = split.first
    if start:
        start -= 1  # the line that holds byte first - 1 belongs to the split before
        raw.seek(start)
        found = False
        while not found and start < split.last and (chunk := raw.read(_READ_BYTES)):
            end = chunk.find(b"\n") + 1
            found, start = bool(end), start + (end or len(chunk))
        if not found or start >= split.last:
            return
        raw.seek(start)
    yield from _first(
        cut_lines(raw.read, max_record=max_record, offset=start, target=split.last - start)
    )


def _first(pieces: Iterator[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        return


def line_block(index: int, piece: Piece, max_record: int) -> Block:
    """A piece of a stream as a block of records, one a line; blank lines are none."""
    lines = piece.data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    records: list[RawRecord] = []
    dropped: list[Dropped] = []
    offset = piece.offset
    for number, line in enumerate(lines):
        value = line.removeprefix(_BOM) if offset == 0 else line
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


def _parquet(split: Split, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    with files.open_binary(split.file.path) as raw:
        table = pq.ParquetFile(raw)
        before = sum(table.metadata.row_group(g).num_rows for g in range(split.first))
        batches = table.iter_batches(_ROWS, row_groups=[split.first])
        yield from _row_blocks(_rows(batches, before), max_record, skip)


def _arrow(split: Split, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    with files.open_binary(split.file.path) as raw:
        magic = raw.read(6)
        raw.seek(0)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(pa.PythonFile(raw, "r"))
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(pa.PythonFile(raw, "r")))
        yield from _row_blocks(_rows(batches, 0), max_record, skip)


def _rows(batches: Iterator[pa.RecordBatch], number: int) -> Iterator[RawRecord]:
    for batch in batches:
        for small in (batch.slice(i, _ROWS) for i in range(0, batch.num_rows, _ROWS)):
            # As binary: a string column with invalid UTF-8 must cost one record, not the file.
            columns = [column.cast(_binary(column.type)) for column in small.columns]
            for values in zip(*(column.to_pylist() for column in columns), strict=True):
                yield RawRecord(dict(zip(small.schema.names, values, strict=True)), number, -1)
                number += 1


def _binary(kind: pa.DataType) -> pa.DataType:
    """The same type with bytes in the place of strings, at any depth."""
    if pa.types.is_dictionary(kind):
        return _binary(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_binary(f.type)) for f in kind.fields])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_binary(kind.value_type)))
    return kind


def _hub(split: Split, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    yield from _row_blocks(_hub_rows(split), max_record, skip)


def _hub_rows(split: Split) -> Iterator[RawRecord]:
    records = enumerate(hub.read_shard(split.file.path))
    while True:
        try:
            number, value = next(records)
        except StopIteration:
            return
        except Exception as error:  # datasets and its readers raise many kinds
            raise _fault(split.place(), error) from error
        yield RawRecord(value, number, -1)


def _row_blocks(
    rows: Iterator[RawRecord], max_record: int, skip: Callable[[int], bool]
) -> Iterator[Block]:
    """Gather rows into blocks of about `BLOCK_BYTES`."""
    records: list[RawRecord] = []
    dropped: list[Dropped] = []
    size = index = 0
    for row in rows:
        length = _text_size(row.value)
        if length > max_record:
            dropped.append(_too_large(length, row.line, -1))
        else:
            records.append(row)
            size += length
        if size >= BLOCK_BYTES or len(records) + len(dropped) >= _ROWS_PER_BLOCK:
            if not skip(index):
                yield Block(index, 0, size, records, dropped)
            records, dropped, size, index = [], [], 0, index + 1
    if (records or dropped) and not skip(index):
        yield Block(index, 0, size, records, dropped)


def _text_size(value: Any) -> int:
    """Characters or bytes of all strings in a row, nested ones too."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_text_size, value.values()))
    return sum(map(_text_size, value)) if isinstance(value, list) else 0


def _texts(split: Split, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    """Small text files, one document each, as one block."""
    if skip(0):
        return
    records: list[RawRecord] = []
    dropped: list[Dropped] = []
    size = 0
    for number, file in enumerate(split.files):
        try:
            data = _whole(file.path, max_record)
        except _UNREADABLE as error:
            raise _fault(file.name, error) from error
        if len(data) > max_record:
            dropped.append(_too_large(file.size, 0, 0, number))
        else:
            value = {"text": data.removeprefix(_BOM), "name": os.path.basename(file.path)}
            records.append(RawRecord(value, 0, 0, number))
        size += len(data)
    yield Block(0, 0, size, records, dropped)


def _tasks(split: Split, max_record: int, skip: Callable[[int], bool]) -> Iterator[Block]:
    """A task file of Natural Instructions: one JSON object with many instances."""
    content = _whole(split.file.path, _LARGEST_TASK_FILE)
    if len(content) > _LARGEST_TASK_FILE:
        raise ValueError(f"more than {_LARGEST_TASK_FILE:,} bytes, too many for a task file")
    rows = task_records(content.removeprefix(_BOM), split.file.name)
    yield from _row_blocks(rows, max_record, skip)


def _whole(path: str, max_record: int) -> bytes:
    """A file's content, or its first max_record + 1 bytes and perhaps some more."""
    with files.open_binary(path) as raw:
        stream = _decompressed(raw, path)
        data = bytearray()
        while len(data) <= max_record and (chunk := stream.read(_READ_BYTES)):
            data += chunk
        return bytes(data)
