"""What the plan says of fields that nobody reads, counted in the sampled records."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pipelines.chat_schemas import CHAT_SCHEMAS
from pipelines.chat_turns import TURN_FIELDS, from_json
from pipelines.learn_marks import TEXT_MARKS
from pipelines.prepare_spec import PrepareSpec
from pipelines.record_fields import HARMLESS, is_empty, speaks_of_loss

_VALUES_SHOWN = 3


class FieldSurvey:
    """Counts the fields of records that are neither read nor known to be harmless."""

    def __init__(self, spec: PrepareSpec, fields: frozenset[str]) -> None:
        """Count for one source, whose records have `fields` that are read."""
        template = spec.template
        chat = CHAT_SCHEMAS[template.schema] if template and template.name == "chat" else None
        self._lists = chat.lists if chat else ()
        more = chat.harmless if chat else TEXT_MARKS
        self._known = HARMLESS.union(fields, spec.schema.ignored, more)
        self._known_in_turns = HARMLESS | TURN_FIELDS | {*spec.schema.ignored}
        self._n = 0
        self._unread: Counter[str] = Counter()
        self._loss: dict[str, list[str]] = {}

    def see(self, value: Any) -> None:
        """Count the fields of one record: JSON bytes or a mapping. What is no record has none."""
        if isinstance(value, bytes):
            try:
                value = msgspec.json.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return
        if not isinstance(value, Mapping):
            return
        self._n += 1
        found = {name: field for name, field in self._fields(value) if not is_empty(field)}
        self._unread.update(found.keys())
        for name, field in found.items():
            if speaks_of_loss(name.rpartition(".")[2]):
                shown = self._loss.setdefault(name, [])
                if (text := _shown(field)) not in shown:
                    shown.append(text)

    def see_columns(self, names: Iterable[str], n: int) -> None:
        """Count columns of a table that were not read, as fields that all of its records have."""
        self._unread.update({name: n for name in names if not self._is_known(name)})

    def _is_known(self, name: str) -> bool:
        return name in self._known or name.replace("-", "_") in self._known

    def _fields(self, record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in record.items():
            if not self._is_known(name):
                yield name, value
            if name in self._lists:
                for turn in _turns(value):
                    for inner, field in turn.items():
                        if inner not in self._known_in_turns and not is_empty(field):
                            yield f"{name}.{inner}", field

    @property
    def unread(self) -> dict[str, float]:
        """Shares of the records that have each of the fields, the greatest first."""
        ranked = sorted(self._unread.items(), key=lambda item: (-item[1], item[0]))
        return {name: n / self._n for name, n in ranked}

    @property
    def questions(self) -> list[str]:
        """Of fields that speak of loss or training: what the mixture has to say before a build."""
        return [
            f"field '{name}' speaks of loss or training, and nothing says what it means (values: "
            f"{', '.join(shown[:_VALUES_SHOWN])}{', …' if len(shown) > _VALUES_SHOWN else ''}); "
            f"where it may be passed over, write `ignore_fields: [{name.rpartition('.')[2]}]`, "
            f"else rename it to `train` (true: learned)"
            for name, shown in self._loss.items()
        ]


def _turns(value: Any) -> Sequence[Mapping[str, Any]]:
    value = from_json(value.decode(errors="replace") if isinstance(value, bytes) else value)
    if isinstance(value, Mapping):
        return [value]
    return [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list) else []


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:40]
