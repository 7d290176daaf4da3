"""Chat templates in Jinja: where they are found, and how they are compiled."""

import json
from dataclasses import dataclass
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines import files
from pipelines.errors import UserError


@dataclass(frozen=True)
class ChatTemplate:
    """The source of a chat template, and the tokens that its configuration names."""

    place: str
    """What messages call it."""

    source: str
    bos: str | None = None
    eos: str | None = None


def read_template(jinja: str) -> ChatTemplate:
    """The chat template that a mixture names.

    Args:
        jinja: the path of a tokenizer_config.json, chat_template.json or chat_template.jinja, local
            or remote; or the template itself, which is told by `{{` or `{%`.

    Raises:
        UserError: it cannot be read, or holds no chat template.
    """
    if "{{" in jinja or "{%" in jinja:
        return ChatTemplate("chat.jinja", jinja)
    try:
        text = files.read_bytes(jinja).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{jinja}: cannot read the chat template: {error}") from error
    return _of_config(jinja, text) if jinja.endswith(".json") else ChatTemplate(jinja, text)


def _of_config(path: str, text: str) -> ChatTemplate:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):
        found = _named(path, found)
    if not isinstance(found, str):
        raise UserError(
            f"{path}: no 'chat_template' in it; it may be in a chat_template.jinja beside it"
        )
    return ChatTemplate(path, found, _token(config, "bos_token"), _token(config, "eos_token"))


def _named(path: str, templates: list[Any]) -> Any:
    """Of several templates, each with a name, the one that is for plain conversations."""
    known = {x.get("name"): x.get("template") for x in templates if isinstance(x, dict)}
    if "default" not in known:
        names = ", ".join(sorted(map(str, known))) or "none"
        raise UserError(
            f"{path}: no chat template is called 'default' ({names}); "
            "write the one that is meant into a file and name that"
        )
    return known["default"]


def _token(config: dict[str, Any], name: str) -> str | None:
    token = config.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def compiled(template: ChatTemplate) -> Template:
    """A template that can be rendered, sandboxed.

    Raises:
        UserError: it is no Jinja, or calls what would not give the same text each time.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    # The same record must give the same text: no chance, and no dates (there is no strftime_now).
    del environment.globals["lipsum"], environment.filters["random"]
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template.source, {"raise_exception": _raise_exception})
    except TemplateError as error:
        raise UserError(f"{template.place}: not a usable Jinja template: {error}") from None


class _Generation(Extension):
    """`{% generation %}` tells other trainers what is learned; here the roles do."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, indent: int | None = None, *, ensure_ascii: bool = False, **layout: Any
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **layout)
