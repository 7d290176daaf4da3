"""The libraries that define tokenizer formats: what every faster engine must agree with.

A reference is the library that defines a format. A further kind of file needs a class with the
methods of `Reference`, and an entry in `FORMATS`; nothing else asks which kind a tokenizer is, but
engines that encode one kind only (`pipelines.tokenizer.FAST_ENGINES`).
"""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from pipelines.sentencepiece_model import (
    CONTROL,
    NO_DUMMY_PREFIX,
    SPACE,
    USER_DEFINED,
    read_model,
    with_controls,
)
from pipelines.tokenizer_json import TokenizersReference
from pipelines.vocabulary import Ids, Offsets, Reference, join


class SentencePieceReference:
    """`sentencepiece` itself, for `.model` files.

    Args:
        content: the bytes of the file.
        controls: pieces that count as special although the model has another type for them.
    """

    begins_anywhere = False
    begins_alike = False

    def __init__(self, content: bytes, controls: Collection[str] = ()) -> None:
        from sentencepiece import SentencePieceProcessor

        model = with_controls(content, controls)
        self.processor: Any = SentencePieceProcessor(model_proto=model)
        self._inside: Any = SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX)
        self._model = model
        self.vocab_size: int = self.processor.vocab_size()
        self.own_bos: int | None = _present(self.processor.bos_id())
        self.own_eos: int | None = _present(self.processor.eos_id())

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        processor = self._inside if inside else self.processor
        return join([np.asarray(processor.encode(t), np.uint32) for t in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text."""
        return cast(str, self.processor.decode(list(map(int, ids))))

    def token_id(self, text: str) -> int | None:
        """The id of a token, whatever its kind."""
        found: int = self.processor.piece_to_id(text)
        return found if self.processor.id_to_piece(found) == text else None

    def spelling(self, token_id: int | None) -> str | None:
        """How the vocabulary spells a token."""
        known = token_id is not None and token_id < self.vocab_size
        return cast(str, self.processor.id_to_piece(token_id)) if known else None

    def special_id(self, token: str) -> int | None:
        """The id of a control token; None for other pieces."""
        return self.processor.piece_to_id(token) if token in self.specials else None

    @property
    def specials(self) -> list[str]:
        """The control tokens, as the vocabulary spells them."""
        return self._specials

    @cached_property
    def _specials(self) -> list[str]:
        ids = range(self.vocab_size)
        return [self.processor.id_to_piece(i) for i in ids if self.processor.is_control(i)]

    @cached_property
    def _pieces(self) -> list[tuple[str, float, int]]:
        return read_model(self._model).pieces

    @property
    def text_tokens(self) -> list[str]:
        """User-defined pieces, as text."""
        return [p.replace(SPACE, " ") for p, _, kind in self._pieces if kind == USER_DEFINED]

    @property
    def longest(self) -> list[str]:
        """Some of the longest pieces, as text."""
        pieces = [piece.replace(SPACE, " ") for piece, _, kind in self._pieces if kind != CONTROL]
        return sorted(pieces, key=lambda piece: (-len(piece), piece))[:40]

    def eats(self, token_id: int) -> tuple[bool, bool]:
        """Control pieces stand beside text and take nothing of it."""
        del token_id
        return False, False

    def ends(self, text: str) -> list[int]:
        """Where each token ends, in characters of the text."""
        return [end for _, end in self.processor.encode_as_offset_mapping(text)["offsets"]]


def _present(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


class Format(NamedTuple):
    """A kind of tokenizer file."""

    kind: str
    file_name: str
    """What such a file is called in a model's folder, and what a copy of it is called."""

    is_this: Callable[[bytes], bool]
    """Whether a file is of this kind, by how it begins."""

    reference: Callable[[bytes, Collection[str]], Reference]
    """The library that defines the kind, from a file and what else is special in it."""


SENTENCEPIECE = "SentencePiece model"
TOKENIZERS = "tokenizer.json"

FORMATS: Sequence[Format] = (
    Format(
        TOKENIZERS, "tokenizer.json", lambda content: content.lstrip()[:1] == b"{",
        TokenizersReference,
    ),
    Format(SENTENCEPIECE, "tokenizer.model", lambda _: True, SentencePieceReference),
)  # fmt: skip
"""In a folder with several, the first is taken: what transformers loads for the model. Of a file,
the first that it may be."""


def kind_of(content: bytes) -> str:
    """Which kind of tokenizer file this is, or would have to be."""
    return next(f.kind for f in FORMATS if f.is_this(content))


@lru_cache(maxsize=3)
def load_reference(kind: str, content: bytes, controls: tuple[str, ...] = ()) -> Reference:
    """The vocabulary of a tokenizer file, loaded once per process.

    Args:
        kind: of the file.
        content: its bytes.
        controls: what is special beside what the file says.

    Raises:
        Exception: it is no such file; the libraries raise plain RuntimeError and Exception.
    """
    return next(f.reference for f in FORMATS if f.kind == kind)(content, controls)


def open_reference(content: bytes) -> Reference:
    """The vocabulary of a tokenizer file of any kind, see `load_reference`."""
    return load_reference(kind_of(content), content)
