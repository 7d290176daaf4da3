"""Every record of every format is read exactly once, whoever reads which part of it."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Builder, documents, plain_loop, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import hub, lines, readers, run, sources
from pipelines.errors import InputFault, UserError
from pipelines.job import assemble, claim_output
from pipelines.lines import cut_lines
from pipelines.mixture import Source
from pipelines.mixture_file import load_mixture
from pipelines.progress import Reporter
from pipelines.readers import Block, line_block, read_blocks
from pipelines.records import Split
from pipelines.run import build
from pipelines.schemas import SCHEMAS, document_parser
from pipelines.shards import ShardedDataset
from pipelines.sources import list_source, plan_splits, spread
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

BOM = b"\xef\xbb\xbf"
TRICKY = [
    "line separator \u2028 and paragraph separator \u2029 inside",
    "next line \x85, vertical tab \x0b, form feed \x0c, file separator \x1c",
    "carriage returns \r\n and \r alone",
    "  leading and trailing blanks  ",
    "\ttabs\t",
    "NUL \x00 in the middle",
    "emoji 🦜, CJK 漢字, combining e\u0301, a byte order mark \ufeff inside",
    'quotes " and \\ backslashes \\u2028 </s>',
]


# --- helpers -------------------------------------------------------------------------------


@contextmanager
def block_bytes(n: int, read_bytes: int | None = None) -> Iterator[None]:
    """Blocks (and reads) of other sizes, so that small inputs have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_BYTES", n)
        patch.setattr(readers, "BLOCK_BYTES", n)
        patch.setitem(cut_lines.__kwdefaults__, "target", n)
        if read_bytes:
            patch.setattr(lines, "READ_BYTES", read_bytes)
        yield


def splits_of(*paths: Any, root: Any = None, **values: Any) -> list[Split]:
    source = Source.model_validate({"weight": 1, "path": [str(p) for p in paths], **values})
    inputs = list_source("s", source, data_root=root and str(root)).files
    return plan_splits("s", source, inputs)


def blocks_of(split: Split, max_record: int = 1 << 26) -> list[Block]:
    return list(read_blocks(split, max_record=max_record, skip=lambda _: False))


def texts_of(splits: Sequence[Split]) -> list[str]:
    parse = document_parser(SCHEMAS["text"], answers_only=False)
    return [parse(r).text for split in splits for block in blocks_of(split) for r in block.records]


def naive_lines(data: bytes, max_record: int) -> tuple[list[Any], list[Any]]:
    """(line, offset, content) of all records, and (line, offset) of those that are too large."""
    records, too_large = [], []
    offset = 0
    for number, line in enumerate(data.split(b"\n")):
        content = line.removeprefix(BOM) if offset == 0 else line
        if len(line) > max_record:
            too_large.append((number, offset))
        elif content and not content.isspace():
            records.append((number, offset, content))
        offset += len(line) + 1
    return records, too_large


def numbered(blocks: Sequence[Block]) -> tuple[list[Any], list[Any]]:
    """The same of consecutive blocks of a file."""
    records, too_large = [], []
    before = 0
    for block in blocks:
        records += [(before + r.line, r.offset, r.value) for r in block.records]
        too_large += [(before + d.line, d.offset) for d in block.dropped]
        before += block.n_lines
    return records, too_large


def compress(codec: str, data: bytes) -> bytes:
    match codec:
        case "gz":
            return gzip.compress(data)
        case "xz":
            return lzma.compress(data)
        case "bz2":
            return bz2.compress(data)
        case "lz4":
            stream = pa.BufferOutputStream()
            with pa.CompressedOutputStream(stream, "lz4") as file:
                file.write(data)
            return stream.getvalue().to_pybytes()
        case _:
            return pa.compress(data, "zstd", asbytes=True)


awkward = st.lists(
    st.sampled_from(
        [b"a", b"bc", b"\n", b"\n\n", b" ", b"\r", b"\x85", b"\xe2\x80\xa8", BOM, b"\0"]
    )
    | st.binary(max_size=12)
    | st.integers(0, 90).map(lambda n: b"x" * n),
    max_size=40,
).map(b"".join)


