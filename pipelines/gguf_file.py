"""GGUF: the metadata at the front of a model file, without the weights behind it.

The `gguf` package reads files of this machine alone and takes 20 s of CPU time for a vocabulary of
150,000 tokens; this takes a quarter of a second and no more of a file than its metadata.
"""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipelines.errors import UserError

MAGIC = b"GGUF"

_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Value types of the format that are numbers, and how `struct` calls them."""

_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 31
"""No string or array is that long: a count beyond it is damage."""


def read_metadata(file: BinaryIO, place: str) -> dict[str, Any]:
    """The keys and values of a GGUF file, read from its beginning.

    Strings are bytes in arrays and text elsewhere.

    Raises:
        UserError: the file is damaged, or of another version.
    """
    try:
        return dict(_entries(file))
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError) as error:
        raise UserError(
            f"tokenizer.path: {place}: the metadata of this GGUF file cannot be read ({error}); "
            "it is damaged or cut off: fetch the file again"
        ) from error


def _entries(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    magic, version = _unpack(file, "<4sI")
    if magic != MAGIC or version not in (2, 3):
        raise ValueError(f"version {version} is neither 2 nor 3")
    _, count = _unpack(file, "<QQ")
    for _ in range(count):
        key = _string(file).decode()
        (kind,) = _unpack(file, "<I")
        value = _value(file, kind)
        yield key, value.decode() if isinstance(value, bytes) else value


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _string(file: BinaryIO) -> bytes:
    (size,) = _unpack(file, "<Q")
    if size > _LONGEST or len(text := file.read(size)) < size:
        raise ValueError(f"a string of {size:,} bytes ends before them")
    return text


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _unpack(file, f"<{_NUMBERS[kind]}")[0]
    inner, count = _unpack(file, "<IQ")
    if count > _LONGEST:
        raise ValueError(f"an array of {count:,} values")
    if inner in _NUMBERS:
        return list(_unpack(file, f"<{count}{_NUMBERS[inner]}"))
    return [_value(file, inner) for _ in range(count)]
