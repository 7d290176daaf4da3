"""The libraries that define tokenizer formats: what every faster engine must agree with."""

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]


class SentencePieceReference:
    """`sentencepiece` itself, for `.model` files."""

    def __init__(self, content: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.processor: Any = SentencePieceProcessor(model_proto=content)
        self.vocab_size: int = self.processor.vocab_size()
        self.bos_id: int | None = _present(self.processor.bos_id())
        self.eos_id: int | None = _present(self.processor.eos_id())

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        return join([np.asarray(self.processor.encode(t), np.uint32) for t in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text."""
        return cast(str, self.processor.decode(list(map(int, ids))))

    def ends(self, text: str) -> list[int]:
        """Where each token ends, in characters of the text."""
        return [end for _, end in self.processor.encode_as_offset_mapping(text)["offsets"]]


class TokenizersReference:
    """`tokenizers` itself, for `tokenizer.json`, with special tokens as plain text."""

    def __init__(self, content: bytes) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_str(plain_json(content))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.vocab_size, self.bos_id, self.eos_id = _json_specials(content)
        self.decoder: Any = Tokenizer.from_str(content.decode())

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return join([np.asarray(e.ids, np.uint32) for e in encoded])

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, control tokens shown."""
        return cast(str, self.decoder.decode(list(map(int, ids)), skip_special_tokens=False))

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


def _json_specials(content: bytes) -> tuple[int, int | None, int | None]:
    """(vocabulary size, BOS id, EOS id) of a tokenizer.json; by the names in use."""
    value = json.loads(content)
    ids = {token["content"]: int(token["id"]) for token in value.get("added_tokens") or []}
    size = 1 + max([*value["model"]["vocab"].values(), *ids.values()])
    bos = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
    eos = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>")
    first = [next((ids[n] for n in names if n in ids), None) for names in (bos, eos)]
    return size, first[0], first[1]
