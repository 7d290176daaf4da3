"""Tables → rows: Parquet, Arrow, CSV and what `datasets` streams. Only the columns asked for are
read, and no value of any of them stops a build.
"""

import csv
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import InputFault
from pipelines.lines import BOM, READ_BYTES
from pipelines.records import Dropped, RawRecord

Columns = frozenset[str] | None
"""Names of the columns that are needed; None for all."""

_ROWS = 64
_UNCONVERTIBLE = (ArithmeticError, LookupError, ValueError, pa.ArrowException)
"""What pyarrow raises for values that Python has no type for: far dates, unknown time zones,
undecodable text, two entries of a map with one key."""


def parquet_rows(table: pq.ParquetFile, group: int, columns: Columns) -> Iterator[RawRecord]:
    """The rows of one row group, counted from the beginning of the file."""
    names = _chosen(table.schema_arrow.names, columns)
    before = sum(table.metadata.row_group(g).num_rows for g in range(group))
    batches = table.iter_batches(_ROWS, row_groups=[group], columns=names)
    return table_rows(batches, columns, before)


def arrow_rows(raw: Any, columns: Columns) -> Iterator[RawRecord]:
    """The rows of an open Arrow IPC file or stream."""
    magic = raw.read(6)
    raw.seek(0)
    is_file = magic == b"ARROW1"
    reader = pa.ipc.open_file if is_file else pa.ipc.open_stream
    names = reader(pa.PythonFile(raw, "r")).schema.names
    raw.seek(0)
    fields = [i for i, name in enumerate(names) if columns is None or name in columns]
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    if not fields:  # an empty list stands for all
        options = pa.ipc.IpcReadOptions(included_fields=[0])
    opened = reader(pa.PythonFile(raw, "r"), options=options)
    batches = map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened
    return table_rows(batches, columns, 0)


def _chosen(names: Iterable[str], columns: Columns) -> list[str]:
    return [name for name in names if columns is None or name in columns]


def table_rows(
    batches: Iterable[pa.RecordBatch], columns: Columns, number: int
) -> Iterator[RawRecord]:
    """The rows of batches as mappings, the first of them with this number.

    Texts are bytes: a column with invalid UTF-8 must cost one record, not the file.
    """
    for batch in batches:
        chosen = [i for i, n in enumerate(batch.schema.names) if columns is None or n in columns]
        names = [batch.schema.names[i] for i in chosen]
        for small in (batch.slice(i, _ROWS) for i in range(0, batch.num_rows, _ROWS)):
            lists = [_values(small.column(i)) for i in chosen]
            rows = zip(*lists, strict=True) if lists else ((),) * small.num_rows
            for values in rows:
                yield RawRecord(dict(zip(names, values, strict=True)), number, -1)
                number += 1


def _values(column: pa.Array) -> list[Any]:
    """A column as Python's own values, with bytes for texts."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    with suppress(pa.ArrowException):  # some types have no cast to themselves
        column = column.cast(_binary(column.type))
    try:
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except _UNCONVERTIBLE:
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: Any) -> Any:
    """A value that Python may have no type for: then it is the text that Arrow makes of it."""
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except _UNCONVERTIBLE:
        kind: pa.DataType = scalar.type
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _value(scalar[i]) for i in range(kind.num_fields)}
    if pa.types.is_nested(kind):
        return [_value(item) for item in scalar.values]
    return _value(scalar.value) if pa.types.is_dictionary(kind) else _text(scalar, kind)


def _text(scalar: Any, kind: pa.DataType) -> Any:
    """A value as text, in bytes where it is text already; times are in UTC."""
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    try:
        if pa.types.is_timestamp(kind):
            scalar = scalar.cast(pa.timestamp(kind.unit))  # without a zone that nobody knows
        return scalar.cast(pa.binary() if is_text else pa.string()).as_py()
    except pa.ArrowException:
        return repr(scalar)


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


def csv_rows(
    stream: Any, name: str, *, delimiter: str, columns: Columns, max_record: int
) -> Iterator[RawRecord | Dropped]:
    """The rows of a CSV file as mappings from the names in its first row to bytes.

    Quotes are as RFC 4180 has them. A row with another number of cells than the first is dropped.

    Raises:
        InputFault: quotes are not closed or not doubled, so that nothing tells where rows end; or
            the first row names a column twice.
    """
    csv.field_size_limit(max_record)  # of the process; the library knows no other
    rows = csv.reader(_decoded(stream, name, max_record), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise InputFault(
                f"{name}: the row that begins in line {line}: {error}: quotes are not closed or "
                "not doubled, so nothing tells where rows end; write the file again with a CSV "
                "library (RFC 4180), or fetch it again if it was cut off"
            ) from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = cells
            if twice := sorted({cell for cell in cells if cells.count(cell) > 1}):
                raise InputFault(
                    f"{name}: the first row, which names the columns, has {twice[0]!r} twice; "
                    "rename one of them"
                )
            continue
        if len(cells) == len(header):
            row = {
                column: cell.encode(errors="surrogateescape")
                for column, cell in zip(header, cells, strict=True)
                if columns is None or column in columns
            }
            yield RawRecord(row, number, -1)
        else:
            evidence = f"{len(cells)} cells, the first row has {len(header)}"
            yield Dropped("invalid_csv", evidence, number, -1, 0)
        number += 1


def _decoded(stream: Any, name: str, max_record: int) -> Iterator[str]:
    """The lines of a stream with their ends; bytes that are no UTF-8 can be had back of them."""
    rest, is_first = b"", True
    while chunk := stream.read(READ_BYTES):
        if is_first:
            chunk, is_first = chunk.removeprefix(BOM), False
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield (line + b"\n").decode(errors="surrogateescape")
        if len(rest) > max_record:
            raise InputFault(
                f"{name}: a line of more than {max_record:,} bytes, which no record may have; end "
                "lines with line feeds, or raise max_record_mib"
            )
    if rest:
        yield rest.decode(errors="surrogateescape")
