"""The command line: help, dry run, what it prints to whom, exit statuses, progress."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Builder, documents, write_jsonl

from pipelines import build, progress
from pipelines.progress import Done, Reporter, Total

SOURCES: dict[str, Any] = {
    "a": {"weight": 2, "path": "a.jsonl"},
    "b": {"weight": 1, "path": "b/*.txt", "max_passes": 4, "local": "b/*.txt"},
}


@pytest.fixture
def arguments(builder: Builder) -> list[str]:
    """Arguments that build a small corpus."""
    folder = builder.folder
    write_jsonl(folder / "a.jsonl", [*documents(1, 60), b"{broken"])
    (folder / "b").mkdir()
    for number, document in enumerate(documents(2, 20)):
        (folder / "b" / f"{number}.txt").write_text(document["text"])
    mixture = builder.mixture(SOURCES)
    return [
        "--mixture", str(mixture), "--data-root", str(folder), "--workers", "1", "--max-bad", "0.5"
    ]  # fmt: skip


def listing(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-m", "pipelines.build", *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_option_and_needs_no_beam() -> None:
    asked = command("--help")
    assert (asked.returncode, asked.stderr) == (0, "")
    for option in ("--mixture", "--output", "--dry-run", "--data-root", "--set", "--store",
                   "--workers", "--max-bad", "--quiet", "--log-json"):  # fmt: skip
        assert option in asked.stdout
    code = "import sys, pipelines.build; print('apache_beam' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout == "False\n"


def test_a_build_prints_plan_progress_and_audit_and_nothing_else(
    arguments: list[str], builder: Builder
) -> None:
    out = builder.folder / "out"
    built = command(*arguments, "--output", str(out))
    assert (built.returncode, built.stderr) == (0, "")
    assert "test: 20K tokens, at least 79 sequences of 256" in built.stdout
    assert re.search(r"^prepare  \| 2 of 2 \| .* tokens \| \d+:\d\d$", built.stdout, re.M)
    assert re.search(r"^write    \| 5 of 5 \| .* 20,000 tokens \| \d+:\d\d$", built.stdout, re.M)
    assert "invalid_json" in built.stdout
    assert f"shards: {out}\n" in built.stdout
    assert sorted(p.name for p in out.iterdir() if p.suffix not in (".tok", ".arrow")) == [
        "README.md", "build.json", "dropped.jsonl.zst", "manifest.json", "tokenizer.model"
    ]  # fmt: skip


# Dry run


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    arguments: list[str], builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    metadata = [{"id": d["id"], "abstract": "We show it."} for d in documents(1, 5)]
    write_jsonl(builder.folder / "metadata.jsonl", metadata)
    joined = SOURCES["a"] | {"abstracts": {"path": "metadata.jsonl"}}
    builder.mixture(SOURCES | {"a": joined})
    before = listing(builder.folder)
    out = str(builder.folder / "out")
    for more in ([], ["--output", out], ["--output", out, "--", "--direct_running_mode=in_memory"]):
        assert build.main([*arguments, "--dry-run", *more]) == 0
        printed = capfd.readouterr()
        assert printed.err == ""
        assert re.search(r"^a +1 +.* 66\.7%$", printed.out, re.M)
        assert re.search(r"^b +20 +.* 33\.3%$", printed.out, re.M)
        assert "disk: ~" in printed.out
        assert printed.out.endswith("Nothing was written. Build with --output DIR.\n")
    assert listing(builder.folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "sources.a.wieght=1"], "wieght"),
        (["--set", "sources.a.path=nowhere"], "no file to read"),
        (["--set", "tokenizer.path=nowhere.model"], "tokenizer.path: cannot read nowhere.model"),
        (["--set", "sources.a.abstracts.path=nowhere"], "sources.a.abstracts: "),
        (["--", "--runer=FnApiRunner"], "did you mean 'runner'?"),
    ],
)
def test_a_dry_run_finds_what_a_build_would_stop_at(
    change: list[str],
    message: str,
    arguments: list[str],
    builder: Builder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = listing(builder.folder)
    assert build.main([*arguments, "--dry-run", *change]) == 2
    assert message in capfd.readouterr().err
    assert listing(builder.folder) == before


def test_a_dry_run_says_that_an_output_is_taken(
    arguments: list[str], builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    (builder.folder / "out").mkdir()
    (builder.folder / "out" / "notes.txt").write_text("mine")
    assert build.main([*arguments, "--dry-run", "--output", str(builder.folder / "out")]) == 2
    assert "it holds notes.txt" in capfd.readouterr().err


# Faults and exit statuses


def test_without_an_output_nothing_starts(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert build.main(arguments) == 2
    assert capfd.readouterr() == (
        "",
        "error: --output: missing; give a folder for the data set, or --dry-run\n",
    )


def test_a_data_root_that_is_not_there_is_named_for_every_source(
    arguments: list[str], builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    out = builder.folder / "out"
    nowhere = str(builder.folder / "nowhere")
    assert build.main([*arguments, "--data-root", nowhere, "--output", str(out)]) == 2
    errors = capfd.readouterr().err
    assert "2 faults" in errors
    assert errors.count(f"is --data-root {nowhere} right?") == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "argument --workers: 0: a whole number from 1 on"),
        (["--workers", "two"], "argument --workers: two: a whole number from 1 on"),
        (["--max-bad", "2"], "argument --max-bad: 2: a number from 0 to 1"),
        (["--max-bad", "few"], "argument --max-bad: few: a number from 0 to 1"),
    ],
)
def test_arguments_are_checked(
    flags: list[str], message: str, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build.main([*arguments, *flags])
    assert ended.value.code == 2
    assert message in capfd.readouterr().err


def test_a_mixture_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--mixture", "nowhere.yaml", "--dry-run"]) == 2
    assert capfd.readouterr().err.startswith("error: nowhere.yaml: cannot read the mixture")


# Quiet and JSON


def test_quiet_prints_the_outcome_only(
    arguments: list[str], builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    assert build.main([*arguments, "--output", str(builder.folder / "out"), "--quiet"]) == 0
    printed = capfd.readouterr()
    assert printed.out.startswith("\nsource ")
    assert "prepare  |" not in printed.out
    assert "look inside:" in printed.out
    assert printed.err == ""


def test_every_line_of_a_json_log_is_an_event(
    arguments: list[str], builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(builder.folder / "out")
    assert build.main([*arguments, "--output", out, "--log-json"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert all({"time", "event"} <= event.keys() for event in events)
    assert {e["event"] for e in events} == {"message", "progress", "result"}
    stages = {e["stage"]: e for e in events if e["event"] == "progress"}
    assert list(stages) == ["prepare", "write"]
    assert all(e["final"] and e["done"] == e["total"] > 0 for e in stages.values())
    assert stages["write"]["tokens"] == 20_000
    outcome = events[-1]
    assert outcome["event"] == "result"
    assert outcome["output"] == out
    assert [s["name"] for s in outcome["sources"]] == ["a", "b"]


def test_an_error_is_an_event_too(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert build.main([*arguments, "--log-json"]) == 2
    printed = capfd.readouterr()
    assert json.loads(printed.out)["event"] == "error"
    assert printed.err.startswith("error: --output: missing")


# Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines that a person sees in the end."""
        return [line.split("\r\x1b[K")[-1] for line in self.getvalue().split("\n")]


