"""Make an index of benchmark texts, for builds and scans to look for.

    python -m decontam.build_index --helm helm/ --output build/helm.index

--helm takes run directories, light scenarios, and the scenarios' own published files, or folders
that hold any of these. What each scenario is and where its texts lie says the benchmark file;
docs/decontamination.md explains it all.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decontam.benchmark_file import HELM_CORE
from decontam.coverage import CoverageRow, partial_lines, share_text
from decontam.grid import Grid
from decontam.helm import SPLITS, Benchmark, load_benchmark
from decontam.records import DecontamError

if TYPE_CHECKING:  # numba takes a second to import; `--help` does without
    from decontam.index import Index

_WAYS = ("by_ngrams", "whole", "with_answer", "too_short")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = parser().parse_args(argv)
    try:
        _run(args)
    except DecontamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m decontam.build_index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add(
        "--helm", nargs="+", default=[], metavar="PATH", help="files and folders of benchmark texts"
    )
    add("--benchmark", default=str(HELM_CORE), metavar="FILE",
        help="the benchmark file, YAML (default: the core scenarios of HELM)")  # fmt: skip
    add("--output", required=True, metavar="FILE", help="the index; one that is there is replaced")
    add("--hub", action="store_true", help="read the scenarios' data sets on the hub, too")
    add("--scenarios", nargs="+", metavar="NAME", help="only these (default: all in use)")
    add("--splits", nargs="+", choices=SPLITS, metavar="SPLIT",
        help=f"of {', '.join(SPLITS)} (default: as the benchmark file says)")  # fmt: skip
    add("--parts", choices=("both", "input", "reference"),
        help="texts to look for (default: as the benchmark file says)")  # fmt: skip
    add("--n", type=int, default=10, metavar="N",
        help="words in a row that make an overlap (default %(default)s)")  # fmt: skip
    add("--normalization", choices=("default", "helm"), default="default",
        help="what counts as the same word (default %(default)s)")  # fmt: skip
    add("--alone-words", type=int, default=6, metavar="N",
        help="words of the shortest whole input that counts without its answer beside it "
        "(default %(default)s)")  # fmt: skip
    add("--frequent", metavar="FILE", help="reviewed n-grams to report apart, JSON lines of "
        "{\"ngram\": …} as `decontam.scan --frequent-out` writes them")  # fmt: skip
    return command


def _run(args: argparse.Namespace) -> None:
    if os.path.isdir(args.output):
        raise DecontamError(f"--output {args.output}: is a folder, and has to be a file")
    if args.alone_words < 1:
        raise DecontamError(f"--alone-words {args.alone_words}: has to be 1 or more")
    frequent = list(read_frequent(args.frequent)) if args.frequent else []
    benchmark = load_benchmark(
        args.benchmark,
        sources=args.helm,
        scenarios=args.scenarios,
        splits=args.splits,
        parts="both" if args.parts else None,  # inputs may need their references to be found
        hub=args.hub,
    )
    _check_any(benchmark, args)
    from decontam.index_build import build_index
    from decontam.normalize import Normalizer

    index = build_index(
        benchmark.instances,
        n=args.n,
        normalizer=Normalizer.of(args.normalization),
        parts=args.parts or "both",
        alone_words=args.alone_words,
        frequent=frequent,
        coverage=coverage_rows(benchmark),
    )
    _make_folder(args.output)
    index.save(args.output)
    for line in summary_lines(benchmark, index, args.output):
        print(line)


def _check_any(benchmark: Benchmark, args: argparse.Namespace) -> None:
    if benchmark.instances:
        return
    if not any(row.found for row in benchmark.coverage) and not args.helm and not args.hub:
        raise DecontamError(
            f"{args.benchmark}: names no file of its own, and there is nothing else to read; give "
            "--helm PATH, or --hub"
        )
    why = ", ".join(sorted({row.problem for row in benchmark.coverage} - {"switched off"}))
    raise DecontamError(f"{args.benchmark}: there is no instance to look for: {why}")


def _make_folder(output: str) -> None:
    folder = os.path.dirname(output) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise DecontamError(f"--output {output}: cannot make {folder}: {error.strerror}") from error


def read_frequent(path: str) -> Iterator[str]:
    """The n-grams of a list.

    Raises:
        DecontamError: it cannot be read, or a line is not `{"ngram": "some words"}`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DecontamError(f"--frequent {path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            ngram = json.loads(line)["ngram"]
        except (ValueError, TypeError, KeyError):
            ngram = None
        if not isinstance(ngram, str):
            raise DecontamError(
                f'--frequent {path}: line {number} is not {{"ngram": "some words"}}; '
                "`python -m decontam.scan --frequent-out` writes such a file"
            )
        yield ngram


def coverage_rows(benchmark: Benchmark) -> list[CoverageRow]:
    """What the index says of each scenario; `splits` counts the instances in it."""
    kept: dict[str, dict[str, int]] = {}
    for instance in benchmark.instances:
        splits = kept.setdefault(instance.scenario, {})
        splits[instance.split] = splits.get(instance.split, 0) + 1
    rows: list[CoverageRow] = []
    for row in benchmark.coverage:
        more = f" and {len(row.found) - 1} more" if len(row.found) > 1 else ""
        where = f"{row.found[0]}{more}" if row.found else ""
        missing = f"{row.problem} ({where})" if where else row.problem
        where = missing if row.problem else where
        rows.append(
            {
                "scenario": row.scenario,
                "splits": kept.get(row.scenario, {}),
                "where": where,
                "asked": list(row.asked),
                "published": dict(row.published),
                "distinct": dict(row.distinct),
                "limits": list(row.limits),
            }
        )
    return rows


def summary_lines(benchmark: Benchmark, index: "Index", path: str) -> Iterator[str]:
    """What the command prints."""
    rows = coverage_rows(benchmark)
    yield str(_coverage_grid(benchmark, rows))
    yield from partial_lines(rows)
    for name in benchmark.ignored:
        yield f"not in the benchmark file, left out: {name}"
    yield f"\n{_ways_grid(index.header)}"
    header = index.header
    size = os.path.getsize(path)
    yield (
        f"\n{path}: {len(benchmark.instances):,} instances, {header['ngrams']:,} n-grams of "
        f"{header['n']} words ({header['normalization']} words), {size / 1e6:,.1f} MB\n"
        f"digest {header['digest']}"
    )
    if missing := benchmark.missing_core:
        yield (
            f"core scenarios without an instance: {', '.join(missing)}; builds that `require: all` "
            "will refuse this index"
        )


def _coverage_grid(benchmark: Benchmark, held: Sequence[CoverageRow]) -> Grid:
    rows: list[tuple[str, ...]] = []
    for row, share in zip(benchmark.coverage, map(share_text, held), strict=True):
        found = ", ".join(f"{split or 'none'} {n:,}" for split, n in row.splits.items())
        where = row.problem
        if not where:
            more = f" and {len(row.found) - 1} more" if len(row.found) > 1 else ""
            where = f"{os.path.basename(next(iter(row.found)))}{more}"
        rows.append((row.scenario, f"{row.instances:,}", share, found, where))
    core = [row for row in benchmark.coverage if row.core]
    note = (
        f"{len(core) - len(benchmark.missing_core)} of {len(core)} core scenarios" if core else ""
    )
    columns = ("scenario", "instances", "share", "splits found", "where, or why not")
    return Grid("What there is of each scenario", columns, "<>><<", rows, note)


def _ways_grid(header: Mapping[str, Any]) -> Grid:
    """How the texts of each scenario can be found in a document."""
    rows: list[tuple[str, ...]] = []
    for name, counts in header["found_by"].items():
        inputs = [counts.get(f"input_{way}", 0) for way in _WAYS]
        references = [counts.get(f"reference_{way}", 0) for way in ("by_ngrams", "too_short")]
        rows.append((name, *(f"{n:,}" for n in (*inputs, *references))))
    columns = ("scenario", "inputs", "whole", "with answer", "too short", "references",
               "too short")  # fmt: skip
    note = (
        f"inputs and references: those found by {header['n']} words in a row. Shorter inputs are "
        "found whole;\nif they have fewer than "
        f"{header['alone_words']} words, only with a right answer near; the rest cannot be found"
    )
    return Grid("How inputs and references can be found", columns, "<>>>>>>", rows, note)


if __name__ == "__main__":
    sys.exit(main())
