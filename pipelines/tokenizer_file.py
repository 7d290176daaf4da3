"""The tokenizer that a mixture names: its file, what lies beside it, and its BOS and EOS."""

import hashlib
import json
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from typing import Any, BinaryIO

from pipelines import files
from pipelines.bos_eos import CONFIGS, NOTHING, Beside, Named, find
from pipelines.errors import UserError
from pipelines.listed_tokens import ADDED, check_listed
from pipelines.mixture import TokenizerSpec
from pipelines.published_ranks import RankUse
from pipelines.references import FORMATS, SENTENCEPIECE, kind_of, load_reference
from pipelines.tokenizer_formats import ACCEPTED, OTHER_NAMES, read_vocabulary
from pipelines.vocabulary import Reference

CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenizerFile:
    """The bytes of a tokenizer and what stands around documents.

    Small and picklable: workers get this and load their own engine.
    """

    content: bytes
    kind: str
    """`kind` of its `Format`."""

    bos: bool = False
    """Whether BOS stands before each document."""

    eos: bool = False
    """Whether EOS stands after each document."""

    bos_token: Named = NOTHING
    eos_token: Named = NOTHING
    controls: tuple[str, ...] = ()
    """BOS and EOS, where the vocabulary does not call them special."""

    begins_anywhere: bool = False
    """Text behind any control token begins as a document does, with a space in front."""

    notes: tuple[str, ...] = ()
    """What a person should know of how the tokenizer was found. Changes no id."""

    @cached_property
    def digest(self) -> str:
        """sha256 of the file and of what else its ids depend on."""
        frame = [token.id if put else None for put, token in self._frame]
        policy = json.dumps([self.kind, *frame, sorted(self.controls), self.begins_anywhere])
        return hashlib.sha256(policy.encode() + b"\0" + self.content).hexdigest()

    @property
    def _frame(self) -> tuple[tuple[bool, Named], tuple[bool, Named]]:
        return (self.bos, self.bos_token), (self.eos, self.eos_token)

    @property
    def is_sentencepiece(self) -> bool:
        """Whether it is a SentencePiece model."""
        return self.kind == SENTENCEPIECE

    @property
    def file_name(self) -> str:
        """What a copy of the file is called."""
        return next(f.file_name for f in FORMATS if f.kind == self.kind)

    def describe_frame(self) -> str:
        """BOS and EOS with text, id and who names them, for people."""
        shown = [
            f"{role} {token.text} ({token.id}; {token.origin})" if put else f"no {role}"
            for role, (put, token) in zip(("BOS", "EOS"), self._frame, strict=True)
        ]
        return ", ".join(shown)

    def describe(self) -> dict[str, Any]:
        """What the manifest says of it."""
        frame: dict[str, Any] = {}
        for role, (put, token) in zip(("bos", "eos"), self._frame, strict=True):
            frame[f"{role}_id"] = token.id if put else None
            frame[f"{role}_token"] = token.text if put else None
            frame[f"{role}_from"] = token.origin if put else None
        return {"digest": self.digest, "file": self.file_name, **frame}


def reference(file: TokenizerFile) -> Reference:
    """The library that defines the format of a tokenizer, loaded once per process."""
    return load_reference(file.kind, file.content, file.controls)


def kept_tokenizer(content: bytes, about: dict[str, Any]) -> TokenizerFile:
    """The tokenizer of a finished data set, to decode with.

    Args:
        content: of the copy in its folder.
        about: what the manifest says of it.
    """
    kind = next(f.kind for f in FORMATS if f.file_name == about["file"])
    names = {text for role in ("bos", "eos") if (text := about.get(f"{role}_token"))}
    return TokenizerFile(content, kind, controls=_unmarked(load_reference(kind, content), names))


def fetch_tokenizer(spec: TokenizerSpec) -> TokenizerFile:
    """Read the tokenizer a mixture names, and find its BOS and EOS.

    Raises:
        UserError: it cannot be found, is of no known kind, or BOS or EOS are not to be found.
    """
    place = _Place.of(spec.path)
    beside = place.beside()
    path, content = place.vocabulary(spec.rank_file, beside.get(CONFIG, {}))
    kind = kind_of(content)
    try:
        vocabulary = load_reference(kind, content)
    except Exception as error:  # the libraries raise plain RuntimeError and Exception
        raise UserError(
            f"tokenizer.path: {path} is none of {ACCEPTED}, or damaged: {error}"
        ) from error
    lacks = check_listed(vocabulary, path, beside, same_ids=kind == SENTENCEPIECE)
    bos = find("bos", spec.bos, vocabulary, beside)
    eos = find("eos", spec.eos, vocabulary, beside)
    legacy = beside.get(CONFIG, {}).get("legacy") is True
    file = TokenizerFile(
        content,
        kind,
        spec.bos is not False,
        spec.eos is not False,
        bos,
        eos,
        _unmarked(vocabulary, {token.text for token in (bos, eos) if token.text}),
        vocabulary.begins_anywhere or (kind == SENTENCEPIECE and legacy),
    )
    notes = (*_notes(file, vocabulary, beside), *((lacks,) if lacks else ()))
    return replace(file, notes=notes)


