"""OIG's UL2-Oscar dialogues: to the letter, at the published rates, and no word lost."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.rendering import BadRecordError, Rendered, keyed_random
from pipelines.templates import oig_dialogue as oig
from pipelines.templates.fill_in import FillIn, fill_in
from pipelines.templates.oig_dialogue import X1, X2, Hiding, R, Wording, hidden_words

PLAIN = Wording()
WORDS = st.lists(
    st.sampled_from(
        [
            "a",
            "bcd",
            "end.",
            "really?",
            "...",
            "wait...",
            ".",
            "3.14",
            "[sic]",
            "é語",
            "Unmistakably.",
        ]
    ),
    min_size=2,
    max_size=150,
)


def dialogue(text: str, seed: int = 1, **options: object) -> Rendered:
    return fill_in(text, options=FillIn(**options), rng=random.Random(seed))


def turns_of(rendered: Rendered) -> list[tuple[str, str]]:
    """(prompt, reply); the reply is exactly the answer but for the line break before marks."""
    turns, end = [], 0
    for start, stop in rendered.answers:
        found = re.fullmatch("\n?User: (.*)\nAssistant:( \n)?", rendered.text[end:start], re.DOTALL)
        assert found and rendered.text[end:start].startswith("\n") == (end > 0)
        reply = rendered.text[start:stop]
        assert (reply[0] == " ") != bool(found[2]), "one space, or a line break in the prompt"
        turns.append((found[1], reply if found[2] else reply[1:]))
        end = stop
    assert end == len(rendered.text)
    return turns


def words_of(rendered: Rendered, wording: Wording) -> list[str]:
    """The words of the document, from its dialogue alone."""
    turns = turns_of(rendered)
    words: list[str] = []
    for (prompt, whole), (after, _) in pairwise([*turns, ("", "")]):
        reply = whole
        if prompt.startswith((f"{wording.fill_in} words: ", f"{wording.fill_in} spans: ")):
            label, visible = prompt.removeprefix(f"{wording.fill_in} ").split(": ", 1)
            marked = re.compile(rf"(?:(?<=\s)|^)(?:\[{label} \d+\]|\.\.\.)")
            if f"[{label} 1]" in visible:
                marked = re.compile(rf"\[{label} \d+\]")
            hidden = [
                line.removeprefix(f"{label} {number}: ")
                for number, line in enumerate(reply.split(" \n"), 1)
            ]
            assert len(marked.findall(visible)) == len(hidden)
            parts = iter(hidden)
            words += marked.sub(lambda _, parts=parts: next(parts), visible).split()
            continue
        if prompt not in {"Next.", "More.", "Continue."}:
            assert prompt.startswith(wording.complete) and prompt.endswith(" ...")
            before = prompt.removeprefix(wording.complete).removesuffix(" ...").split()
            assert before, "there is something to complete"
            words += before
            assert reply.startswith(wording.completion)
            reply = reply.removeprefix(wording.completion)
        if after in {"Next.", "More.", "Continue."}:
            assert reply.endswith("...")
            reply = reply[:-3]
        words += reply.split()
    return words


def wording_of(seed: int) -> Wording:
    """A dialogue's first draws."""
    rng = random.Random(seed)
    return Wording(rng.choice(oig.COMPLETE), rng.choice(oig.COMPLETION), rng.choice(oig.FILL_IN))


@settings(max_examples=300)
@given(WORDS, st.integers(0, 999))
def test_a_dialogue_holds_every_word_of_its_document_in_order(words, seed):
    rendered = dialogue(" \n".join(words), seed)
    assert words_of(rendered, wording_of(seed)) == words
    assert rendered == dialogue(" \n".join(words), seed)
    assert not rendered.controls and not rendered.framed


def test_marks_and_replies_are_the_script_s():
    words = "a b c d e f g h i j k l m n o p".split()
    turn = oig._fill_in(words, ".", [(6, 8), (14, 15)], "words", True, PLAIN)
    assert (
        turn.prompt == "Fill in the missing words: a b c d e f [words 1] i j k l m n [words 2] p."
    )
    assert turn.reply == "\nwords 1: g h \nwords 2: o"
    turn = oig._fill_in(words, ".", [(6, 16)], "spans", False, PLAIN)
    assert turn.prompt == "Fill in the missing spans: a b c d e f ...."
    assert turn.reply == "\nspans 1: g h i j k l m n o p"


