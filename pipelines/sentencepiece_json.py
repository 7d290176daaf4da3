"""SentencePiece models as a tokenizer.json, for libraries that read no other."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.byte_level import Json, added_token, bpe_model, last_merge
from pipelines.sentencepiece_model import (
    BPE,
    BYTE_FALLBACK,
    CHARSMAP,
    CONTROL,
    DUMMY_PREFIX,
    MODEL_TYPE,
    NORMAL,
    REMOVE_SPACES,
    SPACE,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    UnsupportedModel,
    read_model,
)


def sentencepiece_json(content: bytes) -> Json:
    """A tokenizer.json that is meant to give the ids of a SentencePiece model.

    It does for text that begins with no user-defined piece, where `tokenizers` and `sentencepiece`
    normalize characters alike; who uses it compares.

    Raises:
        UnsupportedModel: the model is neither BPE nor Unigram.
    """
    pieces, trainer, settings = read_model(content)
    kind = trainer.get(MODEL_TYPE, UNIGRAM)
    ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    unknown = next((p for p, _, k in pieces if k == UNKNOWN), None)
    added = [
        added_token(piece.replace(SPACE, " "), i, special=k != USER_DEFINED)
        for i, (piece, _, k) in enumerate(pieces)
        if k in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    if kind == BPE:
        scores = {piece: score for piece, score, k in pieces if k == NORMAL}
        model = bpe_model(ids, merges_of_scores(scores, ids), unknown=unknown)
        model["byte_fallback"] = bool(trainer.get(BYTE_FALLBACK, False))
    elif kind == UNIGRAM:
        model: Json = {
            "type": "Unigram",
            "unk_id": ids[unknown] if unknown is not None else None,
            "vocab": [[piece, score] for piece, score, _ in pieces],
            "byte_fallback": bool(trainer.get(BYTE_FALLBACK, False)),
        }
    else:
        raise UnsupportedModel("the SentencePiece model is neither BPE nor Unigram")
    steps: list[Json] = []
    if charsmap := settings.get(CHARSMAP):
        text = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": text})
    if settings.get(REMOVE_SPACES, True):
        for pattern, instead in ((r"\A +| +\z", ""), (" {2,}", " ")):  # `Strip` takes more
            steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": instead})
    prefix = bool(settings.get(DUMMY_PREFIX, True))
    divided = prefix and any(k == USER_DEFINED for _, _, k in pieces)
    value = pieces_json(model, added=added, prefix=prefix, steps=steps)
    if divided:
        value["normalizer"] = {"type": "Sequence", "normalizers": [*steps, _SPACES_AS_PIECES]}
        value["pre_tokenizer"] = _FRONT_OF_TEXT
    return value


_SPACES_AS_PIECES: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_FRONT_OF_TEXT: Json = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Metaspace", "replacement": " ", "prepend_scheme": "first", "split": False},
        {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False},
    ],
}
"""Puts a space in front of the text alone; `Prepend` would put one behind every added token too.

`Metaspace` adds none where the text begins with what it adds. No text begins with a plain space
when the normalizer is done, so the first step always adds one, and the second writes it as a piece.
"""


def merges_of_scores(scores: Mapping[str, float], ids: Mapping[str, int]) -> list[list[str]]:
    """The pairs of a tokenizer.json that join pieces as their scores do, most important first.

    SentencePiece joins the two neighbours whose union is the piece with the highest score, wherever
    they come from; see `pipelines.byte_level` for why one pair for each piece is enough. Of pieces
    with one score, as runs of spaces have it, it joins what stands furthest to the left, so that a
    run grows from its beginning: they get all their pairs, those with the longest beginning first.

    Args:
        scores: of the pieces that text can make.
        ids: of all pieces.
    """
    ranks = {piece: -score for piece, score in scores.items()}
    tied = {rank for rank, count in Counter(ranks.values()).items() if count > 1}
    merges: list[tuple[float, int, int, list[str]]] = []
    for piece, rank in ranks.items():
        if rank in tied:
            pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        else:
            pairs = [pair] if (pair := last_merge(piece, ranks)) else []
        merges += [
            (rank, -len(left), ids[piece], [left, right])
            for left, right in pairs
            if ids.keys() >= {left, right}
        ]
    return [pair for _, _, _, pair in sorted(merges)]


def pieces_json(
    model: Json, *, added: Sequence[Any], prefix: bool, steps: Sequence[Json] = ()
) -> Json:
    """A tokenizer.json of SentencePiece pieces.

    Args:
        model: of the file, see `pipelines.byte_level.bpe_model`.
        added: added tokens.
        prefix: whether a space is put in front of text.
        steps: how characters are normalized before.
    """
    front: list[Json] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip: list[Json] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": {"type": "Sequence", "normalizers": [*steps, *front, _SPACES_AS_PIECES]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*back, *strip]},
        "model": model,
    }
