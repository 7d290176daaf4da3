"""What other decontamination tools get wrong, one test for each failure."""

from __future__ import annotations

import random

import pytest
from conftest import prose

from decontam.index_build import build_index
from decontam.policy import Decontaminator, Policy, Verdict
from decontam.records import DecontamError, Instance
from decontam.search import Found, Searcher

ITEM = (
    "In which year did the painter of the broken column first exhibit her work abroad, and which "
    "gallery in which city gave her the room to show all of the pictures that she had by then?"
)
EXCISE = Policy(action="excise")


def found(text: str, *items: str, n: int = 10, **options: object) -> Found:
    instances = [Instance("s", "", "test", str(i), item) for i, item in enumerate(items)]
    return Searcher(build_index(instances, n=n, **options)).search([text.encode()])[0]


def verdict(text: str, *items: str, policy: Policy = EXCISE, n: int = 10) -> Verdict:
    instances = [Instance("s", "", "test", str(i), item) for i, item in enumerate(items)]
    return Decontaminator(build_index(instances, n=n), policy).check([text.encode()])[0]


def book() -> str:
    return prose(random.Random(3), 12_000)


def test_numbers_are_not_all_the_same_number() -> None:
    """datatrove maps every number to 0: 345 of its 421 false removals were `0 0 0 ...`."""
    assert found("1 2 3 4 5 6 7 8 9 10 11", "21 22 23 24 25 26 27 28 29 30 31").boilerplate == []
    table = found("x 0 0 0 0 0 0 0 0 0 0 0 y", "0 0 0 0 0 0 0 0 0 0")
    assert table.spans == []
    assert {o.rule for o in table.overlaps} == {"no_words"}
    years = "the wars of 1618 to 1648 ended in the peace of Westphalia"
    assert found(years, years).spans
    assert not found(years.replace("1648", "1649"), years).spans


