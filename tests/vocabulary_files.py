"""Small vocabularies of every kind, made here in seconds, and text to compare them on."""

import base64
import io
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

TYPES = {int: 4, float: 6, bool: 7, str: 8}


@cache
def mixed_text() -> tuple[str, ...]:
    """A few kilobytes of documentation, code, TeX and many scripts."""
    import inspect
    import textwrap
    from pydoc_data import topics

    documentation = "\n\n".join(topics.topics.values())
    scripts = (
        "自然语言处理很有趣。今日は良い天気です。한국어 문장도 있습니다. مرحبا بالعالم שלום "
        "नमस्ते दुनिया สวัสดีชาวโลก Ünïcödé Straße ﬁ ½ x² Привет, мир! Ελληνικά 👍🏽 👨‍👩‍👧‍👦"
    )
    tex = "\\begin{align}\n  \\frac{a}{b} &= \\int_0^1 f(x)\\,dx \\\\\n\\end{align} % 1234567"
    return documentation[:12_000], inspect.getsource(textwrap), scripts, tex, "  x\n\n\t y   "


@cache
def byte_ranks(size: int = 700) -> Mapping[bytes, int]:
    """Ranks of byte-level BPE, learned from the text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from pipelines.byte_level import spell

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(mixed_text(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    written = {spell(bytes([byte])): bytes([byte]) for byte in range(256)}
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"".join(written[c] for c in left + right) for left, right in model["merges"]]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def rank_file(path: Path) -> Path:
    """A tiktoken rank file."""
    lines = (f"{base64.b64encode(t).decode()} {r}\n" for t, r in byte_ranks().items())
    path.write_text("".join(lines))
    return path


def tekken_file(path: Path, pattern: str) -> Path:
    """A tekken.json with 20 special tokens."""
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in byte_ranks().items()
    ]
    config = {
        "pattern": pattern,
        "num_vocab_tokens": len(vocabulary),
        "default_vocab_size": len(vocabulary) + 20,
        "default_num_special_tokens": 20,
        "version": "v3",
    }
    path.write_text(json.dumps({"config": config, "vocab": vocabulary}))
    return path


def sentencepiece_model(**options: Any) -> bytes:
    """A SentencePiece model of 900 pieces."""
    from sentencepiece import SentencePieceTrainer

    out = io.BytesIO()
    lines = [line for text in mixed_text() for line in text.splitlines() if line.strip()]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=900, minloglevel=2,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    return out.getvalue()


LLAMA_LIKE = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
"""Training options of SentencePiece for models like LLaMA's."""


def gguf_file(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A GGUF file without tensors."""
    body = b"".join(_text(key) + _value(value) for key, value in metadata.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)) + body)
    return path


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if not isinstance(value, list):
        return struct.pack("<I", TYPES[type(value)]) + _plain(value)
    items: Sequence[Any] = value
    kind = 5 if type(items[0]) is int else TYPES[type(items[0])]
    packed: Iterable[bytes] = (
        (struct.pack(f"<{len(items)}{'i' if kind == 5 else 'f'}", *items),)
        if kind in (5, 6)
        else map(_plain, items)
    )
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(packed)


def _plain(value: Any) -> bytes:
    if isinstance(value, str):
        return _text(value)
    return struct.pack({bool: "<?", int: "<I", float: "<f"}[type(value)], value)


def gguf_of_ranks(pre: str, *, kinds: Mapping[str, int] = {}) -> dict[str, Any]:
    """Metadata of byte-level BPE, with further tokens of other types."""
    from pipelines.byte_level import merges_of_ranks, spell

    tokens = [*map(spell, byte_ranks()), *kinds]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(token, 1) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges_of_ranks(byte_ranks())],
    }


def gguf_of_pieces(model: bytes) -> dict[str, Any]:
    """Metadata of a SentencePiece model."""
    from pipelines.sentencepiece_model import read_model

    pieces = read_model(model).pieces
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece for piece, _, _ in pieces],
        "tokenizer.ggml.scores": [float(score) for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
    }
