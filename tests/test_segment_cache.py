"""The segment cache gives sentencepiece's ids, whatever the text and the state of its table."""

import io
import random
from functools import cache
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from pipelines.segment_cache import SegmentCacheEngine
from pipelines.sentencepiece_model import NO_DUMMY_PREFIX, UnsupportedModel, longest_match

PROSE = "the of and to in that was his he it with as had for her not on at by which be said"
WORDS = PROSE.split()
SCRIPTS = (
    "自然语言处理很有趣。今日は良い天気です。한국어 문장도 있습니다. مرحبا بالعالم שלום עולם "
    "नमस्ते दुनिया สวัสดีชาวโลก Ünïcödé ½ Привет, мир! Ελληνικά"
)
MARKUP = r"""\begin{align}\hat{f}(\xi) &= \int_{-\infty}^{\infty} f(x)\,dx \\ \end{align}
def f(x):
	return {'a': [x  ==  1, "two"]}  # <s>three</s> <unk> <0x0A> https://example.org/a?b=c&d=%20"""


def _train(**options) -> bytes:
    rng = random.Random(7)
    sentences = [" ".join(rng.choices(WORDS, k=12)) + rng.choice(".,;") for _ in range(300)]
    sentences += [*MARKUP.split("\n"), "привет мир  привет   мир", "  if x:\t# 12 345", "été déjà"]
    defaults = {
        "model_type": "bpe",
        "byte_fallback": True,
        "vocab_size": 460,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, **(defaults | options)
    )
    return model.getvalue()


OWN = [
    "<sep>", "<|im_end|>", "\u2581\u2581", "\u2581" * 3, "\u2581" * 7, "\n\n", "\n" * 3, "\\frac",
    "\\fra", "ac", "\u2581the", "cab", "<s>", "q", "\u6f22\u5b57",
]  # fmt: skip
"""User-defined pieces: runs of spaces and lines, one within the other, and some that overlap."""

MODELS = {
    "tiny": {},
    "own": {"user_defined_symbols": OWN, "bos_piece": "<bos>", "vocab_size": 480},
    "no prefix": {"user_defined_symbols": OWN, "bos_piece": "<bos>", "add_dummy_prefix": False},
}


@cache
def _model(name: str) -> bytes:
    if name in MODELS:
        return _train(**MODELS[name])
    pytest.importorskip("mistral_common")
    return resources.files("mistral_common").joinpath("data/tokenizer.model.v1").read_bytes()


@cache
def _reference(name: str, *, inside: bool = False) -> sentencepiece.SentencePieceProcessor:
    model = _model(name) + (NO_DUMMY_PREFIX if inside else b"")
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@cache
def _engine(name: str, slots: int = 1 << 12) -> SegmentCacheEngine:
    return SegmentCacheEngine(_model(name), slots=slots)


def _assert_exact(
    name: str, texts: list[str], slots: int = 1 << 12, *, inside: bool = False
) -> None:
    ids, offsets = _engine(name, slots).encode(texts, inside=inside)
    assert ids.dtype == np.uint32
    assert len(offsets) == len(texts) + 1
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    for i, expected in enumerate(_reference(name, inside=inside).encode(texts)):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == expected, repr(texts[i][:80])


def _torture() -> list[str]:
    rng = random.Random(11)
    hexadecimal, base64 = "0123456789abcdef", "ABCDEFGHabcdefghijklmnop0123456789+/"
    letters = [chr(c) for c in range(0x250) if chr(c).isalpha()]
    return [
        *("", " ", "\n", "\n\n x", " leading", "trailing ", "\nleading", "\t", "a", "é", "\0"),
        *(" " * n for n in range(1, 301)),
        *(f"x{' ' * n}y\n{' ' * n}z" for n in (1, 2, 3, 15, 16, 17, 30, 31, 32, 33, 255, 256, 257)),
        *("w" * n + "é" * n for n in (7, 8, 9, 10, 15, 16, 30, 31, 32, 63, 85, 86, 128, 129)),
        "a\tb\t\tc\r\nd\r\n\r\ne\vf\fg\u00a0h\u00a0\u00a0i\u2028j\u3000k\u200bl\ufeffm",
        "\u2581", "\u2581\u2581 \u2581x \u2581 y\u2581z", " \u2581" * 40, "x\u2581" * 300,
        "".join(map(chr, range(0x100))), "\0a\0\0b" * 50, "\0" * 40, "\x7f\x80\x9f",
        "👍🏽 👨‍👩‍👧‍👦🏳️‍🌈🇩🇪 ☃️😀😀", "\ue000\uf8ff\U000f0000\U0010ffff\ufffe\ufffd\ud7ff" * 20,
        SCRIPTS, SCRIPTS.replace(" ", "") * 10, MARKUP, MARKUP * 20, "<s></s><unk></s>", "[INST]",
        "".join(rng.choices(hexadecimal, k=5_000)), "".join(rng.choices(base64, k=20_000)),
        "".join(rng.choices(letters, k=5_000)), "=" * 5_000, "-=" * 2_000, "7" * 20_000,
        "".join(chr(rng.randrange(1, 0xD800)) for _ in range(20_000)),
        "".join(chr(rng.randrange(0x3000, 0xA000)) for _ in range(5_000)),
        " ".join("".join(rng.choices(letters, k=rng.randrange(1, 90))) for _ in range(2_000)),
        " " * 100_000, "a" * 60_000,
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*MODELS, "mistral"])
def test_hostile_texts_get_the_ids_of_sentencepiece_cold_and_warm(name):
    for _ in range(2):
        _assert_exact(name, _torture())


