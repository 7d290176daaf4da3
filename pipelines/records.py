"""The nouns of the build: raw records, documents, and documents that were dropped."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from pipelines.rendering import Rendered

if TYPE_CHECKING:
    from pipelines.windows import Parts


class RawRecord(NamedTuple):
    """One record as it stands in an input file, not yet understood."""

    value: Any
    """JSON bytes, a mapping (tables, hub data sets) or the text itself (text files)."""

    line: int
    """Line within the block (JSON lines), or row within the file (tables), from 0."""

    offset: int
    """Byte of the uncompressed file at which the record begins; -1 for tables."""

    file: int = 0
    """Index into the files of the split."""


class Made(NamedTuple):
    """What a template makes of a record."""

    content: Rendered
    """What the model sees."""

    task: str = ""
    """What the record belongs to; empty where it has no task."""

    parts: "Parts | None" = None
    """What the document may be divided into where it is longer than a sequence."""


DEFINITION = 1
"""`Document.header` of what a task asks for, which is no record's."""


class Document(NamedTuple):
    """One text with what is needed to find it again."""

    content: Rendered
    origin: str
    """What a person would call it: a title, URL or id; may be empty."""

    line: int
    offset: int
    file: int
    group: str = ""
    """Name of the task it belongs to; empty where its source has none."""

    header: int = 0
    """What stands before the examples of its task: `DEFINITION`, 2 for an example that
    shows how it is done; 0 for all else."""

    definition: str = ""
    """What the task asks for; known of examples only."""

    parts: "Parts | None" = None
    """What it may be divided into where it is longer than a sequence."""

    @property
    def text(self) -> str:
        """The text alone."""
        return self.content.text

    def dropped(self, reason: str, evidence: str, uid: bytes | None = None) -> "Dropped":
        """The record of this document's not being kept."""
        return Dropped(reason, evidence, self.line, self.offset, self.file, uid)


class Dropped(NamedTuple):
    """A record that is not in the data set, and why."""

    reason: str
    """A fixed word, such as `too_short`, that the audit counts by."""

    evidence: str
    """What decided: a figure, a parser's message."""

    line: int
    offset: int
    file: int
    uid: bytes | None = None
    """The document's id where it was read far enough to have one."""


DROPPED_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("evidence", pa.string()),
        ("line", pa.int64()),
        ("offset", pa.int64()),
        ("file", pa.int32()),
        ("uid", pa.binary(16)),
    ]
)

BAD_REASONS = frozenset(
    {
        "invalid_json",
        "invalid_csv",
        "invalid_utf8",
        "not_an_object",
        "missing_text",
        "text_not_a_string",
        "lone_surrogate",
        "record_too_large",
        "prompt_not_a_prefix",
        "missing_turns",
        "turn_not_an_object",
        "unknown_role",
        "unknown_weight",
        "unknown_loss_mark",
        "unknown_loss_field",
        "unknown_turn_form",
        "turns_without_roles",
        "chosen_is_text",
        "turns_in_one_text",
        "broken_calls",
        "broken_tools",
        "broken_inst_tags",
        "missing_document",
        "missing_question",
        "missing_gold",
        "unknown_kind",
        "bad_chunk",
        "template_failed",
        "tokenizer_failed",
        "missing_task",
    }
)
"""Reasons that mean the input is broken (`--max-bad`), rather than filtered as asked."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as it was listed."""

    path: str
    name: str
    """Path below the data root: what the manifest says and what inputs are ordered by."""

    size: int
    identity: str


@dataclass(frozen=True, slots=True)
class Split:
    """A piece of input that one worker reads from front to back."""

    source: str
    format: str
    files: tuple[InputFile, ...]
    """One file, or several small text files."""

    first: int = 0
    """First byte (plain JSON lines), row group (parquet) or shard (hub) of the split."""

    last: int = 0
    """End of the same range, exclusive."""

    stride: int = 0
    """Of a compressed file, this split takes the blocks with index % strides == stride."""

    strides: int = 1

    @property
    def file(self) -> InputFile:
        """The (first) file."""
        return self.files[0]

    def place(self) -> str:
        """Where this is, for messages."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.file.name}{more}"
