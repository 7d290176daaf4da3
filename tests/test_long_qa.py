"""Templates of long question answering and of summaries: exact texts, and what may be cut."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rendering import BadRecordError, Rendered
from pipelines.templates import long_qa, summary
from pipelines.templates.long_qa import LongQA
from pipelines.templates.summary import Summary

RECORD = {
    "document": "It rained.\nAda left at nine.\n",
    "question": "When did Ada leave?",
    "answer": "At nine.",
    "kind": "normal",
}
AMPLE = 10_000


def qa(record, *, max_characters=AMPLE, **options) -> Rendered:
    return long_qa.render(record, options=LongQA(**options), max_characters=max_characters)


def answers(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.answers]


def shrinkable(rendered: Rendered) -> str:
    start, end = rendered.shrink or (0, 0)
    return rendered.text[start:end]


def test_the_normal_template_is_the_published_one():
    rendered = qa(RECORD)
    assert rendered.text == (
        "[INST] You are given a long text (delimited by triple quotes) and a question. Read the "
        'text and answer the question in the end.\n"""\nIt rained.\nAda left at nine.\n\n"""\n'
        "Question: When did Ada leave?\n[/INST]\nAt nine."
    )
    assert answers(rendered) == ["At nine."]
    assert shrinkable(rendered) == RECORD["document"]
    assert (rendered.controls, rendered.framed) == ((), False)


def test_the_short_template_asks_for_a_phrase():
    rendered = qa(RECORD | {"kind": "short", "answer": "nine"})
    assert rendered.text == (
        "[INST] You are given a long text (delimited by triple quotes) and a question. Read the "
        "text and answer the question in the end as concisely as you can, using a single phrase "
        "or sentence if possible. Do not provide any explanation."
        '\n"""\nIt rained.\nAda left at nine.\n\n"""\n'
        "Question: When did Ada leave?\n[/INST]\nnine"
    )
    assert qa(RECORD | {"answer": "nine"}, style="short") == rendered
    assert qa(RECORD | {"kind": "other"}, style="normal") == qa(RECORD)


@pytest.mark.parametrize(
    ("record", "options", "document", "question", "answer"),
    [
        (
            {"context": "D", "qas": [{"q": "Q0"}, {"q": "Q", "answers": [{"text": " A "}]}]},
            {"document": "context", "question": "qas.1.q", "answer": "qas.1.answers"},
            "D", "Q", "A",
        ),
        (
            {"document": "D", "question": "Q", "answers": {"text": ["A", "B"], "answer_start": []}},
            {"answer": "answers"},
            "D", "Q", "A",
        ),
        (
            {"meeting": [{"speaker": "X", "content": "Hi."}, {"speaker": "Y", "content": "Bye."}],
             "queries": [{"query": "Q", "answer": "A"}]},
            {"document": "meeting", "question": "queries.0.query", "answer": "queries.0.answer"},
            "X: Hi.\nY: Bye.", "Q", "A",
        ),
        (
            {"document": ["one", "two"], "question": ["", "Q"], "spans": [[{"string": "A"}]]},
            {"answer": "spans"},
            "one\ntwo", "Q", "A",
        ),
    ],
)  # fmt: skip
def test_other_records_are_read_by_the_names_of_their_fields(
    record, options, document, question, answer
):
    expected = {"document": document, "question": question, "answer": answer}
    assert qa(record, style="normal", **options) == qa(expected, style="normal")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"document": None}, "missing_document"),
        ({"document": " \n"}, "missing_document"),
        ({"document": 5}, "missing_document"),
        ({"document": []}, "missing_document"),
        ({"document": [1, None]}, "missing_document"),
        ({"question": ""}, "missing_question"),
        ({"question": {"other": "Q"}}, "missing_question"),
        ({"answer": "\n"}, "no_answer"),
        ({"answer": []}, "no_answer"),
        ({"answer": [[], {"text": []}]}, "no_answer"),
        ({"answer": 1804}, "no_answer"),
        ({"kind": "long"}, "unknown_kind"),
        ({"kind": None}, "unknown_kind"),
        ({"kind": ["short"]}, "unknown_kind"),
        ({"chunk": {}}, "bad_chunk"),
        ({"chunk": "0-5"}, "bad_chunk"),
        ({"chunk": {"start": 5, "end": 5}}, "bad_chunk"),
        ({"chunk": {"start": -1, "end": 5}}, "bad_chunk"),
        ({"chunk": {"start": 0, "end": 99}}, "bad_chunk"),
        ({"chunk": {"start": "0", "end": 5}}, "bad_chunk"),
    ],
)
def test_a_record_without_what_it_takes_is_dropped_with_the_reason(change, reason):
    with pytest.raises(BadRecordError) as error:
        qa(RECORD | change)
    assert error.value.reason == reason


@pytest.mark.parametrize("record", [None, [], "text", 5, {}])
def test_no_record_is_none(record):
    for render in (qa, lambda r: summary.render(r, options=Summary())):
        with pytest.raises(BadRecordError, match=r"missing_"):
            render(record)


def test_what_may_be_cut_stands_behind_the_chunk():
    chunk = {"start": 11, "end": 28}
    assert shrinkable(qa(RECORD | {"chunk": chunk})) == "\n"
    assert shrinkable(qa(RECORD | {"chunk": chunk}, keep_chunk=False)) == RECORD["document"]
    to_the_end = qa(RECORD | {"chunk": {"start": 11, "end": 29}})
    assert to_the_end.shrink is None
    assert to_the_end.text == qa(RECORD).text


def test_an_answer_start_is_a_chunk_where_the_answer_stands_there():
    record = RECORD | {"answer": "Ada", "chunk": 11}
    assert shrinkable(qa(record)) == " left at nine.\n"
    for wrong in (0, 12, -18, 99, True):
        assert shrinkable(qa(record | {"chunk": wrong})) == RECORD["document"]


def test_of_a_list_of_answer_starts_the_first_at_which_the_answer_stands_is_taken():
    names = {"answer": "answers", "chunk": "answers.answer_start"}
    for starts in ([11], [0, 11], [11, 0]):
        record = RECORD | {"answers": {"text": ["Ada", "Bob"], "answer_start": starts}}
        assert shrinkable(qa(record, **names)) == " left at nine.\n"
    for starts in ([], [-1], [0]):
        record = RECORD | {"answers": {"text": ["Ada"], "answer_start": starts}}
        assert shrinkable(qa(record, **names)) == RECORD["document"]


@pytest.mark.parametrize("name", ["choices", "options", "candidates"])
def test_a_question_that_asks_to_choose_is_dropped_where_the_choices_would_be_lost(name):
    inside = {"qas": [{"question": "Who?", name: ["Ada", "Bob"]}]}
    for record, question in ((RECORD | {name: {"text": ["Ada"]}}, "question"),
                             (RECORD | inside, "qas.0.question")):  # fmt: skip
        with pytest.raises(BadRecordError) as bad:
            qa(record, question=question)
        assert bad.value.args == ("unread_field", f"field '{name}' belongs to the question")
    assert qa(RECORD | {name: []}) == qa(RECORD)


@st.composite
def long_records(draw):
    words = draw(st.lists(st.sampled_from(["a", "bcd", "efghij", "k\n"]), min_size=1, max_size=120))
    document = " ".join(words)
    start = draw(st.integers(0, len(document) - 1))
    end = draw(st.integers(start + 1, len(document)))
    return RECORD | {"document": document, "chunk": {"start": start, "end": end}}


@given(long_records(), st.integers(100, 700))
def test_the_chunk_is_always_kept_and_within_reach(record, max_characters):
    rendered = qa(record, max_characters=max_characters)
    start, end = record["chunk"]["start"], record["chunk"]["end"]
    chunk, document = record["document"][start:end], record["document"]
    held = rendered.text.split('"""\n', 1)[1].rsplit('\n"""', 1)[0]
    assert document.endswith(held)
    assert answers(rendered) == [record["answer"]]
    assert len(document) - len(held) <= start, "nothing of the chunk is left out"
    assert shrinkable(rendered) == document[end:]
    shortest = rendered.text.replace(
        '"""\n' + held, '"""\n' + held[: len(held) - len(document[end:])]
    )
    room = max_characters - len(rendered.text) + len(held)
    if len(chunk) <= room - 200:  # the room is reckoned with the longer template
        assert len(shortest) <= max_characters
    if len(document) <= room - 200:
        assert held == document


def test_chunks_are_found_at_every_depth_of_what_is_kept():
    document = "".join(f"{n:09d} " for n in range(1000))
    depths = []
    for start in range(0, 10_000, 1000):
        record = RECORD | {"document": document, "chunk": {"start": start, "end": start + 100}}
        text = qa(record, max_characters=2000).text
        depths.append(text.index(document[start : start + 100]) - text.index('"""\n') - 4)
    steps = [b - a for a, b in pairwise(depths)]
    assert depths[0] == 0
    assert max(steps) - min(steps) <= 10
    assert depths[-1] + 100 < len(text) - 4 - text.index('"""\n')