def _unmarked(vocabulary: Reference, names: Collection[str]) -> tuple[str, ...]:
    """Those of BOS and EOS that text would make, and must not; white space stays text."""
    tokens = set(vocabulary.text_tokens)
    return tuple(sorted(name for name in names if name in tokens and not name.isspace()))


def _notes(file: TokenizerFile, vocabulary: Reference, beside: Beside) -> Iterator[str]:
    config = beside.get(CONFIG, {})
    for role, put, token in (
        ("bos", file.bos, file.bos_token),
        ("eos", file.eos, file.eos_token),
    ):
        if not put:
            continue
        if token.guessed:
            yield (
                f"tokenizer.{role}: {token.text} ({token.id}) is guessed from its name, as no file "
                f"beside the vocabulary names one; name it: tokenizer.{role}: TEXT or ID"
            )
        if token.text not in vocabulary.specials and token.text not in file.controls:
            yield (
                f"tokenizer.{role}: {token.text!r} ({token.id}) is ordinary text of the "
                "vocabulary, so documents can hold it too"
            )
    if file.bos and config.get("add_bos_token") is False:
        yield (
            f"tokenizer.bos: the model's own tokenizer puts no BOS before texts ({CONFIG}: "
            "add_bos_token is false); to do as it does: tokenizer.bos: false"
        )


class _Place:
    """A folder of a model, on any filesystem or in a package, and perhaps one file of it."""

    def __init__(self, path: str, folder: str, name: str | None) -> None:
        self._path = path
        self._folder = folder
        self._name = name

    @classmethod
    def of(cls, path: str) -> "_Place":
        """What a mixture's path names: a folder, its tokenizer_config.json, or a file in it."""
        folder, _, name = path.rstrip("/").rpartition("/")
        if name == CONFIG:
            return cls(path, folder or ("/" if path.startswith("/") else "."), None)
        if _is_folder(path):
            return cls(path, path.rstrip("/") or "/", None)
        return cls(path, folder or ("/" if path.startswith("/") else "."), name)

    def vocabulary(
        self, ranks: RankUse | Mapping[str, Any] | None, config: Mapping[str, Any]
    ) -> tuple[str, bytes]:
        """Path of the tokenizer file, and what `read_vocabulary` makes of it.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        names = [f.file_name for f in FORMATS] if self._name is None else [self._name]
        names += OTHER_NAMES if self._name is None else ()
        for name in names:
            path = self._join(name)
            with _opened(path) as file:
                if file is not None:
                    return path, read_vocabulary(file, path, ranks, config)
        raise UserError(
            f"tokenizer.path: cannot read {self._path}: no such file"
            if self._name
            else f"tokenizer.path: {self._path}: no {' or '.join(names)} in this folder; name the "
            "tokenizer file itself"
        )

    def beside(self) -> Beside:
        """The model's JSON files in the folder.

        Raises:
            UserError: one cannot be read, or is no JSON object.
        """
        found: dict[str, Any] = {}
        for name in (*(name for name, _ in CONFIGS), ADDED):
            if (content := self._read(name)) is None:
                continue
            try:
                found[name] = json.loads(content)
            except ValueError as error:
                raise UserError(f"tokenizer.path: {self._join(name)}: no JSON: {error}") from None
            if not isinstance(found[name], dict):
                raise UserError(f"tokenizer.path: {self._join(name)}: no JSON object")
        return found

    def _join(self, name: str) -> str:
        return name if self._folder == "." else files.join(self._folder, name)

    def _read(self, name: str) -> bytes | None:
        with _opened(self._join(name)) as file:
            return file.read() if file else None


@contextmanager
def _opened(path: str) -> Generator[BinaryIO | None]:
    """A file to read; None where there is none.

    Raises:
        UserError: it is there and cannot be read.
    """
    try:
        with files.reachable(path), ExitStack() as stack:
            try:
                file = stack.enter_context(_open(path))
            except (FileNotFoundError, NotADirectoryError):
                file = None
            yield file
    except (OSError, ModuleNotFoundError, ValueError) as error:
        raise UserError(f"tokenizer.path: cannot read {path}: {error}") from error


def _open(path: str) -> Any:
    if path.startswith(_PACKAGE):
        package, _, inner = path.removeprefix(_PACKAGE).partition("/")
        return resources.files(package).joinpath(inner).open("rb")
    return files.open_binary(path)


_PACKAGE = "package://"


def _is_folder(path: str) -> bool:
    try:
        if path.startswith(_PACKAGE):
            package, _, inner = path.removeprefix(_PACKAGE).partition("/")
            return resources.files(package).joinpath(inner).is_dir()
        if path.startswith(("http://", "https://")):
            return path.endswith("/")
        if path.startswith("hf://") and len(path.removeprefix("hf://").strip("/").split("/")) == 2:
            return True
        fs, name = files.filesystem(path)
        with files.reachable(path):
            return bool(fs.isdir(name))
    except (OSError, ModuleNotFoundError, ValueError) as error:
        raise UserError(f"tokenizer.path: cannot read {path}: {error}") from error
