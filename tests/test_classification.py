"""Examples in the prompt: files in the published formats, what fits, what is right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import FaultsError, UserError
from trainer import evaluate
from trainer.classification import ask, counts, drawn, is_label, is_named
from trainer.questions import COARSE, FINE, Question, trec_questions, web_questions

LABELS = (
    b"DESC:manner How do you fold a paper boat ?\n"
    b"NUM:dist How far is it from the mill\xf0house to the sea ?\n"
    b"ENTY:other What hangs over the caf\xe9 door ?\n"
)
TEXTS = [
    "How do you fold a paper boat ?",
    "How far is it from the mill house to the sea ?",
    "What hangs over the café door ?",
]


def pieces(parts):
    """A tokenizer of words, spaces and line ends; BOS is 0."""
    ids = [[ord(word[0]) for word in re.findall(r"\w+|[^\w]", part)] for part in parts]
    return [[0, *ids[0]], *ids[1:]]


def test_label_files_are_read_as_published(tmp_path):
    path = tmp_path / "some.label"
    path.write_bytes(LABELS)
    fine, coarse = (
        [Question(text, (name,)) for text, name in zip(TEXTS, names, strict=True)]
        for names in (("manner", "distance", "other entity"), ("description", "number", "entity"))
    )
    assert trec_questions(path, "fine") == fine
    assert trec_questions(path, "coarse") == coarse
    path.write_bytes(LABELS.replace(b"\n", b"\r\n").rstrip())
    assert trec_questions(path, "fine") == fine


@pytest.mark.parametrize(
    "records",
    [
        [("fine_label", 26), ("fine_label", 40), ("fine_label", 13)],
        [("fine_label", "DESC:manner"), ("fine_label", "NUM:dist"), ("fine_label", "ENTY:other")],
        [("label-fine", "manner"), ("label-fine", "dist"), ("label-fine", "other")],
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_files_of_the_hub_give_the_same_questions(tmp_path, records, whole):
    (tmp_path / "some.label").write_bytes(LABELS)
    coarse = ("DESC", "NUM", "ENTY")
    rows = [
        {"text": text, name: label, "label-coarse" if "-" in name else "coarse_label": c}
        for text, (name, label), c in zip(TEXTS, records, coarse, strict=True)
    ]
    path = write_jsonl(tmp_path / "some.jsonl", rows)
    if whole:
        path.write_text(json.dumps(rows))
    for labels in ("fine", "coarse"):
        assert trec_questions(path, labels) == trec_questions(tmp_path / "some.label", labels)


def test_coarse_labels_need_no_fine_ones(tmp_path):
    rows = [{"text": "Why ?", "coarse_label": 2}, {"text": "Where ?", "coarse_label": "LOC"}]
    path = write_jsonl(tmp_path / "some.jsonl", rows)
    read = [q.answers[0] for q in trec_questions(path, "coarse")]
    assert read == ["description", "location"]
    with pytest.raises(FaultsError, match=r"2 faults\n  line 1: no `fine_label`"):
        trec_questions(path, "fine")


def test_each_type_has_a_name_of_its_own():
    assert len(FINE) == len(set(FINE.values())) == 50
    assert {label.partition(":")[0] for label in FINE} == set(COARSE)
    assert list(FINE)[24] == "DESC:def", "as the hub numbers them"
    assert list(FINE)[31] == "HUM:desc"
    assert list(FINE)[44:46] == ["NUM:period", "NUM:perc"]


WEB = [
    ("who built the old mill?", r'(list (description "Ada Miller"))', ("Ada Miller",)),
    ("which towns?", '(list (description Ober) (description "Nieder Au"))', ("Ober", "Nieder Au")),
    ("what is said?", r'(list (description "the \"mill\" (old)"))', ('the "mill" (old)',)),
]


def test_web_questions_are_read_as_published_and_from_the_hub(tmp_path):
    published, hub = tmp_path / "a.json", tmp_path / "b.jsonl"
    rows = [{"url": "u", "targetValue": target, "utterance": text} for text, target, _ in WEB]
    published.write_text(json.dumps(rows, indent=1))
    write_jsonl(hub, [{"question": text, "answers": list(names)} for text, _, names in WEB])
    expected = [Question(text, names) for text, _, names in WEB]
    assert web_questions(published) == web_questions(hub) == expected


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("trec", b"DESC:maner How ?\n", "line 1: 'DESC:maner' is no label; did you mean 'DESC:m"),
        ("trec", b"DESC:def What ?\n\nDESC:def Who ?\n", "line 2: '' is no label"),
        ("trec", b"DESC:def What ?\nDESC:def \n", "line 2: no text `text`"),
        ("trec", b'{"text": "Why ?", "label-fine": 3}', "older edition"),
        ("trec", b'{"text": "Why ?", "fine_label": 50}', "50 is no label"),
        ("trec", b'{"text": 5, "fine_label": 3}', "line 1: no text `text`"),
        ("trec", b'{"text": "Why ?"}', "neither `fine_label` nor `coarse_label`"),
        ("trec", b'{"text": "Why ?", "fine_label": ["DESC:def"]}', "['DESC:def'] is no label"),
        ("trec", b'{"text": "Why ?", "fine_label": true}', "True is no label"),
        ("trec", b'{"text": "Why \\ud800 ?", "fine_label": 1}', "line 1: no JSON: 'utf-8' codec"),
        ("trec", b"", "'' is no label"),
        ("webqs", b"", "line 1: no JSON"),
        ("webqs", b"[]", "no questions"),
        ("webqs", b"[" * 200_000, "line 1: no JSON"),
        ("webqs", b'["a"]', "record 1: no JSON object"),
        ("webqs", b'{"question": "a?", "answers": ["b"]}\n{', "line 2: no JSON"),
        ("webqs", b'{"question": "a?", "answers": []}', "an answer is empty"),
        ("webqs", b'{"question": "a?", "answers": "b"}', "nor a list of texts"),
        ("webqs", b'{"utterance": "a?", "targetValue": "(list)"}', "no list of descriptions"),
        ("webqs", b'{"question": "\xff"}', "byte 14 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, task, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        (web_questions if task == "webqs" else lambda p: trec_questions(p, "fine"))(
            tmp_path / "file"
        )
    assert str(tmp_path / "file") in str(caught.value)


def test_of_many_bad_lines_ten_are_named_and_the_others_counted(tmp_path):
    (tmp_path / "file").write_bytes(b"X:y Why ?\n" * 50)
    with pytest.raises(UserError) as caught:
        trec_questions(tmp_path / "file", "fine")
    lines = str(caught.value).split("\n")
    assert lines[0].endswith("file: 50 faults")
    assert lines[10] == "  line 10: 'X:y' is no label; labels are like `DESC:manner`, 50 of them"
    assert lines[11:] == ["  … and 40 more; is this a file of --task?"]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Beatles", True), ("the beatles!", True), ("The  Beatles", True), ("beetles", False),
        ("", False), ("the", True), ("a", False), ("beatles and stones", False),
    ],
)  # fmt: skip
def test_names_are_compared_as_squad_does(said, right):
    assert is_named(said, ("The Beatles", "The")) is right


def test_a_label_must_be_the_very_word():
    assert is_label("manner", ("manner",))
    assert not is_label("Manner", ("manner",))
    assert not is_label("manner of speaking", ("manner",))


def questions(n: int, stem: str = "what is number") -> list[Question]:
    return [Question(f"{stem} {i}?", (f"word{i}",)) for i in range(n)]


def run(answer, *, train=None, test=None, contexts=(120, 240), seed=0, word="Type"):
    prompts = []

    def said(ids, n):
        prompts.append(ids)
        return answer(ids, n)

    asked = ask(
        pieces, said, train=train or questions(40), test=test or questions(3, "what"), word=word,
        is_right=is_label, contexts=contexts, seed=seed, watch=iter,
    )  # fmt: skip
    return asked, prompts


def test_a_prompt_is_the_documented_text():
    texts = []

    def seen(parts):
        texts.extend(parts)
        return pieces(parts)

    ask(
        seen, lambda ids, n: "", train=questions(3, "which of"), test=questions(1), word="Answer",
        is_right=is_named, contexts=[60], seed=0, watch=iter,
    )  # fmt: skip
    assert sorted(texts) == [
        " word0\n",
        "Question: what is number 0?\nAnswer:",
        "Question: which of 0?\nAnswer: word0\n\n",
        "Question: which of 1?\nAnswer: word1\n\n",
        "Question: which of 2?\nAnswer: word2\n\n",
    ]


def test_the_line_that_is_said_is_the_answer():
    answers = iter([" word0\n\nQuestion", "word1", " word2 \n", "word0", "\nword1", "word22"])
    asked, _ = run(lambda ids, n: next(answers))
    assert [one.answer for one in asked] == ["word0", "word1", "word2", "word0", "", "word22"]
    assert [one.right for one in asked] == [True, True, True, True, False, False]
    assert counts(asked, 120)[2:] == (3, 1.0)
    assert counts(asked, 240)[2:] == (3, pytest.approx(1 / 3))


def test_more_context_adds_examples_after_the_same_first_ones():
    asked, prompts = run(lambda ids, n: "")
    small, large = prompts[0], prompts[3]
    examples = [one.examples for one in asked]
    assert examples == [examples[0]] * 3 + [examples[3]] * 3
    assert examples[3] > examples[0] > 0
    assert prompts[1][: len(small) - 9] == small[:-9], "questions of a context share examples"
    assert large[: len(small) - 9] == small[:-9]
    assert [one.tokens for one in asked] == [len(ids) for ids in prompts]


@settings(max_examples=50)
@given(st.integers(60, 500), st.integers(0, 5))
def test_as_many_examples_as_fit(context, seed):
    room = []
    asked, prompts = run(lambda ids, n: room.append(n) or "", contexts=[context], seed=seed)
    longest = max(map(len, prompts))
    assert longest + room[0] <= context
    example = max(len(p) for p in pieces(["", "Question: what is number 39?\nType: word39\n\n"]))
    assert longest + room[0] + example > context
    assert asked[0].examples >= 1


def test_examples_depend_on_the_seed_alone():
    one, again, other = (run(lambda ids, n: str(ids), seed=s)[0] for s in (0, 0, 1))
    assert one == again
    assert one != other


def test_questions_are_drawn_by_the_seed_in_the_order_of_the_file():
    some = drawn(questions(50), 20, seed=3)
    assert some == drawn(questions(50), 20, seed=3) != drawn(questions(50), 20, seed=4)
    assert some == sorted(some, key=questions(50).index)
    assert len(set(some)) == 20
    assert drawn(questions(5), None, seed=0) == questions(5)
    with pytest.raises(UserError, match="--questions 6: --test has only 5"):
        drawn(questions(5), 6, seed=0)


@pytest.mark.parametrize(
    ("contexts", "message"), [([20], "too short for one example"), ([120, 5000], "not full with")]
)
def test_contexts_that_say_nothing_are_refused(contexts, message):
    with pytest.raises(UserError, match=f"--contexts {contexts[-1]}: {message}"):
        run(lambda ids, n: "", contexts=contexts)


def test_labels_are_of_trec_alone(capsys):
    files = ("--train", "train.json", "--test", "test.json")
    command = ["--model", "none", "classify", "--task", "webqs", "--labels", "coarse", *files]
    assert evaluate.main(command) == 2
    assert capsys.readouterr().err == "error: --labels coarse: only --task trec has labels\n"


def test_what_is_read_is_a_path(tmp_path: Path):
    with pytest.raises(OSError, match="none"):
        web_questions(tmp_path / "none")
