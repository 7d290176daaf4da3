# pyright: standard, reportPrivateImportUsage=false
# pyright: reportIncompatibleMethodOverride=false, reportReturnType=false
# Beam's own types are loose; only this file meets them.
"""The stages as Beam transforms. Only wiring lives here.

What crosses a shuffle is a number for each task; documents and tokens go from file to file inside
one task, so a runner's memory does not grow with the corpus.
"""

import importlib
import io
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics.metric import Metrics
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from pipelines.errors import UserError, did_you_mean
from pipelines.stages import Stage

LOCAL_RUNNER = "FnApiRunner"
"""Beam's in-process runner, by name: the default one first looks for a binary on the network."""


@dataclass
class RunStage(beam.PTransform):
    """Run every task of a stage, on any worker and in any order.

    Attributes:
        stage: what to run.
        work: the build's work folder, which holds what the stage needs.
    """

    stage: type[Stage]
    work: str

    def expand(self, begin: pvalue.PBegin) -> pvalue.PCollection[int]:
        """One element a task goes through; the result is the tasks done."""
        return (
            begin
            | "NameWork" >> beam.Create([self.work], reshuffle=False)
            | "ListTasks" >> beam.FlatMap(self.stage.tasks).with_output_types(int)
            | "Spread" >> beam.Reshuffle()
            | "Run" >> beam.ParDo(_Run(self.stage, self.work)).with_output_types(int)
        )


class _Run(beam.DoFn):
    def __init__(self, stage: type[Stage], work: str) -> None:
        self._stage = stage
        self._work = work
        self._done = Metrics.counter("build", f"{stage.__name__.lower()}_tasks")

    def setup(self) -> None:
        self._worker = self._stage(self._work)

    def process(self, element: int):
        self._worker.run(element)
        self._done.inc()
        yield element


def beam_options(flags: Sequence[str], *, workers: int) -> PipelineOptions:
    """Beam's options: those given, and for a local run the named runner with `workers` processes.

    Raises:
        UserError: Beam knows no such option (Beam itself only warns and goes on), cannot run with
            the options, or two of them contradict each other.
    """
    options = _parse(flags)
    _refuse_contradictions(flags, workers=workers)
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    standard.runner = standard.runner or LOCAL_RUNNER
    if _runner(options) == "fnapi":
        direct.direct_num_workers = workers
        if "--direct_running_mode" not in _names(flags):
            direct.direct_running_mode = "in_memory" if workers == 1 else "multi_processing"
    try:
        if has_remote_workers(options):
            _require_google_cloud()
        beam.Pipeline(options=options)  # makes the runner and lets it check its options
    except (ValueError, ImportError, AttributeError, RuntimeError) as error:
        faults = " ".join(str(error).split())
        raise UserError(f"Apache Beam cannot run with {' '.join(flags)}: {faults}") from None
    return options


def _require_google_cloud() -> None:
    try:
        importlib.import_module("apache_beam.runners.dataflow.internal.apiclient")
    except ImportError:
        raise UserError(
            "--runner=DataflowRunner: not installed; pip install 'apache-beam[gcp]'"
        ) from None


def has_remote_workers(options: PipelineOptions) -> bool:
    """Whether workers surely run on other machines, where local paths mean nothing."""
    return _runner(options) in ("dataflow", "testdataflow")


def _runner(options: PipelineOptions) -> str:
    """The runner's name without what Beam lets one leave out or write in capitals."""
    name = str(options.view_as(StandardOptions).runner)
    return name.rpartition(".")[2].lower().removesuffix("runner")


