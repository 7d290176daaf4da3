"""Replies, verdicts and prompts, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.synthesis.chunks import choose_chunk, choose_kind, document_uid, request_seed
from pipelines.synthesis.judge import agree, judge, read_critique, supported
from pipelines.synthesis.parsing import Pair, UnparsedError, parse_pair
from pipelines.synthesis.prompts import CRITIQUE, GENERATION, ROUND_TRIP, fill, neutral

TAGS = ("<question>", "</question>", "<answer>", "</answer>")
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=60)
SAYS_SOMETHING = PLAIN.filter(lambda text: any(map(str.isalnum, text)))


# --- replies -------------------------------------------------------------------------------


@given(SAYS_SOMETHING, SAYS_SOMETHING, PLAIN, PLAIN, PLAIN)
def test_a_pair_is_found_whatever_stands_around_its_tags(question, answer, before, between, after):
    reply = f"{before}<question>{question}</question>{between}<answer>{answer}</answer>{after}"
    assert parse_pair(reply) == (" ".join(question.split()), " ".join(answer.split()))


@given(st.lists(st.one_of(PLAIN, st.sampled_from(TAGS)), max_size=12).map("".join))
def test_any_reply_gives_a_pair_without_tags_or_a_reason(reply):
    try:
        pair = parse_pair(reply)
    except UnparsedError as error:
        assert error.reason in {"empty_reply", "no_question", "no_answer", "tangled_tags",
                                "empty_question", "empty_answer"}  # fmt: skip
    else:
        assert not any(tag in text for text in pair for tag in TAGS)
        assert all(any(map(str.isalnum, text)) for text in pair)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty_reply"),
        (" \n", "empty_reply"),
        ("Who is she? Anna.", "no_question"),
        ("<answer>Anna</answer>", "no_question"),
        ("<question>Who?</question> Anna", "no_answer"),
        ("<question>Who?</question><answer>Anna", "no_answer"),
        ("<question>Who?", "no_question"),
        ("<question>Who?</answer><answer>Anna</answer>", "tangled_tags"),
        ("<question>Who <question>is?</question></question><answer>A</answer>", "tangled_tags"),
        ("<question>?!</question><answer>Anna</answer>", "empty_question"),
        ("<question>Who?</question><answer> \n</answer>", "empty_answer"),
        ("<answer>Anna</answer><question>Who?</question>", "no_answer"),
    ],
)
def test_a_reply_that_does_not_parse_says_why(reply, reason):
    with pytest.raises(UnparsedError) as caught:
        parse_pair(reply)
    assert caught.value.reason == reason


def test_of_several_pairs_the_first_counts_and_tags_may_be_written_loosely():
    reply = "< Question >a 1\n b</QUESTION> x <answer>2</answer><question>3</question>"
    assert parse_pair(reply + "<answer>4</answer>") == Pair("a 1 b", "2")


# --- verdicts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('"He left." VERDICT: RIGHT', "right"),
        ("**Verdict:** wrong", "wrong"),
        ("VERDICT: RIGHT or VERDICT: WRONG? I say VERDICT: WRONG.", "wrong"),
        ("It is there.\nRIGHT.", "right"),
        ("That is the right answer", "unclear"),
        ("", "unclear"),
        ("The passage says the VERDICTS are RIGHTEOUS", "unclear"),
    ],
)
def test_the_last_verdict_of_a_critique_counts(reply, verdict):
    assert read_critique(reply) == verdict


@pytest.mark.parametrize(
    ("answer", "other", "same"),
    [
        ("Clement Daldy", "It was Clement Daldy.", True),
        ("the Reverend Mother", "Reverend mother", True),
        ("Twenty years", "10 years", False),
        ("Twenty years", "A little over twenty years.", True),
        ("Paris", "I do not know. Paris?", False),
        ("Paris", "not in the passage", False),
        ("He", "He was late", False),
        ("", "", False),
    ],
)
def test_short_answers_agree_where_they_say_the_same(answer, other, same):
    assert agree(answer, other, "short") is same


def test_words_of_the_question_prove_no_agreement():
    pair = Pair("What should Phineas do before attending the banquet?", "Phineas should cook.")
    repeats = "Before attending the banquet Phineas should attend the banquet."
    verdict = judge(pair, "Phineas should cook.", "normal",
                    critique=None, round_trip="He should cook", closed_book=repeats)  # fmt: skip
    assert verdict.drop_reason() is None
    told = judge(Pair("Who is in the plot against Eugen?", "Eugen"), "Eugen is.", "short",
                 critique=None, round_trip="Eugen", closed_book=None)  # fmt: skip
    assert told.drop_reason() == "answer_in_question"


@given(PLAIN, PLAIN, st.sampled_from(["normal", "short"]))
def test_support_is_a_share_and_an_answer_cut_from_the_chunk_is_in_it(chunk, answer, kind):
    assert 0 <= supported(answer, chunk) <= 1
    verdict = judge(Pair("", answer), f"{chunk} {answer}", kind,
                    critique=None, round_trip=None, closed_book=None)  # fmt: skip
    assert verdict.in_chunk == (verdict.support > 0)
    assert verdict.drop_reason() == (None if verdict.in_chunk else "not_in_chunk")


def test_the_first_reason_in_a_fixed_order_is_the_one_that_counts():
    pair = Pair("Who?", "Anna Karenina")
    rules = {"critique": "VERDICT: WRONG", "round_trip": "Ivan", "closed_book": "Anna Karenina"}
    reasons = []
    for name in ("critique", "chunk", "round_trip", "closed_book"):
        chunk = "Here is Anna Karenina." if "chunk" in reasons else "Nobody is here."
        reasons.append(judge(pair, chunk, "short", **rules).drop_reason())
        if name in rules:
            rules[name] = None
        if name == "chunk":
            chunk = "Here is Anna Karenina."
            reasons[-1:] = ["not_in_chunk", "chunk"]
    assert reasons == ["critique_wrong", "not_in_chunk", "chunk", "round_trip_differs", "leaked"]


# --- prompts -------------------------------------------------------------------------------

HOSTILE = st.lists(
    st.sampled_from([*TAGS, '"""', '""""', "<|im_start|>system", "<|", "|>", "[/INST]", "</s>",
                     "<<SYS>>", "{QUESTION}", "{TEXT_CHUNK}", "\n", " word "])
).map("".join)  # fmt: skip


@given(HOSTILE)
def test_no_text_ends_the_quote_or_makes_a_tag_or_a_control_token(text):
    prompt = fill(GENERATION["normal"], chunk=text)
    assert prompt.count('"""') == 2
    start, end = GENERATION["normal"].split("{TEXT_CHUNK}")
    inside = prompt.removeprefix(start).removesuffix(end)
    assert inside == neutral(text)
    marks = (*TAGS, "<|", "|>", "[/INST]", "</s>", "<<SYS>>")
    assert not any(mark in inside for mark in marks)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_what_a_model_said_is_as_harmless_in_later_prompts(chunk, question, answer):
    for template in (CRITIQUE, *ROUND_TRIP.values()):
        prompt = fill(template, chunk=chunk, question=question, answer=answer)
        assert prompt.count('"""') == 2
        assert "<|" not in prompt


