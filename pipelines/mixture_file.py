"""YAML → checked `Mixture`: all faults at once, with line, rule and suggestion."""

import os
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines import files
from pipelines.errors import FaultsError, UserError, did_you_mean
from pipelines.mixture import Mixture

Location = tuple[str | int, ...]


def load_mixture(path: str, overrides: Sequence[str] = ()) -> Mixture:
    """Read a mixture file and apply `KEY.KEY=VALUE` overrides (`KEY.KEY=null` removes a key).

    `${NAME}` in the file stands for an environment variable or one of Python's install paths
    (`stdlib`, `purelib`, … as `python -m sysconfig` lists them).

    Raises:
        UserError: the file cannot be read or is not YAML.
        FaultsError: it is YAML but no mixture; every fault is named.
    """
    try:
        text = files.read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the mixture: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines, faults = _positions(node)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a mixture is a mapping with `name`, `tokens` and `sources`")
    for override in overrides:
        faults += _override(value, override)
    value = _expand(value, faults)
    try:
        mixture = Mixture.model_validate(value)
    except ValidationError as error:
        faults += [_describe(fault, lines) for fault in error.errors()]
        raise FaultsError(path, faults) from None
    if faults:
        raise FaultsError(path, faults)
    return mixture


def _positions(node: yaml.Node | None) -> tuple[dict[Location, int], list[str]]:
    """The line of every key, and a fault for every key that a mapping names twice."""
    lines: dict[Location, int] = {}
    faults: list[str] = []

    def walk(node: yaml.Node | None, location: Location) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, child in node.value:
                here = (*location, key.value)
                if key.value in seen:
                    faults.append(f"line {key.start_mark.line + 1}: {_dotted(here)}: named twice")
                seen.add(key.value)
                lines[here] = key.start_mark.line + 1
                walk(child, here)
        elif isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                lines[(*location, i)] = child.start_mark.line + 1
                walk(child, (*location, i))

    walk(node, ())
    return lines, faults


def _override(value: dict[str, Any], override: str) -> list[str]:
    """Apply one `a.b=value` to the mapping in place; returns faults."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        return [f"--set {override}: write KEY=VALUE, for instance tokens=20000000"]
    *parents, last = key.split(".")
    target: Any = value
    for parent in parents:
        if not isinstance(target, dict) or not isinstance(target.setdefault(parent, {}), dict):
            return [f"--set {override}: '{parent}' holds no keys"]
        target = target[parent]
    new = yaml.safe_load(text)
    if new is None:
        if last not in target:
            return [f"--set {override}: there is no '{last}' to remove{did_you_mean(last, target)}"]
        del target[last]
    else:
        target[last] = new
    return []


def _expand(value: Any, faults: list[str]) -> Any:
    names: Mapping[str, str] = {**sysconfig.get_paths(), **os.environ}

    def variable(match: re.Match[str]) -> str:
        if (name := match[1]) not in names:
            faults.append(f"${{{name}}}: no environment variable of this name is set")
        return names.get(name, "")

    if isinstance(value, dict):
        return {k: _expand(v, faults) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, faults) for v in value]
    return re.sub(r"\$\{(\w+)\}", variable, value) if isinstance(value, str) else value


def _describe(fault: ErrorDetails, lines: Mapping[Location, int]) -> str:
    location = tuple(part for part in fault["loc"] if part != "function-before[_as_list()]")
    known = location
    while known and known not in lines:
        known = known[:-1]
    place = f"line {lines[known]}: " if known else ""
    if fault["type"] == "extra_forbidden":
        close = did_you_mean(str(location[-1]), _known_keys(location[:-1]))
        return f"{place}{_dotted(location)}: no such key{close}"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | None) else ""
    if isinstance(given, str) and fault["type"] == "literal_error":
        message += did_you_mean(given, re.findall(r"'([^']+)'", message))
    return f"{place}{_dotted(location) or 'mixture'}: {message}{shown}"


def _known_keys(location: Location) -> Iterator[str]:
    """The keys that the model at a location knows."""
    model: Any = Mixture
    for part in location:
        fields = (
            model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        )
        by_key = {info.alias or name: info.annotation for name, info in fields.items()}
        model = _model_in(by_key[str(part)]) if part in by_key else model
    for name, info in model.model_fields.items():
        yield info.alias or name


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside `X`, `X | None` or `dict[str, X]`."""
    arguments = getattr(annotation, "__args__", ())
    nested = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
    return nested[0] if nested else annotation


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)
