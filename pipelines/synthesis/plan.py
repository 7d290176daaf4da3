"""What a synthesis will cost, before a request is sent."""

from collections.abc import Iterator

from pipelines.report import plural
from pipelines.synthesis.limits import BYTES_PER_TOKEN, estimated_tokens
from pipelines.synthesis.prompts import CLOSED_BOOK, CRITIQUE, NORMAL, ROUND_TRIP
from pipelines.synthesis.records import SHORT_REPLIES
from pipelines.synthesis.run import Chosen
from pipelines.synthesis.sampling import N_REQUESTS
from pipelines.synthesis.settings import Settings, Transport

_PAIR_TOKENS = 60
"""Of a question and its answer, for the estimate."""


def plan_lines(chosen: Chosen, settings: Settings, transport: Transport) -> Iterator[str]:
    """Documents, requests, tokens, cost and, at a stated rate, time."""
    n = len(chosen.documents)
    requests = n * (1 + len(settings.judges))
    tokens_in, tokens_out = estimated_usage(chosen, settings)
    reading = chosen.reading
    yield (
        f"{plural(reading['read'], 'record')} read, {reading['eligible']:,} with at least "
        f"{settings.min_words:,} words, {n:,} chosen"
    )
    if n < settings.documents:
        yield f"fewer than the {settings.documents:,} asked for"
    for name, count in sorted(reading.items()):
        if name.startswith("dropped: "):
            yield f"  {name.removeprefix('dropped: ')}: {count:,}"
    yield (
        f"at most {requests:,} requests to {settings.model}: about "
        f"{tokens_in:,} tokens in, at most {tokens_out:,} out; {N_REQUESTS} short ones go "
        "first, to see whether temperature and seed have an effect"
    )
    if transport.price_in or transport.price_out:
        yield f"cost: at most about {transport.cost(tokens_in, tokens_out):.2f}"
    else:
        yield "cost: not known without --price-in and --price-out"
    if transport.requests_per_minute:
        yield f"time: at least {requests / transport.requests_per_minute:,.1f} minutes"


def estimated_usage(chosen: Chosen, settings: Settings) -> tuple[int, int]:
    """Tokens in, at 4 bytes a token, and the most that replies can have."""
    chunks = [
        c.n_bytes * min(settings.chunk_words / max(c.n_words, 1), 1) for c in chosen.documents
    ]
    chunk_tokens = round(sum(chunks) / BYTES_PER_TOKEN)
    prompts = {"critique": CRITIQUE, "round_trip": ROUND_TRIP["normal"], "closed_book": CLOSED_BOOK}
    n, judges = len(chosen.documents), settings.judges
    fixed = [
        estimated_tokens(NORMAL),
        *(estimated_tokens(prompts[j]) + _PAIR_TOKENS for j in judges),
    ]
    readings = 1 + sum(judge != "closed_book" for judge in judges)
    replies = [settings.max_tokens, *(min(SHORT_REPLIES[j], settings.max_tokens) for j in judges)]
    return readings * chunk_tokens + n * sum(fixed), n * sum(replies)
