"""Whether a server does what temperature and seed ask for, found out before anything else.

Servers may take both and ignore them without a word: transformers' own draws nothing unless the
model's own settings say so. So a few short requests are sent first, for a text that two samples
hardly ever give alike:

- at temperature 1, two seeds, and the first seed once more. Where all replies are the same, nothing
  was drawn; where one seed gave two replies, it does not repeat them;
- at temperature 0, two seeds: where they gave two replies, it does not give the likeliest one.

Replies that differ are proof. Equal ones make it all but certain that a setting is obeyed, in these
requests. Servers that compute inexactly, in large batches, may give two replies where one was asked
for although they read both settings.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.synthesis.client import Client, RequestFailedError, RequestRefusedError
from pipelines.synthesis.limits import BudgetReachedError
from pipelines.synthesis.settings import Settings

PROMPT = "Write twenty random nouns, as unlike each other as you can. Write nothing else."
MAX_TOKENS = 48
_REQUESTS = {
    "seed 1": (1.0, 1, ""),
    "seed 2": (1.0, 2, ""),
    "seed 1 again": (1.0, 1, "again"),
    "zero": (0.0, 1, ""),
    "zero, seed 2": (0.0, 2, ""),
}
"""Temperature, seed, and what tells a repeated request from the first one in the cache."""

N_REQUESTS = len(_REQUESTS)
NOTHING_DRAWN = "three requests at temperature 1, of two seeds, gave one reply"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a server makes of temperature and seed."""

    temperature: bool | None
    """Whether it has an effect; None where that could not be found out."""

    seed: bool | None
    evidence: str
    """What was seen."""

    tokens_in: int = 0
    tokens_out: int = 0
    """Of the requests that were answered, by this run or one before."""

    @property
    def ignored(self) -> list[str]:
        """Which of the two are known to have no effect."""
        found = {"temperature": self.temperature, "seed": self.seed}
        return [name for name, works in found.items() if works is False]

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {**asdict(self), "ignored": self.ignored}


def check_sampling(client: Client, settings: Settings, *, server: str) -> Sampling:
    """Ask the server, or the cache where it was asked before.

    Args:
        client: by which requests are sent, and paid for.
        settings: name the model, and how long a reply may be.
        server: its address; an answer of another server under the same model's name does not count.

    Raises:
        UserError: the server will answer no request: wrong key, address or model.
    """
    replies: dict[str, str] = {}
    tokens_in = tokens_out = 0
    try:
        for name, (temperature, seed, again) in _REQUESTS.items():
            reply = client.ask(
                PROMPT, model=settings.model, temperature=temperature, seed=seed,
                max_tokens=min(MAX_TOKENS, settings.max_tokens), apart=f"{server} {again}",
            )  # fmt: skip
            replies[name] = reply.text.strip()
            tokens_in, tokens_out = tokens_in + reply.tokens_in, tokens_out + reply.tokens_out
    except (RequestFailedError, RequestRefusedError, BudgetReachedError) as error:
        seen = _Seen(None, None, f"not checked: {error}")
    else:
        seen = _judge(replies)
    return Sampling(
        temperature=seen.temperature, seed=seen.seed, evidence=seen.evidence,
        tokens_in=tokens_in, tokens_out=tokens_out,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Seen:
    temperature: bool | None
    seed: bool | None
    evidence: str


def _judge(replies: Mapping[str, str]) -> _Seen:
    one, other, again = (replies[name] for name in ("seed 1", "seed 2", "seed 1 again"))
    if not all(replies.values()):
        return _Seen(None, None, "not known: a reply was empty")
    if one == other == again:
        return _Seen(False, False, NOTHING_DRAWN)
    repeats, steady = one == again, replies["zero"] == replies["zero, seed 2"]
    drawn = "one reply" if repeats else "two replies"
    likeliest = "one reply" if steady else "two replies"
    evidence = f"two requests of one seed gave {drawn}, two at temperature 0 {likeliest}"
    return _Seen(steady, repeats, evidence)


def sampling_lines(sampling: Sampling, settings: Settings) -> Iterator[str]:
    """What a person should know before questions are paid for."""
    if sampling.temperature is None:
        yield f"sampling: whether temperature and seed have an effect is {sampling.evidence}"
    elif not sampling.ignored:
        yield f"sampling: temperature and seed have an effect ({sampling.evidence})"
    else:
        yield f"warning: the server ignores {' and '.join(sampling.ignored)}: {sampling.evidence}"
        yield from (f"  {line}" for line in _consequences(sampling, settings))


def _consequences(sampling: Sampling, settings: Settings) -> Iterator[str]:
    if sampling.evidence == NOTHING_DRAWN:
        yield (
            f"temperature and seed have no effect: --temperature {settings.temperature:g} means "
            "nothing, and another --seed changes documents and passages alone"
        )
        return
    if not sampling.temperature:
        yield (
            "temperature 0 does not give the likeliest reply: verdicts of judges are drawn by "
            "chance, and --temperature may mean nothing"
        )
    if not sampling.seed:
        yield (
            "seeds do not repeat replies: only the cache makes the same command give the same "
            "questions and verdicts"
        )