def test_the_summary_template_is_the_published_one():
    record = {"chapter": "\nI.\n\nIt rained. ", "summary_text": " Rain.\n", "book_id": "B"}
    rendered = summary.render(record, options=Summary())
    assert rendered.text == (
        "I.\n\nIt rained.\n\nQ: Can you write an appropriate summary of the above paragraphs?\n"
        "A: Rain."
    )
    assert answers(rendered) == [" Rain."]
    assert shrinkable(rendered) == "I.\n\nIt rained."


def test_consumers_of_the_published_summaries_read_ours():
    record = {"text": "Q & A.", "summary": [{"source": "s", "text": "Short."}]}
    rendered = summary.render(record, options=Summary(text="text", summary="summary"))
    ((start, _),) = rendered.answers
    prompt, completion = rendered.text[:start], rendered.text[start:]
    chapter, asked = prompt.split("\n\nQ: ")
    assert (chapter, asked.split("A:")[0].strip()) == (
        "Q & A.",
        "Can you write an appropriate summary of the above paragraphs?",
    )
    assert completion.strip() == "Short."


def test_bad_summaries_are_dropped_with_the_reason():
    for record, reason in (
        ({"summary_text": "s"}, "missing_document"),
        ({"chapter": "c", "summary_text": None}, "no_answer"),
        ({"chapter": "c", "summary_text": ["", {}]}, "no_answer"),
    ):
        with pytest.raises(BadRecordError) as error:
            summary.render(record, options=Summary())
        assert error.value.reason == reason