@pytest.mark.parametrize("name", ["tiny", "mistral"])
@pytest.mark.parametrize("slots", [1, 8])
def test_a_table_too_small_for_the_text_changes_no_id(name, slots):
    words = [f"{a}{b}" for a in WORDS for b in WORDS]
    random.Random(3).shuffle(words)
    _assert_exact(name, [" ".join(words), SCRIPTS, *words, MARKUP], slots)


def test_segments_that_differ_in_one_byte_are_never_taken_for_each_other():
    texts = ["=" * i + "-" + "=" * (29 - i) for i in range(30)] * 3
    random.Random(9).shuffle(texts)
    _assert_exact("mistral", texts, slots=1)


@pytest.mark.parametrize("name", [*MODELS, "mistral"])
@settings(max_examples=80)
@given(data=st.data())
def test_random_hostile_texts_get_the_ids_of_sentencepiece(name, data):
    parts = st.sampled_from(
        [*" \n\t\0\u2581<>/\\{}.,'\"-=019aeinstTHE\u00e9\u0301\u4e2d\u0939\U0001f600\U0010ffff",
         "  ", " the", "ing", "\u2581\u2581", "</s>", "\r\n", "://", "0x", "\u043f\u0440", "a" * 40,
         "\u6f22", "\u5b57", "c", *(own.replace("\u2581", " ") for own in OWN), *OWN]
    )  # fmt: skip
    text = st.one_of(st.lists(parts, max_size=60).map("".join), st.text(max_size=40))
    _assert_exact(name, data.draw(st.lists(text, max_size=4)))
    _assert_exact(name, data.draw(st.lists(text, max_size=4)), inside=True)


def test_texts_are_encoded_independently_of_their_neighbours():
    texts = ["the", "", " the", "", "", "\nthe", "the ", ""]
    together, offsets = _engine("tiny").encode(texts)
    apart = [_engine("tiny").encode([text])[0].tolist() for text in texts]
    assert [together[start:end].tolist() for start, end in pairwise(offsets)] == apart


def test_no_texts_give_no_ids():
    ids, offsets = _engine("tiny").encode([])
    assert len(ids) == 0
    assert offsets.tolist() == [0]


def test_a_megabyte_without_a_space_is_encoded_exactly():
    _assert_exact("mistral", ["".join(random.Random(5).choices("abcdefghij", k=1_000_000))])


def test_half_a_surrogate_pair_is_refused_as_it_has_no_utf8():
    with pytest.raises(UnicodeEncodeError):
        _engine("tiny").encode(["a\ud800b"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "not BPE"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes characters"),
        ({"remove_extra_whitespaces": True}, "removes extra spaces"),
        ({"treat_whitespace_as_suffix": True}, "spaces behind words"),
    ],
)
def test_a_model_that_treats_text_otherwise_is_refused_with_the_reason(options, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        SegmentCacheEngine(_train(**options))


@given(
    texts=st.lists(
        st.text(st.sampled_from("ab.|"), min_size=1, max_size=5), min_size=1, max_size=9
    ),
    text=st.text(st.sampled_from("ab.|c"), max_size=30),
)
def test_the_pattern_of_texts_finds_the_longest_at_every_place(texts, text):
    found, at = [], 0
    while at < len(text):
        own = max((t for t in texts if text.startswith(t, at)), key=len, default=None)
        found += [own] if own else []
        at += len(own or " ")
    assert longest_match(texts).findall(text) == found
