"""A block of raw records → documents as tokens, and a record of each one dropped.

This is the work of the prepare stage: parse, drop, keep benchmarks out, render, tokenize.
No Beam, no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from pipelines.abstracts import AbstractIndex
from pipelines.decontaminate import BlockDecontaminator, Decontaminated, DecontamSpec, Text
from pipelines.filters import drop_reason, in_sample
from pipelines.mixture import Filters, digest
from pipelines.readers import Block
from pipelines.records import Document, Dropped, InputFile
from pipelines.schemas import FILE, Schema, document_parser
from pipelines.sketch import Sketcher, SketchSpec
from pipelines.task_files import task_name
from pipelines.templates.plain import append_abstract
from pipelines.tokenizer import Offsets, Tokenizer, TokenizerFile

if TYPE_CHECKING:
    from decontam.sketches import Sketches


@dataclass(frozen=True)
class PrepareSpec:
    """Everything, beside the input, that the tokens of a document depend on."""

    schema: Schema
    completion_only: bool
    filters: Filters
    sample: float
    max_record: int
    tokenizer: TokenizerFile
    abstracts: str | None
    """Path of the abstract index; its name is a digest of its content's origin."""

    code: str
    """Digest of the modules that do the work."""

    decontam: DecontamSpec | None = None
    sketch: SketchSpec | None = None
    """How near duplicates are told; None where nobody looks for them."""

    @cached_property
    def digest(self) -> str:
        """Names the folder of the token store."""
        abstracts = self.abstracts.rsplit("/", 1)[-1] if self.abstracts else None
        return digest(
            self.schema, self.completion_only, self.filters, self.sample, self.max_record,
            self.tokenizer.digest, abstracts, self.code,
            self.decontam.digest if self.decontam else None,
            *([self.sketch.digest] if self.sketch else []),
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What a folder of the token store says of itself."""
        return {
            "schema": asdict(self.schema),
            "loss": "completion" if self.completion_only else "all",
            "filters": self.filters.model_dump(),
            "sample": self.sample,
            "max_record_bytes": self.max_record,
            "tokenizer_digest": self.tokenizer.digest,
            "abstracts": self.abstracts,
            "program": self.code,
            "decontam": self.decontam.describe() if self.decontam else None,
            "sketch": self.sketch.describe() if self.sketch else None,
        }


@dataclass(frozen=True, slots=True)
class Prepared:
    """The documents of one block, as arrays [N], and what did not become one."""

    documents: list[Document]
    uids: list[bytes]
    """16 bytes each: xxh3-128 of the text as the file gives it, so equal texts have equal ids."""

    n_bytes: npt.NDArray[np.int64]
    tokens: npt.NDArray[Any]
    """All tokens of all documents, one after the other."""

    offsets: Offsets
    """[N + 1] where each document begins in `tokens`."""

    prompt_tokens: npt.NDArray[np.int32]
    """Tokens at the beginning of each document that carry no loss."""

    dropped: list[Dropped]
    n_read: int
    n_not_sampled: int
    n_split_off: int
    """Pieces of documents beyond the first piece of each."""

    overlaps: list[dict[str, Any]] | None
    """Overlaps with benchmarks, rows of `decontaminate.BATCH_SCHEMA`; None where nothing was
    compared."""

    decontam: Mapping[str, int]
    """Sums of `decontaminate.count_document`; empty where nothing was compared."""

    sketches: "Sketches | None" = None
    """Of the documents; None where nobody looks for near duplicates."""


@dataclass(frozen=True, slots=True)
class Read:
    """The documents of a block, and what did not become one."""

    texts: list[Text]
    dropped: list[Dropped]
    n_not_sampled: int


class DocumentReader:
    """Raw records → the documents of one source that are long enough."""

    def __init__(self, spec: PrepareSpec) -> None:
        self._spec = spec
        self._parse = document_parser(spec.schema, completion_only=spec.completion_only)
        self._abstracts = AbstractIndex(spec.abstracts) if spec.abstracts else None

    def read(self, block: Block, inputs: Sequence[InputFile]) -> Read:
        """Parse, sample and filter the records of a block, in their order.

        `inputs` are the files that the records name by number.
        """
        dropped = list(block.dropped)
        texts: list[Text] = []
        not_sampled = 0
        for record in block.records:
            parsed = self._parse(record)
            if isinstance(parsed, Dropped):
                dropped.append(parsed)
                continue
            if not parsed.group and FILE in self._spec.schema.group:
                parsed = parsed._replace(group=task_name(inputs[parsed.file].name))
            checked = self._check(parsed)
            if isinstance(checked, Dropped):
                dropped.append(checked)
            elif checked is None:
                not_sampled += 1
            else:
                texts.append(checked)
        return Read(texts, dropped, not_sampled)

    def _check(self, document: Document) -> Text | Dropped | None:
        """The document with its id, a Dropped, or None where it is not sampled."""
        try:
            utf8 = document.text.encode()
        except UnicodeEncodeError as error:
            return document.dropped("lone_surrogate", str(error)[:200])
        uid = xxhash.xxh3_128_digest(utf8)
        if self._spec.sample < 1 and not in_sample(uid, self._spec.sample):
            return None
        if self._abstracts:
            document = append_abstract(document, self._abstracts.get(document.origin))
            utf8 = document.text.encode()
        return _long_enough(Text(document, utf8, uid), self._spec.filters)


def _long_enough(text: Text, filters: Filters) -> Text | Dropped:
    if text.piece and not any(map(str.isalnum, text.document.text)):
        return text.dropped("empty_text", "no letter or digit")
    if reason := drop_reason(text.document.text, len(text.utf8), filters):
        return text.dropped(*reason)
    return text


class Preparer:
    """Does the work for one source, block by block."""

    def __init__(self, spec: PrepareSpec, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._reader = DocumentReader(spec)
        self._decontaminator = BlockDecontaminator(spec.decontam) if spec.decontam else None
        self._sketcher = Sketcher(spec.sketch) if spec.sketch else None

    def prepare(self, block: Block, inputs: Sequence[InputFile]) -> Prepared:
        """Parse, filter, decontaminate and tokenize the records of a block, in their order.

        `inputs` are the files that the records name by number.
        """
        read = self._reader.read(block, inputs)
        clean = self._decontaminate(read.texts, read.dropped)
        return self._tokenize(
            clean.kept if clean else read.texts,
            read.dropped,
            n_read=len(block.records) + len(block.dropped),
            n_not_sampled=read.n_not_sampled,
            n_split_off=clean.n_split_off if clean else 0,
            overlaps=clean.overlaps if clean else None,
            decontam=clean.counts if clean else {},
        )

    def _decontaminate(
        self, texts: Sequence[Text], dropped: list[Dropped]
    ) -> Decontaminated | None:
        """What is left of the documents; the others, and pieces too short, go to `dropped`."""
        if self._decontaminator is None:
            return None
        clean = self._decontaminator.clean(texts)
        dropped += clean.dropped
        kept: list[Text] = []
        for text in clean.kept:
            checked = _long_enough(text, self._spec.filters) if text.piece else text
            if isinstance(checked, Dropped):
                dropped.append(checked)
            else:
                kept.append(checked)
        return replace(clean, kept=kept)

    def _tokenize(self, texts: Sequence[Text], dropped: list[Dropped], **account: Any) -> Prepared:
        tokens, offsets = self._tokenizer.encode([text.document.text for text in texts])
        lengths = np.diff(offsets)
        frame = int(self._spec.tokenizer.bos) + int(self._spec.tokenizer.eos)
        long = lengths - frame >= max(self._spec.filters.min_tokens, 1)
        for text, n, keep in zip(texts, lengths, long, strict=True):
            if not keep:
                dropped.append(text.dropped("too_few_tokens", f"{n - frame} tokens"))
        if not long.all():
            tokens = tokens[np.repeat(long, lengths)]
            texts = [text for text, keep in zip(texts, long, strict=True) if keep]
            offsets = np.concatenate([[0], np.cumsum(lengths[long])]).astype(np.int64)
        documents = [text.document for text in texts]
        return Prepared(
            documents=documents,
            uids=[text.uid for text in texts],
            n_bytes=np.array([len(text.utf8) for text in texts], np.int64),
            tokens=tokens,
            offsets=offsets,
            prompt_tokens=self._prompt_tokens(documents),
            dropped=sorted(dropped, key=lambda d: (d.file, d.line, d.offset)),
            sketches=self._sketcher.sketch([t.utf8 for t in texts]) if self._sketcher else None,
            **account,
        )

    def _prompt_tokens(self, documents: Sequence[Document]) -> npt.NDArray[np.int32]:
        """Tokens that end within the prompt; one that straddles its end counts as completion."""
        counts = np.zeros(len(documents), np.int32)
        for i, document in enumerate(documents):
            if document.prompt_chars:
                ends = self._tokenizer.reference.ends(document.text)
                within = sum(end <= document.prompt_chars for end in ends)
                counts[i] = within + int(self._spec.tokenizer.bos)
        return counts
