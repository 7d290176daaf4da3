"""Tokenizer files of every kind as one of two: a tokenizer.json or a SentencePiece model.

What other kinds hold is written as a tokenizer.json, so that nothing else has to know them: the
data set carries that file, and whoever reads it needs no library of the other kind.
"""

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from pipelines.errors import UserError
from pipelines.gguf_file import MAGIC, read_metadata
from pipelines.gguf_vocabulary import gguf_json
from pipelines.published_ranks import RankUse
from pipelines.ranks import is_tekken, parse_ranks, proved_json, read_ranks, read_tekken

ACCEPTED = (
    "a tokenizer.json, a SentencePiece model, a tekken.json, a tiktoken rank file or a GGUF file"
)
OTHER_NAMES = (
    "tekken.json", "tiktoken.model", "qwen.tiktoken", "spiece.model"
)  # fmt: skip
"""What other tokenizer files are called in a model's folder. `sentencepiece.bpe.model` is not among
them: the models that call it so (XLM-R, mBART, NLLB) number its pieces anew."""


def read_vocabulary(
    file: BinaryIO, path: str, said: RankUse | Mapping[str, Any] | None, config: Mapping[str, Any]
) -> bytes:
    """The bytes of a tokenizer.json or a SentencePiece model that gives the ids of a file.

    Args:
        file: of any kind; of a GGUF file only the metadata are read.
        path: where it is.
        said: `tokenizer.tiktoken` of the mixture.
        config: the tokenizer_config.json beside it, empty where there is none.

    Raises:
        UserError: the file is damaged, or of a kind that cannot be had exactly.
    """
    head = file.read(len(MAGIC))
    if head == MAGIC:
        _no_ranks(said, path, "a GGUF file")
        file.seek(0)
        return _written(gguf_json(read_metadata(file, path), path))
    content = head + file.read()
    if content.lstrip()[:1] == b"{":
        _no_ranks(said, path, "a JSON file")
        return _json(content, path)
    if ranks := parse_ranks(content):
        return proved_json(read_ranks(content, ranks, said, config))
    _no_ranks(said, path, "no such file")
    return content


def _no_ranks(said: object, path: str, kind: str) -> None:
    if said is not None:
        raise UserError(
            f"tokenizer.tiktoken: says how a tiktoken rank file splits text, and {path} is {kind}; "
            "leave it out"
        )


def _written(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _json(content: bytes, path: str) -> bytes:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"tokenizer.path: {path}: no JSON: {error}") from None
    if not is_tekken(value):
        return content
    try:
        vocabulary = read_tekken(content)
    except ValueError as error:
        raise UserError(f"tokenizer.path: {path}: {error}") from error
    return proved_json(vocabulary)