@pytest.mark.parametrize("quoted", [20, 23, 25, 33])
def test_a_quote_does_not_delete_a_book(quoted: int) -> None:
    """lm-eval's janitor counts overlapping n-grams: any quote of 23 words deletes the book. GPT-3:
    removing whole documents "overly penalized long documents such as books"."""
    text = book()
    middle = text.index(" ", len(text) // 2)
    quote = " ".join(ITEM.split()[:quoted])
    judged = verdict(f"{text[:middle]} {quote}{text[middle:]}", ITEM)
    assert len(judged.kept) == 2
    assert quoted <= judged.words_removed <= quoted + 2 * EXCISE.margin_words


def test_dashes_between_words_hide_nothing() -> None:
    """lm-eval's janitor splits raw words first: with " - " between words it finds nothing."""
    assert len(found(" - ".join(ITEM.split()), ITEM).spans) == 1


@pytest.mark.parametrize("n", [5, 10, 13])
def test_exactly_n_words_are_found(n: int) -> None:
    """lm-eval's C++ janitor never emits the last n-gram, so exactly n words are none."""
    part = " ".join(ITEM.split()[3 : 3 + n])
    assert len(found(part, ITEM, n=n).spans) == 1
    assert len(found(ITEM, part, n=n).spans) == 1
    assert found(part.rsplit(" ", 1)[0], ITEM, n=n).spans == []


def test_long_words_are_not_cut() -> None:
    """lm-eval's C++ janitor cuts words at 10 letters, so that different words are equal."""
    item = " ".join(f"internationalization{i}" for i in range(12))
    assert found(item, item).spans
    assert not found(item.replace("tion", "tions"), item).spans


def test_the_last_n_gram_of_a_text_is_found() -> None:
    """The janitor's C++ mode loses it; HELM's ends in an empty word after the question mark."""
    last = " ".join(ITEM.rstrip("?").split()[-10:])
    assert len(found(f"so {last} was what they asked", ITEM).spans) == 1
    assert len(found(f"so {last}", ITEM).spans) == 1


def test_clean_documents_stay_whole() -> None:
    """lm-eval's janitor in C++ mode keeps 0 characters of every clean document."""
    text = book()
    assert verdict(text, ITEM).kept == [(0, len(text))]


@pytest.mark.parametrize("width", [1, 2, 8, 13])
def test_rewrapped_lines_are_found(width: int) -> None:
    """dolma compares lines: re-wrapped text escapes; Marin's recall on 8-word lines was 0."""
    given = ITEM.split()
    lines = "\n".join(" ".join(given[i : i + width]) for i in range(0, len(given), width))
    assert len(found(f"Before.\n\n{lines}\n\nBehind.", ITEM).spans) == 1
    blank = lines.replace("\n", "\r\n\r\n")
    assert len(found(blank, ITEM).spans) == 1


def test_a_changed_character_hides_only_what_stands_beside_it() -> None:
    """dolma needs the whole paragraph to be equal: one changed character escapes."""
    changed = ITEM.replace("exhibit", "exhibot")
    before, behind = found(changed, ITEM).spans
    assert changed[before[1] :].startswith(" exhibot")
    assert changed[behind[0] :].startswith("her work abroad")


def test_an_item_within_a_long_paragraph_is_found() -> None:
    """Marin marks paragraphs by the share of their n-grams: recall of embedded items 0.37."""
    text = " ".join(prose(random.Random(1), 4000).split())
    assert len(found(f"{text} {ITEM} {text}", ITEM).spans) == 1


@pytest.mark.parametrize("end", ["?", "", ".", "”", " ?", "?!"])
def test_the_mark_at_the_end_changes_nothing(end: str) -> None:
    """HELM keeps an empty last word, so the n-gram that ends in "?" never matches running text."""
    item = "who was it that painted the broken column in 1944"
    assert len(found(f"ask {item}{end} now", f"{item}?").spans) == 1


def test_curly_quotes_and_dashes_are_punctuation() -> None:
    """HELM splits at ASCII punctuation only."""
    plain = "she said 'it is well-known - so to speak - that nobody's here'"
    curly = "she said ‘it is well–known — so to speak — that nobody’s here’"
    assert len(found(curly, plain).spans) == 1
    assert len(found(plain, curly).spans) == 1


def test_a_legal_formula_can_be_named_and_is_then_reported_apart() -> None:
    """One formula caused 29,000 false flags in one source of Marin; GPT-3 ignores frequent ones."""
    formula = "permission is hereby granted free of charge to any person obtaining a copy"
    text = f"The licence: {formula} of this software."
    assert found(text, f"{formula} of what?").spans
    listed = found(text, f"{formula} of what?", frequent=[formula])
    assert {o.rule for o in listed.overlaps} == {"frequent", "ngram"}
    whole = found(formula, f"{formula} of what?", frequent=[formula])
    assert (whole.spans, {o.rule for o in whole.overlaps}) == ([], {"frequent"})


def test_instructions_that_many_scenarios_share_are_not_contamination() -> None:
    """Templates fill Together's top 100, and Marin's flags, with what is no test item."""
    same = "answer the following question with one word or a short phrase only"
    instances = [Instance(f"s{i}", "", "test", "1", f"{same} q{i}?") for i in range(4)]
    (one,) = Searcher(build_index(instances)).search([f"{same}: who?".encode()])
    assert one.spans == []
    assert len(one.overlaps) == 4


def test_short_items_are_found_whole() -> None:
    """Together's rule never matches items of fewer than 10 words; decon's none under 20 tokens."""
    item = "Who discovered the rings of Saturn?"
    (one,) = found(f"A quiz. {item} Galileo.", item).overlaps
    assert (one.rule, one.n_words) == ("whole", 6)


def test_one_word_stubs_match_nothing() -> None:
    """Marin's one-word paragraphs gave 18 % phantom hits."""
    one = found("yes. no. true false the answer", "yes", "no", "true", "the answer", ITEM)
    assert one.overlaps == []


@pytest.mark.parametrize("offset", range(0, 10, 3))
def test_every_n_gram_is_looked_for_not_a_sample(offset: int) -> None:
    """decon samples n-grams each 10 tokens, and misses hits in edited text."""
    words = ITEM.split()
    for first in range(offset, len(words) - 10, 7):
        part = " ".join(words[first : first + 10])
        assert len(found(f"x {part} y", ITEM).spans) == 1


def test_all_items_of_a_document_are_reported() -> None:
    """Elasticsearch gives open-instruct 100 hits at most, so that "it is not guaranteed"."""
    items = [f"q{i} {' '.join(f'w{i}x{k}' for k in range(10))}" for i in range(300)]
    one = found("\n".join(items), *items)
    assert len(one.entries) == 300
    assert len(one.spans) == 300


@pytest.mark.parametrize(
    "text", ["", "\x00" * 100, "\ufffd\ufffe", "&" * 999, "<" * 999, "\\" * 999]
)
def test_strange_documents_are_documents(text: str) -> None:
    """datatrove drops a whole file for one bad byte and calls the task complete."""
    one = found(f"{text}{ITEM}{text}" if "<" not in text else f"{text} {ITEM}", ITEM)
    assert len(one.spans) == 1
    assert found(text, ITEM).spans == []


def test_an_empty_benchmark_is_no_benchmark_passed() -> None:
    """dolma's `min_words` switches its check off silently."""
    with pytest.raises(DecontamError, match="no text"):
        build_index([])