def test_real_questions_of_several_data_sets_become_documents(shared_data):
    folder = shared_data / "longqa"

    def lines(name):
        return [
            json.loads(x) for x in gzip.decompress((folder / name).read_bytes()).split(b"\n") if x
        ]

    qed = {"document": "paragraph_text", "question": "question_text",
           "answer": "original_nq_answers"}  # fmt: skip
    assert len([qa(r, style="short", **qed) for r in lines("qed-dev.jsonl.gz")]) == 1355
    query = "specific_query_list.0"
    qmsum = {"document": "meeting_transcripts", "question": f"{query}.query",
             "answer": f"{query}.answer"}  # fmt: skip
    meetings = [qa(r, style="normal", **qmsum) for r in lines("qmsum_val.jsonl.gz")]
    assert len(meetings) == 35
    assert all(len(shrinkable(m)) > 5_000 for m in meetings)


def test_real_answers_stay_with_their_papers(shared_data):
    content = (shared_data / "longqa" / "covidqa_200423_squad.json.gz").read_bytes()
    papers = [
        p for entry in json.loads(gzip.decompress(content))["data"] for p in entry["paragraphs"]
    ]
    names = {"document": "context", "answer": "answers", "chunk": "answers.0.answer_start"}
    options, kept = LongQA(style="normal", **names), 0
    for paper in papers:
        for item in paper["qas"]:
            record = item | {"context": paper["context"]}
            rendered = long_qa.render(record, options=options, max_characters=8_000)
            (start, _) = rendered.shrink or (len(rendered.text), 0)
            kept += answers(rendered)[0] in rendered.text[: min(start, 8_000)]
    assert kept == 1342, "of 1,380; the others' offsets are not where their answers stand"