# --- lines ---------------------------------------------------------------------------------


@settings(max_examples=250)
@given(awkward, st.integers(1, 64), st.integers(1, 64), st.lists(st.integers(1, 40), min_size=1))
def test_cutting_a_stream_loses_nothing(data, target, max_record, chunk_sizes):
    stream, sizes = io.BytesIO(data), itertools.cycle(chunk_sizes)
    pieces = list(
        cut_lines(lambda _: stream.read(next(sizes)), max_record=max_record, target=target)
    )
    position = 0
    for piece in pieces:
        assert piece.offset == position
        assert piece.data == data[position : position + len(piece.data)]
        assert len(piece.data) <= target + max_record + max(chunk_sizes)
        position += len(piece.data)
        if piece.oversized:
            line = data[position : position + piece.oversized]
            assert len(line) > max_record
            assert b"\n" not in line[:-1]
            position += piece.oversized
        assert position == len(data) or data[position - 1 : position] == b"\n"
    assert position == len(data)
    blocks = [line_block(i, piece, max_record) for i, piece in enumerate(pieces)]
    assert numbered(blocks) == naive_lines(data, max_record)
    assert sum(block.n_bytes for block in blocks) == len(data)


def test_byte_ranges_of_every_small_file_read_every_line_exactly_once(tmp_path):
    path = tmp_path / "a.jsonl"
    for n_bytes in range(1, 7):
        for content in itertools.product(b"x\n", repeat=n_bytes):
            path.write_bytes(bytes(content))
            for block in (1, 2, 3):
                with block_bytes(block, 2):
                    blocks = [b for split in splits_of(path) for b in blocks_of(split, 2)]
                assert numbered(blocks) == naive_lines(bytes(content), 2)


@settings(max_examples=60)
@given(awkward, st.integers(1, 50), st.integers(1, 64), st.integers(1, 40))
def test_byte_ranges_of_a_plain_file_read_every_line_exactly_once(data, block, max_record, reads):
    with tempfile.TemporaryDirectory() as folder, block_bytes(block, reads):
        path = Path(folder, "a.jsonl")
        path.write_bytes(data)
        splits = splits_of(path)
        assert len(splits) == -(-len(data) // block)
        blocks = [b for split in splits for b in blocks_of(split, max_record)]
        assert numbered(blocks) == naive_lines(data, max_record)
        for split in reversed(splits):  # any one of them alone reads its own lines and no others
            mine = [r.offset for b in blocks_of(split, max_record) for r in b.records]
            assert all(split.first <= offset < split.last for offset in mine)


@settings(max_examples=40)
@given(awkward, st.integers(1, 50), st.integers(1, 7), st.sampled_from(["zst", "gz", "xz"]))
def test_any_number_of_strides_together_read_every_block_once(data, block, strides, codec):
    with tempfile.TemporaryDirectory() as folder, block_bytes(block, 16):
        path = Path(folder, f"a.jsonl.{codec}")
        path.write_bytes(compress(codec, data))
        (split,) = splits_of(path)
        whole = blocks_of(split)
        shared = [replace(split, stride=i, strides=strides) for i in range(strides)]
        parts = [block for part in shared for block in blocks_of(part)]
        assert sorted(parts, key=lambda b: b.index) == whole
        assert numbered(whole) == naive_lines(data, 1 << 26)


def test_every_stride_learns_how_many_blocks_there_are(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 50))
    with block_bytes(40):
        (split,) = splits_of(path)
        n_blocks = len(blocks_of(split))
        for stride in range(7):
            asked: list[int] = []
            part = replace(split, stride=stride, strides=7)
            list(read_blocks(part, max_record=99, skip=lambda i, asked=asked: asked.append(i)))
            assert asked == list(range(n_blocks))


