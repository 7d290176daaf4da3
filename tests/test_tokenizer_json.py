"""Added tokens and user-defined pieces are matched as the library does; special ones stay text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers
from vocabularies import added, byte_level, llama_json, sentencepiece_model, unigram_json

from pipelines.references import SENTENCEPIECE, TOKENIZERS
from pipelines.tokenizer import GigatokenEngine, Tokenizer, load_tokenizer
from pipelines.tokenizer_file import TokenizerFile, reference
from pipelines.tokenizer_json import TokenizersReference
from pipelines.vocabulary import Ids, Offsets

RUNS = [added(" " * n, normalized=True) for n in range(12, 1, -1)]
THINK = [added("<think>"), added("</think>"), added("<tool_call>")]
FLAGS = [
    added("<r>", rstrip=True), added("<l>", lstrip=True), added("word", single_word=True),
    added("<N>", normalized=True), added("<|end", special=False), added("<|end|>", special=True),
    added("text|", special=False),
]  # fmt: skip

VOCABULARIES: dict[str, Callable[[], Library]] = {
    "runs of spaces": lambda: byte_level(*RUNS, normalizer=normalizers.NFC()),
    "reasoning": lambda: byte_level(*THINK, normalizer=normalizers.NFC()),
    "flags": lambda: byte_level(*FLAGS, normalizer=normalizers.NFKC()),
    "lower case": lambda: byte_level(added("<ABC>", normalized=True), *THINK,
                                     normalizer=normalizers.Lowercase()),
    "prepend": lambda: llama_json(*THINK, added("</s", rstrip=True)),
    "prepend, none added": llama_json,
    "always": lambda: llama_json(*THINK, prefix="always"),
    "first": lambda: llama_json(*THINK, prefix="first"),
    "never": lambda: llama_json(*THINK, prefix="never"),
    "unigram": lambda: unigram_json(*THINK),
}  # fmt: skip

PARTS = st.sampled_from(
    [*"abtex <>|/\n\t.1Lé▁漢\u0301\u0338\u00a0\0\ufb01\u212a😀", "  ", "   ", " " * 9, "<think>",
     "</think>", "<tool_call>", "<r>", "<l>", "word", "<N>", "<n>", "<|end", "<|end|>", "text|",
     "<ABC>", "<abc>", "</s>", "</s", "<s>", "<|endoftext|>", "the time could", "people see\n"]
)  # fmt: skip
TEXT = st.lists(PARTS, max_size=12).map("".join)


@cache
def content(name: str) -> bytes:
    return VOCABULARIES[name]().to_str().encode()


@cache
def library(name: str) -> Library:
    """The library itself, with its own switch that leaves special tokens text."""
    tokenizer = Library.from_str(content(name).decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


@cache
def loaded(name: str) -> Tokenizer:
    return load_tokenizer(TokenizerFile(content(name), TOKENIZERS))


def ids_of(tokenizer: Any, text: str, *, inside: bool = False) -> list[int]:
    return tokenizer.encode([text], inside=inside)[0].tolist()


@pytest.mark.parametrize("name", [n for n in VOCABULARIES if n != "unigram"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=4))
def test_ids_are_those_of_tokenizers(name: str, texts: list[str]) -> None:
    want = [e.ids for e in library(name).encode_batch(texts, add_special_tokens=False)]
    found = loaded(name)
    assert [ids_of(found.reference, text) for text in texts] == want
    assert [ids_of(found.engine, text) for text in texts] == want


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=60, deadline=None)
@given(text=TEXT, inside=st.booleans())
def test_no_text_makes_a_special_token(name: str, text: str, inside: bool) -> None:
    truth = loaded(name).reference
    special = {truth.special_id(token) for token in truth.specials if token != "<unk>"}
    assert special.isdisjoint(ids_of(loaded(name).engine, text, inside=inside))


@pytest.mark.parametrize("name", ["prepend", "always", "first", "never", "reasoning"])
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_text_inside_a_document_has_no_space_put_before_it_but_behind_added_tokens_as_ever(
    name: str, text: str
) -> None:
    tokenizer = library(name)
    head, rest = _divided(tokenizer, text)
    bare = Library.from_str(json.dumps(_never(json.loads(content(name)))))
    want = bare.encode(head, add_special_tokens=False).ids
    want += tokenizer.encode(rest, add_special_tokens=False).ids
    assert ids_of(loaded(name).reference, text, inside=True) == want
    assert ids_of(loaded(name).engine, text, inside=True) == want


def _divided(tokenizer: Library, text: str) -> tuple[str, str]:
    """What stands before the first added token that is not special, and the rest."""
    tokens = {t.content: t.special for t in tokenizer.get_added_tokens_decoder().values()}
    longest_first = sorted(tokens, key=len, reverse=True)
    for match in re.finditer("|".join(map(re.escape, longest_first)), text):
        if not tokens[match[0]]:
            return text[: match.start()], text[match.start() :]
    return text, ""


def _never(value: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json of these tests without its added tokens and the space it puts in front."""
    if value["pre_tokenizer"] and "prepend_scheme" in value["pre_tokenizer"]:
        value["pre_tokenizer"]["prepend_scheme"] = "never"
    if value["normalizer"] and "normalizers" in value["normalizer"]:
        value["normalizer"]["normalizers"] = value["normalizer"]["normalizers"][1:]
    return value | {"added_tokens": []}


