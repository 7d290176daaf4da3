"""What is found in documents: the kernels against a plain implementation, and index files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_decontam import PlainFound, PlainIndex, words

from decontam.index import RULES, Index
from decontam.index_build import build_index
from decontam.index_file import MAGIC
from decontam.normalize import Normalizer
from decontam.records import BOILERPLATE_RULES, DecontamError, Instance, Overlap
from decontam.search import MOST_OVERLAPS, Found, Searcher
from decontam.word_kernels import CHUNK_WORDS, MOST_PIECES

DEFAULT = Normalizer.of("default")
VOCABULARY = ["a", "b", "c", "d-e", "1", "2", "it's", "中", "d", "e", "its", "f"]


def instance(
    text: str, *answers: str, scenario: str = "s", id: str = "1", question: int = 0
) -> Instance:
    """An instance whose references are all right answers."""
    return Instance(scenario, "", "test", id, text, answers, (True,) * len(answers), question)


def searcher(instances: Sequence[Instance], **options: object) -> Searcher:
    return Searcher(build_index(instances, normalizer=DEFAULT, **options))  # type: ignore[arg-type]


def compare(found: Found, expected: PlainFound, instances: Sequence[Instance], text: str) -> None:
    """Benchmark texts, rules, spans and the longest passages are those of the plain rules."""
    keys = [
        (i.id, "input" if r < 0 else "reference", r)
        for i in instances
        for r in range(-1 if i.input else 0, len(i.references))
    ]
    longest = {(*keys[entry], kind): n for (entry, kind), n in expected.longest.items()}
    got = {
        (o.instance, o.part, o.reference, o.rule in BOILERPLATE_RULES): o.n_words
        for o in found.overlaps
    }
    assert found.spans == expected.spans, text
    assert found.boilerplate == expected.boilerplate, text
    assert {(e, RULES[rule]) for e, rule in found.entries.tolist()} == expected.entries, text
    assert got == {key: longest.get(key) for key in got}, text
    assert len(got) == len(longest) or len(got) >= MOST_OVERLAPS, text
    assert found.n_words == len(words(text.encode())[0])


def plain_values(found: Found) -> tuple[object, ...]:
    """What can be compared with `==`."""
    return found._replace(entries=found.entries.tolist())  # type: ignore[arg-type]


def sentences(vocabulary: list[str], longest: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(vocabulary), max_size=longest).map(" ".join)


@st.composite
def benchmarks(draw: st.DrawFn) -> list[Instance]:
    size = draw(st.integers(3, len(VOCABULARY)))
    text = sentences(VOCABULARY[:size], 14)
    instances: list[Instance] = []
    for number in range(draw(st.integers(1, 6))):
        references = tuple(draw(st.lists(text, max_size=2)))
        correct = tuple(draw(st.booleans()) for _ in references)
        passage, question = draw(text), draw(text)
        scenario = f"s{draw(st.integers(0, 3))}"
        whole = f"{passage} {question}" if passage else question
        start = len(passage) + 1 if passage else 0
        instances.append(
            Instance(scenario, "", "test", str(number), whole, references, correct, start)
        )
    return instances


@settings(max_examples=300)
@given(data=st.data(), n=st.integers(3, 8), alone=st.integers(3, 8))
def test_found_is_what_the_plain_rules_find(data: st.DataObject, n: int, alone: int) -> None:
    instances = data.draw(benchmarks())
    frequent = data.draw(st.lists(sentences(VOCABULARY, 10), max_size=2))
    plain = PlainIndex(instances, n=n, alone_words=alone, frequent=frequent)
    if not any(any(entry.readings) for entry in plain.entries):
        return
    texts = data.draw(st.lists(sentences(VOCABULARY, 60), min_size=1, max_size=6))
    texts += [i.input for i in instances] + [f"{i.input} x {i.input}" for i in instances[:1]]
    found = searcher(instances, n=n, alone_words=alone, frequent=frequent).search(
        [text.encode() for text in texts]
    )
    for one, text in zip(found, texts, strict=True):
        compare(one, plain.find(text.encode()), instances, text)


@settings(max_examples=100)
@given(data=st.data())
def test_found_does_not_depend_on_the_batch(data: st.DataObject) -> None:
    search = searcher([instance("a b c d-e 1 2", "it's 中 d"), instance("b b b a c", id="2")], n=4)
    texts = [t.encode() for t in data.draw(st.lists(sentences(VOCABULARY, 40), max_size=8))]
    alone = [plain_values(search.search([text])[0]) for text in texts]
    assert [plain_values(found) for found in search.search(texts)] == alone


@pytest.mark.parametrize("n", [3, 5, 10, 13, 40])
@pytest.mark.parametrize("item", ["{}", "{}-{}", "it's {}", "\\n{}"])
def test_found_at_every_place_around_chunk_borders(n: int, item: str) -> None:
    names = (a + b for a in "abcdefghij" for b in "pqrstuvwxyz")
    text = " ".join(
        item.replace("{}", next(names), 1).replace("{}", "z" + next(names)) for _ in range(n)
    )
    search = searcher([instance(text)], n=n)
    size = len(words(text.encode())[0])
    for filler, step in (("w ", 1), ("w-w ", 2)):
        for before in range(CHUNK_WORDS - size - 2 * MOST_PIECES, CHUNK_WORDS + 4, 3):
            start = len(filler) * (before // step)
            document = f"{filler * (before // step)}{text} w w w"
            (found,) = search.search([document.encode()])
            ((first, last),) = found.spans
            assert start <= first <= start + 2, (filler, before)
            assert last == start + len(text), (filler, before)


def test_long_documents_and_many_borders_give_what_the_plain_rules_give() -> None:
    rng = random.Random(5)
    vocabulary = [*VOCABULARY, *(f"w{i}" for i in range(30)), "a-" * 70 + "b", "\\nabout", "<br>"]
    instances = [
        instance(" ".join(rng.choices([*VOCABULARY, "w1", "w2"], k=12)), id=str(i))
        for i in range(40)
    ]
    plain = PlainIndex(instances, n=5)
    texts = ["", *(" ".join(rng.choices(vocabulary, k=k)) for k in (9000, 3, 5000, 1, 20_000)), ""]
    for i in range(1, 6):
        for planted in rng.sample(instances, min(i, 3)):
            at = rng.randrange(len(texts[i]) + 1)
            texts[i] = f"{texts[i][:at]} {planted.input} {texts[i][at:]}"
    found = searcher(instances, n=5).search([text.encode() for text in texts])
    assert sum(len(one.spans) for one in found) > 12
    for one, text in zip(found, texts, strict=True):
        compare(one, plain.find(text.encode()), instances, text)


def test_n_grams_do_not_reach_from_one_text_into_the_next() -> None:
    search = searcher([instance("one two three four five six seven")], n=5)
    texts = [b"one two three", b"four five six seven", b"", b"one two three four five"]
    assert [len(found.spans) for found in search.search(texts)] == [0, 0, 0, 1]


def test_hits_in_many_texts_go_to_their_texts() -> None:
    instances = [instance(f"q{i} a b c d e", id=str(i)) for i in range(300)]
    texts = [f"é x {i.input} y".encode() * (1 + k % 3) for k, i in enumerate(instances)]
    found = searcher(instances, n=6).search(texts)
    for k, one in enumerate(found):
        assert {o.instance for o in one.overlaps} == {str(k)}
        assert len(one.spans) == 1 + k % 3
        for start, end in one.spans:
            assert texts[k][start:end].decode() == instances[k].input


def test_a_passage_that_a_document_repeats_is_reported_in_full() -> None:
    """Its n-grams then stand in the document twice, and must still be strung together."""
    text = " ".join(f"q{i}" for i in range(30))
    (found,) = searcher([instance(text)], n=10).search([f"{text} and {text}".encode()])
    (overlap,) = found.overlaps
    assert overlap.n_words == 30
    assert len(found.spans) == 2


def one_overlap(search: Searcher, text: str) -> Overlap:
    (overlap,) = search.search([text.encode()])[0].overlaps
    return overlap


def test_an_overlap_names_the_place_in_both_texts() -> None:
    benchmark = "Pâté? “Qui – a, dit: un deux trois” quatre cinq six"
    document = "é é é QUI a-DIT un   deux\ntrois quatre été"
    overlap = one_overlap(searcher([instance(benchmark)], n=5), document)
    assert (
        document.encode()[overlap.start : overlap.end].decode()
        == "QUI a-DIT un   deux\ntrois quatre"
    )
    passage = benchmark.encode()[overlap.benchmark_start : overlap.benchmark_end]
    assert passage.decode() == "Qui – a, dit: un deux trois” quatre"
    assert (overlap.rule, overlap.n_words, overlap.part, overlap.in_question) == (
        "ngram",
        7,
        "input",
        True,
    )


def test_a_match_in_the_passage_alone_is_not_in_the_question() -> None:
    passage, question = "one two three four five six", "who was seven of eight nine"
    search = searcher([instance(f"{passage} {question}", question=len(passage) + 1)], n=5)
    assert not one_overlap(search, f"x {passage} x").in_question
    assert one_overlap(search, f"x {question} x").in_question
    assert one_overlap(search, f"x {passage} {question} x").in_question


def test_short_texts_are_found_whole_from_alone_words_on() -> None:
    search = searcher([instance("one two three four five six")], n=10, alone_words=6)
    found = search.search([b"x One, two-three four FIVE six y", b"one two three four five", b"six"])
    assert [[o.rule for o in one.overlaps] for one in found] == [["whole"], [], []]
    assert found[0].spans == [(2, 30)]


@pytest.mark.parametrize("distance", [0, 63, 64, 65])
@pytest.mark.parametrize("side", ["before", "behind"])
def test_shorter_texts_count_only_beside_a_right_answer(distance: int, side: str) -> None:
    question = "capital of France"
    wrong = Instance("s", "", "test", "1", question, ("Paris", "Rome"), (True, False))
    search = searcher([wrong], n=10, alone_words=6)
    gap = " w" * distance
    for answer in ("Paris", "PARIS!", "Rome"):
        text = f"{question}{gap} {answer} w" if side == "behind" else f"w {answer}{gap} {question}"
        is_found = distance < 64 and answer != "Rome"
        assert bool(search.search([text.encode()])[0].spans) == is_found, (text, answer)


def test_short_questions_behind_passages_are_found_without_them() -> None:
    text = "a long passage that nobody has and more of it. Who was she of old times?"
    item = instance(text, "Eve", question=text.index("Who"))
    search = searcher([item], n=10, alone_words=6)
    assert one_overlap(search, "x who was she of old times y").rule == "whole"
    assert one_overlap(search, "x who was she of old times y").in_question


def test_texts_of_fewer_than_three_words_are_not_looked_for() -> None:
    search = searcher(
        [instance("one two", "one two"), instance("long " * 20 + "enough", id="2")], n=10
    )
    assert search.search([b"one two one two"])[0].overlaps == []
    assert search.index.header["found_by"]["s"]["input_too_short"] == 1


FLAGGED = {
    "no_words": (["0 0 0 0 0"], ()),
    "many_scenarios": (["answer the question in one word"] * 3, ()),
    "frequent": (
        ["to the fullest extent permitted by law"],
        ("To the fullest extent permitted BY law",),
    ),
}


@pytest.mark.parametrize("rule", FLAGGED)
def test_boilerplate_is_reported_apart_and_never_lost(rule: str) -> None:
    texts, frequent = FLAGGED[rule]
    instances = [instance(text, scenario=f"s{i}", id=str(i)) for i, text in enumerate(texts)]
    (found,) = searcher(instances, n=5, frequent=frequent).search([f"x {texts[0]} y".encode()])
    assert found.spans == []
    assert found.boilerplate == [(2, 2 + len(texts[0]))]
    assert {(o.instance, o.rule) for o in found.overlaps} == {(i.id, rule) for i in instances}


def test_of_texts_with_the_same_sentence_the_longest_are_listed_and_all_are_counted() -> None:
    same = "a sentence that all of these texts begin with alas"
    instances = [instance(f"{same} q{i} r{i} s{i}", id=str(i)) for i in range(3 * MOST_OVERLAPS)]
    text = f"x {instances[-1].input} y {same} q5 y"
    (found,) = searcher(instances, n=10).search([text.encode()])
    assert len(found.entries) == len(instances)
    assert [(o.instance, o.n_words) for o in found.overlaps[:3]] == [
        ("47", 13),
        ("5", 11),
        ("0", 10),
    ]
    assert len(found.overlaps) == MOST_OVERLAPS


def test_a_passage_with_boilerplate_in_it_is_reported_under_both() -> None:
    text = "1 2 3 4 5 6 7 8 alpha beta gamma delta"
    (found,) = searcher([instance(text)], n=5).search([f"x {text} y".encode()])
    assert sorted((o.rule, o.n_words) for o in found.overlaps) == [("ngram", 6), ("no_words", 10)]
    assert found.spans[0][1] == 2 + len(text)
    assert found.boilerplate[0][0] == 2


def test_two_scenarios_are_not_many() -> None:
    instances = [instance("answer the question in one word", scenario=s) for s in ("a", "b")]
    (found,) = searcher(instances, n=5).search([b"answer the question in one word"])
    assert {o.rule for o in found.overlaps} == {"ngram"}


def test_nothing_to_search_is_nothing_found() -> None:
    search = searcher([instance("one two three four five")], n=5)
    assert search.search([]) == []
    for found in search.search([b"", b" "]):
        assert plain_values(found) == ([], [], [], [], 0)


@pytest.mark.parametrize("n", [-1, 0, 2])
def test_n_below_three_is_refused(n: int) -> None:
    with pytest.raises(DecontamError, match=f"n is {n}"):
        searcher([instance("one two three")], n=n)


def test_a_benchmark_without_text_is_refused() -> None:
    with pytest.raises(DecontamError, match="no text"):
        searcher([])


BENCHMARK = [
    instance("who was the first one to see all of the moons of Jupiter", "Galileo", id="a"),
    instance("capital of France", "Paris", id="b"),
    instance("7 7 7 7 7 7 7 7 7 7 7", id="c"),
    instance("who was the first one to see all of the rings of Saturn", id="d", scenario="t"),
]
DOCUMENT = (
    b"Who was the first one to see all of the moons? 7 7 7 7 7 7 7 7 7 7 capital of France: Paris"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "index"
    coverage = [{"scenario": "s", "where": "a test"}]
    build_index(BENCHMARK, n=8, normalizer=DEFAULT, coverage=coverage).save(str(path))
    return path


def test_a_loaded_index_finds_the_same(saved: Path, tmp_path: Path) -> None:
    built = build_index(BENCHMARK, n=8, coverage=[{"scenario": "s", "where": "a test"}])
    loaded = Index.load(str(saved))
    (found,), (expected,) = (Searcher(index).search([DOCUMENT]) for index in (loaded, built))
    assert plain_values(found) == plain_values(expected)
    assert {o.rule for o in found.overlaps} == {"ngram", "whole", "no_words"}
    assert loaded.header.items() >= built.header.items()
    assert [loaded.entries[i] for i in range(6)] == [built.entries[i] for i in range(6)]
    loaded.save(str(tmp_path / "again"))
    assert Index.load(str(tmp_path / "again")).header == loaded.header


def test_the_header_says_what_the_index_is(saved: Path) -> None:
    header = Index.load(str(saved)).header
    assert (header["n"], header["normalization"], header["entries"]) == (8, "default", 6)
    assert header["normalization_digest"] == DEFAULT.digest
    assert header["ngrams"] == len(
        {g for e in PlainIndex(BENCHMARK, n=8).entries for r in e.readings for g in _ngrams(r)}
    )
    row = {"input_by_ngrams": 2, "input_with_answer": 1, "reference_too_short": 2}
    assert header["found_by"] == {"s": row, "t": {"input_by_ngrams": 1}}
    assert header["coverage"] == [{"scenario": "s", "where": "a test"} | row]


def _ngrams(reading: Sequence[object]) -> list[tuple[object, ...]]:
    texts = [word.text for word in reading]  # type: ignore[attr-defined]
    return [tuple(texts[i : i + 8]) for i in range(len(texts) - 7)]


def test_the_digest_changes_with_whatever_changes_what_is_found() -> None:
    def digest(instances: Sequence[Instance] = BENCHMARK, **options: object) -> str:
        return searcher(instances, **options).index.header["digest"]

    others = [
        digest(),
        digest(n=9),
        digest(alone_words=3),
        digest(parts="input"),
        digest(BENCHMARK[:3]),
        digest(frequent=["who was the first one to see all of the moons of Jupiter"]),
        build_index(BENCHMARK, normalizer=Normalizer.of("helm")).header["digest"],
    ]
    assert len(set(others)) == len(others)
    assert digest() == others[0]


def damaged(content: bytes, how: str) -> bytes:
    if how == "empty":
        return b""
    if how == "other magic":
        return b"benchmark index 0\n" + content[len(MAGIC) :]
    kind, place = how.split()
    at = int(len(content) * float(place))
    if kind == "truncated":
        return content[:at]
    if kind == "longer":
        return content + bytes(at)
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES = ["empty", "other magic", "longer 0.1"]
DAMAGES += [f"truncated {x}" for x in (0.00001, 0.0001, 0.0003, 0.001, 0.1, 0.5, 0.99, 0.999999)]
DAMAGES += [f"flipped {x}" for x in (0, 0.00002, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999, 0.999999)]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_index_is_refused(saved: Path, tmp_path: Path, how: str) -> None:
    path = tmp_path / "index"
    path.write_bytes(damaged(saved.read_bytes(), how))
    with pytest.raises(DecontamError, match=r"index.*build_index"):
        Index.load(str(path))


def test_every_byte_of_the_header_matters(saved: Path, tmp_path: Path) -> None:
    """A changed `n` would search for other things than the index holds."""
    content, path = saved.read_bytes(), tmp_path / "index"
    start = len(MAGIC) + 8
    size = int.from_bytes(content[len(MAGIC) : start], "little")
    for at in range(len(content[: start + size].rstrip())):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(DecontamError):
            Index.load(str(path))
            pytest.fail(f"byte {at}")


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    with pytest.raises(DecontamError, match=str(path)):
        Index.load(str(path))


def test_an_index_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    index = build_index(BENCHMARK)
    with pytest.raises(DecontamError, match="cannot write"):
        index.save(str(tmp_path / "no folder" / "index"))


def test_an_instance_without_input_is_looked_for_by_its_references_alone() -> None:
    item = Instance("s", "", "test", "1", "", ("one two three four five",), (True,))
    index = build_index([item], n=4)
    assert index.entries.columns(["part"])["part"].to_pylist() == ["reference"]
    assert dict(index.header["found_by"]) == {"s": {"reference_by_ngrams": 1}}