def _parse(flags: Sequence[str]) -> PipelineOptions:
    for before, flag in zip(["", *flags], flags, strict=False):
        if not flag.startswith("-") and (not before.startswith("-") or "=" in before):
            raise UserError(f"{flag}: not an option of Apache Beam; options begin with --")
    usage = io.StringIO()
    try:
        with redirect_stderr(usage):
            options = PipelineOptions(["--no_save_main_session", *flags])
            known = options.get_all_options(drop_default=True)
            given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    except SystemExit:
        fault = usage.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"Apache Beam cannot read its options: {fault}") from None
    if unknown := sorted(given.keys() - known.keys()):
        names = options.get_all_options().keys()
        typed = {flag.lstrip("-").replace("-", "_"): flag for flag in _names(flags)}
        hints = [f"{typed.get(name, name)}{did_you_mean(name, names)}" for name in unknown]
        raise UserError(f"Apache Beam has no option {', '.join(hints)}")
    return options


def _names(flags: Sequence[str]) -> list[str]:
    return [flag.split("=")[0] for flag in flags if flag.startswith("-")]


def _refuse_contradictions(flags: Sequence[str], *, workers: int) -> None:
    names = _names(flags)
    for once in ("--runner", "--direct_running_mode"):
        if names.count(once) > 1:
            raise UserError(f"{once}: given {names.count(once)} times; give it once")
    options = PipelineOptions([*flags])
    if _runner(options) in ("direct", "switchingdirect"):
        raise UserError(
            "--runner=DirectRunner: picks one of several engines and may download one; leave "
            f"--runner out for a local run, which uses {LOCAL_RUNNER}"
        )
    if _runner(options) == "dask":
        raise UserError("--runner=DaskRunner: loses data without an error; see docs/running.md")
    if "--direct_num_workers" in names:
        raise UserError("--direct_num_workers: give --workers N before the `--` instead")
    mode = options.view_as(DirectOptions).direct_running_mode
    if "--direct_running_mode" in names and mode == "in_memory" and workers > 1:
        raise UserError(
            f"--direct_running_mode=in_memory has one worker, but --workers is {workers}; give "
            "--workers 1, or another mode"
        )


def run_stage(stage: type[Stage], work: str, options: PipelineOptions) -> None:
    """Run one stage to its end.

    Raises:
        UserError: a worker process died.
        Exception: whatever a task raised, as the runner reports it.
    """
    with (
        dead_workers_noticed(),
        _worker_chatter_aside(),
        beam.Pipeline(options=options) as pipeline,
    ):
        _ = pipeline | stage.__name__ >> RunStage(stage, work)


class _WorkerDied(Exception):
    """Raised in the main thread, wherever it waits for the worker."""


@contextmanager
def dead_workers_noticed() -> Generator[None]:
    """Stop when a worker process is killed, for lack of memory say.

    Beam's local runner notices it in a thread, and waits for the worker's answer for ever. Workers
    that end after the first, and after an error or Ctrl-C, are not spoken of.

    Raises:
        UserError: a worker process died.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield  # only the main thread can be interrupted
        return
    statuses: list[str] = []
    changing = threading.Lock()

    def notice(args: threading.ExceptHookArgs) -> None:
        text = str(args.exc_value)
        if not text.startswith("Worker subprocess exited"):
            hook(args)
            return
        with changing:
            if not statuses:
                statuses.append(text.rpartition(" ")[2])
                signal.pthread_kill(main.ident or 0, signal.SIGUSR1)

    def stop(*_: object) -> None:
        raise _WorkerDied

    hook, threading.excepthook = threading.excepthook, notice
    handler = signal.signal(signal.SIGUSR1, stop)
    try:
        yield
        threading.excepthook = hook  # after an error not: other workers may end later than this
    except _WorkerDied:
        raise UserError(
            f"a worker process was killed (status {statuses[0]}), most often for lack of memory: "
            "give fewer --workers; the same command goes on where this one was"
        ) from None
    finally:
        with changing:
            statuses.append("nobody waits for a worker any more")
            signal.signal(signal.SIGUSR1, handler)


@contextmanager
def _worker_chatter_aside() -> Generator[None]:
    """Keep the forty lines that each of Beam's worker processes prints off the terminal.

    What a task raises still reaches the driver; these lines hold nothing else.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as aside:
        terminal = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
