"""Look for benchmark texts in a corpus or a finished data set, without building anything.

    python -m decontam.scan --index build/helm.index books/ web/*.jsonl.zst --report build/scan
    python -m decontam.scan --index build/helm.index data/phase1 --fail-on-overlap
    python -m decontam.scan --index build/helm.index --self-test books/

A corpus is a file, a folder or a glob of any format that builds read, or the folder of a finished
data set. docs/decontamination.md explains what is found and what is not.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from decontam.records import DecontamError
from decontam.report import split_boilerplate
from decontam.scan_report import INSTANCES, OVERLAPS, PAGE, result_lines, write_report
from pipelines import files
from pipelines.benchmark_index import load_index
from pipelines.cleaning import Decontam
from pipelines.errors import UserError
from pipelines.mixture import SchemaName

if TYPE_CHECKING:  # numba takes a second to import; `--help` does without
    from decontam.corpora import Corpus
    from decontam.index import Index


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (1 where --fail-on-overlap finds some)."""
    args = parser().parse_args(argv)
    try:
        status = _run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, DecontamError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m decontam.scan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("corpus", nargs="+", metavar="CORPUS", help="what to look through")
    command.add_argument("--index", required=True, metavar="FILE",
                         help="of benchmark texts, made by decontam.build_index")  # fmt: skip
    _add_reading(command.add_argument_group("how records are read"))
    _add_policy(command.add_argument_group("what a build would do (nothing is changed)"))
    _add_results(command.add_argument_group("results"))
    _add_self_test(command.add_argument_group("self-test"))
    return command


def _add_reading(group: Any) -> None:
    add, schemas = group.add_argument, get_args(SchemaName)
    add("--schema", choices=schemas, default="text", metavar="NAME",
        help=f"one of {', '.join(schemas)} (default %(default)s)")  # fmt: skip
    add("--fields", metavar="FIELD,…", help="fields that hold the text, instead of a schema")
    add("--group", metavar="FIELD", help="count by task: the field that names it, or `file`")


def _add_policy(group: Any) -> None:
    add = group.add_argument
    add("--policy", choices=("drop", "excise", "threshold", "none"),
        help="as in mixtures (default: as there, excise, but drop for tasks and conversations; "
        "none for data sets)")  # fmt: skip
    default = {name: field.default for name, field in Decontam.model_fields.items()}
    add("--margin-words", type=int, default=default["margin_words"], metavar="N",
        help="words that excise cuts on each side (default %(default)s)")  # fmt: skip
    add("--threshold", type=float, default=default["threshold"], metavar="SHARE",
        help="of a document's words that threshold allows (default %(default)s)")  # fmt: skip
    add("--boilerplate", choices=("keep", "drop"), default=default["boilerplate"],
        help="what happens to boilerplate (default %(default)s)")  # fmt: skip


def _add_results(group: Any) -> None:
    add = group.add_argument
    add("--report", metavar="DIR", help=f"write {PAGE}, {OVERLAPS} and {INSTANCES} there")
    add("--fail-on-overlap", action="store_true",
        help="exit status 1 where an overlap is found that is no boilerplate")  # fmt: skip
    add("--frequent-out", metavar="FILE", help="write n-grams that very many texts hold, to be "
        "reviewed and given to decontam.build_index --frequent")  # fmt: skip
    add("--frequent", type=int, default=10, metavar="N",
        help="more than so many texts are very many (default %(default)s)")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N",
        help="processes (default: the processors, %(default)s)")  # fmt: skip


