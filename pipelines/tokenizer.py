"""Text → token ids, by the fastest engine that is proved to agree with the reference.

The reference is the library that defines the format: `sentencepiece` for `.model` files,
`tokenizers` for `tokenizer.json`. Faster engines are tried in order; each must encode the probe
set to the same ids, or the next one is taken and the build says so. No engine ever turns text
like `</s>` into a control token.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from pipelines import files
from pipelines.errors import UserError
from pipelines.mixture import TokenizerSpec
from pipelines.probe import probe_texts
from pipelines.references import (
    Ids,
    Offsets,
    Reference,
    SentencePieceReference,
    TokenizersReference,
    inside_json,
    join,
    plain_json,
)


class Engine(Protocol):
    """Something that encodes texts."""

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """Ids of all texts in one array, and offsets [n + 1].

        Texts that stand `inside` a document have other text before them: no space is put in
        front of them.
        """
        ...


@dataclass(frozen=True)
class TokenizerFile:
    """The bytes of a tokenizer and which policy stands around documents.

    Small and picklable: workers get this and load their own engine.
    """

    content: bytes
    is_sentencepiece: bool
    bos: bool
    eos: bool

    @cached_property
    def digest(self) -> str:
        """sha256 of the file and the BOS/EOS policy."""
        policy = f"bos={self.bos} eos={self.eos}".encode()
        return hashlib.sha256(policy + b"\0" + self.content).hexdigest()

    @property
    def file_name(self) -> str:
        """What a copy of the file is called."""
        return "tokenizer.model" if self.is_sentencepiece else "tokenizer.json"


def fetch_tokenizer(spec: TokenizerSpec) -> TokenizerFile:
    """Read the tokenizer a mixture names.

    Raises:
        UserError: it cannot be found, or is neither a SentencePiece model nor a tokenizer.json.
    """
    path = spec.path
    try:
        if path.startswith("package://"):
            package, _, name = path.removeprefix("package://").partition("/")
            content = resources.files(package).joinpath(name).read_bytes()
        else:
            with files.reachable(path):
                content = files.read_bytes(_hub_file(path) if path.startswith("hf://") else path)
    except (OSError, ModuleNotFoundError, ValueError) as error:
        raise UserError(f"tokenizer.path: cannot read {path}: {error}") from error
    is_json = content.lstrip()[:1] == b"{"
    file = TokenizerFile(content, not is_json, spec.bos, spec.eos)
    try:
        reference(file)
    except Exception as error:  # both libraries raise plain RuntimeError and Exception
        raise UserError(
            f"tokenizer.path: {path} is neither a SentencePiece model nor a tokenizer.json: {error}"
        ) from error
    return file


def _hub_file(path: str) -> str:
    """`hf://OWNER/REPO` names the model file of that repository; a longer path the file itself."""
    parts = path.removeprefix("hf://").split("/")
    if len(parts) > 2:
        return path
    fs, name = files.filesystem(path)
    for candidate in ("tokenizer.model", "tokenizer.json"):
        if fs.exists(f"{name}/{candidate}"):
            return f"{path}/{candidate}"
    raise UserError(f"tokenizer.path: {path} has neither tokenizer.model nor tokenizer.json")


def reference(file: TokenizerFile) -> Reference:
    """The library that defines the format of a tokenizer."""
    return (SentencePieceReference if file.is_sentencepiece else TokenizersReference)(file.content)


class GigatokenEngine:
    """`gigatoken`, for the beginnings of documents and for what stands inside them."""

    def __init__(self, file: TokenizerFile) -> None:
        text = _gigatoken_json(file)
        self._beginnings = _Gigatoken(text)
        inner = inside_json(text)
        same = json.loads(inner) == json.loads(text)
        self._inside = self._beginnings if same else _Gigatoken(inner)

    def encode(self, texts: Sequence[str], *, inside: bool = False) -> tuple[Ids, Offsets]:
        """See `Engine`."""
        return (self._inside if inside else self._beginnings).encode(texts)


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


def _gigatoken_json(file: TokenizerFile) -> str:
    if not file.is_sentencepiece:
        return plain_json(file.content)
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    return plain_json(cast(Any, sentencepiece_to_tokenizer_json)(file.content))


class _SegmentCache:
    def __init__(self, file: TokenizerFile) -> None:
        if not file.is_sentencepiece:
            raise ValueError("for SentencePiece models only")
        from pipelines.segment_cache import SegmentCacheEngine

        self.encode = SegmentCacheEngine(file.content).encode


REFERENCE = "reference"
FAST_ENGINES: Sequence[tuple[str, Callable[[TokenizerFile], Engine]]] = (
    ("segment cache", _SegmentCache),
    ("gigatoken", GigatokenEngine),
)


@dataclass(frozen=True)
class Tokenizer:
    """A proved engine with the ids that stand around documents."""

    file: TokenizerFile
    reference: Reference
    engine: Engine
    engine_name: str
    refused: tuple[str, ...]
    """Faster engines that were not taken, each with the reason."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.reference.vocab_size

    @property
    def token_type(self) -> str:
        """numpy name of the smallest unsigned type that holds every id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

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
                framed[start] = self.reference.bos_id
            if after:
                framed[end - 1] = self.reference.eos_id
            framed[start + before : end - after] = ids[offsets[i] : offsets[i + 1]]
        return framed, framed_offsets


def load_tokenizer(file: TokenizerFile, *, proved: str | None = None) -> Tokenizer:
    """Take the fastest engine that encodes the probe set as the reference does.

    Args:
        file: the tokenizer.
        proved: the engine that the command which started the build has proved; workers take it
            without a proof of their own, which would cost each of them a second.

    Raises:
        UserError: the mixture wants BOS or EOS and the vocabulary has none.
    """
    truth = reference(file)
    wanted = ((file.bos, truth.bos_id, "bos"), (file.eos, truth.eos_id, "eos"))
    for asked, token_id, name in wanted:
        if asked and token_id is None:
            raise UserError(f"tokenizer.{name}: this vocabulary has no such token; set it to false")
    chosen, refused = (proved, ()) if proved else _prove(file)
    engine = truth if chosen == REFERENCE else dict(FAST_ENGINES)[chosen](file)
    return Tokenizer(file, truth, engine, chosen, refused)


@lru_cache(maxsize=4)
def _prove(file: TokenizerFile) -> tuple[str, tuple[str, ...]]:
    """The fastest engine that agrees with the reference, and what is wrong with faster ones.

    A pure function of the tokenizer and the installed packages, so once a process is enough.
    """
    truth = reference(file)
    expected: list[tuple[Ids, Offsets]] = []
    refused: list[str] = []
    for name, make in FAST_ENGINES:
        try:
            engine = make(file)
        except Exception as error:  # an engine that cannot load a model says so in its own way
            refused.append(f"{name}: cannot load this tokenizer ({error})")
            continue
        expected = expected or [truth.encode(probe_texts(), inside=i) for i in (False, True)]
        if (difference := _difference(engine, expected)) is None:
            return name, tuple(refused)
        refused.append(f"{name}: {difference}")
    return REFERENCE, tuple(refused)


def _difference(engine: Engine, expected: Sequence[tuple[Ids, Offsets]]) -> str | None:
    texts = probe_texts()
    for inside, (want_ids, want_offsets) in enumerate(expected):
        try:
            ids, offsets = engine.encode(texts, inside=bool(inside))
        except Exception as error:
            return f"fails on the probe set ({error})"
        for i, text in enumerate(texts):
            got = ids[offsets[i] : offsets[i + 1]]
            if not np.array_equal(got, want_ids[want_offsets[i] : want_offsets[i + 1]]):
                return f"differs from the reference on probe {i} ({text[:40]!r})"
    return None
