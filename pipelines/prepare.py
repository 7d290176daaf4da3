"""A block of raw records → documents as tokens, and a record of each one dropped.

This is the work of the prepare stage: parse, drop, render, tokenize. No Beam, no files.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pipelines.abstracts import AbstractIndex
from pipelines.filters import drop_reason, in_sample
from pipelines.mixture import Filters, digest
from pipelines.readers import Block
from pipelines.records import Document, Dropped
from pipelines.schemas import Schema, document_parser
from pipelines.templates.plain import append_abstract
from pipelines.tokenizer import Offsets, Tokenizer, TokenizerFile


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

    @cached_property
    def digest(self) -> str:
        """Names the folder of the token store."""
        abstracts = self.abstracts.rsplit("/", 1)[-1] if self.abstracts else None
        return digest(
            self.schema, self.completion_only, self.filters, self.sample, self.max_record,
            self.tokenizer.digest, abstracts, self.code,
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


class Preparer:
    """Does the work for one source, block by block."""

    def __init__(self, spec: PrepareSpec, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._parse = document_parser(spec.schema, completion_only=spec.completion_only)
        self._abstracts = AbstractIndex(spec.abstracts) if spec.abstracts else None

    def prepare(self, block: Block) -> Prepared:
        """Parse, filter and tokenize the records of a block, in their order."""
        dropped = list(block.dropped)
        kept: list[tuple[Document, bytes, int]] = []
        not_sampled = 0
        for record in block.records:
            parsed = self._parse(record)
            if isinstance(parsed, Dropped):
                dropped.append(parsed)
                continue
            checked = self._check(parsed)
            if isinstance(checked, Dropped):
                dropped.append(checked)
            elif checked is None:
                not_sampled += 1
            else:
                kept.append(checked)
        n_read = len(block.records) + len(block.dropped)
        return self._tokenize(kept, dropped, n_read, not_sampled)

    def _check(self, document: Document) -> tuple[Document, bytes, int] | Dropped | None:
        """The document with its id and size, a Dropped, or None where it is not sampled."""
        try:
            utf8 = document.text.encode()
        except UnicodeEncodeError as error:
            return Dropped("lone_surrogate", str(error)[:200], *document[3:])
        uid = xxhash.xxh3_128_digest(utf8)
        if self._spec.sample < 1 and not in_sample(uid, self._spec.sample):
            return None
        if self._abstracts:
            document = append_abstract(document, self._abstracts.get(document.origin))
            utf8 = document.text.encode()
        n_bytes = len(utf8)
        if reason := drop_reason(document.text, n_bytes, self._spec.filters):
            return Dropped(*reason, *document[3:], uid)
        return document, uid, n_bytes

    def _tokenize(
        self,
        kept: list[tuple[Document, bytes, int]],
        dropped: list[Dropped],
        n_read: int,
        not_sampled: int,
    ) -> Prepared:
        tokens, offsets = self._tokenizer.encode([document.text for document, _, _ in kept])
        lengths = np.diff(offsets)
        frame = int(self._spec.tokenizer.bos) + int(self._spec.tokenizer.eos)
        long = lengths - frame >= max(self._spec.filters.min_tokens, 1)
        for (document, uid, _), n, keep in zip(kept, lengths, long, strict=True):
            if not keep:
                evidence = f"{n - frame} tokens"
                dropped.append(Dropped("too_few_tokens", evidence, *document[3:], uid))
        if not long.all():
            tokens = tokens[np.repeat(long, lengths)]
            kept = [k for k, keep in zip(kept, long, strict=True) if keep]
            offsets = np.concatenate([[0], np.cumsum(lengths[long])]).astype(np.int64)
        documents = [document for document, _, _ in kept]
        return Prepared(
            documents=documents,
            uids=[uid for _, uid, _ in kept],
            n_bytes=np.array([n for _, _, n in kept], np.int64),
            tokens=tokens,
            offsets=offsets,
            prompt_tokens=self._prompt_tokens(documents),
            dropped=sorted(dropped, key=lambda d: (d.file, d.line, d.offset)),
            n_read=n_read,
            n_not_sampled=not_sampled,
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
