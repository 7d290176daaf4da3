"""Tokens that files beside a vocabulary add to it are never lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vocabularies import byte_level, sentencepiece_model

from pipelines.errors import UserError
from pipelines.mixture import TokenizerSpec
from pipelines.tokenizer_file import TokenizerFile, fetch_tokenizer


def fetch(path: Path, *, model: bool, **configs: Any) -> TokenizerFile:
    """The tokenizer of a folder: a SentencePiece model or a tokenizer.json, and files beside it."""
    if model:
        (path / "tokenizer.model").write_bytes(sentencepiece_model(["<|im_end|>", "  "]))
    else:
        (path / "tokenizer.json").write_text(byte_level().to_str())
        frame = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        configs["special_tokens_map"] = frame | configs.get("special_tokens_map", {})
    for name, content in configs.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return fetch_tokenizer(TokenizerSpec(path=str(path)))


def listed(text: str, token_id: int, **flags: bool) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(token_id): {"content": text, **flags}}}


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize(
    "configs",
    [
        {"tokenizer_config": listed("<think>", 900, special=False)},
        {"added_tokens": {"<think>": 900}},
        {"tokenizer_config": {"bos_token": "<s>"}, "added_tokens": {"<think>": 900}},
    ],
)
def test_tokens_that_text_can_hold_and_the_vocabulary_lacks_stop_the_build(
    tmp_path: Path, model: bool, configs: Any
) -> None:
    with pytest.raises(UserError, match=r"lacks: '<think>' \(900\); .*save_pretrained"):
        fetch(tmp_path, model=model, **configs)


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize(
    "configs",
    [
        {"tokenizer_config": listed("<pad>", 900, special=True)},
        {"added_tokens": {"<pad>": 900}, "special_tokens_map": {"pad_token": "<pad>"}},
        {"added_tokens": {"<pad>": 900},
         "special_tokens_map": {"additional_special_tokens": [{"content": "<pad>"}]}},
    ],
)  # fmt: skip
def test_special_tokens_that_the_vocabulary_lacks_are_noted(
    tmp_path: Path, model: bool, configs: Any
) -> None:
    file = fetch(tmp_path, model=model, **configs)
    assert any("lacks: '<pad>' (900)" in note for note in file.notes)


def test_an_end_of_documents_that_only_the_list_has_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    config = {"bos_token": "<s>", "eos_token": "<|end|>", **listed("<|end|>", 900, special=True)}
    with pytest.raises(UserError, match=r"lacks: '<\|end\|>' \(900\); .*save_pretrained"):
        fetch(tmp_path, model=True, tokenizer_config=config)


def test_pieces_of_a_model_that_the_list_numbers_anew_are_refused(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", **listed("<s>", 0, special=True)}
    with pytest.raises(UserError, match=r"has with other ids: '<s>' \(0\)"):
        fetch(tmp_path, model=True, tokenizer_config=config)


def test_tokens_that_the_vocabulary_has_are_no_matter(tmp_path: Path) -> None:
    decoder = {**listed("<s>", 1)["added_tokens_decoder"]}
    config = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": decoder}
    file = fetch(tmp_path, model=True, tokenizer_config=config, added_tokens={"<other>": 5})
    assert not file.notes


@pytest.mark.parametrize("wrong", [{"added_tokens_decoder": {"x": {"content": "<a>"}}},
                                   {"added_tokens_decoder": {"5": "<a>"}}])  # fmt: skip
def test_a_list_that_is_none_is_named(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(UserError, match="does not list tokens with their ids"):
        fetch(tmp_path, model=True, tokenizer_config=wrong)
