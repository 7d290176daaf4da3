"""YAML → checked `BenchmarkFile`: which scenarios there are, where they lie, how to read them.

`helm_core.yaml`, beside this module, is the file for the 16 core scenarios of HELM. One's own
benchmark is one more entry of such a file:

    my_exam:
      locations:
        - path: my_exam.jsonl      # {"input": …, "references": […], "id": …}
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from decontam.records import DecontamError
from decontam.template import Template, did_you_mean, file_regex, parse_split_rule

HELM_CORE = Path(__file__).with_name("helm_core.yaml")
"""The benchmark file of HELM's core scenarios."""

Split = Literal["train", "valid", "test"]
Parts = Literal["both", "input", "reference"]
FileTemplate = Annotated[
    Template, BeforeValidator(lambda value: Template.parse(_expect_text(value)))
]
Format = Literal["jsonl", "json", "csv", "tsv", "text"]


def _expect_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text; put it in quotes")
    return value


def _check_split_rule(rule: str) -> str:
    if "{" not in rule:
        parse_split_rule(rule)
    return rule


SplitRule = Annotated[str, BeforeValidator(_expect_text), BeforeValidator(_check_split_rule)]


def _matching(pattern: str, rule: str) -> BeforeValidator:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(rule)
        return value

    return BeforeValidator(check)


HubName = Annotated[str, _matching(r"[\w.-]+/[\w.-]+", "must be OWNER/NAME")]
ScenarioName = Annotated[str, _matching(r"\w[\w.-]*", "must be letters, digits, '_', '.' or '-'")]


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
    )


class HelmName(_Frozen):
    """How HELM's own files name a scenario: by class and arguments, or by the run's name."""

    class_name: str | None = Field(None, alias="class")
    """Last part of the class name, as light scenarios and `run_spec.json` have it."""

    run: str | None = None
    """What a run directory's name starts with, before its arguments."""

    args: dict[str, str] = {}
    """Arguments that the scenario must have; of several names that fit, the one with most wins."""

    @model_validator(mode="after")
    def _names_something(self) -> "HelmName":
        if self.class_name is None and self.run is None:
            raise ValueError("needs `class`, `run` or both")
        return self


class Location(_Frozen):
    """Files or a hub data set in the scenario's own format, and how HELM makes its text of it.

    Needs `files`, `hub` or `path`; `files` and `hub` together where records are the same in both.
    """

    files: dict[str, SplitRule] = {}
    """Pattern of file names → HELM split. The pattern matches the end of a path, `.gz` and `.zst`
    aside; a tar archive counts as a folder. `*` is anything but `/`; so is `{name}`, which
    becomes a field of each record. The split may be a template, for files that say it per record,
    or a rule such as `train 20%, valid`."""

    hub: HubName | None = None
    """`OWNER/NAME` of a data set on the Hugging Face hub."""

    config: str | None = None
    revision: str | None = None

    path: str | None = None
    """One file, from the folder of this YAML file; its split is `split`."""

    split: SplitRule = "test"
    splits: dict[str, SplitRule] = {}
    """Split as the hub (or a `files` template) names it → HELM split."""

    format: Format | None = None
    """Where the file's ending does not tell: jsonl, json, csv, tsv, or text (a record a file)."""

    columns: list[str] = []
    """Names of the columns of a CSV or TSV file that has no header line."""

    quoted: bool | None = None
    """Whether `"` encloses fields; by default in CSV files and not in TSV files."""

    input: FileTemplate = Template.parse("{input}")
    references: list[FileTemplate] = [Template.parse("{references?}")]
    wrong: list[FileTemplate] = []
    """References that are wrong answers."""

    correct: FileTemplate | None = None
    """Position of the right one of `references`, from 0; left out: all of them are right."""

    id: FileTemplate | None = None
    """Left out: `id0`, `id1`, … as HELM numbers all splits of a scenario together; for a `path`,
    the record's `id` where it has one."""

    variant: FileTemplate | None = None
    """Value of the scenario's `variant` argument."""

    @model_validator(mode="after")
    def _lies_somewhere(self) -> "Location":
        if (self.path is not None) == bool(self.files or self.hub):
            raise ValueError("needs `path`, or else `files`, `hub` or both")
        for pattern in self.files:
            try:
                re.compile(file_regex(pattern))
            except re.error as error:
                raise ValueError(f"'{pattern}' is no pattern of file names: {error}") from None
        if self.hub and not self.splits:
            raise ValueError("a hub data set needs `splits`, such as {validation: valid}")
        return self


class Published(_Frozen):
    """How many instances a scenario has, whole, by the split that HELM puts them in."""

    train: Annotated[int, Field(ge=1)] | None = None
    valid: Annotated[int, Field(ge=1)] | None = None
    test: Annotated[int, Field(ge=1)] | None = None
    """A split that is left out is unknown, or HELM has none."""

    counted: Literal["instances", "inputs"] = "instances"
    """`inputs`: texts that several variants share count once."""

    source: str
    """Who says so."""

    @property
    def splits(self) -> dict[str, int]:
        """The numbers that are known, by split."""
        numbers = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: n for split, n in numbers.items() if n is not None}


