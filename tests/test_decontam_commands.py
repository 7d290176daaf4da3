"""The commands of decontam: coverage, exact overlaps in every format, the loop after a build."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Builder, documents, prose, write_index, write_jsonl
from test_imports import python

from decontam import build_index, scan
from decontam.benchmark_file import HELM_CORE, load_benchmark_file
from decontam.index import Index
from pipelines.benchmark_index import open_index
from pipelines.cleaning import Decontam

QUESTION = (
    "Which marsupial glides between eucalyptus trees after dusk searching for nectar and sap?"
)
SECOND = "Name the glacier whose meltwater feeds seven Alpine valleys below the northern ridge."
QUOTE = f"Somebody asked me: {QUESTION.upper()} I did not know."


def benchmark(folder: Path, names: list[str], inputs: list[str]) -> Path:
    """A benchmark file, with a file of instances for each scenario."""
    scenarios = {name: {"core": True, "locations": [{"path": f"{name}.jsonl"}]} for name in names}
    for name in names:
        records = [{"input": text, "references": ["yes"], "id": f"q{i}"}
                   for i, text in enumerate(inputs)]  # fmt: skip
        write_jsonl(folder / f"{name}.jsonl", records)
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump({"scenarios": scenarios}))
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_index(tmp_path / "exam.index", [QUESTION, SECOND])


def report(folder: Path) -> list[dict[str, Any]]:
    return pa.ipc.open_file(folder / "overlaps.arrow").read_all().to_pylist()


def run(*arguments: object) -> int:
    return scan.main(list(map(str, ["--workers", 1, *arguments])))


def fault(capsys: pytest.CaptureFixture[str], command: Any, *arguments: object) -> str:
    """What a command that ends with status 2 says."""
    assert command.main(list(map(str, arguments))) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert not shown.out
    return shown.err


# build_index


def test_build_index_prints_what_it_found_and_by_what_it_can_be_found(tmp_path, capsys):
    inputs = [QUESTION, "Where do the otters sleep at night?", "Who dug it?", "Why so?"]
    path = benchmark(tmp_path, ["exam", "quiz"], inputs)
    output = tmp_path / "new" / "exam.index"
    assert build_index.main(["--benchmark", str(path), "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^exam +4 +unknown  test 4 +exam.jsonl$", shown, re.M)
    assert "2 of 2 core scenarios" in shown
    assert re.search(r"^exam +1 +1 +1 +1 +0 +4$", shown, re.M)
    index = Index.load(str(output))
    assert f"{output}: 8 instances, {index.header['ngrams']} n-grams of 10 words" in shown
    assert f"digest {index.header['digest']}" in shown
    assert [row["splits"] for row in index.header["coverage"]] == [{"test": 4}] * 2


def test_an_index_of_all_core_scenarios_satisfies_require_all_and_one_without_does_not(tmp_path):
    core = [n for n, about in load_benchmark_file(HELM_CORE).scenarios.items() if about.core]
    output = tmp_path / "all.index"
    for names, missing in ((core, ""), (core[:-2], ", ".join(core[-2:]))):
        path = benchmark(tmp_path, names, [QUESTION])
        assert build_index.main(["--benchmark", str(path), "--output", str(output)]) == 0
        _, faults = open_index(Decontam(index=str(output), require=["all"]))
        named = [re.findall("has nothing of (.*?);", fault)[0] for fault in faults]
        assert named == ([missing] if missing else [])


def test_a_run_that_fails_leaves_the_index_that_was_there(tmp_path, index, capsys):
    before = index.read_bytes()
    path = benchmark(tmp_path, ["exam"], [""])
    fault(capsys, build_index, "--benchmark", path, "--output", index)
    assert index.read_bytes() == before
    assert build_index.main(["--benchmark", str(benchmark(tmp_path, ["quiz"], [SECOND])),
                             "--output", str(index)]) == 0  # fmt: skip
    assert Index.load(str(index)).header["coverage"][0]["scenario"] == "quiz"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "2"], "n is 2: an n-gram has at least 3 words"),
        (["--scenarios", "exam", "exma"], "did you mean 'exam'"),
        (["--helm", "nowhere"], "nowhere"),
        (["--frequent", "nowhere.jsonl"], "--frequent nowhere.jsonl: cannot be read"),
        (["--alone-words", "0"], "--alone-words 0: has to be 1 or more"),
        (["--splits", "train"], "there is no instance to look for: nothing in train"),
    ],
)
def test_build_index_says_what_is_wrong(tmp_path, capsys, arguments, message):
    path = benchmark(tmp_path, ["exam"], [QUESTION])
    place = ["--benchmark", path, "--output", tmp_path / "x.index"]
    assert message in fault(capsys, build_index, *place, *arguments)
    assert not (tmp_path / "x.index").exists()


def test_build_index_with_nothing_to_read_asks_for_it(tmp_path, capsys):
    message = fault(capsys, build_index, "--output", tmp_path / "x.index")
    assert "give --helm PATH, or --hub" in message


def test_a_frequent_list_is_json_lines_of_ngrams(tmp_path, capsys):
    path = benchmark(tmp_path, ["exam"], [QUESTION])
    (tmp_path / "f.jsonl").write_text('{"ngram": "a b c"}\n["a b c"]\n')
    place = ["--benchmark", path, "--output", tmp_path / "x.index"]
    assert "line 2" in fault(capsys, build_index, *place, "--frequent", tmp_path / "f.jsonl")


# scan


def write(path: Path, texts: list[str]) -> Path:
    """Texts in the format that the name stands for."""
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    if path.name.endswith(".jsonl"):
        path.write_bytes(lines)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(lines)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif path.suffix == ".arrow":
        table = pa.table({"text": texts})
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_scan_finds_the_same_overlap_in_every_format(tmp_path, index, capsys, name):
    clean = prose(random.Random(1), 60)
    text = f"{clean} {QUOTE} {clean}"
    path = write(tmp_path / name, [clean, text, clean])
    assert run("--index", index, path, "--report", tmp_path / "report") == 0
    (row,) = report(tmp_path / "report")
    start = text.encode().index(b"WHICH")
    shown = {key: row[key] for key in ("source", "file", "line", "instance", "rule", "decision")}
    assert shown == {"source": name, "file": str(path), "line": 2, "instance": "id0",
                     "rule": "ngram", "decision": "cut"}  # fmt: skip
    assert (row["start"], row["end"]) == (start, start + len(QUESTION) - 1)
    assert row["passage"] == QUESTION.upper().rstrip("?")
    shown = capsys.readouterr().out
    assert "1 of 2 benchmark instances are touched" in shown
    assert re.search(rf"^{name} +3 +1 +0 +0 +1 ", shown, re.M)


def test_scan_reads_text_files_of_a_folder_and_task_files(tmp_path, index):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(prose(random.Random(1), 50))
    (tmp_path / "texts" / "b.txt").write_text(QUOTE)
    assert run("--index", index, tmp_path / "texts", "--report", tmp_path / "report") == 0
    assert [(r["file"], r["line"]) for r in report(tmp_path / "report")] == [
        (str(tmp_path / "texts" / "b.txt"), 1)
    ]
    task = {"Instances": [{"input": "Hello", "output": ["yes"]}, {"input": QUOTE, "output": "no"}]}
    path = tmp_path / "task7_quiz.json"
    path.write_text(json.dumps(task))
    options = ["--schema", "natural_instructions", "--group", "file"]
    assert run("--index", index, path, *options, "--report", tmp_path / "report") == 0
    (row,) = report(tmp_path / "report")
    assert (row["source"], row["line"], row["decision"]) == ("task7_quiz", 2, "dropped")


def test_fields_and_group_say_where_records_keep_things(tmp_path, index, capsys):
    records = [
        {"q": QUESTION, "a": "a glider", "task": "zoo"},
        {"q": "Who?", "a": "I", "task": "x"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    assert run("--index", index, path, "--fields", "q,a", "--group", "task") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^zoo +1 +1 +0 +1 +0 +15 +100.000%$", shown, re.M)
    assert re.search(r"^x +1 +0 +0 +0 +0 +0 +0.000%$", shown, re.M)


def test_there_is_a_line_for_every_instance_of_the_benchmark(tmp_path, index):
    path = write(tmp_path / "a.jsonl", [QUOTE, QUOTE, "nothing"])
    assert run("--index", index, path, "--report", tmp_path / "report") == 0
    lines = (tmp_path / "report" / "instances.jsonl").read_text().splitlines()
    place = {"scenario": "exam", "variant": "", "split": "test"}
    assert [json.loads(line) for line in lines] == [
        place | {"instance": "id0", "documents": 2, "boilerplate_only": 0, "longest": 13},
        place | {"instance": "id1", "documents": 0, "boilerplate_only": 0, "longest": 0},
    ]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Scan of a.jsonl" in page
    assert "EUCALYPTUS" in page


def test_any_number_of_workers_gives_the_same_files_and_lines_of_the_input(tmp_path, index):
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = random.Random(1)
    noise = [{"text": rng.randbytes(20_000).hex()} for _ in range(1000)]
    for line in (3, 500, 998):
        noise[line] = {"text": f"{QUOTE} {line}"}
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in noise)
    with pa.CompressedOutputStream(str(folder / "a.jsonl.zst"), "zstd") as stream:
        stream.write(lines)
    (folder / "b.jsonl").write_bytes(lines)
    reports = []
    for workers in (1, 2):
        out = tmp_path / f"report{workers}"
        arguments = ["--index", index, folder, "--report", out, "--workers", workers]
        assert run(*arguments, "--frequent-out", out / "f.jsonl", "--frequent", 2) == 0
        reports.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert reports[0] == reports[1]
    assert [row["line"] for row in report(out)] == [4, 501, 999] * 2
    assert len(reports[0]) == 4


def build(builder: Builder, index: Path, texts: list[str], *, clean: bool) -> Path:
    write_jsonl(
        builder.folder / "a.jsonl", [{"text": t, "id": f"d{i}"} for i, t in enumerate(texts)]
    )
    decontam = {"index": str(index), "require": [], "policy": "drop"} if clean else None
    built = builder.build(
        {"a": {"weight": 1, "path": "a.jsonl", "max_passes": 50}},
        tokens=6_000, output=f"out-{clean}", decontam=decontam,
    )  # fmt: skip
    return built.dataset.folder


def test_a_decontaminated_data_set_touches_nothing_and_a_contaminated_one_fails(
    builder, tmp_path, index, capsys
):
    texts = [d["text"] for d in documents(1, 6, high=80)]
    texts.insert(3, f"{texts[0]}\n{QUESTION}\n{texts[1]}")
    clean, dirty = (build(builder, index, texts, clean=clean) for clean in (True, False))
    assert run("--index", index, clean, "--fail-on-overlap") == 0
    assert "0 of 2 benchmark instances are touched" in capsys.readouterr().out
    assert run("--index", index, dirty, "--fail-on-overlap", "--report", tmp_path / "report") == 1
    assert "1 of 2 benchmark instances are touched" in capsys.readouterr().out
    # Several passes use the document several times; it is one.
    places = {
        (r["source"], r["file"], r["line"], r["decision"]) for r in report(tmp_path / "report")
    }
    assert places == {("a", "a.jsonl", 4, "kept")}
    lines = (tmp_path / "report" / "instances.jsonl").read_text().splitlines()
    assert [json.loads(line)["documents"] for line in lines] == [1, 0]
    assert run("--index", index, dirty) == 0, "without --fail-on-overlap a scan only reports"


def test_data_sets_count_documents_not_segments(builder, index, capsys):
    texts = [d["text"] for d in documents(1, 6, high=80)]
    assert run("--index", index, build(builder, index, texts, clean=False)) == 0
    assert re.search(r"^a +6 +0 +0 ", capsys.readouterr().out, re.M)


def test_reviewed_frequent_ngrams_are_boilerplate_for_the_next_index(tmp_path, capsys):
    path = benchmark(tmp_path, ["exam", "quiz"], [QUESTION])
    index, listed = tmp_path / "exam.index", tmp_path / "frequent.jsonl"
    place = ["--benchmark", str(path), "--output", str(index)]
    assert build_index.main(place) == 0
    texts = [f"{QUOTE} {i}" for i in range(5)] + [SECOND]
    corpus = write(tmp_path / "a.jsonl", [*texts, texts[0]])
    options = ["--frequent-out", listed, "--fail-on-overlap"]
    assert run("--index", index, corpus, *options, "--frequent", 5) == 1
    assert listed.read_text() == "", "five different texts are not more than five"
    assert run("--index", index, corpus, *options, "--frequent", 4) == 1
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert sorted(line["ngram"] for line in lines) == sorted(
        " ".join(QUESTION.rstrip("?").split()[i : i + 10]) for i in range(4)
    )
    assert {(line["documents"], *line["scenarios"]) for line in lines} == {(5, "exam", "quiz")}
    assert build_index.main([*place, "--frequent", str(listed)]) == 0
    capsys.readouterr()
    assert run("--index", index, corpus, "--fail-on-overlap") == 0
    shown = capsys.readouterr().out
    assert "0 of 2 benchmark instances are touched; 2 more only by boilerplate" in shown


def test_a_long_list_of_sources_ends_in_one_line_for_the_rest(tmp_path, index, capsys):
    records = [{"text": QUOTE if i % 2 else "nothing", "task": f"t{i:03d}"} for i in range(90)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    assert run("--index", index, path, "--group", "task") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^60 others +60 +15 +0 +15 ", shown, re.M)
    assert re.search(r"^all sources +90 +45 +0 +45 ", shown, re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no file to read"),
        (["a.jsonl", "--fields", "body"], "a.jsonl: none of its 1 records can be read: 1 missing"),
        (["a.jsonl", "--workers", "0"], "--workers 0: has to be 1 or more"),
        (["a.jsonl", "--threshold", "2"], "--threshold 2.0: is a share"),
        (["a.jsonl", "--report", "a.jsonl"], "--report a.jsonl: is a file"),
        (["unfinished"], "format_version"),
        (["a.jsonl", "--index", "nowhere.index"], "--index nowhere.index: "),
        (["a.jsonl", "--index", "damaged.index"], "--index damaged.index: the index is damaged"),
        (["a.jsonl", "--index", "a.jsonl"], "--index a.jsonl: "),
        (["quotes.jsonl", "--self-test"], "self-test: every document repeats"),
    ],
)
def test_scan_says_what_is_wrong(tmp_path, index, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", ["some text"])
    write(tmp_path / "quotes.jsonl", [QUOTE])
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "manifest.json").write_text("{}")
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.index").write_bytes(content)
    assert message in fault(capsys, scan, "--index", index, *arguments)


def test_records_that_cannot_be_read_are_counted_and_the_rest_is_scanned(tmp_path, index, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": QUOTE}, b"{no", {"text": 7}, {"text": 8}])
    assert run("--index", index, path) == 0
    shown = capsys.readouterr()
    assert (
        "a.jsonl: 3 records cannot be read: 2 text_not_a_string (int), 1 invalid_json" in shown.err
    )
    assert "1 of 2 benchmark instances are touched" in shown.out


@pytest.mark.parametrize("command", ["build_index", "scan"])
def test_help_needs_no_numba_and_no_beam(command):
    ran = python(
        f"import sys, decontam.{command} as c\n"
        "try: c.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'apache_beam', 'torch', 'datasets', 'numba'} & set(sys.modules)"
    )
    assert ran.returncode == 0, ran.stderr


def test_conversations_are_scanned_as_the_text_of_their_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "which of these seven rivers does not reach the sea at any time of the year"
    index = write_index(tmp_path / "b.index", [question])
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "None."}]
    chats = write_jsonl(tmp_path / "chats.jsonl", [{"messages": turns}, {"messages": []}])
    arguments = ["--index", str(index), "--schema", "messages", str(chats)]
    assert scan.main([*arguments, "--fail-on-overlap"]) == 1
    out = capsys.readouterr().out
    assert "exam" in out
