"""Questions with their answers, from files as TREC and WebQuestions publish them."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import FaultsError, UserError, did_you_mean

COARSE = {
    "ABBR": "abbreviation", "ENTY": "entity", "DESC": "description", "HUM": "human",
    "LOC": "location", "NUM": "number",
}  # fmt: skip
"""TREC's coarse labels, in the order of the hub's `coarse_label`, and the words asked for."""

FINE = {
    "ABBR:abb": "abbreviation", "ABBR:exp": "expansion", "ENTY:animal": "animal",
    "ENTY:body": "body part", "ENTY:color": "color", "ENTY:cremat": "creative work",
    "ENTY:currency": "currency", "ENTY:dismed": "disease or medicine", "ENTY:event": "event",
    "ENTY:food": "food", "ENTY:instru": "musical instrument", "ENTY:lang": "language",
    "ENTY:letter": "letter", "ENTY:other": "other entity", "ENTY:plant": "plant",
    "ENTY:product": "product", "ENTY:religion": "religion", "ENTY:sport": "sport",
    "ENTY:substance": "substance", "ENTY:symbol": "symbol", "ENTY:techmeth": "technique",
    "ENTY:termeq": "equivalent term", "ENTY:veh": "vehicle", "ENTY:word": "word",
    "DESC:def": "definition", "DESC:desc": "description", "DESC:manner": "manner",
    "DESC:reason": "reason", "HUM:gr": "group", "HUM:ind": "individual", "HUM:title": "title",
    "HUM:desc": "description of a person", "LOC:city": "city", "LOC:country": "country",
    "LOC:mount": "mountain", "LOC:other": "other location", "LOC:state": "state",
    "NUM:code": "code", "NUM:count": "count", "NUM:date": "date", "NUM:dist": "distance",
    "NUM:money": "money", "NUM:ord": "rank", "NUM:other": "other number", "NUM:period": "period",
    "NUM:perc": "percentage", "NUM:speed": "speed", "NUM:temp": "temperature",
    "NUM:volsize": "size", "NUM:weight": "weight",
}  # fmt: skip
"""The same of fine labels and the hub's `fine_label`."""

_DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^\s()"]+))\)')
_TARGET = re.compile(rf"\(list(?: {_DESCRIPTION.pattern})+\)")


@dataclass(frozen=True)
class Question:
    """A question, and the answers that are right; the first is shown in examples."""

    text: str
    answers: tuple[str, ...]


def trec_questions(path: Path, labels: Literal["coarse", "fine"]) -> list[Question]:
    """Questions and their types (Li & Roth 2002), of a file in one of two formats.

    Lines `DESC:manner How did … ?` in Latin-1, as in train_5500.label; or JSON of the hub, lines or
    a list, with `text` and `fine_label` (a name, or its number in edition 2.0 of the data set).

    Raises:
        UserError: the file is not so, or has no questions; every bad line is named.
    """

    def of(fields: Mapping[str, Any]) -> Question:
        coarse, fine = _trec_labels(fields)
        if fine is None and labels == "fine":
            raise UserError("no `fine_label`; --labels coarse does without")
        answer = COARSE[coarse] if labels == "coarse" or fine is None else FINE[fine]
        return Question(_text(fields, "text"), (answer,))

    # The published file has one byte that is no text, where a space should be.
    content = path.read_bytes().replace(b"\xf0", b" ").decode("latin-1")
    if content.lstrip()[:1] in ("[", "{"):
        return _checked(path, _json_records(path), of)
    return _checked(path, _label_lines(content), of)


def web_questions(path: Path) -> list[Question]:
    """Questions and their answers (Berant et al. 2013), of JSON, lines or a list.

    With `utterance` and `targetValue`, as in webquestions.examples.train.json, or with `question`
    and `answers`, as on the hub.

    Raises:
        UserError: the file is not so, or has no questions; every bad line is named.
    """

    def of(fields: Mapping[str, Any]) -> Question:
        if "targetValue" in fields:
            return Question(_text(fields, "utterance"), _target(_text(fields, "targetValue")))
        answers = fields.get("answers")
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise UserError("neither `targetValue` nor a list of texts `answers`")
        return Question(_text(fields, "question"), _answers(answers))

    return _checked(path, _json_records(path), of)