def test_reasoning_marks_are_one_token_and_the_end_of_text_is_spelled() -> None:
    found = loaded("reasoning")
    ids = ids_of(found.engine, "<think>\n</think><|endoftext|>")
    assert [found.reference.spelling(i) for i in ids[:3]] == ["<think>", "Ċ", "</think>"]
    assert found.reference.decode(ids) == "<think>\n</think><|endoftext|>"
    assert len(ids) > 6
    assert found.engine_name == "gigatoken"


def test_runs_of_spaces_are_taken_from_the_longest_on() -> None:
    found = loaded("runs of spaces")
    ids = ids_of(found.engine, f"x{' ' * 15}y")
    assert [found.reference.spelling(i) for i in ids] == ["x", " " * 12, "   ", "y"]
    assert found.engine_name == "gigatoken"


@pytest.mark.parametrize("name", ["prepend", "always"])
def test_a_space_behind_added_tokens_still_allows_a_fast_engine(name: str) -> None:
    assert loaded(name).engine_name == "gigatoken between added tokens"
    text = "a<think> b" * 2
    ids = ids_of(loaded(name).engine, text)
    assert ids == library(name).encode(text, add_special_tokens=False).ids


def test_added_tokens_keep_the_ids_that_the_library_gives_them() -> None:
    """Special ones before them are not in the model, and the file's ids have a gap."""
    value = json.loads(byte_level().to_str())
    n = len(value["model"]["vocab"])
    for token_id, text, special in ((n + 4, "<s>", True), (n + 7, "<a>", False)):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        value["added_tokens"].append({"id": token_id, "content": text, "special": special} | flags)
    truth = TokenizersReference(json.dumps(value).encode())
    want = Library.from_str(json.dumps(value)).token_to_id("<a>")
    assert ids_of(truth, "<a>") == [want] == [truth.token_id("<a>")]
    assert truth.vocab_size == want + 1
    assert truth.special_id("<s>") == Library.from_str(json.dumps(value)).token_to_id("<s>")


