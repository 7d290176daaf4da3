"""Benchmarks kept out of a data set: exact documents, the account, the evidence, the errors."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from conftest import Builder, Built, documents, plain_loop, prose, write_index, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import build as build_command
from pipelines import show
from pipelines.benchmark_index import load_index
from pipelines.decontaminate import BlockDecontaminator, DecontamSpec, Text, cut
from pipelines.errors import FaultsError
from pipelines.job import assemble
from pipelines.mixture_file import load_mixture
from pipelines.prepare import Prepared, Preparer
from pipelines.readers import Block
from pipelines.records import Document, InputFile, RawRecord
from pipelines.rendering import Rendered
from pipelines.stages import Prepare
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

QUESTION = (
    "Which marsupial glides between eucalyptus trees after dusk searching for nectar and sap?"
)
SECOND = "Name the glacier whose meltwater feeds seven Alpine valleys below the northern ridge."
WORDS_OF_QUESTION = 13
INPUTS = (InputFile("/data/tasks/quiz.jsonl.gz", "tasks/quiz.jsonl.gz", 1, "1:1"),)


def uid(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())


def kept(built: Built) -> list[bytes]:
    """Ids of the data set's documents, in the order of the input."""
    path = built.dataset.folder / "documents.arrow"
    return pa.ipc.open_file(path).read_all()["uid"].to_pylist()


def dropped(built: Built) -> list[dict[str, Any]]:
    with pa.input_stream(str(built.dataset.folder / "dropped.jsonl.zst")) as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


def overlaps(built: Built) -> list[dict[str, Any]]:
    return pa.ipc.open_file(built.dataset.folder / "overlaps.arrow").read_all().to_pylist()


@pytest.fixture
def index(builder: Builder) -> Path:
    return write_index(builder.folder / "exam.index", [QUESTION, SECOND])


def build(
    builder: Builder, index: Path, texts: list[str], *, filters: Any = None, **decontam: Any
) -> Built:
    """A build of one source, `a`, that takes all there is once."""
    write_jsonl(
        builder.folder / "a.jsonl", [{"text": text, "id": f"d{i}"} for i, text in enumerate(texts)]
    )
    return builder.build(
        {"a": {"weight": 1, "path": "a.jsonl", "max_passes": 50}},
        tokens=2_000,
        decontam={"index": str(index), "require": []} | decontam,
        filters=filters or {},
    )


# What becomes of documents


def test_drop_leaves_out_every_document_that_repeats_a_question(builder, index):
    clean, other = prose(random.Random(1), 80), prose(random.Random(2), 90)
    hidden = f"{prose(random.Random(3), 50)} {QUESTION.upper()} {prose(random.Random(4), 50)}"
    built = build(builder, index, [clean, hidden, other, SECOND], policy="drop")
    assert kept(built) == [uid(clean), uid(other)]
    assert [(d["line"], d["reason"], d["uid"]) for d in dropped(built)] == [
        (2, "contaminated", uid(hidden).hex()),
        (4, "contaminated", uid(SECOND).hex()),
    ]
    assert dropped(built)[0]["evidence"].startswith("exam/test/id0 input: WHICH MARSUPIAL GLIDES")
    (account,) = built.accounts
    assert (account.documents_read, account.documents_kept, account.documents_split_off) == (
        4,
        2,
        0,
    )
    assert account.documents_dropped == {"contaminated": 2}
    assert {k: account.decontam[k] for k in ("documents", "touched", "dropped", "cut")} == {
        "documents": 4, "touched": 2, "dropped": 2, "cut": 0,
    }  # fmt: skip
    assert account.decontam["bytes_removed"] == len(hidden.encode()) + len(SECOND)


def words(first: int, end: int) -> str:
    return " ".join(f"w{i}x" for i in range(first, end))


