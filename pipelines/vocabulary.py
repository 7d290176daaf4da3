"""What a vocabulary is to everything else, whichever library reads it."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]


class Reference(Protocol):
    """A vocabulary, as the library that defines its format reads it.

    Special tokens (controls) are never made by text. Which they are, the file says; BOS and EOS
    belong to them in any case, so the constructor takes their names beside the file's content.
    """

    vocab_size: int
    """Number of ids; every id is below it."""

    own_bos: int | None
    """What the file itself puts or names as begin of sequence."""

    own_eos: int | None

    begins_anywhere: bool
    """Whether the library puts the space of a beginning behind every special token in a text."""

    begins_alike: bool
    """Whether text that stands inside a document is encoded as text that begins one."""

    @property
    def specials(self) -> list[str]:
        """The special tokens, as the vocabulary spells them."""
        ...

    @property
    def text_tokens(self) -> list[str]:
        """Tokens that text makes as a whole before pieces are looked for, as text."""
        ...

    @property
    def longest(self) -> list[str]:
        """Some of the longest tokens, as text."""
        ...

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text."""
        ...

    def token_id(self, text: str) -> int | None:
        """The id of a token, whatever its kind."""
        ...

    def spelling(self, token_id: int | None) -> str | None:
        """How the vocabulary spells a token."""
        ...

    def special_id(self, token: str) -> int | None:
        """The id of a special token; None for text that is none."""
        ...

    def eats(self, token_id: int) -> tuple[bool, bool]:
        """Whether a control token takes the white space before it, and behind it, along."""
        ...

    def ends(self, text: str) -> list[int]:
        """Where each token ends, in characters of the text."""
        ...


def join(encoded: Sequence[Ids]) -> tuple[Ids, Offsets]:
    """Ids of several texts as one array, and offsets [n + 1]."""
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
    return (np.concatenate(encoded) if encoded else np.zeros(0, np.uint32)), offsets


class EncodingError(ValueError):
    """A library failed on a text."""


@contextmanager
def failures_of(library: str) -> Generator[None]:
    """Make an exception of a library's panic, which Python does not count among the exceptions.

    Raises:
        EncodingError: the library failed.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise EncodingError(f"{library}: {error}") from None