@given(st.text(st.sampled_from("abc \n.'-"), max_size=80))
def test_ordinary_text_goes_into_prompts_as_it_is(text):
    assert neutral(text) == text


# --- what is drawn -------------------------------------------------------------------------


@given(st.text(max_size=300), st.integers(1, 20), st.integers(0, 3))
def test_a_chunk_is_whole_words_of_its_document_and_never_too_long(text, words, seed):
    text = text.encode(errors="replace").decode()
    uid = document_uid(text)
    chunk = choose_chunk(text, words=words, seed=seed, uid=uid)
    assert 0 <= chunk.start <= chunk.end <= len(text)
    inside = text[chunk.start : chunk.end]
    assert len(inside) <= 12 * words
    assert inside == inside.strip()
    if len(inside) < 12 * words and len(text.split()) >= words:
        assert (
            inside.split()
            in [text.split()[i : i + words] for i in range(0, len(text.split()), words)]
            or len(text.split()) < 2 * words
        )
    assert choose_chunk(text, words=words, seed=seed, uid=uid) == chunk


def test_every_chunk_and_both_kinds_are_drawn_and_requests_have_their_own_seeds():
    text = " ".join(f"w{i}" for i in range(45))
    uids = [document_uid(f"{i}") for i in range(400)]
    starts = {choose_chunk(text, words=10, seed=1, uid=uid).start for uid in uids}
    assert {text[start:].split()[0] for start in starts} == {"w0", "w10", "w20", "w30"}
    assert 150 < sum(choose_kind(1, uid) == "short" for uid in uids) < 250
    seeds = {request_seed(s, uid, p) for s in (1, 2) for uid in uids for p in ("a", "b")}
    assert len(seeds) == 1600
