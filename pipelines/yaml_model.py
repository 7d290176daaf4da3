"""YAML → a checked model: all faults at once, with line, rule and suggestion."""

import os
import re
import sysconfig
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.errors import FaultsError, UserError, did_you_mean

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

_RULES = {
    "missing": "is missing",
    "string_type": "must be text; put it in quotes",
    "string_pattern_mismatch": "must be letters, digits, '.', '_' or '-', no sign first",
    "list_type": "must be text or a list of texts",
    "tuple_type": "must be a list",
    "too_short": "needs at least one item",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "fraction_parsing": "must be a number, such as 25, 0.25 or 1/3",
    "fraction_type": "must be a number, such as 25, 0.25 or 1/3",
}
"""What the checker's kinds of fault mean in a file; other kinds say it well themselves."""


def parse_model(
    content: bytes,
    model: type[Model],
    overrides: Sequence[str] = (),
    *,
    path: str,
    what: str,
    holds: str,
) -> Model:
    """The checked model that a YAML file describes.

    `${NAME}` in the file stands for an environment variable or one of Python's install paths
    (`stdlib`, `purelib`, … as `python -m sysconfig` lists them).

    Args:
        content: what stands in the file.
        model: what it has to be.
        overrides: `KEY.KEY=VALUE` changes a key, `KEY.KEY=null` removes it.
        path: the file's name, for messages.
        what: what such a file is, for messages: `mixture`.
        holds: its chief keys, for the message that it is none: `` `a`, `b` and `c` ``.

    Raises:
        UserError: the content is not YAML, or no mapping.
        FaultsError: it is, but not such a model; every fault is named.
    """
    faults = _Faults(what)
    value = _parse(content, path, faults, holds)
    for override in overrides:
        value = _override(value, override, faults)
    value = _expand(value, (), faults)
    try:
        checked = model.model_validate(value)
    except ValidationError as error:
        found = error.errors()
        for fault in found:
            if fault["type"] == "too_short" and any(_inside(f["loc"], fault["loc"]) for f in found):
                continue  # what it lacks are the items that are faulty
            location = _without_noise(fault["loc"], value)
            faults.add(location, _describe(fault, location, model))
        raise FaultsError(path, faults.in_order()) from None
    if faults.found:
        raise FaultsError(path, faults.in_order())
    return checked


def _inside(location: Location, outer: Location) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