@pytest.mark.parametrize("backwards", [False, True], ids=["first to last", "last to first"])
def test_workers_that_share_a_compressed_file_lose_no_document(builder: Builder, backwards):
    lines = b"".join(json.dumps(d).encode() + b"\n" for d in documents(5, 60))
    (builder.folder / "a.jsonl.zst").write_bytes(compress("zst", lines))
    source = {"a": {"weight": 1, "path": "a.jsonl.zst"}}

    def share(splits: Sequence[Split], *, workers: int) -> list[Split]:
        parts = [replace(s, stride=i, strides=4) for s in splits for i in range(4)]
        return parts[::-1] if backwards else parts

    with block_bytes(20_000):
        alone = builder.build(source, tokens=10_000)
        assert alone.accounts[0].documents_read == 60
        (builder.folder / "store").rename(builder.folder / "old store")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "spread", share)
            shared = builder.build(source, tokens=10_000, output="shared")
    assert shared.files() == alone.files()


def test_big_compressed_files_are_shared_and_small_ones_are_not(tmp_path):
    big, small = tmp_path / "big.jsonl.zst", tmp_path / "small.jsonl.zst"
    for path, size in ((big, 40 << 20), (small, 10)):
        with path.open("wb") as file:
            file.truncate(size)
    parts = spread(splits_of(tmp_path), workers=3)
    assert [(p.file.name, p.stride, p.strides) for p in parts] == [
        (str(big), 0, 3),
        (str(big), 1, 3),
        (str(big), 2, 3),
        (str(small), 0, 1),
    ]


