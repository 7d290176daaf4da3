# pyright: standard, reportPrivateImportUsage=false
# pyright: reportIncompatibleMethodOverride=false, reportReturnType=false
# Beam's own types are loose; only this file meets them.
"""The stages as Beam transforms. Only wiring lives here.

What crosses a shuffle is a number for each task; documents and tokens go from file to file inside
one task, so a runner's memory does not grow with the corpus.
"""

import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics.metric import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

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
        UserError: Beam knows no such option (Beam itself only warns and goes on), or two choices
            contradict each other.
    """
    local = not any(flag.split("=")[0] in ("--runner", "-r") for flag in flags)
    mode = "in_memory" if workers == 1 else "multi_processing"
    ours = [f"--runner={LOCAL_RUNNER}", f"--direct_num_workers={workers}"] if local else []
    if local and not any(flag.startswith("--direct_running_mode") for flag in flags):
        ours.append(f"--direct_running_mode={mode}")
    try:
        options = PipelineOptions([*ours, *flags])
        known = options.get_all_options(drop_default=True)
        given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    except SystemExit:
        raise UserError(f"Apache Beam cannot read its options: {' '.join(flags)}") from None
    if unknown := sorted(given.keys() - known.keys()):
        names = options.get_all_options().keys()
        hints = [f"--{name}{did_you_mean(name, names)}" for name in unknown]
        raise UserError(f"Apache Beam has no option {', '.join(hints)}")
    return options


def run_stage(stage: type[Stage], work: str, options: PipelineOptions) -> None:
    """Run one stage to its end.

    Raises:
        Exception: whatever a task raised, as the runner reports it.
    """
    with _worker_chatter_aside(), beam.Pipeline(options=options) as pipeline:
        _ = pipeline | stage.__name__ >> RunStage(stage, work)


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
