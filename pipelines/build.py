"""Build a data set of packed shards from a mixture.

    python -m pipelines.build --mixture mixtures/phase1.yaml --dry-run
    python -m pipelines.build --mixture mixtures/phase1.yaml --output data/phase1

Whatever follows `--` goes to Apache Beam:

    python -m pipelines.build --mixture … --output gs://… -- --runner=DataflowRunner --project=…
"""

import argparse
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Sequence

from pipelines import files
from pipelines.audit import SourceAudit
from pipelines.benchmark_index import index_line, load_index
from pipelines.errors import FaultsError, UserError, did_you_mean
from pipelines.estimate import Estimate, estimate
from pipelines.job import Job, assemble, claim_output
from pipelines.mixture import Mixture
from pipelines.mixture_file import load_mixture
from pipelines.progress import Reporter
from pipelines.report import (
    audit_table,
    decontam_table,
    dropped_table,
    estimate_table,
    passed_over_lines,
    plan_title,
    plural,
    sample_table,
    size,
    unread_lines,
)
from pipelines.run import RunStage, build
from pipelines.shards import OVERLAPS_PAGE
from pipelines.stages import Stage
from pipelines.tokenizer import REFERENCE, Tokenizer, load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

_FAST_BYTES_PER_SECOND, _SLOW_BYTES_PER_SECOND = 25e6, 1e6
"""Of text per worker, for the plan's guess of the time: with a fast tokenizer engine, and with the
reference. `benchmarks/build.py` measures it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    args, unknown = parser().parse_known_args(argv[:cut])
    report = Reporter(quiet=args.quiet, log_json=args.log_json)
    try:
        if unknown:
            close = did_you_mean(unknown[0], ["--mixture", "--output", "--workers", "--store"])
            raise UserError(f"{unknown[0]}: no such option{close}; Apache Beam's go behind ` -- `")
        _run(args, argv[cut + 1 :], report)
    except UserError as error:
        report.fail(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        report.fail("stopped; the same command goes on where this one was")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m pipelines.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--mixture", required=True, metavar="FILE", help="the mixture, a YAML file")
    add("--output", metavar="DIR", help="folder of the data set (local, gs:// or s3://)")
    add("--dry-run", action="store_true", help="print the plan from a sample; write nothing")
    add("--data-root", metavar="DIR", help="read each source's `local` paths below this folder")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change the mixture, e.g. tokens=20000000 or sources.ul2=null")  # fmt: skip
    add("--store", metavar="DIR", help="token store (default: `store` beside the output folder)")
    add("--workers", type=_positive, default=os.cpu_count() or 1, metavar="N",
        help="worker processes of a local run (default: the processors, %(default)s)")  # fmt: skip
    add("--max-bad", type=_share, default=0.01, metavar="SHARE",
        help="share of broken records that stops the build (default %(default)s)")  # fmt: skip
    add("--quiet", action="store_true", help="only the outcome and errors")
    add("--log-json", action="store_true", help="JSON lines instead of text")
    return command


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1 on")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 to 1")
    return value


def _run(args: argparse.Namespace, beam_flags: list[str], report: Reporter) -> None:
    if not args.output and not args.dry_run:
        raise UserError("--output: missing; give a folder for the data set, or --dry-run")
    mixture = load_mixture(args.mixture, args.overrides)
    output = (args.output or "build-output").rstrip("/")
    store = args.store or files.join(os.path.dirname(output) or ".", "store")
    for option, folder in (("--output", output), ("--store", store)):
        if files.is_local(folder) and os.path.exists(folder) and not os.path.isdir(folder):
            raise UserError(f"{option} {folder}: is a file, and has to be a folder")
    reached = [output, store, *([mixture.decontam.index] if mixture.decontam else [])]
    run_stage = beam_runner(beam_flags, args.workers, folders=reached)
    file = fetch_tokenizer(mixture.tokenizer)
    job = assemble(
        mixture, file, data_root=args.data_root, store=store, output=output, dry_run=args.dry_run
    )
    tokenizer = load_tokenizer(file)
    report.say(f"tokenizer: {tokenizer.describe()}")
    templates = {source.name: source.spec.template for source in job.sources}
    warned = [
        f"sources.{name}.chat: {t.warning}" for name, t in templates.items() if t and t.warning
    ]
    for note in (*file.notes, *tokenizer.slow, *warned):
        report.warn(note)
    if args.output and claim_output(job, dry_run=True):
        report.result(f"{output}: this very data set is there already")
        return
    _print_plan(job, tokenizer, report, workers=args.workers, max_bad=args.max_bad)
    if args.dry_run:
        report.result("Nothing was written. Build with --output DIR.")
        return
    try:
        claim_output(job)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be made: {error.strerror or error}") from error
    accounts = build(
        job,
        tokenizer,
        run_stage=run_stage,
        report=report,
        max_bad=args.max_bad,
        workers=args.workers,
    )
    _print_outcome(mixture, accounts, output, report)


def _print_plan(
    job: Job, tokenizer: Tokenizer, report: Reporter, *, workers: int, max_bad: float
) -> None:
    estimates: dict[str, Estimate] = {s.name: estimate(s, tokenizer) for s in job.sources}
    mixture = job.mixture
    report.say(f"\n{plan_title(mixture)}\n\n{estimate_table(mixture, estimates)}\n")
    if passed_over := passed_over_lines(job):
        report.say(f"{passed_over}\n")
    if dropped := sample_table(estimates):
        report.say(f"{dropped}\n")
    if unread := unread_lines(estimates):
        report.say(f"{unread}\n")
    if faults := [
        f"sources.{name}: {fault}" for name, e in estimates.items() for fault in e.faults
    ]:
        raise FaultsError("records that the mixture does not describe", faults)
    for name, e in estimates.items():
        if sum(e.broken.values()) > max_bad * e.sampled:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(e.broken.items()))
            report.say(f"sources.{name}: of {e.sampled} sampled records, broken: {reasons}; this "
                       f"will stop the build (--max-bad {max_bad:g})\n")  # fmt: skip
    if job.benchmark:
        report.say(f"decontam: {index_line(load_index(job.benchmark), job.benchmark)}\n")
    if any(source.has_tasks for source in job.sources):
        report.say("tasks: a build first looks for those that are a benchmark's and drops them; "
                   "what goes with them is not in this plan\n")  # fmt: skip
    width = 2 if tokenizer.token_type == "uint16" else 4
    tokens = sum(e.tokens for e in estimates.values())
    fast = tokenizer.engine_name != REFERENCE
    rate = workers * (_FAST_BYTES_PER_SECOND if fast else _SLOW_BYTES_PER_SECOND)
    minutes = max(1, round(sum(e.text_bytes for e in estimates.values()) / rate / 60))
    report.say(
        f"disk: ~{size(tokens * width)} token store, ~{size(mixture.tokens * width)} shards; "
        f"time: ~{minutes} min with {plural(workers, 'worker')}\n"
    )
    parent = os.path.dirname(os.path.abspath(job.output))
    if files.is_local(job.output) and os.path.isdir(parent):
        needed, free = (tokens + mixture.tokens) * width, shutil.disk_usage(parent).free
        if needed > free:
            report.warn(f"{parent}: {size(free)} free, the build needs about {size(needed)}")


def _print_outcome(
    mixture: Mixture, accounts: list[SourceAudit], output: str, report: Reporter
) -> None:
    text = audit_table(accounts, seq_len=mixture.seq_len)
    if dropped := dropped_table(accounts):
        text += f"\n\n{dropped}"
    if compared := decontam_table(accounts):
        text += f"\n\n{compared}\nevery overlap, side by side: {files.join(output, OVERLAPS_PAGE)}"
    sequences = sum(a.sequences for a in accounts)
    shards = -(-sequences // mixture.sequences_per_shard)
    text += (
        f"\n\n{plural(sequences, 'sequence')} in {plural(shards, 'shard')}: {output}\n"
        f"look inside: python -m pipelines.show {output}"
    )
    report.result(f"\n{text}", output=output, sources=[a.as_json() for a in accounts])


def beam_runner(flags: list[str], workers: int, *, folders: list[str]) -> RunStage:
    """What runs a stage. Beam is imported here, so that `--help` needs no second for it."""
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from pipelines.transforms import beam_options, has_remote_workers, run_stage

    options = beam_options(flags, workers=workers)  # faults are found before anything runs
    if has_remote_workers(options) and (local := [f for f in folders if files.is_local(f)]):
        raise UserError(
            f"{local[0]}: the runner's workers cannot reach a folder of this machine; give gs:// "
            "paths as --output, --store and, where the mixture has one, decontam.index"
        )

    def run(stage: type[Stage], work: str, stage_workers: int) -> None:
        try:
            run_stage(stage, work, beam_options(flags, workers=stage_workers))
        except Exception as error:
            if _was_interrupted(error):
                raise KeyboardInterrupt from None
            if found := _user_error(error):
                raise found from None
            raise

    return run


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error; the runner reports it as one of the task it hit."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _user_error(error: BaseException) -> UserError | None:
    """The user's error inside what a runner reports; remote workers send only text."""
    if isinstance(error, FaultsError):
        return error
    label = "" if isinstance(error, UserError) else r"\b(?:UserError|FaultsError|InputFault): "
    match = re.search(rf"{label}(.+?)(?: \[while running '|\n\n|\Z)", str(error), re.DOTALL)
    return UserError(match[1].rstrip()) if match else None


if __name__ == "__main__":
    sys.exit(main())
