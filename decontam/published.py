"""Instances from a scenario's own published files, and from the hub.

A `Location` of the benchmark file says which files, and by which templates a record becomes the
text that HELM makes of it.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from decontam.benchmark_file import Location, Scenario
from decontam.benchmark_sources import Draft, SourceFile, json_lines, json_value, source_files
from decontam.records import DecontamError, Instance
from decontam.template import Template, did_you_mean, file_regex, parse_split_rule


class Record(NamedTuple):
    """One record of a published file."""

    place: str
    rule: str
    """The split, or the rule that tells it."""

    number: int
    total: int
    """It is the `number`-th, from 0, of `total` records of its file."""

    fields: Mapping[str, Any]


def published_instances(
    name: str, scenario: Scenario, location: Location, records: Iterable[Record]
) -> Iterator[Draft]:
    """The instances that a location's records stand for.

    Raises:
        DecontamError: a record lacks a field, has no input or several, or an unknown split.
    """
    counts: dict[str, int] = defaultdict(int)
    for record in records:
        try:
            yield Draft(record.place, _instance(name, scenario, location, record, counts))
        except DecontamError as error:
            raise DecontamError(f"{record.place}: scenario {name}: {error}") from None


def _instance(
    name: str, scenario: Scenario, location: Location, record: Record, counts: dict[str, int]
) -> Instance:
    fields = record.fields
    variant = _only(location.variant, fields, "variant") if location.variant else ""
    number = counts[variant]
    counts[variant] += 1
    references = [text for t in location.references for text in t.texts(fields)]
    wrong = [text for t in location.wrong for text in t.texts(fields)]
    correct = [True] * len(references)
    if location.correct:
        right = _only(location.correct, fields, "correct")
        if not right.isdecimal() or int(right) >= len(references):
            raise DecontamError(
                f"the right reference is '{right}', not a position below {len(references)}"
            )
        correct = [reference == references[int(right)] for reference in references]
    return Instance(
        scenario=name,
        variant=f"{scenario.variant}={variant}" if variant else "",
        split=_split(location, record),
        id=_id(location, fields) or f"id{number}",
        input=_only(location.input, fields, "input"),
        references=(*references, *wrong),
        correct=(*correct, *(False for _ in wrong)),
    )


def _id(location: Location, fields: Mapping[str, Any]) -> str:
    if location.id is None:
        return str(fields.get("id", "")) if location.path else ""
    return _only(location.id, fields, "id")


def _only(template: Template, fields: Mapping[str, Any], what: str) -> str:
    texts = template.texts(fields)
    if len(texts) > 1:
        raise DecontamError(f"`{what}` '{template.source}' stands for {len(texts)} texts, not one")
    return texts[0] if texts else ""


def _split(location: Location, record: Record) -> str:
    rule = record.rule
    if "{" in rule:
        told = _only(Template.parse(rule), record.fields, "split")
        known = location.splits or {split: split for split in ("train", "valid", "test")}
        if told not in known:
            hint = did_you_mean(told, known) or f"; known: {', '.join(known)}"
            raise DecontamError(f"there is no split '{told}'{hint}")
        rule = known[told]
    start = 0.0
    for split, share in parse_split_rule(rule):
        start += share
        if record.number < int(record.total * start):
            return split
    return split  # pyright: ignore[reportPossiblyUnboundVariable]


def matching_files(
    location: Location, files: Sequence[SourceFile]
) -> list[tuple[str, SourceFile, dict[str, str]]]:
    """(split rule, file, fields out of its name) of every file that a pattern fits, in order."""
    found: list[tuple[str, SourceFile, dict[str, str]]] = []
    for pattern, rule in location.files.items():
        regex = re.compile(file_regex(pattern))
        matches = ((file, regex.search(file.name)) for file in files)
        found += [(rule, file, match.groupdict()) for file, match in matches if match]
    return found


def file_records(
    location: Location, file: SourceFile, rule: str, extra: Mapping[str, str]
) -> Iterator[Record]:
    """The records of one file, each with the fields out of the file's name.

    Raises:
        DecontamError: the file is damaged, holds no record, or something that is none.
    """
    rows = list(_rows(location, file))
    if not rows:
        raise DecontamError(f"{file.place}: holds no record; fetch it again, or leave it out")
    for number, (place, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise DecontamError(f"{place}: a record must be an object, not {str(row)[:60]!r}")
        yield Record(place, rule, number, len(rows), {**cast("dict[str, Any]", row), **extra})


def own_records(location: Location, folder: Path) -> tuple[str, Iterator[Record]]:
    """Path and records of a location's `path`, which starts from a folder if it is relative."""
    assert location.path is not None
    path = folder / location.path
    if not path.is_file():
        raise DecontamError(f"{path}: there is no such file; `path` starts from {folder}")
    file = source_files(path)[0]
    return file.path, file_records(location, file, location.split, {})


def _rows(location: Location, file: SourceFile) -> Iterator[tuple[str, Any]]:
    kind = location.format or file.name.rpartition(".")[2]
    if kind == "jsonl":
        return json_lines(file)
    if kind == "json":
        value = json_value(file.read(), file.place)
        if not isinstance(value, list):
            raise DecontamError(f"{file.place}: must be a list of records")
        return ((f"{file.place} record {i}", row) for i, row in enumerate(cast("list[Any]", value)))
    text = _text(file)
    if kind in ("csv", "tsv"):
        return _table_rows(location, file.place, text, kind)
    if kind == "text":
        return iter([(file.place, {"text": text})])
    raise DecontamError(f"{file.place}: what format is '.{kind}'? Say `format:` in its location")


def _text(file: SourceFile) -> str:
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecontamError(f"{file.place}: not UTF-8 at byte {error.start}") from None


def _table_rows(location: Location, place: str, text: str, kind: str) -> Iterator[tuple[str, Any]]:
    quoted = location.quoted if location.quoted is not None else kind == "csv"
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="," if kind == "csv" else "\t",
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=quoted,
    )
    columns = location.columns
    try:
        for row in reader:
            if not columns:
                columns = row
            elif len(row) == len(columns):
                yield f"{place}:{reader.line_num}", dict(zip(columns, row, strict=True))
            elif row:
                raise DecontamError(
                    f"{place}:{reader.line_num}: {len(row)} columns, not {len(columns)}"
                )
    except csv.Error as error:
        raise DecontamError(f"{place}:{reader.line_num}: not a {kind} table ({error})") from None


def hub_records(location: Location) -> Iterator[Record]:
    """The records of a hub data set's splits, in the order of `splits`; needs the network.

    Labels that the data set stores as numbers become their names.

    Raises:
        DecontamError: the hub or the data set cannot be reached.
    """
    import datasets

    assert location.hub is not None

    for theirs, rule in location.splits.items():
        place = f"hf://{location.hub}/{location.config or ''} {theirs}"
        try:
            rows: Any = datasets.load_dataset(
                location.hub, location.config, split=theirs, revision=location.revision
            )
        except Exception as error:  # every kind of client error, each hub version its own
            raise DecontamError(f"{place}: {type(error).__name__}: {error}") from error
        names = {
            key: feature.names
            for key, feature in rows.features.items()
            if isinstance(feature, datasets.ClassLabel)
        }
        for number, row in enumerate(rows):
            labels = {k: kinds[row[k]] for k, kinds in names.items() if isinstance(row[k], int)}
            yield Record(f"{place} row {number}", rule, number, len(rows), {**row, **labels})
