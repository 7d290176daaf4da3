"""promptsource's template files (`templates.yaml`) on raw records: examples as P3 has them.

A file holds the templates of one data set, each in Jinja: `input ||| target`. `answer_choices`,
Jinja too, makes the list of answers that a template may index. Rendered as promptsource 0.2.3 does
with `truncate=False` and as P3 was made from it, so that a record gives P3's strings byte for byte:

- both sides of `|||` are stripped; a `|||` inside a record is text, not a separator;
- fields with a hyphen in their name can be used with an underscore;
- `choice`, `random`, `most_frequent`, `highlight`, `zip`, `range` (and `enumerate`) are there.

Otherwise than promptsource: Jinja is sandboxed, what the templates draw comes from the record's own
random numbers, and a name that is not there is a fault of the record instead of an empty string.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Template
from pydantic import Field

from pipelines.options import Frozen, Names
from pipelines.rendering import BadRecordError, is_blank
from pipelines.templates.promptsource_file import (
    RNG,
    SEPARATOR,
    PromptTemplate,
    chosen,
    load_templates,
)

_PROTECTED = "\ue000pipes\ue000"
"""Stands for a `|||` of the record while a template is rendered: private characters, which a
template's author has no reason to write."""


_NO_LABEL = (-1, 255, None, "-1", "-")
"""What `datasets` and others write where an example has no label."""


class Promptsource(Frozen):
    """Options: raw records are put into promptsource templates."""

    path: str
    """The `templates.yaml` of the data set."""

    names: Names = Field(default=[])
    """Which templates are drawn from, by name; default: all in English that ask for the data set's
    original task."""


class Example(NamedTuple):
    """One example as P3 has it."""

    input: str
    target: str
    task: str


def prompt_templates(options: Promptsource, content: bytes) -> list[PromptTemplate]:
    """The templates that records are put into, of the file `options.path` with this content.

    They are compiled and cannot be pickled: load them where they are used. Errors: as
    `load_templates` and `chosen`.
    """
    return chosen(load_templates(content, options.path), options.names, options.path)


def apply_one(
    templates: Sequence[PromptTemplate], record: Mapping[str, Any], rng: random.Random
) -> Example:
    """A record in one of the templates, drawn with equal odds.

    Many templates are for some records only, and give nothing for others (`{% if label == 1 %}`):
    then another one is drawn, and the record is lost only where none has an example for it.

    Raises:
        BadRecordError: as `apply`.
    """
    *others, last = rng.sample(templates, len(templates))
    for template in others:
        try:
            return apply(template, record, rng)
        except BadRecordError as bad:
            if bad.reason == "template_failed":
                raise
    return apply(last, record, rng)


def apply(template: PromptTemplate, record: Mapping[str, Any], rng: random.Random) -> Example:
    """A record in a template.

    Raises:
        BadRecordError: `no_answer`: the record has no label, or one that chooses nothing, or the
            target is empty, or the template gives nothing for this record; `template_failed`: a
            name that the record does not have, or any other error while rendering, or more than
            one `|||`; `empty_input`: only a target.
    """
    fields: dict[str, Any] = {
        str(name).replace("-", "_"): _protect(value) for name, value in record.items()
    }
    for field in template.fields:
        if "label" in field.lower() and field in fields and fields[field] in _NO_LABEL:
            raise BadRecordError("no_answer", f"{template.name}: {field}: {fields[field]}")
    if "answer_choices" in fields:
        raise BadRecordError("template_failed", "the record has a field `answer_choices`")
    fields[RNG] = rng
    choices = template.answer_choices
    fields["answer_choices"] = None if choices is None else _parts(choices, fields, template.name)
    parts = [
        part.replace(_PROTECTED, SEPARATOR) for part in _parts(template.body, fields, template.name)
    ]
    if len(parts) > 2:
        evidence = f"{template.name}: {len(parts) - 1} separators '{SEPARATOR}'"
        raise BadRecordError("template_failed", evidence)
    if len(parts) < 2 or is_blank(parts[1]):
        raise BadRecordError("no_answer", template.name)
    if not parts[0]:
        raise BadRecordError("empty_input", template.name)
    return Example(parts[0], parts[1], template.task)


def _parts(template: Template, fields: Mapping[str, Any], name: str) -> list[str]:
    try:
        rendered = template.render(fields)
    except BadRecordError:
        raise
    except Exception as error:  # whatever a template does with a value that it does not expect
        evidence = f"{name}: {type(error).__name__}: {error}"
        raise BadRecordError("template_failed", evidence) from None
    return [part.strip() for part in rendered.split(SEPARATOR)]


def _protect(value: Any) -> Any:
    """A copy whose strings hold no separator; a template may change it as it likes."""
    if isinstance(value, str):
        return value.replace(SEPARATOR, _PROTECTED)
    if isinstance(value, Mapping):
        return {name: _protect(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_protect(item) for item in value]
    return value
