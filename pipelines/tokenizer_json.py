"""`tokenizer.json`: what `tokenizers` makes of text where no text can spell a special token.

Added tokens that are not special are text of the vocabulary, and the library matches them. Special
ones stay text: the library has a switch for that, `encode_special_tokens`. Some models could still
spell them from their own pieces, and are kept from it here.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np

from pipelines.vocabulary import Ids, Offsets, failures_of, join

Json = dict[str, Any]
Scheme = Literal["never", "first", "always"]


class TokenizersReference:
    """`tokenizers` itself, for `tokenizer.json`.

    Args:
        content: the bytes of the file.
        controls: tokens that count as special although the file does not mark them.
    """

    def __init__(self, content: bytes, controls: Collection[str] = ()) -> None:
        self._content = content
        value: Json = json.loads(content)
        ids = _vocabulary(value["model"])
        text = plain_value(value, controls)
        self._changed = text is not value
        self.tokenizer: Any = _load(json.dumps(text) if self._changed else content.decode())
        inner = inside_value(text)
        self._inside: Any = _load(json.dumps(inner)) if inner != text else self.tokenizer
        added = text.get("added_tokens") or []
        self.texts_apart = not text.get("normalizer") or not any(t["normalized"] for t in added)
        """Whether added tokens divide a text into parts that are texts of their own."""

        # A token that the model lacks gets the library's next free id, whatever the file says.
        self._added: dict[str, int] = {
            t["content"]: ids[t["content"]]
            if t["content"] in ids
            else self.tokenizer.token_to_id(t["content"])
            for t in added
        }
        self._special = {t["content"]: self._added[t["content"]] for t in added if t["special"]}
        self._eats = {self._added[t["content"]]: (t["lstrip"], t["rstrip"]) for t in added}
        self._spelled = {i: name for name, i in self._added.items()}
        self.vocab_size: int = 1 + max([*ids.values(), *self._added.values()])
        self.begins_anywhere = prefix_scheme(text) == "always"
        self.own_bos, self.own_eos = _framing(value.get("post_processor"))
        self._pieces = ids
        self.begins_alike = self._inside is self.tokenizer
        self._splits = self.begins_anywhere and len(self._special) < len(self._added)
        self._only_added = _divider(text)

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """See `Engine`.

        Raises:
            EncodingError: the library fails on a text.
        """
        with failures_of("tokenizers"):
            if inside and self._splits:
                return join([np.asarray(self._continued(t), np.uint32) for t in texts])
            tokenizer = self._inside if inside else self.tokenizer
            encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return join([np.asarray(e.ids, np.uint32) for e in encoded])

    def _continued(self, text: str) -> list[int]:
        """Only what stands before the first added token continues something; the rest does not."""
        first = next(iter(self.sections(text)), None)
        if not isinstance(first, str) or len(first) == len(text):
            tokenizer = self.tokenizer if isinstance(first, int) else self._inside
            return tokenizer.encode(text, add_special_tokens=False).ids
        begun, whole = (
            self.tokenizer.encode(part, add_special_tokens=False).ids for part in (first, text)
        )
        return [*self._inside.encode(first, add_special_tokens=False).ids, *whole[len(begun) :]]

    def sections(self, text: str) -> list[str | int]:
        """The ids of the added tokens in a text, as the library finds them, and what lies between.

        White space that a token takes along is in neither.
        """
        divider, ids = self._divider
        found = divider.encode(text, add_special_tokens=False)
        return [
            text[start:end] if kind == _BETWEEN else ids[kind]
            for kind, (start, end) in zip(found.ids, found.offsets, strict=True)
        ]

    @cached_property
    def _divider(self) -> tuple[Any, dict[int, int]]:
        divider = _load(json.dumps(self._only_added))
        added = divider.get_added_tokens_decoder().items()
        return divider, {number: self._added[token.content] for number, token in added}

    @cached_property
    def decoder(self) -> Any:
        """The library's tokenizer as the file describes it."""
        return _load(self._content.decode()) if self._changed else self.tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, control tokens shown."""
        return cast(str, self.decoder.decode(list(map(int, ids)), skip_special_tokens=False))

    def token_id(self, text: str) -> int | None:
        """The id of a token, whatever its kind."""
        found = self._added.get(text)
        return self.tokenizer.token_to_id(text) if found is None else found

    def spelling(self, token_id: int | None) -> str | None:
        """How the vocabulary spells a token."""
        if token_id is None:
            return None
        return self._spelled.get(token_id) or self.tokenizer.id_to_token(token_id)

    def special_id(self, token: str) -> int | None:
        """The id of a special token; None for text that is none."""
        return self._special.get(token)

    @property
    def specials(self) -> list[str]:
        """The special tokens, as the vocabulary spells them."""
        return list(self._special)

    @property
    def text_tokens(self) -> list[str]:
        """Added tokens that text may hold."""
        return [token for token in self._added if token not in self._special]

    @property
    def longest(self) -> list[str]:
        """Some of the longest tokens, as text."""
        pieces = sorted(self._pieces, key=lambda piece: (-len(piece), piece))
        return [self.decode([self._pieces[piece]]) for piece in pieces[:40]]

    def eats(self, token_id: int) -> tuple[bool, bool]:
        """Whether a control token takes the white space before it, and behind it, along."""
        return self._eats.get(token_id, (False, False))

    def ends(self, text: str) -> list[int]:
        """Where each token ends, in characters of the text."""
        return [end for _, end in self.tokenizer.encode(text, add_special_tokens=False).offsets]


def _load(text: str) -> Any:
    from tokenizers import Tokenizer, processors

    tokenizer: Any = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = processors.Sequence([])  # it would move where tokens end
    tokenizer.encode_special_tokens = True
    return tokenizer


def _vocabulary(model: Json) -> dict[str, int]:
    """The model's own tokens, as the file writes them."""
    vocabulary: Any = model["vocab"]
    if isinstance(vocabulary, dict):
        return cast(dict[str, int], vocabulary)
    return {piece: i for i, (piece, _) in enumerate(vocabulary)}


