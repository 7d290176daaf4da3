"""Killed at any moment, the same command ends with the same bytes; nothing old is mistaken."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Builder, documents, write_jsonl

from pipelines import run
from pipelines.build import main

# Small inputs get one worker, unless this is changed. What a shell starts in the background, tests
# too, ignores Ctrl-C, unless it says otherwise.
WITH_TWO_WORKERS = """
import signal
import sys
from pipelines import build, run

signal.signal(signal.SIGINT, signal.default_int_handler)
run._BYTES_PER_WORKER = 1
sys.exit(build.main())
"""
SOURCES = {
    "a": {"weight": 2, "path": "a/*.jsonl", "max_passes": 4},
    "b": {"weight": 1, "path": "b.jsonl", "max_passes": 4},
}
TOKENS = 300_000
GRACE_SECONDS = 20.0
"""For worker processes to leave on a busy machine; they take about two."""


@dataclass
class Place:
    """A corpus with its mixture, and builds of it by the command line."""

    builder: Builder

    @property
    def folder(self) -> Path:
        return self.builder.folder

    @property
    def store(self) -> Path:
        return self.folder / "command-store"

    def arguments(self, output: str, *more: str, store: str = "command-store") -> list[str]:
        return [
            "--mixture", str(self.folder / "mixture.yaml"),
            "--data-root", str(self.folder),
            "--output", str(self.folder / output),
            "--store", str(self.folder / store),
            *more,
        ]  # fmt: skip

    def start(
        self, output: str, *, two_workers: bool, store: str = "command-store"
    ) -> subprocess.Popen[str]:
        """The command in a process group of its own."""
        root = Path(__file__).resolve().parents[1]
        command = ["-c", WITH_TWO_WORKERS] if two_workers else ["-m", "pipelines.build"]
        return subprocess.Popen(
            [sys.executable, *command, *self.arguments(output, "--workers", "2", store=store)],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, output: str, *more: str) -> int:
        """The command in this process, with one worker."""
        return main(self.arguments(output, "--workers", "1", *more))

    def files(self, output: str) -> dict[str, bytes]:
        """Every file below an output folder."""
        folder = self.folder / output
        return {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }

    def batches(self) -> dict[str, int]:
        """Time stamps of what is in the token store."""
        return {str(p): p.stat().st_mtime_ns for p in self.store.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Place:
    """Four ranges of lines that are big to read, and a small file."""
    folder = tmp_path_factory.mktemp("resume")
    rng = random.Random(7)
    for number in range(2):
        padded = [d | {"junk": rng.randbytes(90_000).hex()} for d in documents(number, 100)]
        write_jsonl(folder / "a" / f"{number}.jsonl", padded)
    write_jsonl(folder / "b.jsonl", documents(9, 200))
    builder = Builder(folder, tokenizer_model)
    builder.mixture(SOURCES, tokens=TOKENS, sequences_per_shard=12)
    return Place(builder)


@pytest.fixture(scope="module")
def expected(place: Place) -> dict[str, bytes]:
    """The files of a build that nothing disturbed."""
    built = place.builder.build(SOURCES, tokens=TOKENS, sequences_per_shard=12, output="whole")
    assert len(built.shard_bytes()) > 100
    return place.files("whole")


@pytest.fixture(scope="module")
def finished(place: Place, expected: dict[str, bytes]) -> Place:
    """The same data set, built by the command in this process."""
    assert place.run("finished", "--quiet") == 0
    assert place.files("finished") == expected
    return place


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until something happened; fails if the process ends first."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def group_ends(group: int) -> bool:
    """Whether every process of a group is gone before long."""
    end = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return False


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the command alone; its workers are left to notice."""
    process.kill()
    process.communicate()
    assert group_ends(process.pid), "worker processes survived the command"


def test_killed_in_every_stage_a_build_goes_on_to_the_same_bytes(
    place: Place, expected: dict[str, bytes]
) -> None:
    output = place.folder / "killed"

    first = place.start("killed", two_workers=True)
    wait_for(lambda: any(place.store.glob("*/*.tokens")), first)
    kill(first)
    assert not list(output.glob("*.tok"))
    (output / "build" / "stale.tmp").write_text("half written")

    second = place.start("killed", two_workers=False)
    wait_for(lambda: any(output.glob("*.meta.arrow")), second)
    kill(second)
    assert not (output / "manifest.json").exists()
    n_shards = sum(name.endswith(".tok") for name in expected)
    assert 0 < len(list(output.glob("*.meta.arrow"))) < n_shards
    (output / f"00001.tok.{'0' * 32}.tmp").write_text("half written")
    written = {p: p.stat().st_mtime_ns for p in output.glob("*.meta.arrow")}

    third = place.start("killed", two_workers=False)
    log, errors = third.communicate(timeout=120)
    assert (third.returncode, errors) == (0, "")
    assert "everything is in the token store already" in log
    assert place.files("killed") == expected
    assert all(path.stat().st_mtime_ns == time_stamp for path, time_stamp in written.items())


