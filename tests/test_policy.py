"""What policies do with documents that repeat benchmark text."""

from __future__ import annotations

import random

import pytest
from conftest import prose
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_decontam import words

from decontam.index import Index
from decontam.index_build import build_index
from decontam.policy import Decontaminator, Policy, Verdict
from decontam.records import Instance
from decontam.search import Searcher

ITEM = "which of the seven golden lamps burned longest in the temple of the moon?"
FORMULA = "1 2 3 4 5 6 7 8 9 10 11 12"
LAW = "to the fullest extent permitted by the law of this state"
SHORT = "who drew maps?"


@pytest.fixture(scope="module")
def index() -> Index:
    texts = [
        ITEM,
        f"it's a well-known, so-called {ITEM}",
        FORMULA,
        LAW,
        "père à l'œuvre d'été 中 中文 x y",
    ]
    instances = [Instance("s", "", "test", str(i), text) for i, text in enumerate(texts)]
    instances.append(Instance("s", "", "test", "short", SHORT, ("Ptolemy",), (True,)))
    return build_index(instances, n=8, frequent=[LAW])


def check(index: Index, text: str, policy: Policy) -> Verdict:
    (verdict,) = Decontaminator(index, policy).check([text.encode()])
    return verdict


def kept(text: str, verdict: Verdict) -> list[str]:
    """The pieces; decoding them proves that no character was cut in two."""
    return [text.encode()[start:end].decode() for start, end in verdict.kept]


EXCISE = Policy(action="excise", margin_words=4)


@pytest.mark.parametrize("action", ["drop", "excise", "threshold"])
def test_clean_documents_are_untouched(index: Index, action: str) -> None:
    policy = Policy(action=action)
    for text in ("", " \n", "one word", prose(random.Random(1), 5000), "é中\u00ad" * 40):
        verdict = check(index, text, policy)
        assert verdict == Verdict([(0, len(text.encode()))], [], len(words(text.encode())[0]), 0)


def test_drop_keeps_nothing_and_names_why(index: Index) -> None:
    verdict = check(index, f"a b c {ITEM} d e", Policy(action="drop"))
    assert (verdict.kept, verdict.n_words, verdict.words_removed) == ([], 19, 19)
    assert {o.instance for o in verdict.overlaps} == {"0", "1"}


@pytest.mark.parametrize("margin", [0, 1, 4, 40])
def test_excise_cuts_the_passage_and_its_margins_and_nothing_else(
    index: Index, margin: int
) -> None:
    before, behind = (" ".join(f"{side}{i}" for i in range(100)) for side in "ab")
    text = f"{before} {ITEM} {behind}"
    verdict = check(index, text, Policy(action="excise", margin_words=margin))
    pieces = kept(text, verdict)
    assert pieces[0].split() == before.split()[: 100 - margin]
    rest = [word for word in pieces[1].split() if word != "?"]
    assert rest == behind.split()[margin:]
    assert verdict.words_removed == 14 + 2 * margin
    assert verdict.n_words == 214


def test_excise_merges_margins_that_touch(index: Index) -> None:
    text = f"{'a ' * 50}{ITEM} x y z {ITEM} {'b ' * 50}"
    assert [len(piece.split()) for piece in kept(text, check(index, text, EXCISE))] == [46, 46]


@pytest.mark.parametrize("text", [ITEM, f"a b {ITEM}", f"{ITEM} a b", f" {ITEM}\n\n"])
def test_excise_of_all_there_is_keeps_nothing(index: Index, text: str) -> None:
    assert check(index, text, EXCISE).kept == []


def test_excise_looks_again_at_what_a_cut_makes_of_words(index: Index) -> None:
    """Cut within `x-which`, the joined reading of what is left begins with `which`."""
    text = f"{'a ' * 30}{FORMULA} b-{ITEM} {'c ' * 30}"
    policy = Policy(action="excise", margin_words=1, boilerplate="drop")
    pieces = kept(text, check(index, text, policy))
    assert pieces
    assert all(not found.spans for found in Searcher(index).search([p.encode() for p in pieces]))


NASTY = [
    "it's",
    "中文",
    "é\u0301",
    "<br/>",
    "&eacute;",
    "&amp;",
    "co-\noperate",
    "\\nwhich",
    "1 2 3 4",
]
NASTY += [
    "\u00ad",
    "\u200b",
    "—",
    "\n\n",
    "which of the",
    "l'œuvre",
    "a-which",
    FORMULA,
    LAW,
    SHORT,
]
NASTY += ["Ptolemy", "x" * 900, "x-" * 40]


