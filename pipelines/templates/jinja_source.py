"""Chat templates in Jinja: where they are found, and what their configuration names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines import files
from pipelines.errors import UserError

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_MORE_TOKENS = "extra_special_tokens"
_TOKENS_MAP = "special_tokens_map.json"
"""An older form, which counts where the configuration does not list its added tokens."""


@dataclass(frozen=True)
class ChatTemplate:
    """The source of a chat template, and the tokens that its configuration names."""

    place: str
    """What messages call it."""

    source: str

    tool_use: str | None = None
    """The source for conversations with tools, where it is another one."""

    tokens: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """What the configuration says of `bos_token`, `eos_token` and others; None where it says that
    there is no such token."""


def read_template(jinja: str) -> ChatTemplate:
    """The chat template that a mixture names.

    Args:
        jinja: a folder with a tokenizer, or the path of a tokenizer_config.json,
            chat_template.json or chat_template.jinja, local or remote; or the template itself,
            which has `{{` or `{%` in it. The tokenizer_config.json beside a template names the
            tokens.

    Raises:
        UserError: it cannot be read, or holds no chat template.
    """
    if "{{" in jinja or "{%" in jinja:
        return ChatTemplate("chat.jinja", jinja)
    folder, _, name = jinja.rpartition("/")
    try:
        if jinja.endswith("/") or {CONFIG, TEMPLATE} & set(files.list_names(jinja)):
            return _of_folder(jinja)
        if jinja.endswith(".json"):
            return _of_json(jinja, folder or ".", name)
        return _of_jinja(jinja, folder or ".", name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{jinja}: cannot read the chat template: {error}") from error


def _of_folder(folder: str) -> ChatTemplate:
    """The template of a model's folder: chat_template.jinja, else the configuration's."""
    name = TEMPLATE if TEMPLATE in files.list_names(folder) else CONFIG
    read = _of_jinja if name == TEMPLATE else _of_json
    return read(files.join(folder, name), folder, name)


def _of_jinja(path: str, folder: str, name: str) -> ChatTemplate:
    source = files.read_bytes(path).decode()
    more = files.join(folder, _MORE_TEMPLATES)
    tool_use = None
    if name == TEMPLATE and "tool_use.jinja" in files.list_names(more):
        tool_use = files.read_bytes(files.join(more, "tool_use.jinja")).decode()
    return ChatTemplate(path, source, tool_use, _tokens_beside(folder))


def _of_json(path: str, folder: str, name: str) -> ChatTemplate:
    config = _object(path)
    found: Any = config.get("chat_template")
    named: dict[Any, Any] = {"default": found}
    if isinstance(found, list):
        named = _by_name(path, found)
    source, tool_use = named.get("default"), named.get("tool_use")
    if source is None and name == CONFIG and TEMPLATE in files.list_names(folder):
        return _of_jinja(files.join(folder, TEMPLATE), folder, TEMPLATE)
    if not isinstance(source, str):
        raise UserError(f"{path}: no 'chat_template' in it, and no {TEMPLATE} beside it")
    tokens = {**_tokens_beside(folder), **_tokens(config)}
    return ChatTemplate(path, source, tool_use if isinstance(tool_use, str) else None, tokens)


def _by_name(path: str, templates: list[Any]) -> dict[Any, Any]:
    """Several templates, each with a name, of which one is for plain conversations."""
    named = {x.get("name"): x.get("template") for x in templates if isinstance(x, dict)}
    if "default" not in named:
        names = ", ".join(sorted(map(str, named))) or "none"
        raise UserError(
            f"{path}: no chat template is called 'default' ({names}); "
            "write the one that is meant into a file and name that"
        )
    return named


def _object(path: str) -> dict[str, Any]:
    try:
        found = json.loads(files.read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _tokens_beside(folder: str) -> dict[str, str | None]:
    names = files.list_names(folder)
    config = _object(files.join(folder, CONFIG)) if CONFIG in names else {}
    found = _tokens(config)
    if _TOKENS_MAP in names and "added_tokens_decoder" not in config:
        found |= _tokens(_object(files.join(folder, _TOKENS_MAP)))
    return found


def _tokens(config: Mapping[str, Any]) -> dict[str, str | None]:
    """All that a configuration calls `…_token`, with what it adds under names of its own."""
    more = config.get(_MORE_TOKENS)
    named = {**config, **(more if isinstance(more, dict) else {})}
    spelled = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in named.items()
        if name.endswith("_token") or (isinstance(more, dict) and name in more)
    }
    return {name: x for name, x in spelled.items() if x is None or isinstance(x, str)}
