"""Tables → rows: Parquet, Arrow, CSV and what `datasets` streams. Only the columns asked for are
read, and no value of any of them stops a build.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import hub
from pipelines.errors import InputFault
from pipelines.lines import BOM, READ_BYTES
from pipelines.records import Dropped, RawRecord

Columns = Callable[[str], bool] | None
"""Whether a column is needed, by its name; None for all."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of an open table, as mappings of the columns that are needed."""

    unread: frozenset[str]
    """Names of the other columns."""

    rows: Iterator[RawRecord | Dropped]


_ROWS = 64
_UNCONVERTIBLE = (ArithmeticError, LookupError, ValueError, pa.ArrowException)
"""What pyarrow raises for values that Python has no type for: far dates, unknown time zones,
undecodable text, two entries of a map with one key."""


def _divide(names: Iterable[str], columns: Columns) -> tuple[list[str], frozenset[str]]:
    """The names of columns that are needed, and the others."""
    needed = [name for name in names if columns is None or columns(name)]
    return needed, frozenset(names) - frozenset(needed)


def parquet_table(table: pq.ParquetFile, group: int, columns: Columns) -> Table:
    """One row group; its rows are counted from the beginning of the file."""
    needed, unread = _divide(table.schema_arrow.names, columns)
    before = sum(table.metadata.row_group(g).num_rows for g in range(group))
    batches = table.iter_batches(_ROWS, row_groups=[group], columns=needed)
    return Table(unread, table_rows(batches, needed, before))


class ArrowBatches:
    """The batches of an open Arrow IPC file or stream, in small pieces."""

    def __init__(self, raw: Any, columns: Columns, n_bytes: int) -> None:
        """Open it; `n_bytes` is the size of the file."""
        is_file = raw.read(6) == b"ARROW1"
        raw.seek(0)
        opened = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.PythonFile(raw, "r"))
        names = opened.schema.names
        self.needed, self.unread = _divide(names, columns)
        places = [i for i, name in enumerate(names) if name in self.needed]
        self._options = pa.ipc.IpcReadOptions(included_fields=places or [0])  # none means all
        self._raw, self._n_bytes, self._is_file = raw, n_bytes, is_file
        self._position = 0
        raw.seek(0)

    def tell(self) -> int:
        """Bytes of the file that the pieces so far, and what is before them, take up."""
        return self._position

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        source = pa.PythonFile(self._raw, "r")
        if not self._is_file:
            for batch in pa.ipc.open_stream(source, options=self._options):
                self._position = self._raw.tell()
                yield batch
            return
        file = pa.ipc.open_file(source, options=self._options)
        n_bytes = self._n_bytes / max(file.num_record_batches, 1)
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            for first in range(0, batch.num_rows, _ROWS):
                share = min(first + _ROWS, batch.num_rows) / batch.num_rows
                self._position = round((number + share) * n_bytes)
                yield batch.slice(first, _ROWS)


def hub_table(path: str, columns: Columns) -> Table:
    """A shard of a hub data set."""
    names, read = hub.open_shard(path)
    needed, unread = _divide(names, columns)
    return Table(unread, table_rows(read(needed), needed, 0))


def table_rows(
    batches: Iterable[pa.RecordBatch], needed: Sequence[str], number: int
) -> Iterator[RawRecord]:
    """The rows of batches as mappings of some columns, the first of them with this number.

    Texts are bytes: a column with invalid UTF-8 must cost one record, not the file.
    """
    for batch in batches:
        chosen = [i for i, name in enumerate(batch.schema.names) if name in needed]
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


def csv_table(
    stream: Any, name: str, *, delimiter: str, columns: Columns, max_record: int
) -> Table:
    """A CSV file, whose first row names the columns; values are bytes.

    Quotes are as RFC 4180 has them. A row with another number of cells than the first is dropped.

    Raises:
        InputFault: the first row names a column twice; or, while rows are read, quotes are not
            closed or not doubled, so that nothing tells where rows end.
    """
    csv.field_size_limit(max_record)  # of the process; the library knows no other
    rows = _csv_rows(_decoded(stream, name, max_record), name, delimiter)
    header = next(rows, [])
    if twice := sorted({cell for cell in header if header.count(cell) > 1}):
        raise InputFault(
            f"{name}: the first row, which names the columns, has {twice[0]!r} twice; rename one"
        )
    needed, unread = _divide(header, columns)

    def records() -> Iterator[RawRecord | Dropped]:
        for number, cells in enumerate(rows):
            if len(cells) != len(header):
                evidence = f"{len(cells)} cells, the first row has {len(header)}"
                yield Dropped("invalid_csv", evidence, number, -1, 0)
                continue
            row = dict(zip(header, cells, strict=True))
            record = {column: row[column].encode(errors="surrogateescape") for column in needed}
            yield RawRecord(record, number, -1)

    return Table(unread, records())


def _csv_rows(lines: Iterator[str], name: str, delimiter: str) -> Iterator[list[str]]:
    """The rows that are not empty."""
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in rows:
            line = rows.line_num + 1
            if row:
                yield row
    except csv.Error as error:
        raise InputFault(
            f"{name}: the row that begins in line {line}: {error}: quotes are not closed or not "
            "doubled, so nothing tells where rows end; write the file again with a CSV library "
            "(RFC 4180), or fetch it again if it was cut off"
        ) from error


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
