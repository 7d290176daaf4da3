"""Questions over many passages: exact texts, one gold passage, distractors that answer nothing."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.rendering import BadRecordError, Rendered, keyed_random
from pipelines.templates.multi_document import MultiDocument, render
from pipelines.templates.passages import Passage, holds, words


class ByFirstLetter:
    """A retriever of a few passages: those whose title begins as the question does, in order."""

    def __init__(self, *passages: tuple[str, str]) -> None:
        self._passages = [Passage(*p) for p in passages]

    def __len__(self) -> int:
        return len(self._passages)

    def passage(self, number: int) -> Passage:
        return self._passages[number]

    def ranked(self, question: str):
        letter = question[:1]
        return (i for i, p in enumerate(self._passages) if letter and p.title.startswith(letter))


MANY = ByFirstLetter(*((f"{'wxyz'[i % 4]}{i}", f"passage number {i} of many") for i in range(400)))
RECORD = {
    "question": "who made the rain",
    "answers": ["Thor", "Zeus"],
    "ctxs": [
        {"title": "No", "text": "not this", "isgold": False},
        {"title": "Rain", "text": "Rain was made by zeus,\nof  course.", "isgold": True},
    ],
}


def options_of(**values) -> MultiDocument:
    return MultiDocument.model_validate({"passages": {"path": "-"}} | values)


def rendered_of(record, passages=MANY, *, seed=0, max_characters=1_000_000, **values) -> Rendered:
    rng = keyed_random(seed, "multi_document", str(record))
    return render(
        record, passages, options=options_of(**values), rng=rng, max_characters=max_characters
    )


def parsed(rendered: Rendered) -> tuple[list[tuple[str, str]], str, list[str]]:
    """Passages, question and completion, as consumers of the published file take them apart."""
    instruction, documents, asked = rendered.text.split("\n\n")
    assert instruction == (
        "Write a high-quality answer for the given question using only the provided search "
        "results (some of which might be irrelevant)."
    )
    passages = []
    for number, line in enumerate(documents.split("\n"), 1):
        match = re.fullmatch(r"Document \[(\d+)\]\(Title: (.*?)\) (.+)", line)
        assert match, line
        assert int(match[1]) == number
        passages.append((match[2], match[3]))
    question, *completion = asked.split("\n")
    assert question.startswith("Question: ")
    starts = ("Answer: ", "Long Answer: ", "Gold Document ID: ")
    assert [c.startswith(s) for c, s in zip(completion, starts, strict=True)] == [True] * 3
    ((start, end),) = rendered.answers
    assert rendered.text[start:end] == "\n".join(completion)
    assert end == len(rendered.text)
    return passages, question.removeprefix("Question: "), [
        c.removeprefix(s) for c, s in zip(completion, starts, strict=True)
    ]  # fmt: skip


def test_the_template_is_the_published_one():
    two = ByFirstLetter(("w1", "One."), ("w2", "Thor made it."))
    rendered = rendered_of(RECORD, two, documents=[2, 2])
    gold, other = "Rain) Rain was made by zeus, of course.", "w1) One."
    first, second = (gold, other) if rendered.text[-1] == "1" else (other, gold)
    assert rendered.text == (
        "Write a high-quality answer for the given question using only the provided search results "
        "(some of which might be irrelevant).\n\n"
        f"Document [1](Title: {first}\nDocument [2](Title: {second}\n\n"
        "Question: who made the rain\n"
        "Answer: Zeus\nLong Answer: Rain was made by zeus, of course.\nGold Document ID: "
    ) + ("1" if first == gold else "2")
    assert rendered.text[rendered.answers[0][0] :].startswith("Answer: Zeus")
    assert (rendered.controls, rendered.framed, rendered.shrink) == ((), False, None)


@settings(max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["bm25", "random"]),
    st.sampled_from(["retrieved", "shuffled"]),
    st.integers(2, 30),
    st.integers(0, 40),
)
def test_the_gold_passage_stands_once_at_its_number(seed, retriever, order, least, more):
    values = {"retriever": retriever, "order": order, "documents": [least, least + more]}
    rendered = rendered_of(RECORD, seed=seed, **values)
    passages, question, (short, long, number) = parsed(rendered)
    assert least <= len(passages) <= least + more
    assert len({*passages}) == len(passages)
    gold = ("Rain", "Rain was made by zeus, of course.")
    assert [i for i, p in enumerate(passages, 1) if p == gold] == [int(number)]
    assert (question, short, long) == (RECORD["question"], "Zeus", gold[1])
    assert rendered_of(RECORD, seed=seed, **values) == rendered


def test_the_number_of_passages_and_the_place_of_the_gold_one_cover_their_range():
    counts, places = Counter(), Counter()
    for seed in range(2000):
        passages, _, (*_, number) = parsed(rendered_of(RECORD, seed=seed))
        counts[len(passages)] += 1
        places[(int(number) - 1) * 10 // len(passages)] += 1
    assert {*counts} <= {*range(10, 201)}
    assert len(counts) > 185, "nearly each of 191 numbers"
    assert abs(sum(n * k for n, k in counts.items()) / 2000 - 105) < 5
    assert all(150 < places[tenth] < 260 for tenth in range(10))


def test_distractors_are_the_best_ranked_ones_in_their_order():
    record = RECORD | {"question": "yes?"}
    ranked = [MANY.passage(i) for i in islice(MANY.ranked("y"), 30)]
    passages, *_, (_, _, number) = parsed(rendered_of(record, documents=[31, 31]))
    del passages[int(number) - 1]
    assert passages == ranked
    shuffled, *_, (_, _, number) = parsed(rendered_of(record, documents=[31, 31], order="shuffled"))
    del shuffled[int(number) - 1]
    assert shuffled != ranked
    assert sorted(shuffled) == sorted(ranked)


def test_where_too_few_are_like_the_question_any_others_follow():
    passages, *_, (_, _, number) = parsed(rendered_of(RECORD, documents=[200, 200]))
    del passages[int(number) - 1]
    titles = [title[0] for title, _ in passages]
    assert titles[:100] == ["w"] * 100
    assert {*titles[100:]} == {"x", "y", "z"}
    unlike = rendered_of(RECORD, documents=[200, 200], retriever="random")
    assert {title[0] for title, _ in parsed(unlike)[0]} == {"w", "x", "y", "z", "R"}


@pytest.mark.parametrize(
    "text",
    ["By Zeus!", "ZÉUS", "of Thor's", "Thór", "Rain was made by zeus, of course."],
)
def test_no_distractor_holds_an_answer(text):
    others = [(f"w{i}", f"other {i}") for i in range(3)]
    retriever = ByFirstLetter(("w", text), ("w Thor", "t"), ("w Zeus", "t"), *others)
    passages, *_ = parsed(rendered_of(RECORD, retriever, documents=[2, 10]))
    assert {*passages} <= {*others, ("Rain", "Rain was made by zeus, of course.")}
    near = ("w", "Zeusian thorn")
    assert near in parsed(rendered_of(RECORD, ByFirstLetter(near), documents=[2, 2]))[0]


def test_answers_without_words_are_looked_for_as_they_stand():
    record = RECORD | {"answers": ["×"], "ctxs": [{"title": "T", "text": "a × b"}]}
    retriever = ByFirstLetter(("w", "c × d"), ("w", "c d"))
    passages, *_ = parsed(rendered_of(record, retriever, documents=[2, 2]))
    assert ("w", "c d") in passages


@given(st.integers(900, 8000), st.integers(0, 50))
def test_passages_are_left_out_until_the_rest_fits_and_none_is_cut(max_characters, seed):
    rendered = rendered_of(RECORD, seed=seed, max_characters=max_characters)
    passages, *_ = parsed(rendered)
    whole, *_ = parsed(rendered_of(RECORD, seed=seed))
    assert len(rendered.text) <= max_characters
    assert {text for _, text in passages} <= {text for _, text in whole}
    if len(passages) < len(whole):
        assert max_characters - len(rendered.text) < 58, "no room for another one"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "missing_question"),
        ({"question": "  "}, "missing_question"),
        ({"answers": []}, "no_answer"),
        ({"answers": [""]}, "no_answer"),
        ({"answers": None}, "no_answer"),
        ({"answers": 7}, "no_answer"),
        ({"ctxs": []}, "missing_gold"),
        ({"ctxs": None}, "missing_gold"),
        ({"ctxs": [None, "text"]}, "missing_gold"),
        ({"ctxs": [{"title": "T"}]}, "missing_gold"),
        ({"ctxs": [{"title": "T", "text": 5}]}, "missing_gold"),
        ({"ctxs": [{"title": "T", "text": "Zeus", "isgold": False}]}, "missing_gold"),
        ({"answers": ["Odin"]}, "answer_not_in_gold"),
        ({"answers": ["e"]}, "answer_not_in_gold"),
    ],
)
def test_a_record_without_what_it_takes_is_dropped_with_the_reason(change, reason):
    with pytest.raises(BadRecordError) as error:
        rendered_of(RECORD | change)
    assert error.value.reason == reason


@pytest.mark.parametrize("record", [None, [], "text", 5, {}])
def test_no_record_is_none(record):
    with pytest.raises(BadRecordError, match="missing_question"):
        rendered_of(record)


@pytest.mark.parametrize("retriever", ["bm25", "random"])
def test_too_few_passages_or_too_little_room_drop_the_record(retriever):
    few = ByFirstLetter(*((f"w{i}", f"Zeus {i}" if i % 2 else f"{i}") for i in range(17)))
    assert len(parsed(rendered_of(RECORD, few, retriever=retriever))[0]) == 10
    with pytest.raises(BadRecordError) as error:
        rendered_of(RECORD, few, retriever=retriever, documents=[11, 200])
    assert error.value.args == ("too_few_passages", "9 distractors, at least 10 are needed")
    with pytest.raises(BadRecordError) as error:
        rendered_of(RECORD, max_characters=500, retriever=retriever)
    assert error.value.reason == "over_budget"


@pytest.mark.parametrize(
    ("gold", "names"),
    [
        ({"ctxs": [{"title": "Rain", "text": "by Zeus"}, {"title": "w", "text": "x"}]}, {}),
        ({"gold": {"title": "Rain", "text": "by Zeus"}}, {"gold": "gold"}),
        ({"p": {"body": "by Zeus", "head": "Rain"}},
         {"gold": "p.body", "title": "p.head", "answers": "short.0"}),
    ],
)  # fmt: skip
def test_gold_passages_are_found_by_the_names_of_their_fields(gold, names):
    record = {"question": "Q", "answers": "Zeus", "short": [{"text": ["Zeus"]}]} | gold
    passages, _, (_, long, number) = parsed(rendered_of(record, documents=[5, 5], **names))
    assert passages[int(number) - 1] == ("Rain", "by Zeus")
    assert long == "by Zeus"
    record |= {"long": "As is known,\nby Zeus."}
    rendered = rendered_of(record, documents=[5, 5], long_answer="long", **names)
    assert parsed(rendered)[2][1] == "As is known, by Zeus."


def test_a_label_of_ones_own_stands_before_each_passage():
    label = "Document [{number}] {text}"
    text = rendered_of(RECORD, documents=[5, 5], label=label).text
    numbers = [t for t, before in zip(text.split()[1:], text.split(), strict=False)
               if before == "Document" and t != "ID:"]  # fmt: skip
    assert numbers == ["[1]", "[2]", "[3]", "[4]", "[5]"]
    assert "Title" not in text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"documents": [20, 10]}, "least and the greatest"),
        ({"documents": [1, 10]}, "greater than or equal to 2"),
        ({"documents": 10}, "tuple"),
        ({"label": "{number} {}"}, "nothing else"),
        ({"label": "{number.real} {text}"}, "nothing else"),
        ({"label": "{number!r} {text}"}, "nothing else"),
        ({"label": "{number:3} {text}"}, "nothing else"),
        ({"label": "{text}"}, "must hold"),
        ({"label": "{number} {text"}, "label"),
        ({"retriever": "dense"}, "bm25"),
    ],
)
def test_options_that_make_no_sense_are_refused(value, message):
    with pytest.raises(ValidationError, match=message):
        options_of(**value)


def test_real_questions_become_documents(shared_data, tmp_path):
    from pipelines.retrieval import PassageIndex, build_index, list_passages

    path = shared_data / "longqa" / "nq-open-oracle.jsonl.gz"
    options = options_of(passages={"path": str(path), "items": "ctxs"})
    inputs = list_passages(options.passages, data_root=None)
    index = PassageIndex(build_index(options, inputs, str(tmp_path)))
    records = [json.loads(x) for x in gzip.decompress(path.read_bytes()).split(b"\n") if x]
    sizes = []
    for record in records[:200]:
        rng = keyed_random(1, "multi_document", record["question"])
        rendered = render(record, index, options=options, rng=rng, max_characters=90_000)
        passages, question, (short, long, number) = parsed(rendered)
        gold = passages.pop(int(number) - 1)
        source = [" ".join(record["ctxs"][0][name].split()) for name in ("title", "text")]
        assert (question, long) == (record["question"], source[1])
        assert "{}) {}".format(*gold) == "{}) {}".format(*source)
        assert holds(Passage(*gold), [short])
        assert not [p for p in passages if holds(Passage(*p), record["answers"])]
        assert words(short)
        sizes.append(len(passages) + 1)
    assert min(sizes) < 20
    assert max(sizes) > 150
