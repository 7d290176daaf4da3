"""Vocabularies of other kinds give the ids of their own libraries."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from vocabulary_files import (
    LLAMA_LIKE,
    byte_ranks,
    gguf_file,
    gguf_of_pieces,
    gguf_of_ranks,
    mixed_text,
    rank_file,
    sentencepiece_model,
    tekken_file,
)

from pipelines.byte_level import byte_level_json, last_merge, merges_of_ranks, spell
from pipelines.errors import UserError
from pipelines.gguf_file import read_metadata
from pipelines.mixture import TokenizerSpec
from pipelines.published_ranks import PUBLISHED
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import TokenizerFile, fetch_tokenizer, reference

LLAMA3 = PUBLISHED["llama3"]


def fetch(path: Path, **settings_: Any) -> TokenizerFile:
    return fetch_tokenizer(TokenizerSpec.model_validate({"path": str(path), **settings_}))


def ids_of(file: TokenizerFile, texts: Any = None) -> list[list[int]]:
    ids, offsets = load_tokenizer(file).encode_bare(list(texts or mixed_text()))
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def test_a_rank_file_is_encoded_as_tiktoken_does(tmp_path: Path) -> None:
    file = fetch(rank_file(tmp_path / "tokenizer.model"), tiktoken="llama3")
    own = tiktoken.Encoding(
        "own", pat_str=LLAMA3.pattern, mergeable_ranks=dict(byte_ranks()), special_tokens={}
    )
    assert ids_of(file) == [own.encode_ordinary(text) for text in mixed_text()]
    n = len(byte_ranks())
    assert (file.bos_token.text, file.bos_token.id) == ("<|begin_of_text|>", n)
    assert (file.eos_token.text, file.eos_token.id) == ("<|end_of_text|>", n + 1)
    assert file.file_name == "tokenizer.json"
    assert reference(file).special_id("<|eot_id|>") == n + 9
    assert n + 9 not in ids_of(file, ["a <|eot_id|> b"])[0]


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(list("ab \n'sth1e=")), max_size=40))
def test_one_merge_for_each_token_joins_what_ranks_join(text: str) -> None:
    """tiktoken joins by the rank of the union, a tokenizer.json by pairs."""
    own = tiktoken.Encoding(
        "own", pat_str=r"(?s).+", mergeable_ranks=dict(byte_ranks()), special_tokens={}
    )
    assert whole_text_tokenizer().encode(text).ids == own.encode_ordinary(text)


@cache
def whole_text_tokenizer() -> Any:
    """Byte-level BPE over the whole text, without a split that keeps joins apart."""
    ids = {spell(token): rank for token, rank in byte_ranks().items()}
    merges = merges_of_ranks(byte_ranks())
    value = byte_level_json(ids, merges, patterns=["(?m:.+)"], added=[])
    return Tokenizer.from_str(json.dumps(value))


def test_the_last_merge_of_a_token_is_the_one_that_bpe_makes() -> None:
    ranks = {"ab": 1.0, "bc": 0.0, "abc": 2.0, "abcd": 3.0}
    assert last_merge("abc", ranks) == ("a", "bc")
    assert last_merge("abcd", ranks) == ("abc", "d")
    assert last_merge("acb", ranks) is None


def test_special_tokens_of_a_rank_file_come_from_the_config_beside_it(tmp_path: Path) -> None:
    path, n = rank_file(tmp_path / "tiktoken.model"), len(byte_ranks())
    listed = {str(n + i): {"content": t} for i, t in enumerate(("[BOS]", "<|im_end|>", "[EOS]"))}
    config = {"added_tokens_decoder": listed, "bos_token": "[BOS]", "eos_token": "[EOS]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    file = fetch(path, tiktoken="kimi")
    assert (file.bos_token.id, file.eos_token.id) == (n, n + 2)
    own = fetch(path, tiktoken={"pattern": LLAMA3.pattern})
    assert (own.bos_token.id, own.eos_token.id) == (n, n + 2)
    assert reference(own).special_id("<|im_end|>") == n + 1


def test_a_rank_file_without_a_pattern_stops_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither how text is split.*llama3 \| llama4.*pattern"):
        fetch(rank_file(tmp_path / "x.tiktoken"))


def test_special_tokens_may_not_have_ids_of_ranks(tmp_path: Path) -> None:
    said = {"pattern": LLAMA3.pattern, "special_tokens": {"<e>": 5}}
    with pytest.raises(UserError, match="special token '<e>' has id 5, which is a rank"):
        fetch(rank_file(tmp_path / "x.tiktoken"), tiktoken=said)


def test_a_rank_file_that_lacks_bytes_is_damaged(tmp_path: Path) -> None:
    path = rank_file(tmp_path / "x.tiktoken")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:200]))
    with pytest.raises(UserError, match=r"lacks 56, first 0x.*fetch it again"):
        fetch(path, tiktoken="llama3")


def test_a_pattern_that_tokenizers_reads_otherwise_is_refused(tmp_path: Path) -> None:
    said = {"pattern": r"[a-z]+$|\s+|.", "special_tokens": {"<e>": 9_000}}
    with pytest.raises(UserError, match=r"other ids than tiktoken, first for the text"):
        fetch(rank_file(tmp_path / "x.tiktoken"), tiktoken=said, eos="<e>", bos=False)


def test_a_tekken_is_encoded_as_mistral_common_does(tmp_path: Path) -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    path = tekken_file(tmp_path / "tekken.json", LLAMA3.pattern)
    own, file = Tekkenizer.from_file(path), fetch(path)
    assert ids_of(file) == [own.encode(text, bos=False, eos=False) for text in mixed_text()]
    assert (file.bos_token.id, file.eos_token.id) == (own.bos_id, own.eos_id) == (1, 2)
    assert reference(file).special_id("[INST]") == 3
    assert 3 not in ids_of(file, ["[INST] a [/INST]"])[0]
    assert fetch(tmp_path).content == file.content  # a folder that holds it


def test_a_damaged_tekken_is_refused_with_the_librarys_reason(tmp_path: Path) -> None:
    path = tekken_file(tmp_path / "tekken.json", LLAMA3.pattern)
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"vocab": value["vocab"][:100]}))
    with pytest.raises(UserError, match=r"tekken\.json: mistral-common cannot read it"):
        fetch(path)


@pytest.mark.parametrize("splitting", ["gpt-2", "llama-bpe", "qwen2", "deepseek-v3", "smollm"])
def test_a_byte_level_gguf_gives_the_ids_of_its_vocabulary(splitting: str, tmp_path: Path) -> None:
    kinds = {"<|endoftext|>": 3, "  ": 4, "<tool>": 4, "[PAD1]": 5}
    metadata = gguf_of_ranks(splitting, kinds=kinds)
    n = len(byte_ranks())
    path = gguf_file(tmp_path / "m.gguf", metadata | {"tokenizer.ggml.eos_token_id": n})
    file = fetch(path, bos=False)
    assert (file.eos_token.text, file.eos_token.id) == ("<|endoftext|>", n)
    texts = ["a<tool>b", "x  y", "a<|endoftext|>b", *mixed_text()]
    ids = ids_of(file, texts)
    assert ids[0][1:-1] == [n + 2]
    assert n + 1 in ids[1]
    assert n not in ids[2]
    assert [reference(file).decode(i) for i in ids] == texts


def test_digits_of_smollm_are_split(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", gguf_of_ranks("smollm", kinds={"<e>": 3}))
    ids = ids_of(fetch(path, bos=False, eos="<e>"), ["in 1234"])[0]
    assert ids[-4:] == [byte_ranks()[digit] for digit in (b"1", b"2", b"3", b"4")]


def test_a_gguf_of_pieces_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    model = sentencepiece_model(**LLAMA_LIKE)
    own = SentencePieceProcessor(model_proto=model)
    file = fetch(gguf_file(tmp_path / "m.gguf", gguf_of_pieces(model)))
    assert (file.bos_token.id, file.eos_token.id) == (1, 2)
    texts = [*mixed_text(), "a   b", "</s>", " " * 40, "\x00é漢"]
    assert ids_of(file, texts) == [own.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "new-2027"}, "pre-tokenizer 'new-2027'.*was not compared"),
        ({"tokenizer.ggml.pre": ""}, "names no pre-tokenizer"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"tokenizer.ggml.merges": ["q z"]}, "its merge 'q z' makes no token"),
    ],
)
def test_a_gguf_that_was_not_compared_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = gguf_file(tmp_path / "m.gguf", gguf_of_ranks("gpt-2") | change)
    with pytest.raises(UserError, match=message):
        fetch(path)


def test_of_a_gguf_file_only_the_metadata_are_read(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf", gguf_of_ranks("gpt-2"))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"weights" * 1000)
    with path.open("rb") as file:
        metadata = read_metadata(file, "m.gguf")
        assert file.tell() == size
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="fetch the file again"), path.open("rb") as file:
        read_metadata(file, "m.gguf")


def unigram_json(**model: Any) -> Any:
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(mixed_text(), trainer)
    return tokenizer


def wordpiece_json() -> Any:
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[UNK]", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(mixed_text(), trainer)
    return tokenizer


@pytest.mark.parametrize("make", [unigram_json, wordpiece_json])
def test_models_beside_bpe_are_encoded_as_tokenizers_does(make: Any, tmp_path: Path) -> None:
    own = make()
    own.save(str(tmp_path / "tokenizer.json"))
    file = fetch(tmp_path, bos=False, eos="</s>")
    want = [own.encode(text, add_special_tokens=False).ids for text in mixed_text()]
    assert ids_of(file) == want
    assert file.eos_token.id == own.token_to_id("</s>")


def test_a_unigram_sentencepiece_model_is_encoded_as_its_library_does(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    model = sentencepiece_model(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "spiece.model").write_bytes(model)
    own, file = SentencePieceProcessor(model_proto=model), fetch(tmp_path, bos=False)
    assert ids_of(file) == [own.encode(text) for text in mixed_text()]
    assert file.eos_token.id == 1


def test_a_file_of_no_kind_is_named_with_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no vocabulary")
    with pytest.raises(UserError, match=r"none of a tokenizer\.json.*tekken.*rank file or a GGUF"):
        fetch(tmp_path / "x")
    with pytest.raises(UserError, match="says how a tiktoken rank file splits"):
        fetch(tmp_path / "x", tiktoken="llama3")
