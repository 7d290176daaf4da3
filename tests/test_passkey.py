"""Passkey prompts: one key, where it was asked for; k_max; and models that know or do not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from pipelines.errors import UserError
from trainer.passkey import (
    FILLER,
    accuracy,
    filler_that_fits,
    is_right,
    k_max,
    prompt,
    run_trials,
)


def words(text: str) -> list[int]:
    """A tokenizer that counts words and full stops."""
    return [ord(part[0]) for part in re.findall(r"\w+|[^\w\s]", text)]


def ask(answer, *, lengths=(120, 240), depths=(0.0, 0.5, 1.0), trials=3, seed=0):
    prompts: list[list[int]] = []
    texts: list[str] = []

    def encode(text: str) -> list[int]:
        texts.append(text)
        return words(text)

    def said(ids: list[int], n: int) -> str:
        prompts.append(ids)
        text = next(t for t in reversed(texts) if words(t) == ids)
        return answer(text)

    return run_trials(
        encode, said, lengths=lengths, depths=depths, trials=trials, seed=seed, watch=iter
    )


def knows(text: str) -> str:
    (key,) = re.findall(r"pass key is (\d+)", text)
    return f" {key}. And"


def test_the_prompt_is_the_published_one():
    assert prompt("12345", before=1, after=2) == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
        "them. I will quiz you about the important information there.\n"
        "The grass is green.\n"
        "The pass key is 12345. Remember it. 12345 is the pass key.\n"
        "The grass is green. The sky is blue.\n"
        "What is the pass key? The pass key is"
    )


@given(st.integers(100, 3_000), st.floats(0, 1), st.integers(10_000, 99_999))
def test_a_prompt_fills_its_length_to_within_a_sentence(length, depth, key):
    before, after = filler_that_fits(words, str(key), length=length, depth=depth)
    text = prompt(str(key), before=before, after=after)
    longest = max(len(words(sentence)) for sentence in FILLER.split("|"))
    assert length - longest <= len(words(text)) <= length
    assert text.count(f"The pass key is {key}.") == 1
    assert text.count(str(key)) == 2
    assert before == round(depth * (before + after))
    assert text.split("\n")[1].count(".") == before
    assert text.split("\n")[3].count(".") == after


def test_a_real_tokenizer_fills_the_length_too(tokenizer_model):
    model = SentencePieceProcessor(model_file=str(tokenizer_model))
    before, after = filler_that_fits(model.encode, "54321", length=2_000, depth=0.25)
    ids = model.encode(prompt("54321", before=before, after=after))
    assert 2_000 - 25 <= len(ids) <= 2_000


def uneven(text: str) -> list[int]:
    """A tokenizer that no short prompt foretells: line ends count more the longer the text is."""
    return words(text) + [0] * (text.count("\n") * len(text) // 500)


@given(st.sampled_from([words, list, uneven]), st.integers(100, 3_000), st.floats(0, 1))
def test_the_filler_is_the_most_that_fits_whatever_the_tokenizer(encode, length, depth):
    if len(encode(prompt("12345", before=0, after=0))) > length:
        return
    before, after = filler_that_fits(encode, "12345", length=length, depth=depth)
    n = before + after
    split = [(round(depth * k), k - round(depth * k)) for k in (n, n + 1)]
    sizes = [len(encode(prompt("12345", before=b, after=a))) for b, a in split]
    assert split[0] == (before, after)
    assert sizes[0] <= length < sizes[1]


def test_a_long_prompt_is_not_encoded_again_and_again():
    encoded = []
    filler_that_fits(
        lambda text: encoded.append(len(text)) or words(text), "12345", length=50_000, depth=0.3
    )
    assert sum(encoded) < 3 * max(encoded)


def test_a_length_below_the_prompt_itself_is_refused():
    least = len(words(prompt("12345", before=0, after=0)))
    assert filler_that_fits(words, "12345", length=least, depth=0.5) == (0, 0)
    with pytest.raises(UserError, match=f"{least - 1} tokens are too few.*has {least};"):
        filler_that_fits(words, "12345", length=least - 1, depth=0.5)


def test_a_model_that_knows_is_always_right_and_one_that_does_not_never():
    right, wrong = ask(knows), ask(lambda text: " 1234. And")
    assert len(right) == 2 * 3 * 3
    assert all(trial.right for trial in right)
    assert not any(trial.right for trial in wrong)
    assert accuracy(right, 240, 0.5) == 1
    assert accuracy(wrong, 240, 0.5) == 0


def test_a_share_is_of_one_length_and_depth():
    trials = ask(lambda text: knows(text) if len(words(text)) < 150 else "no")
    assert accuracy(trials, 120, 1.0) == 1
    assert accuracy(trials, 240, 1.0) == 0


def test_the_questions_depend_on_the_seed_alone():
    one, again, other = ask(knows), ask(knows), ask(knows, seed=1)
    assert one == again
    assert {t.key for t in one} != {t.key for t in other}
    alone = ask(knows, lengths=[240], depths=[0.5])
    assert alone == [t for t in one if (t.length, t.depth) == (240, 0.5)]


def test_keys_have_five_digits_and_stand_where_they_were_asked_for():
    trials = ask(knows, lengths=[1_000], depths=[0.0, 0.25, 1.0])
    assert all(re.fullmatch(r"[1-9]\d{4}", t.key) for t in trials)
    assert [round(t.placed, 2) for t in trials] == [0, 0, 0, 0.25, 0.25, 0.25, 1, 1, 1]
    assert all(1_000 - 6 <= t.tokens <= 1_000 for t in trials)


def test_without_a_depth_keys_stand_anywhere():
    placed = [t.placed for t in ask(knows, lengths=[2_000], depths=[None], trials=40)]
    assert min(placed) < 0.2
    assert max(placed) > 0.8
    assert len(set(placed)) > 20


@pytest.mark.parametrize(
    ("answer", "right"),
    [(" 12345. Remember", True), ("12345", True), ("\n12345", True), ("123456", False),
     (" 1234", False), (" not 12345", False), ("", False)],
)  # fmt: skip
def test_right_is_what_begins_with_the_whole_key(answer, right):
    assert is_right("12345", answer) is right


@pytest.mark.parametrize(
    ("rates", "reached"),
    [
        ({1024: 1.0, 2048: 0.2, 3072: 0.1, 4096: 1.0}, 2048),
        ({1024: 1.0, 2048: 1.0}, 2048),
        ({2048: 1.0, 1024: 0.0}, 0),
        ({1024: 0.19}, 0),
    ],
)
def test_k_max_is_the_last_length_before_the_first_failure(rates, reached):
    assert k_max(rates) == reached
