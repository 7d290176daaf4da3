"""Chat templates in Jinja, compiled: sandboxed, and with what transformers puts into them."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.errors import UserError
from pipelines.templates.text_marks import GENERATED, escaped_marks

_TAG = re.compile(r"(?=\S*\w)(?=\S*[^\w\s])\S{4,}")


@dataclass(frozen=True)
class Compiled:
    """A template that can be rendered, and what its source says of it."""

    place: str
    plain: Template
    marked: Template
    """The same, but marks stand around what `{% generation %}` encloses."""

    generation: bool
    """Whether there is a `{% generation %}`."""

    variables: frozenset[str]
    """Variables that it reads, its own ones too."""

    words: frozenset[str]
    """Names of fields and strings that stand in its expressions."""

    tags: frozenset[str]
    """Of these strings the ones with a sign in them and no blanks: `</think>`, `/no_think`."""


def compiled(place: str, source: str, *, date: datetime | None) -> Compiled:
    """A template, compiled.

    Args:
        place: what messages call it.
        source: the template.
        date: what `strftime_now` formats; None where there is no such function.

    Raises:
        UserError: it is no Jinja, or calls what would not give the same text each time.
    """
    plain, marked = _environment(marks=False), _environment(marks=True)
    names: dict[str, Any] = {"raise_exception": _raise_exception}
    if date is not None:
        names["strftime_now"] = date.strftime
    try:
        tree = plain.parse(source)
        templates = plain.from_string(source, names), marked.from_string(source, names)
    except TemplateError as error:
        raise UserError(f"{place}: not a usable Jinja template: {error}") from None
    if date is None and _calls_date(tree):
        raise UserError(
            f"{place}: the chat template writes today's date (strftime_now), so that it would not "
            "give the same text each time; give a fixed one with `chat.date`"
        )
    strings = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return Compiled(
        place,
        *templates,
        any(isinstance(block.call.node, nodes.ExtensionAttribute) for block in _blocks(tree)),
        frozenset(node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"),
        frozenset(strings | {node.attr for node in tree.find_all(nodes.Getattr)}),
        frozenset(string.strip() for string in strings if _TAG.fullmatch(string.strip())),
    )


def _blocks(tree: nodes.Template) -> Iterable[nodes.CallBlock]:
    return tree.find_all(nodes.CallBlock)


def _environment(*, marks: bool) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _MarkedGeneration if marks else _Generation],
    )
    # The same record must give the same text: no chance, and no dates but the mixture's.
    del environment.globals["lipsum"], environment.filters["random"]
    environment.filters["tojson"] = _marked_json if marks else _to_json
    return environment


class _Generation(Extension):
    """`{% generation %}`, which says what is learned."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("enclosed"), [], [], body).set_lineno(line)

    def enclosed(self, caller: Callable[[], str]) -> str:
        return caller()


class _MarkedGeneration(_Generation):
    def enclosed(self, caller: Callable[[], str]) -> str:
        before, behind = GENERATED
        return f"{before}{caller()}{behind}"


def _calls_date(tree: nodes.Template) -> bool:
    """Whether the date is written without asking first whether there is one."""
    calls = [node.node for node in tree.find_all(nodes.Call)]
    tests = [node.node for node in tree.find_all(nodes.Test) if node.name == "defined"]
    called, asked = (
        any(isinstance(node, nodes.Name) and node.name == "strftime_now" for node in found)
        for found in (calls, tests)
    )
    return called and not asked


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _marked_json(value: Any, *layout: Any, **named: Any) -> str:
    return escaped_marks(_to_json(value, *layout, **named))
