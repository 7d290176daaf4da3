"""What published rank files leave out: how they split text, and their special tokens.

A rank file (`*.tiktoken`, or `tokenizer.model` of Llama 3) holds bytes and ranks alone. The rest
stands in the code of the model that it belongs to, and is written down here by name. A file whose
digest is known needs no name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipelines.byte_level import GPT2

RankUse = Literal[
    "r50k_base", "p50k_base", "cl100k_base", "o200k_base", "o200k_harmony", "llama3", "llama4",
    "qwen", "kimi",
]  # fmt: skip
"""Published uses of rank files: OpenAI's encodings by their names, and families of models."""

RANK_USES: tuple[RankUse, ...] = get_args(RankUse)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _words(digits: str) -> str:
    """Letters with one character before them, then digits, then signs."""
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_END}"
    )


def _cased(but: str = "", signs: str = r"[\r\n/]*") -> str:
    """Words of one case, capitals before the rest."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}[{_UPPER}{but}]*[{_LOWER}{but}]+{_CONTRACTIONS}?"
        rf"|{before}[{_UPPER}{but}]+[{_LOWER}{but}]*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+{signs}|{_END}"
    )


@dataclass(frozen=True)
class Published:
    """A published use of rank files."""

    pattern: str
    """Regular expression that splits text."""

    special: Callable[[int], Mapping[str, int]]
    """Number of ranks → special tokens and their ids."""

    bos: str | None
    eos: str
    normalizer: Mapping[str, Any] | None = None
    digests: tuple[str, ...] = ()
    """sha256 of the published rank files that belong to it alone."""


def _at(**ids: int) -> Callable[[int], Mapping[str, int]]:
    return lambda _: {f"<|{name}|>": token_id for name, token_id in ids.items()}


def _numbered(*names: str) -> Callable[[int], Mapping[str, int]]:
    return lambda ranks: {name: ranks + i for i, name in enumerate(names)}


def _reserved(start: int, stop: int, name: str = "reserved_special_token_") -> tuple[str, ...]:
    return tuple(f"<|{name}{i}|>" for i in range(start, stop))


_LLAMA3 = (
    "<|begin_of_text|>", "<|end_of_text|>", *_reserved(0, 2), "<|finetune_right_pad_id|>",
    "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>", "<|image|>", *_reserved(2, 246),
)  # fmt: skip
_LLAMA4_TEXT, _LLAMA4_VISION = (
    f"{n}_reserved_special_token_" for n in ("text_post_train", "vision")
)
_LLAMA4 = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>",
    *_reserved(0, 6, _LLAMA4_TEXT), "<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>",
    *_reserved(8, 69, _LLAMA4_TEXT), "<|image_start|>", "<|image_end|>",
    *_reserved(0, 2, _LLAMA4_VISION), "<|tile_x_separator|>", "<|tile_y_separator|>",
    *_reserved(2, 6, _LLAMA4_VISION), "<|image|>", *_reserved(6, 7, _LLAMA4_VISION), "<|patch|>",
    *_reserved(7, 1048, _LLAMA4_VISION), *_reserved(0, 8, "reasoning_reserved_special_token_"),
    "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>", *_reserved(0, 904),
)  # fmt: skip
_HARMONY = {
    "startoftext": 199998, "endoftext": 199999, "return": 200002, "constrain": 200003,
    "channel": 200005, "start": 200006, "end": 200007, "message": 200008, "call": 200012,
    "endofprompt": 200018,
} | {f"reserved_{i}": i for i in (200000, 200001, 200004, *range(200009, 200012),
                                  *range(200013, 200018), *range(200019, 201088))}  # fmt: skip

PUBLISHED: Mapping[RankUse, Published] = {
    "r50k_base": Published(
        GPT2, _at(endoftext=50256), None, "<|endoftext|>",
        digests=("306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",),
    ),
    "p50k_base": Published(
        GPT2, _at(endoftext=50256), None, "<|endoftext|>",
        digests=("94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",),
    ),
    "cl100k_base": Published(
        _words(r"\p{N}{1,3}"),
        _at(endoftext=100257, fim_prefix=100258, fim_middle=100259, fim_suffix=100260,
            endofprompt=100276),
        None, "<|endoftext|>",
        digests=("223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",),
    ),
    "o200k_base": Published(
        _cased(), _at(endoftext=199999, endofprompt=200018), None, "<|endoftext|>"
    ),
    "o200k_harmony": Published(_cased(), _at(**_HARMONY), "<|startoftext|>", "<|endoftext|>"),
    "llama3": Published(
        _words(r"\p{N}{1,3}"), _numbered(*_LLAMA3), "<|begin_of_text|>", "<|end_of_text|>",
        digests=("82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",),
    ),
    "llama4": Published(
        _cased(), _numbered(*_LLAMA4), "<|begin_of_text|>", "<|end_of_text|>",
        digests=("d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed",),
    ),
    "qwen": Published(
        _words(r"\p{N}"),
        _numbered("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_reserved(0, 205, "extra_")),
        None, "<|endoftext|>", normalizer={"type": "NFC"},
    ),
    "kimi": Published(
        r"[\p{Han}]+|" + _cased(r"&&[^\p{Han}]", r"[\r\n]*"),
        _numbered("[BOS]", "[EOS]"), "[BOS]", "[EOS]",
    ),
}  # fmt: skip
"""By the name that `tokenizer.tiktoken` gives."""