class _Faults:
    """The faults found so far, and where the keys of the file were written."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.lines: dict[Location, int] = {}
        self.overridden: dict[Location, str] = {}
        self.found: dict[Location | str, tuple[int, str]] = {}

    def add(self, location: Location, message: str) -> None:
        """Note a fault; only the first of a place counts, what follows from it is noise."""
        if location not in self.found:
            line, place = self._place(location)
            self.found[location] = line, f"{place}{_dotted(location) or self.what}: {message}"

    def add_override(self, override: str, message: str) -> None:
        """Note a fault of a `--set` itself."""
        self.found[override] = 0, f"--set {override}: {message}"

    def in_order(self) -> list[str]:
        """The messages by line; those without a line come first."""
        return [message for _, message in sorted(self.found.values(), key=lambda fault: fault[0])]

    def _place(self, location: Location) -> tuple[int, str]:
        for end in range(len(location), 0, -1):
            known = location[:end]
            if known in self.overridden:
                return 0, f"--set {self.overridden[known]}: "
            if known in self.lines:
                return self.lines[known], f"line {self.lines[known]}: "
        return 0, ""


def _parse(content: bytes, path: str, faults: _Faults, holds: str) -> dict[str, Any]:
    """The mapping that a file holds; faults are keys that it names twice."""
    what = faults.what
    try:
        loader = yaml.SafeLoader(content.decode())
        loader.name = path
        node = loader.get_single_node()
        _read_positions(node, (), faults)
        value = loader.construct_document(node) if node else None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot read the {what}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    except RecursionError:
        raise UserError(f"{path}: not a {what}: an alias (*name) stands inside itself") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a {what} is a mapping with {holds}")
    return value


def _read_positions(node: yaml.Node | None, location: Location, faults: _Faults) -> None:
    """Note the line of every key and item below a node, and keys that a mapping names twice.

    Keys become the text that stands in the file: `2020` and `yes` are names like any other.
    """
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            faults.lines[(*location, i)] = child.start_mark.line + 1
            _read_positions(child, (*location, i), faults)
    if not isinstance(node, yaml.MappingNode):
        return
    named: set[str] = set()
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # not hashable: constructing the value says so
        if key.tag == "tag:yaml.org,2002:merge":
            _read_positions(child, location, faults)
            continue
        key.tag = "tag:yaml.org,2002:str"
        here = (*location, key.value)
        faults.lines[here] = key.start_mark.line + 1
        if key.value in named:
            faults.add(here, "is named twice")
        named.add(key.value)
        _read_positions(child, here, faults)


def _override(value: dict[str, Any], override: str, faults: _Faults) -> dict[str, Any]:
    """The mapping with one `a.b=value` applied."""
    key, equals, text = override.partition("=")
    location: Location = tuple(key.split("."))
    try:
        if not equals or not all(location):
            raise ValueError("write KEY=VALUE, for instance tokens=20000000")
        changed = _replaced(value, [str(part) for part in location], yaml.safe_load(text))
    except yaml.YAMLError:
        faults.add_override(override, "the value is not valid YAML; quote it")
    except ValueError as error:
        faults.add_override(override, str(error))
    else:
        faults.overridden[location] = override
        return changed
    return value


def _replaced(value: Any, keys: Sequence[str], new: Any) -> dict[str, Any]:
    """A copy of nested mappings with one key replaced, or removed where `new` is None."""
    key, *rest = keys
    if new is None and key not in value:
        raise ValueError(f"there is no '{key}' to remove{did_you_mean(key, value)}")
    if rest:
        inner = value.get(key)
        if not isinstance(inner, dict | None):
            raise ValueError(f"'{key}' holds no keys")
        return {**value, key: _replaced(inner or {}, rest, new)}
    if new is None:
        return {k: v for k, v in value.items() if k != key}
    return {**value, key: new}


def _expand(value: Any, location: Location, faults: _Faults) -> Any:
    """The value with every `${NAME}` in its texts replaced."""
    if isinstance(value, dict):
        return {k: _expand(v, (*location, k), faults) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, (*location, i), faults) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    names: Mapping[str, str] = {**sysconfig.get_paths(), **os.environ}

    def variable(match: re.Match[str]) -> str:
        if (name := match[1]) not in names:
            close = did_you_mean(name, names)
            faults.add(location, f"no environment variable ${{{name}}} is set{close}")
        return names.get(name, "")

    return re.sub(r"\$\{(\w+)\}", variable, value)


def _without_noise(location: Location, value: Any) -> Location:
    """A location without the checker's own inner steps: keys and items of the file alone."""
    kept: list[str | int] = []
    for part in location:
        if isinstance(value, dict):
            kept.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            kept.append(part)
            value = value[part]
    return tuple(kept)


def _describe(fault: ErrorDetails, location: Location, model: type[BaseModel]) -> str:
    """The rule that is broken, what was given, and what may have been meant."""
    kind, given = fault["type"], fault["input"]
    if kind == "value_error" and isinstance(given, int | float):
        kind = "fraction_parsing"  # only weights judge numbers themselves
    if kind == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = did_you_mean(str(location[-1]), known)
        return f"no such key{close or '; known: ' + ', '.join(known)}"
    if kind == "model_type":
        return f"must hold keys: {', '.join(_known_keys(model, location))}{_shown(given)}"
    if kind == "missing":
        return _RULES[kind]
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
    message = _RULES.get(kind, message) + _shown(given)
    if isinstance(given, str) and kind == "literal_error":
        message += did_you_mean(given, re.findall(r"'([^']+)'", fault["msg"]))
    if isinstance(given, str) and kind == "int_parsing":
        message += _whole_number(given)
    return message


def _shown(given: Any) -> str:
    if isinstance(given, bool):
        return f" (given: {str(given).lower()})"
    if given is None:
        return " (given: nothing)"
    return f" (given: {given!r})" if isinstance(given, str | int | float) else ""


def _whole_number(given: str) -> str:
    """YAML takes 1e9 and 1,000 for text; say how to write them."""
    if match := re.fullmatch(r"(\d{1,9})(?:\.0*)?[eE]\+?(\d{1,2})", given):
        return f"; write {int(match[1]) * 10 ** int(match[2]):_}"
    if re.fullmatch(r"\d{1,3}(,\d{3})+", given):
        return f"; write {given.replace(',', '_')}"
    return ""


def _known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that a place of the file may have."""
    here: Any = model
    for part in location:
        here = get_args(here)[1] if get_origin(here) is dict else _models(here).get(str(part))
    return list(_models(here))


def _models(model: Any) -> dict[str, Any]:
    """What stands behind each key of a pydantic model: of `X | None`, the X."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {}
    keys: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        options = [a for a in get_args(info.annotation) if a is not type(None)]
        optional = type(None) in get_args(info.annotation)
        keys[info.alias or name] = options[0] if optional else info.annotation
    return keys


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)
