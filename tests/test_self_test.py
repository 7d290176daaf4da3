"""The self-test: what is planted is found, what is not found is said, equal seeds agree."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from conftest import prose, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from decontam import scan
from decontam.index import Index
from decontam.index_build import build_index
from decontam.normalize import Normalizer
from decontam.planting import EDITS, POSITIONS, is_plain, plant
from decontam.policy import Decontaminator, Policy
from decontam.records import Instance
from decontam.self_test import self_test, take_survey

QUESTIONS = [
    "Which café on the Champs-Élysées didn't serve well-known wines at 1,000 francs before 1900?",
    "Name the glacier whose meltwater feeds seven Alpine valleys below the northern ridge.",
    "How do you know whether “antidisestablishmentarianism” is the longest word in English?",
    "Where do otters sleep during the night?",
    "What colour has the inside of Saturn?",
    "Who painted it?",
    "What is this?",
    "Compute 1 2 3 4 5 6 7 8 9 10 11 12 13 14",
]


def make_index(normalization: str = "default") -> Index:
    instances = [
        Instance("exam", "", "test", f"id{i}", text, ("Leonardo da Vinci", "nobody"), (True, False))
        for i, text in enumerate(QUESTIONS)
    ]
    return build_index(instances, n=10, normalizer=Normalizer.of(normalization))  # type: ignore[arg-type]


def corpus(*, quotes: int = 0) -> list[bytes]:
    """Texts of several lengths; the first ones quote a question."""
    rng = random.Random(1)
    texts = [prose(rng, n) for n in (30, 50, 80, 400, 900, 5_000)]
    return [f"{text} {QUESTIONS[1] if i < quotes else ''}".encode() for i, text in enumerate(texts)]


def lines(index: Index, texts: list[bytes], *, seed: int = 0, action: str = "excise") -> list[str]:
    policy = Policy(action=action)  # type: ignore[arg-type]
    return "\n".join(self_test(index, texts, policy, plants=5, seed=seed)).splitlines()


def test_everything_that_is_planted_is_found_whatever_its_edit_length_and_place():
    shown = lines(make_index(), corpus())
    table = [line for line in shown if re.search(r"\d+ of \d+ +\d+ of \d+ +\d+ of \d+$", line)]
    assert len(table) == len(EDITS) + 2
    for line in table:
        assert all(a == b for a, b in re.findall(r"(\d+) of (\d+)", line)), line
    (recall,) = [line for line in shown if line.startswith("recall")]
    assert recall.split() == ["recall", "100.00%", "100.00%", "100.00%"]
    assert not [line for line in shown if line.startswith("missed")]


def test_what_is_not_found_by_design_is_shown_as_such():
    text = "\n".join(lines(make_index(), corpus()))
    assert re.search(r"answer only: 0 of [1-9]\d* found", text)
    assert re.search(r"numbers only: ([1-9]\d*) of \1 found and reported apart, 0 counted", text)


def test_what_a_normalization_misses_is_listed_with_its_place():
    shown = lines(make_index("helm"), corpus())
    (row,) = [line for line in shown if line.startswith("zero-width characters")]
    assert re.search(r" 0 of [1-9]", row)
    (row,) = [line for line in shown if line.startswith("verbatim")]
    assert re.search(r"^verbatim +([1-9]\d*) of \1 ", row)
    assert [
        line for line in shown if re.match(r"missed: .*, (start|middle|end), exam/test/id", line)
    ]


def test_equal_seeds_give_equal_reports():
    index, texts = make_index(), corpus()
    assert lines(index, texts, seed=7) == lines(index, texts, seed=7)


def test_removal_is_counted_by_length_in_documents_and_words():
    index, texts = make_index(), corpus(quotes=2)
    shown = lines(index, texts, action="drop")
    counts = [len(index.normalizer.words([text]).split.hashes) for text in texts]
    short, middle, long = sum(counts[:3]), sum(counts[3:5]), counts[5]
    removed = sum(counts[:2])
    at = next(i for i, line in enumerate(shown) if line.startswith("words "))
    assert [line.split() for line in shown[at + 1 : at + 5]] == [
        ["under", "100", "3", "2", "2", "0", f"{short:,}", f"{removed:,}",
         f"{removed / short:.3%}"],
        ["100", "to", "999", "2", "0", "0", "0", f"{middle:,}", "0", "0.000%"],
        ["1,000", "to", "9,999", "1", "0", "0", "0", f"{long:,}", "0", "0.000%"],
        ["all", "6", "2", "2", "0", f"{sum(counts):,}", f"{removed:,}",
         f"{removed / sum(counts):.3%}"],
    ]  # fmt: skip


def test_documents_that_overlap_are_not_planted_in():
    survey = take_survey(make_index(), corpus(quotes=2), Policy(action="drop"), 0)
    hosts = [text for chosen in survey.hosts.values() for _, text in chosen]
    assert len(hosts) == 4
    assert not any(QUESTIONS[1] in host for host in hosts)


@given(host=st.text(max_size=40), item=st.text(max_size=10), position=st.sampled_from(POSITIONS))
def test_a_plant_stands_where_it_is_said_to_be(host, item, position):
    host, item = (text.encode(errors="ignore").decode() for text in (host, item))
    text, start, end = plant(host, item, position)
    assert text.encode()[start:end].decode() == item
    rest = text.encode()[:start] + text.encode()[end:]
    assert rest.decode().split() == host.split() or position == "middle"


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("question", QUESTIONS[:3])
def test_no_edit_hides_a_question_from_a_build(edit, question):
    planted = EDITS[edit](question)
    assert is_plain(question)
    assert edit == "verbatim" or planted != question or edit == "hyphens at line ends"
    text = f"{prose(random.Random(2), 40)} {planted} {prose(random.Random(3), 40)}"
    decontaminator = Decontaminator(make_index(), Policy(action="drop"))
    (verdict,) = decontaminator.check([text.encode()])
    assert verdict.kept == []


def test_the_command_prints_the_self_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_index().save(str(tmp_path / "exam.index"))
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text.decode()} for text in corpus()])
    arguments = ["--index", str(tmp_path / "exam.index"), "--self-test", str(path)]
    assert scan.main([*arguments, "--plants", "3"]) == 0
    shown = capsys.readouterr().out
    assert "recall" in shown
    assert "Removed of this corpus with nothing planted (`policy: excise`)" in shown
