"""Texts on which a fast tokenizer must agree with the reference before it may be used.

They hold what engines are known to get wrong: runs of white space, LaTeX, emoji, scripts without
spaces, control characters, text that looks like a control token, a megabyte without a space.
"""

import random
from collections.abc import Sequence
from functools import cache

from pipelines.vocabulary import Reference

_LATEX = r"""\begin{align}\label{eq:x}
  \hat{f}(\xi) &= \int_{-\infty}^{\infty} f(x)\, e^{-2\pi i x \xi}\,dx, \\
\end{align} % comment
$\mathcal{O}(n^2)$ and \cite{a1,b2}~\ref{tab:1}---"""
_CODE = (
    "def f(x):\n\tif x  ==  1:\n\t\treturn  {'a': [1, 2]}\n    # four\r\n        eight;;;\n\n\n}"
)
_LANGUAGES = (
    "自然语言处理很有趣。今日は良い天気です。한국어 문장도 있습니다.",
    "مرحبا بالعالم שלום עולם",
    "नमस्ते दुनिया สวัสดีชาวโลก ျမန္မာ",
    "Ünïcödé çédille Straße ﬁ ligature ½ x² Ω Å é",
    "Привет, мир! Ελληνικά κείμενα.",
)
_EMOJI = "👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ☃️ 😀😀😀"
_SPECIAL = "a </s> b <s>c</s><unk> [INST] x [/INST] <pad> <|endoftext|> <0x0A> ▁ ▁▁ _"
_MARKS = ("\u0301", "\u0338", "\u200d", "_", "1", "\u00a0")
"""Characters that join with the one before them, by normalizing or in a word."""

_BETWEEN = (
    *" \n\t.<>|\u212a\u037e\u2126\u0130\u00e9\u00df\uff21\ufb01\u4e2d",
    *"\u2581\0\x85\U0001f600\U000323af",
    *("  ", "   ", " the ", "word", "Ab", "12", "e\u0301", "\u1100\u1161"),
)
_SPACES = " \u00a0\u2003\u2009\u3000\u200b\t \t\t \r\n \v \f \u0085 \u2028 \u2029 "


@cache
def probe_texts() -> tuple[str, ...]:
    """The probe set; always the same."""
    rng = random.Random(0)
    anywhere = "".join(chr(rng.choice(_ranges(rng))) for _ in range(20_000))
    ascii_noise = "".join(chr(rng.randrange(1, 127)) for _ in range(20_000))
    base64 = "".join(
        rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=20_000)
    )
    prose = _prose(rng)
    return (
        "",
        *(" " * n for n in (1, 2, 3, 7, 16, 17, 300)),
        *(f"{' ' * n}word{' ' * n}\n{' ' * n}" for n in (1, 2, 5)),
        "\n", "\n\n\n", "\n text", " \n", "\tx", "\r\n\r\n", _SPACES,
        "".join(map(chr, range(33))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
        "\0", "a\0b\0\0c", "\ufeffbom", "\U0010ffff\ue000\uf8ff\ufffd\ufffe",
        _LATEX, _CODE, *_LANGUAGES, "".join(_LANGUAGES) * 20, _EMOJI, _SPECIAL, _SPECIAL * 30,
        "3.14159 1,000,000 2026-11-21 0x7fff 1e-9", "7" * 20_000, "=" * 5_000, "-" * 5_000,
        "ab" * 5_000, "...!?,;:" * 500, anywhere, ascii_noise, base64, "GATTACA" * 3_000,
        " " * 100_000, "a" * 1_000_000, prose, prose.upper(), prose.replace(" ", "\n"),
        prose.replace(" ", "  "), prose.replace(" ", ""),
    )  # fmt: skip


def peculiar_texts(vocabulary: Reference) -> tuple[str, ...]:
    """Texts made of what a vocabulary has of its own, a few hundred kilobytes at most.

    Its added tokens or user-defined pieces, what looks like its special tokens, and its longest
    tokens, in front of, behind and inside words and blanks, cut short, doubled and next to each
    other; and its normalizer's characters.
    """
    rng = random.Random(1)
    special = _some(vocabulary.specials, 60, rng)
    own = [*_some(vocabulary.text_tokens, 240, rng), *special]
    tokens = [*own, *vocabulary.longest]
    around = [
        f"{before}{token}{behind}"
        for token in tokens
        for before, behind in (("", ""), (" ", " "), ("a", "b"), ("a ", " b"), ("  \n", "\n  "))
    ]
    cut = [text for token in own for text in (token[:-1], token[1:], token + token, token.upper())]
    mixed = rng.choices([*tokens, *_BETWEEN], k=4_000)
    marks = [f"{token}{mark}{token}" for token in own for mark in _MARKS]
    return (*around, *cut, "".join(mixed), " ".join(mixed), *marks)


def _some(tokens: Sequence[str], n: int, rng: random.Random) -> list[str]:
    """All tokens, or of many the shortest, the longest, and some between."""
    if len(tokens) <= n:
        return list(tokens)
    ordered = sorted(tokens, key=lambda token: (len(token), token))
    third = n // 3
    return [*ordered[:third], *rng.sample(ordered[third:-third], n - 2 * third), *ordered[-third:]]


def _ranges(rng: random.Random) -> range:
    starts = (32, 0xA1, 0x3040, 0x4E00, 0x1F300, 0x600, 0x2000)
    ends = (127, 0x500, 0x30FF, 0x9FFF, 0x1F6FF, 0x6FF, 0x2070)
    return rng.choice([range(start, end) for start, end in zip(starts, ends, strict=True)])


def _prose(rng: random.Random) -> str:
    """Words of every shape with ordinary punctuation."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    weights = range(26, 0, -1)
    words = ["".join(rng.choices(letters, weights, k=rng.randint(1, 11))) for _ in range(3_000)]
    return " ".join(w.capitalize() + rng.choice(["", "", ",", ".", ";", "'s", "-"]) for w in words)
