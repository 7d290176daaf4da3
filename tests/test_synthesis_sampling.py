"""The check of a server: whether temperature and seed have an effect, said and paid for once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted_chat import ChatServer, Desk, fails, obedient, says

from pipelines import synthesize as command
from pipelines.errors import UserError
from pipelines.progress import Reporter
from pipelines.synthesis.sampling import N_REQUESTS


@pytest.fixture
def chat():
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def desk(tmp_path, chat) -> Desk:
    return Desk(tmp_path, chat)


class Said(Reporter):
    """Keeps what a command says."""

    def __init__(self) -> None:
        super().__init__(quiet=True, log_json=False)
        self.lines: list[str] = []

    def say(self, text: str, **fields: Any) -> None:
        self.lines.append(text)


IGNORES, VERDICTS = "warning: the server ignores", "verdicts of judges are drawn by chance"
IGNORES_BOTH = f"{IGNORES} temperature and seed: "
SERVERS = {
    "obeys both": (obedient, (True, True), ["temperature and seed have an effect"]),
    "always the likeliest": (
        lambda request, number: says("table chair"),
        (False, False),
        [IGNORES_BOTH, "--temperature 0.7 means nothing", "changes documents and passages alone"],
    ),
    "draws by itself": (
        lambda request, number: says(f"nouns {number}"),
        (False, False),
        [IGNORES_BOTH, VERDICTS, "seeds do not repeat replies"],
    ),
    "ignores the seed": (
        lambda request, number: says(f"nouns {number if request['temperature'] else ''}"),
        (True, False),
        [f"{IGNORES} seed: ", "seeds do not repeat replies"],
    ),
    "ignores the temperature": (
        lambda request, number: says(f"nouns {request['seed']}"),
        (False, True),
        [f"{IGNORES} temperature: ", VERDICTS],
    ),
    "empty": (lambda request, number: says("  "), (None, None), ["not known: a reply was empty"]),
    "down": (lambda request, number: fails(500), (None, None), ["not checked: "]),
    "refuses": (lambda request, number: fails(400), (None, None), ["not checked: "]),
}


@pytest.mark.parametrize("name", SERVERS)
def test_what_a_server_ignores_is_said_with_the_consequence_and_is_in_the_report(desk, chat, name):
    chat.sampler, expected, parts = SERVERS[name]
    said = Said()
    report = desk.run(report=said)
    found = report["sampling"]
    assert (found["temperature"], found["seed"]) == expected
    text = "\n".join(said.lines)
    assert all(part in text for part in parts)
    assert (VERDICTS in text) == (VERDICTS in parts)
    assert ("warning" in text) == any(part.startswith(IGNORES) for part in parts)
    outcome = command.outcome(report, "qa")
    ignored = [n for n in ("temperature", "seed") if found[n] is False]
    assert found["ignored"] == ignored
    assert ("warning" in outcome) == bool(ignored)
    assert " and ".join(ignored) in outcome
    written = json.loads((desk.folder / "qa" / "report.json").read_text())
    assert written["sampling"] == found
    assert report["kept"] == 6, "a warning stops nothing"


def test_two_seeds_one_again_and_temperature_zero_are_asked_before_anything_else(desk, chat):
    asked: list[int] = []

    def sampler(request, number):
        asked.append(len(chat.requests))
        return obedient(request, number)

    chat.sampler = sampler
    desk.run()
    settings = [(request["temperature"], request["seed"]) for request in chat.checks]
    assert settings == [(1.0, 1), (1.0, 2), (1.0, 1), (0.0, 1), (0.0, 2)]
    assert len(settings) == N_REQUESTS
    assert asked == [0] * N_REQUESTS, "before any question is asked"


def test_the_check_is_paid_for_once_for_each_server(desk, chat):
    first = desk.run()
    assert len(chat.checks) == N_REQUESTS
    again = desk.run(output="again")
    assert len(chat.checks) == N_REQUESTS
    assert again["sampling"] == first["sampling"]
    other = ChatServer(sampler=lambda request, number: says("table chair"))
    try:
        report = desk.run(output="other", transport={"base_url": other.url})
    finally:
        other.close()
    assert len(other.checks) == N_REQUESTS
    assert (report["sampling"]["temperature"], report["sampling"]["seed"]) == (False, False)


def test_a_check_that_failed_is_made_again(desk, chat):
    chat.sampler = lambda request, number: fails(500)
    assert desk.run(transport={"retries": 0})["sampling"]["seed"] is None
    chat.sampler = obedient
    assert desk.run(output="again")["sampling"]["seed"] is True


def test_a_wrong_key_stops_at_the_check(desk, chat):
    chat.sampler = lambda request, number: fails(401, "who are you?")
    with pytest.raises(UserError, match="who are you"):
        desk.run()
    assert (len(chat.checks), chat.requests) == (1, [])


def test_a_dry_run_names_the_check_and_does_not_send_it(desk, chat, capsys):
    arguments = ["--source", desk.corpus(), "--model", "m", "--base-url", chat.url]
    assert command.main([*arguments, "--min-words", "100", "--dry-run"]) == 0
    assert f"{N_REQUESTS} short ones go first" in capsys.readouterr().out
    assert chat.checks == chat.requests == []


def test_a_budget_without_room_for_the_check_is_no_reason_to_stop(desk, chat):
    report = desk.run(transport={"max_tokens_budget": 10})
    assert report["sampling"]["evidence"] == "not checked: --max-tokens-budget 10"
    assert chat.checks == []
