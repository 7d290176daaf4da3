"""What `trainer.evaluate` measures: a model, with or without memory, and what it reads."""

import argparse
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from pydantic import ValidationError
from transformers.utils.hub import cached_file, extract_commit_hash

from pipelines.errors import FaultsError, UserError
from pipelines.references import Reference
from trainer import texts
from trainer.cache import open_dataset
from trainer.inference import MemorySettings, as_memory_model, memory_settings
from trainer.model import checkpoint_weights, model_config
from trainer.perplexity import Nll, memory_nll, model_nll
from trainer.questions import Question, trec_questions, web_questions
from trainer.rope import Rope

_OPTIONS = {
    "--mem-layers": "mem_layers", "--local-context": "local_context",
    "--last-context": "last_context_length", "--mem-dtype": "mem_dtype",
    "--mem-grouping": "mem_attention_grouping", "--mem-top-k": "mem_top_k",
}  # fmt: skip
"""What settings of memory are called on the command line."""


@dataclass(frozen=True)
class Subject:
    """What is measured, and on what."""

    model: Any
    memory: MemorySettings | None
    """None: a plain model."""
    tokenizer: Reference
    bos: int | None
    """What inputs begin with, if with anything."""
    documents: Sequence[texts.Ids]
    """Of text that is scored."""
    questions: tuple[Sequence[Question], Sequence[Question]]
    """Those to show as examples, and those to ask."""

    @property
    def nll(self) -> Nll:
        """The model's loss."""
        return model_nll(self.model) if self.memory is None else memory_nll(self.model)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, BOS included."""
        return self.pieces([text])[0]

    def pieces(self, parts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that follow each other, each tokenized by itself; BOS in the first."""
        head = [] if self.bos is None else [self.bos]
        first = self.tokenizer.encode(parts[:1])[0].tolist()
        ids, offsets = self.tokenizer.encode(parts[1:], inside=True)
        return [[*head, *first], *(ids[a:b].tolist() for a, b in pairwise(offsets))]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; a model's head may have more outputs than the vocabulary has ids."""
        known = takewhile(lambda i: i < self.tokenizer.vocab_size, ids)
        return self.tokenizer.decode(list(known))


def load_subject(args: argparse.Namespace, reach: int) -> tuple[Subject, dict[str, Any]]:
    """The loaded model and documents, and what identifies the documents.

    Raises:
        UserError: the model or the text is not what the options say.
    """
    place = getattr(args, "data", None)
    dataset = open_dataset(place, cache=None) if place else None
    if dataset and (faults := list(dataset.verify())):
        raise FaultsError(f"{place}: damaged; copy it again", faults)
    folder = str(dataset.folder) if dataset else None
    tokenizer = texts.load_tokenizer(args.tokenizer or folder or args.model.partition("::")[0])
    memory = resolve_memory(args, n_ids=tokenizer.vocab_size)
    bos, documents, data = texts.usual_bos(tokenizer), list[texts.Ids](), dict[str, Any]()
    questions = (list[Question](), list[Question]())
    if args.command == "classify":
        questions, data["sha256"] = _questions(args), _digests([args.train, args.test])
    elif args.command != "passkey":
        found = texts.text_documents(args.text, lambda text: tokenizer.encode([text])[0])
        if dataset:
            bos = dataset.manifest["tokenizer"]["bos_id"]
            found = texts.dataset_documents(dataset)
            data["dataset_id"] = dataset.manifest["dataset_id"]
        longest = _longest(args, reach, memory)
        least = args.min_tokens or args.length or longest
        chosen = texts.long_documents(found, least=least, wanted=args.documents)
        documents = [ids[: args.length] for ids in chosen.values()]
        data["sha256_ids"] = hashlib.sha256(np.concatenate(documents).tobytes()).hexdigest()
        data["tokens"] = dict(zip(chosen, map(len, documents), strict=True))
    model = load_model(args, memory, n_ids=tokenizer.vocab_size, reach=reach)
    if args.bos and bos is None and (bos := model.config.bos_token_id) is None:
        raise UserError("--bos: neither the tokenizer nor the model's config.json names one")
    bos = None if args.bos is False else bos
    return Subject(model, memory, tokenizer, bos, documents, questions), data


