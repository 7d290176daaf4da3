"""Data sets on object stores: the same as local ones, whole or not there, fetched once."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import fsspec
import pytest
from conftest import Builder, documents, write_jsonl

from pipelines.errors import UserError
from pipelines.shards import ShardedDataset, encode_manifest
from trainer.cache import RemoteDataset, open_dataset
from trainer.loader import Loader

URL = "memory://bucket/data"


@pytest.fixture(scope="module")
def local(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    builder = Builder(tmp_path_factory.mktemp("cache"), tokenizer_model)
    write_jsonl(builder.folder / "a.jsonl", documents(1, 40))
    sources = {"a": {"weight": 1, "path": "a.jsonl", "max_passes": 9}}
    return builder.build(sources, tokens=20_000).dataset


@pytest.fixture
def remote(local):
    """The data set in fsspec's memory file system."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for path in local.folder.iterdir():
        if path.is_file():
            fs.pipe_file(f"/bucket/data/{path.name}", path.read_bytes())
    yield fs
    fs.store.clear()


def read(dataset: ShardedDataset) -> list[bytes]:
    loader = Loader(dataset, global_batch=8, micro_batch=4)
    steps = list(islice(loader, len(dataset) // 8 + 2))
    loader.close()
    return [b.tokens.tobytes() + b.labels.tobytes() for step in steps for b in step]


def settle(dataset: ShardedDataset) -> None:
    """Wait for the background."""
    with dataset._reading_ahead:
        pass


def test_a_url_gives_what_the_folder_gives(local, remote, tmp_path):
    dataset = open_dataset(f"{URL}/", cache=tmp_path / "cache")
    assert read(dataset) == read(open_dataset(str(local.folder), cache=None))
    assert dataset.manifest == local.manifest
    assert dataset.folder == tmp_path / "cache" / local.manifest["dataset_id"]
    assert dataset.sequence(3).segments == local.sequence(3).segments


def test_a_url_of_local_files_is_a_folder(local):
    assert type(open_dataset(f"file://{local.folder}", cache=None)) is ShardedDataset


def test_shards_come_when_they_are_needed_and_the_next_in_advance(local, remote, tmp_path):
    assert len(local.manifest["shards"]) >= 5
    dataset = open_dataset(URL, cache=tmp_path)
    assert sorted(p.name for p in dataset.folder.glob("[!.]*")) == ["manifest.json"]
    dataset.tokens(1)
    for _ in range(200):
        found = sorted(p.name for p in dataset.folder.glob("*.*") if p.name[0] == "0")
        if len(found) == 5:
            break
        time.sleep(0.02)
    assert found == ["00001.tok", "00002.meta.arrow", "00002.tok", "00003.meta.arrow", "00003.tok"]


def test_what_is_there_is_not_fetched_again(local, remote, tmp_path):
    rows = read(open_dataset(URL, cache=tmp_path))
    for name in list(remote.store):
        if not name.endswith("manifest.json"):
            remote.rm_file(name)
    assert read(open_dataset(URL, cache=tmp_path)) == rows


def test_the_tokenizer_is_fetched_and_nothing_that_is_not_listed(local, remote, tmp_path):
    dataset = open_dataset(URL, cache=tmp_path)
    assert isinstance(dataset, RemoteDataset)
    name = local.manifest["tokenizer"]["file"]
    assert dataset.fetch(name).read_bytes() == (local.folder / name).read_bytes()
    for other in ("build.json", "../x", "manifest.json"):
        with pytest.raises(UserError, match="the manifest lists no such file"):
            dataset.fetch(other)


@pytest.mark.parametrize("damage", [b"", b"torn"])
@pytest.mark.parametrize("name", ["00000.tok", "00000.meta.arrow", ".00000.tok.part"])
def test_torn_files_in_the_cache_are_repaired(local, remote, tmp_path, name, damage):
    folder = tmp_path / local.manifest["dataset_id"]
    folder.mkdir()
    (folder / name).write_bytes(damage)
    dataset = open_dataset(URL, cache=tmp_path)
    assert read(dataset) == read(local)
    settle(dataset)
    assert not list(folder.glob(".*.part"))


def test_a_transfer_that_fails_is_tried_again(local, remote, tmp_path, monkeypatch):
    whole, calls = type(remote).get_file, []

    def flaky(self, path, to, **kwargs):
        calls.append(path)
        if len(calls) == 1:
            Path(to).write_bytes(b"half a fi")
            raise ConnectionResetError("peer is gone")
        if len(calls) == 2:
            return Path(to).write_bytes(b"half a fi")  # an end that nobody noticed
        return whole(self, path, to, **kwargs)

    monkeypatch.setattr(type(remote), "get_file", flaky)
    dataset = open_dataset(URL, cache=tmp_path)
    assert isinstance(dataset, RemoteDataset)
    assert dataset.fetch("00000.tok").read_bytes() == (local.folder / "00000.tok").read_bytes()
    assert len(calls) == 3


def test_a_file_that_is_not_the_manifests_is_never_used(remote, tmp_path):
    remote.pipe_file("/bucket/data/00000.tok", b"something else")
    dataset = open_dataset(URL, cache=tmp_path)
    with pytest.raises(UserError, match=r"00000\.tok: its sha256 is not the one in the manifest"):
        read(dataset)
    settle(dataset)
    assert not (dataset.folder / "00000.tok").exists()


def test_threads_fetch_a_file_once(local, remote, tmp_path, monkeypatch):
    whole, calls = type(remote).get_file, []

    def slow(self, path, to, **kwargs):
        calls.append(path)
        time.sleep(0.05)
        return whole(self, path, to, **kwargs)

    monkeypatch.setattr(type(remote), "get_file", slow)
    ranks = [open_dataset(URL, cache=tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda dataset: bytes(dataset.tokens(0)[0]), ranks))
    assert len(set(rows)) == 1
    for dataset in ranks:
        settle(dataset)
    assert len(calls) == len(set(calls))


def _rank(folder: str, cache: str) -> int:
    """A process that reads a data set, over a file system which is not fsspec's local one."""
    fs = fsspec.filesystem("memory")
    for path in Path(folder).iterdir():
        if path.is_file():
            fs.pipe_file(f"/bucket/data/{path.name}", path.read_bytes())
    return hash_of(read(open_dataset(URL, cache=Path(cache))))


def hash_of(rows: list[bytes]) -> int:
    import zlib

    return zlib.crc32(b"".join(rows))


def test_processes_share_a_cache(local, remote, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(_rank, [(str(local.folder), str(tmp_path))] * 2)
    assert found == [hash_of(read(local))] * 2


def test_an_abandoned_read_ahead_ends_with_the_process(remote, tmp_path):
    open_dataset(URL, cache=tmp_path).tokens(0)
    assert all(t.daemon for t in threading.enumerate() if "_read_ahead" in t.name)


# --- what is no data set -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("memory://bucket/none", r"manifest\.json: no such file; a data set is finished when"),
        ("nosuch://bucket/data", "nosuch://bucket/data/manifest.json: cannot be read: .*nosuch"),
        ("/no/such/folder", "no finished data set"),
    ],
)
def test_other_places_are_refused(location, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_dataset(location, cache=tmp_path)


def test_a_url_needs_a_cache(remote):
    with pytest.raises(UserError, match="name a local folder by --cache"):
        open_dataset(URL, cache=None)


def test_no_permission_is_said(remote, tmp_path, monkeypatch):
    def refuse(self, path, **kwargs):
        raise PermissionError("403: who are you?")

    monkeypatch.setattr(type(remote), "cat_file", refuse)
    with pytest.raises(UserError, match="cannot be read: PermissionError: 403: who are you"):
        open_dataset(URL, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_said(remote, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"Not a directory|File exists"):
        open_dataset(URL, cache=tmp_path / "file")


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"format_version": 1}'])
def test_manifests_of_other_kinds_are_refused(remote, tmp_path, content):
    remote.pipe_file("/bucket/data/manifest.json", content)
    with pytest.raises(UserError, match="memory://bucket/data"):
        open_dataset(URL, cache=tmp_path)


def test_a_changed_manifest_is_refused(local, remote, tmp_path):
    text = (local.folder / "manifest.json").read_text()
    for changed in (
        text.replace('"name": "test"', '"name": "best"').encode(),
        encode_manifest(json.loads(text) | {"dataset_id": "../x"}),
    ):
        remote.pipe_file("/bucket/data/manifest.json", changed)
        with pytest.raises(UserError, match="changed since the build"):
            open_dataset(URL, cache=tmp_path)
    assert not list(tmp_path.iterdir())
