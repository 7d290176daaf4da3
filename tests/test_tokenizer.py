"""Every engine gives the ids of the reference; nothing in a text becomes a control token."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS, prose
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import tokenizer as module
from pipelines.errors import UserError
from pipelines.mixture import TokenizerSpec
from pipelines.probe import probe_texts
from pipelines.references import SENTENCEPIECE
from pipelines.tokenizer import FAST_ENGINES, GigatokenEngine, load_tokenizer
from pipelines.tokenizer_file import TokenizerFile, fetch_tokenizer, reference

HOSTILE = st.text(st.sampled_from(list("ab  \n\t<s/>▁éЖ漢👍\u200d\u2028\x00.,'1=")), max_size=60)


@pytest.fixture(scope="module")
def byte_level_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as GPT-2 and Llama-3 use, with an end token that text may contain."""
    import random

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(2)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prose(rng, 200) for _ in range(50)), trainer)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def load(path: Path, **policy: bool) -> TokenizerFile:
    return fetch_tokenizer(TokenizerSpec.model_validate({"path": str(path), **policy}))


def pieces(encoded: tuple[Any, Any]) -> list[list[int]]:
    ids, offsets = encoded
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize(
    "name", [name for name, _, kinds in FAST_ENGINES if SENTENCEPIECE in kinds]
)
def test_every_engine_equals_the_reference_on_the_probe_set(
    name: str, tokenizer_model: Path
) -> None:
    file = load(tokenizer_model)
    engine = module._make(name, file)
    truth = reference(file)
    texts = probe_texts()
    assert pieces(engine.encode(texts)) == pieces(truth.encode(texts))


@settings(max_examples=60)
@given(texts=st.lists(HOSTILE, max_size=8))
def test_hostile_texts_are_encoded_as_the_reference_does(
    texts: list[str], tokenizer_model: Path
) -> None:
    tokenizer = load_tokenizer(load(tokenizer_model, bos=False, eos=False))
    assert tokenizer.engine_name == "segment cache"
    assert pieces(tokenizer.encode(texts)) == pieces(tokenizer.reference.encode(texts))
    inside = tokenizer.encode_bare(texts, inside=True)
    assert pieces(inside) == pieces(tokenizer.reference.encode(texts, inside=True))


def test_text_that_looks_like_a_control_token_stays_text(
    tokenizer_model: Path, byte_level_json: Path
) -> None:
    for path, text in ((tokenizer_model, "a</s>b<s>"), (byte_level_json, "a<|endoftext|>b")):
        for bos in (False,):
            tokenizer = load_tokenizer(load(path, bos=bos, eos=False))
            ids, _ = tokenizer.encode([text])
            assert tokenizer.eos_id not in ids.tolist()
            assert tokenizer.reference.decode(ids.tolist()).strip() == text


def test_a_byte_level_tokenizer_json_is_encoded_as_tokenizers_does(byte_level_json: Path) -> None:
    tokenizer = load_tokenizer(load(byte_level_json, bos=False))
    assert tokenizer.engine_name == "gigatoken"
    assert tokenizer.refused == ()
    texts = [t for t in probe_texts() if len(t) < 50_000]
    want = [[*ids, tokenizer.eos_id] for ids in pieces(tokenizer.reference.encode(texts))]
    assert pieces(tokenizer.encode(texts)) == want


@pytest.mark.parametrize(
    ("bos", "eos"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_bos_and_eos_stand_around_every_document_as_the_policy_says(
    bos: bool, eos: bool, tokenizer_model: Path
) -> None:
    tokenizer = load_tokenizer(load(tokenizer_model, bos=bos, eos=eos))
    texts = ["one two", "", "x"]
    plain = pieces(tokenizer.reference.encode(texts))
    front, back = [1] * bos, [2] * eos
    assert pieces(tokenizer.encode(texts)) == [[*front, *ids, *back] for ids in plain]
    assert tokenizer.encode(texts)[0].dtype == np.uint16


class WrongEngine:
    """Drops the last id of every text with a newline."""

    def __init__(self, file: TokenizerFile) -> None:
        self._truth = reference(file)

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> Any:
        return self._truth.encode([t.removesuffix("\n") for t in texts], inside=inside)


def broken(file: TokenizerFile) -> Any:
    raise RuntimeError("no such processor")


def test_an_engine_that_differs_is_refused_and_the_build_is_told(
    monkeypatch: pytest.MonkeyPatch, tokenizer_model: Path
) -> None:
    engines = ("wrong", WrongEngine, (SENTENCEPIECE,)), ("broken", broken, (SENTENCEPIECE,))
    monkeypatch.setattr(module, "FAST_ENGINES", engines)
    module._prove.cache_clear()
    tokenizer = load_tokenizer(load(tokenizer_model))
    module._prove.cache_clear()
    assert tokenizer.engine_name == "reference"
    assert tokenizer.refused[0].startswith("wrong: differs from the reference on probe")
    assert tokenizer.refused[1] == "broken: cannot load this tokenizer (no such processor)"


def test_gigatoken_is_renewed_before_its_cache_grows_without_bound(
    monkeypatch: pytest.MonkeyPatch, tokenizer_model: Path
) -> None:
    file = load(tokenizer_model)
    monkeypatch.setattr(module._Gigatoken, "RENEW_BYTES", 1000)
    engine = GigatokenEngine(file)
    texts = [" ".join(WORDS)] * 3
    want = pieces(reference(file).encode(texts))
    first = engine._beginnings._tokenizer
    for _ in range(3):
        assert pieces(engine.encode(texts)) == want
    assert engine._beginnings._tokenizer is not first


def test_the_digest_names_the_file_and_the_policy(tokenizer_model: Path) -> None:
    digests = {load(tokenizer_model, bos=b, eos=e).digest for b in (0, 1) for e in (0, 1)}
    assert len(digests) == 4
    assert load(tokenizer_model).digest == load(tokenizer_model).digest


def test_ends_of_tokens_are_characters_of_the_text(
    tokenizer_model: Path, byte_level_json: Path
) -> None:
    text = "the time could  see\nnaïve 漢字"
    for path in (tokenizer_model, byte_level_json):
        truth = reference(load(path, bos=False))
        ends = truth.ends(text)
        assert len(ends) == len(truth.encode([text])[0])
        assert ends == sorted(ends)
        assert ends[-1] == len(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a model", "none of a tokenizer.json, a SentencePiece model"),
     (b'{"model": 1}', "none of a tokenizer.json, a SentencePiece model"),
     (None, "cannot read")],
)  # fmt: skip
def test_a_file_that_is_no_tokenizer_is_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_package_can_hold_the_tokenizer() -> None:
    spec = TokenizerSpec(path="package://mistral_common/data/tokenizer.model.v1")
    assert reference(fetch_tokenizer(spec)).vocab_size == 32_000


def test_a_vocabulary_beyond_16_bits_is_stored_in_32(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{i}": i for i in range(70_000)} | {"[UNK]": 70_000}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(load(tmp_path / "tokenizer.json", bos=False, eos=False))
    ids, _ = loaded.encode(["w1 w69999 nothing"])
    assert (ids.dtype, ids.tolist()) == (np.uint32, [1, 69_999, 70_000])
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "WordLevel"
