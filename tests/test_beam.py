"""Beam as it is used: the named runner, strict options, a small graph, the same bytes anywhere."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import fsspec
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
)
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.stager import Stager
from conftest import Builder, documents, write_jsonl

from pipelines import build as command
from pipelines import run, sources
from pipelines.errors import FaultsError, UserError
from pipelines.stages import Pack, Prepare, Stage, Write
from pipelines.transforms import (
    RunStage,
    beam_options,
    dead_workers_noticed,
    has_remote_workers,
    run_stage,
)

DATAFLOW = (
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=europe-west4",
    "--temp_location=gs://some-bucket/temp",
    "--staging_location=gs://some-bucket/staging",
    "--no_auth",
    "--dry_run=True",
)
EMBEDDED_JOB_SERVER = (
    "--runner=PortableRunner",
    "--job_endpoint=embed",
    "--environment_type=LOOPBACK",
)
PORTABLE_TRANSFORMS = {
    "beam:transform:impulse:v1",
    "beam:transform:pardo:v1",
    "beam:transform:group_by_key:v1",
    "beam:transform:reshuffle:v1",
    "beam:transform:generic_composite:v1",
    "beam:transform:pickled_python:v1",  # the composite around Create: its parts are the above
    "",  # the root
}

google_cloud = pytest.mark.skipif(
    importlib.util.find_spec("apitools") is None,
    reason="apache-beam[gcp] is not installed; the pipeline cannot be translated for Dataflow",
)


# The runner and its options


def test_the_default_runner_is_named_and_is_the_embedded_one() -> None:
    options = beam_options([], workers=1)
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert type(beam.Pipeline(options=options).runner) is FnApiRunner
    assert not has_remote_workers(options)


@pytest.mark.parametrize("flags", [[], ["--runner=FnApiRunner"], ["--runner", "fnapi"]])
def test_workers_are_processes_of_the_local_runner(flags: list[str]) -> None:
    direct = beam_options(flags, workers=3).view_as(DirectOptions)
    assert (direct.direct_num_workers, direct.direct_running_mode) == (3, "multi_processing")
    assert beam_options(flags, workers=1).view_as(DirectOptions).direct_running_mode == "in_memory"


def test_a_chosen_running_mode_stays() -> None:
    options = beam_options(["--direct_running_mode=multi_threading"], workers=2)
    assert options.view_as(DirectOptions).direct_running_mode == "multi_threading"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runer=FlinkRunner"], "no option --runer; did you mean 'runner'?"),
        (["--direct_num_worker=2"], "did you mean 'direct_num_workers'?"),
        (["--no-auth"], "no option --no-auth; did you mean"),
        (["runner=FlinkRunner"], "runner=FlinkRunner: not an option of Apache Beam"),
        (["--runner=FnApiRunner", "stray"], "stray: not an option of Apache Beam"),
        (["--num_workers=many"], "invalid int value: 'many'"),
        (["--direct_running_mode=turbo"], "invalid choice: 'turbo'"),
        (["--runner=NoSuchRunner"], "Unexpected pipeline runner: NoSuchRunner"),
        (["--runner=DaskRunner"], "loses data without an error"),
        (["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"], "loses data"),
        (["--runner=FnApiRunner", "--runner=FlinkRunner"], "--runner: given 2 times"),
        (["--runner=DirectRunner"], "leave --runner out for a local run"),
        (["--runner", "direct"], "leave --runner out for a local run"),
        (["--direct_num_workers=2"], "give --workers N"),
        (["--direct_running_mode=in_memory"], "in_memory has one worker, but --workers is 2"),
        (["--runner=PortableRunner", "--environment_type=PROCESS"], "process_command is required"),
    ],
)
def test_options_that_are_wrong_stop_the_run(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        beam_options(flags, workers=2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_option_stops_the_command_before_anything_is_written(
    builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(builder.folder / "a.jsonl", documents(1, 3))
    mixture = builder.mixture({"a": {"weight": 1, "path": "a.jsonl"}})
    before = sorted(builder.folder.rglob("*"))
    out = str(builder.folder / "out")
    arguments = ["--mixture", str(mixture), "--data-root", str(builder.folder), "--output", out]
    assert command.main([*arguments, "--", "--runer=FlinkRunner"]) == 2
    assert sorted(builder.folder.rglob("*")) == before
    stderr = capfd.readouterr().err
    assert stderr == "error: Apache Beam has no option --runer; did you mean 'runner'?\n"


@google_cloud
def test_dataflow_without_what_it_needs_is_refused() -> None:
    with pytest.raises(UserError, match=r"temp_location.*project.*region"):
        beam_options(["--runner=DataflowRunner"], workers=1)


@google_cloud
def test_remote_workers_need_folders_they_can_reach(
    builder: Builder, capfd: pytest.CaptureFixture[str]
) -> None:
    mixture = builder.mixture({"a": {"weight": 1, "path": "a.jsonl"}})
    out = str(builder.folder / "out")
    assert command.main(["--mixture", str(mixture), "--output", out, "--", *DATAFLOW]) == 2
    assert "workers cannot reach a folder of this machine" in capfd.readouterr().err
    assert not (builder.folder / "out").exists()


# The graph


def translate(stage: type[Stage], options: PipelineOptions) -> beam_runner_api_pb2.Pipeline:
    """The pipeline of a stage as every runner gets it."""
    pipeline = beam.Pipeline(options=options)
    _ = pipeline | stage.__name__ >> RunStage(stage, "gs://some-bucket/output/build")
    return pipeline.to_runner_api()


def shuffled_coders(graph: beam_runner_api_pb2.Pipeline) -> Iterator[tuple[str, list[str]]]:
    """Of every shuffle the coder of the key, and those of all parts of the value."""
    parts = graph.components

    def leaves(coder: str) -> list[str]:
        inner = parts.coders[coder].component_coder_ids
        return [leaf for i in inner for leaf in leaves(i)] or [parts.coders[coder].spec.urn]

    for transform in parts.transforms.values():
        if transform.spec.urn == "beam:transform:group_by_key:v1":
            collection = parts.pcollections[next(iter(transform.inputs.values()))]
            key, value = parts.coders[collection.coder_id].component_coder_ids
            yield parts.coders[key].spec.urn, leaves(value)


@pytest.mark.parametrize("stage", [Prepare, Pack, Write])
def test_only_numbers_cross_a_shuffle(stage: type[Stage]) -> None:
    graph = translate(stage, beam_options([], workers=1))
    [(key, value)] = list(shuffled_coders(graph))
    assert key == "beam:coder:varint:v1"
    # A task's number, and the time stamp and pane that Beam itself adds.
    assert value[0] == "beam:coder:varint:v1"
    assert set(value[1:]) <= {"beam:coder:pickled_python:v1"}
    for transform in graph.components.transforms.values():
        if transform.unique_name.endswith(("/ListTasks", "/Spread", "/Run")):
            out = graph.components.pcollections[next(iter(transform.outputs.values()))]
            assert graph.components.coders[out.coder_id].spec.urn == "beam:coder:varint:v1"


class _Count:
    """A stage that notes what its tasks are."""

    def __init__(self, work: str) -> None:
        self._work = Path(work)

    @staticmethod
    def tasks(work: str) -> Iterator[int]:
        yield from range(5)

    def run(self, task: int) -> None:
        (self._work / f"{task}").write_text(type(task).__name__)


def test_every_task_runs_once_and_is_a_number(tmp_path: Path) -> None:
    run_stage(_Count, str(tmp_path), beam_options([], workers=1))
    assert sorted((p.name, p.read_text()) for p in tmp_path.iterdir()) == [
        (str(task), "int") for task in range(5)
    ]


@google_cloud
@pytest.mark.parametrize("stage", [Prepare, Pack, Write])
def test_a_stage_is_translated_for_dataflow(stage: type[Stage]) -> None:
    options = beam_options(DATAFLOW, workers=1)
    pipeline = beam.Pipeline(options=options)
    _ = pipeline | stage.__name__ >> RunStage(stage, "gs://some-bucket/output/build")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.run()
    graph = pipeline.runner.proto_pipeline
    assert len(graph.SerializeToString()) < 32_000  # the service takes 10 MB
    assert {t.spec.urn for t in graph.components.transforms.values()} <= PORTABLE_TRANSFORMS
    assert not graph.requirements  # neither state nor timers nor splittable functions
    assert [key for key, _ in shuffled_coders(graph)] == ["beam:coder:varint:v1"]
    assert all("beam:env:docker:v1" == e.urn for e in graph.components.environments.values())


@google_cloud
def test_no_main_session_is_pickled_for_dataflow(tmp_path: Path) -> None:
    options = beam_options(DATAFLOW, workers=1)
    assert options.view_as(SetupOptions).save_main_session is False
    staged = Stager.create_job_resources(
        options, str(tmp_path), log_submission_env_dependencies=False
    )
    assert not staged


# Whole builds

SOURCES: dict[str, Any] = {
    "lines": {"weight": 3, "path": "lines"},
    "packed": {"weight": 2, "path": "packed.jsonl.zst", "max_passes": 2},
    "texts": {"weight": 1, "path": "texts/*.txt", "policy": "stream", "max_passes": 3},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines in several files and ranges, one compressed file of two blocks, plain texts."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(5)

    def padded(seed: int, n: int, junk: int) -> list[dict[str, str]]:
        """Records that are big to read but quick to tokenize."""
        return [d | {"junk": rng.randbytes(junk).hex()} for d in documents(seed, n, high=400)]

    write_jsonl(folder / "lines" / "b.jsonl", [*padded(1, 120, 80_000), b"{broken", {"text": ""}])
    write_jsonl(folder / "lines" / "a.jsonl", documents(2, 40))
    write_jsonl(folder / "lines" / "more" / "a.jsonl", documents(3, 40))
    plain = write_jsonl(folder / "packed.jsonl", padded(4, 120, 80_000))
    with pa.CompressedOutputStream(str(folder / "packed.jsonl.zst"), "zstd") as stream:
        stream.write(plain.read_bytes())
    plain.unlink()
    (folder / "texts").mkdir()
    for number, document in enumerate(documents(5, 20)):
        (folder / "texts" / f"{number}.txt").write_text(document["text"])
    return folder


@pytest.fixture(scope="module")
def builds(
    corpus: Path, tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, bytes]]:
    """Builds the same mixture in a fresh place and gives every file of the data set."""

    def build(*, remote: str | None = None, **options: Any) -> dict[str, bytes]:
        place = tmp_path_factory.mktemp("build")
        for path in corpus.iterdir():
            (place / path.name).symlink_to(path)
        return Builder(place, tokenizer_model).build(SOURCES, tokens=60_000, **options).files()

    return build


@pytest.fixture(scope="module")
def expected(builds: Callable[..., dict[str, bytes]]) -> dict[str, bytes]:
    """The files that a plain loop makes."""
    files = builds()
    assert sum(name.endswith(".tok") for name in files) > 10
    assert json.loads(files["manifest.json"])["totals"]["tokens"] == 60_000
    return files


def through(*flags: str) -> Callable[[type[Stage], str, int], None]:
    """What runs a stage in a build by the command line with these Beam options."""

    def run_it(stage: type[Stage], work: str, workers: int) -> None:
        run_stage(stage, work, beam_options(flags, workers=workers))

    return run_it


def assert_same_files(files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(files) == sorted(expected)
    # build.json names the input files by path, which differ from place to place.
    assert [n for n in expected if files[n] != expected[n] and n != "build.json"] == []


def test_the_embedded_runner_builds_the_same_bytes(
    builds: Callable[..., dict[str, bytes]], expected: dict[str, bytes]
) -> None:
    assert_same_files(builds(run_stage=through()), expected)


@pytest.mark.parametrize(
    "flags", [[], ["--direct_running_mode=multi_threading"]], ids=["processes", "threads"]
)
def test_two_workers_build_the_same_bytes(
    flags: list[str],
    builds: Callable[..., dict[str, bytes]],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_BYTES_PER_WORKER", 1)
    spread_over: list[int] = []

    def spread(splits: Sequence[Any], *, workers: int) -> list[Any]:
        tasks = sources.spread(splits, workers=workers)
        spread_over.append(max(task.strides for task in tasks))
        return tasks

    monkeypatch.setattr(run, "spread", spread)
    files = builds(run_stage=through(*flags), workers=2)
    assert spread_over == [2]  # the compressed file is shared
    assert_same_files(files, expected)


def test_the_portable_job_api_builds_the_same_bytes(
    builds: Callable[..., dict[str, bytes]], expected: dict[str, bytes]
) -> None:
    assert_same_files(builds(run_stage=through(*EMBEDDED_JOB_SERVER)), expected)


def test_the_order_in_which_files_are_listed_does_not_matter(
    builds: Callable[..., dict[str, bytes]],
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walk, globbed = os.walk, glob.glob

    def walk_backwards(top: Any, *args: Any, **options: Any) -> Any:
        found = list(walk(top, *args, **options))
        return iter([(d, dirs[::-1], names[::-1]) for d, dirs, names in found[::-1]])

    monkeypatch.setattr(os, "walk", walk_backwards)
    monkeypatch.setattr(glob, "glob", lambda *a, **k: globbed(*a, **k)[::-1])
    assert_same_files(builds(), expected)


def test_an_object_store_holds_the_same_bytes(
    corpus: Path, tokenizer_model: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    for path in corpus.iterdir():
        (tmp_path / path.name).symlink_to(path)
    mixture = Builder(tmp_path, tokenizer_model).mixture(SOURCES, tokens=60_000)
    arguments = ["--mixture", str(mixture), "--data-root", str(tmp_path), "--workers", "1"]
    arguments += ["--output", "memory://bucket/out", "--max-bad", "1", "--quiet"]
    assert command.main(arguments) == 0
    memory = fsspec.filesystem("memory")
    names = [path.rpartition("/")[2] for path in memory.find("/bucket/out")]
    assert_same_files({n: memory.cat_file(f"/bucket/out/{n}") for n in names}, expected)


# Errors of tasks


class _NoRoom(_Count):
    def run(self, task: int) -> None:
        if task == 3:
            raise UserError("disk: no space left; make room")


class _Faulty(_Count):
    def run(self, task: int) -> None:
        raise FaultsError("input", ["a.jsonl: torn", "b.jsonl: torn"])


@pytest.mark.parametrize(
    ("workers", "flags"), [(1, []), (2, []), (1, EMBEDDED_JOB_SERVER)], ids=["1", "2", "portable"]
)
def test_a_users_error_in_a_task_arrives_as_its_message(
    workers: int,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, _import_paths())]))
    runs = command.beam_runner(flags, workers, folders=[])
    with pytest.raises(UserError) as caught:
        runs(_NoRoom, str(tmp_path), workers)
    assert str(caught.value) == "disk: no space left; make room"
    if not flags:  # the embedded job server logs in this process, where pytest catches it
        assert capfd.readouterr() == ("", "")


def _import_paths() -> list[Path]:
    """Where worker processes find the package and the stages of this file."""
    tests = Path(__file__).resolve().parent
    return [tests.parent, tests]


class _Killed(_Count):
    def run(self, task: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class _Interrupted(_Count):
    def run(self, task: int) -> None:
        raise KeyboardInterrupt


def test_a_worker_that_is_killed_ends_the_run_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, _import_paths())]))
    with pytest.raises(UserError, match=r"a worker process was killed \(status 137\)"):
        command.beam_runner([], 2, folders=[])(_Killed, str(tmp_path), 2)


def _end_as_a_worker() -> None:
    raise RuntimeError("Worker subprocess exited with return code -2")


def _end_as_another() -> None:
    raise RuntimeError("something else")


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_workers_that_end_after_the_run_say_nothing(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: said.append(str(args.exc_value)))
    with pytest.raises(error), dead_workers_noticed():
        if error is KeyboardInterrupt:
            raise error
        threading.Thread(target=_end_as_a_worker).start()
        time.sleep(60)  # what notices the worker ends this
    for end in (_end_as_a_worker, _end_as_another):
        thread = threading.Thread(target=end)
        thread.start()
        thread.join()
    assert said == ["something else"]


def test_ctrl_c_in_a_task_is_no_error_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        command.beam_runner([], 1, folders=[])(_Interrupted, str(tmp_path), 1)


def test_faults_keep_their_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        command.beam_runner([], 1, folders=[])(_Faulty, str(tmp_path), 1)
    assert str(caught.value) == "input: 2 faults\n  a.jsonl: torn\n  b.jsonl: torn"
