"""How far the requests of a synthesis are, read from the cache that they fill."""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from pipelines.progress import Reporter
from pipelines.synthesis.cache import parse_line
from pipelines.synthesis.settings import Transport

_INTERVAL = 10.0


class Watch:
    """Counts what a run adds to a cache, reading each line once."""

    def __init__(self, folder: str, run: str) -> None:
        self._folder = folder
        self._run = run
        self._read: dict[str, int] = {}
        self.requests = self.tokens_in = self.tokens_out = 0

    def look(self) -> None:
        """Take in the lines that are new."""
        names = os.listdir(self._folder) if os.path.isdir(self._folder) else []
        for name in names:
            path = os.path.join(self._folder, name)
            if os.path.getsize(path) <= self._read.get(name, 0):
                continue
            with open(path, "rb") as file:
                file.seek(self._read.get(name, 0))
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._read[name] = self._read.get(name, 0) + len(whole)
            for line in whole.splitlines(keepends=True):
                self._count(line)

    def _count(self, line: bytes) -> None:
        found = parse_line(line)
        if found is not None and found[1].run == self._run:
            self.requests += 1
            self.tokens_in += found[1].tokens_in
            self.tokens_out += found[1].tokens_out


@contextmanager
def shown(
    report: Reporter, cache: str, transport: Transport, *, n_requests: int
) -> Generator[None]:
    """Say every ten seconds how far the block is, and at its end."""
    watch, stop, start = Watch(cache, transport.run), threading.Event(), time.monotonic()

    def show() -> None:
        watch.look()
        seconds = time.monotonic() - start
        cost = transport.cost(watch.tokens_in, watch.tokens_out)
        shown = f" | cost {cost:.2f}" if transport.price_in or transport.price_out else ""
        report.say(
            f"requests | {watch.requests:,} of at most {n_requests:,} | {watch.tokens_in:,} tokens "
            f"in, {watch.tokens_out:,} out{shown} | {seconds:,.0f} s",
            stage="requests", done=watch.requests, total=n_requests, tokens_in=watch.tokens_in,
            tokens_out=watch.tokens_out, cost=cost, seconds=round(seconds, 1),
        )  # fmt: skip

    def tick() -> None:
        while not stop.wait(_INTERVAL):
            show()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        show()
