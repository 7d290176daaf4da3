"""What `trainer.evaluate` does: load a model and what it reads, and make a table of figures."""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from typing import Any, cast

import numpy as np
import torch
import transformers
from pydantic import ValidationError

from pipelines.errors import FaultsError, UserError
from pipelines.references import Reference
from trainer import passkey, perplexity, texts
from trainer.cache import open_dataset
from trainer.model import checkpoint_weights, model_config
from trainer.rope import Rope
from trainer.tables import Table, write_results

Measured = tuple[Table, dict[str, Any]]
"""A table, and what only the JSON holds."""


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what; BOS, where inputs begin with one."""

    model: Any
    tokenizer: Reference
    bos: int | None
    documents: list[texts.Ids]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, BOS included."""
        return [
            *([] if self.bos is None else [self.bos]),
            *self.tokenizer.encode([text])[0].tolist(),
        ]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; a model's head may have more outputs than the vocabulary has ids."""
        known = takewhile(lambda i: i < self.tokenizer.vocab_size, ids)
        return self.tokenizer.decode(list(known))


def evaluate(args: argparse.Namespace, reach: int) -> None:
    """Measure by the options of `trainer.evaluate`; inputs have up to `reach` ids.

    Raises:
        UserError: the model or the text is not what the options say, or memory does not suffice.
    """
    started = time.monotonic()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    measures = {"perplexity": _perplexity, "positions": _positions, "passkey": _passkey}
    try:
        subject, data = _subject(args, reach)
        table, details = measures[args.command](args, subject)
    except torch.OutOfMemoryError as error:
        raise UserError(f"{error}\ngive fewer --batch-tokens, or shorter lengths") from error
    print(table.markdown())
    if args.output:
        seconds = round(time.monotonic() - started, 1)
        record = {**_circumstances(args, subject), "data": data, "seconds": seconds}
        write_results(args.output, table, record, details)


def _subject(args: argparse.Namespace, reach: int) -> tuple[Subject, dict[str, Any]]:
    """The loaded model and documents, and what identifies the documents."""
    place = getattr(args, "data", None)
    dataset = open_dataset(place, cache=None) if place else None
    if dataset and (faults := list(dataset.verify())):
        raise FaultsError(f"{place}: damaged; copy it again", faults)
    folder = str(dataset.folder) if dataset else None
    tokenizer = texts.load_tokenizer(args.tokenizer or folder or args.model.partition("::")[0])
    bos, documents, data = texts.usual_bos(tokenizer), list[texts.Ids](), dict[str, Any]()
    if args.command != "passkey":
        found = texts.text_documents(args.text, lambda text: tokenizer.encode([text])[0])
        if dataset:
            bos = dataset.manifest["tokenizer"]["bos_id"]
            found = texts.dataset_documents(dataset)
            data["dataset_id"] = dataset.manifest["dataset_id"]
        least = args.min_tokens or args.length or reach
        chosen = texts.long_documents(found, least=least, wanted=args.documents)
        documents = [ids[: args.length] for ids in chosen.values()]
        data["sha256_ids"] = hashlib.sha256(np.concatenate(documents).tobytes()).hexdigest()
        data["tokens"] = dict(zip(chosen, map(len, documents), strict=True))
    model = load_model(args, n_ids=tokenizer.vocab_size, reach=reach)
    if args.bos and bos is None and (bos := model.config.bos_token_id) is None:
        raise UserError("--bos: neither the tokenizer nor the model's config.json names one")
    return Subject(model, tokenizer, None if args.bos is False else bos, documents), data


def load_model(args: argparse.Namespace, *, n_ids: int, reach: int) -> Any:
    """A checkpoint for inference, with RoPE for inputs of `reach` tokens.

    Raises:
        UserError: there is no such checkpoint or device, it has fewer ids than the tokenizer, or
            RoPE cannot be so.
    """
    wanted = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        rope = Rope(type=args.rope, factor=args.factor, base=args.base,
                    original_length=args.original_length)  # fmt: skip
        device = torch.empty(0, device=wanted).device
    except ValidationError as error:
        raise FaultsError(f"--rope {args.rope}", [f["msg"] for f in error.errors()]) from error
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {wanted}: {str(error).splitlines()[0]}") from error
    # An untuned model keeps its max_position_embeddings: only what extends its reach may raise it.
    seq_len = reach if args.rope in ("linear", "yarn") else 1
    config = model_config(args.model, vocabulary=n_ids, rope=rope, seq_len=seq_len)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    with device:
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.load_state_dict(checkpoint_weights(args.model))
    return cast(Any, model.eval())


def _circumstances(args: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    config, device = subject.model.config, subject.model.device
    cuda = device.type == "cuda"
    return {
        "options": json.loads(json.dumps(vars(args), default=str)),
        "revision": getattr(config, "_commit_hash", None),
        "rope": config.rope_parameters,
        "max_position_embeddings": config.max_position_embeddings,
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
            subject.documents, perplexity.model_nll(subject.model), window=window,
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
        [ids[:cut] for ids in subject.documents], perplexity.model_nll(subject.model),
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


def _watched(what: str, items: Sequence[Any]) -> Iterator[Any]:
    """The items, with lines on stderr: one in five seconds, and one at the end."""
    started = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if (now := time.monotonic()) - shown >= 5 or done == len(items):
            print(f"{what}: {done:,} of {len(items):,}, {now - started:.0f} s", file=sys.stderr)
            shown = now