def plain_value(value: Json, controls: Collection[str] = ()) -> Json:
    """The tokenizer in which no text becomes a special token; `value` itself where it is so.

    With `encode_special_tokens`, the library matches no special token in text. What is left is the
    model: merges that make a special token are removed, and where models look whole words up,
    special tokens get names that no text holds.
    """
    added: list[Json] = value.get("added_tokens") or []
    names = {token["content"] for token in added}
    marked = [t | {"special": True} if t["content"] in controls else t for t in added]
    marked += [_token(name) for name in sorted(set(controls) - names)]
    special = {str(t["content"]) for t in marked if t["special"]}
    model = _without_special(value["model"], special)
    if marked == added and model is value["model"]:
        return value
    if model is not value["model"] and model["vocab"] is not value["model"]["vocab"]:
        # What the model does not find under its name gets a new id: last, so that no other moves.
        known = _vocabulary(value["model"])
        marked.sort(key=lambda t: t["special"] and t["content"] in known)
    return value | {"added_tokens": marked, "model": model}


def text_only(value: Json, controls: Collection[str] = ()) -> Json:
    """The tokenizer without special tokens, for engines that match every token they are given."""
    plain = plain_value(value, controls)
    added: list[Json] = plain.get("added_tokens") or []
    kept = [token for token in added if not token["special"]]
    return plain | {"added_tokens": kept, "post_processor": None}


def _token(name: str) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": 0, "content": name, "special": True, **flags}


def _without_special(model: Json, special: set[str]) -> Json:
    if model.get("type", "BPE" if "merges" in model else None) == "BPE":
        merges: list[Any] = model["merges"]
        kept = [m for m in merges if not _makes(m, special)]
        model = model if len(kept) == len(merges) else model | {"merges": kept}
        if not model.get("ignore_merges"):
            return model
    names = {name: f"{name}\0\U0010ffff" for name in special.intersection(_vocabulary(model))}
    if not names:
        return model
    vocabulary: Any = model["vocab"]
    renamed: Any = (
        {names.get(piece, piece): i for piece, i in vocabulary.items()}
        if isinstance(vocabulary, dict)
        else [[names.get(piece, piece), score] for piece, score in vocabulary]
    )
    changed = {"vocab": renamed}
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    return model | changed


def _makes(merge: Any, special: set[str]) -> bool:
    """Whether a merge, a pair or two texts with a space between, makes or takes special tokens."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left + right in special or left in special or right in special


def inside_value(value: Json) -> Json:
    """The tokenizer for text that has other text before it: it puts no space in front."""
    steps = {part: _without_prefix(value.get(part)) for part in ("normalizer", "pre_tokenizer")}
    return value | steps


def _without_prefix(step: Any) -> Any:
    """A step of a tokenizer.json that puts no space, or what stands for one, in front."""
    if not isinstance(step, dict):
        return step
    for steps in ("normalizers", "pretokenizers"):
        if steps in step:
            kept = [s for s in map(_without_prefix, step[steps]) if s is not None]
            return {**step, steps: kept}
    if step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if "add_prefix_space" in step else step


def prefix_scheme(value: Json) -> Scheme:
    """Where a tokenizer puts a space: nowhere, before the text, or behind added tokens as well."""
    parts = (value.get(part) for part in ("normalizer", "pre_tokenizer"))
    found = {_scheme(step) for part in parts if part for step in _flat(part)}
    return "always" if "always" in found else "first" if "first" in found else "never"


def _flat(step: Json) -> Iterator[Json]:
    for steps in ("normalizers", "pretokenizers"):
        for inner in step.get(steps) or []:
            yield from _flat(inner)
    yield step


def _scheme(step: Json) -> Scheme:
    if step["type"] == "Prepend":
        return "always"
    spaced = step.get("add_prefix_space", step["type"] == "Metaspace")
    return step.get("prepend_scheme") or ("always" if spaced else "never")


_BETWEEN = 0


def _divider(value: Json) -> Json:
    """A tokenizer that only finds added tokens; all between two of them is one other token."""
    model = {"type": "WordLevel", "vocab": {"\0": _BETWEEN}, "unk_token": "\0"}
    return value | {"model": model, "pre_tokenizer": None}


def _framing(processor: Any) -> tuple[int | None, int | None]:
    """The first and the last token that the file's post-processor puts around a text."""
    if not isinstance(processor, dict):
        return None, None
    for inner in processor.get("processors") or []:
        if any(found := _framing(inner)):
            return found
    if "single" in processor:
        kinds = [(*step.items(),)[0] for step in processor["single"]]
        text = next((i for i, (kind, _) in enumerate(kinds) if kind == "Sequence"), len(kinds))
        known = processor["special_tokens"]
        before, after = (
            [known[about["id"]]["ids"] for kind, about in part if kind == "SpecialToken"]
            for part in (kinds[:text], kinds[text:])
        )
        return before[0][0] if before else None, after[-1][-1] if after else None
    if "cls" in processor:  # BertProcessing, RobertaProcessing
        return processor["cls"][1], processor["sep"][1]
    return None, None
