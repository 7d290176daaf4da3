"""Forms of input that have rules of their own: columns of tables, CSV, web pages, tars, windows."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import Builder, documents, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from test_readers import block_bytes, blocks_of, compress, splits_of, texts_of

from pipelines import readers
from pipelines.chat_schemas import CHAT_SCHEMAS
from pipelines.errors import InputFault, UserError
from pipelines.estimate import estimate
from pipelines.job import assemble
from pipelines.learn_marks import MARKS, TEXT_MARKS
from pipelines.mixture_file import load_mixture
from pipelines.readers import Block, read_blocks
from pipelines.record_fields import CONTENT, MEDIA, TEXT_MEDIA
from pipelines.schemas import Schema, column_chooser
from pipelines.table_readers import csv_table
from pipelines.templates.choice import Renderer
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

# --- columns -------------------------------------------------------------------------------

YEAR_10000 = 253_402_300_800
FAR = pa.array([YEAR_10000 * 10**6, 0, None], pa.timestamp("us"))
ODD = {
    "far": FAR,
    "no zone": pa.array([YEAR_10000 * 10**6, 0, None], pa.timestamp("us", "Europe/Nowhere")),
    "far days": pa.array([YEAR_10000 // 86400, 0, None], pa.date32()),
    "inside": pa.StructArray.from_arrays([FAR, pa.array(["a", "b", "c"])], ["at", "by"]),
    "list": pa.array([[YEAR_10000 * 10**6], [], None], pa.list_(pa.timestamp("us"))),
    "map": pa.array([[("k", 1), ("k", 2)], [("k", 3)], None], pa.map_(pa.string(), pa.int8())),
    "bytes": pa.array([b"\xff", b"b", None], pa.binary()).view(pa.string()),
    "vector": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
}
EPOCH = datetime(1970, 1, 1)
READ: Mapping[str, list[Any]] = {
    "far": ["10000-01-01 00:00:00.000000", EPOCH, None],
    "no zone": ["10000-01-01 00:00:00.000000", "1970-01-01 00:00:00.000000", None],
    "far days": ["10000-01-01", EPOCH.date(), None],
    "inside": [
        {"at": "10000-01-01 00:00:00.000000", "by": b"a"},
        {"at": EPOCH, "by": b"b"},
        {"at": None, "by": b"c"},
    ],
    "list": [["10000-01-01 00:00:00.000000"], [], None],
    "map": [[{"key": "k", "value": 1}, {"key": "k", "value": 2}], {"k": 3}, None],
    "bytes": [b"\xff", b"b", None],
    "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
}


def write_table(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        make = pa.ipc.new_file if "file" in path.stem else pa.ipc.new_stream
        with make(path, table.schema) as writer:
            writer.write_table(table)
    return path


TABLES = ["a.parquet", "file.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("column", ODD)
def test_no_value_of_a_column_stops_a_build(tmp_path, name, column):
    path = write_table(tmp_path / name, pa.table({"text": ["1", "2", "3"], column: ODD[column]}))
    (split,) = splits_of(path)
    (block,) = blocks_of(split)
    assert [record.value[column] for record in block.records] == READ[column]
    assert [record.value["text"] for record in block.records] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("name", [*TABLES, "a.csv"])
def test_only_the_columns_that_are_needed_are_in_a_record_and_the_others_are_named(tmp_path, name):
    columns = {"id": ["1"], "text": ["a"], "vector": ["0.5"], "a.b": ["c"]}
    path = tmp_path / name
    if path.suffix == ".csv":
        path.write_text("id,text,vector,a.b\n1,a,0.5,c\n")
    else:
        write_table(path, pa.table(columns))

    def read(*names: str) -> Block:
        (split,) = splits_of(path)
        chosen = lambda name: name in names  # noqa: E731
        (block,) = read_blocks(split, max_record=99, skip=lambda _: False, columns=chosen)
        return block

    block = read("text", "id", "nothing")
    assert block.records[0].value == {"id": b"1", "text": b"a"}
    assert block.unread == {"vector", "a.b"}
    assert read("a").records[0].value == {}
    assert read("a").unread == set(columns)


def test_a_build_reads_the_columns_of_its_schema_and_those_that_may_drop_a_record(
    builder: Builder, monkeypatch
):
    seen: set[str] = set()
    inner = readers.parquet_table

    def spy(*args: Any) -> Any:
        table = inner(*args)
        seen.update(table.unread)
        return table

    monkeypatch.setattr(readers, "parquet_table", spy)
    rows = [
        d | {"vector": [0.5], "at": EPOCH, "image": None, "is_trained": None}
        for d in documents(1, 30)
    ]
    table = pa.Table.from_pylist(rows)
    far = pa.array([YEAR_10000 * 10**6] * 30, pa.timestamp("us", "Europe/Nowhere"))
    (builder.folder / "in").mkdir()
    pq.write_table(table.append_column("far", far), builder.folder / "in" / "a.parquet")
    built = builder.build({"a": {"weight": 1, "path": "in"}}, tokens=2_000)
    assert built.accounts[0].documents_kept == 30
    assert seen == {"vector", "at", "far"}


def test_columns_that_may_drop_a_record_are_read():
    fields = frozenset(CHAT_SCHEMAS["messages"].fields)
    chat = Renderer(fields, lambda _: pytest.fail("not rendered"), is_chat=True)
    needed = column_chooser(Schema(text=(), ignored=("cot",)), chat)
    for name in (*MEDIA, *CONTENT, *MARKS, "isTrained", "no_loss", "messages", "Tools"):
        assert needed(name) == (name != "cot")
    needed = column_chooser(Schema(origin=("meta.url",), ignored=("mask",)), None)
    for name in (*TEXT_MEDIA, *TEXT_MARKS, "text", "meta"):
        assert needed(name) == (name != "mask")
    assert not any(map(needed, ("embedding", "image_url", "context", "url", "labels")))


def test_a_hub_data_set_with_odd_columns_is_read(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    table = pa.table({"text": ["1", "2", "3"], "far": FAR, "no zone": ODD["no zone"]})
    pq.write_table(table, tmp_path / "data" / "train-0.parquet")
    (split,) = splits_of(f"hf://{tmp_path}?split=train")
    (block,) = blocks_of(split)
    assert [record.value for record in block.records] == [
        {"text": text, "far": far, "no zone": zone}
        for text, far, zone in zip([b"1", b"2", b"3"], READ["far"], READ["no zone"], strict=True)
    ]
    chosen = read_blocks(split, max_record=99, skip=lambda _: False, columns="text".__eq__)
    (block,) = chosen
    assert [record.value for record in block.records] == [{"text": t} for t in (b"1", b"2", b"3")]
    assert block.unread == {"far", "no zone"}


@pytest.mark.parametrize(
    "name", ["a.parquet", "file.arrow", "stream.arrow", "a.csv.gz", "a.tar.gz", "a.json"]
)
def test_a_plan_counts_the_documents_of_a_file_whatever_else_it_holds(builder: Builder, name):
    found = documents(1, 200)
    path = builder.folder / name
    table = pa.Table.from_pylist(found).append_column("vector", pa.array([[0.1] * 999] * 200))
    if name == "a.csv.gz":
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, ["text", "id"])
        writer.writeheader()
        writer.writerows(found)
        path.write_bytes(compress("gz", lines.getvalue().encode()))
    elif name == "a.tar.gz":
        tar = tar_of([(f"{d['id']}.txt", d["text"].encode()) for d in found])
        path.write_bytes(compress("gz", tar))
    elif name == "a.json":
        path.write_text(json.dumps(found))
    else:
        write_table(path, table)
    mixture = load_mixture(str(builder.mixture({"a": {"weight": 1, "path": name}})))
    file = fetch_tokenizer(mixture.tokenizer)
    job = assemble(
        mixture, file, data_root=str(builder.folder), store="s", output="o", dry_run=True
    )
    assert estimate(job.sources[0], load_tokenizer(file)).documents == 200


# --- CSV -----------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=("Cs",))) for _ in range(3)]),
        max_size=9,
    ),
    st.sampled_from(",\t"),
    st.integers(1, 9),
)
def test_whatever_a_csv_library_writes_is_read_back(rows, delimiter, chunk):
    content = io.StringIO(newline="")
    csv.writer(content, delimiter=delimiter).writerows([("a", "b", "c"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.table_readers.READ_BYTES", chunk)
        stream = io.BytesIO(content.getvalue().encode())
        table = csv_table(stream, "a.csv", delimiter=delimiter, columns=None, max_record=1 << 20)
        found = [tuple(v.decode() for v in r.value.values()) for r in table.rows]
    assert found == rows


@pytest.mark.parametrize("block", [1 << 24, 20])
def test_rows_of_csv_are_numbered_and_wrong_ones_are_dropped(tmp_path, block):
    lines = [b"text,n", b'"a, ""b""', b'c",1', b"only one", b"", b"one,too,many", b"bad \xff,3"]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    with block_bytes(block):
        (split,) = splits_of(tmp_path)
        blocks = blocks_of(split)
    assert [(r.line, r.value["text"]) for b in blocks for r in b.records] == [
        (0, b'a, "b"\r\nc'), (3, b"bad \xff")
    ]  # fmt: skip
    assert [(d.line, d.reason, d.evidence) for b in blocks for d in b.dropped] == [
        (1, "invalid_csv", "1 cells, the first row has 2"),
        (2, "invalid_csv", "3 cells, the first row has 2"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'text\nfine\n"never closed\nmore\n',
            r"row that begins in line 3: unexpected end of data",
        ),
        (b'text,n\nfine,1\n"he said "hi"",2\n', r"row that begins in line 3: ',' expected after"),
        (b"text,text\na,b\n", r"first row, which names the columns, has 'text' twice"),
        (b"text\n" + b"x" * 2000, r"a line of more than 1,000 bytes"),
        (b'text\n"' + b"x\n" * 999, r"row that begins in line 2: field larger than field limit"),
    ],
)
def test_csv_whose_rows_have_no_certain_end_stops_the_build(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputFault, match=rf"a\.csv: .*{message}"):
        [blocks_of(split, max_record=1000) for split in splits_of(tmp_path)]


# --- pages ---------------------------------------------------------------------------------

PAGE = """<!doctype html><html><head><title>Title</title><style>p {color: red}</style></head>
<body><script>var x = "no text";</script><h1>One &amp; two</h1><!-- no -->
<p>Some <b>bo</b>ld text<br>and caf&eacute;.</p><img src="x.png" alt="no text"></body></html>"""


@pytest.mark.parametrize("name", ["a.html", "a.HTM", "a.html.gz"])
def test_of_a_web_page_the_text_is_read(tmp_path, name):
    content = PAGE.encode()
    (tmp_path / name).write_bytes(compress("gz", content) if name.endswith("gz") else content)
    expected = "One & two\n\nSome bold text\nand café."
    assert texts_of(splits_of(tmp_path)) == [expected]
    assert texts_of(splits_of(tmp_path, format="text")) == [PAGE]


def test_pages_and_texts_of_one_folder_are_read_each_in_its_way(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.md").write_text(f"<b>{i}</b>")
        (tmp_path / f"{i}.html").write_text(f"<b>{i}</b>")
    assert texts_of(splits_of(tmp_path)) == [*(f"<b>{i}</b>" for i in range(4)), *"0123"]


# --- tars ----------------------------------------------------------------------------------


def tar_of(members: Sequence[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def rows_of(tmp_path: Path, content: bytes, name: str = "a.tar") -> list[Any]:
    (tmp_path / name).write_bytes(content)
    blocks = [b for split in splits_of(tmp_path / name) for b in blocks_of(split, 1 << 10)]
    return [r.value for b in blocks for r in b.records] + [d[:3] for b in blocks for d in b.dropped]


SAMPLES = [
    ("d/000.txt", b"first"),
    ("d/000.json", b'{"id": 7, "text": "not this"}'),
    ("d/000.jpg", b"\xff\xd8"),
    ("d/_old.txt", b"no"),
    ("001.json", b'{"text": "second"}'),
    ("002.HTML", b"<p>third"),
]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.zst", "A.TAR"])
def test_members_that_share_a_name_are_one_record(tmp_path, name, kind):
    content = tar_of(SAMPLES, kind)
    codec = {"a.tar.gz": "gz", "a.tgz": "gz", "a.tar.zst": "zst"}.get(name)
    assert rows_of(tmp_path, compress(codec, content) if codec else content, name) == [
        {"name": "d/000", "id": 7, "text": b"first", "txt": b"first", "jpg": "d/000.jpg",
         "json": {"id": 7, "text": "not this"}},
        {"name": "001", "text": "second", "json": {"text": "second"}},
        {"name": "002", "text": b"third", "html": b"third"},
    ]  # fmt: skip


def test_samples_that_cannot_be_read_are_dropped_and_the_others_are_not(tmp_path):
    members = [("a.json", b"{"), ("b.json", b'"\xff"'), ("c.txt", b"x" * 1025), ("d.txt", b"d")]
    text, *dropped = rows_of(tmp_path, tar_of(members))
    assert text["text"] == b"d"
    assert [(reason, line) for reason, _, line in dropped] == [
        ("invalid_json", 0), ("invalid_utf8", 1), ("record_too_large", 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jsonl", b"{}")], r"a\.tar: a\.jsonl: a file of its own, .*unpack the tar"),
        ([("a.txt.gz", b"")], r"a\.tar: a\.txt\.gz: a file of its own"),
        ([("Mr. Smith.txt", b"a")], r"a\.tar: Mr\. smith\.txt: a sample's name ends at its first"),
        ([("a.txt", b"a"), ("a.TXT", b"b")], r"a\.tar: a\.txt: a sample's name ends at its first"),
    ],
)
def test_tars_of_other_things_than_samples_stop_the_build(tmp_path, members, message):
    with pytest.raises(InputFault, match=message):
        rows_of(tmp_path, tar_of(members))


def test_a_tar_that_was_cut_off_anywhere_stops_the_build(tmp_path):
    content = tar_of([("a.txt", b"a" * 600), ("b.txt", b"b" * 600)])
    used = 2 * (512 + 1024)
    for length in (0, 1, 511, 512, 700, 512 + 1024, 512 + 1024 + 512, used):
        with pytest.raises(InputFault, match=r"a\.tar: .*fetch the file again or take it out"):
            rows_of(tmp_path, content[:length])


# --- compression ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [27, 30])
def test_zstd_with_long_windows_is_read_and_its_end_is_missed(tmp_path, bits):
    lines = b"".join(json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(999))
    options = zstandard.ZstdCompressionParameters(window_log=bits, enable_ldm=True)
    frame = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=options).stream_writer(
        frame, closefd=False
    ) as writer:
        writer.write(lines)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(frame.getvalue() * 2)
    assert texts_of(splits_of(path)) == [f"text {i}" for i in range(999)] * 2
    path.write_bytes(frame.getvalue() + frame.getvalue()[:-1])
    with pytest.raises(InputFault, match=r"[Tt]runcated compressed stream; fetch the file again"):
        texts_of(splits_of(path))


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.arrow.zst"])
def test_tables_that_are_compressed_as_a_whole_are_refused_with_the_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{name}: a table that is compressed .*; decompress it"):
        splits_of(tmp_path)


# --- advice --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (PermissionError(13, "denied"), "give the user that runs the build the permission to read"),
        (FileNotFoundError(2, "gone"), "it was moved or removed while it was read"),
        (OSError(5, "Input/output error"), "the disk or its network failed; run again"),
        (MemoryError("malloc"), "give the worker more memory"),
        (pa.ArrowNotImplementedError("codec"), "write the file in another type or codec"),
        (OSError("Parquet file is encrypted"), "write the file without encryption"),
        (ValueError("not a task"), "mend the file or take it out of the mixture"),
        (OSError("Truncated compressed stream"), "fetch the file again or take it out"),
        (pa.ArrowInvalid("Parquet magic bytes not found"), "fetch the file again or take it out"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_damaged_files_are_to_be_fetched_again(tmp_path, monkeypatch, error, way_out):
    def fail(*_: Any) -> Any:
        raise error
        yield

    (split,) = splits_of(write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}]))
    monkeypatch.setattr(readers, "_lines", fail)
    with pytest.raises(InputFault) as stopped:
        blocks_of(split)
    assert str(stopped.value).startswith(f"{split.place()}: cannot be read to its end: {error}; ")
    assert way_out in str(stopped.value)
    assert ("fetch the file again or" in str(stopped.value)) == way_out.startswith("fetch")
