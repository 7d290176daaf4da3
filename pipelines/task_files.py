"""Task files of Natural Instructions, versions 1 and 2 → raw records, one an instance."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.formats import without_compression
from pipelines.records import RawRecord

_EXAMPLES = "Positive Examples"


def task_name(path: str) -> str:
    """A file's name without folder and endings: `task284_imdb` of `ni/task284_imdb.json.gz`."""
    return os.path.splitext(without_compression(os.path.basename(path)))[0]


def task_records(content: bytes, path: str) -> Iterator[RawRecord]:
    """The positive examples of a task and then its instances, counted on as rows.

    A record has `task`, `definition`, `shown` (of positive examples), `id` (made from the row
    where the file has none), `input` and `output`, the first where there are several.

    Raises:
        ValueError: the content is no JSON, or no task.
    """
    task = json.loads(content)
    if not isinstance(task, Mapping) or not isinstance(task.get("Instances"), list):
        raise ValueError("not a task of Natural Instructions: it has no list `Instances`")
    inner = task.get("Examples")  # where version 1 keeps them
    examples = (inner if isinstance(inner, Mapping) else task).get(_EXAMPLES) or []
    name, definition = task_name(path), task.get("Definition")
    shown = examples if isinstance(examples, list) else [examples]
    for row, instance in enumerate([*shown, *task["Instances"]]):
        record = _record(instance, name, row)
        record |= {"definition": definition, "shown": row < len(shown)}
        yield RawRecord(record, row, -1)


def _record(instance: Any, task: str, row: int) -> dict[str, Any]:
    if not isinstance(instance, Mapping):
        return {"task": task, "id": f"{task}-{row}"}  # dropped as a record without text
    output = instance.get("output")
    return {
        "task": task,
        "id": str(instance.get("id") or f"{task}-{row}"),
        "input": instance.get("input"),
        "output": output[0] if isinstance(output, list) and output else output,
    }