def _questions(args: argparse.Namespace) -> tuple[list[Question], list[Question]]:
    if args.task == "webqs":
        return web_questions(args.train), web_questions(args.test)
    return trec_questions(args.train, args.labels), trec_questions(args.test, args.labels)


def revision(name: str) -> str | None:
    """The commit of a hub repository that a model came from; None for a folder."""
    place = name.partition("::")[0]
    if not Path(place).exists():
        with suppress(OSError):
            return extract_commit_hash(cached_file(place, "config.json"), None)
    return None


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _longest(args: argparse.Namespace, reach: int, memory: MemorySettings | None) -> int:
    """Tokens of the largest window, or of the largest memory with its local context.

    Raises:
        UserError: documents are cut before any token has such a memory.
    """
    if args.command != "memory" or memory is None:
        return reach
    whole = reach + memory.local_context
    if args.length and args.length < whole:
        raise UserError(
            f"--sizes {reach}: with a local context of {memory.local_context:,} these are "
            f"{whole:,} tokens; documents are cut to --length {args.length}"
        )
    return whole


def resolve_memory(args: argparse.Namespace, *, n_ids: int) -> MemorySettings | None:
    """How the model looks up memory: config.json's settings, but for the options given.

    Raises:
        UserError: options contradict each other, the model or the kind of figure.
    """
    values = {name: vars(args)[option[2:].replace("-", "_")] for option, name in _OPTIONS.items()}
    given = {name: value for name, value in values.items() if value not in (None, ())}
    settings = None
    if args.mem_layers != ():
        # RoPE for the local context is chosen only when that is known.
        config = model_config(args.model, vocabulary=n_ids, rope=Rope(), seq_len=1)
        settings = memory_settings(config, **given)
    options = [option for option, name in _OPTIONS.items() if name in given]
    if fault := _no_memory(args, options) if settings is None else _misused(args, settings):
        raise UserError(fault)
    return settings


def _no_memory(args: argparse.Namespace, options: Sequence[str]) -> str | None:
    """What is wrong with a plain model."""
    if options:
        return (
            f"{', '.join(options)}: the model has no memory layers, by config.json or by "
            "--mem-layers; name layers, or leave out what is about memory"
        )
    if args.command == "memory":
        return (
            "memory: the model has no memory layers; name them by --mem-layers, for instance "
            "--mem-layers 6,12,18"
        )
    return None


def _misused(args: argparse.Namespace, settings: MemorySettings) -> str | None:
    """What is wrong with a model with memory."""
    if args.command == "memory" and settings.mem_top_k is not None:
        return (
            "memory: with `mem_top_k` (--mem-top-k, or of config.json) the best keys are looked up "
            "in all of memory, which then has no sizes; measure by `positions`, or leave it out"
        )
    if args.command == "perplexity":
        return (
            "perplexity: windows do not slide over a model with memory, which reads a document "
            "once; measure it by `memory` or `positions`, or without memory by --mem-layers none"
        )
    return None


def load_model(
    args: argparse.Namespace, memory: MemorySettings | None, *, n_ids: int, reach: int
) -> Any:
    """A checkpoint for inference, with RoPE for inputs of `reach` tokens.

    With memory, RoPE need not reach beyond the local context.

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
    longest = reach if memory is None else memory.local_context
    seq_len = longest if args.rope in ("linear", "yarn") else 1
    config = model_config(args.model, vocabulary=n_ids, rope=rope, seq_len=seq_len)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    with device:
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.load_state_dict(checkpoint_weights(args.model))
    model.eval()
    if memory is not None:
        as_memory_model(model, memory)
    return cast(Any, model)