class Scenario(_Frozen):
    """One scenario: how to recognise it, where it lies, and whether to look for its text."""

    core: bool = False
    """Whether it is one of HELM's 16 core scenarios."""

    use: bool = True
    """false: the scenario is known, and left out."""

    parts: Parts | None = None
    splits: list[Split] | None = None
    question: str = "all"
    """Where the question begins in an input: behind the last occurrence of this text; `all`: the
    input is nothing but the question; `none`: nothing but a passage (an article to summarize)."""

    variant: str | None = None
    """The argument that tells runs of the scenario apart, such as `subject`."""

    published: Published | None = None
    """Its size, which what is found is compared with; left out: unknown."""

    helm: list[HelmName] = []
    locations: list[Location] = []

    @model_validator(mode="after")
    def _is_somewhere(self) -> "Scenario":
        if not self.helm and not self.locations:
            raise ValueError("needs `helm`, `locations` or both")
        if not self.variant and any(location.variant for location in self.locations):
            raise ValueError(
                "a location has a `variant`: say which argument of HELM's it stands for"
            )
        return self


class BenchmarkFile(_Frozen):
    """Scenarios by name, with what holds for all that do not say otherwise."""

    splits: list[Split] = ["valid", "test"]
    parts: Parts = "both"
    """Which texts to look for: inputs, references, or both."""

    scenarios: dict[ScenarioName, Scenario]


def load_benchmark_file(path: str | Path) -> BenchmarkFile:
    """Read a benchmark file.

    Raises:
        DecontamError: it cannot be read, is not YAML, or has faults; all are named, with lines.
    """
    lines: dict[tuple[str | int, ...], int] = {}
    faults: list[tuple[int, str]] = []
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _read_lines(node, (), lines, faults)
        value = loader.construct_document(node) if node else None
    except (OSError, UnicodeDecodeError) as error:
        raise DecontamError(f"{path}: cannot read the benchmark file: {error}") from None
    except yaml.YAMLError as error:
        raise DecontamError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise DecontamError(f"{path}: an alias (*name) stands inside itself") from None
    try:
        benchmark = BenchmarkFile.model_validate(value)
    except ValidationError as error:
        faults += [_fault(fault, lines) for fault in error.errors()]
    if faults:
        unique = list(dict.fromkeys(message for _, message in sorted(faults)))
        count = f"{len(unique)} fault{'s' if len(unique) > 1 else ''}"
        raise DecontamError("\n  ".join([f"{path}: {count}", *unique]))
    return benchmark  # pyright: ignore[reportPossiblyUnboundVariable]


def _read_lines(
    node: yaml.Node | None,
    place: tuple[str | int, ...],
    lines: dict[tuple[str | int, ...], int],
    faults: list[tuple[int, str]],
) -> None:
    """Note the line of every key and item, and keys that a mapping names twice."""
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            lines[(*place, i)] = child.start_mark.line + 1
            _read_lines(child, (*place, i), lines, faults)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # not hashable: constructing the value says so
        key.tag = "tag:yaml.org,2002:str"
        here, line = (*place, key.value), key.start_mark.line + 1
        if here in lines:
            faults.append((line, f"line {line}: {_dotted(here)}: is named twice"))
        lines[here] = line
        _read_lines(child, here, lines, faults)


def _fault(fault: ErrorDetails, lines: dict[tuple[str | int, ...], int]) -> tuple[int, str]:
    place = tuple(part for part in fault["loc"] if part != "[key]")
    known = [place[:end] for end in range(len(place), 0, -1) if place[:end] in lines]
    line = lines[known[0]] if known else 1
    if fault["type"] == "missing":
        message = "is missing"
    elif fault["type"] == "extra_forbidden":
        keys = _known_keys(place[:-1])
        hint = did_you_mean(str(place[-1]), keys) or f"; known: {', '.join(keys)}"
        message = f"no such key{hint}"
    elif fault["type"] == "model_type":
        message = f"must hold keys: {', '.join(_known_keys(place))}"
    else:
        message = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
        given = fault["input"]
        message += f" (given: {given!r})" if isinstance(given, str | int | float) else ""
    return line, f"line {line}: {_dotted(place) or 'benchmark file'}: {message}"


def _known_keys(place: tuple[str | int, ...]) -> list[str]:
    """The keys that a place of the file may have."""
    depth = [part for part in place if isinstance(part, str)]
    model: type[BaseModel] = BenchmarkFile
    if len(depth) > 1:
        model = (
            Scenario
            if len(depth) == 2
            else {"helm": HelmName, "published": Published}.get(depth[2], Location)
        )
    return [info.alias or name for name, info in model.model_fields.items()]


def _dotted(place: tuple[str | int, ...]) -> str:
    return ".".join(map(str, place))