def _checked(
    path: Path, records: Iterable[tuple[str, Any]], of: Callable[[Any], Question]
) -> list[Question]:
    found, faults = list[Question](), list[str]()
    for place, fields in records:
        try:
            found.append(of(fields))
        except UserError as error:
            faults.append(f"{place}: {error}")
    if len(faults) > 10:
        more = f"  … and {len(faults) - 10:,} more; is this a file of --task?"
        raise UserError(
            "\n".join([f"{path}: {len(faults):,} faults", *(f"  {f}" for f in faults[:10]), more])
        )
    if faults:
        raise FaultsError(f"{path}", faults)
    if not found:
        raise UserError(f"{path}: no questions")
    return found


def _label_lines(content: str) -> Iterator[tuple[str, dict[str, str]]]:
    for n, line in enumerate(content.rstrip().split("\n"), 1):
        label, _, text = line.rstrip("\r").partition(" ")
        yield f"line {n}", {"text": text, "fine_label": label}


def _json_records(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = path.read_bytes().decode().strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start:,} is not UTF-8") from error
    whole = content.startswith("[")
    for n, text in enumerate([content] if whole else content.split("\n"), 1):
        try:
            value = json.loads(text)
            json.dumps(value, ensure_ascii=False).encode()  # half a character is no text
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {n}: no JSON: {error}") from error
        for i, fields in enumerate(value if whole else [value], 1):
            if not isinstance(fields, dict):
                raise UserError(
                    f"{path}: {'record' if whole else 'line'} {i if whole else n}: no JSON object"
                )
            yield (f"record {i}" if whole else f"line {n}"), fields


def _trec_labels(fields: Mapping[str, Any]) -> tuple[str, str | None]:
    """The coarse label and, where the record has one, the fine label, both as published."""
    for old in ("label-coarse", "label-fine"):
        if isinstance(fields.get(old), int):
            raise UserError(f"`{old}` is a number of an older edition; give names of labels")
    coarse = fields.get("coarse_label", fields.get("label-coarse"))
    fine = fields.get("fine_label", fields.get("label-fine"))
    coarse, fine = _named(coarse, COARSE), _named(fine, FINE)
    for label in (coarse, fine):
        if label is not None and not isinstance(label, str):
            raise UserError(f"{label!r} is no label: neither a name nor a number of the hub's")
    if fine and ":" not in fine and coarse:
        fine = f"{coarse}:{fine}"  # as the older edition names them
    if fine is None and coarse in COARSE:
        return coarse, None
    if fine is None:
        raise UserError("neither `fine_label` nor `coarse_label`")
    if fine not in FINE:
        close = did_you_mean(fine, FINE) or "; labels are like `DESC:manner`, 50 of them"
        raise UserError(f"{fine!r} is no label{close}")
    return fine.partition(":")[0], fine


def _named(label: Any, names: Mapping[str, str]) -> Any:
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return list(names)[label]
    return label


def _target(text: str) -> tuple[str, ...]:
    if not _TARGET.fullmatch(text):
        raise UserError(f"`targetValue` is no list of descriptions: {text}")
    found = [quoted or bare for quoted, bare in _DESCRIPTION.findall(text)]
    return _answers([re.sub(r"\\(.)", r"\1", answer) for answer in found])


def _text(fields: Mapping[str, Any], name: str) -> str:
    if not isinstance(text := fields.get(name), str) or not text.strip():
        raise UserError(f"no text `{name}`")
    return " ".join(text.split())


def _answers(answers: list[str]) -> tuple[str, ...]:
    found = tuple(" ".join(answer.split()) for answer in answers)
    if not found or not all(found):
        raise UserError("an answer is empty, or there is none")
    return found
