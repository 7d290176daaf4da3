"""Compressed files as streams that say when they were cut off, whoever wrote them.

Several frames (members, streams) one behind the other are one stream, as parallel compressors and
`cat` make them.
"""

import lzma
from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa
import zstandard

from pipelines.formats import compression_of

_LARGEST_WINDOW = 1 << 27
"""Of the zstd frames that pyarrow reads: what `zstd --long` writes. `--long=31` goes beyond."""

_READ_BYTES = 1 << 16


class _Decompressor(Protocol):
    """One frame of a compressed stream."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Frames:
    """Frames of a compressed file as one stream."""

    def __init__(self, raw: Any, start: Callable[[], _Decompressor], *, padding: bytes) -> None:
        self._raw = raw
        self._start = start
        self._padding = padding
        self._frame: _Decompressor | None = None
        self._compressed = b""
        self._content = bytearray()

    def read(self, n: int) -> bytes:
        """The next n bytes of the content, fewer at its end."""
        while len(self._content) < n and (data := self._more()):
            self._content += data
        content = bytes(self._content[:n])
        del self._content[:n]
        return content

    def _more(self) -> bytes:
        """Some bytes of the content, none at its end.

        Raises:
            EOFError: the file ends within a frame.
        """
        while True:
            data = self._compressed or self._raw.read(_READ_BYTES)
            self._compressed = b""
            if self._frame is None:
                if not data:
                    return b""
                if not (data := data.lstrip(self._padding)):
                    continue
                self._frame = self._start()
            elif not data:
                raise EOFError("truncated compressed stream")
            content = self._frame.decompress(data)
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
            if content:
                return content


def decompressed(raw: Any, path: str) -> Any:
    """The content of an open file, whose name says whether it is compressed, for `read(n)`.

    Reading raises OSError, EOFError, `lzma.LZMAError` or `zstandard.ZstdError` where the file is
    damaged or cut off.
    """
    compression = compression_of(path)
    if compression is None:
        return raw
    head = raw.read(18)  # a zstd frame's header has no more
    if not head:  # the decompressor would take it for a stream of nothing
        raise EOFError(f"empty, which no {compression} file is")
    raw.seek(0)
    if compression == "xz":
        return _Frames(raw, lzma.LZMADecompressor, padding=b"\0")
    if compression == "zstd" and _window(head) > _LARGEST_WINDOW:
        long = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        return _Frames(raw, long.decompressobj, padding=b"")
    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression)


def _window(head: bytes) -> int:
    """Bytes that a zstd frame refers back to at most; 0 where it is no such frame."""
    try:
        return zstandard.get_frame_parameters(head).window_size
    except zstandard.ZstdError:
        return 0