def test_a_line_longer_than_the_limit_costs_no_memory():
    chunk = b"x" * (1 << 20)
    parts = itertools.chain([b"first\n"], itertools.repeat(chunk, 200), [b"\nlast\n", b""])
    tracemalloc.start()
    pieces = list(cut_lines(lambda _: next(parts), max_record=1 << 20, target=1 << 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert [(p.data, p.oversized) for p in pieces] == [
        (b"first\n", (200 << 20) + 1),
        (b"last\n", 0),
    ]


@pytest.mark.parametrize(
    "ending", ["\u2028", "\u2029", "\x85", "\r", "\x0b", "\x0c", "\x1c", "\x1e"]
)
def test_lines_end_at_line_feeds_only(tmp_path, ending):
    texts = [f"before{ending}after", f"{ending}second{ending}"]
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    if ending in "\r\x0b\x0c\x1c\x1e":  # not allowed as they are inside JSON strings
        lines = [json.dumps({"text": t}) for t in texts]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode())
    assert texts_of(splits_of(tmp_path)) == texts


def test_windows_line_ends_and_a_byte_order_mark_are_no_part_of_a_record(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BOM + b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    assert texts_of(splits_of(tmp_path)) == ["a", "b"]
    (tmp_path / "a.jsonl").write_bytes(BOM)
    assert texts_of(splits_of(tmp_path)) == []


# --- formats -------------------------------------------------------------------------------


def write_as(folder: Path, kind: str, texts: Sequence[str]) -> Path:
    """The texts in one of the formats."""
    folder.mkdir()
    data = b"".join(
        json.dumps({"text": t, "n": 1}, ensure_ascii=False).encode() + b"\n" for t in texts
    )
    table = pa.table({"n": range(len(texts)), "text": texts})
    path = folder / f"a.{kind.partition(' ')[0]}"
    match kind:
        case "jsonl" | "json" | "ndjson" | "jsonlines":
            path.write_bytes(data)
        case "jsonl.zst" | "jsonl.zstd" | "jsonl.gz" | "jsonl.xz" | "jsonl.bz2" | "jsonl.lz4":
            path.write_bytes(compress(kind.rpartition(".")[2], data))
        case "csv" | "tsv" | "csv.xz":
            content = io.StringIO(newline="")
            writer = csv.writer(content, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([("n", "text"), *enumerate(texts)])
            content = content.getvalue().encode()
            path.write_bytes(compress("xz", content) if kind == "csv.xz" else BOM + content)
        case _ if " of many frames" in kind:
            codec = path.suffix[1:]
            cuts = [data[i : i + 37] for i in range(0, len(data), 37)]
            path.write_bytes(b"".join(compress(codec, cut) for cut in cuts))
        case "parquet":
            pq.write_table(table, path, row_group_size=3)
        case "parquet of dictionaries":
            column = pa.array(texts).dictionary_encode()
            pq.write_table(pa.table({"text": column}), path, row_group_size=3)
        case "parquet of large strings":
            pq.write_table(
                table.cast(pa.schema([("n", pa.int64()), ("text", pa.large_string())])), path
            )
        case "arrow file":
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
        case "arrow stream":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
        case "txt" | "tex" | "md" | "txt.gz" | "tex.zst" | "md.bz2":
            codec = kind.partition(".")[2]
            for i, text in enumerate(texts):
                content = compress(codec, text.encode()) if codec else text.encode()
                (folder / f"{i:03d}.{kind}").write_bytes(content)
    return folder


FORMATS = [
    "jsonl", "json", "ndjson", "jsonlines", "jsonl.zst", "jsonl.zstd", "jsonl.gz", "jsonl.xz",
    "jsonl.bz2", "jsonl.lz4", "jsonl.zst of many frames", "jsonl.gz of many frames",
    "jsonl.xz of many frames", "jsonl.bz2 of many frames", "jsonl.lz4 of many frames", "csv", "tsv",
    "csv.xz", "md", "md.bz2", "parquet", "parquet of dictionaries", "parquet of large strings",
    "arrow file", "arrow stream", "txt", "tex", "txt.gz", "tex.zst",
]  # fmt: skip


@pytest.mark.parametrize("block", [1 << 24, 70], ids=["one block", "many blocks"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, kind, block):
    texts = TRICKY + [f"document {i} " * (i + 1) for i in range(9)]
    folder = write_as(tmp_path / "in", kind, texts)
    with block_bytes(block):
        assert texts_of(splits_of(folder)) == texts


def test_rows_of_tables_are_numbered_over_row_groups(tmp_path):
    folder = write_as(tmp_path / "in", "parquet", [f"text {i}" for i in range(10)])
    splits = splits_of(folder)
    assert [(s.first, s.last) for s in splits] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    rows = [(r.line, r.offset) for s in splits for b in blocks_of(s) for r in b.records]
    assert rows == [(i, -1) for i in range(10)]


def test_one_undecodable_string_in_a_table_costs_one_record(tmp_path):
    def invalid(values: list[bytes]) -> pa.Array:
        return pa.array(values, pa.binary()).view(pa.string())

    texts = invalid([b"good", b"bad \xff", b"also good"])
    meta = pa.StructArray.from_arrays([invalid([b"\xfe", b"b", b"c"])], ["title"])
    tags = pa.ListArray.from_arrays([0, 1, 2, 3], invalid([b"\xfd", b"x", b"y"]))
    table = pa.table({"text": texts, "meta": meta, "tags": tags})
    pq.write_table(table, tmp_path / "a.parquet")
    parse = document_parser(SCHEMAS["redpajama"], answers_only=False)
    (split,) = splits_of(tmp_path)
    parsed = [parse(r) for b in blocks_of(split) for r in b.records]
    assert [p.text for p in parsed[::2]] == ["good", "also good"]
    assert [p.origin for p in parsed[::2]] == ["\ufffd", "c"]
    assert parsed[1].reason == "invalid_utf8"
    assert parsed[1].line == 1


def test_nested_text_counts_towards_the_size_of_a_block(tmp_path):
    rows = [{"data": {"text": "x" * 100}} for _ in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with block_bytes(250):
        (split,) = splits_of(tmp_path)
        assert [len(b.records) for b in blocks_of(split)] == [3, 3, 3, 3, 3, 3, 2]
        assert not [b for b in blocks_of(split, max_record=99) if b.records]


def test_text_files_go_together_until_a_block_is_full(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text("x" * 40)
    with block_bytes(100):
        splits = splits_of(tmp_path)
    assert [len(s.files) for s in splits] == [3, 3, 3, 1]


def test_a_text_file_starts_after_its_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(BOM + b"text\r\n")
    assert texts_of(splits_of(tmp_path)) == ["text\r\n"]


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream"])
def test_a_damaged_table_is_named(tmp_path, kind):
    path = next(write_as(tmp_path / "in", kind, ["text " * 50] * 40).iterdir())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=path.name):
        texts_of(splits_of(path))


# --- finding files -------------------------------------------------------------------------


def test_a_file_that_several_patterns_name_is_read_once(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"text": "b"}])
    (tmp_path / "in" / "link.jsonl").symlink_to("a.jsonl")
    patterns = ["in/*.jsonl", "in", "./in/a.jsonl", "in//b.jsonl", "in/../in/a.jsonl", "in/**/a.*"]
    for order in (patterns, patterns[::-1]):
        assert texts_of(splits_of(*order, root=tmp_path)) == ["a", "b"]
    assert texts_of(splits_of(f"file://{tmp_path}/in/a.jsonl", tmp_path / "in" / "a.jsonl")) == [
        "a"
    ]


def test_files_of_one_name_in_two_folders_are_both_read(tmp_path):
    for folder in ("x", "y", "y/z"):
        write_jsonl(tmp_path / folder / "part-0.jsonl", [{"text": folder}])
    splits = splits_of("x", "y", root=tmp_path)
    assert [s.file.name for s in splits] == ["x/part-0.jsonl", "y/part-0.jsonl", "y/z/part-0.jsonl"]
    assert texts_of(splits) == ["x", "y", "y/z"]


def test_the_order_in_which_a_folder_is_listed_does_not_matter(tmp_path, monkeypatch):
    for i in range(12):
        write_jsonl(tmp_path / f"{i % 3}" / f"{i}.jsonl", [{"text": str(i)}])
        (tmp_path / f"{i % 3}" / f"{i}.txt").write_text(f"text {i}")
    expected = splits_of(tmp_path)
    scandir = os.scandir

    @contextmanager
    def shuffled(folder: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            yield random.Random(1).sample(found := list(entries), len(found))

    monkeypatch.setattr(os, "scandir", shuffled)
    assert splits_of(tmp_path) == expected
    assert splits_of(tmp_path / "*" / "*") == expected
    assert splits_of(*[tmp_path / str(i) for i in (2, 0, 1)]) == expected


def test_files_with_unknown_endings_stop_or_are_skipped_and_an_explicit_format_takes_them(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "part-00000", [{"text": "b"}])
    with pytest.raises(UserError, match=r"unknown endings beside known ones .*: part-00000"):
        splits_of(tmp_path)
    assert texts_of(splits_of(tmp_path, unknown_files="skip")) == ["a"]
    assert texts_of(splits_of(tmp_path, format="jsonl")) == ["a", "b"]


# --- other file systems --------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's memory file system: it stands for the object stores."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/bucket", recursive=True)


def upload(memory: Any, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe(f"/bucket/in/{path.relative_to(folder)}", path.read_bytes())


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "parquet", "arrow stream", "txt.gz"])
def test_object_stores_give_the_same_documents(tmp_path, memory, kind):
    texts = TRICKY + [f"document {i} " * (i + 1) for i in range(9)]
    upload(memory, write_as(tmp_path / "in", kind, texts))
    with block_bytes(90):
        for pattern in ("memory://bucket/in", f"memory://bucket/*/*.{kind.partition(' ')[0]}"):
            splits = splits_of(pattern)
            assert all(s.file.path.startswith("memory://") for s in splits)
            assert texts_of(splits) == texts


def test_an_object_that_changed_since_it_was_listed_stops_the_build(memory):
    memory.pipe("/bucket/a.jsonl", b'{"text": "a"}\n')
    (split,) = splits_of("memory://bucket/a.jsonl")
    memory.pipe("/bucket/a.jsonl", b'{"text": "b"}\n')
    with pytest.raises(InputFault, match=r"a\.jsonl: changed since it was listed"):
        blocks_of(split)
    memory.mv("/bucket/a.jsonl", "/bucket/b.jsonl")
    with pytest.raises(InputFault, match=r"a\.jsonl: listed, but now unreadable"):
        blocks_of(split)


def test_a_missing_object_is_named():
    with pytest.raises(UserError, match=r"sources\.s: memory://bucket/x: no file to read"):
        splits_of("memory://bucket/x")


def test_a_build_from_object_store_to_object_store_gives_the_same_files(
    builder: Builder, memory, tmp_path
):
    write_jsonl(builder.folder / "a.jsonl", documents(3, 40))
    papers = [{"text": d["text"], "meta": {"arxiv_id": d["id"]}} for d in documents(4, 40)]
    write_jsonl(builder.folder / "p.jsonl", papers)
    write_jsonl(builder.folder / "m.jsonl", [{"id": "4-7", "abstract": "We show it."}])
    paper = {
        "weight": 1,
        "path": "p.jsonl",
        "schema": "redpajama",
        "abstracts": {"path": "m.jsonl"},
    }
    here = builder.build({"a": {"weight": 2, "path": "a.jsonl"}, "p": paper})
    upload(memory, builder.folder)
    there = {
        "a": {"weight": 2, "path": "memory://bucket/in/a.jsonl"},
        "p": paper
        | {
            "path": "memory://bucket/in/p.jsonl",
            "abstracts": {"path": "memory://bucket/in/m.jsonl"},
        },
    }
    mixture = load_mixture(str(builder.mixture(there)))
    file = fetch_tokenizer(mixture.tokenizer)
    store, output = "memory://bucket/store", "memory://bucket/out"
    job = assemble(mixture, file, data_root=None, store=store, output=output)
    claim_output(job)
    quiet = Reporter(quiet=True, log_json=False)
    build(
        job,
        load_tokenizer(file),
        run_stage=plain_loop,
        report=quiet,
        max_bad=0,
        workers=1,
    )
    memory.get("/bucket/out/", str(tmp_path / "fetched"), recursive=True)
    fetched = {p.name: p.read_bytes() for p in (tmp_path / "fetched").iterdir()}
    assert {n: b for n, b in fetched.items() if n in here.shard_bytes()} == here.shard_bytes()
    assert fetched.keys() == here.files().keys()
    assert (
        ShardedDataset(tmp_path / "fetched").manifest["totals"] == here.dataset.manifest["totals"]
    )


# --- hub data sets -------------------------------------------------------------------------


def test_a_hub_data_set_is_streamed_shard_by_shard(tmp_path):
    pytest.importorskip("datasets")
    for shard in range(3):
        rows = [{"text": f"{shard}-{i} \u2028", "id": f"{shard}-{i}"} for i in range(4)]
        write_jsonl(tmp_path / "data" / f"train-{shard}.jsonl", rows)
    write_jsonl(tmp_path / "data" / "test-0.jsonl", [{"text": "test"}])
    splits = splits_of(f"hf://{tmp_path}?split=train")
    assert [s.format for s in splits] == ["hub"] * 3
    assert texts_of(splits) == [f"{shard}-{i} \u2028" for shard in range(3) for i in range(4)]
    assert texts_of(splits_of(f"hf://{tmp_path}?split=test")) == ["test"]
    with pytest.raises(UserError, match=r"sources\.s: .*no such key 'splt'; known: config"):
        splits_of(f"hf://{tmp_path}?splt=train")
    with pytest.raises(UserError, match="cannot open the data set"):
        splits_of(f"hf://{tmp_path}?split=nope")


def test_a_hub_data_set_that_breaks_off_stops_the_build(tmp_path, monkeypatch):
    def broken(columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist([{"text": "fine"}])
        raise RuntimeError("connection lost")

    monkeypatch.setattr(hub, "open_shard", lambda _: (["text"], broken))
    file = sources.InputFile("hf://o/n#00000", "hf://o/n#00000", 0, "1")
    with pytest.raises(InputFault, match=r"hf://o/n#00000: cannot be read .* connection lost"):
        blocks_of(Split("s", "hub", (file,)))
