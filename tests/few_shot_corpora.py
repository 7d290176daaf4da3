"""Tasks: as the token store holds them, and as files with builds made of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import xxhash
from conftest import Builder, Built, prose

from pipelines.contexts import Frame
from pipelines.corpus import Corpus
from pipelines.spans import Spans


@dataclass
class Task:
    """Tokens of text of what stands before the examples of a task, and of its examples."""

    definition: int | None
    shown: list[int]
    examples: list[int]


def corpus_of(tasks: Sequence[Task], frame: Frame, rng: random.Random) -> Corpus:
    """A corpus of tasks; their documents lie in any order, as files give them.

    The last third of an example carries loss, but for its last token.
    """
    rows = [
        (group, header, n)
        for group, task in enumerate(tasks)
        for header, lengths in (
            (1, [task.definition] if task.definition else []), (2, task.shown), (0, task.examples)
        )
        for n in lengths
    ]  # fmt: skip
    rng.shuffle(rows)
    n = len(rows)
    columns = np.array(rows, np.int64).reshape(n, 3)
    n_tokens = columns[:, 2] + frame.bos + frame.eos
    silent: list[tuple[int, int]] = []
    for n_text, kind in zip(columns[:, 2].tolist(), columns[:, 1].tolist(), strict=True):
        prompt = n_text - n_text // 3 - 1 if kind != 1 and n_text > 1 else n_text
        answer_ends = max(prompt, n_text - 1)
        end = n_text + frame.bos + frame.eos
        silent += [(0, frame.bos + prompt), (frame.bos + answer_ends, end)]
    start, end = np.array(silent, np.int64).reshape(-1, 2).T
    no_loss = Spans(np.arange(n + 1) * 2, start, end)
    names = [f"task {len(tasks) - i}" for i in range(len(tasks))]  # not in the order of their names
    values: dict[str, Any] = {
        "batches": ["batch"], "batch_files": [["a"]], "first_lines": [0],
        "batch": np.zeros(n, np.int32), "start": np.cumsum(n_tokens) - n_tokens,
        "n_tokens": n_tokens, "no_loss": no_loss, "group": columns[:, 0].astype(np.int32),
        "header": columns[:, 1].astype(np.int8), "groups": names,
        "uid": [i.to_bytes(16, "big") for i in range(n)], "n_read": n, "n_not_sampled": 0,
        "n_split_off": 0, "n_definitions": 0, "n_shortened": 0, "n_text_bytes": 0, "decontam": {},
    }  # fmt: skip
    return Corpus(**values)


Record = dict[str, Any]
NI = {"weight": 1, "path": "ni", "schema": "natural_instructions", "policy": "few_shot",
      "loss": "answers"}  # fmt: skip
P3 = {"weight": 1, "path": "p3*.jsonl", "schema": "p3", "policy": "few_shot", "loss": "answers"}


@cache
def task(number: int, n: int = 80) -> Record:
    rng = random.Random(number)
    shown, *instances = (
        {"input": prose(rng, rng.randint(2, 14)), "output": prose(rng, rng.randint(1, 4))}
        for _ in range(n + 1)
    )
    return {
        "Definition": [f"Do as number {number} says."],
        "Positive Examples": [shown | {"explanation": "-"}],
        "Instances": [{"input": i["input"], "output": [i["output"]]} for i in instances],
    }


def write_tasks(builder: Builder, tasks: dict[str, Record]) -> None:
    folder = builder.folder / "ni"
    folder.mkdir(exist_ok=True)
    for name, content in tasks.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def three_tasks(builder: Builder) -> dict[str, Record]:
    tasks = {f"task{i}": task(i) for i in range(3)}
    write_tasks(builder, tasks)
    return tasks


@cache
def prompts(seed: int, n: int = 90) -> list[Record]:
    """P3 records of three tasks, mixed."""
    rng = random.Random(seed)
    return [
        {"inputs": prose(rng, rng.randint(4, 20)), "targets": f"{prose(rng, 2)}{i}",
         "task": f"qa_{i % 3}"}
        for i in range(n)
    ]  # fmt: skip


def uid(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())


def known(tasks: dict[str, Record]) -> dict[bytes, tuple[str, int, str, str]]:
    """What the documents of task files are: (task, header, text, answer) by id."""
    found: dict[bytes, tuple[str, int, str, str]] = {}
    for name, content in tasks.items():
        definition = f"Definition: {content['Definition'][0]}\n\n"
        found[uid(f"{name}\0{definition}")] = (name, 1, definition, "")
        for header, key in ((2, "Positive Examples"), (0, "Instances")):
            for one in content[key]:
                output = one["output"] if header else one["output"][0]
                text = f"Input: {one['input']}\nOutput: {output}\n\n"
                found.setdefault(uid(text), (name, header, text, output))
    return found


def sequences(built: Built) -> Iterator[Any]:
    for position in range(len(built.dataset)):
        yield built.dataset.sequence(position)


def contexts(sequence: Any) -> list[list[Record]]:
    found: list[list[Record]] = []
    for segment in sequence.segments:
        if segment["continues"]:
            found[-1].append(segment)
        else:
            found.append([segment])
    return found


def per_pass(builder: Builder, source: Record, **values: Any) -> int:
    """Tokens of one pass over a source."""
    built = builder.build({"a": source}, output="size", tokens=100, **values)
    return built.accounts[0].tokens_per_pass
