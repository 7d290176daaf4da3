"""A chat server on this machine that answers as a test says, and misbehaves where it should."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from conftest import documents, write_jsonl

from pipelines.progress import Reporter
from pipelines.synthesis.documents import list_inputs
from pipelines.synthesis.run import synthesize
from pipelines.synthesis.sampling import PROMPT
from pipelines.synthesis.settings import Settings, Transport
from pipelines.synthesis.stages import read_rows


@dataclass(frozen=True)
class Response:
    """What goes over the wire."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    cut: bool = False
    """Hang up in the middle of the body."""


def says(text: Any, *, finish: str = "stop", tokens: tuple[Any, Any] = (100, 10)) -> Response:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    body = {"choices": [choice | {"finish_reason": finish}], "usage": usage}
    return Response(json.dumps(body).encode())


def fails(status: int, message: str = "no", *headers: tuple[str, str]) -> Response:
    """An error as OpenAI's servers word it."""
    return Response(json.dumps({"error": {"message": message}}).encode(), status, headers)


def purpose_of(prompt: str) -> str:
    """What a prompt is for."""
    if "Wrap the question" in prompt:
        return "generation"
    if "VERDICT" in prompt:
        return "critique"
    return "round_trip" if '"""' in prompt else "closed_book"


def chunk_of(prompt: str) -> str:
    return re.findall(r'"""\n(.*?)\n"""', prompt, re.DOTALL)[0]


def pair_of(prompt: str) -> tuple[str, str]:
    """The question and answer that the good model makes of a chunk."""
    words = chunk_of(prompt).split()
    return f"What comes behind {' '.join(words[:8])}?", " ".join(words[8:16])


def good_model(prompt: str, *, tokens: tuple[int, int] = (100, 10)) -> Response:
    """A model that does everything right."""
    purpose = purpose_of(prompt)
    if purpose == "generation":
        question, answer = pair_of(prompt)
        reply = f"<question>{question}</question>\n<answer>{answer}</answer>"
        return says(reply, tokens=tokens)
    if purpose == "critique":
        return says("It says so.\nVERDICT: RIGHT", tokens=tokens)
    reply = pair_of(prompt)[1] if purpose == "round_trip" else "I do not know."
    return says(reply, tokens=tokens)


def obedient(request: dict[str, Any], number: int) -> Response:
    """What a server that obeys temperature and seed says to the requests that check it."""
    drawn = f"seed {request['seed']}" if request["temperature"] else "the likeliest"
    return says(f"nouns, {drawn}", tokens=(0, 0))


Sampler = Callable[[dict[str, Any], int], Response]
"""Body and number of a request that checks the server, from 0 → what is sent."""

Script = Callable[[str, int], Response]
"""Prompt and number of the request, from 0 → what is sent."""


@dataclass
class ChatServer:
    """The server. `script` may be changed at any time."""

    script: Script = lambda prompt, number: good_model(prompt)
    sampler: Sampler = obedient
    requests: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    """The requests that check the server; `requests` has the others."""

    keys: list[str] = field(default_factory=list)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        lock = threading.Lock()
        in_flight = [0]
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if body["messages"][0]["content"] == PROMPT:
                    chat.checks.append(body)
                    self.answer(chat.sampler(body, len(chat.checks) - 1))
                    return
                with lock:
                    number = len(chat.requests)
                    chat.requests.append(body)
                    chat.keys.append(self.headers.get("Authorization", ""))
                    in_flight[0] += 1
                    chat.most_in_flight = max(chat.most_in_flight, in_flight[0])
                response = chat.script(body["messages"][0]["content"], number)
                time.sleep(response.delay)
                with lock:  # before the client can have the answer, and send another request
                    in_flight[0] -= 1
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.answer(response)

            def answer(self, response: Response) -> None:
                self.send_response(response.status)
                self.send_header("Content-Type", "application/json")
                for header in response.headers:
                    self.send_header(*header)
                self.send_header("Content-Length", str(len(response.body)))
                self.end_headers()
                half = response.body[: len(response.body) // 2]
                self.wfile.write(half if response.cut else response.body)
                if response.cut:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def prompts(self, purpose: str) -> list[str]:
        found = [request["messages"][0]["content"] for request in self.requests]
        return [prompt for prompt in found if purpose_of(prompt) == purpose]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Desk:
    """Runs syntheses of a small corpus against a scripted server, without Beam."""

    folder: Any
    chat: ChatServer

    def corpus(self, n: int = 6, *, seed: int = 1) -> str:
        path = self.folder / f"books-{seed}-{n}.jsonl"
        if not path.exists():  # a file that is written again counts as another
            write_jsonl(path, documents(seed, n, low=300, high=600))
        return str(path)

    def run(
        self,
        paths: list[str] | None = None,
        *,
        output: str = "qa",
        run_stage: Any = None,
        report: Reporter | None = None,
        transport: dict[str, Any] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        from conftest import plain_loop

        given = {"model": "m", "min_words": 100, "chunk_words": 60, "documents": 50} | settings
        sent = {"base_url": self.chat.url, "backoff": 0.001, "timeout": 5, "retries": 2}
        return synthesize(
            list_inputs(paths or [self.corpus()], "text"),
            Settings(**given),
            Transport(**(sent | (transport or {}))),
            output=str(self.folder / output),
            cache=str(self.folder / "answers"),
            workers=1,
            run_stage=run_stage or plain_loop,
            report=report or Reporter(quiet=True, log_json=False),
        )

    def kept(self, output: str = "qa") -> list[dict[str, Any]]:
        return list(read_rows(str(self.folder / output / "qa.jsonl.zst")))

    def dropped(self, output: str = "qa") -> list[dict[str, Any]]:
        return list(read_rows(str(self.folder / output / "dropped.jsonl.zst")))

    def published(self, output: str = "qa") -> dict[str, bytes]:
        names = ("qa.jsonl.zst", "dropped.jsonl.zst", "report.json")
        return {name: (self.folder / output / name).read_bytes() for name in names}
