"""Measure a model over long text: perplexity, loss by position, passkey retrieval.

python -m trainer.evaluate --model DIR perplexity --data HELD_OUT --windows 2048,4096,8192
python -m trainer.evaluate --model DIR positions --text book.txt --length 32768
python -m trainer.evaluate --model DIR passkey --max-length 32768

docs/evaluation.md says what the figures mean and what they may be compared with.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = parser().parse_args(argv)
    try:
        reach = check(args)
        from trainer.measure import evaluate  # takes seconds, which --help need not wait for

        evaluate(args, reach)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _model_options(command.add_argument)
    kinds, text = command.add_subparsers(dest="command", required=True), _text_options()
    title = "perplexity in sliding windows"
    add = kinds.add_parser("perplexity", help=title, parents=[text]).add_argument
    add("--windows", type=_wholes, default="2048,4096,8192", metavar="N,…",
        help="ids in a window, BOS included (default %(default)s)")  # fmt: skip
    add("--stride", type=_whole, default=256, metavar="N", help="default %(default)s")
    add("--batch-tokens", type=_whole, default=32_768, metavar="N", help="ids of several windows "
        "at a time (default %(default)s)")  # fmt: skip
    title = "loss by position, from one pass over each document"
    add = kinds.add_parser("positions", help=title, parents=[text]).add_argument
    add("--buckets", type=_wholes, metavar="N,…", help="where buckets begin (default 1,2,4,8,…)")
    _passkey_options(kinds.add_parser("passkey", help="find a number in filler").add_argument)
    return command


def _model_options(add: Callable[..., Any]) -> None:
    ropes, dtypes = ("keep", "linear", "base", "yarn"), ("bfloat16", "float16", "float32")
    add("--model", required=True, metavar="NAME",
        help="folder or hub name of a checkpoint; FOLDER::FILE.gguf")  # fmt: skip
    add("--tokenizer", metavar="FILE", help="file or folder (default: the data set's, the model's)")
    add("--bos", action=argparse.BooleanOptionalAction, help="begin every window and prompt with "
        "BOS (default: if the tokenizer, or the mixture of --data, begins texts so)")  # fmt: skip
    add("--dtype", choices=dtypes, help="default: bfloat16 on cuda, else float32")
    add("--device", help="default: cuda where there is one, else cpu")
    add("--rope", choices=ropes, default="keep", help="RoPE in place of the checkpoint's")
    add("--factor", type=float, help="of linear and yarn (default: longest input / trained length)")
    add("--base", type=float, help="RoPE's base, for instance 500000")
    add("--original-length", type=_whole, metavar="N", help="trained length, if config.json errs")
    add("--output", type=Path, metavar="DIR", help="write results.json, results.md, results.svg")


def _text_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    add = options.add_argument
    add("--data", metavar="DIR", help="documents of a finished data set, held out")
    add("--text", type=Path, nargs="+", default=[], metavar="FILE", help="instead: text files, a "
        "document each, or .jsonl files (`text`)")  # fmt: skip
    add("--documents", type=_whole, metavar="N", help="first N that are long enough (default: all)")
    add("--length", type=_whole, metavar="N", help="cut documents to N ids (positions: 32768)")
    add("--min-tokens", type=_whole, metavar="N", help="of a document that is long enough "
        "(default: --length, or the largest window)")  # fmt: skip
    return options


def _passkey_options(add: Callable[..., Any]) -> None:
    add("--lengths", type=_wholes, metavar="N,…", help="tokens of the prompts (default: "
        "--max-length times 1/32, 2/32, …, as in the paper)")  # fmt: skip
    add("--max-length", type=_whole, default=32_768, metavar="N", help="default %(default)s")
    add("--depths", type=_whole, metavar="N", help="places of the key (default: random ones)")
    add("--trials", type=_whole, default=10, metavar="N", help="questions for each (default 10)")
    add("--seed", type=int, default=0, metavar="N", help="default %(default)s")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _wholes(text: str) -> list[int]:
    return sorted({_whole(part) for part in text.split(",")})


def check(args: argparse.Namespace) -> int:
    """The longest input that the model will get; defaults that follow from others are filled in.

    Raises:
        UserError: arguments contradict each other, or name what is not there.
    """
    if args.command == "passkey":
        args.lengths = args.lengths or [args.max_length * i // 32 for i in range(1, 33)]
        return args.lengths[-1]
    if (args.data is None) == (not args.text):
        raise UserError("either --data or --text says which documents to score")
    if args.command == "positions":
        args.length = args.length or 32_768
        if args.length < 2:
            raise UserError(f"--length {args.length}: at least 2 tokens, or nothing is predicted")
        args.buckets = args.buckets or [1 << i for i in range((args.length - 1).bit_length())]
        if args.buckets[-1] >= args.length:
            raise UserError(f"--buckets {args.buckets[-1]}: begins beyond --length {args.length}")
        return args.length
    smallest, largest = args.windows[0], args.windows[-1]
    if smallest <= args.stride:
        raise UserError(f"--windows {smallest}: has to be above --stride {args.stride}")
    if args.length and largest > args.length:
        raise UserError(f"--windows {largest}: documents are cut to --length {args.length}")
    return largest


if __name__ == "__main__":
    sys.exit(main())
