"""Data sets on object stores: files come into a local folder when they are first needed.

A file is fetched aside, compared with the manifest and renamed, so what lies in the folder is
whole. Processes may share it: a lock beside each file lets one fetch while the others wait.
"""

import fcntl
import json
import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.shards import (
    MANIFEST,
    ShardedDataset,
    dataset_id,
    file_sha256,
    manifest_checksum,
    shard_name,
)

_TRIES = 3
_SHARDS_AHEAD = 2


def open_dataset(location: str, *, cache: Path | None) -> ShardedDataset:
    """The data set in a local folder, or at a URL that fsspec knows: `gs://…`, `s3://…`.

    Args:
        location: where its `manifest.json` lies.
        cache: local folder for what is fetched from a URL, a subfolder a data set. All ranks of
            a host may share it; it grows to the size of the data set.

    Raises:
        UserError: no finished data set is there, or it cannot be read.
    """
    location = location.removeprefix("file://")
    try:
        if "://" not in location:
            return _checked(ShardedDataset(location))
        if cache is None:
            raise UserError(f"{location}: name a local folder by --cache to read a URL")
        return RemoteDataset(location.rstrip("/"), cache)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{location}: not as docs/formats.md has it: {error!r}") from error


def _checked(dataset: ShardedDataset) -> ShardedDataset:
    """A local data set: manifest and sizes as built; hashes are checked when rows are read."""
    content = (dataset.folder / MANIFEST).read_bytes()
    if dataset.manifest["checksum"] != manifest_checksum(content):
        raise UserError(f"{dataset.folder / MANIFEST}: changed since the build: copy it again")
    for shard in range(len(dataset.manifest["shards"])):
        dataset.tokens(shard)
    return dataset


class RemoteDataset(ShardedDataset):
    """A data set at a URL, read like a local one.

    Raises:
        UserError: a file cannot be fetched, or is not what the manifest says.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url
        with _file_at(f"{url}/{MANIFEST}") as (fs, path):
            content: bytes = fs.cat_file(path)
            manifest = json.loads(content)
        name = dataset_id(manifest)
        if manifest["dataset_id"] != name or manifest["checksum"] != manifest_checksum(content):
            raise UserError(f"{url}/{MANIFEST}: changed since the build: copy it again")
        (cache / name).mkdir(parents=True, exist_ok=True)
        with _locked(cache / name / MANIFEST) as aside:
            aside.write_bytes(content)
        super().__init__(cache / name)
        self._digests: dict[str, str] = dict(manifest["files"])
        for number, shard in enumerate(manifest["shards"]):
            self._digests[f"{shard_name(number)}.meta.arrow"] = shard["sha256_meta"]
            self._digests[f"{shard_name(number)}.tok"] = shard["sha256_tok"]
        self._checked: set[str] = set()
        self._reading_ahead = threading.Lock()

    def tokens(self, shard: int) -> npt.NDArray[Any]:
        """As `ShardedDataset`; shards that follow are fetched in the background."""
        self.fetch(f"{shard_name(shard)}.tok")
        ahead = range(shard + 1, min(shard + 1 + _SHARDS_AHEAD, len(self.manifest["shards"])))
        names = [f"{shard_name(n)}.{kind}" for n in ahead for kind in ("meta.arrow", "tok")]
        if not self._checked.issuperset(names) and self._reading_ahead.acquire(blocking=False):
            threading.Thread(target=self._read_ahead, args=(names,), daemon=True).start()
        return super().tokens(shard)

    def meta(self, shard: int) -> pa.Table:
        """As `ShardedDataset`."""
        self.fetch(f"{shard_name(shard)}.meta.arrow")
        return super().meta(shard)

    def fetch(self, name: str) -> Path:
        """The local copy of a file of the data set; its digest is compared once a process."""
        path, url = self.folder / name, f"{self._url}/{name}"
        if name in self._checked:
            return path
        if name not in self._digests or Path(name).name != name:
            raise UserError(f"{url}: the manifest lists no such file")
        with _locked(path) as aside:
            if not path.exists() or file_sha256(path) != self._digests[name]:
                _download(url, aside, self._digests[name])
        self._checked.add(name)
        return path

    def _read_ahead(self, names: Sequence[str]) -> None:
        try:
            with suppress(UserError, OSError):  # who needs the file will try again, and complain
                for name in names:
                    self.fetch(name)
        finally:
            self._reading_ahead.release()


@contextmanager
def _locked(path: Path) -> Generator[Path]:
    """A place beside a file, alone among processes and threads; what is put there replaces it."""
    aside = path.with_name(f".{path.name}.part")
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aside.unlink(missing_ok=True)  # of a process that was killed
        yield aside
        if aside.exists():
            os.replace(aside, path)


def _download(url: str, aside: Path, digest: str) -> None:
    for tries_left in reversed(range(_TRIES)):
        try:
            with _file_at(url) as (fs, path):
                fs.get_file(path, str(aside))
            if file_sha256(aside) == digest:
                return
            raise UserError(f"{url}: its sha256 is not the one in the manifest: copy it again")
        except UserError:
            aside.unlink(missing_ok=True)
            if not tries_left:
                raise


@contextmanager
def _file_at(url: str) -> Generator[tuple[Any, str]]:
    """File system and path. Errors of clients, of many kinds, become one that says where."""
    try:
        yield fsspec.url_to_fs(url)
    except FileNotFoundError as error:
        rule = "; a data set is finished when that is there" if url.endswith(MANIFEST) else ""
        raise UserError(f"{url}: no such file{rule}") from error
    except Exception as error:
        raise UserError(f"{url}: cannot be read: {type(error).__name__}: {error}") from error
