"""A block of raw records → the documents of one source that are long enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import xxhash

from pipelines.abstracts import AbstractIndex
from pipelines.decontaminate import Text
from pipelines.filters import drop_reason, in_sample
from pipelines.mixture import Filters
from pipelines.prepare_spec import PrepareSpec
from pipelines.readers import Block
from pipelines.records import DEFINITION, Document, Dropped, InputFile
from pipelines.schemas import FILE, column_chooser, document_parser
from pipelines.task_files import task_name
from pipelines.templates.few_shot import render_definition
from pipelines.templates.plain import append_abstract


@dataclass(frozen=True, slots=True)
class Read:
    """The documents of a block, and what did not become one."""

    texts: list[Text]
    dropped: list[Dropped]
    n_not_sampled: int
    n_definitions: int


class DocumentReader:
    """Raw records → the documents of one source that are long enough."""

    def __init__(self, spec: PrepareSpec) -> None:
        self._spec = spec
        template = spec.template
        renderer = template.renderer() if template and template.reads_records else None
        self.fields = renderer.fields if renderer else spec.schema.fields
        """Top-level fields of records that are read."""
        self.needs_column = column_chooser(spec.schema, renderer)
        """Whether a column of a table has to be read, by its name."""
        self._parse = document_parser(
            spec.schema,
            answers_only=spec.answers_only and (template is None or template.reads_records),
            few_shot=spec.few_shot,
            renderer=renderer,
        )
        self._abstracts = AbstractIndex(spec.abstracts) if spec.abstracts else None

    def read(self, block: Block, inputs: Sequence[InputFile]) -> Read:
        """Parse, sample and filter the records of a block, in their order.

        `inputs` are the files that the records name by number. Before the first example of a task
        stands what the task asks for, as a document of its own.
        """
        dropped = list(block.dropped)
        texts: list[Text] = []
        not_sampled = n_definitions = 0
        defined: set[str] = set()
        for record in block.records:
            parsed = self._parse(record)
            if isinstance(parsed, Document):
                parsed = self._in_task(parsed, inputs)
            if isinstance(parsed, Dropped):
                dropped.append(parsed)
                continue
            checked = self._check(parsed)
            if isinstance(checked, Dropped):
                dropped.append(checked)
            elif checked is None:
                not_sampled += 1
            else:
                if parsed.definition and parsed.group not in defined:
                    defined.add(parsed.group)
                    texts.append(_definition(parsed))
                    n_definitions += 1
                texts.append(checked)
        return Read(texts, dropped, not_sampled, n_definitions)

    def _in_task(self, document: Document, inputs: Sequence[InputFile]) -> Document | Dropped:
        """The document with its task, unless that is held out."""
        group = document.group
        if not group and FILE in self._spec.schema.group:
            group = task_name(inputs[document.file].name)
        if self._spec.few_shot and not group:
            return document.dropped("missing_task", "no task to share a context with")
        for pattern in self._spec.hold_out:
            if fnmatchcase(group, pattern):
                return document.dropped("held_out_task", f"{group[:100]} is {pattern}")
        return document._replace(group=group)

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
            content = append_abstract(document.content, self._abstracts.get(document.origin))
            document = document._replace(content=content)
            utf8 = document.text.encode()
        return long_enough(Text(document, utf8, uid), self._spec.filters)


def _definition(example: Document) -> Text:
    """What the task of an example asks for; its id is the task's own, whatever others ask for."""
    content = render_definition(example.definition)
    document = example._replace(content=content, header=DEFINITION, definition="")
    utf8 = content.text.encode(errors="replace")
    return Text(document, utf8, xxhash.xxh3_128_digest(example.group.encode() + b"\0" + utf8))


def long_enough(text: Text, filters: Filters) -> Text | Dropped:
    """The text, or why it is not kept."""
    if text.piece and not any(map(str.isalnum, text.document.text)):
        return text.dropped("empty_text", "no letter or digit")
    if reason := drop_reason(text.document.text, len(text.utf8), filters):
        return text.dropped(*reason)
    return text