def test_excise_cuts_the_question_with_its_margin_and_keeps_the_pieces(builder, index):
    text = f"{words(0, 50)} {QUESTION} {words(50, 100)} {SECOND} {words(100, 103)}"
    clean = prose(random.Random(1), 80)
    built = build(builder, index, [text, clean], policy="excise", margin_words=5)
    pieces = [f"{words(0, 45)} ", f" {words(55, 95)} "]
    assert kept(built) == [uid(pieces[0]), uid(pieces[1]), uid(clean)]
    (account,) = built.accounts
    assert (account.documents_read, account.documents_kept, account.documents_split_off) == (
        2,
        3,
        1,
    )
    assert account.documents_dropped == {}
    figures = ("documents", "touched", "cut", "pieces", "dropped")
    assert [account.decontam[name] for name in figures] == [2, 1, 1, 2, 0]
    lines = pa.ipc.open_file(built.dataset.folder / "documents.arrow").read_all()
    assert lines["line"].to_pylist() == [1, 1, 2]
    assert lines["origin"].to_pylist() == ["d0", "d0", "d1"]


def test_a_document_that_is_nothing_but_the_question_and_its_margin_is_dropped(builder, index):
    text = f"{words(0, 20)} {QUESTION} {words(20, 40)}"
    clean = prose(random.Random(1), 80)
    built = build(builder, index, [text, clean], policy="excise")
    assert kept(built) == [uid(clean)]
    assert built.accounts[0].documents_dropped == {"contaminated": 1}
    assert [row["decision"] for row in overlaps(built)] == ["dropped"]


def test_threshold_keeps_a_long_document_whole_and_drops_a_short_one(builder, index):
    long = f"{words(0, 600)} {QUESTION} {words(600, 1200)}"
    short = f"{words(0, 60)} {QUESTION} {words(60, 120)}"
    built = build(builder, index, [long, short], policy="threshold", threshold=0.05)
    assert kept(built) == [uid(long)]
    assert [(row["line"], row["decision"]) for row in overlaps(built)] == [
        (1, "kept"),
        (2, "dropped"),
    ]


def test_pieces_meet_the_length_filters_like_documents(builder, index):
    text = f"{words(0, 60)} {QUESTION} {words(60, 70)}"
    built = build(builder, index, [text], margin_words=4, filters={"min_words": 20})
    (record,) = dropped(built)
    assert (record["reason"], record["evidence"]) == ("too_few_words", "piece 2 of 2: 6 words")
    assert record["line"] == 1
    (account,) = built.accounts
    assert (account.documents_read, account.documents_kept, account.documents_split_off) == (
        1,
        1,
        1,
    )


def test_equal_pieces_are_duplicates(builder, index):
    one = f"{words(0, 60)} {QUESTION}"
    two = f"{words(0, 60)} {SECOND}"
    built = build(builder, index, [one, two], policy="excise", margin_words=1)
    assert len(kept(built)) == 1
    assert built.accounts[0].documents_dropped == {"duplicate": 1}


# Block by block


def preparer(
    builder: Builder, index: Path, *, groups: dict[str, str] | None = None, **source: Any
) -> Preparer:
    """What the prepare stage runs for a source."""
    write_jsonl(builder.folder / "a.jsonl", [{"text": "t"}])
    decontam = {"index": str(index), "require": []}
    path = builder.mixture({"a": {"weight": 1, "path": "a.jsonl", **source}}, decontam=decontam)
    mixture = load_mixture(str(path))
    file = fetch_tokenizer(mixture.tokenizer)
    job = assemble(
        mixture,
        file,
        data_root=str(builder.folder),
        store=str(builder.folder / "store"),
        output="out",
    )
    spec = job.sources[0].spec
    if groups:
        spec = replace(spec, decontam=replace(spec.decontam, dropped_groups=groups))
    return Preparer(spec, load_tokenizer(file))


def prepare(worker: Preparer, *records: dict[str, Any]) -> Prepared:
    raw = [RawRecord(json.dumps(record).encode(), i, 100 * i) for i, record in enumerate(records)]
    return worker.prepare(Block(0, len(raw), 1, raw, []), INPUTS)


def test_a_record_with_loss_on_its_answer_is_dropped_and_not_cut(builder, index):
    text = f"{words(0, 20)} {QUESTION} {words(20, 40)}"
    fields = {"text": "text", "prompt": "prompt"}
    learned = preparer(builder, index, fields=fields, loss="answers")
    for end in (5, len(text) - 9):
        prepared = prepare(learned, {"text": text, "prompt": text[:end]})
        assert [d.reason for d in prepared.dropped] == ["contaminated"]
        assert prepared.documents == []