def test_ctrl_c_ends_with_one_line(place: Place) -> None:
    store = place.folder / "interrupted-store"
    process = place.start("interrupted", two_workers=True, store=store.name)
    wait_for(lambda: any(store.glob("*/*.tokens*")), process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "stopped; the same command goes on where this one was\n"
    assert group_ends(process.pid)


def test_a_finished_output_is_left_alone(
    finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished.folder / "finished").rglob("*")}
    assert finished.run("finished", "--quiet") == 0
    assert capfd.readouterr().out.endswith("finished: this very data set is there already\n")
    assert before == {p: p.stat().st_mtime_ns for p in (finished.folder / "finished").rglob("*")}


@pytest.mark.parametrize("changed", ["sources.a.weight=5", "tokens=100000"])
def test_another_plan_reuses_the_token_store_and_needs_another_output(
    changed: str, finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    before = finished.batches()
    assert finished.run("finished", "--set", changed) == 2
    errors = capfd.readouterr().err
    assert "finished: holds another build; different: mixture" in errors
    assert "another --output" in errors

    assert finished.run(f"other {changed}", "--set", changed) == 0
    assert "everything is in the token store already" in capfd.readouterr().out
    assert finished.batches() == before


@pytest.mark.parametrize("changed", ["tokenizer.bos=false", "filters.min_tokens=70"])
def test_other_tokens_are_made_anew(
    changed: str, finished: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    before = finished.batches()
    small = ["--set", "sources.a=null", "--set", "tokens=100000"]
    assert finished.run(f"other {changed}", *small, "--set", changed) == 0
    assert "everything is in the token store" not in capfd.readouterr().out
    after = finished.batches()
    assert before.items() < after.items()


def test_changed_input_is_read_again(finished: Place, capfd: pytest.CaptureFixture[str]) -> None:
    path = finished.folder / "b.jsonl"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    try:
        assert finished.run("finished") == 2
        assert "different: input files." in capfd.readouterr().err
        assert finished.run("changed input", "--set", "tokens=200000") == 0
        assert "prepare  | 1 of 1" in capfd.readouterr().out
    finally:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_everything_that_differs_is_named(
    finished: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_program(*_: Any) -> str:
        return "another digest"

    monkeypatch.setattr("pipelines.job.program_digest", other_program)
    assert finished.run("finished", "--set", "tokenizer.eos=false") == 2
    assert "different: mixture, tokenizer, program." in capfd.readouterr().err


def test_foreign_files_are_never_built_over(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = place.folder / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("mine")
    assert place.run("thesis") == 2
    errors = capfd.readouterr().err
    assert "not empty, and no build of this program (it holds chapter1.tex)" in errors
    assert [p.name for p in folder.iterdir()] == ["chapter1.tex"]


def test_old_leftovers_in_the_store_are_removed_and_young_ones_are_not(tmp_path: Path) -> None:
    old, young, batch = (tmp_path / n for n in ("a.tokens.0.tmp", "b.tokens.0.tmp", "a.tokens"))
    for path in (old, young, batch):
        path.write_text("half")
    for path in (old, batch):
        os.utime(path, (time.time() - 7200,) * 2)
    run._remove_leftovers(str(tmp_path), older_than=run._LEFTOVER_SECONDS)
    assert sorted(tmp_path.iterdir()) == [batch, young]


@pytest.mark.parametrize("package", ["pipelines", "decontam"])
def test_a_new_or_changed_module_of_any_package_makes_another_program(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No list of modules stands between a change and the names of stored tokens."""
    from pipelines import job

    for name in ("pipelines", "decontam"):
        shutil.copytree(Path(job.__file__).parents[1] / name, tmp_path / name)
    monkeypatch.setattr(job, "__file__", str(tmp_path / "pipelines" / "job.py"))
    folder = tmp_path / package / "new" / "deeper"
    folder.mkdir(parents=True)
    module = folder / "rule.py"
    seen = {_digest_of_today(job)}
    for content in ("LIMIT = 1\n", "LIMIT = 2\n"):
        module.write_text(content)
        seen.add(_digest_of_today(job))
    module.rename(folder / "other.py")
    assert len({*seen, _digest_of_today(job)}) == 4


def _digest_of_today(job: Any) -> str:
    job.code_digest.cache_clear()
    job.program_digest.cache_clear()
    digest: str = job.program_digest()
    job.code_digest.cache_clear()
    job.program_digest.cache_clear()
    return digest


def test_workers_of_another_version_are_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import stages
    from pipelines.errors import UserError

    work = str(place.folder / "work")
    stages.save_tasks(work, "pack", stages.PackTasks(mixture=None, groups=["a"]))  # type: ignore[arg-type]
    assert list(stages.Pack.tasks(work)) == [0]
    monkeypatch.setattr(stages, "program_digest", lambda: "0" * 32)
    with pytest.raises(UserError, match="another version of this program"):
        list(stages.Pack.tasks(work))
