"""Which tokens stand before and after documents: what the mixture and the model's files say.

The first of these that says something decides, for BOS and for EOS on its own:

1. the mixture: `bos: "<s>"` or `bos: 1`;
2. tokenizer_config.json: `bos_token`, `eos_token`; null says that there is none;
3. generation_config.json: `bos_token_id`, `eos_token_id`;
4. special_tokens_map.json: `bos_token`, `eos_token`;
5. config.json: `bos_token_id`, `eos_token_id`;
6. the tokenizer file: SentencePiece's own ids, the post-processor of a tokenizer.json;
7. the name: a special token that is called as such tokens usually are. That is a guess, and said.

`eos_token_id` may be a list, which holds the ends of turns as well as of documents. A list of
several decides nothing, but what comes after it may only name one of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pipelines.errors import UserError, did_you_mean
from pipelines.vocabulary import Reference

_SHOWN = 8
"""Special tokens that a message lists."""

Role = Literal["bos", "eos"]
Beside = Mapping[str, Mapping[str, Any]]
"""The model's JSON files, by name."""

CONFIGS = (
    ("tokenizer_config.json", "token"),
    ("generation_config.json", "token_id"),
    ("special_tokens_map.json", "token"),
    ("config.json", "token_id"),
)
"""Files beside a vocabulary, and how they call BOS and EOS."""

_NAMES: Mapping[Role, tuple[str, ...]] = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<BOS_TOKEN>", "[BOS]",
            "<｜begin▁of▁sentence｜>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<EOS_TOKEN>", "[EOS]",
            "<｜end▁of▁sentence｜>", "<|im_end|>"),
}  # fmt: skip


class Named(NamedTuple):
    """BOS or EOS: a token and who names it."""

    id: int | None
    text: str | None
    origin: str
    """What says so, or what says that there is none."""

    guessed: bool = False


NOTHING = Named(None, None, "nothing names one")


def find(role: Role, key: bool | int | str, reference: Reference, beside: Beside) -> Named:
    """BOS or EOS of a vocabulary.

    Args:
        role: which.
        key: what the mixture says of it. Where it says false, nothing is an error.
        reference: the vocabulary.
        beside: the model's other files.

    Raises:
        UserError: what is named is not in the vocabulary, or nothing names one.
    """
    if not isinstance(key, bool):
        return _named(role, f"tokenizer.{role}", key, reference)
    try:
        found = _search(role, reference, beside)
    except UserError:
        if key:
            raise
        return NOTHING
    if key and found.id is None:
        raise UserError(
            f"tokenizer.{role}: {found.origin}; name the token (tokenizer.{role}: TEXT or ID), or "
            "set it to false"
        )
    return found


def _search(role: Role, reference: Reference, beside: Beside) -> Named:
    among: dict[int, Named] = {}
    for origin, said in _statements(role, beside):
        if said is None:
            return Named(None, None, f"{origin} is null: the model has none")
        named = [_named(role, origin, x, reference) for x in said]
        if among:
            named = [n for n in named if n.id in among]
        if len(named) == 1:
            return named[0]
        among = among or {n.id: n for n in named if n.id is not None}
    own = reference.own_bos if role == "bos" else reference.own_eos
    if own is not None and (not among or own in among):
        return _named(role, "the tokenizer file", own, reference)
    if among:
        names = ", ".join(f"{n.text!r} ({i})" for i, n in among.items())
        raise UserError(
            f"tokenizer.{role}: {next(iter(among.values())).origin} names {names}, ends "
            "of documents and of turns; name the one that documents end with "
            f"(tokenizer.{role}: TEXT or ID)"
        )
    for name in _NAMES[role]:
        if (token_id := reference.special_id(name)) is not None:
            return Named(token_id, name, "guessed from its name", guessed=True)
    return NOTHING._replace(
        origin="nothing names one, and no special token of the vocabulary is called like one"
    )


def _statements(role: Role, beside: Beside) -> Iterator[tuple[str, list[int | str] | None]]:
    """What the files say, in their order: tokens, or None for "there is none"."""
    for file, suffix in CONFIGS:
        key = f"{role}_{suffix}"
        config = beside.get(file, {})
        if key not in config:
            continue
        said: Any = config[key]
        said = said.get("content") if isinstance(said, dict) else said
        if said is None:
            if file == "tokenizer_config.json":
                yield f"{file}: {key}", None
            continue
        tokens = list(dict.fromkeys(said)) if isinstance(said, list) else [said]
        kind = str if suffix == "token" else int
        if not all(isinstance(x, kind) and not isinstance(x, bool) for x in tokens):
            raise UserError(
                f"tokenizer.{role}: {file}: {key} is {said!r}, which is no token; mend it, or name "
                f"the token (tokenizer.{role}: TEXT or ID)"
            )
        if tokens:
            yield f"{file}: {key}", tokens


def _named(role: Role, origin: str, token: int | str, reference: Reference) -> Named:
    """The token that something names.

    Raises:
        UserError: the vocabulary has no such token.
    """
    if isinstance(token, int):
        known = 0 <= token < reference.vocab_size
        if known and (text := reference.spelling(token)) is not None:
            return Named(token, text, origin)
        fault = f"names id {token}, " + (
            "which is no token's"
            if known
            else f"and the vocabulary has {reference.vocab_size:,} ids"
        )
    elif (found := reference.token_id(token)) is not None:
        return Named(found, token, origin)
    else:
        near = did_you_mean(token, [*reference.specials, *reference.text_tokens])
        special = ", ".join(reference.specials[:_SHOWN]) or "none"
        more = ", …" if len(reference.specials) > _SHOWN else ""
        fault = (
            f"names {token!r}, which is not in the vocabulary{near} (its special tokens: "
            f"{special}{more})"
        )
    if origin == f"tokenizer.{role}":
        raise UserError(f"{origin}: {fault}")
    raise UserError(
        f"tokenizer.{role}: {origin} {fault}; take the vocabulary that belongs to that file, or "
        f"name the token (tokenizer.{role}: TEXT or ID), or set it to false"
    )
