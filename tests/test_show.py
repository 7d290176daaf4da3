"""`python -m pipelines.show`: what a person sees of a data set, and one line where it cannot be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import sentencepiece
from conftest import Builder, Built, documents, write_jsonl

from pipelines.show import main

ROOT = Path(__file__).resolve().parents[1]
TWICE = {"text": "The same words in two sources. " * 12, "id": "twice"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Built:
    """Two sources that share a document, one with prompts; one document is used by no pass."""
    builder = Builder(tmp_path_factory.mktemp("show"), tokenizer_model)
    asked = documents(2, 30, low=20, high=100)
    for record in asked:
        record["prompt"] = record["text"][:40]
    twice = TWICE | {"prompt": "The same"}
    write_jsonl(builder.folder / "books.jsonl", [*documents(1, 30), TWICE, {"text": ""}])
    write_jsonl(builder.folder / "asked.jsonl", [twice, *asked])
    fields = {"text": "text", "prompt": "prompt", "origin": "id"}
    return builder.build(
        {
            "books": {"weight": 2, "path": "books.jsonl", "max_passes": 2},
            "asked": {
                "weight": 1,
                "path": "asked.jsonl",
                "fields": fields,
                "loss": "answers",
                "max_passes": 4,
            },
        },
        tokens=12_000,
    )


@pytest.fixture
def show(built, capsys):
    """Runs the command; gives its status, output and errors."""

    def run(*arguments: object, folder: Path = built.dataset.folder) -> tuple[int, str, str]:
        status = main([str(folder), *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.dataset.folder, tmp_path / "copy"))


def lineage(built: Built) -> list[dict]:
    return pa.ipc.open_file(built.dataset.folder / "documents.arrow").read_all().to_pylist()


# --- summary -------------------------------------------------------------------------------


def test_the_summary_has_the_totals_and_the_account(show, built):
    status, out, _ = show()
    assert status == 0
    first, figures, tokenizer = out.splitlines()[:3]
    assert first == f"test  {built.dataset.manifest['dataset_id']}"
    assert figures.startswith("12,000 tokens (")
    assert f" in {len(built.dataset)} sequences of 256; " in figures
    assert tokenizer == (
        "tokenizer.model: 600 ids as uint16, "
        "BOS <s> (1; the tokenizer file), EOS </s> (2; the tokenizer file)"
    )
    assert re.search(r"^books +32 +1 +31 .* 66\.6667% +66\.6667%$", out, re.MULTILINE)
    assert re.search(r"^books +empty_text +1$", out, re.MULTILINE)


# --- one sequence --------------------------------------------------------------------------


def test_a_sequence_is_shown_with_segments_sources_spans_and_text(show, built):
    files = {(d["uid"].hex(), d["source"]): d for d in lineage(built)}
    for position in range(len(built.dataset)):
        sequence = built.dataset.sequence(position)
        status, out, _ = show("--sequence", position)
        assert status == 0
        assert out.startswith(f"sequence {position} (row {position % 16} of ")
        assert f": {sequence.source}, pass {sequence.pass_ + 1}, " in out
        assert f"{sequence.n_real} tokens (" in out
        source = built.dataset.sources.index(sequence.source)
        for s in sequence.segments:
            uid, end = s["document"].hex(), s["offset"] + s["length"]
            document = files[uid, source]
            assert (
                f"[{s['start']}, {s['start'] + s['length']})  {uid}  tokens [{s['offset']:,}, "
                f"{end:,}) of {document['n_tokens']:,}  {document['file']}:{document['line']}"
            ) in out


def test_what_carries_loss_is_marked_where_something_does_not(show, built, tokenizer_model):
    decode = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model)).decode
    marked = 0
    for position in range(len(built.dataset)):
        sequence = built.dataset.sequence(position)
        silent = {t for a, b in sequence.no_loss for t in range(a, b)}
        _, out, _ = show("--sequence", position, "--full")
        said, _, text = out.partition("only what stands in ⟦…⟧ carries loss\n")
        assert bool(text) == bool(silent)
        if not text:
            assert "⟦" not in said
            continue
        answers = [
            decode([int(sequence.tokens[t])]) for t in range(sequence.n_real) if t not in silent
        ]
        found = "".join(re.findall("⟦(.*?)⟧", text, re.DOTALL))
        learned = [t for t in range(sequence.n_real) if t not in silent]
        assert found.count("‹</s>›") == sequence.tokens[learned].tolist().count(2)
        found = found.replace("‹</s>›", "")
        assert found.replace(" ", "") == "".join(answers).replace(" ", "")
        marked += 1
    assert marked


def test_segments_show_snippets_and_all_their_text_on_request(show, built):
    uids = {d["uid"]: d for d in lineage(built)}
    position = next(
        p
        for p in range(len(built.dataset))
        if any(s["length"] == 256 and not s["head_cut"] for s in built.dataset.sequence(p).segments)
    )
    document = uids[built.dataset.sequence(position).segments[0]["document"]]
    content = (built.dataset.folder.parent / document["file"]).read_bytes()
    text = json.loads(content[document["offset"] :].split(b"\n")[0])["text"]
    _, short, _ = show("--sequence", position)
    assert repr(text[:120]) in short
    assert max(map(len, short.splitlines())) < 500
    _, full, _ = show("--sequence", position, "--full")
    assert text[:400] in full


def test_control_characters_of_a_document_do_not_reach_the_terminal_in_snippets(show, builder):
    write_jsonl(builder.folder / "a.jsonl", [{"text": "\x1b[2J red \x07" * 99}])
    built = builder.build({"a": {"weight": 1, "path": "a.jsonl"}}, tokens=300)
    _, out, _ = show("--sequence", 0, folder=built.dataset.folder)
    assert "\\x1b[2J red" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("position", [-1, 10_000])
def test_a_sequence_that_is_not_there_is_one_line(show, built, position):
    status, out, err = show("--sequence", position)
    assert (status, out) == (2, "")
    assert err == f"error: sequence {position} of a data set of {len(built.dataset)}\n"


# --- one document --------------------------------------------------------------------------


def test_every_place_of_a_document_is_found(show, built):
    places: dict[tuple[str, int], list[str]] = {}
    for position in range(len(built.dataset)):
        sequence = built.dataset.sequence(position)
        for s in sequence.segments:
            key = s["document"].hex(), built.dataset.sources.index(sequence.source)
            start, offset, n = s["start"], s["offset"], s["length"]
            places.setdefault(key, []).append(
                f"  sequence {position}, pass {sequence.pass_ + 1}, positions [{start}, "
                f"{start + n}): tokens [{offset:,}, {offset + n:,})"
            )
    rows = lineage(built)
    for document in rows[:5] + rows[-5:]:
        uid, source = document["uid"].hex(), document["source"]
        status, out, _ = show("--document", uid)
        assert status == 0
        where = f"{document['file']}:{document['line']}  {document['origin']}"
        name = built.dataset.sources[source]
        head = f"{uid}  {document['n_tokens']:,} tokens of {name}, {where}"
        after = out.split(head + "\n")[1].splitlines()
        expected = places.get((uid, source), ["  in no sequence: no pass chose it"])
        assert after[: len(expected)] == expected
    assert len(places) < len(rows)  # some document is used by no pass


def test_a_text_in_two_sources_is_shown_for_each(show, built):
    uid = next(d["uid"].hex() for d in lineage(built) if d["origin"] == "twice")
    _, out, _ = show("--document", uid)
    heads = [line for line in out.splitlines() if line.startswith(uid)]
    assert len(heads) == 2
    assert "  sequence " in out
    assert " tokens of books, books.jsonl:31  twice" in heads[0]
    assert " tokens of asked, asked.jsonl:1  twice" in heads[1]
    for head, part in zip(heads, out.split(uid)[1:], strict=True):
        source = re.search(r"tokens of (\w+)", head)[1]
        for position in map(int, re.findall(r"^  sequence (\d+),", part, re.MULTILINE)):
            assert built.dataset.sequence(position).source == source


@pytest.mark.parametrize("digits", [31, 15, 10, 9])
def test_the_beginning_of_an_id_is_enough_and_case_does_not_matter(show, built, digits):
    uid = lineage(built)[3]["uid"].hex()
    assert show("--document", uid[:digits].upper()) == show("--document", uid)


def test_an_unknown_id_is_one_line_that_says_where_to_look(show):
    status, out, err = show("--document", "0" * 32)
    assert (status, out) == (2, "")
    problem = "no kept document has this id; dropped.jsonl.zst lists those dropped"
    assert err == f"error: --document {'0' * 32}: {problem}\n"


@pytest.mark.parametrize("uid", ["", "xyz", "0x12", "0" * 33, "12 34"])
def test_what_is_no_id_is_one_line(show, uid):
    status, out, err = show("--document", uid)
    assert (status, out) == (2, "")
    assert err == f"error: --document {uid}: an id is 32 hexadecimal digits, or their beginning\n"


def test_a_beginning_of_very_many_ids_asks_for_more_digits(show, built, monkeypatch):
    monkeypatch.setattr("pipelines.show._MOST_DOCUMENTS", 0)
    digit = lineage(built)[0]["uid"].hex()[0]
    status, _, err = show("--document", digit)
    assert status == 2
    assert re.fullmatch(f"error: --document {digit}: \\d+ ids begin so; give more digits\n", err)


# --- verify --------------------------------------------------------------------------------


def test_verify_of_a_good_data_set_exits_with_0(show, built):
    shards, n = len(built.dataset.manifest["shards"]), len(built.dataset)
    assert show("--verify") == (0, f"{shards} shards, {n} sequences: every digest holds\n", "")


def test_verify_names_the_damage_and_exits_with_1(show, copy):
    content = bytearray((copy / "00001.tok").read_bytes())
    content[513] ^= 128
    (copy / "00001.tok").write_bytes(content)
    (copy / "documents.arrow").unlink()
    status, out, err = show("--verify", folder=copy)
    assert (status, err) == (1, "")
    assert out.splitlines() == [
        "00001.tok: its sha256 is not the one in the manifest",
        "00001.tok: sequence 17 (row 1 of the shard) is damaged",
        "documents.arrow: missing",
    ]


# --- what cannot be shown ------------------------------------------------------------------


def failure(show, *arguments, folder):
    status, _, err = show(*arguments, folder=folder)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("arguments", [(), ("--verify",), ("--sequence", 0), ("--document", "00")])
def test_a_folder_that_is_no_data_set_is_one_line(show, tmp_path, arguments):
    for folder in (tmp_path, tmp_path / "nowhere"):
        err = failure(show, *arguments, folder=folder)
        assert err == f"error: {folder}: no finished data set (manifest.json is missing)\n"
    (tmp_path / "manifest.json").write_text('{"format_version": 2}')
    assert "not as docs/formats.md has it: KeyError('seq_len')" in failure(
        show, *arguments, folder=tmp_path
    )
    (tmp_path / "manifest.json").write_text("<html>")
    assert "manifest.json: not JSON" in failure(show, *arguments, folder=tmp_path)


def test_missing_files_of_a_data_set_are_one_line(show, copy):
    (copy / "documents.arrow").unlink()
    assert "documents.arrow" in failure(show, "--document", "00", folder=copy)
    assert "documents.arrow" in failure(show, "--sequence", 0, folder=copy)
    (copy / "00000.tok").write_bytes(b"12")
    assert "00000.tok: 2 bytes, not 8,192" in failure(show, "--sequence", 0, folder=copy)
    (copy / "00000.meta.arrow").write_bytes(b"not an arrow file")
    failure(show, "--sequence", 0, folder=copy)


def test_an_account_that_was_edited_is_one_line(show, copy):
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"quota"', '"quotum"'))
    assert "quotum" in failure(show, folder=copy)


def test_a_reader_that_stops_early_causes_no_traceback(built):
    command = [sys.executable, "-m", "pipelines.show", str(built.dataset.folder)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""},  # what is left in a buffer fails at the exit
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()  # before the first line
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0
