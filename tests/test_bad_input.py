"""Broken input: a lost record has a reason and a place, or the build stops and says why."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Builder, Built, documents, plain_loop, prose, write_jsonl
from test_readers import block_bytes, compress

from pipelines import build as command
from pipelines import files, readers
from pipelines.errors import UserError
from pipelines.stages import Prepare, Stage

GOOD = [json.dumps(d).encode() for d in documents(1, 24, low=40, high=120)]
A = {"a": {"weight": 1, "path": "in"}}


# --- helpers -------------------------------------------------------------------------------


def content_of(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".zst":
        return pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def dropped_of(builder: Builder, built: Built) -> list[dict[str, Any]]:
    """The dropped records, after proving that counts close and that places are right."""
    lines = content_of(built.dataset.folder / "dropped.jsonl.zst").splitlines()
    dropped = [msgspec.json.decode(line) for line in lines]
    reasons: dict[str, int] = {}
    for account in built.accounts:
        n_dropped = sum(account.documents_dropped.values())
        sampled = account.documents_read - account.documents_not_sampled
        assert sampled == account.documents_kept + n_dropped
        for reason, n in account.documents_dropped.items():
            reasons[reason] = reasons.get(reason, 0) + n
    found = [record["reason"] for record in dropped]
    assert {reason: found.count(reason) for reason in found} == reasons
    for record in dropped:
        if record["offset"] >= 0 and ".jsonl" in record["file"]:
            before = content_of(builder.folder / record["file"])[: record["offset"]]
            assert before.count(b"\n") == record["line"] - 1
            assert before[-1:] in (b"", b"\n")
    return dropped


def build(builder: Builder, **values: Any) -> Built:
    return builder.build(A, tokens=values.pop("tokens", 2_000), **values)


def write_lines(builder: Builder, name: str, lines: list[bytes]) -> Path:
    path = write_jsonl(builder.folder / "in" / name, lines)
    if path.suffix in (".zst", ".gz"):
        path.write_bytes(compress(path.suffix[1:], path.read_bytes()))
    return path


def assert_stops(builder: Builder, match: str, **values: Any) -> str:
    """The build stops with a message that matches, twice the same, and leaves nothing behind."""
    messages: list[str] = []
    for _ in range(2):
        with pytest.raises(UserError, match=match) as stopped:
            build(builder, **values)
        messages.append(str(stopped.value))
        assert files.list_names(str(builder.folder / "out")) == []
    assert messages[0] == messages[1]
    return messages[0]


# --- records -------------------------------------------------------------------------------

BAD_LINES = {
    "invalid UTF-8": (b'{"text": "one \xff byte"}', "invalid_utf8"),
    "UTF-8 of another alphabet": ('{"text": "Grüße"}'.encode("latin-1"), "invalid_utf8"),
    "invalid JSON": (b'{"text": "no end', "invalid_json"),
    "two records on a line": (b'{"text": "a"} {"text": "b"}', "invalid_json"),
    "NUL bytes in the file": (b"\0" * 100, "invalid_json"),
    "NUL byte in a string": (b'{"text": "a\0b"}', "invalid_json"),
    "nested without end": (b'{"text": "a", "id": ' + b"[" * 50_000, "invalid_json"),
    "list": (b'["text"]', "not_an_object"),
    "null for a record": (b"null", "not_an_object"),
    "no text": (b'{"id": "7"}', "missing_text"),
    "null for a text": (b'{"text": null}', "missing_text"),
    "number for a text": (b'{"text": 5}', "text_not_a_string"),
    "list for a text": (b'{"text": ["a"]}', "text_not_a_string"),
    "lone surrogate": (b'{"text": "\\ud83e alone"}', "lone_surrogate"),
    "empty text": (b'{"text": ""}', "empty_text"),
    "whitespace": (b'{"text": " \\n\\t\\u2028\\u00a0"}', "empty_text"),
    "too large": (b'{"text": "' + b"x" * (1 << 20) + b'"}', "record_too_large"),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_a_broken_record_is_dropped_with_its_reason_and_place(builder: Builder, name):
    lines: list[bytes] = []
    expected: list[tuple[int, str]] = []
    for (line, reason), good in zip(BAD_LINES.values(), GOOD, strict=False):
        expected += [(len(lines) + place, reason) for place in (1, 4, 5)]
        lines += [line, good, b"", line, line]
    lines += GOOD[len(BAD_LINES) :]
    write_lines(builder, name, lines)
    with block_bytes(400_000):
        built = build(builder, max_record_mib=1)
    assert [(r["line"], r["reason"]) for r in dropped_of(builder, built)] == expected
    assert built.accounts[0].documents_read == len(GOOD) + len(expected)
    assert built.accounts[0].documents_kept == len(GOOD)


@pytest.mark.parametrize("block", [1_000, 1 << 24])
def test_places_are_right_however_a_file_is_cut(builder: Builder, block):
    rng = random.Random(block)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz"):
        some = [line for line, _ in BAD_LINES.values() if len(line) < 1_000]
        lines = [*GOOD, *some, b"", b"\r", "\u2028".encode() * 3]
        rng.shuffle(lines)
        path = write_lines(builder, name, lines)
        if path.suffix == ".jsonl":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()[:-1])  # and no last line end
    with block_bytes(block, 700):
        built = build(builder)
    dropped = dropped_of(builder, built)
    assert built.accounts[0].documents_kept == len(GOOD)
    assert built.accounts[0].documents_dropped["duplicate"] == 2 * len(GOOD)
    assert {r["file"] for r in dropped} == {"in/a.jsonl", "in/b.jsonl", "in/c.jsonl.gz"}
    assert [(r["file"], r["line"]) for r in dropped] == sorted(
        (r["file"], r["line"]) for r in dropped
    )


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "%s", "meta": {"score": NaN, "other": -Infinity}}',
        b'{"meta": 1e999, "id": 1e999, "text": "%s"}',
        b'{"text": "%s NUL \\u0000 inside"}',
        b'{"text": "%s", "id": "\\ud83e"}',
        b'\xef\xbb\xbf{"text": "%s"}',
        b'{"text": "%s </s> \\u2028"}\r',
    ],
)
def test_an_odd_record_whose_text_is_whole_is_kept(builder: Builder, line):
    text = prose(random.Random(3), 400).replace("\n", " ")
    write_lines(builder, "a.jsonl", [line.replace(b"%s", text.encode()), *GOOD])
    built = build(builder, max_bad=0)
    assert dropped_of(builder, built) == []
    assert built.accounts[0].documents_kept == len(GOOD) + 1


def test_the_largest_record_that_is_allowed_is_kept(builder: Builder):
    frame = len(b'{"text": ""}')
    sizes = [(1 << 20) - frame, (1 << 20) - frame + 1]
    lines = [b'{"text": "' + b"word " * (n // 5) + b"x" * (n % 5) + b'"}' for n in sizes]
    write_lines(builder, "a.jsonl.gz", [*GOOD, *lines, *GOOD])
    built = build(builder, max_record_mib=1, duplicates="keep")
    (dropped,) = dropped_of(builder, built)
    assert (dropped["line"], dropped["evidence"]) == (len(GOOD) + 2, f"{(1 << 20) + 1} bytes")
    assert built.accounts[0].documents_kept == 2 * len(GOOD) + 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_a_line_of_200_mb_is_dropped_and_its_neighbours_kept(builder: Builder, name):
    size = 200 << 20
    path = builder.folder / "in" / name
    path.parent.mkdir()
    half = len(GOOD) // 2
    before, after = (b"".join(line + b"\n" for line in part) for part in (GOOD[:half], GOOD[half:]))
    if name == "a.jsonl":
        with path.open("wb") as file:
            file.write(before)
            file.seek(size, os.SEEK_CUR)  # a hole: NUL bytes that take no disk
            file.write(b"\n" + after)
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(before)
            for _ in range(size >> 20):
                stream.write(b"x" * (1 << 20))
            stream.write(b"\n" + after)
    built = build(builder)
    assert built.accounts[0].documents_kept == len(GOOD)
    lines = content_of(built.dataset.folder / "dropped.jsonl.zst").splitlines()
    (record,) = [msgspec.json.decode(line) for line in lines]
    assert (record["reason"], record["line"]) == ("record_too_large", half + 1)
    assert record["offset"] == len(before)
    assert int(record["evidence"].split()[0]) - size in (0, 1)


def test_duplicates_are_dropped_once_each_and_can_be_kept(builder: Builder):
    write_lines(builder, "a.jsonl", [*GOOD, GOOD[3]])
    write_lines(builder, "b.jsonl", [GOOD[5], GOOD[3]])
    built = build(builder)
    places = [(r["reason"], r["file"], r["line"]) for r in dropped_of(builder, built)]
    last = len(GOOD) + 1
    assert places == [
        ("duplicate", "in/a.jsonl", last),
        ("duplicate", "in/b.jsonl", 1),
        ("duplicate", "in/b.jsonl", 2),
    ]
    kept = build(builder, duplicates="keep", output="kept")
    assert dropped_of(builder, kept) == []
    assert kept.accounts[0].documents_kept == len(GOOD) + 3


def test_a_document_of_two_sources_stays_in_both(builder: Builder):
    write_lines(builder, "a.jsonl", GOOD)
    both = {"a": A["a"], "b": A["a"]}
    built = builder.build(both, tokens=2_000)
    assert [a.documents_kept for a in built.accounts] == [len(GOOD)] * 2


def test_files_of_one_name_stay_apart(builder: Builder):
    write_lines(builder, "x/part.jsonl", [*GOOD[:12], b"broken"])
    write_lines(builder, "y/part.jsonl", [b"broken", *GOOD[12:]])
    built = build(builder)
    places = [(r["file"], r["line"]) for r in dropped_of(builder, built)]
    assert places == [("in/x/part.jsonl", 13), ("in/y/part.jsonl", 1)]
    assert built.accounts[0].documents_kept == len(GOOD)


def test_broken_text_files_are_dropped_by_name(builder: Builder):
    folder = builder.folder / "in"
    folder.mkdir()
    for i, line in enumerate(GOOD):
        (folder / f"{i:02d}.txt").write_text(json.loads(line)["text"])
    (folder / "03b.txt").write_bytes(b"not UTF-8: \xff")
    (folder / "05b.txt").write_bytes(b"")
    (folder / "07b.tex.gz").write_bytes(gzip.compress(b"x" * (2 << 20)))
    built = build(builder, max_record_mib=1)
    found = [(r["file"], r["line"], r["offset"], r["reason"]) for r in dropped_of(builder, built)]
    assert found == [
        ("in/03b.txt", 1, 0, "invalid_utf8"),
        ("in/05b.txt", 1, 0, "empty_text"),
        ("in/07b.tex.gz", 1, 0, "record_too_large"),
    ]


def test_rows_of_tables_are_dropped_by_row(builder: Builder):
    texts = [json.loads(line)["text"] for line in GOOD]
    texts[4:4] = [None, ""]
    texts[20:20] = [None]
    (builder.folder / "in").mkdir()
    pq.write_table(pa.table({"text": texts}), builder.folder / "in" / "a.parquet", row_group_size=7)
    built = build(builder)
    found = [(r["line"], r["offset"], r["reason"]) for r in dropped_of(builder, built)]
    assert found == [(5, -1, "missing_text"), (6, -1, "empty_text"), (21, -1, "missing_text")]
    assert built.accounts[0].documents_kept == len(GOOD)


# --- limits --------------------------------------------------------------------------------


def test_too_many_broken_records_stop_the_build_and_are_named(builder: Builder):
    write_lines(builder, "a.jsonl", [*GOOD, b"x", b'{"text": 5}', *GOOD[:3], b'{"text": ""}'])
    message = assert_stops(builder, "broken input", max_bad=0.05)
    offset = sum(len(line) + 1 for line in GOOD)
    assert message.splitlines()[1:3] == [
        f"  sources.a: 2 of {len(GOOD) + 6} records are broken (1 invalid_json, "
        "1 text_not_a_string), more than --max-bad 0.05",
        f"  in/a.jsonl: line {len(GOOD) + 1}, byte {offset}: invalid_json: Expecting value: line 1 "
        "column 1 (char 0)",
    ]
    built = build(builder, max_bad=2 / (len(GOOD) + 6))
    assert built.accounts[0].documents_kept == len(GOOD)


def test_input_that_filters_emptied_is_not_broken_but_too_little(builder: Builder):
    write_lines(builder, "a.jsonl", GOOD)
    message = assert_stops(builder, "a", max_bad=0, filters={"min_words": 100_000})
    assert "broken" not in message


# --- files ---------------------------------------------------------------------------------


def whole(codec: str) -> bytes:
    return compress(codec, b"".join(line + b"\n" for line in GOOD * 10))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[:-7],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut after its first byte": lambda data: data[:1],
    "cut in its second frame": lambda data: data + data[:-1],
    "followed by garbage": lambda data: data + b"garbage that is no frame",
    "followed by NUL bytes": lambda data: data + b"\0" * 512,
    "a web page": lambda data: b"<html>404</html>",
    "0 bytes long": lambda data: b"",
    "followed by a frame without its head": lambda data: data + data[4:],
}


@pytest.mark.parametrize("codec", ["zst", "gz", "xz", "bz2", "lz4"])
def test_damaged_compressed_files_stop_the_build_and_all_are_named(builder: Builder, codec):
    write_lines(builder, "good.jsonl", GOOD)
    padded = {"followed by NUL bytes"} if codec == "xz" else set[str]()  # which xz allows
    damages = sorted(DAMAGE.keys() - padded)
    paths = {damage: builder.folder / "in" / f"{damage}.jsonl.{codec}" for damage in damages}
    for damage, path in paths.items():
        path.write_bytes(DAMAGE[damage](whole(codec)))
    with block_bytes(60_000):
        message = assert_stops(builder, f"input that cannot be trusted: {len(damages)} faults")
        for line, damage in zip(message.splitlines()[1:], damages, strict=True):
            assert line.startswith(f"  in/{damage}.jsonl.{codec}: cannot be read to its end: ")
            assert line.endswith("; fetch the file again or take it out of the mixture")
        for path in paths.values():
            path.write_bytes(whole(codec))  # fetched again: the same command goes on
        built = build(builder)
    assert built.accounts[0].documents_read == (1 + 10 * len(damages)) * len(GOOD)
    assert built.accounts[0].documents_kept == len(GOOD)


def test_a_wrong_checksum_stops_the_build(builder: Builder):
    data = bytearray(whole("gz"))
    data[-8] ^= 1
    write_lines(builder, "a.jsonl.gz", [])
    (builder.folder / "in" / "a.jsonl.gz").write_bytes(data)
    assert_stops(builder, r"in/a\.jsonl\.gz: cannot be read to its end: .*incorrect data check")


def test_a_damaged_text_file_is_named_among_many(builder: Builder):
    for name in ("a", "b", "c"):
        write_jsonl(builder.folder / "in" / f"{name}.txt", [GOOD[0]])
    (builder.folder / "in" / "bb.txt.gz").write_bytes(gzip.compress(b"text" * 100)[:-4])
    assert_stops(builder, r"in/bb\.txt\.gz: cannot be read to its end")


@pytest.mark.parametrize("keep", [0, 3, 900, -3])
def test_a_damaged_table_stops_the_build(builder: Builder, keep):
    (builder.folder / "in").mkdir()
    path = builder.folder / "in" / "a.parquet"
    pq.write_table(pa.table({"text": [json.loads(line)["text"] for line in GOOD]}), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert_stops(builder, r"in/a\.parquet: not a readable parquet file")


def test_empty_files_are_no_harm_and_no_input(builder: Builder):
    for name in ("a.jsonl", "b.txt"):
        write_jsonl(builder.folder / "in" / name, [])
    (builder.folder / "in" / "c.jsonl.zst").write_bytes(compress("zst", b""))
    (builder.folder / "in" / "d.jsonl").write_bytes(b"\n\r\n \n")
    message = assert_stops(builder, "a")
    assert "sources.a: none of 1 records is left: 1 empty_text" in message
    write_lines(builder, "e.jsonl", GOOD)
    built = build(builder)
    assert [(r["file"], r["reason"]) for r in dropped_of(builder, built)] == [
        ("in/b.txt", "empty_text")
    ]
    assert built.accounts[0].documents_kept == len(GOOD)
    names = [entry["name"] for entry in built.dataset.manifest["inputs"]]
    assert names == ["in/a.jsonl", "in/b.txt", "in/c.jsonl.zst", "in/d.jsonl", "in/e.jsonl"]


def test_a_directory_without_files_is_named_and_all_such_at_once(builder: Builder):
    (builder.folder / "in").mkdir()
    (builder.folder / "other").mkdir()
    (builder.folder / "other" / "picture.png").write_bytes(b"")
    sources = A | {
        "b": {"weight": 1, "path": "other"},
        "c": {"weight": 1, "path": ["nowhere/*.jsonl"]},
    }
    with pytest.raises(UserError) as stopped:
        builder.build(sources)
    _, *faults = str(stopped.value).splitlines()
    where = [fault.split(": no file to read")[0].strip() for fault in faults]
    names = ["in", "other", "nowhere/*.jsonl"]
    assert where == [
        f"sources.{s}: {builder.folder}/{n}" for s, n in zip("abc", names, strict=True)
    ]
    assert "no file to read (endings .png: picture.png)" in faults[1]
    assert not (builder.folder / "out").exists()


def test_a_file_without_permission_stops_the_build(builder: Builder, monkeypatch):
    path = write_lines(builder, "a.jsonl", GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda name, mode: False)
        assert_stops(builder, r"a\.jsonl: no permission to read it; give it")
    opened = files.open_binary

    def refuse(name: str) -> Any:
        if name.endswith("a.jsonl"):  # as a network drive may do in spite of `access`
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open_binary", refuse)
        assert_stops(builder, r"in/a\.jsonl: cannot be read to its end: .*Permission denied")
    path.unlink()
    path.symlink_to("nowhere")
    assert_stops(builder, r"a\.jsonl: a link to nothing")


def test_a_folder_without_permission_stops_the_build(builder: Builder, monkeypatch):
    write_lines(builder, "open/a.jsonl", GOOD)
    write_lines(builder, "closed/a.jsonl", GOOD)
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert_stops(builder, "in/closed: cannot list it: Permission denied")


TAMPER: dict[str, Callable[[Path], Any]] = {
    "grown": lambda path: path.write_bytes(path.read_bytes() + GOOD[0] + b"\n"),
    "shrunk": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "rewritten": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
@pytest.mark.parametrize("how", TAMPER)
def test_a_file_that_changes_after_it_was_listed_stops_the_build(
    builder: Builder, monkeypatch, how, when
):
    path = write_lines(builder, "a.jsonl", GOOD)
    os.utime(path, ns=(5, 5))

    def change_before(stage: type[Stage], work: str, workers: int) -> None:
        if stage is Prepare:
            TAMPER[how](path)
        plain_loop(stage, work, workers)

    cut = readers.line_block

    def change_while(*args: Any) -> Any:
        TAMPER[how](path)
        return cut(*args)

    gone, changed = "listed, but now unreadable", "changed since it was listed"
    message = gone if how == "removed" else changed
    with monkeypatch.context() as patch:
        if when == "while it is read":
            patch.setattr(readers, "line_block", change_while)
        run_stage = change_before if when == "before it is read" else plain_loop
        with pytest.raises(UserError, match=rf"in/a\.jsonl: {message}"):
            build(builder, run_stage=run_stage)
    assert files.list_names(str(builder.folder / "out")) == []


# --- a full disk ---------------------------------------------------------------------------


class _Disk:
    """Counts what is written and is full after so many bytes."""

    def __init__(self, room: float) -> None:
        self.written = 0
        self._room = room
        self._write_atomic = files.write_atomic

    @contextmanager
    def write_atomic(self, path: str) -> Iterator[Any]:
        with self._write_atomic(path) as file:
            if path.endswith("build.json"):  # the claim on the folder, before the build
                yield file
            else:
                yield _OnDisk(self, file)

    def take(self, n_bytes: int) -> None:
        self.written += n_bytes
        if self.written > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")


class _OnDisk:
    def __init__(self, disk: _Disk, file: Any) -> None:
        self._disk = disk
        self._file = file

    def write(self, data: Any) -> int:
        self._disk.take(memoryview(data).nbytes)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_stops_the_build_anywhere_and_the_same_command_ends_it(
    builder: Builder, monkeypatch
):
    write_lines(builder, "a.jsonl", GOOD * 2)

    def run(output: str, room: float) -> tuple[Built | None, int]:
        disk = _Disk(room)
        with monkeypatch.context() as patch, block_bytes(4_000):
            patch.setattr(files, "write_atomic", disk.write_atomic)
            if disk._room == float("inf"):
                return build(builder, output=output, sequences_per_shard=2), disk.written
            with pytest.raises(UserError, match=r"no space left on the device; .* make room"):
                build(builder, output=output, sequences_per_shard=2)
        return None, disk.written

    undisturbed, size = run("undisturbed", float("inf"))
    for part in range(6):
        (builder.folder / "store").rename(builder.folder / f"store {part}")
        output = builder.folder / f"out {part}"
        run(output.name, size * part // 6)
        assert not (output / "manifest.json").exists()
        assert not list(builder.folder.rglob("*.tmp"))
        built, _ = run(output.name, float("inf"))
        assert built.files() == undisturbed.files()


# --- what other pipelines lose without a word ----------------------------------------------


def test_one_invalid_byte_does_not_cost_the_file(builder: Builder):
    """datatrove drops the whole file and marks its task complete."""
    text = b"".join(line + b"\n" for line in GOOD)
    middle = text.index(b'"text": "', len(text) // 2) + 20
    path = write_lines(builder, "a.jsonl", [])
    path.write_bytes(text[:middle] + b"\xff" + text[middle:])
    built = build(builder)
    (record,) = dropped_of(builder, built)
    assert record["reason"] == "invalid_utf8"
    assert built.accounts[0].documents_kept == len(GOOD) - 1


def test_a_malformed_line_neither_fails_its_file_nor_ends_it(builder: Builder):
    """dolma fails the whole file; its deduplication ends there and reports success."""
    write_lines(builder, "a.jsonl.gz", [*GOOD[:3], b'{"text": "cut', *GOOD[3:]])
    built = build(builder)
    assert [r["line"] for r in dropped_of(builder, built)] == [4]
    assert built.accounts[0].documents_kept == len(GOOD)


@pytest.mark.parametrize("policy", ["pack", "pad", "stream"])
def test_a_document_longer_than_a_block_and_a_shard_ends(builder: Builder, policy):
    """`dolma tokens` writes files for ever."""
    long = json.dumps({"text": prose(random.Random(9), 10_000)}).encode()
    write_lines(builder, "a.jsonl", [*GOOD, long])
    source = {"a": A["a"] | {"policy": policy, "max_passes": 1}}
    with block_bytes(2_000):
        built = builder.build(source, seq_len=128, sequences_per_shard=3, tokens=2_500)
    assert dropped_of(builder, built) == []
    assert built.accounts[0].documents_kept == len(GOOD) + 1
    assert built.accounts[0].tokens_placed == 2_500


def test_a_length_floor_switches_nothing_else_off(builder: Builder):
    """dolma's `min_words` switches its deduplication off."""
    short = [b'{"text": "%d is a short one"}' % i for i in range(5)]
    write_lines(
        builder, "a.jsonl", [*GOOD, *short, short[0], b"broken", *GOOD[:4], b'{"text": " "}']
    )
    reasons = {"duplicate": 4, "empty_text": 1, "invalid_json": 1}
    without = build(builder)
    assert without.accounts[0].documents_dropped == reasons | {"duplicate": 5}
    for unit in ("words", "tokens"):
        built = build(builder, filters={f"min_{unit}": 35}, output=unit)
        assert built.accounts[0].documents_dropped == reasons | {f"too_few_{unit}": 6}
        assert built.accounts[0].documents_kept == len(GOOD)
        dropped_of(builder, built)


