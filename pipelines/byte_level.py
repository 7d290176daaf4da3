"""Byte-level BPE as a tokenizer.json, from what other formats say of it.

A rank file lists tokens in the order in which they were learned, and no merges: its library joins
the two neighbours whose text has the lowest rank. A tokenizer.json lists pairs. One pair for each
token is enough, and gives the same ids for every text: a token is only ever made from neighbours
that stand alone between its ends, so it is made as it is made from its own bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 splits text; the step `ByteLevel` has it built in."""

Json = dict[str, Any]
Text = TypeVar("Text", bytes, str)


def last_merge(symbols: Sequence[Text], ranks: Mapping[Text, float]) -> tuple[Text, Text] | None:
    """The two neighbours whose union is the last step of BPE from `symbols` to all of them.

    None where BPE never joins all of them.
    """
    parts, rank_of = list(symbols), ranks.get
    while len(parts) > 2:
        best, at = None, 0
        for i in range(len(parts) - 1):
            rank = rank_of(parts[i] + parts[i + 1])
            if rank is not None and (best is None or rank < best):
                best, at = rank, i
        if best is None:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _alphabet() -> dict[int, str]:
    """How byte-level vocabularies write bytes: printable ones as themselves, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


_ALPHABET = _alphabet()


def spell(token: bytes) -> str:
    """How a byte-level vocabulary writes a token."""
    return "".join(map(_ALPHABET.__getitem__, token))


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[list[str]]:
    """The pairs of a tokenizer.json that join what `ranks` joins, in order."""
    merges: list[list[str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pair = last_merge([token[i : i + 1] for i in range(len(token))], ranks)
        if pair:
            merges.append([spell(pair[0]), spell(pair[1])])
    return merges


def byte_level_json(
    vocabulary: Mapping[str, int],
    merges: Sequence[Any],
    *,
    patterns: Sequence[str],
    added: Sequence[Json],
    normalizer: Json | None = None,
    whole_words: bool = True,
) -> Json:
    """A tokenizer.json of byte-level BPE.

    Args:
        vocabulary: every token as `spell` writes it, and its id.
        merges: pairs, most important first.
        patterns: regular expressions that split text, one after the other.
        added: added tokens, see `added_token`.
        normalizer: what happens to text before.
        whole_words: whether a word that is a token is taken as that without a look at merges.
    """
    ends_as_gpt2 = patterns[-1] == GPT2
    split = [_split(p) for p in (patterns[:-1] if ends_as_gpt2 else patterns)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [*split, byte_level | {"use_regex": ends_as_gpt2}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if split else steps[0],
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": bpe_model(vocabulary, merges, whole_words=whole_words),
    }


def _split(pattern: str) -> Json:
    """A step that splits text; in the form in which engines know it."""
    if pattern == r"\p{N}":
        return {"type": "Digits", "individual_digits": True}
    how = {"behavior": "Isolated", "invert": False}
    return {"type": "Split", "pattern": {"Regex": pattern}, **how}


def bpe_model(
    vocabulary: Mapping[str, int],
    merges: Sequence[Any],
    *,
    unknown: str | None = None,
    whole_words: bool = False,
) -> Json:
    """The model of a tokenizer.json; with an `unknown` piece, bytes stand for what is no piece."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": unknown is not None,
        "ignore_merges": whole_words,
        "vocab": dict(vocabulary),
        "merges": list(merges),
    }


def added_token(content: str, token_id: int, *, special: bool, rstrip: bool = False) -> Json:
    """An added token of a tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": rstrip, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": special}


def frame(bos: str | None, eos: str | None, ids: Mapping[str, int]) -> Json | None:
    """The post-processor of a tokenizer.json that puts BOS and EOS around a text."""
    names = [name for name in (bos, eos) if name is not None]
    if not names:
        return None
    text: Json = {"Sequence": {"id": "A", "type_id": 0}}
    before, after = (
        [{"SpecialToken": {"id": name, "type_id": 0}}] if name is not None else []
        for name in (bos, eos)
    )
    second: Json = {"Sequence": {"id": "B", "type_id": 0}}
    single = [*before, text, *after]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *before, second, *after],
        "special_tokens": {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in names},
    }
