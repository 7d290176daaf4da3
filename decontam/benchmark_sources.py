"""What lies under the paths that a user gives: files, plain, gzip or zstd, and members of tars."""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec
import pyarrow as pa

from decontam.records import DecontamError, Instance


class Draft(NamedTuple):
    """An instance, before anything is chosen, and the place that it was read from."""

    place: str
    instance: Instance


class SourceFile(NamedTuple):
    """A file that may hold instances."""

    path: str
    """The file on disk: of a tar's member, the tar."""

    name: str
    """Absolute path without `.gz` and `.zst`; of a tar's member, the tar's and the member's."""

    place: str
    """How messages name it: its path, and a tar's member behind it."""

    open: Callable[[], Any]
    """A new decompressed binary stream."""

    def read(self) -> bytes:
        """The whole content.

        Raises:
            DecontamError: the file is damaged.
        """
        with readable(self.place), self.open() as stream:
            return cast(bytes, stream.read())

    def head(self, size: int) -> bytes:
        """At most the first `size` bytes; raises as `read` does."""
        with readable(self.place), self.open() as stream:
            return cast(bytes, stream.read(size))


@contextmanager
def readable(name: str) -> Generator[None]:
    """Turn whatever a damaged or missing file makes its reader raise into a DecontamError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, tarfile.TarError, pa.ArrowInvalid) as error:
        raise DecontamError(f"{name}: cannot be read ({error}); fetch it again") from None


def source_files(path: str | Path) -> list[SourceFile]:
    """Every file at or under a path, sorted by name; hidden ones and hidden folders left out.

    Raises:
        DecontamError: there is no such path, or a tar in it is damaged.
    """
    root = Path(path)
    if not root.exists():
        raise DecontamError(f"{path}: there is no such file or folder")
    paths = [root]
    if root.is_dir():
        paths = [
            Path(folder, name)
            for folder, _, names in os.walk(root)
            for name in names
            if not any(p.startswith(".") for p in Path(folder, name).relative_to(root).parts)
        ]
    return [file for path in sorted(paths) for file in _files(path)]


def _files(path: Path) -> Iterator[SourceFile]:
    suffix = path.suffix if path.suffix in (".gz", ".zst") else ""
    name = path.absolute().as_posix().removesuffix(suffix)
    if name.endswith(".tgz"):
        name, suffix = name.removesuffix(".tgz") + ".tar", ".gz"
    shown = path.as_posix()
    file = SourceFile(shown, name, shown, partial(_open, path, suffix))
    if not name.endswith(".tar"):
        yield file
        return
    with readable(shown):
        archive = tarfile.open(fileobj=io.BytesIO(file.read()))  # noqa: SIM115 - members read it
        members = sorted((m for m in archive if m.isfile()), key=lambda member: member.name)
    for member in members:
        inside = f"/{member.name}"
        yield SourceFile(shown, name + inside, shown + inside, partial(_member, archive, member))


def _open(path: Path, suffix: str) -> Any:
    if suffix == ".zst":
        return pa.input_stream(str(path), compression="zstd")
    return gzip.open(path) if suffix == ".gz" else path.open("rb")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None  # it is a file, and not a link
    return stream


def json_value(content: bytes, place: str) -> Any:
    """A parsed JSON text.

    Raises:
        DecontamError: it is damaged.
    """
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecontamError(f"{place}: not valid JSON ({error}); is the file complete?") from None


def json_lines(file: SourceFile) -> Iterator[tuple[str, Any]]:
    """(`file:line`, value) of each line that is not empty; raises as `json_value` does."""
    for number, line in enumerate(file.read().split(b"\n"), 1):
        if line.strip():
            place = f"{file.place}:{number}"
            yield place, json_value(line, place)