def test_a_piece_keeps_the_answers_that_lie_in_it():
    text = f"Ünï {words(0, 60)}"
    utf8 = text.encode()
    for end in (0, 5, 40, 100, len(text)):
        content = Rendered(text, ((end, len(text)),) if end < len(text) else ())
        whole = Text(Document(content, "", 0, 0, 0), utf8, b"u" * 16)
        pieces = cut(whole, [(0, 60), (90, len(utf8))])
        assert [p.document.text for p in pieces] == [utf8[:60].decode(), utf8[90:].decode()]
        for piece in pieces:
            n = len(piece.document.text)
            prompt = min(max(end - text.index(piece.document.text), 0), n)
            assert piece.document.content.answers == (((prompt, n),) if prompt < n else ())


def test_a_piece_without_a_word_is_dropped_and_counted(builder, index):
    worker = preparer(builder, index, decontam={"margin_words": 0})
    prepared = prepare(worker, {"text": f"{words(0, 9)} {QUESTION}"})
    assert [d.text for d in prepared.documents] == [f"{words(0, 9)} "]
    assert [(d.reason, d.evidence) for d in prepared.dropped] == [
        ("empty_text", "piece 2 of 2: no letter or digit")
    ]


def test_short_pieces_say_that_they_are_pieces_by_tokens_too(builder, index):
    worker = preparer(builder, index, filters={"min_tokens": 30}, decontam={"margin_words": 0})
    prepared = prepare(worker, {"text": f"{words(0, 60)} {QUESTION} w60x w61x w62x w63x w64x w65x"})
    (record,) = prepared.dropped
    assert record.reason == "too_few_tokens"
    assert record.evidence.startswith("piece 2 of 2: ")
    assert (len(prepared.documents), prepared.n_split_off) == (1, 1)


def test_abstracts_are_looked_at_too(builder, index):
    write_jsonl(builder.folder / "meta.jsonl", [{"id": "p1", "abstract": f"Long. {QUESTION}"}])
    worker = preparer(
        builder, index, abstracts={"path": "meta.jsonl"}, decontam={"policy": "drop"},
        fields={"text": "text", "origin": "id"},
    )  # fmt: skip
    prepared = prepare(worker, {"text": words(0, 9), "id": "p1"}, {"text": words(0, 9), "id": "p2"})
    assert [d.origin for d in prepared.documents] == ["p2"]


def test_documents_with_a_group_are_dropped_by_default_and_others_cut(builder, index):
    text = f"{words(0, 60)} {QUESTION} {words(60, 120)}"
    cut = prepare(preparer(builder, index), {"text": text})
    assert (len(cut.documents), cut.n_split_off) == (2, 1)
    whole = prepare(preparer(builder, index, group="task"), {"text": text, "task": "quiz"})
    assert [d.reason for d in whole.dropped] == ["contaminated"]
    asked = prepare(
        preparer(builder, index, group="task", decontam={"policy": "excise"}), {"text": text}
    )
    assert len(asked.documents) == 2
    left = prepare(preparer(builder, index, decontam={"policy": "none"}), {"text": text})
    assert [d.text for d in left.documents] == [text]
    assert left.overlaps is None


@pytest.mark.parametrize(
    ("group", "record", "name"),
    [
        ("meta.task", {"meta": {"task": "boolq"}}, "boolq"),
        (["task", "meta.task"], {"meta": '{"task": "boolq"}'}, "boolq"),
        ("file", {"file": "not a field"}, "quiz"),
        (["task", "file"], {}, "quiz"),
        ("task", {}, ""),
    ],
)
def test_a_group_is_a_field_or_the_file(builder, index, group, record, name):
    prepared = prepare(preparer(builder, index, group=group), {"text": "some words", **record})
    assert [d.group for d in prepared.documents] == [name]


def test_documents_of_dropped_tasks_are_dropped_with_the_evidence(builder, index):
    worker = preparer(builder, index, group="task", groups={"quiz": "repeats exam/id0"})
    prepared = prepare(
        worker, {"text": "a b c", "task": "quiz"}, {"text": "d e f", "task": "other"}
    )
    assert [d.text for d in prepared.documents] == ["d e f"]
    (record,) = prepared.dropped
    assert (record.reason, record.evidence) == ("contaminated_task", "quiz: repeats exam/id0")
    assert (prepared.decontam["task_documents"], prepared.decontam["documents"]) == (1, 1)


