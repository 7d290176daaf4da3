"""Every answer that was paid for, kept for good.

A folder of JSON lines files that only grow. Each process writes a file of its own, so that writers
never mix lines; a line that a kill tore is ignored. Where two files answer the same request the
one with the lower number counts: it stays so, whatever comes later.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the model."""

    text: str
    finish: str
    """Why it ends: `stop`, `length`, …; empty where the server does not say."""

    tokens_in: int
    tokens_out: int
    run: str = ""
    """The run that paid for it."""


def request_key(request: Mapping[str, Any]) -> str:
    """Digest of a request: model, messages, parameters and seed."""
    content = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:40]


class Cache:
    """The answers of a folder. Safe for threads; for processes too."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._replies: dict[str, Reply] = {}
        for key, reply in read_replies(folder):
            self._replies.setdefault(key, reply)

    def get(self, key: str) -> Reply | None:
        """The answer to a request, if it was ever given."""
        with self._lock:
            return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer; it is on its way to the disk when this returns."""
        line = json.dumps({"key": key, **asdict(reply)}, sort_keys=True).encode() + b"\n"
        with self._lock:
            if self._file is None:
                self._file = _new_file(self._folder)
            self._file.write(line)
            self._file.flush()
            self._replies.setdefault(key, reply)

    def paid(self, run: str) -> tuple[int, int]:
        """Tokens in and out that a run paid for."""
        with self._lock:
            mine = [reply for reply in self._replies.values() if reply.run == run]
        return sum(r.tokens_in for r in mine), sum(r.tokens_out for r in mine)


def read_replies(folder: str) -> Iterator[tuple[str, Reply]]:
    """All whole lines of a cache's files, in the order in which they count."""
    for name in sorted(_names(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            for line in file:
                if (found := parse_line(line)) is not None:
                    yield found


def parse_line(line: bytes) -> tuple[str, Reply] | None:
    """A line of a cache file; None for one that is torn or no line of a cache."""
    if not line.endswith(b"\n"):
        return None
    try:
        value: dict[str, Any] = json.loads(line)
        key = value.pop("key")
        return str(key), Reply(**value)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _names(folder: str) -> list[str]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [name for name in names if name.endswith(".jsonl")]


def _new_file(folder: str) -> IO[bytes]:
    """The file of the next free number, made by this process alone."""
    os.makedirs(folder, exist_ok=True)
    number = len(_names(folder))
    while True:
        try:
            return open(os.path.join(folder, f"{number:06d}.jsonl"), "xb")
        except FileExistsError:
            number += 1
