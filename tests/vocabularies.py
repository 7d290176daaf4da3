"""Small vocabularies of every kind, trained when a test asks for them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import sentencepiece
from conftest import prose
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer

CODE = "def f(x):\n    if x  ==  1:\n        return  {'a': [1, 2]}\n\n\n# <think> four </think>\n"


@cache
def texts() -> list[str]:
    """What they are trained on."""
    rng = random.Random(2)
    return [*(prose(rng, 200) for _ in range(30)), *[CODE] * 5]


def added(content: str, **flags: bool) -> AddedToken:
    """A token that is added to a vocabulary, as ordinary text unless `special` says otherwise."""
    return AddedToken(content, **({"normalized": False, "special": False} | flags))


def byte_level(*tokens: AddedToken, normalizer: Any = None, size: int = 400) -> Tokenizer:
    """A byte-level BPE, as GPT-2, GPT-NeoX, Llama 3 and Qwen have them."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def llama_json(*tokens: AddedToken, prefix: str = "prepend") -> Tokenizer:
    """A BPE with ▁ for spaces and bytes for the unknown, as Llama 2, Mistral and Phi-3 have them.

    Args:
        tokens: what is added to it.
        prefix: `prepend` for the normalizer, or a prepend_scheme of Metaspace.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    value = json.loads(tokenizer.to_str())
    value |= {"added_tokens": value["added_tokens"][:3], "pre_tokenizer": None}
    tokenizer = Tokenizer.from_str(json.dumps(value))
    if prefix == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def unigram_json(*tokens: AddedToken) -> Tokenizer:
    """A Unigram model, as T5 and XLM-R have them; `</s>` is a piece of it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def sentencepiece_model(own: Collection[str] = (), **options: Any) -> bytes:
    """A SentencePiece BPE with byte fallback, as Llama 2, Yi and Gemma have them.

    Args:
        own: its user-defined pieces.
        options: of the trainer.
    """
    model = io.BytesIO()
    defaults = {
        "model_type": "bpe",
        "byte_fallback": True,
        "vocab_size": 420 + len(own),
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "user_defined_symbols": list(own),
        "minloglevel": 2,
    }
    lines: Sequence[str] = [line for text in texts() for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **(defaults | options)
    )
    return model.getvalue()