def test_every_clean_document_survives(builder: Builder):
    """A decontamination script in wide use deletes every clean document."""
    write_lines(builder, "a.jsonl.zst", GOOD)
    built = build(builder, filters={"min_words": 30, "min_tokens": 30})
    assert dropped_of(builder, built) == []
    table = files.read_table(str(built.dataset.folder / "documents.arrow"))
    assert table["line"].to_pylist() == list(range(1, len(GOOD) + 1))
    starts = [0]
    for line in GOOD[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    assert table["offset"].to_pylist() == starts


def test_a_file_that_failed_is_never_taken_for_complete(builder: Builder):
    """datatrove's resume skips the file that it lost."""
    data = whole("zst")
    path = builder.folder / "in" / "a.jsonl.zst"
    path.parent.mkdir()
    path.write_bytes(data[:-3])
    with block_bytes(20_000, 10_000):
        assert_stops(builder, "cannot be read to its end: Truncated")
        store = next(p for p in (builder.folder / "store").iterdir() if p.is_dir())
        assert list(store.glob("*-00000.arrow"))  # what could be read is there
        assert not list(store.glob("*.end"))  # and not taken for the whole
        path.write_bytes(data)
        built = build(builder, duplicates="keep")
    assert built.accounts[0].documents_kept == 10 * len(GOOD)


# --- the command ---------------------------------------------------------------------------


def test_the_command_reports_broken_input_in_one_message(builder: Builder, capfd):
    write_lines(builder, "b.jsonl", [*GOOD, b"broken"])
    path = builder.folder / "in" / "a.jsonl.zst"
    path.write_bytes(whole("zst")[:-3])
    mixture, out = str(builder.mixture(A, tokens=2_000)), str(builder.folder / "out")
    options = ["--data-root", str(builder.folder), "--workers", "1", "--quiet"]
    arguments = ["--mixture", mixture, "--output", out, *options]
    assert command.main(arguments) == 2
    printed = capfd.readouterr()
    first, second = printed.err.splitlines()
    assert first == "error: input that cannot be trusted: 1 fault"
    assert second.startswith("  in/a.jsonl.zst: cannot be read to its end: Truncated")
    assert printed.out == ""
    path.unlink()
    assert command.main(arguments) == 2
    assert "1 of 25 records are broken (1 invalid_json)" in capfd.readouterr().err
    assert command.main([*arguments, "--max-bad", "0.05"]) == 0
    assert "invalid_json" in capfd.readouterr().out
    assert (builder.folder / "out" / "manifest.json").exists()
