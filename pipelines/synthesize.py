"""Write questions and answers about long documents with a chat model.

    python -m pipelines.synthesize --source books/ --schema redpajama --model NAME \\
        --base-url http://127.0.0.1:8080/v1 --output data/qa --dry-run

The key is read from OPENAI_API_KEY. docs/synthesis.md says what is asked and what is kept.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from pipelines import files
from pipelines.errors import UserError
from pipelines.progress import Reporter
from pipelines.report import plural, table
from pipelines.schemas import SCHEMAS
from pipelines.synthesis.settings import JUDGES, Settings, Transport


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = parser().parse_args(argv)
    report = Reporter(quiet=args.quiet, log_json=args.log_json)
    try:
        _run(args, report)
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
        prog="python -m pipelines.synthesize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_documents(command)
    _add_model(command)
    add = command.add_argument
    add("--output", metavar="DIR", help="folder of the records, on a local disk")
    add("--cache", metavar="DIR",
        help="every answer paid for (default: `answers` beside the output folder)")  # fmt: skip
    add("--dry-run", action="store_true", help="print the plan; write and send nothing")
    add("--workers", type=_whole, default=os.cpu_count() or 1, metavar="N",
        help="processes that read the input (default %(default)s); one sends requests")  # fmt: skip
    add("--quiet", action="store_true", help="only the outcome and errors")
    add("--log-json", action="store_true", help="JSON lines instead of text")
    return command


def _add_documents(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--source", required=True, nargs="+", metavar="PATH", help="files, folders or globs")
    add("--schema", default="text", metavar="NAME", choices=sorted(SCHEMAS),
        help="as in a mixture (default %(default)s)")  # fmt: skip
    add("--documents", type=_whole, default=100, metavar="N",
        help="how many to choose, by a hash of seed and text (default %(default)s)")  # fmt: skip
    add("--min-words", type=_whole, default=3000, metavar="N",
        help="shorter documents are not chosen (default %(default)s)")  # fmt: skip
    add("--chunk-words", type=_whole, default=1500, metavar="N",
        help="that the model reads (default %(default)s, for a window of 4,096)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N")


def _add_model(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--model", required=True, metavar="NAME", help="as the server calls it")
    add("--base-url", default=os.environ.get("OPENAI_BASE_URL"), metavar="URL",
        help="of the server, up to /v1 (default: OPENAI_BASE_URL)")  # fmt: skip
    add("--temperature", type=_number, default=0.7, metavar="T",
        help="of generation (default %(default)s); judges are asked at 0")  # fmt: skip
    add("--max-tokens", type=_whole, default=512, metavar="N",
        help="of one reply (default %(default)s)")  # fmt: skip
    add("--judges", nargs="*", default=list(JUDGES), choices=JUDGES, metavar="JUDGE",
        help=f"which are asked: {', '.join(JUDGES)} (default all)")  # fmt: skip
    add("--near-threshold", type=_number, default=0.7, metavar="SHARE",
        help="from which on two questions are near duplicates (default %(default)s)")  # fmt: skip
    add("--concurrency", type=_whole, default=4, metavar="N",
        help="requests at a time (default %(default)s)")  # fmt: skip
    add("--timeout", type=_number, default=120.0, metavar="SECONDS")
    add("--retries", type=int, default=5, metavar="N", help="of a request (default %(default)s)")
    add("--backoff", type=_number, default=1.0, metavar="SECONDS",
        help="before the first retry; doubles with each (default %(default)s)")  # fmt: skip
    add("--requests-per-minute", type=_number, metavar="N")
    add("--max-tokens-budget", type=_whole, metavar="N", help="tokens this run may pay for")
    add("--max-cost", type=_number, metavar="COST", help="what this run may cost")
    add("--price-in", type=_number, default=0.0, metavar="PRICE", help="of a million prompt tokens")
    add("--price-out", type=_number, default=0.0, metavar="PRICE", help="of a million reply tokens")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1 on")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 on")
    return value


def _run(args: argparse.Namespace, report: Reporter) -> None:
    settings, transport = _settings(args), _transport(args)
    if not args.output and not args.dry_run:
        raise UserError("--output: missing; give a folder for the records, or --dry-run")
    if args.max_cost is not None and not (args.price_in or args.price_out):
        raise UserError("--max-cost: needs --price-in and --price-out to know what tokens cost")
    try:
        from pipelines.synthesis.run import choose_here, synthesize
    except ImportError as error:
        raise UserError(f"{error}; pip install openai") from None
    from pipelines.synthesis.documents import list_inputs

    inputs = list_inputs(args.source, args.schema)
    if args.dry_run:
        from pipelines.synthesis.plan import plan_lines

        chosen = choose_here(inputs, settings)
        report.result("\n".join([*plan_lines(chosen, settings, transport), "Nothing was sent."]))
        return
    output = args.output.rstrip("/")
    cache = args.cache or files.join(os.path.dirname(output) or ".", "answers")
    for option, folder in (("--output", output), ("--cache", cache)):
        if not files.is_local(folder):
            raise UserError(f"{option} {folder}: has to be on a local disk")
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UserError(f"{option} {folder}: is a file, and has to be a folder")
    from pipelines.build import beam_runner

    result = synthesize(
        inputs, settings, transport, output=output, cache=cache, workers=args.workers,
        run_stage=beam_runner([], args.workers, folders=[output]), report=report,
    )  # fmt: skip
    report.result(outcome(result, output), **result)


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        model=args.model,
        seed=args.seed,
        documents=args.documents,
        min_words=args.min_words,
        chunk_words=args.chunk_words,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        judges=tuple(judge for judge in JUDGES if judge in args.judges),
        near_threshold=args.near_threshold,
    )


def _transport(args: argparse.Namespace) -> Transport:
    if not args.base_url and not args.dry_run:
        raise UserError("--base-url: missing; the server's address, or set OPENAI_BASE_URL")
    if args.base_url and not args.base_url.startswith(("http://", "https://")):
        raise UserError(f"--base-url {args.base_url}: has to begin with http:// or https://")
    names = ("base_url", "concurrency", "timeout", "retries", "backoff", "requests_per_minute",
             "max_tokens_budget", "max_cost", "price_in", "price_out")  # fmt: skip
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    given["base_url"] = args.base_url or ""
    return Transport(**given)


def outcome(result: dict[str, Any], output: str) -> str:
    """The account of a synthesis, for people."""
    dropped = result["dropped"]
    rows = sorted(dropped.items()) if isinstance(dropped, dict) else []
    text = table(["dropped because", "documents"], [[str(k), f"{v:,}"] for k, v in rows])
    lines = [
        "",
        *([text, ""] if rows else []),
        f"{plural(int(str(result['documents'])), 'document')}: {result['kept']} kept, "
        f"{sum(int(v) for _, v in rows)} dropped, {result['unfinished']} unfinished; "
        f"{result['requests']:,} requests, {result['tokens_in']:,} tokens in, "
        f"{result['tokens_out']:,} out, cost {result['cost']}: {output}",
    ]
    if ignored := " and ".join(result["sampling"]["ignored"]):
        lines.append(f"warning: the server ignores {ignored}; report.json says what was seen")
    if not result["complete"]:
        lines.append("stopped at the budget; the same command goes on, with a budget of its own")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
