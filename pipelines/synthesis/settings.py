"""What a synthesis is, and how its requests are sent."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Judge = Literal["critique", "round_trip", "closed_book"]
JUDGES: tuple[Judge, ...] = ("critique", "round_trip", "closed_book")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the records depend on, beside the documents and the model's answers."""

    model: str
    seed: int = 0
    documents: int = 100
    """How many are chosen of those long enough."""

    min_words: int = 3000
    chunk_words: int = 1500
    temperature: float = 0.7
    """Of generation; judges are asked at 0."""

    max_tokens: int = 512
    """Of one reply."""

    judges: tuple[Judge, ...] = JUDGES
    """Those that are asked."""

    near_threshold: float = 0.7
    """Estimated Jaccard similarity from which on two questions are near duplicates."""

    def describe(self) -> dict[str, Any]:
        """For the report, and to tell one synthesis from another."""
        return {**asdict(self), "judges": list(self.judges)}


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How requests are sent; no record depends on it."""

    base_url: str
    concurrency: int = 4
    """Documents worked on at a time; each has one request in flight."""

    timeout: float = 120.0
    """Seconds without a byte until a request counts as failed."""

    retries: int = 5
    backoff: float = 1.0
    """Seconds before the first retry; doubles with each."""

    requests_per_minute: float | None = None
    max_tokens_budget: int | None = None
    """Tokens that this run may pay for."""

    max_cost: float | None = None
    price_in: float = 0.0
    """Per million tokens; `price_out` likewise."""

    price_out: float = 0.0
    run: str = ""
    """Names the run in the cache, so that what it paid for can be told from what others did."""

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """What tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
