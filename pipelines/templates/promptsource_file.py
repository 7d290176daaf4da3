"""promptsource's template files: YAML with two tags, each template compiled and checked."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import yaml
from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    Undefined,
    meta,
    nodes,
    pass_context,
    pass_environment,
)
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pipelines.errors import FaultsError, UserError, did_you_mean
from pipelines.rendering import BadRecordError

SEPARATOR = "|||"

RNG = "the random numbers"
"""Where the filters find them. No template can spell it, and it replaces a field so named."""

_LOOK_UP = "the item at a place"
"""A filter that no template can spell."""


@dataclass(frozen=True)
class PromptTemplate:
    """One template, compiled."""

    name: str
    task: str
    """P3's name for it: data set, subset and template, joined by `_`."""

    original_task: bool
    """It asks for what the data set was made for, and does not, say, ask for the question."""

    languages: tuple[str, ...]
    body: Template
    answer_choices: Template | None
    fields: frozenset[str]
    """Names of the record that it uses."""


def load_templates(content: bytes, place: str) -> list[PromptTemplate]:
    """The templates of a file, by name.

    Args:
        content: of the `templates.yaml`.
        place: its path, for messages.

    Raises:
        UserError: not such a file; or, all at once, templates whose Jinja is broken, that have no
            `|||`, or whose names are not unique.
    """
    file = _parsed(content, place)
    prefix = "_".join(str(file[key]) for key in ("dataset", "subset") if file.get(key))
    found: list[PromptTemplate] = []
    faults: list[str] = []
    environment = _environment()
    for key, entry in file["templates"].items():
        try:
            found.append(_compiled(entry, prefix, environment))
        except (ValueError, TemplateError) as error:
            line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            faults.append(f"template {_label(key, entry)}{line}: {error}")
    counts = Counter(template.name for template in found)
    faults += [f"template '{n}' is there {k} times" for n, k in counts.items() if k > 1]
    if faults:
        raise FaultsError(place, faults)
    return sorted(found, key=lambda template: template.name)


def chosen(
    templates: Sequence[PromptTemplate], names: Iterable[str], place: str
) -> list[PromptTemplate]:
    """The templates that a mixture names, or the English ones for the original task.

    Raises:
        UserError: a name that the file does not have, or nothing to choose from.
    """
    by_name = {template.name: template for template in templates}
    if unknown := [name for name in dict.fromkeys(names) if name not in by_name]:
        hint = did_you_mean(unknown[0], by_name) or f"; it has {', '.join(map(repr, by_name))}"
        raise UserError(f"{place}: no template '{unknown[0]}'{hint}")
    picked = [by_name[name] for name in dict.fromkeys(names)] or [
        template for template in templates if template.original_task and "en" in template.languages
    ]
    if not picked:
        raise UserError(
            f"{place}: none of {len(templates)} templates is in English and for the original task; "
            "name those to use in `names`"
        )
    return picked


class _Loader(yaml.SafeLoader):
    """YAML's plain types, and promptsource's two tags as mappings."""


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def _parsed(content: bytes, place: str) -> Mapping[str, Any]:
    try:
        file = yaml.load(content, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, a date
        message = " ".join(str(error).split())
        raise UserError(f"{place}: not a promptsource file: {message}") from None
    if not isinstance(file, Mapping) or not isinstance(file.get("templates"), Mapping):
        raise UserError(f"{place}: not a promptsource file: it has no mapping `templates`")
    return file


def _compiled(entry: Any, prefix: str, environment: SandboxedEnvironment) -> PromptTemplate:
    """One template of the file; a ValueError says what is wrong with it."""
    if not isinstance(entry, Mapping):
        raise ValueError("must be a mapping")
    name, jinja, choices = (entry.get(key) for key in ("name", "jinja", "answer_choices"))
    if not isinstance(name, str) or not isinstance(jinja, str):
        raise ValueError("`name` and `jinja` must be texts")
    if choices is not None and not isinstance(choices, str):
        raise ValueError("`answer_choices` must be a text")
    if SEPARATOR not in jinja:
        raise ValueError(f"`jinja` has no '{SEPARATOR}' between input and target")
    metadata = entry.get("metadata") or {}
    languages = metadata.get("languages") or [] if isinstance(metadata, Mapping) else None
    if not isinstance(languages, list):
        raise ValueError("`metadata` must be a mapping, and its `languages` a list")
    return PromptTemplate(
        name=name,
        task=re.sub(r"[^\w.]+", "_", f"{prefix}_{name}"),
        original_task=bool(metadata.get("original_task")),
        languages=tuple(map(str, languages)),
        body=_compiled_jinja(jinja, environment),
        answer_choices=_compiled_jinja(choices, environment) if choices is not None else None,
        fields=frozenset(
            meta.find_undeclared_variables(environment.parse(f"{jinja}\n{choices or ''}"))
        ),
    )


def _compiled_jinja(source: str, environment: SandboxedEnvironment) -> Template:
    """A template that chooses nothing by a number that is no place of a list."""
    checked: nodes.Template = _Checked().visit(environment.parse(source))
    checked.set_environment(environment)
    return environment.from_string(checked)


class _Checked(NodeTransformer):
    """Lets a filter look up `items[place]` wherever the place is no constant of the template."""

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 (Jinja's name)
        self.generic_visit(node)
        place = node.arg.node if isinstance(node.arg, nodes.Neg) else node.arg
        if isinstance(place, nodes.Const | nodes.Slice):
            return node
        return nodes.Filter(node.node, _LOOK_UP, [node.arg], [], None, None, lineno=node.lineno)


def _label(key: Any, entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f"'{name}'" if isinstance(name, str) else f"{key}"


def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(undefined=StrictUndefined)
    names = cast(dict[str, Any], environment.globals)
    names |= {"zip": zip, "enumerate": enumerate}
    del names["lipsum"]  # it draws from Python's own random numbers
    filters: dict[str, Callable[..., Any]] = {
        "choice": _choice,
        "random": _choice,
        "shuffle": _shuffle,
        "most_frequent": _most_frequent,
        "highlight": _highlight,
        _LOOK_UP: _look_up,
    }
    environment.filters.update(filters)
    return environment


@pass_environment
def _look_up(environment: Environment, items: Any, place: Any) -> Any:
    """An item of a list by a number that the record gives; -1 is no place, but no label.

    Raises:
        BadRecordError: no_answer.
    """
    listed = isinstance(items, list | tuple | str)
    if listed and (place is None or (isinstance(place, int) and not 0 <= place < len(items))):
        raise BadRecordError("no_answer", f"{place} chooses none of {len(items)}")
    return environment.getitem(items, place)


# Filters that take the context are never evaluated when a template is compiled.
@pass_context
def _choice(context: Context, items: Any) -> Any:
    return context[RNG].choice(list(items))


@pass_context
def _shuffle(context: Context, items: Any) -> list[Any]:
    shuffled = list(items)
    context[RNG].shuffle(shuffled)
    return shuffled


def _most_frequent(items: Any) -> list[Any] | None:
    """All items that are there most often, in the order of their first use; None of none."""
    counts = Counter(() if isinstance(items, Undefined) else items)
    most = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == most] or None


def _highlight(text: Any) -> Any:
    """promptsource marks text so on its web page; it is not part of the data."""
    return text