def test_a_completion_is_the_script_s():
    turn = oig._complete(["a", "b"], ["c", "d"], ".", PLAIN)
    assert turn == (
        "What could be the completion of this text: a b ...",
        "The completion of this text could be: c d.",
    )
    words = [str(i) for i in range(700)]
    first, *others = oig._chained(words, ".", PLAIN, random.Random(2))
    assert first.prompt.startswith("What could be the completion of this text: 0 1 ")
    assert {turn.prompt for turn in others} == {"Next.", "More.", "Continue."}
    replies = [first.reply.split(": ")[1], *(turn.reply for turn in others)]
    assert all(reply.endswith("...") for reply in replies[:-1]) and replies[-1].endswith("699.")
    assert {len(reply.split()) for reply in replies[:-1]} == {12, 24, 32, 64, 128}


def test_roles_are_those_of_the_raw_or_of_the_published_file():
    assert dialogue("a b. c d", 4).text.startswith("User: ")
    text = dialogue("a b. c d", 4, roles="human").text
    assert text == dialogue("a b. c d", 4).text.replace("User:", "<human>:").replace(
        "Assistant:", "<bot>:"
    )
    assert re.fullmatch("<human>: .+\n<bot>: .+", text, re.DOTALL)


def test_every_wording_is_used_equally_often_and_once_for_a_dialogue():
    used = Counter()
    for seed in range(1200):
        text = dialogue("one two three four. five six", seed).text
        found = [w for w in oig.COMPLETE if f"User: {w}" in text]
        used.update(found or ["none"])
        used.update(w for w in oig.COMPLETION if w and f"Assistant: {w}" in text)
    assert set(used) == {*oig.COMPLETE, *oig.COMPLETION} - {""}
    assert all(150 < count < 250 for count in used.values())


# ---- rates ---------------------------------------------------------------------------------


def rates(hiding: Hiding) -> tuple[float, float]:
    """Odds that a span starts at a word where it may, and the mean length of spans."""
    gaps: list[int] = []
    lengths: list[int] = []
    for seed in range(60):
        found = hidden_words(["word"] * 20_000, hiding, keyed_random(1, "test", str(seed)))
        assert len(found) == oig.MOST_SPANS
        steps = [end - start for start, end in pairwise([0, *(x for s in found for x in s)])]
        gaps += steps[::2]
        lengths += steps[1::2]
    assert min(gaps) == 6
    return len(gaps) / sum(gap - 5 for gap in gaps), sum(lengths) / len(lengths)


@pytest.mark.parametrize(
    ("hiding", "start", "low", "high", "mean"),
    [(R, 2 / 11, 1, 8, 65 / 15), (X1, 1 / 3, 1, 8, 65 / 15), (X2, 1 / 11, 12, 64, 188 / 6)],
)
def test_spans_have_the_published_odds_and_lengths(hiding, start, low, high, mean):
    assert (min(hiding.lengths), max(hiding.lengths)) == (low, high)
    got_start, got_mean = rates(hiding)
    assert got_start == pytest.approx(start, rel=0.05)
    assert got_mean == pytest.approx(mean, rel=0.05)
    for factor in (0.8, 1.2):  # what these tolerances would see
        wrong, _ = rates(hiding._replace(start=start * factor))
        assert wrong != pytest.approx(start, rel=0.05)


def test_a_span_stops_before_a_word_that_ends_a_sentence():
    always = Hiding("words", 1.0, (5,))
    words = "a b c d e f g h. i j k l m n o p".split()
    assert hidden_words(words, always, random.Random()) == [(6, 7), (13, 16)]
    assert hidden_words(words[:8], always, random.Random()) == [(6, 7)]
    assert hidden_words(["a."] * 50, always, random.Random()) == []
    assert len(hidden_words(["a"] * 9999, always, random.Random())) == 99