@settings(max_examples=200)
@given(
    data=st.data(),
    margin=st.integers(0, 40),
    boilerplate=st.sampled_from(["keep", "drop"]),
)
def test_excised_documents_repeat_nothing_and_lose_nothing_else(
    index: Index, data: st.DataObject, margin: int, boilerplate: str
) -> None:
    glue = st.sampled_from([" ", " ", " - ", "", "\n"])
    items = st.sampled_from([*NASTY, ITEM, ITEM, f"it's a wellknown, so-called {ITEM}"])
    filler = st.integers(0, 60).map(lambda n: prose(random.Random(n), n))
    parts = data.draw(st.lists(st.one_of(items, filler), max_size=12))
    text = "".join(part + data.draw(glue) for part in parts)
    policy = Policy(action="excise", margin_words=margin, boilerplate=boilerplate)
    content, verdict = text.encode(), check(index, text, policy)
    pieces = [content[start:end] for start, end in verdict.kept]
    searcher = Searcher(index)
    (whole,) = searcher.search([content])
    again = searcher.search([piece.decode().encode() for piece in pieces])
    assert not any(f.spans or (boilerplate == "drop" and f.boilerplate) for f in again)
    spans = whole.spans + (whole.boilerplate if boilerplate == "drop" else [])
    assert verdict.kept == sorted(verdict.kept)
    assert all(e <= s for (_, e), (s, _) in zip(verdict.kept, verdict.kept[1:], strict=False))
    if not spans:
        assert verdict.kept == [(0, len(content))]
        return
    assert all(end <= s or start >= e for start, end in verdict.kept for s, e in spans)
    if "-" not in text and "'" not in text:  # else a cut may make new words, and a second cut
        assert len(lost_words(content, verdict)) <= sum(
            2 * margin + len(words(content[s:e])[0]) for s, e in spans
        )
    assert verdict.n_words - verdict.words_removed == sum(len(words(p)[0]) for p in pieces)


def lost_words(content: bytes, verdict: Verdict) -> list[tuple[int, int]]:
    """Words of a document that no kept piece holds."""
    spans = [(w.start, w.end) for w in words(content)[0]]
    return [(s, e) for s, e in spans if not any(a < e and s < b for a, b in verdict.kept)]


@pytest.mark.parametrize(
    ("filler", "is_kept"), [(259, False), (260, False), (267, True), (5000, True)]
)
def test_threshold_is_a_share_of_the_words(index: Index, filler: int, is_kept: bool) -> None:
    """14 words of 280 are 5 %."""
    text = f"{'a ' * filler}{ITEM}"
    verdict = check(index, text, Policy(action="threshold", threshold=0.05))
    assert verdict.kept == ([(0, len(text))] if is_kept else [])
    assert verdict.words_removed == (0 if is_kept else filler + 14)
    assert verdict.overlaps


def test_threshold_counts_a_repeated_passage_as_often_as_it_stands_there(index: Index) -> None:
    text = f"{ITEM} {'a ' * 200}{ITEM}"
    assert check(index, text, Policy(action="threshold", threshold=0.1)).kept == []
    assert check(index, text, Policy(action="threshold", threshold=0.2)).kept


@pytest.mark.parametrize("passage", [FORMULA, LAW])
@pytest.mark.parametrize("action", ["drop", "excise", "threshold"])
def test_boilerplate_counts_only_where_the_policy_says_so(
    index: Index, action: str, passage: str
) -> None:
    text = f"{'a ' * 50}{passage} {'b ' * 50}"
    keep = Policy(action=action, margin_words=4)
    drop = Policy(action=action, margin_words=4, boilerplate="drop")
    assert check(index, text, keep).kept == [(0, len(text))]
    assert check(index, text, drop).kept != [(0, len(text))]
    assert check(index, text, keep).overlaps == check(index, text, drop).overlaps != []


def test_short_questions_beside_their_answers_are_cut(index: Index) -> None:
    text = f"{'a ' * 50}{SHORT} Ptolemy. {'b ' * 50}"
    assert SHORT not in "".join(kept(text, check(index, text, EXCISE)))
    alone = text.replace("Ptolemy", "Nobody")
    assert check(index, alone, EXCISE).kept == [(0, len(alone))]


def test_verdicts_come_in_the_order_of_the_documents(index: Index) -> None:
    texts = [f"x{i} {ITEM if i % 3 == 0 else 'clean'}".encode() for i in range(50)]
    verdicts = Decontaminator(index, Policy(action="drop")).check(texts)
    assert [not verdict.kept for verdict in verdicts] == [i % 3 == 0 for i in range(50)]
    assert Decontaminator(index, Policy(action="drop")).check([]) == []


def test_a_margin_of_very_long_words_is_bounded_and_cuts_whole_characters(index: Index) -> None:
    text = f"{'é' * 5000} {ITEM} {'中' * 5000}"
    pieces = kept(text, check(index, text, Policy(action="excise", margin_words=8)))
    assert len(pieces) == 2
    assert min(map(len, pieces)) > 4000
