"""Raw records → documents: one small description for each published schema."""

import ast
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from pipelines.chat_schemas import CHAT_SCHEMAS
from pipelines.chat_turns import without_nulls
from pipelines.learn_marks import TEXT_MARKS, flag_of, refuse_marked
from pipelines.mixture import Fields, Source
from pipelines.record_fields import (
    TEXT_MEDIA,
    is_content,
    media_of,
    refuse_unread,
    speaks_of_loss,
)
from pipelines.records import Document, Dropped, Made, RawRecord
from pipelines.rendering import BadRecordError, Rendered
from pipelines.templates.few_shot import render_example, render_prompt

if TYPE_CHECKING:
    from pipelines.templates.choice import Renderer


@dataclass(frozen=True, slots=True)
class Schema:
    """Where a record keeps what we need. Dots go into nested objects."""

    text: tuple[str, ...] = ("text",)
    """Several fields are joined by a newline; of a list, the first item counts."""

    origin: tuple[str, ...] = ()
    """What names the document: the first field that holds a non-empty string."""

    prompt: str | None = None
    """The part of the text, at its beginning, that `loss: answers` leaves out; without it, all
    but the last of several text fields."""

    other_text: tuple[str, ...] = ()
    """Text fields of records that have the first of these."""

    group: tuple[str, ...] = ()
    """What names the task, found like the origin; `FILE`: the name of the file."""

    definition: str | None = None
    """What the task asks for; where examples share a context it is said once, before them."""

    shown: str | None = None
    """Whether an example is one that shows how the task is done."""

    labels: tuple[str, ...] = ()
    """What stands before each of the texts where examples share a context."""

    right: str | None = None
    """Whether the answer is the right one."""

    ignored: tuple[str, ...] = ()
    """Fields that are read as if they were not there."""

    @property
    def text_fields(self) -> tuple[tuple[str, ...], ...]:
        """Layouts of the text, the first of which that a record has is taken."""
        return (self.other_text, self.text) if self.other_text else (self.text,)

    @property
    def fields(self) -> frozenset[str]:
        """All top-level fields that are read."""
        texts = [path for layout in self.text_fields for path in layout]
        names = (self.prompt, self.definition, self.shown, self.right)
        single = [path for path in names if path]
        paths = [*texts, *self.origin, *single, *(path for path in self.group if path != FILE)]
        return frozenset(path.split(".")[0] for path in paths)


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
    # RedPajama-Data-Instruct, and bigscience/P3, where `inputs` and `targets` are token ids. P3's
    # tasks for evaluation hold each question once with every answer, and say which is right.
    "p3": Schema(
        text=("inputs", "targets"),
        other_text=("inputs_pretokenized", "targets_pretokenized"),
        origin=("meta.task", "task"),
        group=("meta.task", "task"),
        definition="definition",
        right="is_correct",
    ),
    # Records as `task_files.py` takes them out of task files.
    "natural_instructions": Schema(
        text=("input", "output"),
        origin=("task",),
        group=("task",),
        definition="definition",
        shown="shown",
        labels=("Input: ", "Output: "),
    ),
}


def schema_of(source: Source) -> Schema:
    """The schema a source names, or the one its `fields` describe."""
    fields: Fields | None = source.fields
    ignored = tuple(sorted(source.ignore_fields))
    if source.chat:
        return Schema(text=(), origin=CHAT_SCHEMAS[source.schema_].origin, ignored=ignored)
    schema = SCHEMAS[source.schema_]
    if fields is not None:
        schema = Schema(tuple(fields.text), tuple(fields.origin), fields.prompt)
    return replace(schema, group=tuple(source.group) or schema.group, ignored=ignored)


def document_parser(
    schema: Schema,
    *,
    answers_only: bool,
    few_shot: bool = False,
    renderer: "Renderer | None" = None,
) -> Callable[[RawRecord], Document | Dropped]:
    """A function that turns raw records into documents, or says why it cannot.

    Args:
        schema: where a record keeps what we need.
        answers_only: the answers of a document have to be known; others carry no loss.
        few_shot: documents are examples that share a context with others of their task.
        renderer: what makes the text instead of the schema's own fields.
    """
    read = renderer.fields if renderer else schema.fields
    judged = (*TEXT_MEDIA, *TEXT_MARKS, *(("label",) if answers_only else ()))
    guarded = [name for name in judged if name not in read and name not in schema.ignored]
    decode = _decode_whole if renderer else _decoder(sorted(read), guarded)
    never = frozenset(guarded)
    groups = tuple(path for path in schema.group if path != FILE)

    def render(value: Any) -> Made:
        if renderer and renderer.is_chat:
            return renderer.render(value)
        if not never.isdisjoint(value):
            _refuse(value, guarded)
        if schema.right and flag_of(plain(_at(value, schema.right))) is False:
            raise BadRecordError("label_is_false", f"{schema.right}: false")
        if renderer:
            return renderer.render(value)
        return Made(from_fields(value), _first_name(value, groups))

    def from_fields(value: Any) -> Rendered:
        texts = _texts(value, schema, answered=answers_only or few_shot)
        if few_shot:
            return render_example(texts, schema.labels)
        if answers_only and schema.prompt is None and len(texts) > 1:
            return render_prompt(texts)
        text = "\n".join(texts)
        prompt = _prompt(value, text, schema) if answers_only else len(text)
        return Rendered(text, ((prompt, len(text)),) if prompt < len(text) else ())

    def parse(record: RawRecord) -> Document | Dropped:
        try:
            value = decode(record.value) if isinstance(record.value, bytes) else record.value
            if renderer and value is record.value:
                value = plain(value)
                value = without_nulls(value) if renderer.is_chat else value
            content, group, parts = render(value)
            origin = _first_name(value, schema.origin)
            document = Document(content, origin, *record[1:], group, parts=parts)
            return _example(document, value, schema) if few_shot else document
        except BadRecordError as bad:
            return Dropped(bad.reason, bad.evidence, *record[1:])

    return parse


