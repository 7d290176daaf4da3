"""The plan before the work: what a sample of the input says a build will take."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from lzma import LZMAError
from typing import Any

from zstandard import ZstdError

from pipelines import files
from pipelines.chat_forms import FORM_REASONS
from pipelines.compression import decompressed
from pipelines.errors import UserError
from pipelines.field_survey import FieldSurvey
from pipelines.formats import compression_of
from pipelines.job import SourceJob
from pipelines.lines import cut_lines, is_array
from pipelines.prepare import Preparer
from pipelines.readers import Block, line_block, read_blocks
from pipelines.records import BAD_REASONS, Split
from pipelines.tokenizer import Tokenizer

SAMPLE_BYTES = 1 << 20
_SAMPLED_SPLITS = 4
_TYPICAL_RATIO = 3.0
"""Uncompressed to compressed bytes of text, for sizing progress before anything is read."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A source, extrapolated from the beginnings of a few of its splits."""

    n_files: int
    input_bytes: int
    """As listed, compressed where the files are."""

    documents: int
    documents_kept: int
    tokens: int
    """Of the kept documents."""

    text_bytes: int
    """UTF-8 bytes of the kept documents."""

    sampled: int
    """Records that the sample read."""

    dropped: Mapping[str, int]
    """Those of them that a build drops, by reason."""

    unread: Mapping[str, float]
    """Fields that are neither read nor known to be harmless: the share of the sampled records that
    have each of them."""

    faults: Sequence[str]
    """What in the records stops the build before it begins."""

    @property
    def broken(self) -> Mapping[str, int]:
        """Those dropped because the input is broken, rather than filtered as asked."""
        return {reason: n for reason, n in self.dropped.items() if reason in BAD_REASONS}

    @property
    def known(self) -> bool:
        """False for hub data sets, whose size nothing tells beforehand."""
        return self.input_bytes > 0


def estimate(job: SourceJob, tokenizer: Tokenizer) -> Estimate:
    """Read up to 1 MiB from the beginning of up to four splits and scale up.

    Raises:
        UserError: a sampled file cannot be read.
    """
    preparer = Preparer(job.spec, tokenizer)
    read = kept = tokens = text = sampled = 0
    dropped: Counter[str] = Counter()
    evidence: dict[str, str] = {}
    survey = FieldSurvey(job.spec, preparer.fields)
    for split in _spread_out(job.splits):
        for block, consumed in _samples(split, job.spec.max_record, preparer.needs_column):
            prepared = preparer.prepare(block, split.files)
            read += prepared.n_read
            kept += len(prepared.documents)
            tokens += len(prepared.tokens)
            text += int(prepared.n_bytes.sum())
            sampled += consumed
            for record in block.records:
                survey.see(record.value)
            survey.see_columns(block.unread, len(block.records))
            for record in prepared.dropped:
                dropped[record.reason] += 1
                evidence.setdefault(record.reason, record.evidence)
    total = sum(file.size for file in job.inputs)
    scale = total / sampled if sampled else 0.0
    return Estimate(
        len(job.inputs),
        total,
        round(read * scale),
        round(kept * scale),
        round(tokens * scale),
        round(text * scale),
        read,
        dict(sorted(dropped.items())),
        survey.unread,
        [*survey.questions, *_other_form(read, dropped, evidence)],
    )


def _other_form(n: int, dropped: Mapping[str, int], evidence: Mapping[str, str]) -> list[str]:
    """That no sampled record is read, where all of them have another form than their schema."""
    if not n or sum(dropped.values()) < n or not FORM_REASONS.issuperset(dropped):
        return []
    said = "; ".join(f"{reason}: {evidence[reason]}" for reason in dropped)
    return [f"none of {n:,} sampled records has the form of the schema: {said}"]


def _spread_out(splits: Sequence[Split]) -> list[Split]:
    step = max(1, len(splits) // _SAMPLED_SPLITS)
    return list(splits[::step][:_SAMPLED_SPLITS])


def _samples(
    split: Split, max_record: int, columns: Callable[[str], bool]
) -> Iterator[tuple[Block, int]]:
    """Blocks from the beginning of a split, with the bytes of the file that they used up."""
    if split.format == "jsonl" and not is_array(split.file.path):
        try:
            with files.open_binary(split.file.path) as raw:
                raw.seek(split.first if compression_of(split.file.path) is None else 0)
                yield from _sample_lines(raw, split, max_record)
        except OSError as error:
            raise UserError(f"{split.file.name}: cannot read it: {error}") from error
        return
    if split.format in ("text", "html"):
        split = replace(split, files=split.files[:16])
    blocks = read_blocks(split, max_record=max_record, skip=lambda _: False, columns=columns)
    for block in islice(blocks, 1):
        yield block, block.n_file_bytes


def _sample_lines(raw: Any, split: Split, max_record: int) -> Iterator[tuple[Block, int]]:
    compression = compression_of(split.file.path)
    start = raw.tell()
    read = 0

    def counted(n: int) -> bytes:
        nonlocal read
        data: bytes = stream.read(n)
        read += len(data)
        return data

    try:
        stream = decompressed(raw, split.file.path)
        piece = next(cut_lines(counted, max_record=max_record, target=SAMPLE_BYTES), None)
    except (OSError, EOFError, LZMAError, ZstdError):
        return  # the build itself will name the damage and its place
    if piece is None:
        return
    if split.first:  # the first line may be the end of one that began before
        piece = replace(piece, data=piece.data.partition(b"\n")[2])
    # What was decompressed goes beyond the piece; only the piece's share of the file counts.
    used = (raw.tell() - start) * len(piece.data) / max(1, read) if compression else len(piece.data)
    yield line_block(0, piece, max_record), max(round(used), 1)


def expected_bytes(splits: Sequence[Split]) -> tuple[int, bool]:
    """Uncompressed bytes of splits, and whether that is known rather than guessed."""
    exact = True
    total = 0.0
    for split in splits:
        size = split.last - split.first if split.format == "jsonl" and split.last else None
        if size is None:
            size = sum(file.size for file in split.files)
            if compression_of(split.file.path) is not None:
                size, exact = size * _TYPICAL_RATIO, False
        total += size / split.strides
    return round(total), exact
