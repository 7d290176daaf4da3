"""Text → token ids, by the fastest engine that is proved to agree with the reference.

The reference is the library that defines the format: `sentencepiece` for `.model` files,
`tokenizers` for `tokenizer.json`. Faster engines are tried in order; each must encode the probe
set to the same ids, or the next one is taken and the build says so. No engine ever turns text
like `</s>` into a control token.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from pipelines.probe import peculiar_texts, probe_texts
from pipelines.references import SENTENCEPIECE, TOKENIZERS
from pipelines.rendering import BOS, EOS
from pipelines.sentencepiece_model import with_controls
from pipelines.tokenizer_file import TokenizerFile, reference
from pipelines.tokenizer_json import TokenizersReference, inside_value, text_only
from pipelines.vocabulary import EncodingError, Ids, Offsets, Reference, failures_of, join


class Engine(Protocol):
    """Something that encodes texts."""

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """Ids of all texts in one array, and offsets [n + 1].

        Texts that stand `inside` a document have other text before them: no space is put in
        front of them.
        """
        ...


_NEW = re.compile(
    "[\u088f\u0c5c\u0cdc\u1acf-\u1aeb\u20c1\u2b96\ua7ce-\ua7d4\ua7f1\ufbc3-\ufbd2\ufd90\ufd91"
    "\ufdc8-\ufdce\U00010000-\U0001d3ff\U0001d800-\U0001efff\U0001f6d8\U0001f777-\U0001f77a"
    "\U0001f8d0-\U0001f8d8\U0001fa54-\U0001fa57\U0001fa8a\U0001fa8e\U0001fac8\U0001facd\U0001faea"
    "\U0001faef\U0001fbfa\U0002a6e0-\U0010ffff]"
)
"""Characters of Unicode 17, and blocks beyond U+FFFF that still get characters. What a pattern or a
normalizer makes of a text depends on what a character is, and libraries know different versions."""

_SUSPECT = np.array([0xD800 <= c < 0xE000 or bool(_NEW.match(chr(c))) for c in range(1 << 16)])
"""Of each unit of UTF-16, whether it may belong to one of them; far quicker to look up."""


def _has_new(text: str) -> bool:
    if text.isascii():
        return False
    units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16)
    return bool(_SUSPECT[units].any()) and _NEW.search(text) is not None


class GigatokenEngine:
    """`gigatoken`, for the beginnings of documents and for what stands inside them.

    Texts with characters that it may know less of than the library go to the library.
    """

    def __init__(self, file: TokenizerFile, *, added: bool = True) -> None:
        value = _gigatoken_value(file)
        value = value if added else value | {"added_tokens": []}
        inner = inside_value(value)
        self._beginnings = _Gigatoken(json.dumps(value))
        self._inside = self._beginnings if inner == value else _Gigatoken(json.dumps(inner))
        self._reference = reference(file)

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        fast = self._inside if inside else self._beginnings
        new = {i for i, text in enumerate(texts) if _has_new(text)}
        if not new:
            return fast.encode(texts)
        found: list[Ids] = [np.zeros(0, np.uint32)] * len(texts)
        others = [i for i in range(len(texts)) if i not in new]
        for chosen, encode in ((others, fast.encode), (sorted(new), self._slow(inside))):
            ids, offsets = encode([texts[i] for i in chosen])
            for number, i in enumerate(chosen):
                found[i] = ids[offsets[number] : offsets[number + 1]]
        return join(found)

    def _slow(self, inside: bool) -> Callable[[Sequence[str]], tuple[Ids, Offsets]]:
        return lambda texts: self._reference.encode(texts, inside=inside)


class _Gigatoken:
    """Renewed now and then because its cache has no bound of its own."""

    RENEW_BYTES = 512 << 20

    def __init__(self, text: str) -> None:
        self._json = text
        self._renew()

    def _renew(self) -> None:
        from gigatoken import Tokenizer

        self._tokenizer: Any = Tokenizer.from_json(self._json)
        self._seen = 0

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        if not texts:
            return join([])
        size = sum(map(len, texts))
        if self._seen and self._seen + size > self.RENEW_BYTES:
            self._renew()
        self._seen += size
        layout = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        ids = np.asarray(layout.content.data, np.uint32)[offsets[0] : offsets[-1]]
        return ids, offsets - offsets[0]


def _gigatoken_value(file: TokenizerFile) -> dict[str, Any]:
    if not file.is_sentencepiece:
        return text_only(json.loads(file.content), file.controls)
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    made = cast(Any, sentencepiece_to_tokenizer_json)(with_controls(file.content, file.controls))
    return text_only(json.loads(made), ())


class BetweenAddedTokens:
    """`gigatoken` for what lies between added tokens, which the library finds.

    For vocabularies that put a space behind each added token too, as Phi-3's does, or that match
    them as words alone.
    """

    def __init__(self, file: TokenizerFile) -> None:
        vocabulary = reference(file)
        if not isinstance(vocabulary, TokenizersReference) or not vocabulary.texts_apart:
            raise ValueError("the normalizer reads across its added tokens")
        self._vocabulary = vocabulary
        tokens = sorted(vocabulary.text_tokens, key=len)
        # A text that holds none of these holds no longer one either.
        self._tokens = [t for i, t in enumerate(tokens) if not any(x in t for x in tokens[:i])]
        self._between = GigatokenEngine(file, added=False)

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        divided = [self._divide(text) for text in texts]
        behind = self._vocabulary.begins_anywhere
        flat = [
            (part, behind if number else not inside)
            for sections in divided
            for number, part in enumerate(sections)
        ]
        found = [np.full(1, part if isinstance(part, int) else 0, np.uint32) for part, _ in flat]
        for begins in (True, False):
            chosen = {
                i: part for i, (part, b) in enumerate(flat) if isinstance(part, str) and b == begins
            }
            ids, offsets = self._between.encode([*chosen.values()], inside=not begins)
            for number, i in enumerate(chosen):
                found[i] = ids[offsets[number] : offsets[number + 1]]
        ids, offsets = join(found)
        return ids, offsets[np.cumsum([0, *map(len, divided)])]

    def _divide(self, text: str) -> list[str | int]:
        held = any(token in text for token in self._tokens)
        return self._vocabulary.sections(text) if held else [text]


class _SegmentCache:
    def __init__(self, file: TokenizerFile) -> None:
        from pipelines.segment_cache import SegmentCacheEngine

        self.encode = SegmentCacheEngine(with_controls(file.content, file.controls)).encode


REFERENCE = "reference"
FAST_ENGINES: Sequence[tuple[str, Callable[[TokenizerFile], Engine], tuple[str, ...]]] = (
    ("segment cache", _SegmentCache, (SENTENCEPIECE,)),
    ("gigatoken", GigatokenEngine, (SENTENCEPIECE, TOKENIZERS)),
    ("gigatoken between added tokens", BetweenAddedTokens, (TOKENIZERS,)),
)
"""Engines, fastest first, and the kinds of tokenizer files that they are for."""


@dataclass(frozen=True)
class Tokenizer:
    """A proved engine with the ids that stand around documents."""

    file: TokenizerFile
    reference: Reference
    engine: Engine
    engine_name: str
    refused: tuple[str, ...]
    """Faster engines that were not taken, each with the reason."""

    def describe(self) -> str:
        """Ids, BOS, EOS and engine, for people."""
        frame = self.file.describe_frame()
        return f"{self.vocab_size:,} ids, engine: {self.engine_name}; {frame}"

    @property
    def slow(self) -> tuple[str, ...]:
        """What a person should know of the engine's speed, and can do about it."""
        if not self.refused or (self.engine_name != REFERENCE and not self.file.is_sentencepiece):
            return ()
        why = "; ".join(self.refused)
        if self.engine_name != REFERENCE:
            return (f"tokenizer: {self.engine_name} encodes, which is not the fastest ({why})",)
        return (
            "tokenizer: no fast engine gives the ids of this vocabulary's own library, so the "
            f"library encodes, ten times slower or more ({why}); more --workers help, and "
            "docs/mixture.md says which vocabularies have a fast engine",
        )

    @property
    def bos_id(self) -> int | None:
        """BOS, whether or not documents get it."""
        return self.file.bos_token.id

    @property
    def eos_id(self) -> int | None:
        """EOS, whether or not documents get it."""
        return self.file.eos_token.id

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.reference.vocab_size

    @property
    def token_type(self) -> str:
        """numpy name of the smallest unsigned type that holds every id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    def _control_id(self, token: str) -> int | None:
        frame = {BOS: self.bos_id, EOS: self.eos_id}
        return frame[token] if token in frame else self.reference.special_id(token)

    def control_ids(self, token: str) -> list[int]:
        """The id of a control token (see `Control`); none of a BOS or EOS that is not wanted.

        Raises:
            ValueError: the vocabulary has no such token.
        """
        token_id = self._control_id(token)
        if token in (BOS, EOS):
            wanted = self.file.bos if token == BOS else self.file.eos
            return [token_id] if wanted and token_id is not None else []
        if token_id is None:
            raise ValueError(f"the vocabulary has no special token {token!r}")
        return [token_id]

    def begins_behind(self, token: str) -> bool:
        """Whether text behind a control token is encoded as text that begins.

        Behind BOS it always is, however a template spells it: models were trained on texts with
        BOS before them. Behind other control tokens it is where the model's library does so.
        """
        is_bos = token == BOS or self._control_id(token) == self.bos_id
        return is_bos or self.file.begins_anywhere

    def eats(self, token: str) -> tuple[bool, bool]:
        """See `Reference`."""
        token_id = self._control_id(token)
        return (False, False) if token_id is None else self.reference.eats(token_id)

    def encode_bare(
        self, texts: Sequence[str], *, inside: bool = False
    ) -> tuple[npt.NDArray[Any], Offsets]:
        """Ids of all texts without BOS and EOS, see `Engine`.

        Raises:
            ValueError: an id does not fit the vocabulary (a broken engine).
        """
        ids, offsets = self.engine.encode(texts, inside=inside)
        if len(ids) and int(ids.max()) >= self.vocab_size:
            raise ValueError(f"engine {self.engine_name} gave id {ids.max()} >= {self.vocab_size}")
        return ids.astype(self.token_type), offsets

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], Offsets]:
        """Ids of all texts with BOS and EOS as the policy says, and offsets [n + 1].

        Raises:
            ValueError: see `encode_bare`.
        """
        ids, offsets = self.encode_bare(texts)
        before, after = int(self.file.bos), int(self.file.eos)
        framed_offsets = offsets + (before + after) * np.arange(len(offsets))
        framed = np.empty(int(framed_offsets[-1]), self.token_type)
        bounds = zip(framed_offsets[:-1].tolist(), framed_offsets[1:].tolist(), strict=True)
        for i, (start, end) in enumerate(bounds):
            if before:
                framed[start] = self.bos_id
            if after:
                framed[end - 1] = self.eos_id
            framed[start + before : end - after] = ids[offsets[i] : offsets[i + 1]]
        return framed, framed_offsets


def load_tokenizer(file: TokenizerFile, *, proved: str | None = None) -> Tokenizer:
    """Take the fastest engine that encodes the probe set as the reference does.

    Args:
        file: the tokenizer.
        proved: the engine that the command which started the build has proved; workers take it
            without a proof of their own, which would cost each of them a second.
    """
    truth = reference(file)
    if proved is None:
        return Tokenizer(file, truth, *_prove(file))
    engine = truth if proved == REFERENCE else _make(proved, file)
    return Tokenizer(file, truth, engine, proved, ())


def _make(name: str, file: TokenizerFile) -> Engine:
    return next(make for known, make, _ in FAST_ENGINES if known == name)(file)


@lru_cache(maxsize=4)
def _prove(file: TokenizerFile) -> tuple[Engine, str, tuple[str, ...]]:
    """The fastest engine that agrees with the reference, its name, and what is wrong with others.

    A pure function of the tokenizer and the installed packages, so once a process is enough.
    """
    truth = reference(file)
    texts = (*probe_texts(), *peculiar_texts(truth))
    ways = (False,) if truth.begins_alike else (False, True)
    expected: list[tuple[Ids, Offsets]] = []
    refused: list[str] = []
    for name, make, kinds in FAST_ENGINES:
        if file.kind not in kinds:
            continue
        try:
            engine = make(file)
        except Exception as error:  # an engine that cannot load a model says so in its own way
            why = str(error).partition("\n")[0]  # the rest are places in the engine's source
            refused.append(f"{name}: cannot load this tokenizer ({why})")
            continue
        try:
            expected = expected or [truth.encode(texts, inside=i) for i in ways]
        except EncodingError as error:
            refused.append(f"{name}: cannot be proved, as the library fails ({error})")
            continue
        if (difference := _difference(engine, texts, expected)) is None:
            return engine, name, tuple(refused)
        refused.append(f"{name}: {difference}")
    return truth, REFERENCE, tuple(refused)


def _difference(
    engine: Engine, texts: Sequence[str], expected: Sequence[tuple[Ids, Offsets]]
) -> str | None:
    for inside, (want_ids, want_offsets) in enumerate(expected):
        try:
            with failures_of("the engine"):
                ids, offsets = engine.encode(texts, inside=bool(inside))
        except Exception as error:
            return f"fails on the probe set ({error})"
        for i, text in enumerate(texts):
            got = ids[offsets[i] : offsets[i + 1]]
            if not np.array_equal(got, want_ids[want_offsets[i] : want_offsets[i + 1]]):
                return f"differs from the reference on probe {i} ({text[:40]!r})"
    return None
