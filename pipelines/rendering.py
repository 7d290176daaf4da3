"""What a template makes of a record: text, the answers in it, control tokens in between."""

import random
import unicodedata
from typing import NamedTuple

import xxhash

Span = tuple[int, int]
"""Characters [start, end) of a text."""

BOS, EOS = "bos", "eos"


class BadRecordError(Exception):
    """A record that cannot become a document; it is dropped with this reason."""

    def __init__(self, reason: str, evidence: str = "") -> None:
        super().__init__(reason, evidence)
        self.reason = reason
        self.evidence = evidence[:200].encode(errors="replace").decode()


class Control(NamedTuple):
    """A control token inside a text. It takes no characters: no text can make one."""

    position: int
    """Characters of the text before it."""

    token: str
    """`bos`, `eos`, or a special token as the vocabulary spells it."""

    loss: bool
    """Whether the model has to produce it."""


class Rendered(NamedTuple):
    """A document as the model sees it."""

    text: str
    answers: tuple[Span, ...] = ()
    """What the model has to produce: ascending, not empty. Tokens never reach across their ends,
    nor across control tokens or the ends of `shrink`."""

    controls: tuple[Control, ...] = ()
    """By position."""

    framed: bool = False
    """The controls hold every BOS and EOS; otherwise they are put around as the mixture says."""

    shrink: Span | None = None
    """What may lose its end so that the document fits into a sequence."""

    inside: bool = False
    """It stands behind other text, so no space is put in front of it."""

    divisions: tuple[Span, ...] = ()
    """What it consists of, where each of these makes sense alone: ascending, white space between
    them at most. Empty where it is worth something as a whole only."""

    def check_answer(self) -> None:
        """See that the model has to produce something that can be seen.

        An end-of-sequence token alone is no answer: it would teach to stop at once.

        Raises:
            BadRecordError: no_answer.
        """
        answers = [self.text[start:end] for start, end in self.answers]
        if all(map(is_blank, answers)):
            raise BadRecordError("no_answer", repr(answers[0]) if answers else "nothing to produce")

    def cut(self, start: int, end: int) -> "Rendered":
        """The characters [start, end) with what lies in them."""
        spans = [_clip(span, start, end) for span in self.answers]
        inside = [c for c in self.controls if start <= c.position <= end]
        shrink = _clip(self.shrink, start, end) if self.shrink else (0, 0)
        return Rendered(
            self.text[start:end],
            tuple((a, b) for a, b in spans if a < b),
            tuple(c._replace(position=c.position - start) for c in inside),
            self.framed,
            shrink if shrink[0] < shrink[1] else None,
            self.inside or start > 0,
        )


def is_blank(text: str) -> bool:
    """Whether a text has nothing that can be seen: white space, and invisible characters such as a
    byte order mark or a zero-width space.
    """
    return all(c.isspace() or c in _BLANKS or unicodedata.category(c) in ("Cc", "Cf") for c in text)


_BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe0e\ufe0f\uffa0"
"""Fillers, joiners and selectors that Unicode counts among letters, marks and symbols."""


def _clip(span: Span, start: int, end: int) -> Span:
    return max(span[0], start) - start, min(span[1], end) - start


class Writer:
    """Collects the parts of a document in their order."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._answers: list[Span] = []
        self._controls: list[Control] = []
        self._shrink: Span | None = None
        self._divisions: list[Span] = []

    @property
    def length(self) -> int:
        """Characters so far."""
        return self._length

    def put(self, text: str) -> Span:
        """Add text that is given to the model; returns where it stands."""
        start = self._length
        self._parts.append(text)
        self._length += len(text)
        return start, self._length

    def answer(self, text: str) -> None:
        """Add text that the model has to produce."""
        span = self.put(text)
        if text:
            self._answers.append(span)

    def shrinkable(self, text: str) -> None:
        """Add text that may lose its end; once at most."""
        self._shrink = self.put(text)

    def control(self, token: str, *, loss: bool = False) -> None:
        """Add a control token."""
        self._controls.append(Control(self._length, token, loss))

    def division(self, start: int) -> None:
        """What was added from the character `start` on makes sense alone."""
        self._divisions.append((start, self._length))

    def rendered(self, *, framed: bool = False) -> Rendered:
        """All of it."""
        text = "".join(self._parts)
        return Rendered(
            text, tuple(self._answers), tuple(self._controls), framed, self._shrink,
            divisions=tuple(self._divisions),
        )  # fmt: skip


def keyed_random(seed: int, purpose: str, key: str | bytes) -> random.Random:
    """The random choices for one record: they depend on nothing but these arguments.

    Args:
        seed: the mixture's.
        purpose: what they are for, so that different uses are independent.
        key: what identifies the record, its text or id.
    """
    content = key.encode(errors="surrogatepass") if isinstance(key, str) else key
    salt = f"{seed}\0{purpose}\0".encode()
    return random.Random(xxhash.xxh3_128_intdigest(salt + content))