@st.composite
def planted(draw: st.DrawFn) -> tuple[list[list[str]], str]:
    """Runs of words that occur once, and a text that has a question between every two of them."""
    lengths = draw(st.lists(st.integers(0, 14), min_size=2, max_size=4))
    names = draw(st.lists(st.sampled_from(["w", "ü", "Ж"]), min_size=60, max_size=60))
    spaces = draw(
        st.lists(st.sampled_from([" ", "  ", ", ", ".\n\n", " - "]), min_size=60, max_size=60)
    )
    words = [f"{name}{i}x" for i, name in enumerate(names)]
    ends = np.cumsum(lengths).tolist()
    runs = [words[end - n : end] for n, end in zip(lengths, ends, strict=True)]
    text = "".join(map(str.__add__, runs[0], spaces))
    for run in runs[1:]:
        plant = draw(st.sampled_from([QUESTION, QUESTION.upper(), SECOND.replace(" ", "\n")]))
        text += f"{plant} {''.join(map(str.__add__, run, spaces))}"
    return runs, text


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(planted=planted(), margin=st.integers(0, 6))
def test_pieces_hold_all_words_but_those_of_the_question_and_its_margin(
    planted, margin, builder, index
):
    runs, text = planted
    spec = DecontamSpec(str(index), load_index(str(index)).header["digest"], policy(margin), "code")
    (whole,) = [Text(Document(Rendered(text), "", 0, 0, 0), text.encode(), uid(text))]
    clean = BlockDecontaminator(spec).clean([whole])
    expected = [
        run[margin if i else 0 : max(len(run) - (margin if i < len(runs) - 1 else 0), 0)]
        for i, run in enumerate(runs)
    ]
    pieces = [re.findall(r"\w+", piece.document.text) for piece in clean.kept]
    assert [piece for piece in pieces if piece] == [run for run in expected if run]
    at = 0
    for piece in clean.kept:  # in order, each as it stood
        at = text.index(piece.document.text, at) + len(piece.document.text)
        assert piece.utf8 == piece.document.text.encode()
        assert piece.uid == uid(piece.document.text)


def policy(margin: int) -> Any:
    from decontam.policy import Policy

    return Policy(action="excise", margin_words=margin)


# The same bytes


def corpus(n: int = 60) -> list[dict[str, str]]:
    """Documents of which every third holds a question."""
    records = documents(5, n, low=120, high=300)
    for i, record in enumerate(records[::3]):
        at = len(record["text"]) // 2
        record["text"] = f"{record['text'][:at]} {(QUESTION, SECOND)[i % 2]} {record['text'][at:]}"
    return records