def column_chooser(schema: Schema, renderer: "Renderer | None") -> Callable[[str], bool]:
    """Whether a column of a table has to be read, by its name.

    What makes the documents is, and so is what may drop a record although it makes none of them.
    """
    read = schema.fields | (renderer.fields if renderer else frozenset())
    is_chat = renderer is not None and renderer.is_chat

    def needed(name: str) -> bool:
        if name in read or name.replace("-", "_") in read:  # templates write it so
            return True
        if name in schema.ignored:
            return False
        if speaks_of_loss(name):
            return True
        if is_chat:
            return bool(media_of(name)) or is_content(name)
        return name in TEXT_MEDIA or name == "label"

    return needed


def _example(document: Document, value: Any, schema: Schema) -> Document:
    """The document with what is said before the examples of its task."""
    shown = bool(schema.shown and _at(value, schema.shown))
    definition = _at(value, schema.definition) if schema.definition else None
    if isinstance(definition, list) and definition:
        definition = definition[0]
    if isinstance(definition, bytes):
        definition = definition.decode(errors="replace")
    known = definition.encode(errors="replace").decode() if isinstance(definition, str) else ""
    return document._replace(header=2 if shown else 0, definition=known.strip())


def plain(value: Any) -> Any:
    """The value with its bytes, at any depth, as text; tables are read as bytes.

    Pictures, sound and films stay as they are: a record that has them is dropped.

    Raises:
        BadRecordError: some of it is no UTF-8.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadRecordError("invalid_utf8", str(error)) from None
    if isinstance(value, Mapping):
        return {plain(k): _medium(v) if media_of(str(k)) else plain(v) for k, v in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _medium(value: Any) -> Any:
    try:
        return plain(value)  # the name of a file, or an argument of a function
    except BadRecordError:
        return value


def _decode_whole(line: bytes) -> Mapping[str, Any]:
    """JSON bytes → all fields."""
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(line)
    if not isinstance(value, dict):
        raise BadRecordError("not_an_object", type(value).__name__)
    return value


def _refuse(value: Mapping[str, Any], guarded: Iterable[str]) -> None:
    """Drop a record that is not text alone, or that says that it is not learned."""
    found = {name: value[name] for name in guarded if value.get(name) is not None}
    marks = plain({name: field for name, field in found.items() if name in TEXT_MARKS})
    refuse_marked(marks, marks)
    if found.get("label") is False:  # of a class it would be a number or a text
        raise BadRecordError("label_is_false", "label: False")
    refuse_unread({n: field for n, field in found.items() if n not in marks}, frozenset())


def _decoder(names: Sequence[str], guarded: Sequence[str]) -> Callable[[bytes], Mapping[str, Any]]:
    """JSON bytes → the few fields that are needed, and those of `guarded` that are not null.

    Others must be JSON, but are not built: a byte in one of them that is no UTF-8 costs nothing.
    """
    fields = [*names, *guarded]
    record_type = msgspec.defstruct(
        "Record", [(f"f{i}", Any, None) for i in range(len(fields))],
        rename={f"f{i}": name for i, name in enumerate(fields)},
    )  # fmt: skip
    decoder = msgspec.json.Decoder(record_type)
    n, nothing = len(names), (None,) * len(guarded)

    def decode(line: bytes) -> Mapping[str, Any]:
        try:
            values = msgspec.structs.astuple(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _decode_leniently(line)
        record = dict(zip(names, values[:n], strict=True))
        if (rest := values[n:]) != nothing:
            given = zip(guarded, rest, strict=True)
            record.update((name, value) for name, value in given if value is not None)
        return record

    return decode


def _decode_leniently(line: bytes) -> Mapping[str, Any]:
    """What Python's own writer makes and strict parsers refuse (NaN, lone surrogates, 1e999)."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRecordError("invalid_utf8", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadRecordError("invalid_json", str(error)) from None
    if not isinstance(value, dict):
        raise BadRecordError("not_an_object", type(value).__name__)
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


def _texts(value: Any, schema: Schema, *, answered: bool) -> list[str]:
    """The texts that make up the document, by the first layout that the record has.

    `answered` says whether the last of several is an answer, without which the rest is no use.
    """
    layouts = schema.text_fields
    paths = next((x for x in layouts if _at(value, x[0]) is not None), layouts[-1])
    several = len(paths) > 1
    missing = ["missing_text"] * len(paths)
    if several and answered:
        missing[-1] = "no_answer"
    found = zip(paths, missing, strict=True)
    return [_text(value, path, of_list=several, missing=reason) for path, reason in found]


def _text(value: Any, path: str, *, of_list: bool, missing: str) -> str:
    text = _at(value, path)
    if of_list and isinstance(text, list):
        text = text[0] if text else None
    if isinstance(text, bytes):
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise BadRecordError("invalid_utf8", str(error)) from None
    if text is None:
        raise BadRecordError(missing, f"no text in field '{path}'")
    if not isinstance(text, str):
        raise BadRecordError("text_not_a_string", type(text).__name__)
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


def _prompt(value: Any, text: str, schema: Schema) -> int:
    """Characters at the beginning of the text that carry no loss."""
    prompt = _at(value, schema.prompt) if schema.prompt else None
    if isinstance(prompt, bytes):
        prompt = prompt.decode(errors="replace")
    if not isinstance(prompt, str) or not text.startswith(prompt):
        raise BadRecordError("prompt_not_a_prefix", f"field '{schema.prompt}'")
    return len(prompt)
