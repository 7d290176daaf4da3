"""AutoTokenizer gives the ids of the data set, for every kind of vocabulary."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig
from vocabulary_files import (
    LLAMA_LIKE,
    byte_ranks,
    gguf_file,
    gguf_of_ranks,
    mixed_text,
    rank_file,
    sentencepiece_model,
    tekken_file,
)

from pipelines.mixture import TokenizerSpec
from pipelines.published_ranks import PUBLISHED
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer
from trainer.tokenizer_files import write_tokenizer


def llama_like(folder: Path) -> dict[str, Any]:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(**LLAMA_LIKE))
    return {}


def user_defined(folder: Path) -> dict[str, Any]:
    model = sentencepiece_model(**LLAMA_LIKE, user_defined_symbols=["<|im_end|>", "\\frac"])
    (folder / "tokenizer.model").write_bytes(model)
    return {}


def t5(folder: Path) -> dict[str, Any]:
    model = sentencepiece_model(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.model").write_bytes(model)
    return {"bos": False}


def neox(folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(mixed_text(), trainer)
    tokenizer.add_tokens(["  ", "    ", "<think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"bos": False, "eos": "<|endoftext|>"}


def tekken(folder: Path) -> dict[str, Any]:
    tekken_file(folder / "tekken.json", PUBLISHED["llama3"].pattern)
    return {}


def ranks(folder: Path) -> dict[str, Any]:
    rank_file(folder / "tokenizer.model")
    return {"tiktoken": "llama3"}


def gguf(folder: Path) -> dict[str, Any]:
    metadata = gguf_of_ranks("qwen2", kinds={"<|endoftext|>": 3, "<tool>": 4})
    gguf_file(folder / "m.gguf", metadata | {"tokenizer.ggml.eos_token_id": len(byte_ranks())})
    return {"bos": False, "path": str(folder / "m.gguf")}


KINDS = (llama_like, user_defined, t5, neox, tekken, ranks, gguf)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_auto_tokenizer_gives_the_ids_of_the_data_set(make: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(
        fetch_tokenizer(TokenizerSpec.model_validate({"path": str(tmp_path), **make(tmp_path)}))
    )
    folder = tmp_path / "run"
    folder.mkdir()
    LlamaConfig().save_pretrained(folder)
    note = write_tokenizer(folder, tokenizer.file.content, tokenizer.file.describe())
    assert (note is not None) == (make in (user_defined, t5))

    texts = [*mixed_text(), "a <tool> <think>  b", "x <|im_end|> \\frac{a}", "   ", "\n\n\ta"]
    ids, offsets = tokenizer.encode(texts)
    documents = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    framed = AutoTokenizer.from_pretrained(
        folder, add_bos_token=tokenizer.file.bos, add_eos_token=True
    )
    assert [framed(text).input_ids for text in texts] == documents
    prompts = AutoTokenizer.from_pretrained(folder)
    assert [prompts(text).input_ids for text in texts] == [d[:-1] for d in documents]
    assert prompts.eos_token_id == tokenizer.eos_id
    if tokenizer.file.bos:
        assert prompts.bos_token_id == tokenizer.bos_id == documents[0][0]


def test_a_model_that_is_neither_bpe_nor_unigram_is_named(tmp_path: Path) -> None:
    content = sentencepiece_model(model_type="char")
    about = {"file": "tokenizer.model", "bos_token": "<s>", "bos_id": 1, "eos_token": "</s>"}
    note = write_tokenizer(tmp_path, content, about)
    assert note
    assert "neither BPE nor Unigram; use sentencepiece" in note
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_the_note_names_a_text_that_comes_out_otherwise(tmp_path: Path) -> None:
    content = sentencepiece_model(**LLAMA_LIKE, user_defined_symbols=["<|im_end|>"])
    about = {"file": "tokenizer.model", "bos_token": None, "bos_id": None, "eos_token": None}
    note = write_tokenizer(tmp_path, content, about)
    assert note
    assert "such as '<|im_end|>x'" in note
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] is False
