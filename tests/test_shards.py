"""The shard format: what docs/formats.md says is what is written, and damage is found."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from conftest import Builder, Built, documents, write_jsonl

from decontam.report import OVERLAP_SCHEMA
from decontam.tasks import Verdict
from pipelines.audit import DUPLICATE, NEAR_DUPLICATE
from pipelines.decontaminate import CONTAMINATED, CONTAMINATED_TASK
from pipelines.finish import DOCUMENT_SCHEMA
from pipelines.gather import fill_rows
from pipelines.records import BAD_REASONS
from pipelines.references import SENTENCEPIECE
from pipelines.shards import META_SCHEMA, SEGMENT, ShardedDataset, dataset_id
from pipelines.store import INDEX_SCHEMA, TokenReader
from pipelines.tasks import Decision
from pipelines.tokenizer import Tokenizer
from pipelines.tokenizer_file import TokenizerFile

FORMATS = (Path(__file__).resolve().parents[1] / "docs" / "formats.md").read_text()
PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"


def reader_of_the_document(name: str = "read") -> Callable[[Any], Any]:
    """A function of the last block of code in the document."""
    scope: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", FORMATS, re.DOTALL)[-1], scope)
    return scope[name]


def question(i: int) -> dict[str, str]:
    prompt = f"Which words follow number {i}? "
    return {"prompt": prompt, "text": prompt + documents(100 + i, 1, low=20, high=60)[0]["text"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Built:
    """Packed, padded and streamed sources, one with prompts, some documents twice; 3 shards."""
    builder = Builder(tmp_path_factory.mktemp("shards"), tokenizer_model)
    books = documents(1, 40)
    write_jsonl(builder.folder / "books.jsonl", [*books, books[3], b"{broken", {"text": " "}])
    write_jsonl(builder.folder / "asked.jsonl", [question(i) for i in range(25)])
    write_jsonl(builder.folder / "stream.jsonl", documents(3, 10))
    return builder.build(
        {
            "books": {"weight": 3, "path": "books.jsonl", "max_passes": 3},
            "asked": {
                "weight": 1,
                "path": "asked.jsonl",
                "fields": {"text": "text", "prompt": "prompt"},
                "loss": "answers",
                "policy": "pad",
                "max_passes": 3,
            },
            "stream": {
                "weight": 1,
                "path": "stream.jsonl",
                "policy": "stream",
                "stream_sequences": 3,
            },
        },
        tokens=24_000,
        sequences_per_shard=64,
    )


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(built.dataset.folder, tmp_path / "copy"))


# --- the document --------------------------------------------------------------------------


def test_the_reader_in_the_document_gives_what_the_data_set_gives(built):
    rows = list(reader_of_the_document()(built.dataset.folder))
    assert len(rows) == len(built.dataset) > 64
    assert {row["pass"] for row in rows} >= {0, 1}
    for position, row in enumerate(rows):
        sequence = built.dataset.sequence(position)
        assert list(row["ids"]) == sequence.tokens.tolist()
        assert (row["source"], row["pass"]) == (sequence.source, sequence.pass_)
        assert row["n_real"] == sequence.n_real
        assert row["segments"] == sequence.segments
        assert [(s["start"], s["end"]) for s in row["no_loss"]] == sequence.no_loss
        predicted = reader_of_the_document("targets")(row)
        assert predicted == sequence.targets().tolist()
        firsts = [s["start"] for s in row["segments"] if not s["continues"]]
        assert not any(predicted[i] for i in (*firsts, *range(row["n_real"], len(predicted))))


def reasons_in_the_code() -> set[str]:
    """Why templates and schemas refuse records, as far as the reasons are written out."""
    found: set[str] = set()
    for path in sorted(PIPELINES.rglob("*.py")):
        if "synthesis" not in path.parts:
            text = path.read_text()
            found |= set(re.findall(r"BadRecordError\(\s*\"(\w+)\"", text))
            found |= set(re.findall(r"missing=\"(\w+)\"", text))
            found |= set(re.findall(r"BadRecordError\(\s*\"\w+\" if \w+ else \"(\w+)\"", text))
            found |= set(re.findall(r"\"((?:two|has)_\w+)\"", text))
            found |= set(re.findall(r"\.dropped\(\s*\"(\w+)\"", text))
            found |= set(re.findall(r"return \"([a-z_]+)\", (?:f\"|repr|lang)", text))
    return found


def keys_of(value: dict[str, Any], *, below: tuple[str, ...] = ()) -> set[str]:
    keys = set(value)
    for name in below:
        keys |= {f"{name}.{key}" for key in value[name]}
    return keys


def test_every_column_key_and_reason_is_in_the_document_and_no_other(built):
    manifest = built.dataset.manifest
    tables = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in FORMATS.splitlines()
              if line.startswith("| `")]  # fmt: skip
    documented = {name for names in tables for name in names}
    written = {*META_SCHEMA.names, *(f.name for f in SEGMENT), *DOCUMENT_SCHEMA.names}
    written |= {*INDEX_SCHEMA.names, *manifest["sources"][0], *BAD_REASONS, DUPLICATE}
    written |= {CONTAMINATED, CONTAMINATED_TASK, "too_few_passages", "over_budget"}
    written |= reasons_in_the_code()
    written |= {*OVERLAP_SCHEMA.names, "decontamination", NEAR_DUPLICATE}
    written |= set(Decision("a", "t", 1, False, None, Verdict(False, None, None)).as_json())
    written |= keys_of(manifest, below=("tokenizer", "order")) - {"tokenizer", "order"}
    assert documented == written
    assert {key for key in (*manifest["shards"][0], *manifest["totals"], *manifest["inputs"][0])
            if f"`{key}`" not in FORMATS} == set()  # fmt: skip


def test_the_document_says_which_reasons_mean_broken_input():
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \|", FORMATS, re.MULTILINE)
    assert {reason for reason, broken in rows if broken == "yes"} == BAD_REASONS


def test_what_always_holds_does(built):
    seq_len = built.dataset.seq_len
    uses: dict[tuple[str, int, bytes], list[tuple[int, int]]] = {}
    for row in reader_of_the_document()(built.dataset.folder):
        ends = np.cumsum([0, *(s["length"] for s in row["segments"])]).tolist()
        assert [s["start"] for s in row["segments"]] == ends[:-1]
        assert ends[-1] == row["n_real"] <= seq_len
        assert not any(row["ids"][row["n_real"] :])
        assert row["sum_len_sq"] == sum(s["length"] ** 2 for s in row["segments"])
        off = sum(span["end"] - span["start"] for span in row["no_loss"])
        assert row["n_loss"] == row["n_real"] - off
        spans = [(s["start"], s["end"]) for s in row["no_loss"]]
        assert all(a < b for a, b in spans)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        assert all(any(s["start"] <= a and b <= s["start"] + s["length"] for s in row["segments"])
                   for a, b in spans)  # fmt: skip
        for s in row["segments"]:
            assert not s["continues"]
            assert s["head_cut"] == (s["offset"] > 0)
            use = (row["source"], row["pass"], s["document"])
            uses.setdefault(use, []).append((s["offset"], s["offset"] + s["length"]))
    lineage = pa.ipc.open_file(built.dataset.folder / "documents.arrow").read_all().to_pylist()
    n_tokens = {(d["source"], d["uid"]): d["n_tokens"] for d in lineage}
    for (source, _, uid), pieces in uses.items():
        pieces.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(pieces))
        assert pieces[-1][1] <= n_tokens[built.dataset.sources.index(source), uid]


def test_every_segment_is_that_piece_of_its_documents_text(built, tokenizer_model):
    import sentencepiece

    texts = [json.loads(line)["text"]
             for name in ("books", "asked", "stream")
             for line in (built.dataset.folder.parent / f"{name}.jsonl").read_bytes().splitlines()
             if line != b"{broken"]  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    rare = processor.encode("漢")  # bytes, with which nothing merges
    by_uid = {xxhash.xxh3_128_digest(text.encode()): processor.encode(text) for text in texts}
    for i in range(25):  # no token reaches from a prompt into its answer
        prompt, text = question(i)["prompt"], question(i)["text"]
        answer = processor.encode("漢" + text.removeprefix(prompt))[len(rare) :]
        ids = processor.encode(prompt) + answer
        by_uid[xxhash.xxh3_128_digest(text.encode())] = ids
    cut = 0
    for row in reader_of_the_document()(built.dataset.folder):
        for s in row["segments"]:
            whole = [1, *by_uid[s["document"]], 2]
            piece = whole[s["offset"] : s["offset"] + s["length"]]
            assert list(row["ids"][s["start"] : s["start"] + s["length"]]) == piece
            assert s["tail_cut"] == (s["offset"] + s["length"] < len(whole))
            cut += s["tail_cut"]
    assert cut


def test_prompts_and_nothing_else_are_without_loss(built):
    rows = list(reader_of_the_document()(built.dataset.folder))
    assert {row["source"] for row in rows if row["no_loss"]} == {"asked"}
    assert all(row["no_loss"] and row["n_loss"] for row in rows if row["source"] == "asked")


def test_every_dropped_record_is_listed_with_its_place_and_reason(built):
    path = str(built.dataset.folder / "dropped.jsonl.zst")
    lines = pa.input_stream(path, compression="zstd").read().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["file"], r["line"], r["reason"]) for r in records] == [
        ("books.jsonl", 41, "duplicate"),
        ("books.jsonl", 42, "invalid_json"),
        ("books.jsonl", 43, "empty_text"),
        ("asked.jsonl", 7, "too_many_tokens"),
    ]
    content = (built.dataset.folder.parent / "books.jsonl").read_bytes()
    assert content[records[1]["offset"] :].startswith(b"{broken\n")
    example = next(line for line in FORMATS.splitlines() if line.startswith('{"source":'))
    assert [list(record) for record in records] == [list(json.loads(example))] * 4


# --- digests -------------------------------------------------------------------------------


def test_the_digests_are_those_of_independent_libraries(built):
    folder, manifest = built.dataset.folder, built.dataset.manifest
    sha256 = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    for shard in manifest["shards"]:
        assert shard["sha256_tok"] == sha256[f"{shard['name']}.tok"]
        assert shard["sha256_meta"] == sha256[f"{shard['name']}.meta.arrow"]
    assert manifest["files"] == {name: sha256[name] for name in manifest["files"]}
    for number in range(len(manifest["shards"])):
        meta = built.dataset.meta(number)
        rows = (folder / f"{number:05d}.tok").read_bytes()
        size = len(rows) // len(meta)
        assert meta["xxh3"].to_pylist() == [
            xxhash.xxh3_64_intdigest(rows[i : i + size], seed=0) for i in range(0, len(rows), size)
        ]
        assert meta.schema.metadata[b"sha256_tok"].decode() == sha256[f"{number:05d}.tok"]
    policy = b'["SentencePiece model", 1, 2, [], false]'
    tokenizer = policy + b"\0" + (folder / "tokenizer.model").read_bytes()
    assert manifest["tokenizer"]["digest"] == hashlib.sha256(tokenizer).hexdigest()


def test_the_checksum_is_that_of_the_other_lines(built):
    lines = (built.dataset.folder / "manifest.json").read_bytes().splitlines(keepends=True)
    others = [line for line in lines if not line.startswith(b' "checksum"')]
    assert len(others) == len(lines) - 1
    digest = hashlib.sha256(b"".join(others)).hexdigest()
    assert built.dataset.manifest["checksum"] == digest


def test_the_dataset_id_is_that_of_the_object_in_the_document(built):
    manifest = built.dataset.manifest
    keys = re.search(r"^    (\{\"format_version\":….*\})$", FORMATS, re.MULTILINE)
    assert keys
    values = manifest | {"sources": [s["name"] for s in manifest["sources"]]}
    parts = [f'"{k}":{json.dumps(values[k], sort_keys=True, separators=(",", ":"))}'
             for k in re.findall(r'"(\w+)":', keys[1])]  # fmt: skip
    assert dataset_id(manifest) == hashlib.sha256(f"{{{','.join(parts)}}}".encode()).hexdigest()


def test_the_dataset_id_does_not_depend_on_paths_or_versions(built, builder):
    data = built.dataset.folder.parent
    shutil.copytree(data, builder.folder, dirs_exist_ok=True)
    shutil.rmtree(builder.folder / "out")
    (builder.folder / "moved").mkdir()
    for name in ("books", "asked", "stream"):
        (builder.folder / f"{name}.jsonl").rename(builder.folder / "moved" / f"{name}.jsonl")
    builder.tokenizer = shutil.copy(builder.tokenizer, builder.folder / "other.model")
    recipe = built.dataset.manifest["recipe"]
    sources = {
        name: {k: v for k, v in source.items() if v is not None and k != "abstracts"}
        | {"path": f"moved/{name}.jsonl", "weight": int(source["weight"])}
        for name, source in ((name, recipe["sources"][name]) for name in built.dataset.sources)
    }
    again = builder.build(sources, output="elsewhere", tokens=24_000, sequences_per_shard=64)
    manifest = again.dataset.manifest
    assert manifest["recipe"] != recipe
    assert manifest["inputs"] != built.dataset.manifest["inputs"]
    assert manifest["dataset_id"] == built.dataset.manifest["dataset_id"]
    assert dataset_id(manifest | {"versions": {}, "name": "x"}) == manifest["dataset_id"]


@pytest.mark.parametrize(
    "key", ["seq_len", "pad_id", "token_type", "tokenizer", "shards", "sources"]
)
def test_the_dataset_id_depends_on_what_is_trained_on(built, key):
    manifest = json.loads(json.dumps(built.dataset.manifest))
    manifest[key] = manifest[key][::-1] if isinstance(manifest[key], list | str) else None
    assert dataset_id(manifest) != built.dataset.manifest["dataset_id"]


# --- damage --------------------------------------------------------------------------------


def faults(folder: Path) -> list[str]:
    return list(ShardedDataset(folder).verify())


def test_a_good_data_set_has_no_faults(built):
    assert faults(built.dataset.folder) == []


@pytest.mark.parametrize("without_xxhash", [False, True])
def test_a_flipped_bit_is_found_and_its_sequence_named(built, copy, without_xxhash, monkeypatch):
    if without_xxhash:
        monkeypatch.setitem(sys.modules, "xxhash", None)
    path = copy / "00001.tok"
    content = bytearray(path.read_bytes())
    content[5 * built.dataset.seq_len * 2 + 77] ^= 4
    path.write_bytes(content)
    assert faults(copy) == [
        "00001.tok: its sha256 is not the one in the manifest",
        "00001.tok: sequence 69 (row 5 of the shard) is damaged",
    ]


def test_a_truncated_shard_is_found_and_not_read(copy):
    path = copy / "00000.tok"
    path.write_bytes(path.read_bytes()[:-2])
    assert faults(copy)[1:] == ["00000.tok: 32,766 bytes, not 32,768"]
    with pytest.raises(ValueError, match=r"00000\.tok: 32,766 bytes, not 32,768"):
        ShardedDataset(copy).sequence(0)


@pytest.mark.parametrize(
    "name",
    ["00000.tok", "00001.meta.arrow", "documents.arrow", "dropped.jsonl.zst", "tokenizer.model"],
)
def test_missing_and_changed_files_are_found(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert faults(copy)[0] == f"{name}: its sha256 is not the one in the manifest"
    (copy / name).unlink()
    assert faults(copy) == [f"{name}: missing"]


def test_damage_to_both_files_of_a_shard_is_found(copy):
    (copy / "00000.tok").write_bytes(b"")
    (copy / "00000.meta.arrow").write_bytes(b"")
    names = [fault.split(":")[0] for fault in faults(copy)]
    assert names == ["00000.meta.arrow", "00000.tok", "00000.tok"]
    (copy / "00000.meta.arrow").unlink()
    assert faults(copy)[0] == "00000.meta.arrow: missing"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"name": "test"', '"name": "best"'),
        ('"seed": 0', '"seed": 1'),
        ('"documents_kept": 40', '"documents_kept": 41'),
        ('"pad_id": 0', '"pad_id": 1'),
        ('"numpy": "', '"numpy": "9'),
        ("}\n", "}"),
    ],
)
def test_any_change_of_the_manifest_is_found(copy, before, after):
    path = copy / "manifest.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    assert faults(copy)[0] == "manifest.json: changed since the build: its checksum does not hold"


def test_a_size_that_the_manifest_contradicts_is_found(copy):
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"token_type": "uint16"', '"token_type": "uint32"'))
    assert "00000.tok: 32,768 bytes, not 65,536" in faults(copy)


def test_another_shard_under_the_same_checksum_is_found(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(path.read_text().replace(manifest["dataset_id"], "0" * 64))
    assert "manifest.json: dataset_id is not that of the shards it lists" in faults(copy)


# --- what is no data set -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no finished data set \(manifest\.json is missing\)"),
        (b"{", r"manifest\.json: not JSON"),
        (b"\xff", r"manifest\.json: not JSON"),
        (b"[]", "format_version is not 2"),
        (b'{"format_version": 1}', "format_version is not 2"),
    ],
)
def test_other_folders_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ShardedDataset(tmp_path)


def test_a_url_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="copy it to one first"):
        ShardedDataset("gs://bucket/data")


def test_positions_count_through_the_shards(built):
    assert built.dataset.locate(0) == (0, 0)
    assert built.dataset.locate(63) == (0, 63)
    assert built.dataset.locate(64) == (1, 0)
    for position in (-1, len(built.dataset)):
        with pytest.raises(IndexError, match=f"sequence {position} of a data set of"):
            built.dataset.locate(position)


# --- width of the ids ----------------------------------------------------------------------


class Engine:
    def __init__(self, *ids: int) -> None:
        self.ids = np.array(ids, np.uint32)

    def encode(self, texts, *, inside=False):
        return self.ids, np.array([0, len(self.ids)])


def tokenizer_with(vocab_size: int, *ids: int) -> Tokenizer:
    reference: Any = SimpleNamespace(vocab_size=vocab_size)
    file = TokenizerFile(b"", SENTENCEPIECE)
    return Tokenizer(file, reference, Engine(*ids), "test", ())


@pytest.mark.parametrize(
    ("size", "token_type"), [(32_000, "uint16"), (65_536, "uint16"), (65_537, "uint32")]
)
def test_ids_are_as_wide_as_the_vocabulary_needs(size, token_type):
    tokens, _ = tokenizer_with(size, 0, size - 1).encode(["text"])
    assert str(tokens.dtype) == token_type
    assert tokens.tolist() == [0, size - 1]


@pytest.mark.parametrize("size", [32_000, 65_536, 65_537])
def test_an_id_beyond_the_vocabulary_is_refused(size):
    for token_id in (size, 65_536 + 7 if size < 65_536 else size + 1, 2**32 - 1):
        with pytest.raises(ValueError, match=f"{token_id} >= {size}"):
            tokenizer_with(size, 1, token_id).encode(["text"])


def big_tokenizer(folder: Path, n_words: int) -> Path:
    """A vocabulary of words w0, w1, …"""
    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import models, pre_tokenizers

    vocabulary = {"[UNK]": 0} | {f"w{i}": i + 1 for i in range(n_words)}
    tokenizer = HfTokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "big.json"))
    return folder / "big.json"


def test_a_vocabulary_over_65536_gives_32_bit_ids_and_loses_none(builder):
    numbers = [list(range(k, 66_000, 41)) for k in range(4)]
    records = [{"text": " ".join(f"w{i}" for i in line)} for line in numbers]
    write_jsonl(builder.folder / "a.jsonl", records)
    built = builder.build(
        {"a": {"weight": 1, "path": "a.jsonl"}},
        tokens=sum(map(len, numbers)),
        tokenizer={"path": str(big_tokenizer(builder.folder, 66_000)), "bos": False, "eos": False},
    )
    assert built.dataset.manifest["token_type"] == "uint32"
    assert built.dataset.manifest["tokenizer"]["vocab_size"] == 66_001
    assert (built.dataset.folder / "00000.tok").stat().st_size == 16 * 256 * 4
    rows = list(reader_of_the_document()(built.dataset.folder))
    placed = sorted(i for row in rows for i in row["ids"][: row["n_real"]])
    assert placed == sorted(i + 1 for line in numbers for i in line)
    assert max(placed) > 65_536
    assert faults(built.dataset.folder) == []


def test_tokens_go_from_the_store_into_rows_unchanged(tmp_path):
    tokens = np.array([65_535, 0, 1, 7], "<u2")
    (tmp_path / "batch.tokens").write_bytes(tokens.tobytes())
    segments = pa.table({"row": [1], "start": [2], "length": [3], "batch": [0], "token": [0]})
    rows = fill_rows(
        segments,
        [str(tmp_path / "batch")],
        n_rows=2,
        seq_len=6,
        reader=TokenReader("uint16"),
        token_type="uint16",
    )
    assert rows.tolist() == [[0] * 6, [0, 0, 65_535, 0, 1, 0]]
    assert rows.dtype.str == "<u2"
