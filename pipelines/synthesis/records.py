"""A long document → its question, answer and verdict, or why there is none."""

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.synthesis.cache import Reply
from pipelines.synthesis.chunks import Chunk, choose_chunk, choose_kind, request_seed
from pipelines.synthesis.client import (
    Client,
    RequestFailedError,
    RequestRefusedError,
)
from pipelines.synthesis.documents import Found
from pipelines.synthesis.judge import Verdict, judge
from pipelines.synthesis.limits import BudgetReachedError
from pipelines.synthesis.parsing import Pair, UnparsedError, parse_pair
from pipelines.synthesis.prompts import CLOSED_BOOK, CRITIQUE, GENERATION, ROUND_TRIP, Kind, fill
from pipelines.synthesis.settings import Judge, Settings

SHORT_REPLIES: dict[Judge, int] = {"critique": 256, "round_trip": 128, "closed_book": 128}
"""Tokens that a judge's reply has at most, where `max_tokens` allows more."""


@dataclass
class Outcome:
    """What became of a document: kept (no reason), dropped, or unfinished."""

    found: Found
    chunk: Chunk
    kind: Kind
    replies: dict[str, Reply]
    """By purpose: `generation` and the judges."""

    pair: Pair | None = None
    verdict: Verdict | None = None
    reason: str | None = None
    """Why it is dropped."""

    evidence: str = ""
    unfinished: Literal["failed", "budget"] | None = None
    """Why no more requests were made; another run goes on."""

    def as_json(self, model: str) -> dict[str, Any]:
        """The record, with a `document` where it is kept and a `reason` where it is dropped."""
        found, replies = self.found, self.replies
        record: dict[str, Any] = {
            "uid": found.uid.hex(),
            "origin": found.document.origin,
            "file": found.file,
            "line": found.line,
            "chunk": {"start": self.chunk.start, "end": self.chunk.end},
            "kind": self.kind,
            "question": self.pair.question if self.pair else None,
            "answer": self.pair.answer if self.pair else None,
            "model": model,
            "verdict": self.verdict.as_json() if self.verdict else None,
            "requests": len(replies),
            "tokens_in": sum(reply.tokens_in for reply in replies.values()),
            "tokens_out": sum(reply.tokens_out for reply in replies.values()),
        }
        for name in ("generation", *SHORT_REPLIES):
            record[name] = replies[name].text if name in replies else None
        if self.reason is None:
            return {**record, "document": found.document.text}
        return {**record, "reason": self.reason, "evidence": self.evidence}


class Interviewer:
    """Makes the requests about one document after the other. Safe for threads."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    def interview(self, found: Found) -> Outcome:
        """All requests about a document, and what follows from the replies.

        Raises:
            UserError: the server will answer no request.
        """
        settings, text = self._settings, found.document.text
        chunk = choose_chunk(text, words=settings.chunk_words, seed=settings.seed, uid=found.uid)
        kind = choose_kind(settings.seed, found.uid)
        outcome = Outcome(found, chunk, kind, {})
        try:
            self._generate(outcome, text[chunk.start : chunk.end])
            self._judge(outcome, text[chunk.start : chunk.end])
        except UnparsedError as error:
            cut = outcome.replies["generation"].finish == "length"
            outcome.reason = "cut_short" if cut else error.reason
            outcome.evidence = error.evidence
        except RequestRefusedError as error:
            outcome.reason, outcome.evidence = "request_refused", str(error)
        except RequestFailedError as error:
            outcome.unfinished, outcome.evidence = "failed", str(error)
        except BudgetReachedError as error:
            outcome.unfinished, outcome.evidence = "budget", str(error)
        return outcome

    def _generate(self, outcome: Outcome, chunk: str) -> None:
        prompt = fill(GENERATION[outcome.kind], chunk=chunk)
        temperature, limit = self._settings.temperature, self._settings.max_tokens
        reply = self._ask(outcome, "generation", prompt, temperature, limit)
        outcome.pair = parse_pair(reply)

    def _judge(self, outcome: Outcome, chunk: str) -> None:
        pair, kind = outcome.pair, outcome.kind
        if pair is None:
            raise ValueError("judged before there is a pair")
        prompts: dict[Judge, str] = {
            "critique": CRITIQUE,
            "round_trip": ROUND_TRIP[kind],
            "closed_book": CLOSED_BOOK,
        }
        said: dict[Judge, str | None] = dict.fromkeys(prompts)
        for name in self._settings.judges:
            prompt = fill(prompts[name], chunk=chunk, question=pair.question, answer=pair.answer)
            limit = min(SHORT_REPLIES[name], self._settings.max_tokens)
            said[name] = self._ask(outcome, name, prompt, 0.0, limit)
        outcome.verdict = judge(
            pair, chunk, kind, critique=said["critique"], round_trip=said["round_trip"],
            closed_book=said["closed_book"],
        )  # fmt: skip
        outcome.reason = outcome.verdict.drop_reason()

    def _ask(
        self, outcome: Outcome, purpose: str, prompt: str, temperature: float, limit: int
    ) -> str:
        reply = self._client.ask(
            prompt,
            model=self._settings.model,
            temperature=temperature,
            max_tokens=limit,
            seed=request_seed(self._settings.seed, outcome.found.uid, purpose),
        )
        outcome.replies[purpose] = reply
        return reply.text
