"""Tokens that files beside a vocabulary add to it.

`transformers` adds what tokenizer_config.json (`added_tokens_decoder`) lists, or else
added_tokens.json. A tokenizer.json has them already; a SentencePiece model often has not, and then
the library that reads it gives other ids than the model was trained on.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from pipelines.errors import UserError
from pipelines.sentencepiece_model import SPACE
from pipelines.vocabulary import Reference

ADDED = "added_tokens.json"
_SHOWN = 4


class _Listed(NamedTuple):
    text: str
    id: int
    special: bool
    """No text makes it, and documents are not framed by it."""


def check_listed(
    vocabulary: Reference, path: str, beside: Mapping[str, Mapping[str, Any]], *, same_ids: bool
) -> str | None:
    """See that a vocabulary has the tokens that files beside it list; a note on those it can lack.

    Args:
        vocabulary: of the file.
        path: of the file.
        beside: the model's JSON files, by name.
        same_ids: refuse other ids than the list has. A tokenizer.json decides on its own.

    Raises:
        UserError: it lacks one that text can hold or documents are framed with, or ids differ.
    """
    origin, listed = _listed(beside)
    found = {t: _token_id(vocabulary, t.text) for t in listed}
    other = [t for t, i in found.items() if same_ids and i is not None and i != t.id]
    lost = [t for t, i in found.items() if i is None]
    if needed := [t for t in lost if not t.special] or other:
        fault = "has with other ids" if needed is other else "lacks"
        raise UserError(
            f"tokenizer.path: {origin} lists tokens that {path} {fault}: {_shown(needed)}; the "
            "model was trained with that list, so texts would get other ids here. Take the model's "
            "tokenizer.json, which `transformers` writes where there is none: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    if not lost:
        return None
    return (
        f"tokenizer.path: {origin} lists special tokens that {path} lacks: {_shown(lost)}; a chat "
        "template that uses one writes its letters instead"
    )


def _listed(beside: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[_Listed]]:
    config = beside.get("tokenizer_config.json", {})
    special = _special_names(config) | _special_names(beside.get("special_tokens_map.json", {}))
    decoder = config.get("added_tokens_decoder")
    try:
        if isinstance(decoder, dict):
            tokens = cast(dict[str, dict[str, Any]], decoder).items()
            rows = [(str(t["content"]), int(i), bool(t.get("special"))) for i, t in tokens]
            origin = "tokenizer_config.json (added_tokens_decoder)"
        else:
            rows = [(text, int(i), False) for text, i in beside.get(ADDED, {}).items()]
            origin = ADDED
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            "tokenizer.path: tokenizer_config.json (added_tokens_decoder) or added_tokens.json "
            "does not list tokens with their ids; mend it, or remove it"
        ) from None
    framing = {_text(config.get(f"{role}_token")) for role in ("bos", "eos")}
    framing |= {
        _text(beside.get("special_tokens_map.json", {}).get(f"{role}_token"))
        for role in ("bos", "eos")
    }
    return origin, [
        _Listed(text, i, (marked or text in special) and text not in framing)
        for text, i, marked in rows
    ]


def _special_names(config: Mapping[str, Any]) -> set[str | None]:
    """What a file calls special: `pad_token`, `additional_special_tokens`, …"""
    named = {_text(value) for key, value in config.items() if key.endswith("_token")}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key)
        named |= set(map(_text, cast(list[Any], value) if isinstance(value, list) else []))
    return named - {None}


def _text(token: Any) -> str | None:
    """A token as such files write one: its text, or an object that holds it."""
    text = cast(dict[str, Any], token).get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _token_id(vocabulary: Reference, text: str) -> int | None:
    found = vocabulary.token_id(text)
    return vocabulary.token_id(text.replace(" ", SPACE)) if found is None else found


def _shown(tokens: list[_Listed]) -> str:
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return ", ".join(f"{t.text!r} ({t.id})" for t in tokens[:_SHOWN]) + more
