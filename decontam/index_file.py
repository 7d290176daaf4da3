"""The file of an index: a JSON header and arrays, each at a multiple of 64 bytes, to be mapped."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from decontam.records import DecontamError

MAGIC = b"benchmark index 1\n"
_START = len(MAGIC) + 8 + 16  # the header's length and its XXH3-128 stand before it
_ALIGN = 64
_MAKE = "make it with `python -m decontam.build_index`"

Arrays = Sequence[npt.NDArray[Any]]


def write_sections(path: str, header: Mapping[str, Any], arrays: Arrays) -> None:
    """Write an index, first aside.

    Raises:
        DecontamError: the file cannot be written.
    """
    places: list[dict[str, Any]] = []
    at = 0
    for array in arrays:
        places.append({"at": at, "type": array.dtype.str, "shape": list(array.shape)})
        at += -(-array.nbytes // _ALIGN) * _ALIGN
    text = json.dumps({**header, "sections": places, "bytes": at}).encode()
    text += b" " * (-(_START + len(text)) % _ALIGN)
    aside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(aside, "wb") as file:
            file.write(
                MAGIC + len(text).to_bytes(8, "little") + xxhash.xxh3_128_digest(text) + text
            )
            for array in arrays:
                file.write(_padded(array))
        os.replace(aside, path)
    except OSError as error:
        raise DecontamError(f"{path}: cannot write the index: {error}") from error


def read_sections(path: str) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
    """The header of an index and its arrays, memory-mapped.

    Raises:
        DecontamError: there is no such file, or it is no whole index of this version.
    """
    try:
        content = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise DecontamError(f"{path}: no such index; {_MAKE}") from None
    except (OSError, ValueError) as error:
        raise DecontamError(f"{path}: cannot read the index: {error}; {_MAKE}") from error
    if content[: len(MAGIC)].tobytes() != MAGIC:
        raise DecontamError(f"{path}: not an index of this version; {_MAKE}")
    try:
        header, body = _header(content)
    except (ValueError, KeyError) as error:
        raise DecontamError(f"{path}: the index is damaged: {error}; {_MAKE}") from None
    return header, [_array(body, place) for place in header.pop("sections")]


def checksum(arrays: Arrays) -> str:
    """XXH3-128, in hexadecimal, of what follows the header."""
    state = xxhash.xxh3_128()
    for array in arrays:
        state.update(_padded(array))
    return state.hexdigest()


def _padded(array: npt.NDArray[Any]) -> bytes:
    return array.tobytes() + bytes(-array.nbytes % _ALIGN)


def _header(content: npt.NDArray[np.uint8]) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """The header, and what follows it once it proved whole."""
    size = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 8].tobytes(), "little")
    text = content[_START : _START + size].tobytes()
    if content[_START - 16 : _START].tobytes() != xxhash.xxh3_128_digest(text):
        raise ValueError("the checksum of its header does not agree")
    header, body = json.loads(text), content[_START + size :]
    if len(body) != header["bytes"]:
        raise ValueError(f"{len(body)} bytes where {header['bytes']} should be")
    if xxhash.xxh3_128_hexdigest(body.data) != header["checksum"]:
        raise ValueError("its checksum does not agree")
    return header, body


def _array(body: npt.NDArray[np.uint8], place: Mapping[str, Any]) -> npt.NDArray[Any]:
    kind, shape = np.dtype(place["type"]), tuple(place["shape"])
    length = kind.itemsize * int(np.prod(shape))
    return body[place["at"] : place["at"] + length].view(kind).reshape(shape)
