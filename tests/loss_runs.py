"""Tokens back into text, and which of it carries loss; written apart from the code under test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipelines.job import Job, assemble
from pipelines.mixture_file import load_mixture
from pipelines.prepare import Prepared, Preparer
from pipelines.readers import Block, read_blocks
from pipelines.references import SentencePieceReference
from pipelines.rendering import BOS, EOS, Rendered
from pipelines.tokenizer import Tokenizer, load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

Runs = list[tuple[bool, str]]
"""Stretches of text with loss or without, in turns; control tokens are shown as `⟦</s>⟧`."""

MISTRAL = "package://mistral_common/data/tokenizer.model.v1"
CONTROLS = ("<|begin_of_text|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>",
            "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")  # fmt: skip


def shown(control: str) -> str:
    return f"⟦{control}⟧"


def byte_level_tokenizer(texts: Iterable[str], path: Path) -> Path:
    """A byte-level BPE with the control tokens of ChatML and Llama 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(CONTROLS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path


@cache
def _spellings(file: Any) -> list[tuple[bool, bytes]]:
    """Of every id: whether it is a control token, and the bytes it stands for."""
    truth = load_tokenizer(file).reference
    if isinstance(truth, SentencePieceReference):
        p = truth.processor
        pieces = [p.id_to_piece(i) for i in range(p.vocab_size())]
        return [
            (True, shown(piece).encode()) if p.is_control(i)
            else (False, bytes([int(piece[3:5], 16)])) if p.is_byte(i)
            else (False, piece.replace("▁", " ").encode())
            for i, piece in enumerate(pieces)
        ]  # fmt: skip
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {chr(b): b for b in plain}
    byte |= {chr(256 + i): b for i, b in enumerate(sorted(set(range(256)) - set(plain)))}
    pieces = [truth.decoder.id_to_token(i) for i in range(truth.vocab_size)]
    return [
        (True, shown(piece).encode()) if piece in truth.specials
        else (False, bytes(byte[c] for c in piece))
        for piece in pieces
    ]  # fmt: skip


def runs_of_tokens(
    ids: Sequence[int], loss: Sequence[bool], tokenizer: Tokenizer, *, begins: bool = True
) -> Runs:
    """What tokens say. The space that SentencePiece puts before a beginning is taken off."""
    table = _spellings(tokenizer.file)
    puts_space = isinstance(tokenizer.reference, SentencePieceReference)
    parts: list[tuple[bool, bytes]] = []
    begins_behind_bos = begins
    for token, learned in zip(ids, loss, strict=True):
        control, spelled = table[int(token)]
        if begins and not control and puts_space:
            spelled = spelled.removeprefix(b" ")
        begins = int(token) == tokenizer.bos_id and begins_behind_bos
        parts.append((bool(learned), spelled))
    return [(key, b"".join(x for _, x in found).decode(errors="replace"))
            for key, found in groupby(parts, key=lambda part: part[0])]  # fmt: skip


def runs_of_content(content: Rendered, tokenizer: Tokenizer) -> Runs:
    """What a rendered document says, character by character."""
    file = tokenizer.file
    frame = {BOS: file.bos_token.text if file.bos else None,
             EOS: file.eos_token.text if file.eos else None}  # fmt: skip
    learned = [False] * len(content.text)
    for start, end in content.answers:
        learned[start:end] = [True] * (end - start)
    controls = [(c.position, c.token, c.loss) for c in content.controls]
    if not content.framed:
        last = bool(learned) and learned[-1]
        controls = [(0, BOS, False), *controls, (len(content.text), EOS, last)]
    parts: list[tuple[bool, str]] = []
    at = 0
    for position, token, loss in [*controls, (len(content.text), "", False)]:
        parts += zip(learned[at:position], content.text[at:position], strict=True)
        if spelled := frame.get(token, token):
            parts.append((loss, shown(spelled)))
        at = position
    return [(key, "".join(x for _, x in found))
            for key, found in groupby(parts, key=lambda part: part[0])]  # fmt: skip


def document_runs(prepared: Prepared, number: int, tokenizer: Tokenizer) -> Runs:
    """What the tokens of a prepared document say."""
    start, end = prepared.offsets[number], prepared.offsets[number + 1]
    loss = np.ones(end - start, np.bool_)
    for first, last in prepared.no_loss[number]:
        loss[first:last] = False
    begins = not prepared.documents[number].content.inside
    ids = prepared.tokens[start:end].tolist()
    return runs_of_tokens(ids, loss.tolist(), tokenizer, begins=begins)


def learned(runs: Runs) -> list[str]:
    """What carries loss."""
    return [text for loss, text in runs if loss]


def assemble_source(
    source: dict[str, Any], *, root: Path, work: Path, vocabulary: str, seq_len: int = 1 << 18
) -> Job:
    """A build of one source with loss on answers, ready to be prepared."""
    recipe = {
        "name": "test", "tokens": 1 << 30, "seq_len": seq_len,
        "tokenizer": {"path": vocabulary, "bos": True, "eos": True},
        "sources": {"a": {"weight": 1, "loss": "answers", **source}},
    }  # fmt: skip
    path = work / "mixture.yaml"
    path.write_text(yaml.safe_dump(recipe))
    mixture = load_mixture(str(path), [])
    file = fetch_tokenizer(mixture.tokenizer)
    places = {"store": str(work / "store"), "output": str(work / "out")}
    return assemble(mixture, file, data_root=str(root), **places)


def prepare_some(job: Job, tokenizer: Tokenizer, *, limit: int) -> list[tuple[Block, Prepared]]:
    """The first records of every input file."""
    source = job.sources[0]
    preparer = Preparer(source.spec, tokenizer)
    found: list[tuple[Block, Prepared]] = []
    for split in source.splits:
        blocks = read_blocks(split, max_record=source.spec.max_record, skip=lambda _: False)
        block = next(iter(blocks))
        block = replace(block, records=block.records[:limit])
        found.append((block, preparer.prepare(block, split.files)))
    return found
