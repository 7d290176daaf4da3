"""The vocabulary of a GGUF file as a tokenizer.json, for what was compared with llama.cpp.

`tokenizer.ggml.model` says how a vocabulary works: `llama` joins pieces by their scores as
SentencePiece does, `gpt2` is byte-level BPE whose text is split as `tokenizer.ggml.pre` says. That
is a name alone, and llama.cpp holds what it means; here are the meanings that gave its ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.byte_level import GPT2, Json, added_token, bpe_model, byte_level_json, frame
from pipelines.errors import UserError
from pipelines.sentencepiece_json import merges_of_scores, pieces_json

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Values of `tokenizer.ggml.token_type`."""

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str, letters: str = r"\p{L}", signs: str = r"[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?{signs}|{_END}"


class Splitting(NamedTuple):
    """What a pre-tokenizer does."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    """Whether a word that is a token is taken as that without a look at the merges."""


_IDEOGRAPHS = "[一-龥\u0800-一가-\ud7ff]+"
_SPLITTINGS: Mapping[tuple[str, ...], Splitting] = {
    ("gpt-2", "mpt", "olmo", "jais", "phi-2", "exaone4", "gigachat", "a.x-4.0", "mellum"):
        Splitting((GPT2,)),
    ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"): Splitting(
        (r"\p{N}", GPT2)
    ),
    ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"):
        Splitting((_words(r"\p{N}{1,3}"),), whole_words=True),
    ("dbrx", "smaug-bpe", "chatglm-bpe"): Splitting((_words(r"\p{N}{1,3}"),)),
    ("glm4", "glm5"): Splitting((_words(r"\p{N}{1,3}"),), whole_words=True),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2"): Splitting(
        (_words(r"\p{N}"),)
    ),
    ("qwen35",): Splitting(
        (_words(r"\p{N}", r"[\p{L}\p{M}]", r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),)
    ),
    ("seed-coder",): Splitting((_words(r"\p{N}", signs=r"[^\s\p{L}\p{N}\r\n]+"),)),
    ("deepseek-v3", "hunyuan-dense"): Splitting(
        (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
         r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
         r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _END)
    ),
    ("deepseek-coder",): Splitting(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, r"\p{N}")
    ),
}  # fmt: skip

SPLITTINGS: Mapping[str, Splitting] = {
    name: splitting for names, splitting in _SPLITTINGS.items() for name in names
}
"""By `tokenizer.ggml.pre`."""

_ALWAYS_CONTROL = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "</s>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<｜end▁of▁sentence｜>", "<|fim_prefix|>",
    "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
    "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>",
    "▁<SUF>", "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>",
    "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>", "<|fim_pad|>", "<fim-pad>",
    "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>",
))  # fmt: skip
"""Tokens that llama.cpp takes for control tokens whatever the file says of them."""


def gguf_json(metadata: Mapping[str, Any], place: str) -> Json:
    """The tokenizer.json of the vocabulary in a GGUF file's metadata.

    Raises:
        UserError: it has none, or one of a kind that was not compared with llama.cpp.
    """
    about = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items()}
    model, tokens = about.get("model"), [text.decode() for text in about.get("tokens", [])]
    if model not in ("llama", "gpt2") or not tokens:
        raise UserError(
            f"tokenizer.path: {place}: tokenizer.ggml.model is {model!r}; of GGUF files `llama` "
            "and `gpt2` are read; take the tokenizer.json or .model file that the model came with"
        )
    kinds: Sequence[int] = about.get("token_type") or [1] * len(tokens)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise UserError(
            f"tokenizer.path: {place}: {len(tokens):,} tokens, {len(set(tokens)):,} of them "
            f"different, and {len(kinds):,} types; the file is damaged"
        )
    value = (_pieces if model == "llama" else _byte_level)(about, tokens, kinds, place)
    return value | {"post_processor": _frame(about, tokens, model)}


def _pieces(
    about: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], place: str
) -> Json:
    scores: Sequence[float] = about.get("scores", [])
    if len(scores) != len(tokens):
        raise UserError(
            f"tokenizer.path: {place}: {len(scores):,} scores for {len(tokens):,} tokens"
        )
    normal = {t: s for t, s, k in zip(tokens, scores, kinds, strict=True) if k == 1}
    unknown = next((t for t, k in zip(tokens, kinds, strict=True) if k == UNKNOWN), tokens[0])
    ids = {token: i for i, token in enumerate(tokens)}
    return pieces_json(
        bpe_model(ids, merges_of_scores(normal, ids), unknown=unknown),
        added=list(_added(tokens, kinds)),
        prefix=about.get("add_space_prefix", True),
    )


def _byte_level(
    about: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], place: str
) -> Json:
    name: str = about.get("pre", "")
    if name not in SPLITTINGS:
        raise UserError(
            f"tokenizer.path: {place}: "
            + (f"its pre-tokenizer {name!r} (tokenizer.ggml.pre) was not compared with llama.cpp"
               if name else "it names no pre-tokenizer (tokenizer.ggml.pre)")
            + "; take the tokenizer.json that the model came with"
        )  # fmt: skip
    splitting = SPLITTINGS[name]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [_pair(text.decode()) for text in about.get("merges", [])]
    if lost := [m for m in merges if not ids.keys() >= {*m, "".join(m)}]:
        raise UserError(
            f"tokenizer.path: {place}: its merge {' '.join(lost[0])!r} makes no token; the file is "
            "damaged, or of a converter with a fault: take the tokenizer.json of the model"
        )
    return byte_level_json(
        ids,
        merges,
        patterns=splitting.patterns,
        added=list(_added(tokens, kinds)),
        whole_words=splitting.whole_words,
    )


def _pair(merge: str) -> list[str]:
    """A merge: two tokens with a space between; the first may begin with one."""
    at = merge.find(" ", 1)
    return [merge[:at], merge[at + 1 :]]


def _added(tokens: Sequence[str], kinds: Sequence[int]) -> Iterator[Json]:
    """Control tokens, which stay text, and user-defined ones, which text makes."""
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = kind != USER_DEFINED or token in _ALWAYS_CONTROL
            yield added_token(token, i, special=special)


def _frame(about: Mapping[str, Any], tokens: Sequence[str], model: str) -> Json | None:
    """BOS and EOS of the file around a text."""
    usual = {"bos": 1, "eos": 2} if model == "llama" else {}
    ids: list[int | None] = [
        about.get(f"{role}_token_id", usual.get(role)) for role in ("bos", "eos")
    ]
    bos, eos = (str(tokens[i]) if i is not None and i < len(tokens) else None for i in ids)
    return frame(bos, eos, {token: i for i, token in enumerate(tokens)})
