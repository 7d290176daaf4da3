"""Servers that misbehave, limits that hold, and the cache."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_chat import ChatServer, Desk, Response, fails, good_model, purpose_of, says

from pipelines.errors import UserError
from pipelines.synthesis.cache import Cache, Reply, parse_line, read_replies, request_key
from pipelines.synthesis.client import Client, RequestFailedError
from pipelines.synthesis.limits import LONGEST_PAUSE, Budget, BudgetReachedError, Pace, retry_after
from pipelines.synthesis.sampling import N_REQUESTS
from pipelines.synthesis.settings import Transport


@pytest.fixture
def chat():
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def desk(tmp_path, chat) -> Desk:
    return Desk(tmp_path, chat)


MISBEHAVIOUR = {
    "slow": replace(says("late"), delay=1.0),
    "too many requests": fails(429, "slow down"),
    "too many requests, with a time": fails(429, "slow down", ("Retry-After", "0.01")),
    "server error": fails(500),
    "overloaded": fails(503, "busy", ("Retry-After", "rubbish")),
    "cut connection": replace(says("x" * 500), cut=True),
    "malformed JSON": Response(b'{"choices": [{"mess'),
    "no JSON": Response(b"<html>gateway</html>"),
    "not an object": Response(b"[]"),
    "no choices": Response(b'{"choices": []}'),
    "choices of a wrong type": Response(b'{"choices": [7]}'),
    "content of a wrong type": says({"text": "a"}),
    "an empty body": Response(b""),
}


def test_a_server_that_misbehaves_for_a_while_costs_nothing_but_time(desk, chat):
    desk.run(output="right")
    (desk.folder / "answers").rename(desk.folder / "old")
    chat.requests.clear()
    seen: list[str] = []

    def script(prompt, number):
        """The first try of each request goes wrong, in every way there is."""
        if prompt in seen:
            return good_model(prompt)
        seen.append(prompt)
        return list(MISBEHAVIOUR.values())[len(seen) % len(MISBEHAVIOUR)]

    chat.script = script
    desk.run(transport={"timeout": 0.3, "concurrency": 1})
    assert len(seen) == 24
    assert len(chat.requests) == 48
    assert desk.published() == desk.published("right")


def test_a_document_without_answers_stops_publication_and_loses_nothing(desk, chat):
    def script(prompt, number):
        down = purpose_of(prompt) == "critique" and len(chat.prompts("critique")) % 2
        return fails(500) if down else good_model(prompt)

    chat.script = script
    with pytest.raises(UserError, match=r"3 of 6 documents got no answer.*same command goes on"):
        desk.run(transport={"retries": 0, "concurrency": 1})
    assert not (desk.folder / "qa" / "qa.jsonl.zst").exists()
    answered = len(list(read_replies(str(desk.folder / "answers"))))
    assert answered == N_REQUESTS + 6 + 3 * 3
    chat.script = lambda prompt, number: good_model(prompt)
    chat.requests.clear()
    assert desk.run()["kept"] == 6
    assert len(chat.requests) == 24 - (answered - N_REQUESTS)


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_that_holds_for_all_requests_stops_at_once(desk, chat, status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    chat.script = lambda *_: fails(status, "bad key sk-secret")
    with pytest.raises(UserError, match=f"answered {status}: bad key …"):
        desk.run(transport={"concurrency": 1})
    assert len(chat.requests) == 1


def test_a_request_refused_alone_costs_its_record_and_most_refused_stop_the_run(desk, chat):
    refused: list[str] = []

    def script(prompt, number):
        if not refused or prompt in refused:
            refused.append(prompt)
            return fails(400, "content filter")
        return good_model(prompt)

    chat.script = script
    report = desk.run(transport={"concurrency": 1})
    assert report["dropped"] == {"request_refused": 1}
    assert "400: content filter" in desk.dropped()[0]["evidence"]
    chat.script = lambda *_: fails(400, "context length exceeded")
    with pytest.raises(UserError, match=r"refused requests for 6 of 6 .*--chunk-words"):
        desk.run(output="all", seed=9)
    chat.script = lambda prompt, _: good_model(prompt)
    assert desk.run(output="all", seed=9)["kept"] == 6


def test_a_server_that_is_gone_is_not_asked_for_ever(desk, chat):
    chat.script = lambda *_: fails(500)
    with pytest.raises(UserError, match="14 of 14 documents"):
        desk.run([desk.corpus(14)], transport={"retries": 1, "concurrency": 1})
    assert len(chat.requests) == 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty_reply"),
        (None, "empty_reply"),
        ("  ", "empty_reply"),
        ("<question>\ud800</question>", "empty_question"),
    ],
)
def test_an_empty_or_odd_answer_drops_its_record(desk, chat, text, reason):
    chat.script = lambda *_: says(text)
    assert desk.run()["dropped"] == {reason: 6}


def test_an_answer_cut_at_its_greatest_length_is_told_apart(desk, chat):
    chat.script = lambda *_: says("<question>What is it?</question><answer>It", finish="length")
    assert desk.run()["dropped"] == {"cut_short": 6}


def test_tokens_that_the_server_does_not_count_are_estimated(desk, chat):
    chat.script = lambda prompt, _: says("no tags here.", tokens=("many", -3))
    report = desk.run()
    assert report["tokens_out"] == 6 * 4
    assert report["tokens_in"] > 6 * 100


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(desk, chat, concurrency):
    chat.script = lambda prompt, _: replace(good_model(prompt), delay=0.02)
    desk.run([desk.corpus(8)], transport={"concurrency": concurrency})
    assert chat.most_in_flight == concurrency


@pytest.mark.parametrize(
    "cap", [{"max_tokens_budget": 600}, {"max_cost": 0.6, "price_in": 1e3, "price_out": 1e3}]
)
def test_a_budget_stops_the_run_with_what_is_finished_and_a_larger_one_goes_on(desk, chat, cap):
    chat.script = lambda prompt, _: good_model(prompt, tokens=(20, 10))
    report = desk.run(transport={**cap, "concurrency": 1}, max_tokens=50)
    assert not report["complete"]
    assert 0 < report["kept"] < 6
    assert report["kept"] + report["unfinished"] == report["documents"] == 6
    paid = sum(r.tokens_in + r.tokens_out for _, r in read_replies(str(desk.folder / "answers")))
    assert 0 < paid <= 600
    assert desk.run(max_tokens=50)["kept"] == 6
    assert len(chat.requests) == 24


def test_concurrent_requests_together_stay_within_the_budget():
    budget = Budget(Transport(base_url="", max_tokens_budget=100), tokens_in=0, tokens_out=0)
    with budget.take(40, 10) as pay:
        with pytest.raises(BudgetReachedError), budget.take(41, 10):
            pass
        with budget.take(40, 10):
            pass
        pay(Reply("", "", 20, 5))
    with budget.take(70, 5), pytest.raises(BudgetReachedError), budget.take(1, 0):
        pass


def test_requests_are_paced_and_all_wait_where_the_server_says_so():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(round(seconds, 6))
        now[0] += seconds

    pace = Pace(120, clock=lambda: now[0], sleep=sleep)
    for _ in range(3):
        pace.wait()
    assert slept == [0.5, 0.5]
    pace.hold(10)
    pace.wait()
    assert slept[-1] == 10
    free = Pace(None, clock=lambda: now[0], sleep=sleep)
    free.wait()
    free.wait()
    assert len(slept) == 3


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0.5", 0.5), ("1e9", LONGEST_PAUSE), ("-1", None), ("soon", None), (None, None),
     ("nan", None), (formatdate(4e9, usegmt=True), LONGEST_PAUSE), (formatdate(0), None)],
)  # fmt: skip
def test_a_wait_that_the_server_asks_for_is_understood(value, seconds):
    assert retry_after(value) == seconds


def test_a_reply_is_found_by_all_that_it_depends_on():
    request = {"model": "m", "messages": [{"role": "user", "content": "q"}], "seed": 1}
    assert request_key(request) == request_key(dict(reversed(request.items())))
    others = [request | {"seed": 2}, request | {"model": "n"}, request | {"temperature": 0.0}]
    assert len({request_key(r) for r in [request, *others]}) == 4


@given(cut=st.integers(0, 400))
def test_a_torn_line_is_no_answer_and_hides_none(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cache")
    cache = Cache(str(folder))
    replies = {f"k{i}": Reply(f"text {i}\n", "stop", i, i) for i in range(3)}
    for key, reply in replies.items():
        cache.put(key, reply)
    path = folder / "000000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    assert dict(read_replies(str(folder))) == dict(list(replies.items())[:left])
    again = Cache(str(folder))
    again.put("new", Reply("n", "", 1, 1))
    assert len(dict(read_replies(str(folder)))) == left + 1


def test_writers_never_share_a_file_and_the_first_answer_stays(tmp_path):
    caches = [Cache(str(tmp_path)) for _ in range(4)]

    def fill(number):
        for i in range(50):
            caches[number].put(f"{i}", Reply(f"{number} " * 200, "", 1, 1))

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"{n:06d}.jsonl" for n in range(4)]
    assert (
        sum(parse_line(line) is not None for p in tmp_path.iterdir() for line in p.open("rb"))
        == 200
    )
    first = json.loads((tmp_path / "000000.jsonl").read_bytes().splitlines()[0])["text"]
    assert Cache(str(tmp_path)).get("0").text == first


def test_ten_failures_in_a_row_end_the_asking(chat, tmp_path):
    chat.script = lambda *_: fails(500)
    client = Client(Transport(base_url=chat.url, retries=0), Cache(str(tmp_path)))
    for i in range(12):
        with pytest.raises(RequestFailedError):
            client.ask(f"{i}", model="m", temperature=0.0, max_tokens=9, seed=1)
    assert len(chat.requests) == 10
