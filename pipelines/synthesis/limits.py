"""How fast requests may go, and how much they may cost."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pipelines.synthesis.cache import Reply
from pipelines.synthesis.settings import Transport

LONGEST_PAUSE = 300.0
"""Seconds that a server's `Retry-After` is obeyed at most."""

BYTES_PER_TOKEN = 4
"""For estimates; English text has 4 to 4.5."""


class BudgetReachedError(Exception):
    """A request that the run's budget has no room for; it was not sent."""


class Pace:
    """Lets requests go one after the other, at most so many a minute. Safe for threads."""

    def __init__(
        self,
        per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next = clock()

    def wait(self) -> None:
        """Return when the next request may go."""
        with self._lock:
            at = max(self._next, self._clock())
            self._next = at + self._interval
        if (seconds := at - self._clock()) > 0:
            self._sleep(seconds)

    def hold(self, seconds: float) -> None:
        """Let nobody go before so many seconds have passed, as a server asked."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` asks for, a number or a date; None where it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = (date - datetime.now(date.tzinfo or UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(seconds, LONGEST_PAUSE) if seconds >= 0 else None


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN)


class Budget:
    """What a run has paid, and may still pay. Safe for threads.

    A request takes what it may cost at most before it is sent, and gives back what it did not
    need: however many are under way, the caps hold, but for the error of the estimate.
    """

    def __init__(self, transport: Transport, *, tokens_in: int, tokens_out: int) -> None:
        self._transport = transport
        self._in, self._out = tokens_in, tokens_out
        self._lock = threading.Lock()

    @contextmanager
    def take(self, tokens_in: int, tokens_out: int) -> Generator[Callable[[Reply], None]]:
        """Hold back what a request may cost; call the result with the reply that came.

        Raises:
            BudgetReachedError: there is no room for it.
        """
        with self._lock:
            self._check(self._in + tokens_in, self._out + tokens_out)
            self._in += tokens_in
            self._out += tokens_out
        replies: list[Reply] = []
        try:
            yield replies.append
        finally:
            with self._lock:
                self._in += sum(r.tokens_in for r in replies) - tokens_in
                self._out += sum(r.tokens_out for r in replies) - tokens_out

    def _check(self, tokens_in: int, tokens_out: int) -> None:
        limit, cost = self._transport.max_tokens_budget, self._transport.max_cost
        if limit is not None and tokens_in + tokens_out > limit:
            raise BudgetReachedError(f"--max-tokens-budget {limit}")
        if cost is not None and self._transport.cost(tokens_in, tokens_out) > cost:
            raise BudgetReachedError(f"--max-cost {cost:g}")
