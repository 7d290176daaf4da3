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
import sys
import warnings
from collections.abc import Sequence

from pipelines import files
from pipelines.audit import SourceAudit
from pipelines.errors import FaultsError, UserError
from pipelines.estimate import Estimate, estimate
from pipelines.job import Job, assemble, claim_output
from pipelines.mixture import Mixture
from pipelines.mixture_file import load_mixture
from pipelines.progress import Reporter
from pipelines.report import audit_table, dropped_table, estimate_table, plan_title, size
from pipelines.run import Limits, RunStage, build
from pipelines.stages import Stage
from pipelines.tokenizer import Tokenizer, fetch_tokenizer, load_tokenizer

_TEXT_MB_PER_CPU_SECOND = 15.0
"""For the plan's guess of the time; `benchmarks/build.py` measures it on a machine."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    args = _parser().parse_args(argv[:cut])
    report = Reporter(quiet=args.quiet, log_json=args.log_json)
    try:
        _run(args, argv[cut + 1 :], report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
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
        help="share of broken records per source that stops the build (default %(default)s)")  # fmt: skip
    add("--quiet", action="store_true", help="only the outcome and errors")
    add("--log-json", action="store_true", help="JSON lines instead of text")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise ValueError(text)
    return value


def _run(args: argparse.Namespace, beam_flags: list[str], report: Reporter) -> None:
    if not args.output and not args.dry_run:
        raise UserError("--output: missing; give a folder for the data set, or --dry-run")
    mixture = load_mixture(args.mixture, args.overrides)
    run_stage = _beam_runner(beam_flags, args.workers)
    file = fetch_tokenizer(mixture.tokenizer)
    output = (args.output or "build-output").rstrip("/")
    store = args.store or files.join(os.path.dirname(output) or ".", "store")
    job = assemble(mixture, file, data_root=args.data_root, store=store, output=output)
    tokenizer = load_tokenizer(file)
    report.say(f"tokenizer: {tokenizer.vocab_size:,} ids, engine: {tokenizer.engine_name}")
    for refusal in tokenizer.refused:
        report.warn(f"slower tokenizer engine in use: {refusal}")
    if args.dry_run:
        _print_plan(job, tokenizer, report, args.workers)
        report.result("Nothing was written. Build with --output DIR.")
        return
    if claim_output(job):
        report.result(f"{output}: this very data set is there already")
        return
    _print_plan(job, tokenizer, report, args.workers)
    limits = Limits(max_bad=args.max_bad)
    accounts = build(
        job, tokenizer, run_stage=run_stage, report=report, limits=limits, workers=args.workers
    )
    _print_outcome(mixture, accounts, output, report)


def _print_plan(job: Job, tokenizer: Tokenizer, report: Reporter, workers: int) -> None:
    estimates: dict[str, Estimate] = {s.name: estimate(s, tokenizer) for s in job.sources}
    mixture = job.mixture
    report.say(f"\n{plan_title(mixture)}\n\n{estimate_table(mixture, estimates)}\n")
    width = 2 if tokenizer.token_type == "uint16" else 4
    tokens = sum(e.tokens for e in estimates.values())
    text = sum(e.tokens for e in estimates.values()) * 4
    seconds = text / 1e6 / _TEXT_MB_PER_CPU_SECOND / workers
    report.say(
        f"disk: ~{size(tokens * width)} token store, ~{size(mixture.tokens * width)} shards; "
        f"time: ~{max(1, round(seconds / 60))} min with {workers} workers\n"
    )


def _print_outcome(
    mixture: Mixture, accounts: list[SourceAudit], output: str, report: Reporter
) -> None:
    text = audit_table(accounts, seq_len=mixture.seq_len)
    if dropped := dropped_table(accounts):
        text += f"\n\n{dropped}"
    sequences = sum(a.sequences for a in accounts)
    shards = -(-sequences // mixture.sequences_per_shard)
    text += (
        f"\n\n{sequences:,} sequences in {shards:,} shards: {output}\n"
        f"look inside: python -m pipelines.show {output}"
    )
    report.result(f"\n{text}", output=output, sources=[a.as_json() for a in accounts])


def _beam_runner(flags: list[str], workers: int) -> RunStage:
    """What runs a stage. Beam is imported here, so that `--help` needs no second for it."""
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from pipelines.transforms import beam_options, run_stage

    beam_options(flags, workers=workers)  # faults in the options are found before anything runs

    def run(stage: type[Stage], work: str, stage_workers: int) -> None:
        try:
            run_stage(stage, work, beam_options(flags, workers=stage_workers))
        except Exception as error:
            if found := _user_error(error):
                raise found from None
            raise

    return run


def _user_error(error: BaseException) -> UserError | None:
    """The user's error inside what a runner reports; remote workers send only text."""
    if isinstance(error, FaultsError | UserError):
        return error
    match = re.search(r"(?:UserError|InputFault): (.+)", str(error))
    return UserError(match[1].split(" [while running")[0]) if match else None


if __name__ == "__main__":
    sys.exit(main())