def test_forms_are_drawn_at_the_published_odds(monkeypatch):
    drawn = Counter()

    def spy(words, hiding, rng):
        drawn[hiding] += 1
        return hidden_words(words, hiding, rng)

    monkeypatch.setattr(oig, "hidden_words", spy)
    n = 4000
    kinds = Counter()
    for seed in range(n):
        turns = oig.paragraph_turns(["word"] * 300, PLAIN, keyed_random(1, "t", str(seed)))
        marked = re.search(r"\[(words|spans) 1\]", turns[0].prompt)
        kinds[marked[1] if marked else "chain" if len(turns) > 1 else turns[0].prompt[:4]] += 1
    assert drawn[R] / n == pytest.approx(1 / 8, abs=0.02)
    assert drawn[X1] / n == pytest.approx(1 / 8, abs=0.02)
    assert drawn[X2] / n == pytest.approx(1 / 4, abs=0.02)
    assert kinds["words"] / n == pytest.approx(3 / 16, abs=0.02)
    assert kinds["spans"] / n == pytest.approx(3 / 16, abs=0.02)
    assert kinds["Fill"] / n == pytest.approx(1 / 8, abs=0.02), "a quarter has `...`"
    assert kinds["What"] / n == pytest.approx(1 / 4, abs=0.02)
    assert kinds["chain"] / n == pytest.approx(1 / 4, abs=0.02)


def test_paragraphs_are_cut_before_sentences_at_the_published_odds():
    words = "several ordinary words.".split() * 6000
    cuts = oig.paragraphs(words, keyed_random(1, "test", ""))
    assert [start for start, _ in cuts[1:]] == [end for _, end in cuts[:-1]]
    sentences = [(end - start) // 3 for start, end in cuts]
    assert all((end - start) % 3 == 0 for start, end in cuts)
    # Two for certain, and one more as long as a draw of 1/3 fails.
    assert min(sentences) == 2
    assert sum(sentences) / len(sentences) == pytest.approx(4, rel=0.05)
    assert sentences.count(2) / len(sentences) == pytest.approx(1 / 3, rel=0.08)
    for seed in range(20):
        cuts = oig.paragraphs(["He", "ran.", "Far.", "Unmistakably."], random.Random(seed))
        assert cuts == [(0, 4)], "no paragraph of one word"
    short = oig.paragraphs(["It.", "is."] * 100, random.Random(1))
    assert short == [(0, 200)], "short sentences stay with what is before them"


def test_documents_that_cannot_be_filled_in_are_refused_with_a_reason():
    for text in ("", " \n ", "word."):
        with pytest.raises(BadRecordError, match="too_short_to_fill"):
            dialogue(text)
    with pytest.raises(BadRecordError, match="sentinel_in_text"):
        dialogue("a dialogue: fill in [words\n12] here")


def books(shared_data: Path, n: int) -> list[str]:
    """The first 300,000 characters of some novels."""
    path = shared_data / "books" / "rp_book_train.jsonl.zst"
    with pa.input_stream(str(path), compression="zstd") as stream:
        records = stream.read(8_000_000).split(b"\n")[:n]
    return [json.loads(record)["text"][:300_000] for record in records]


def test_real_books_keep_every_word_at_the_published_rates(shared_data):
    prompts = Counter()
    for i, text in enumerate(books(shared_data, 8)):
        rendered = dialogue(text, i)
        assert words_of(rendered, wording_of(i)) == text.split()
        for prompt, _ in turns_of(rendered):
            label = re.match(r"[\w ]+ (words|spans): ", prompt)
            prompts[label[1] if label else prompt if len(prompt) < 10 else "S"] += 1
    n = prompts["words"] + prompts["spans"] + prompts["S"]
    assert n > 2_000
    # Short paragraphs, in which no span starts, take form S as well.
    assert 0.5 < prompts["S"] / n < 0.62
    assert 0.2 < prompts["words"] / n < 0.26 and 0.17 < prompts["spans"] / n < 0.25