@pytest.mark.parametrize("kind", ["BPE", "BPE, whole words", "Unigram", "WordLevel", "WordPiece"])
def test_a_model_that_has_a_special_token_as_a_piece_does_not_make_it_of_text(kind: str) -> None:
    pieces = ["<unk>", "</s>", "a", "<", "/", "s", ">", "</", "</s", "<a>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = [("<", "/"), ("</", "s"), ("</s", ">")]
    model: Any = {
        "BPE": lambda: models.BPE(ids, merges, unk_token="<unk>"),
        "BPE, whole words": lambda: models.BPE(ids, merges, unk_token="<unk>", ignore_merges=True),
        "Unigram": lambda: models.Unigram([(p, -float(i)) for p, i in ids.items()], unk_id=0),
        "WordLevel": lambda: models.WordLevel(ids, unk_token="<unk>"),
        "WordPiece": lambda: models.WordPiece(ids, unk_token="<unk>"),
    }[kind]()
    tokenizer = Library(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    tokenizer.add_tokens([added("<b>")])
    assert 1 in tokenizer.encode("</s>").ids
    truth = TokenizersReference(tokenizer.to_str().encode())
    assert 1 not in ids_of(truth, "a </s> a")
    assert ids_of(truth, "a a") == [2, 2]
    assert ids_of(truth, "<b>") == [tokenizer.token_to_id("<b>")]
    assert (truth.special_id("</s>"), truth.token_id("</s>")) == (1, 1)
    assert (truth.spelling(1), truth.special_id("<unk>")) == ("</s>", 0)
    assert truth.decode([1]) == "</s>"
    assert truth.vocab_size == len(pieces) + 1


def test_bos_and_eos_are_special_though_the_vocabulary_does_not_say_so() -> None:
    file = TokenizerFile(content("reasoning"), TOKENIZERS, controls=("</think>",))
    truth = reference(file)
    end = truth.special_id("</think>")
    assert end == reference(TokenizerFile(content("reasoning"), TOKENIZERS)).token_id("</think>")
    assert end not in ids_of(truth, "a</think>b")
    assert truth.token_id("<think>") in ids_of(load_tokenizer(file).engine, "<think>a</think>")
    assert end not in ids_of(load_tokenizer(file).engine, "<think>a</think>")


# --- SentencePiece ----------------------------------------------------------------------------

OWN = ("<|im_start|>", "<|im_end|>", "\\frac", "\\fra", "▁▁", "▁▁▁▁", "\n\n", "the▁")
PIECES = st.sampled_from(
    [*OWN, *(own.replace("▁", " ") for own in OWN), *" ab<|>\n\\▁é漢\t", "</s>", "<s>", "people"]
)


@cache
def model(kind: str) -> bytes:
    unigram = {"model_type": "unigram", "vocab_size": 330}
    options = {"unigram": unigram, "no prefix": {"add_dummy_prefix": False}}
    return sentencepiece_model(OWN, **options.get(kind, {}))


@pytest.mark.parametrize("kind", ["bpe", "no prefix", "unigram"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=4))
def test_user_defined_pieces_are_those_of_sentencepiece(kind: str, texts: Sequence[str]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model(kind))
    found = load_tokenizer(TokenizerFile(model(kind), SENTENCEPIECE))
    assert found.engine_name == ("reference" if kind == "unigram" else "segment cache")
    assert [ids_of(found.engine, text) for text in texts] == processor.encode(list(texts))


def test_a_user_defined_piece_that_ends_documents_is_no_text() -> None:
    file = TokenizerFile(model("bpe"), SENTENCEPIECE, controls=("<|im_end|>",))
    found = load_tokenizer(file)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model("bpe"))
    start, end = map(processor.piece_to_id, ("<|im_start|>", "<|im_end|>"))
    ids = ids_of(found.engine, "<|im_start|>a<|im_end|>")
    assert start in ids
    assert end not in ids
    assert found.engine_name == "segment cache"
    assert found.reference.special_id("<|im_end|>") == end
    assert ids_of(found.engine, "the people") == processor.encode("the people")


def test_texts_with_characters_that_libraries_may_not_know_yet_go_to_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gigatoken 0.10 takes Unicode 17's digits for no digits, so patterns divide them elsewhere."""
    engine = GigatokenEngine(TokenizerFile(content("reasoning"), TOKENIZERS))
    given: list[str] = []
    encode = engine._beginnings.encode

    def spied(texts: Sequence[str]) -> tuple[Ids, Offsets]:
        given.extend(texts)
        return encode(texts)

    monkeypatch.setattr(engine._beginnings, "encode", spied)
    known = ["", "plain", "Lé’ 漢字", "😀 \U0001d49c \U00020000"]
    new = ["a \U00011de0\U00011de1 b", "\u1acf", "x\U0001f8d0", "\U000e0041"]
    mixed = [text for pair in zip(known, new, strict=True) for text in pair]
    ids, offsets = engine.encode(mixed)
    assert given == known
    want = [e.ids for e in library("reasoning").encode_batch(mixed, add_special_tokens=False)]
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == want
