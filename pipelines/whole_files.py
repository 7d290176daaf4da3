"""Files that are documents as wholes: texts, web pages, and tars (WebDataset) that hold them."""

import json
import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, cast

from resiliparse.extract.html2text import (  # pyright: ignore[reportMissingModuleSource]
    extract_plain_text,
)

from pipelines.errors import InputFault
from pipelines.formats import compression_of, ending_of, format_of, side_file
from pipelines.lines import BOM
from pipelines.records import Dropped, RawRecord

_TEXTS = ("text", "html")


def text_of(content: bytes, *, is_page: bool) -> bytes:
    """The text of a file in UTF-8; of a web page what a browser shows of it.

    What is no UTF-8 stays as it is.
    """
    content = content.removeprefix(BOM)
    if not is_page:
        return content
    try:
        return str(extract_plain_text(content.decode(), alt_texts=False)).encode()
    except UnicodeDecodeError:
        return content


def tar_rows(stream: Any, name: str, *, max_record: int) -> Iterator[RawRecord | Dropped]:
    """The samples of a WebDataset tar as mappings: members in a row that share a name, counted on.

    A sample has the fields of its `.json` member, and every member under its ending: texts as they
    are, of members that are neither JSON nor text the name. `text` is that of the `.txt`, `.md`,
    `.tex` or `.html` member where there is one, and `name` is what they share.

    Raises:
        InputFault: the tar is damaged, or it holds something else than samples.
    """
    tail = _Tail(stream)
    try:
        with tarfile.open(fileobj=cast(Any, tail), mode="r|") as archive:
            files = (m for m in archive if m.isreg() and not _is_side_file(m.name))
            for number, (key, members) in enumerate(groupby(files, lambda m: _divide(m.name)[0])):
                yield _sample(archive, key, members, f"{name}: {key}", number, max_record)
    except tarfile.TarError as error:
        raise InputFault(
            f"{name}: no tar that can be read to its end: {error}; fetch the file again or take it "
            "out of the mixture"
        ) from error
    while tail.read(1 << 20):
        pass
    if tail.last.strip(b"\0"):
        raise InputFault(
            f"{name}: ends without the zeros that end a tar, so it was cut off; fetch the file "
            "again or take it out of the mixture"
        )


class _Tail:
    """A stream that remembers its last block, which is zeros where a tar is whole."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.last = b""

    def read(self, n: int) -> bytes:
        """The next n bytes."""
        data: bytes = self._stream.read(n)
        self.last = (self.last + data)[-tarfile.BLOCKSIZE :]
        return data


def _is_side_file(path: str) -> bool:
    return any(side_file(part) for part in path.split("/") if part not in (".", ".."))


def _divide(path: str) -> tuple[str, str]:
    """What a member shares with the others of its sample, and its ending in lower case."""
    folder, name = os.path.split(path)
    base, _, ending = name.partition(".")
    return os.path.join(folder, base), ending.lower()


def _sample(
    archive: tarfile.TarFile,
    key: str,
    members: Iterator[tarfile.TarInfo],
    place: str,
    number: int,
    max_record: int,
) -> RawRecord | Dropped:
    """One sample, or why it is none; all of its members are read."""
    record: dict[str, Any] = {}
    dropped: Dropped | None = None
    for member in members:
        ending = _divide(member.name)[1]
        _check(f"x.{ending}", ending in record, place)
        kind = format_of(f"x.{ending}")
        if kind is None:
            record[ending] = member.name
            continue
        if member.size > max_record:
            dropped = Dropped("record_too_large", f"{member.size} bytes", number, -1, 0)
            continue
        opened = archive.extractfile(member)
        content = opened.read() if opened else b""
        if kind in _TEXTS:
            record[ending] = text_of(content, is_page=kind == "html")
            continue
        try:
            record[ending] = json.loads(content)
        except UnicodeDecodeError as error:
            dropped = Dropped("invalid_utf8", str(error), number, -1, 0)
        except (ValueError, RecursionError) as error:
            dropped = Dropped("invalid_json", str(error), number, -1, 0)
    if dropped:
        return dropped
    fields = record.get("json")
    texts = [value for ending, value in record.items() if format_of(f"x.{ending}") in _TEXTS]
    about = {"name": key} | (fields if isinstance(fields, dict) else {}) | record
    return RawRecord(about | ({"text": texts[0]} if texts else {}), number, -1)


def _check(path: str, twice: bool, place: str) -> None:
    """Refuse members that are no part of a sample."""
    ending = path[2:]
    if ending != "json" and (compression_of(path) or format_of(path) not in (None, *_TEXTS)):
        raise InputFault(
            f"{place}.{ending}: a file of its own, no part of a sample of a WebDataset; unpack the "
            "tar and name its folder"
        )
    if twice or (format_of(path) and ending_of(path) != f".{ending}"):
        raise InputFault(
            f"{place}.{ending}: a sample's name ends at its first dot, so it is not clear what "
            "this member is; unpack the tar and name its folder, or rename the members"
        )
