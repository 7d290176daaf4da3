"""The command line of `trainer.evaluate`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

DTYPES = ("bfloat16", "float16", "float32")


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The parser: options of the model, then the kind of figure with its own."""
    command = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _model_options(command.add_argument)
    _memory_options(command.add_argument_group("memory").add_argument)
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
    title = "perplexity by the size of the memory"
    add = kinds.add_parser("memory", help=title, parents=[text]).add_argument
    add("--sizes", type=_naturals, default="0,2048,14336,63488", metavar="N,…", help="tokens that "
        "memory keeps beside the local context (default %(default)s)")  # fmt: skip
    title = "answer questions after examples in the prompt"
    _classify_options(kinds.add_parser("classify", help=title).add_argument)
    return command


def _model_options(add: Callable[..., Any]) -> None:
    add("--model", required=True, metavar="NAME",
        help="folder or hub name of a checkpoint; FOLDER::FILE.gguf")  # fmt: skip
    add("--tokenizer", metavar="FILE", help="file or folder (default: the data set's, the model's)")
    add("--bos", action=argparse.BooleanOptionalAction, help="begin every window and prompt with "
        "BOS (default: if the tokenizer, or the mixture of --data, begins texts so)")  # fmt: skip
    add("--dtype", choices=DTYPES, help="default: bfloat16 on cuda, else float32")
    add("--device", help="default: cuda where there is one, else cpu")
    add("--rope", choices=("keep", "linear", "base", "yarn"), default="keep",
        help="RoPE in place of the checkpoint's")  # fmt: skip
    add("--factor", type=float, help="of linear and yarn (default: longest input, or the local "
        "context, / trained length)")  # fmt: skip
    add("--base", type=float, help="RoPE's base, for instance 500000")
    add("--original-length", type=_whole, metavar="N", help="trained length, if config.json errs")
    add("--output", type=Path, metavar="DIR", help="write results.json, results.md, results.svg")


def _memory_options(add: Callable[..., Any]) -> None:
    add("--mem-layers", type=_layers, metavar="N,…", help="layers, from 0, that look up memory; "
        "none: a plain model (default: config.json's)")  # fmt: skip
    add("--local-context", type=_whole, metavar="N", help="tokens that see each other without "
        "memory (default: config.json's)")  # fmt: skip
    add("--last-context", type=_whole, metavar="N", help="tokens at the end of a longer prompt "
        "that stay in the local context")  # fmt: skip
    add("--mem-dtype", choices=DTYPES, help="type in which memory is kept")
    add("--mem-grouping", type=_pair, metavar="HEADS,QUERIES", help="that attend at a time, for "
        "less memory on the device")  # fmt: skip
    add("--mem-top-k", type=_whole, metavar="N", help="look up only the N best keys (extra "
        "[faiss]; default: all)")  # fmt: skip


def _text_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    add = options.add_argument
    add("--data", metavar="DIR", help="documents of a finished data set, held out")
    add("--text", type=Path, nargs="+", default=[], metavar="FILE", help="instead: text files, a "
        "document each, or .jsonl files (`text`)")  # fmt: skip
    add("--documents", type=_whole, metavar="N", help="first N that are long enough (default: all)")
    add("--length", type=_whole, metavar="N", help="cut documents to N ids (positions: 32768)")
    add("--min-tokens", type=_whole, metavar="N", help="of one that is long enough (default: "
        "--length, or the largest window, or largest memory and local context)")  # fmt: skip
    return options


def _passkey_options(add: Callable[..., Any]) -> None:
    add("--lengths", type=_wholes, metavar="N,…", help="tokens of the prompts (default: "
        "--max-length times 1/32, 2/32, …, as in the paper)")  # fmt: skip
    add("--max-length", type=_whole, default=32_768, metavar="N", help="default %(default)s")
    add("--depths", type=_whole, metavar="N", help="places of the key (default: random ones)")
    add("--trials", type=_whole, default=10, metavar="N", help="questions for each (default 10)")
    add("--seed", type=int, default=0, metavar="N", help="default %(default)s")


def _classify_options(add: Callable[..., Any]) -> None:
    add("--task", choices=("trec", "webqs"), required=True, help="format of the files, and what "
        "an answer is")  # fmt: skip
    add("--train", type=Path, required=True, metavar="FILE", help="where the examples come from")
    add("--test", type=Path, required=True, metavar="FILE", help="where the questions come from")
    add("--contexts", type=_wholes, default="2048,4096,6144,8192", metavar="N,…",
        help="tokens of prompt and answer (default %(default)s)")  # fmt: skip
    add("--questions", type=_whole, metavar="N", help="ask N, drawn by --seed (default: all)")
    add("--labels", choices=("coarse", "fine"), help="of trec: 6 types or 50 "
        "(default fine)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="default %(default)s")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _wholes(text: str) -> list[int]:
    return sorted({_whole(part) for part in text.split(",")})


def _naturals(text: str) -> list[int]:
    parts = text.split(",")
    if bad := [part for part in parts if not part.isdecimal()]:
        raise argparse.ArgumentTypeError(f"{bad[0]!r} is no whole number from 0")
    return sorted(set(map(int, parts)))


def _layers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(_naturals(text))


def _pair(text: str) -> tuple[int, int]:
    parts = [_whole(part) for part in text.split(",")]
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r}: two numbers, for instance 4,2048")
    return parts[0], parts[1]
