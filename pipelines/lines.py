"""Files of JSON lines → pieces of whole lines, the same pieces whoever reads them."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines import files
from pipelines.compression import decompressed
from pipelines.formats import compression_of, ending_of
from pipelines.records import Split
from pipelines.sources import BLOCK_BYTES

READ_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"


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
    while chunk := read(READ_BYTES):
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
            while not buffer and (chunk := read(READ_BYTES)):
                end = chunk.find(b"\n") + 1
                length += end or len(chunk)
                buffer += chunk[end:] if end else b""
                if end:
                    break
            yield Piece(offset, lines, length)
            offset += start + length
    if buffer:
        yield Piece(offset, bytes(buffer))


def _in_range(raw: Any, split: Split, max_record: int) -> Iterator[Piece]:
    """The lines that begin in [first, last) of a plain file, as one piece."""
    start = split.first
    if start:
        start -= 1  # the line that holds byte first - 1 belongs to the split before
        raw.seek(start)
        found = False
        while not found and start < split.last and (chunk := raw.read(READ_BYTES)):
            end = chunk.find(b"\n") + 1
            found, start = bool(end), start + (end or len(chunk))
        if not found or start >= split.last:
            return
        raw.seek(start)
    pieces = cut_lines(raw.read, max_record=max_record, offset=start, target=split.last - start)
    yield from itertools.islice(pieces, 1)


def line_pieces(split: Split, max_record: int) -> Iterator[Piece]:
    """The lines of a split: those that begin in its range, or all of a compressed file."""
    with files.open_binary(split.file.path) as raw:
        if compression_of(split.file.path):
            stream = decompressed(raw, split.file.path)
            yield from cut_lines(stream.read, max_record=max_record)
        else:
            yield from _in_range(raw, split, max_record)


def is_array(path: str) -> bool:
    """Whether a file that is named .json is one array of records instead of a record a line."""
    if ending_of(path) != ".json":
        return False
    with files.open_binary(path) as raw:
        beginning = decompressed(raw, path).read(64)
    return bytes(beginning).removeprefix(BOM).lstrip()[:1] == b"["
