"""A block of raw records → documents as tokens, and a record of each one dropped.

This is the work of the prepare stage: parse, drop, keep benchmarks out, render, tokenize.
No Beam, no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.decontaminate import BlockDecontaminator, Decontaminated, Text
from pipelines.documents import DocumentReader, long_enough
from pipelines.encode import Encoded, encode_documents, has_parts
from pipelines.prepare_spec import PrepareSpec
from pipelines.readers import Block
from pipelines.records import DEFINITION, Document, Dropped, InputFile
from pipelines.rendering import BadRecordError, Rendered
from pipelines.sketch import Sketcher
from pipelines.tokenizer import Tokenizer
from pipelines.vocabulary import EncodingError, Offsets, join
from pipelines.windows import longest_runs, parts_of_text

if TYPE_CHECKING:
    from decontam.sketches import Sketches


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

    no_loss: list[tuple[tuple[int, int], ...]]
    """Tokens [start, end) of each document that carry no loss."""

    dropped: list[Dropped]
    n_read: int
    n_not_sampled: int
    n_split_off: int
    """Pieces of documents beyond the first piece of each."""

    n_windows: int
    """Windows that documents longer than a sequence were divided into, beyond the first of each."""

    n_definitions: int
    """Documents that are no record's: definitions of tasks."""

    n_shortened: int
    """Tokens that were cut out of documents to make them fit."""

    overlaps: list[dict[str, Any]] | None
    """Overlaps with benchmarks, rows of `decontaminate.BATCH_SCHEMA`; None where nothing was
    compared."""

    decontam: Mapping[str, int]
    """Sums of `decontaminate.count_document`; empty where nothing was compared."""

    sketches: "Sketches | None" = None
    """Of the documents; None where nobody looks for near duplicates."""


