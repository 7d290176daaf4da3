"""Measure a model over long text: perplexity, loss by position, passkeys, examples in the prompt.

python -m trainer.evaluate --model DIR perplexity --data HELD_OUT --windows 2048,4096,8192
python -m trainer.evaluate --model DIR positions --text book.txt --length 32768
python -m trainer.evaluate --model DIR passkey --max-length 32768
python -m trainer.evaluate --model DIR memory --data HELD_OUT --sizes 0,2048,14336,63488
python -m trainer.evaluate --model DIR classify --task trec --train A.label --test B.label

docs/evaluation.md says what the figures mean and what they may be compared with.
"""

import argparse
import sys
from collections.abc import Sequence

from pipelines.errors import UserError
from trainer.arguments import command_line


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
    return command_line(__doc__)


def check(args: argparse.Namespace) -> int:
    """The longest input that the model will get, but for a local context beside a memory.

    Defaults that follow from other options are filled in.

    Raises:
        UserError: arguments contradict each other, or name what is not there.
    """
    if args.output and args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output}: is a file; name a folder")
    if args.command == "passkey":
        args.lengths = args.lengths or [args.max_length * i // 32 for i in range(1, 33)]
        return args.lengths[-1]
    if args.command == "classify":
        if args.labels and args.task != "trec":
            raise UserError(f"--labels {args.labels}: only --task trec has labels")
        args.labels = args.labels or "fine"
        return args.contexts[-1]
    if (args.data is None) == (not args.text):
        raise UserError("either --data or --text says which documents to score")
    if args.command == "memory":
        return args.sizes[-1]
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
