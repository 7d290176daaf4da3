"""Files on any filesystem: local paths, `gs://`, `s3://`, `hf://`, `memory://`.

fsspec does the work. Whatever is written is written aside and renamed (or, on an object
store, appears only when its upload is complete), so a reader never sees half a file.
"""

import json
import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO, Any, cast

import pyarrow as pa
from fsspec.core import url_to_fs

from pipelines.errors import UserError


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path and the path as that filesystem spells it.

    Raises:
        UserError: no such filesystem is known, or its package is not installed.
    """
    try:
        return cast("tuple[Any, str]", url_to_fs(path))
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error} (see docs/running.md, Object stores)") from error


@contextmanager
def reachable(path: str) -> Generator[None]:
    """Turn what clients of remote systems raise, each in its own way, into an OSError."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if is_local(path):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def is_local(path: str) -> bool:
    """Whether the path lies on this machine's disk, where it can be memory-mapped."""
    return "://" not in path or path.startswith("file://")


def join(folder: str, *names: str) -> str:
    """`folder/name/…`, for local paths and URLs alike."""
    return "/".join([folder.rstrip("/") or "/", *names])


def exists(path: str) -> bool:
    """Whether the path exists."""
    fs, name = filesystem(path)
    fs.invalidate_cache(name)  # another worker may have written it since it was last listed
    return bool(fs.exists(name))


def list_names(folder: str) -> list[str]:
    """Sorted names in a folder; empty where the folder does not exist."""
    fs, name = filesystem(folder)
    if is_local(folder):
        return sorted(os.listdir(name)) if os.path.isdir(name) else []
    fs.invalidate_cache(name)  # other workers write here; object stores' listings are remembered
    if not fs.exists(name):
        return []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(name, detail=False))


def identity(path: str) -> str:
    """What changes when a file's content is replaced: its size and time stamp or entity tag."""
    fs, name = filesystem(path)
    if is_local(path):
        stat = os.stat(name)
        return f"{stat.st_size}:{stat.st_mtime_ns}"
    with reachable(path):
        info = fs.info(name)
    tag = next(
        (
            info[k]
            for k in ("etag", "ETag", "md5Hash", "blob_id", "mtime", "created")
            if info.get(k)
        ),
        "",
    )
    return f"{info.get('size')}:{tag}"


@contextmanager
def write_atomic(path: str) -> Generator[IO[bytes]]:
    """A binary file that appears at `path` when the block ends well, and not otherwise."""
    fs, name = filesystem(path)
    if not is_local(path):
        # Object stores publish an object when its upload closes; there is nothing to rename.
        with fs.transaction, fs.open(name, "wb") as file:
            yield file
        return
    os.makedirs(os.path.dirname(name), exist_ok=True)
    aside = f"{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(aside, "wb") as file:
            yield file
        with open(aside, "rb") as file:  # the block may have closed its own
            os.fsync(file.fileno())
        os.replace(aside, name)
    except BaseException:
        if os.path.exists(aside):
            os.remove(aside)
        raise


def remove(path: str) -> None:
    """Remove a file, or a folder with all that is in it; one that is not there is no error."""
    fs, name = filesystem(path)
    if is_local(path) and os.path.isdir(name):
        shutil.rmtree(name, ignore_errors=True)
    elif exists(path):
        fs.rm(name, recursive=True)


def write_bytes(path: str, content: bytes) -> None:
    """Write a small file atomically."""
    with write_atomic(path) as file:
        file.write(content)


def read_bytes(path: str) -> bytes:
    """A whole file."""
    fs, name = filesystem(path)
    with reachable(path):
        return cast(bytes, fs.cat_file(name))


def write_json(path: str, value: Any) -> None:
    """Write JSON: sorted keys and fixed layout, so that equal values are equal bytes."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: str) -> Any:
    """Read a JSON file."""
    return json.loads(read_bytes(path))


def write_table(path: str, table: pa.Table) -> None:
    """Write an Arrow table as one uncompressed IPC file, atomically."""
    with write_atomic(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """Read an Arrow IPC file; local files are memory-mapped, so unread columns cost nothing."""
    source = (
        pa.memory_map(filesystem(path)[1]) if is_local(path) else pa.BufferReader(read_bytes(path))
    )
    table = pa.ipc.open_file(source).read_all()
    return table.select(columns) if columns is not None else table


def open_binary(path: str) -> Any:
    """A seekable binary file for reading."""
    fs, name = filesystem(path)
    return open(name, "rb") if is_local(path) else fs.open(name, "rb")
