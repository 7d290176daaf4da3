"""What a person sees while a build runs: one updating line, or plain lines in a log.

Progress is read from the files that finished tasks leave behind, so it is the same for every
runner and costs the workers nothing.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True, slots=True)
class Done:
    """How far a stage is."""

    n_tasks: int
    """Files finished: batches, layouts or shards."""

    n_bytes: int
    """Input or output bytes they stand for."""

    n_tokens: int


@dataclass(frozen=True, slots=True)
class Total:
    """How much there is; `exact` is false for an estimate."""

    n_tasks: int
    n_bytes: int
    exact: bool


class Reporter:
    """Writes messages and progress for people, and as JSON lines for machines."""

    def __init__(self, *, quiet: bool, log_json: bool, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._json = log_json
        self._out = stream or sys.stdout
        self._line_open = False

    def say(self, text: str, **event: Any) -> None:
        """A message; `event` is what the JSON log says instead."""
        if self._json:
            self._write_json({"event": "message", "text": text, **event})
        elif not self._quiet:
            self._end_line()
            self._print(text)

    def result(self, text: str, **event: Any) -> None:
        """The outcome: shown even with --quiet."""
        if self._json:
            self._write_json({"event": "result", "text": text, **event})
        else:
            self._end_line()
            self._print(text)

    def fail(self, text: str) -> None:
        """Why the command ends without an outcome, on standard error."""
        if self._json:
            self._write_json({"event": "error", "text": text})
        self._end_line()
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A warning, on standard error."""
        if self._json:
            self._write_json({"event": "warning", "text": text})
        else:
            self._end_line()
            print(f"warning: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, name: str, total: Total, poll: Callable[[], Done]) -> Generator[None]:
        """Show the progress of what the block does, every second (every ten in a log)."""
        stop = threading.Event()
        start, before = time.monotonic(), poll()
        interval = 1.0 if self._out.isatty() and not self._json else 10.0

        def show(final: bool) -> None:
            done, seconds = poll(), time.monotonic() - start
            if self._json:
                self._write_json(_as_event(name, total, before, done, seconds, final=final))
            elif not self._quiet:
                self._show(_as_line(name, total, before, done, seconds, final=final), final=final)

        def watch() -> None:
            while not stop.wait(interval):
                show(False)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        show(True)

    def _show(self, line: str, *, final: bool) -> None:
        if self._out.isatty():
            self._print(f"\r\x1b[K{line}", end="\n" if final else "")
            self._line_open = not final
        else:
            self._print(line)

    def _print(self, text: str, end: str = "\n") -> None:
        """Write, unless nobody reads any more (`| head`): that is no reason to stop a build."""
        with suppress(BrokenPipeError):
            print(text, end=end, file=self._out, flush=True)

    def _end_line(self) -> None:
        if self._line_open:
            self._print("")
            self._line_open = False

    def _write_json(self, event: dict[str, Any]) -> None:
        self._print(json.dumps({"time": round(time.time(), 3), **event}))


def _as_event(
    name: str, total: Total, before: Done, done: Done, seconds: float, *, final: bool
) -> dict[str, Any]:
    return {
        "event": "progress",
        "stage": name,
        "done": done.n_tasks,
        "total": done.n_tasks if final else total.n_tasks,
        "bytes": done.n_bytes,
        "tokens": done.n_tokens,
        "seconds": round(seconds, 1),
        "bytes_per_second": round((done.n_bytes - before.n_bytes) / max(seconds, 1e-9)),
        "final": final,
    }


def _as_line(
    name: str, total: Total, before: Done, done: Done, seconds: float, *, final: bool
) -> str:
    rate = (done.n_bytes - before.n_bytes) / max(seconds, 1e-9)
    parts = [f"{name:<8}"]
    about = "" if total.exact or final else "~"
    whole = done.n_tasks if final else max(total.n_tasks, done.n_tasks)
    parts.append(f"{done.n_tasks:,} of {about}{whole:,}")
    parts.append(f"{done.n_bytes / 1e6:,.0f} MB")
    if done.n_tasks > before.n_tasks:
        parts.append(f"{rate / 1e6:,.1f} MB/s")
    parts.append(f"{done.n_tokens:,} tokens")
    left = max(total.n_bytes - done.n_bytes, 0)
    parts.append(_clock(seconds) if final else f"ETA {_clock(left / rate) if rate > 0 else '-'}")
    return " | ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
