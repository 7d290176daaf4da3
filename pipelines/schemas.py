"""Raw records → documents: one small description for each published schema."""

import ast
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec

from pipelines.mixture import Fields, Source
from pipelines.records import Document, Dropped, RawRecord


@dataclass(frozen=True, slots=True)
class Schema:
    """Where a record keeps what we need. Dots go into nested objects."""

    text: tuple[str, ...] = ("text",)
    """Several fields are joined by a newline; of a list, the first item counts."""

    origin: tuple[str, ...] = ()
    """What names the document: the first field that holds a non-empty string."""

    prompt: str | None = None
    """The part of the text, at its beginning, that `loss: completion` leaves out; without it,
    all but the last of several text fields."""

    other_text: tuple[str, ...] = ()
    """Text fields of records that have the first of these."""

    group: tuple[str, ...] = ()
    """What names the task, found like the origin; `FILE`: the name of the file."""

    @property
    def text_fields(self) -> tuple[tuple[str, ...], ...]:
        """Layouts of the text, the first of which that a record has is taken."""
        return (self.other_text, self.text) if self.other_text else (self.text,)


FILE = "file"
"""A group that is no field: whoever knows the files puts the file's name in its place."""

SCHEMAS: Mapping[str, Schema] = {
    "text": Schema(origin=("id", "name", "url", "title")),
    # RedPajama-Data-1T: books have titles, arXiv ids, GitHub paths; Common Crawl has no meta but
    # `source` at the top level. The hub's copy turns `meta` into a string.
    "redpajama": Schema(
        origin=(
            "meta.arxiv_id",
            "meta.short_book_title",
            "meta.title",
            "meta.url",
            "meta.path",
            "meta.source",
            "source",
        )
    ),
    "long_data": Schema(origin=("meta.source", "metadata.source"), prompt="prompt"),
    "oig": Schema(origin=("metadata.source", "meta.source")),
    "pile": Schema(origin=("meta.pile_set_name",)),
    # OSCAR's releases keep the address in three places.
    "c4": Schema(
        origin=(
            "url",
            "meta.warc_headers.warc-target-uri",
            "warc_headers.warc-target-uri",
            "metadata.warc_headers.warc-target-uri",
            "id",
        )
    ),
    # RedPajama-Data-Instruct, and bigscience/P3, where `inputs` and `targets` are token ids.
    "p3": Schema(
        text=("inputs", "targets"),
        other_text=("inputs_pretokenized", "targets_pretokenized"),
        origin=("meta.task", "task"),
        group=("meta.task", "task"),
    ),
    # Records as `readers.py` takes them out of task files.
    "natural_instructions": Schema(text=("input", "output"), origin=("task",), group=("task",)),
}


def schema_of(source: Source) -> Schema:
    """The schema a source names, or the one its `fields` describe."""
    fields: Fields | None = source.fields
    schema = SCHEMAS[source.schema_]
    if fields is not None:
        schema = Schema(tuple(fields.text), tuple(fields.origin), fields.prompt)
    return replace(schema, group=tuple(source.group)) if source.group else schema


def document_parser(
    schema: Schema, *, completion_only: bool
) -> Callable[[RawRecord], Document | Dropped]:
    """A function that turns raw records into documents, or says why it cannot."""
    decode = _decoder(schema)
    groups = tuple(path for path in schema.group if path != FILE)

    def parse(record: RawRecord) -> Document | Dropped:
        try:
            value = decode(record.value) if isinstance(record.value, bytes) else record.value
            texts = _texts(value, schema)
            text = "\n".join(texts)
            prompt = _prompt(value, texts, schema) if completion_only else 0
            origin, group = _first_name(value, schema.origin), _first_name(value, groups)
            return Document(text, origin, prompt, *record[1:], group)
        except _BadRecordError as bad:
            return Dropped(bad.reason, bad.evidence, *record[1:])

    return parse


class _BadRecordError(Exception):
    def __init__(self, reason: str, evidence: str = "") -> None:
        self.reason = reason
        self.evidence = evidence[:200]


def _decoder(schema: Schema) -> Callable[[bytes], Mapping[str, Any]]:
    """JSON bytes → the few fields that are needed.

    Others must be JSON, but are not built: a byte in one of them that is no UTF-8 costs nothing.
    """
    texts = [path for layout in schema.text_fields for path in layout]
    paths = [*texts, *schema.origin, *([schema.prompt] if schema.prompt else []), *schema.group]
    names = sorted({path.split(".")[0] for path in paths})
    record_type = msgspec.defstruct(
        "Record", [(f"f{i}", Any, None) for i in range(len(names))],
        rename={f"f{i}": name for i, name in enumerate(names)},
    )  # fmt: skip
    decoder = msgspec.json.Decoder(record_type)

    def decode(line: bytes) -> Mapping[str, Any]:
        try:
            return dict(zip(names, msgspec.structs.astuple(decoder.decode(line)), strict=True))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _decode_leniently(line)

    return decode


def _decode_leniently(line: bytes) -> Mapping[str, Any]:
    """What Python's own writer makes and strict parsers refuse (NaN, lone surrogates, 1e999)."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _BadRecordError("invalid_utf8", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _BadRecordError("invalid_json", str(error)) from None
    if not isinstance(value, dict):
        raise _BadRecordError("not_an_object", type(value).__name__)
    return value


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        if isinstance(value, str | bytes):
            value = _mapping_in(value)
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


@lru_cache(maxsize=1)  # a schema may look for several fields in the same string
def _mapping_in(text: str | bytes) -> Any:
    """A mapping written as a string, as JSON or as Python prints it (RedPajama's hub copy)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd escapes in the string
                return ast.literal_eval(text.decode() if isinstance(text, bytes) else text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None


def _texts(value: Any, schema: Schema) -> list[str]:
    """The texts that make up the document, by the first layout that the record has."""
    layouts = schema.text_fields
    paths = next((x for x in layouts if _at(value, x[0]) is not None), layouts[-1])
    return [_text(value, path, of_list=len(paths) > 1) for path in paths]


def _text(value: Any, path: str, *, of_list: bool) -> str:
    text = _at(value, path)
    if of_list and isinstance(text, list) and text:
        text = text[0]
    if isinstance(text, bytes):
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise _BadRecordError("invalid_utf8", str(error)) from None
    if text is None:
        raise _BadRecordError("missing_text", f"no field '{path}'")
    if not isinstance(text, str):
        raise _BadRecordError("text_not_a_string", type(text).__name__)
    return text


def _first_name(value: Any, paths: tuple[str, ...]) -> str:
    """The first field that holds a name."""
    for path in paths:
        found = _at(value, path)
        if isinstance(found, bytes):
            found = found.decode(errors="replace")
        if isinstance(found, str | int) and str(found):
            return str(found).encode(errors="replace").decode()
    return ""


def _prompt(value: Any, texts: Sequence[str], schema: Schema) -> int:
    """Characters at the beginning of the text that carry no loss."""
    if schema.prompt is None and len(texts) > 1:
        return sum(len(text) + 1 for text in texts[:-1])
    prompt = _at(value, schema.prompt) if schema.prompt else None
    if isinstance(prompt, bytes):
        prompt = prompt.decode(errors="replace")
    if not isinstance(prompt, str) or not "\n".join(texts).startswith(prompt):
        raise _BadRecordError("prompt_not_a_prefix", f"field '{schema.prompt}'")
    return len(prompt)
