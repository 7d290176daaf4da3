"""The index of passages: BM25 against its formula, order among equals, and what is on disk."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
import uuid
from collections import Counter
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import files
from pipelines.errors import UserError
from pipelines.retrieval import PassageIndex, build_index, list_passages
from pipelines.templates.multi_document import MultiDocument
from pipelines.templates.passages import Passage, words


def options_of(path="p.jsonl", *, retriever="bm25", **passages) -> MultiDocument:
    return MultiDocument.model_validate(
        {"retriever": retriever, "passages": {"path": str(path), **passages}}
    )


def built(folder, options: MultiDocument, *, root=None) -> str:
    inputs = list_passages(options.passages, data_root=str(root or folder))
    return build_index(options, inputs, str(folder / "store #1 50%"))


def index_of(folder, *records, **options) -> PassageIndex:
    write_jsonl(folder / "p.jsonl", records)
    return PassageIndex(built(folder, options_of(**options)))


def bm25(texts: list[list[str]], query: list[str], k1=1.5, b=0.75) -> list[float]:
    """BM25 as Lucene has it (Kamphuis et al., ECIR 2020), word by word."""
    average = sum(map(len, texts)) / len(texts)
    totals = []
    for text in texts:
        total = 0.0
        for word in query:
            df = sum(word in other for other in texts)
            tf = Counter(text)[word]
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + k1 * (1 - b + b * len(text) / average))
        totals.append(total)
    return totals


def test_scores_computed_by_hand(tmp_path):
    index = index_of(
        tmp_path,
        {"title": "Rain", "text": "rain falls"},
        {"title": "Snow", "text": "falls"},
        {"title": "", "text": "Sun, sun and sun."},
    )
    # 3, 2 and 4 words; `falls` is in two of three passages, `sun` in one.
    falls, sun = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    by_hand = [
        falls / (1 + 1.5),
        falls / (1 + 1.5 * (0.25 + 0.75 * 2 / 3)),
        sun * 3 / (3 + 1.5 * (0.25 + 0.75 * 4 / 3)),
    ]
    assert index.scores("Falls the SUN?").tolist() == pytest.approx(by_hand, rel=1e-6)
    assert list(index.ranked("Falls the SUN?")) == [2, 1, 0]


TEXTS = st.lists(st.sampled_from("a b c d e".split()), min_size=1, max_size=6)


@settings(max_examples=15)
@given(st.lists(TEXTS, min_size=1, max_size=12, unique_by=tuple), TEXTS)
def test_scores_follow_the_formula_and_ranks_the_scores(tmp_path_factory, texts, query):
    folder = tmp_path_factory.mktemp("index")
    index = index_of(folder, *({"title": "", "text": " ".join(text)} for text in texts))
    scores = index.scores(" ".join(query)).tolist()
    assert scores == pytest.approx(bm25(texts, query), rel=1e-5)
    expected = sorted((i for i, s in enumerate(scores) if s), key=lambda i: (-scores[i], i))
    assert list(index.ranked(" ".join(query))) == expected


def test_equals_come_in_their_order_however_many_are_asked_for(tmp_path):
    index = index_of(tmp_path, *({"title": f"t{i % 7}", "text": f"x{i} same"} for i in range(3000)))
    assert list(index.ranked("same")) == list(range(3000))
    first = [i for i in range(3000) if i % 7 == 3]
    whole = list(index.ranked("same t3"))
    assert whole == first + [i for i in range(3000) if i % 7 != 3]
    assert list(islice(index.ranked("same t3"), 5)) == first[:5]


def test_passages_are_one_line_each_and_kept_once(tmp_path):
    index = index_of(
        tmp_path,
        {"title": " A\tB ", "text": "one\n\ntwo\u2028three "},
        {"title": "A B", "text": "one two three"},
        {"title": "other", "text": "one two three"},
        {"title": None, "text": "no title"},
        {"title": "no text"},
        {"title": "blank", "text": " \n"},
        ["text"],
        {"title": "odd \ud800", "text": "… * \ud800 \0"},
    )
    assert [index.passage(i) for i in range(len(index))] == [
        Passage("A B", "one two three"),
        Passage("other", "one two three"),
        Passage("", "no title"),
        Passage("odd ?", "… * ? \0"),
    ]


def test_words_have_no_case_no_accents_and_no_punctuation():
    assert words("Röntgen's ﬁrst X-rays, STRASSE/Straße №1") == (
        "rontgen s first x rays strasse strasse no1".split()
    )
    assert words("× … *") == []


def test_a_question_without_known_words_finds_nothing(tmp_path):
    index = index_of(tmp_path, {"title": "", "text": "word"})
    assert list(index.ranked("")) == []
    assert list(index.ranked("other ' words; DROP TABLE passages")) == []
    nothing = index_of(tmp_path, {"title": "", "text": "*"})
    assert list(nothing.ranked("word")) == []


def test_passages_are_found_inside_of_questions_and_in_tables(tmp_path):
    passages = [{"title": "a", "body": {"raw": "one"}}, {"title": "b", "body": {"raw": "two"}}]
    records = [
        {"gold": passages[:1], "other": {"hard": passages}},
        {"gold": "none", "other": {"hard": None}},
        {"gold": 5},
        {"gold": [None, 5, "text"]},
    ]
    index = index_of(tmp_path, *records, items=["gold", "other.hard"], text="body.raw")
    assert [index.passage(i) for i in range(len(index))] == [
        Passage("a", "one"),
        Passage("b", "two"),
    ]
    pq.write_table(pa.table({"title": ["ä"], "text": ["ö ö"]}), tmp_path / "p.parquet")
    table = PassageIndex(built(tmp_path, options_of("p.parquet")))
    assert table.passage(0) == Passage("ä", "ö ö")
    assert list(table.ranked("O")) == [0]


def test_an_index_is_made_again_only_when_something_changed(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", [{"title": "a", "text": "one"}])
    paths = [built(tmp_path, options_of()), built(tmp_path, options_of())]
    paths += [
        built(tmp_path, options_of(retriever="random")),
        built(tmp_path, options_of(title="t")),
    ]
    write_jsonl(tmp_path / "p.jsonl", [{"title": "a", "text": "one more"}])
    paths.append(built(tmp_path, options_of()))
    assert paths[0] == paths[1]
    assert len({*paths}) == 4
    assert sorted(os.listdir(tmp_path / "store #1 50%")) == sorted(map(os.path.basename, {*paths}))
    assert len(PassageIndex(paths[0])) == 1


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"title": "a", "text": "b"}, b"{broken"], r"p\.jsonl: byte 28: not a JSON record"),
        ([b'{"text": "\xff"}'], r"p\.jsonl: byte 0: not a JSON record"),
        ([{"body": "b"}], r"p\.jsonl: no passage with a text in field 'text'; name the fields"),
        ([b""], r"no passage with a text"),
    ],
)
def test_files_without_passages_stop_the_build_and_leave_no_index(tmp_path, records, message):
    with pytest.raises(UserError, match=message):
        index_of(tmp_path, *records)
    assert files.list_names(str(tmp_path / "store #1 50%")) == []


def test_missing_files_are_reported_with_the_source(tmp_path):
    with pytest.raises(UserError, match=r"passages: .*none\.jsonl: no file to read"):
        built(tmp_path, options_of("none.jsonl"))


def test_an_index_in_an_object_store_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_jsonl(tmp_path / "p.jsonl", [{"title": "a", "text": "one"}])
    options, store = options_of(), f"memory://{uuid.uuid4().hex}/store"
    inputs = list_passages(options.passages, data_root=str(tmp_path))
    path = build_index(options, inputs, store)
    assert build_index(options, inputs, store) == path
    for _ in range(2):
        index = PassageIndex(path)
        assert (len(index), list(index.ranked("one"))) == (1, [0])


def test_the_bytes_do_not_depend_on_the_order_of_hashes(tmp_path):
    records = [{"title": f"t{i}", "text": f"w{i % 5} v{i % 3} same"} for i in range(40)]
    write_jsonl(tmp_path / "p.jsonl", records)
    code = (
        "import sys, numpy as np\n"
        "from test_retrieval import built, options_of, PassageIndex\n"
        "from pathlib import Path\n"
        "path = built(Path(sys.argv[2]), options_of(), root=sys.argv[1])\n"
        "print(PassageIndex(path).scores('same w1 v2 t3').tobytes().hex())\n"
        "for p in sorted(Path(path).rglob('*')): print(p.name, p.is_file() and hash_of(p))\n"
    ).replace("hash_of(p)", "__import__('hashlib').sha256(p.read_bytes()).hexdigest()")
    outputs = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        outputs.append(ran.stdout)
    assert outputs[0] == outputs[1]


def test_real_questions_find_their_passages(shared_data, tmp_path):
    path = shared_data / "longqa" / "nq-open-oracle.jsonl.gz"
    index = PassageIndex(built(tmp_path, options_of(path, items="ctxs")))
    records = [json.loads(x) for x in gzip.decompress(path.read_bytes()).split(b"\n") if x]
    assert len(index) == 2588, "of 2,655 some are the same"
    found = 0
    for record in records[:200]:
        best = [index.passage(i).text for i in islice(index.ranked(record["question"]), 10)]
        found += " ".join(record["ctxs"][0]["text"].split()) in best
    assert found >= 180, "BM25 finds nearly all of them among 2,600"