def growing() -> Iterator[Done]:
    for number in range(1000):
        yield Done(number, number * 1_000_000, number * 250_000)


def watched(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Reporter:
    """A stage of four tasks that shows its progress every 10 ms instead of 1 s and 10 s."""
    wait = progress.threading.Event.wait
    monkeypatch.setattr(progress.threading.Event, "wait", lambda e, t=None: wait(e, t and t / 100))
    reporter = Reporter(stream=stream, **{"quiet": False, "log_json": False} | options)
    figures = growing()
    with reporter.stage("prepare", Total(4, 4_000_000, exact=False), lambda: next(figures)):
        time.sleep(0.25)
    return reporter


def test_a_terminal_shows_one_line_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    watched(stream, monkeypatch)
    updates = stream.getvalue().split("\r\x1b[K")
    assert len(updates) > 5
    assert re.fullmatch(
        r"prepare  \| 1 of ~4 \| 1 MB \| [\d.,]+ MB/s \| 250,000 tokens \| ETA \d+:\d\d", updates[1]
    )
    [line, end] = stream.screen()
    assert re.fullmatch(r"prepare  \| (\d+) of \1 \| .* tokens \| 0:00", line)
    assert end == ""


def test_a_log_gets_plain_lines_and_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    watched(stream, monkeypatch)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert not re.search(r"[\r\x1b]", stream.getvalue())
    assert all(line.startswith("prepare  | ") for line in lines)


def test_quiet_and_json_show_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, log = Terminal(), Terminal()
    watched(quiet, monkeypatch, quiet=True)
    assert quiet.getvalue() == ""
    watched(log, monkeypatch, log_json=True)
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [e["final"] for e in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["bytes_per_second"] > 0


def test_a_message_does_not_run_into_the_progress_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = Terminal()
    reporter = Reporter(quiet=False, log_json=False, stream=stream)
    reporter._show("prepare  | 1 of 4", final=False)
    reporter.say("a message")
    reporter._show("prepare  | 2 of 4", final=False)
    reporter.fail("error: no more")
    assert stream.screen() == ["prepare  | 1 of 4", "a message", "prepare  | 2 of 4", ""]
    assert capfd.readouterr().err == "error: no more\n"


def test_what_was_there_before_does_not_count_as_speed() -> None:
    before, done = Done(2, 50_000_000, 10), Done(3, 60_000_000, 20)
    line = progress._as_line(
        "write", Total(4, 80_000_000, exact=True), before, done, 2.0, final=False
    )
    assert line == "write    | 3 of 4 | 60 MB | 5.0 MB/s | 20 tokens | ETA 0:04"


def test_a_stage_that_has_not_begun_has_no_eta() -> None:
    nothing = Done(0, 0, 0)
    line = progress._as_line(
        "prepare", Total(9, 10**9, exact=True), nothing, nothing, 3.0, final=False
    )
    assert line == "prepare  | 0 of 9 | 0 MB | 0 tokens | ETA -"


def test_a_stage_that_fails_ends_without_a_last_line() -> None:
    stream = io.StringIO()
    reporter = Reporter(quiet=False, log_json=False, stream=stream)
    with (
        pytest.raises(ZeroDivisionError),
        reporter.stage("write", Total(1, 1, exact=True), lambda: Done(0, 0, 0)),
    ):
        _ = 1 / 0
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "0:59"), (61, "1:01"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert progress._clock(seconds) == text


def test_an_unknown_option_is_named_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--mixture", "x", "--ouput", "y"]) == 2
    message = capsys.readouterr().err
    assert "--ouput: no such option; did you mean '--output'?" in message
    assert "Apache Beam's go behind ` -- `" in message


def test_a_file_where_a_folder_should_be_is_named(
    arguments: list[str], builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    taken, new = builder.folder / "taken", builder.folder / "new"
    taken.write_text("")
    for flags in (["--output", str(taken)], ["--output", str(new), "--store", str(taken)]):
        assert build.main([*arguments, *flags]) == 2
        assert f"{flags[-2]} {taken}: is a file" in capfd.readouterr().err
    assert not new.exists()


def test_a_plan_says_that_broken_records_will_stop_the_build(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert build.main([*arguments, "--dry-run", "--max-bad", "0"]) == 0
    assert "of 61 sampled records, broken: 1 invalid_json; this will stop" in capfd.readouterr().out


def test_a_plan_gives_every_reason_for_which_records_are_dropped(
    builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = ["a long text of eight words or so", "two words", "none", *["not one too few here"] * 3]
    records: list[Any] = [{"text": text} for text in texts]
    write_jsonl(builder.folder / "a.jsonl", [*records, {"body": "text"}, b"{broken"])
    source = {"weight": 1, "path": "a.jsonl", "filters": {"min_words": 4}}
    arguments = ["--mixture", str(builder.mixture({"a": source})), "--data-root",
                 str(builder.folder), "--dry-run"]  # fmt: skip
    assert build.main(arguments) == 0
    table = capfd.readouterr().out.partition("dropped because")[2].splitlines()[1:4]
    assert [line.split() for line in table] == [
        ["a", "invalid_json", "1", "of", "8", "12.5%"],
        ["a", "missing_text", "1", "of", "8", "12.5%"],
        ["a", "too_few_words", "2", "of", "8", "25.0%"],
    ]
