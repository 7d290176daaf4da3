"""The libraries that define tokenizer formats: what every faster engine must agree with."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipelines.sentencepiece_model import NO_DUMMY_PREFIX

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]


class SentencePieceReference:
    """`sentencepiece` itself, for `.model` files."""

    def __init__(self, content: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.processor: Any = SentencePieceProcessor(model_proto=content)
        self._inside: Any = SentencePieceProcessor(model_proto=content + NO_DUMMY_PREFIX)
        self.vocab_size: int = self.processor.vocab_size()
        self.bos_id: int | None = _present(self.processor.bos_id())
        self.eos_id: int | None = _present(self.processor.eos_id())

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        processor = self._inside if inside else self.processor
        return join([np.asarray(processor.encode(t), np.uint32) for t in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text."""
        return cast(str, self.processor.decode(list(map(int, ids))))

    def spelling(self, token_id: int | None) -> str | None:
        """How the vocabulary spells a control token."""
        return None if token_id is None else cast(str, self.processor.id_to_piece(token_id))

    def special_id(self, token: str) -> int | None:
        """The id of a control token; None for other pieces."""
        return self.processor.piece_to_id(token) if token in self.specials else None

    @cached_property
    def specials(self) -> list[str]:
        """The control tokens, as the vocabulary spells them."""
        ids = range(self.vocab_size)
        return [self.processor.id_to_piece(i) for i in ids if self.processor.is_control(i)]

    def ends(self, text: str) -> list[int]:
        """Where each token ends, in characters of the text."""
        return [end for _, end in self.processor.encode_as_offset_mapping(text)["offsets"]]


class TokenizersReference:
    """`tokenizers` itself, for `tokenizer.json`, with special tokens as plain text."""

    def __init__(self, content: bytes) -> None:
        from tokenizers import Tokenizer

        self.tokenizer, self._inside = map(
            _untrimmed, (plain_json(content), inside_json(plain_json(content)))
        )
        self.vocab_size, self.bos_id, self.eos_id = _json_specials(content)
        self.decoder: Any = Tokenizer.from_str(content.decode())
        self._specials = {t["content"]: int(t["id"]) for t in _added_tokens(content)}

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        tokenizer = self._inside if inside else self.tokenizer
        encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return join([np.asarray(e.ids, np.uint32) for e in encoded])

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, control tokens shown."""
        return cast(str, self.decoder.decode(list(map(int, ids)), skip_special_tokens=False))

    def spelling(self, token_id: int | None) -> str | None:
        """How the vocabulary spells a special token."""
        return next((text for text, i in self._specials.items() if i == token_id), None)

    def special_id(self, token: str) -> int | None:
        """The id of a special token; None for text that is none."""
        return self._specials.get(token)

    @property
    def specials(self) -> list[str]:
        """The added tokens, as the vocabulary spells them."""
        return list(self._specials)

    def ends(self, text: str) -> list[int]:
        """Where each token ends, in characters of the text."""
        return [end for _, end in self.tokenizer.encode(text, add_special_tokens=False).offsets]


Reference = SentencePieceReference | TokenizersReference


def _present(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def join(encoded: Sequence[Ids]) -> tuple[Ids, Offsets]:
    """Ids of several texts as one array, and offsets [n + 1]."""
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
    return (np.concatenate(encoded) if encoded else np.zeros(0, np.uint32)), offsets


def plain_json(content: bytes) -> str:
    """The tokenizer without its added tokens: text that looks like one stays text."""
    value = json.loads(content)
    value["added_tokens"] = []
    value["post_processor"] = None
    return json.dumps(value)


def inside_json(text: str) -> str:
    """The tokenizer for text that has other text before it: it puts no space in front."""
    value = json.loads(text)
    for part in ("normalizer", "pre_tokenizer"):
        value[part] = _without_prefix(value.get(part))
    return json.dumps(value)


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


def _untrimmed(text: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _added_tokens(content: bytes) -> list[dict[str, Any]]:
    return json.loads(content).get("added_tokens") or []


def _json_specials(content: bytes) -> tuple[int, int | None, int | None]:
    """(vocabulary size, BOS id, EOS id) of a tokenizer.json; by the names in use."""
    value = json.loads(content)
    ids = {token["content"]: int(token["id"]) for token in _added_tokens(content)}
    size = 1 + max([*value["model"]["vocab"].values(), *ids.values()])
    bos = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
    eos = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>")
    first = [next((ids[n] for n in names if n in ids), None) for names in (bos, eos)]
    return size, first[0], first[1]