class Preparer:
    """Does the work for one source, block by block."""

    def __init__(self, spec: PrepareSpec, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._reader = DocumentReader(spec)
        self._decontaminator = BlockDecontaminator(spec.decontam) if spec.decontam else None
        self._sketcher = Sketcher(spec.sketch) if spec.sketch else None
        template = spec.template
        rewrites = template is not None and not template.reads_records
        self._rewrite = template.rewriter(tokenizer) if template and rewrites else None

    @property
    def fields(self) -> frozenset[str]:
        """Top-level fields of records that are read."""
        return self._reader.fields

    def needs_column(self, name: str) -> bool:
        """Whether a column of a table has to be read."""
        return self._reader.needs_column(name)

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
            n_definitions=read.n_definitions,
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
            checked = long_enough(text, self._spec.filters) if text.piece else text
            if isinstance(checked, Dropped):
                dropped.append(checked)
            else:
                kept.append(checked)
        return replace(clean, kept=kept)

    def _tokenize(self, texts: Sequence[Text], dropped: list[Dropped], **account: Any) -> Prepared:
        rendered = [self._render(text) for text in texts]
        dropped += [content for content in rendered if isinstance(content, Dropped)]
        texts = [t for t, c in zip(texts, rendered, strict=True) if not isinstance(c, Dropped)]
        contents = [c for c in rendered if not isinstance(c, Dropped)]
        kept: list[tuple[Text, Encoded]] = []
        n_windows = 0
        for text, content, encoded in zip(texts, contents, self._encode(contents), strict=True):
            pieces = [(text, encoded)] if encoded else self._divide(text, content)
            n_windows += len(pieces) - 1
            for piece, found in pieces:
                if isinstance(checked := self._check(piece, found), Encoded):
                    kept.append((piece, checked))
                else:
                    dropped.append(piece.dropped(checked.reason, checked.evidence))
        texts = [text for text, _ in kept]
        ids = [document.ids for _, document in kept]
        tokens, offsets = join(ids)
        return Prepared(
            documents=[text.document for text in texts],
            uids=[text.uid for text in texts],
            n_bytes=np.array([len(text.utf8) for text in texts], np.int64),
            tokens=tokens.astype(self._tokenizer.token_type, copy=False),
            offsets=offsets,
            no_loss=[d.no_loss if self._spec.answers_only else () for _, d in kept],
            n_windows=n_windows,
            n_shortened=sum(document.n_shortened for _, document in kept),
            dropped=sorted(dropped, key=lambda d: (d.file, d.line, d.offset)),
            sketches=self._sketcher.sketch([t.utf8 for t in texts]) if self._sketcher else None,
            **account,
        )

    def _render(self, text: Text) -> Rendered | Dropped:
        """What the model sees of a document; some templates change texts, see `TemplateSpec`."""
        content = text.document.content
        try:
            if self._rewrite is not None:
                content = self._rewrite(text.document.text, text.uid)
            self._check_answer(text, content)
        except BadRecordError as bad:
            return text.dropped(bad.reason, bad.evidence)
        return content

    def _check_answer(self, text: Text, content: Rendered) -> None:
        """With loss on answers alone, a document without one would teach nothing, or to stop.

        Raises:
            BadRecordError: no_answer. What tasks ask for has no answer, and is no record either.
        """
        if self._spec.answers_only and text.document.header != DEFINITION:
            content.check_answer()

    def _divide(self, text: Text, content: Rendered) -> list[tuple[Text, Encoded | BadRecordError]]:
        """The windows of a document that does not fit; one that has none stays what it is."""
        parts = text.document.parts or parts_of_text(content)
        too_long = BadRecordError("too_many_tokens", f"more than {self._spec.max_tokens}")

        def fit(start: int, end: int) -> tuple[Rendered, Encoded] | BadRecordError | None:
            try:
                window = parts.render(start, end)
                self._check_answer(text, window)
            except BadRecordError as bad:
                # Parts without an answer go together with those behind them, which may have one.
                return bad if bad.reason == "no_answer" or end - start == 1 else None
            (encoded,) = self._encode([window])
            if isinstance(encoded, BadRecordError):
                return encoded
            return (window, encoded) if encoded else None

        runs = list(longest_runs(parts.n, fit)) if parts.n > 1 else []
        windows: list[tuple[Text, Encoded | BadRecordError]] = []
        for number, (_, _, found) in enumerate(runs, 1):
            window = text.window(number, len(runs))
            if isinstance(found, tuple):
                windows.append((window.of(found[0]), found[1]))
            else:
                windows.append((window, found or too_long))
        return windows or [(text, too_long)]

    def _encode(self, contents: Sequence[Rendered]) -> Sequence[Encoded | BadRecordError | None]:
        """The ids of documents; None for one that does not fit into a sequence."""
        try:
            return self._encode_all(contents)
        except EncodingError as error:
            if len(contents) == 1:
                return [BadRecordError("tokenizer_failed", str(error))]
        return [found for content in contents for found in self._encode([content])]

    def _encode_all(self, contents: Sequence[Rendered]) -> Sequence[Encoded | None]:
        most = self._spec.max_tokens
        if most or self._spec.answers_only or any(map(has_parts, contents)):
            return encode_documents(contents, self._tokenizer, max_tokens=most)
        tokens, offsets = self._tokenizer.encode([content.text for content in contents])
        frame = int(self._spec.tokenizer.bos) + int(self._spec.tokenizer.eos)
        bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        return [Encoded(tokens[start:end], (), frame) for start, end in bounds]

    def _check(self, text: Text, found: Encoded | BadRecordError) -> Encoded | BadRecordError:
        """The document, or why it is not kept."""
        if isinstance(found, BadRecordError):
            return found
        n = len(found.ids) - found.n_frame
        if n < max(self._spec.filters.min_tokens, 1):
            return BadRecordError("too_few_tokens", f"{n} tokens")
        if self._spec.answers_only and text.document.header != DEFINITION and not found.n_learned:
            return BadRecordError("no_answer", "no token of an answer with a token before it")
        return found
