"""Requests to a chat model behind an OpenAI-compatible endpoint: retried, paced, paid for once."""

import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import openai

from pipelines.errors import UserError
from pipelines.rendering import keyed_random
from pipelines.synthesis.cache import Cache, Reply, request_key
from pipelines.synthesis.limits import Budget, Pace, estimated_tokens, retry_after
from pipelines.synthesis.settings import Transport

KEY_VARIABLE = "OPENAI_API_KEY"
GIVE_UP = 10
"""Requests failed in a row, retries and all, after which the server counts as gone."""

_RETRIED = frozenset({408, 409, 425, 429})
_ONE_REQUEST = frozenset({400, 413, 422})
_LONGEST_BACKOFF = 60.0


class RequestFailedError(Exception):
    """The server gave no usable answer, however often it was asked. Another run may have more
    luck.
    """


class RequestRefusedError(Exception):
    """The server will not answer this very request: too long, or filtered."""


class Client:
    """Asks the model, or the cache where it was asked before. Safe for threads."""

    def __init__(self, transport: Transport, cache: Cache) -> None:
        self._transport = transport
        self._cache = cache
        tokens_in, tokens_out = cache.paid(transport.run)
        self._budget = Budget(transport, tokens_in=tokens_in, tokens_out=tokens_out)
        self._pace = Pace(transport.requests_per_minute)
        self._failed_in_a_row = 0
        self._lock = threading.Lock()
        self._openai = openai.OpenAI(
            base_url=transport.base_url,
            api_key=os.environ.get(KEY_VARIABLE) or "none",  # local servers want none
            timeout=transport.timeout,
            max_retries=0,
        )

    def ask(
        self,
        prompt: str,
        *,
        model: str,
        temperature: float,
        max_tokens: int,
        seed: int,
        apart: str = "",
    ) -> Reply:
        """The model's reply to one message.

        Args:
            prompt: the message.
            model: as the server calls it.
            temperature: of sampling.
            max_tokens: of the reply.
            seed: of sampling.
            apart: keeps the answer apart in the cache from those to equal requests.

        Raises:
            UserError: the server will answer no request: wrong key, address or model.
            RequestFailedError: see there; so are the next two.
            RequestRefusedError:
            BudgetReachedError:
        """
        request = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        key = request_key(request | {"apart": apart} if apart else request)
        if (known := self._cache.get(key)) is not None:
            return known
        with self._budget.take(estimated_tokens(prompt), max_tokens) as pay:
            reply = self._persist(request, key)
            pay(reply)
        self._cache.put(key, reply)
        return reply

    def _persist(self, request: Mapping[str, Any], key: str) -> Reply:
        """Try until an answer comes or the retries are used up."""
        fault = "ten requests in a row failed; the server is not asked any more"
        if self._failed_in_a_row >= GIVE_UP:
            raise RequestFailedError(fault)
        for attempt in range(self._transport.retries + 1):
            if attempt:
                time.sleep(self._backoff(attempt, key))
            self._pace.wait()
            try:
                reply = self._once(request)
            except RequestFailedError as error:
                fault = str(error)
            else:
                self._count(failed=False)
                return reply
        self._count(failed=True)
        raise RequestFailedError(fault)

    def _count(self, *, failed: bool) -> None:
        with self._lock:
            self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0

    def _backoff(self, attempt: int, key: str) -> float:
        """Seconds, doubling, with jitter so that threads that failed together part."""
        seconds = min(self._transport.backoff * 2 ** (attempt - 1), _LONGEST_BACKOFF)
        return seconds * keyed_random(attempt, "backoff", key).uniform(0.5, 1.5)

    def _once(self, request: Mapping[str, Any]) -> Reply:
        completions = self._openai.chat.completions.with_raw_response
        try:
            content = completions.create(**request).content
        except openai.APIStatusError as error:
            raise self._explained(error) from error
        except openai.APITimeoutError as error:
            raise RequestFailedError(f"no answer in {self._transport.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise RequestFailedError(f"no connection: {error.__cause__ or error}") from error
        except (openai.APIError, openai.OpenAIError, OSError, ValueError) as error:
            raise RequestFailedError(f"{type(error).__name__}: {error}") from error
        return read_reply(content, str(request["messages"][0]["content"]), self._transport.run)

    def _explained(self, error: openai.APIStatusError) -> Exception:
        """What a status means: try again, drop the record, or stop."""
        status = error.status_code
        said = f"{self._transport.base_url} answered {status}: {_message(error)}"
        if status in _RETRIED or status >= 500:
            pause = retry_after(error.response.headers.get("retry-after"))
            if pause is not None:
                self._pace.hold(pause)
            return RequestFailedError(said)
        if status in _ONE_REQUEST:
            return RequestRefusedError(said)
        if status in (401, 403):
            way_out = f"set {KEY_VARIABLE} to a key that the server accepts"
        else:
            way_out = "are --base-url (it mostly ends in /v1) and --model right?"
        return UserError(f"{said}; {way_out}")


def _message(error: openai.APIStatusError) -> str:
    """What the server says of it, on one line, without what else the body holds."""
    body: Any = error.body
    said = body.get("message") if isinstance(body, dict) else None
    text = said if isinstance(said, str) else error.response.reason_phrase
    text = text.replace(os.environ.get(KEY_VARIABLE) or "\0", "…")
    return " ".join(text.split())[:200]


def read_reply(content: bytes, prompt: str, run: str) -> Reply:
    """The reply in the body of a response; no field of it is trusted.

    Raises:
        RequestFailedError: it is no chat completion.
    """
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise RequestFailedError(f"not a chat completion: {type(error).__name__}") from error
    if text is not None and not isinstance(text, str):
        raise RequestFailedError(f"not a chat completion: content is a {type(text).__name__}")
    text = (text or "").encode(errors="replace").decode()  # lone surrogates fit into no file
    usage = body.get("usage")
    used = usage if isinstance(usage, dict) else {}
    return Reply(
        text,
        finish if isinstance(finish, str) else "",
        _tokens(used.get("prompt_tokens"), prompt),
        _tokens(used.get("completion_tokens"), text),
        run,
    )


def _tokens(stated: object, text: str) -> int:
    """Tokens as the server counts them, or as they are estimated where it does not say."""
    sound = isinstance(stated, int) and not isinstance(stated, bool) and stated >= 0
    return stated if sound and isinstance(stated, int) else estimated_tokens(text)