def test_shards_do_not_depend_on_the_format_or_the_cut_into_files(builder, index):
    decontam = {"index": str(index), "require": [], "margin_words": 8}
    sources = {"a": {"weight": 1, "path": "a"}}
    records = corpus()
    write_jsonl(builder.folder / "a/1.jsonl", records)
    one = builder.build(sources, output="one", tokens=6_000, decontam=decontam)
    (builder.folder / "a/1.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(records[:25]), builder.folder / "a/x.parquet")
    write_jsonl(builder.folder / "a/w.jsonl", records[25:])
    many = builder.build(sources, output="many", tokens=6_000, decontam=decontam, workers=3)
    assert one.accounts[0].decontam["cut"] == 20
    assert one.shard_bytes() == many.shard_bytes()
    assert one.accounts[0].decontam == many.accounts[0].decontam
    columns = ("uid", "scenario", "instance", "decision", "start", "end", "passage")
    assert {tuple(r[c] for c in columns) for r in overlaps(one)} == {
        tuple(r[c] for c in columns) for r in overlaps(many)
    }


def test_a_build_that_lost_batches_ends_with_the_same_bytes(builder, index):
    write_jsonl(builder.folder / "a.jsonl", corpus())
    write_jsonl(builder.folder / "b.jsonl", corpus(30))
    sources = {"a": {"weight": 1, "path": "a.jsonl"}, "b": {"weight": 1, "path": "b.jsonl"}}
    values: Any = {"tokens": 6_000, "decontam": {"index": str(index), "require": []}}
    first = builder.build(sources, output="first", **values)
    lost = sorted((builder.folder / "store").glob("*/*-00000.arrow"))[0]
    lost.unlink()  # as after a kill: what stands beside it does not count
    again = builder.build(sources, output="again", **values)
    assert again.files() == first.files()


def test_the_store_knows_the_index_and_the_policy_by_content(builder, index):
    write_jsonl(builder.folder / "a.jsonl", corpus(20))
    sources = {"a": {"weight": 1, "path": "a.jsonl"}}

    def stores(**decontam: Any) -> set[str]:
        values = {"index": str(index), "require": []} | decontam
        builder.build(sources, output=f"out{random.random()}", tokens=2_000, decontam=values)
        return {path.name for path in (builder.folder / "store").iterdir()}

    first = stores()
    moved = index.rename(builder.folder / "moved.index")
    assert stores(index=str(moved)) == first
    assert len(stores(index=str(moved), margin_words=3)) == 2
    write_index(moved, [QUESTION])
    assert len(stores(index=str(moved))) == 3


def test_an_output_is_of_one_index(builder, index, capfd):
    write_jsonl(builder.folder / "a.jsonl", corpus(20))
    mixture = builder.mixture(
        {"a": {"weight": 1, "path": "a.jsonl"}}, tokens=2_000,
        decontam={"index": str(index), "require": []},
    )  # fmt: skip
    arguments = ["--mixture", str(mixture), "--data-root", str(builder.folder), "--output",
                 str(builder.folder / "out"), "--workers", "1"]  # fmt: skip
    assert build_command.main(arguments) == 0
    printed = capfd.readouterr().out
    assert re.search(r"^a +20 +7 +0 ", printed, re.M)
    assert f"side by side: {builder.folder}/out/decontamination.html" in printed
    moved = index.rename(builder.folder / "moved.index")
    change = ["--set", f"decontam.index={moved}", "--quiet"]
    assert build_command.main([*arguments, *change]) == 0
    assert "is there already" in capfd.readouterr().out
    write_index(moved, [SECOND])
    assert build_command.main([*arguments, *change]) == 2
    assert "different: benchmark index" in capfd.readouterr().err


def test_an_index_on_an_object_store_is_fetched_once(builder, index):
    store = fsspec.filesystem("memory")
    store.pipe_file("/helm/exam.index", index.read_bytes())
    write_jsonl(builder.folder / "a.jsonl", corpus(20))
    sources = {"a": {"weight": 1, "path": "a.jsonl"}}
    local = builder.build(
        sources, tokens=2_000, decontam={"index": str(index), "require": []}, output="local"
    )
    remote = builder.build(
        sources, tokens=2_000, output="remote",
        decontam={"index": "memory://helm/exam.index", "require": []},
    )  # fmt: skip
    assert remote.shard_bytes() == local.shard_bytes()


# The evidence


@pytest.fixture
def built(builder: Builder, index: Path) -> Built:
    """Two sources, one of them cut and one not compared."""
    write_jsonl(builder.folder / "a.jsonl", corpus())
    write_jsonl(builder.folder / "b.jsonl", documents(8, 30))
    sources = {
        "a": {"weight": 1, "path": "a.jsonl"},
        "b": {"weight": 1, "path": "b.jsonl", "decontam": {"policy": "none"}},
    }
    return builder.build(sources, tokens=6_000, decontam={"index": str(index), "require": "exam"})


def test_every_overlap_is_in_the_data_set_with_place_and_decision(built):
    records = corpus()
    found = overlaps(built)
    assert [row["line"] for row in found] == list(range(1, 61, 3))
    for row in found:
        text = records[row["line"] - 1]["text"].encode()
        assert row["uid"] == xxhash.xxh3_128_digest(text)
        assert (row["source"], row["file"], row["decision"]) == ("a", "a.jsonl", "cut")
        planted = QUESTION if row["instance"] == "id0" else SECOND
        passage = text[row["start"] : row["end"]].decode()
        assert row["passage"] == passage
        assert passage in planted
        assert row["n_words"] == len(planted.split())


def test_the_manifest_tells_index_policies_and_counts(built):
    about = built.dataset.manifest["decontamination"]
    assert (about["n"], about["normalization"]) == (10, "default")
    assert about["policies"]["b"] is None
    assert about["policies"]["a"]["action"] == "excise"
    assert about["coverage"][0]["scenario"] == "exam"
    assert about["overlaps"] == [
        {"source": "a", "scenario": "exam", "boilerplate": False, "decision": "cut",
         "overlaps": 20, "instances": 2, "documents": 20}
    ]  # fmt: skip
    assert list(built.dataset.verify()) == []
    assert {"overlaps.arrow", "decontamination.html"} <= set(built.dataset.manifest["files"])
    page = built.files()["decontamination.html"].decode()
    assert "marsupial" in page
    assert re.search(r"^a +60 +20 +0 +0 +20 ", built.files()["README.md"].decode(), re.M)


def test_without_decontamination_there_is_no_such_file(builder):
    write_jsonl(builder.folder / "a.jsonl", documents(1, 20))
    built = builder.build({"a": {"weight": 1, "path": "a.jsonl"}}, tokens=2_000)
    assert "decontamination" not in built.dataset.manifest
    assert not {"overlaps.arrow", "decontamination.html"} & set(built.files())
    assert not list((builder.folder / "store").glob("*/*.overlaps.arrow"))


def test_show_finds_pieces_and_what_they_were_cut_from(built, capsys):
    def shown(*arguments: str) -> str:
        assert show.main([str(built.dataset.folder), *arguments]) == 0
        return capsys.readouterr().out

    assert re.search(r"^a +60 +20 ", shown(), re.M)
    row = overlaps(built)[0]
    out = shown("--document", row["uid"].hex())
    assert f"{row['uid'].hex()}  as read, a, a.jsonl:1: overlaps with benchmarks" in out
    assert "  cut: 13 words at byte" in out
    pieces = re.findall(r"^  piece: (\w{32})", out, re.M)
    assert len(pieces) == 2
    assert f"{pieces[0]}  " in shown("--document", pieces[0])


# Errors


def refusal(builder: Builder, index: Path, **decontam: Any) -> str:
    """What stops a build before anything is written."""
    write_jsonl(builder.folder / "a.jsonl", documents(1, 3))
    before = set(builder.folder.rglob("*"))
    with pytest.raises(FaultsError) as caught:
        builder.build(
            {"a": {"weight": 1, "path": "a.jsonl"}, "b": {"weight": 1, "path": "nowhere.jsonl"}},
            decontam={"index": str(index), "require": []} | decontam,
        )
    path = builder.folder / "mixture.yaml"
    assert set(builder.folder.rglob("*")) - {path} == before - {path}
    assert "nowhere.jsonl" in str(caught.value), "all faults are named at once"
    return str(caught.value)


def test_another_n_and_normalization_than_asked_are_both_named(builder, index):
    message = refusal(builder, index, n=13, normalization="helm")
    assert "decontam.n: the mixture says 13, " in message
    assert "was made with 10" in message
    assert "decontam.normalization: the mixture says helm, " in message
    assert "was made with default" in message


def test_scenarios_that_are_not_covered_are_named(builder, index):
    assert "has nothing of exams: did you mean 'exam'?" in refusal(
        builder, index, require=["exams"]
    )
    everything = refusal(builder, index, require="all")
    assert "mmlu" in everything
    assert "raft" in everything


def test_a_missing_index_is_an_error_with_the_command_that_makes_one(builder, tmp_path):
    message = refusal(builder, tmp_path / "no.index")
    assert "no.index" in message
    assert "python -m decontam.build_index" in message


def test_a_damaged_index_is_an_error(builder, index):
    content = index.read_bytes()
    index.write_bytes(content[: len(content) // 2])
    assert f"decontam.index: {index}: " in refusal(builder, index)


def test_a_source_cannot_override_what_the_mixture_does_not_have(builder):
    path = builder.mixture({"a": {"weight": 1, "path": "a", "decontam": {"policy": "drop"}}})
    with pytest.raises(FaultsError, match=r"sources\.a\.decontam needs `decontam\.index`"):
        load_mixture(str(path))


def test_an_index_that_changes_during_a_build_stops_it(builder, index):
    write_jsonl(builder.folder / "a.jsonl", documents(1, 10))

    def change_then_run(stage, work, workers):
        if stage is Prepare:
            write_index(index, ["Another question of at least ten words that nobody ever asked me"])
        plain_loop(stage, work, workers)

    with pytest.raises(Exception, match="not the index that this build began with"):
        builder.build(
            {"a": {"weight": 1, "path": "a.jsonl"}}, tokens=1_000,
            decontam={"index": str(index), "require": []}, run_stage=change_then_run,
        )  # fmt: skip