def _add_self_test(group: Any) -> None:
    add = group.add_argument
    add("--self-test", action="store_true",
        help="plant benchmark texts in the corpus, in memory, and say which are found")  # fmt: skip
    add("--plants", type=int, default=20, metavar="N",
        help="texts of each kind and length that are planted (default %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="chooses them (default %(default)s)")


def _run(args: argparse.Namespace) -> int:
    _check(args)
    from decontam.corpora import open_corpora

    index = _load(args.index)
    corpora = open_corpora(
        args.corpus,
        schema=args.schema,
        fields=args.fields.split(",") if args.fields else [],
        group=[args.group] if args.group else [],
        decontam=Decontam(
            index=args.index,
            policy=args.policy,
            margin_words=args.margin_words,
            threshold=args.threshold,
            boilerplate=args.boilerplate,
        ),
    )
    if args.self_test:
        return _self_test(args, index, corpora)
    return _scan(args, index, corpora)


def _check(args: argparse.Namespace) -> None:
    least = {"workers": 1, "plants": 1, "frequent": 0, "margin_words": 0, "threshold": 0}
    for name, low in least.items():
        if getattr(args, name) < low:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {getattr(args, name)}: has to be {low} or more")
    if args.threshold > 1:
        raise UserError(f"--threshold {args.threshold}: is a share, from 0 to 1")
    if args.report and os.path.exists(args.report) and not os.path.isdir(args.report):
        raise UserError(f"--report {args.report}: is a file, and has to be a folder")


def _load(path: str) -> "Index":
    """The index, which messages of a build call by the mixture's key."""
    absolute = path if "://" in path else os.path.abspath(path)
    try:
        return load_index(absolute)
    except UserError as error:
        message = str(error).removeprefix("decontam.index: ").replace(absolute, path)
        raise UserError(f"--index {message}") from error


def _scan(args: argparse.Namespace, index: "Index", corpora: Sequence["Corpus"]) -> int:
    from decontam.comparing import ScanSpec
    from decontam.scanning import Scan, unread_lines, write_overlaps

    path = args.index if "://" in args.index else os.path.abspath(args.index)
    with tempfile.TemporaryDirectory(prefix="scan-") as folder:
        spec = ScanSpec(path, bool(args.frequent_out), folder)
        progress = Progress()
        scan = Scan(corpora, spec, args.workers, progress.add)
        found = scan.run()
        progress.end()
        table_path = files.join(args.report or folder, OVERLAPS)
        write_overlaps(scan.overlaps(), table_path)
        overlaps = files.read_table(table_path)
        for line in unread_lines(found.unread):
            print(f"warning: {line}", file=sys.stderr)
        header = index.header
        print(f"{args.index}: {header['n']} words in a row ({header['normalization']} words)\n")
        for line in result_lines(index, corpora, overlaps, found.totals):
            print(line)
        if args.report:
            names = ", ".join(os.path.basename(path.rstrip("/")) for path in args.corpus)
            write_report(args.report, f"Scan of {names}", index, overlaps, found.totals)
            print(f"every overlap, side by side: {files.join(args.report, PAGE)}")
        if args.frequent_out:
            _write_frequent(args, index, found.pairs)
        remains = len(split_boilerplate(overlaps)[1]) > 0
    return int(args.fail_on_overlap and remains)


def _write_frequent(args: argparse.Namespace, index: "Index", pairs: Any) -> None:
    from decontam.frequent import frequent_lines

    lines = list(frequent_lines(index, pairs, more_than=args.frequent))
    content = "".join(f"{line}\n" for line in lines).encode()
    files.write_bytes(os.path.abspath(args.frequent_out), content)
    print(f"{len(lines):,} n-grams are in more than {args.frequent} texts: {args.frequent_out}")


def _self_test(args: argparse.Namespace, index: "Index", corpora: Sequence["Corpus"]) -> int:
    from decontam.policy import Policy
    from decontam.self_test import self_test

    policies = [corpus.policy for corpus in corpora if corpus.policy]
    policy = policies[0] if policies else Policy(action="excise")
    texts = (b.texts for corpus in corpora for unit in corpus.units(1) for b in unit.read())
    utf8 = (text.utf8 for batch in texts for text in batch)
    for line in self_test(index, utf8, policy, plants=args.plants, seed=args.seed):
        print(line)
    return 0


class Progress:
    """A line on standard error, renewed while a scan takes long."""

    def __init__(self) -> None:
        self._done = 0
        self._start = self._shown = time.monotonic()
        self._interval = 1.0 if sys.stderr.isatty() else 15.0

    def add(self, n_bytes: int) -> None:
        """Some more input is done."""
        self._done += n_bytes
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            rate = self._done / (now - self._start) / 1e6
            line = f"scan | {self._done / 1e6:,.0f} MB | {rate:,.1f} MB/s"
            ends = "\r" if sys.stderr.isatty() else "\n"
            print(f"{line:60}", end=ends, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave an empty line to what follows."""
        if sys.stderr.isatty():
            print(" " * 60, end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
