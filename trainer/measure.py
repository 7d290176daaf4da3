"""What `trainer.evaluate` does: load a model and what it reads, and make a table of figures."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
import transformers

from pipelines.errors import UserError
from trainer import classification, passkey, perplexity
from trainer.memory_settings import MemorySettings
from trainer.subject import Subject, load_subject, revision
from trainer.tables import Table, write_results

Measured = tuple[Table, dict[str, Any]]
"""A table, and what only the JSON holds."""


def evaluate(args: argparse.Namespace, reach: int) -> None:
    """Measure by the options of `trainer.evaluate`; inputs have up to `reach` ids.

    Raises:
        UserError: the model or the text is not what the options say, or memory does not suffice.
    """
    started = time.monotonic()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    measures = {"perplexity": _perplexity, "positions": _positions, "passkey": _passkey,
                "memory": _memory, "classify": _classify}  # fmt: skip
    try:
        subject, data = load_subject(args, reach)
        if args.output:  # before hours of work
            args.output.mkdir(parents=True, exist_ok=True)
        table, details = measures[args.command](args, subject)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{error}\ngive fewer --batch-tokens, shorter lengths, or with memory a --mem-grouping"
        ) from error
    if subject.memory:
        table = replace(table, title=f"{table.title}; {_described(subject.memory)}")
    print(table.markdown())
    if args.output:
        seconds = round(time.monotonic() - started, 1)
        record = {**_circumstances(args, subject), "data": data, "seconds": seconds}
        write_results(args.output, table, record, details)


def _described(memory: MemorySettings) -> str:
    layers = ", ".join(map(str, memory.mem_layers))
    return f"memory layers {layers}, local context {memory.local_context:,}"


def _circumstances(args: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    config, device = subject.model.config, subject.model.device
    cuda = device.type == "cuda"
    return {
        "options": json.loads(json.dumps(vars(args), default=str)),
        "revision": revision(args.model),
        "rope": config.rope_parameters,
        "max_position_embeddings": config.max_position_embeddings,
        "memory": asdict(subject.memory) if subject.memory else None,
        "bos": subject.bos,
        "dtype": str(subject.model.dtype),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _perplexity(args: argparse.Namespace, subject: Subject) -> Measured:
    rows = list[tuple[int | float, ...]]()
    for window in args.windows:
        scores = perplexity.by_window(perplexity.losses(
            subject.documents, subject.nll, window=window,
            stride=args.stride, bos=subject.bos, batch_tokens=args.batch_tokens,
            watch=partial(_watched, f"window {window:,}, batches"),
        ))  # fmt: skip
        n = len(scores.tokens), int(scores.tokens.sum())
        rows.append((window, *n, scores.token_weighted, scores.window_mean))
    averages = ("token-weighted", "window mean")
    title = f"Perplexity, {len(subject.documents)} documents, stride {args.stride}"
    columns = ("window", "windows", "tokens scored", *averages)
    return Table(title, columns, rows, averages, "perplexity"), {}


def _positions(args: argparse.Namespace, subject: Subject) -> Measured:
    cut = args.length - (subject.bos is not None)
    found = perplexity.losses(
        [ids[:cut] for ids in subject.documents], subject.nll,
        window=args.length, stride=args.length, bos=subject.bos, batch_tokens=1,
        watch=partial(_watched, "documents"),
    )  # fmt: skip
    scores = perplexity.by_position(found, [*args.buckets, args.length])
    losses = (scores.nats / scores.tokens).tolist()
    rows = list(zip(args.buckets, scores.tokens.tolist(), losses, strict=True))
    title = f"Loss by position, {len(subject.documents)} documents, {args.length:,} ids"
    columns = ("from position", "tokens scored", "nats per token")
    return Table(title, columns, rows, columns[2:], columns[2]), {}


def _passkey(args: argparse.Namespace, subject: Subject) -> Measured:
    depths = [i / max(1, args.depths - 1) for i in range(args.depths)] if args.depths else [None]
    trials = passkey.run_trials(
        subject.encode, passkey.model_answer(subject.model, subject.decode), lengths=args.lengths,
        depths=depths, trials=args.trials, seed=args.seed, watch=partial(_watched, "questions"),
    )  # fmt: skip
    names = ["random depth" if depth is None else f"{depth:.0%}" for depth in depths]
    shares = {k: [passkey.accuracy(trials, k, depth) for depth in depths] for k in args.lengths}
    means = {k: sum(row) / len(row) for k, row in shares.items()}
    rows = [(k, *shares[k], means[k]) for k in args.lengths]
    k_max = passkey.k_max(means)
    title = f"Passkey retrieval, share of {args.trials} answers that are right; k_max: {k_max:,}"
    table = Table(title, ("tokens", *names, "all"), rows, names, "right answers", shares=True)
    return table, {"k_max": k_max, "trials": [asdict(trial) for trial in trials]}


def _memory(args: argparse.Namespace, subject: Subject) -> Measured:
    settings: Any = subject.memory
    local, largest = settings.local_context, args.sizes[-1]
    rows = list[list[int | float]]()
    for size in args.sizes:
        subject.model.memory_settings = replace(settings, mem_limit=size)
        longest = max(map(len, subject.documents)) + 1
        found = perplexity.losses(
            subject.documents, subject.nll, window=longest, stride=longest, bos=subject.bos,
            batch_tokens=1, watch=partial(_watched, f"memory {size:,}, documents"),
        )  # fmt: skip
        full = perplexity.with_full_memory(found, size=largest, local_context=local)
        row = [size + local, size]
        for scores in map(perplexity.by_window, (found, full)):
            n_scored = int(scores.tokens.sum())
            row += [n_scored, scores.token_weighted] if n_scored else []
        rows.append(row)
    title = f"Perplexity by memory, {len(subject.documents)} documents"
    after = f"tokens after {largest:,}", f"perplexity after {largest:,}"
    columns = ("context", "memory", "tokens scored", "perplexity", *after)[: len(rows[0])]
    return Table(title, columns, rows, columns[3::2], "perplexity"), {}


def _classify(args: argparse.Namespace, subject: Subject) -> Measured:
    trec, (train, test) = args.task == "trec", subject.questions
    asked = classification.ask(
        subject.pieces, passkey.model_answer(subject.model, subject.decode, stop="\n"),
        train=train, test=classification.drawn(test, args.questions, seed=args.seed),
        word="Type" if trec else "Answer",
        is_right=classification.is_label if trec else classification.is_named,
        contexts=args.contexts, seed=args.seed, watch=partial(_watched, "questions"),
    )  # fmt: skip
    rows = [(k, *classification.counts(asked, k)) for k in args.contexts]
    title = f"{args.task}, share of right answers after examples"
    columns = ("context", "examples", "longest prompt", "questions", "right answers")
    details = {"questions": [asdict(one) for one in asked]}
    return Table(title, columns, rows, columns[-1:], columns[-1]), details


def _watched(what: str, items: Sequence[Any]) -> Iterator[Any]:
    """The items, with lines on stderr: one in five seconds, and one at the end."""
    started = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - shown >= 5 or done == len(items):
            print(f"{what}: {done:,} of {len(items):,}, {now - started:.0f} s", file=sys.stderr)
            shown = now
