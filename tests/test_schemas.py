"""Published records, one of each kind as its publisher writes it, and the real files we have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Builder, documents, write_jsonl

from pipelines import files
from pipelines.abstracts import AbstractIndex, build_index, list_abstracts
from pipelines.errors import UserError
from pipelines.mixture import Abstracts, Source
from pipelines.readers import read_blocks
from pipelines.records import Document, Dropped, RawRecord
from pipelines.rendering import Rendered
from pipelines.schemas import document_parser, schema_of
from pipelines.sources import list_source, plan_splits
from pipelines.templates.plain import append_abstract

BOOK = {
    "short_book_title": "Emma by Jane Austen",
    "publication_date": 1815,
    "url": "http://g.org/158",
}
BOOKS3 = {"title": "A Book"}
ARXIV = {
    "timestamp": "2020-01-02T00:00:00", "yymm": "2001", "arxiv_id": "2001.00001", "language": "en",
    "url": "https://arxiv.org/abs/2001.00001", "source": "arxiv",
}  # fmt: skip
C4 = {
    "timestamp": "2019-04-25T12:57:54Z",
    "url": "https://c4.example/a",
    "language": "en",
    "source": "c4",
}
GITHUB = {
    "content_hash": "0f", "timestamp": "", "source": "github", "line_count": 2,
    "max_line_length": 80,
    "avg_line_length": 17.5, "alnum_prop": 0.5, "repo_name": "o/n", "id": "0a", "size": "3777",
    "binary": False, "copies": "1", "ref": "refs/heads/main", "path": "src/x.py", "mode": "33188",
    "license": "mit", "language": [{"name": "Python", "bytes": "3777"}],
}  # fmt: skip
STACKEXCHANGE = {
    "language": "en", "url": "https://stackoverflow.com/questions/4", "timestamp": "2023-03-29",
    "source": "stackexchange", "question_score": "18",
}  # fmt: skip
WIKIPEDIA = {"title": "Anarchism", "url": "https://en.wikipedia.org/", "timestamp": "20230320"}
REDPAJAMA = {
    "book": (BOOK, "Emma by Jane Austen"),
    "book (Books3)": (BOOKS3, "A Book"),
    "arxiv": (ARXIV, "2001.00001"),
    "c4": (C4, "https://c4.example/a"),
    "github": (GITHUB, "src/x.py"),
    "stackexchange": (STACKEXCHANGE, "https://stackoverflow.com/questions/4"),
    "wikipedia": (WIKIPEDIA, "Anarchism"),
}
COMMON_CRAWL = {
    "pred_label": "__label__wiki", "pred_label_prob": 0.7, "wiki_prob": 0.7,
    "text": "crawled", "source": "cc/2019-30/en_head_0001.json.gz/line7",
}  # fmt: skip
WARC = {"warc-type": "conversion", "warc-target-uri": "https://oscar.example/"}


def parse(record: Any, *, answers_only: bool = False, **source: Any) -> Document | Dropped:
    line = record if isinstance(record, bytes) else json.dumps(record).encode()
    described = Source.model_validate({"weight": 1, "path": "-", **source})
    parser = document_parser(schema_of(described), answers_only=answers_only)
    return parser(RawRecord(line, 4, 90, 1))


def text_and_origin(record: Any, **source: Any) -> tuple[str, str]:
    document = parse(record, **source)
    assert isinstance(document, Document), document
    assert document[2:5] == (4, 90, 1)
    return document.text, document.origin


@pytest.mark.parametrize("write", [lambda m: m, json.dumps, repr], ids=["dict", "JSON", "Python"])
@pytest.mark.parametrize("subset", REDPAJAMA)
def test_redpajama_records_keep_their_text_and_name(subset, write):
    meta, origin = REDPAJAMA[subset]
    record = {"text": "Café \u2028", "meta": write(meta), "red_pajama_subset": subset}
    assert text_and_origin(record, schema="redpajama") == ("Café \u2028", origin)


def test_redpajama_common_crawl_has_no_meta():
    assert text_and_origin(COMMON_CRAWL, schema="redpajama") == ("crawled", COMMON_CRAWL["source"])
    on_the_hub = {"text": "crawled", "meta": json.dumps(COMMON_CRAWL)}
    assert text_and_origin(on_the_hub, schema="redpajama") == ("crawled", COMMON_CRAWL["source"])


@pytest.mark.parametrize(
    ("schema", "record", "origin"),
    [
        ("text", {"text": "t"}, ""),
        ("text", {"id": "7", "text": "t", "url": "u"}, "7"),
        ("text", {"id": 7, "text": "t"}, "7"),
        ("long_data", {"text": "t"}, ""),
        ("long_data", {"text": "t", "meta": {"source": "a"}}, "a"),
        ("long_data", {"text": "t", "metadata": {"source": "ul2_plus_oscar_en_00300"}},
         "ul2_plus_oscar_en_00300"),
        ("long_data", {"text": "prompt and", "prompt": "prompt", "completion": " and"}, ""),
        ("oig", {"text": "t", "metadata": {"source": "unified_ni"}}, "unified_ni"),
        ("oig", {"text": "t", "metadata": "{'source': 'unified_p3'}"}, "unified_p3"),
        ("pile", {"text": "t", "meta": {"pile_set_name": "Wikipedia (en)"}}, "Wikipedia (en)"),
        ("c4", {"text": "t", "timestamp": "2019", "url": "https://c4.example/"}, "https://c4.example/"),
        ("c4", {"id": 3, "text": "t"}, "3"),
        ("c4", {"id": 3, "text": "t", "meta": {"warc_headers": WARC}}, "https://oscar.example/"),
        ("c4", {"labels": ["IN"], "text": "t"}, ""),
    ],
)  # fmt: skip
def test_published_records_keep_their_text_and_name(schema, record, origin):
    assert text_and_origin(record, schema=schema) == (record["text"], origin)


def test_the_fields_of_any_other_record_can_be_named():
    oscar = {"content": "t", "warc_headers": WARC, "metadata": {"identification": {"label": "en"}}}
    fields = {"text": "content", "origin": "warc_headers.warc-target-uri"}
    assert text_and_origin(oscar, fields=fields) == ("t", "https://oscar.example/")
    nested = {"doc": {"body": {"raw": "t"}, "names": {"short": ""}}, "n": 5}
    fields = {"text": "doc.body.raw", "origin": ["doc.names.short", "doc.names.long", "n"]}
    assert text_and_origin(nested, fields=fields) == ("t", "5")
    assert parse({"doc": {"body": "t"}}, fields=fields).reason == "missing_text"


def test_loss_on_completions_knows_where_the_prompt_ends():
    record = {"text": "ask me\nanswer", "prompt": "ask me\n", "completion": "answer"}
    document = parse(record, schema="long_data", answers_only=True)
    assert isinstance(document, Document)
    assert document.content == Rendered("ask me\nanswer", ((7, 13),))
    for other in ({"text": "a"}, {"text": "a", "prompt": "b"}, {"text": "a", "prompt": None}):
        assert parse(other, schema="long_data", answers_only=True).reason == "prompt_not_a_prefix"
    fields = {"text": "all", "prompt": "input.q"}
    renamed = {"all": "q? a", "input": {"q": "q?"}}
    assert parse(renamed, fields=fields, answers_only=True).content.answers == ((2, 4),)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense", "invalid_json"),
        (b'{"text": "cut of', "invalid_json"),
        (b'{"text": "a"} {"text": "b"}', "invalid_json"),
        (b'{"text": "a", "other": tru}', "invalid_json"),
        (b"{'text': 'a'}", "invalid_json"),
        (b'{"text": "NUL \0"}', "invalid_json"),
        (b"\0\0\0\0", "invalid_json"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"text": "a\xff"}', "invalid_utf8"),
        (b'{"\xc3\x28": "a"', "invalid_utf8"),
        ("{'text': 'é'}".encode("utf-16"), "invalid_utf8"),
        (b"[]", "not_an_object"),
        (b'["text"]', "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"{}", "missing_text"),
        (b'{"Text": "a"}', "missing_text"),
        (b'{"text": null}', "missing_text"),
        (b'{"text": 5}', "text_not_a_string"),
        (b'{"text": true}', "text_not_a_string"),
        (b'{"text": NaN}', "text_not_a_string"),
        (b'{"text": ["a"]}', "text_not_a_string"),
        (b'{"text": {"text": "a"}}', "text_not_a_string"),
    ],
)
def test_a_record_that_is_none_is_dropped_with_the_reason(line, reason):
    dropped = parse(line, schema="redpajama")
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, *dropped[2:]) == (reason, 4, 90, 1, None)
    assert len(dropped.evidence) <= 200


@pytest.mark.parametrize(
    "other",
    [
        b"NaN", b"-Infinity", b"1e999", b"-1e999", b"12345678901234567890123", b'"\\ud800"',
        b'"\xff"', b'"\\u0000"', b"[" * 200 + b"]" * 200,
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["meta", "unread"])
def test_what_python_writes_beside_the_text_costs_no_document(name, other):
    line = b'{"text": "kept", "' + name.encode() + b'": ' + other + b"}"
    if (name, other) == ("meta", b'"\xff"'):  # a field that is read must be text
        assert parse(line, schema="redpajama").reason == "invalid_utf8"
    else:
        assert text_and_origin(line, schema="redpajama")[0] == "kept"


@pytest.mark.parametrize(
    "meta",
    [
        "not a mapping", "[1, 2]", "{'a': nan}", "{[]: 1}", "{'a': 1", r"{'\d': 1}", "1 + 'a'",
        "\0", "[" * 100_000, "{'a': f()}", "", 5, None, [],
        {"arxiv_id": {}, "title": None, "url": []},
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_meta_that_names_nothing_costs_no_document(meta):
    assert text_and_origin({"text": "kept", "meta": meta}, schema="redpajama") == ("kept", "")


def test_names_are_text_whatever_they_hold():
    assert text_and_origin(b'{"text": "t", "id": "a\\ud800b"}') == ("t", "a?b")
    assert text_and_origin({"text": "t", "id": "\0"}) == ("t", "\0")


def test_unusual_text_is_kept_as_it_is():
    for text in (
        "\0",
        "a\0b",
        "\ufeff",
        "</s> <unk>",
        "\ud83e\udd9c".encode("utf-16", "surrogatepass").decode("utf-16"),
    ):
        assert text_and_origin({"text": text})[0] == text
    assert text_and_origin(b'{"text": "first", "text": "last"}')[0] == "last"


# --- abstracts -----------------------------------------------------------------------------


def index_of(folder, *records: Any) -> AbstractIndex:
    write_jsonl(folder / "meta" / "m.jsonl", records)
    spec = Abstracts.model_validate({"path": "meta"})
    inputs = list_abstracts("papers", spec, data_root=str(folder))
    return AbstractIndex(build_index(spec, inputs, str(folder / "a #1 50% store?")))


def test_abstracts_are_found_with_and_without_a_version(tmp_path):
    index = index_of(
        tmp_path,
        {"id": "2001.00001", "title": "T", "abstract": " We show it. "},
        {"id": "hep-th/9901001", "abstract": "Old."},
        {"id": "2001.00002", "abstract": None},
        {"title": "no id", "abstract": "lost"},
        {"id": "2001.00001", "abstract": "A second one of the same paper."},
    )
    assert index.get("2001.00001") == " We show it. "
    assert index.get("2001.00001v3") == " We show it. "
    assert index.get("hep-th/9901001v12") == "Old."
    for absent in ("2001.00002", "2001.00003", "2001.00001v", "", "v1"):
        assert index.get(absent) == ""


def test_an_abstract_stands_behind_its_paper():
    paper = Rendered("\\section{A}\nText.\n\n")
    joined = append_abstract(paper, " We show it.\n")
    assert joined == paper._replace(text="\\section{A}\nText.\n\nWe show it.\n")
    assert append_abstract(paper, "") is paper
    assert append_abstract(paper, " \n") is paper


def test_an_index_of_abstracts_is_made_again_only_when_its_input_changed(tmp_path):
    index_of(tmp_path, {"id": "1", "abstract": "a"})
    (first,) = files.list_names(str(tmp_path / "a #1 50% store?"))
    assert (
        index_of(tmp_path, {"id": "1", "abstract": "a"}, {"id": "2", "abstract": "b"}).get("2")
        == "b"
    )
    names = files.list_names(str(tmp_path / "a #1 50% store?"))
    assert len(names) == 2
    assert first in names


def test_broken_metadata_stops_the_build_and_leaves_no_index(tmp_path):
    with pytest.raises(UserError, match=r"meta/m\.jsonl: byte 29: not a JSON record of metadata"):
        index_of(tmp_path, {"id": "1", "abstract": "a"}, b"{broken")
    assert files.list_names(str(tmp_path / "a #1 50% store?")) == []


def test_a_build_joins_abstracts_and_leaves_papers_without_one_alone(builder: Builder):
    texts = [d["text"] for d in documents(8, 12)]
    names = [f"2001.{i:05d}{'v2' if i % 2 else ''}" for i in range(12)]
    papers = [
        {"text": t, "meta": ARXIV | {"arxiv_id": n}} for t, n in zip(texts, names, strict=True)
    ]
    write_jsonl(builder.folder / "papers.jsonl", papers)
    abstracts = [
        {"id": f"2001.{i:05d}", "abstract": f"We show it {i} times."} for i in range(0, 12, 3)
    ]
    write_jsonl(builder.folder / "meta.jsonl", abstracts)
    source = {"weight": 1, "path": "papers.jsonl", "schema": "redpajama"}
    plain = builder.build({"papers": source}, tokens=2000)
    joined = builder.build(
        {"papers": source | {"abstracts": {"path": "meta.jsonl"}}}, tokens=2000, output="joined"
    )
    table = [
        builder.folder / "out" / "documents.arrow",
        builder.folder / "joined" / "documents.arrow",
    ]
    without, with_ = (files.read_table(str(path)).to_pylist() for path in table)
    assert [row["origin"] for row in with_] == names
    assert [row["uid"] for row in with_] == [row["uid"] for row in without]
    longer = [b["n_tokens"] > a["n_tokens"] for a, b in zip(without, with_, strict=True)]
    assert longer == [i % 3 == 0 for i in range(12)]
    assert joined.accounts[0].documents_kept == plain.accounts[0].documents_kept == 12


# --- real files ----------------------------------------------------------------------------


def documents_of(path: Any, **values: Any) -> list[Document | Dropped]:
    source = Source.model_validate({"weight": 1, "path": str(path), **values})
    parser = document_parser(schema_of(source), answers_only=False)
    splits = plan_splits("s", source, list_source("s", source, data_root=None).files)
    return [
        parser(record)
        for split in splits
        for block in read_blocks(split, max_record=1 << 26, skip=lambda _: False)
        for record in block.records
    ]


@pytest.mark.parametrize(
    ("path", "schema", "n"),
    [
        ("books/rp_book_train.jsonl.zst", "redpajama", 98),
        ("books/rp_book_heldout_pg19like.jsonl.zst", "redpajama", 40),
        ("books/rp_book_neardup_of_train.jsonl.zst", "redpajama", 11),
        ("arxiv/rp_arxiv_papers.jsonl.zst", "redpajama", 58),
        ("arxiv/rp_arxiv_notes.jsonl.zst", "redpajama", 42),
        ("arxiv/rp_arxiv_stacks.jsonl.zst", "redpajama", 109),
        ("web/rp_c4_demo.jsonl.zst", "redpajama", 300),
        ("web/rp_wikipedia.jsonl.zst", "redpajama", 150),
        ("web/rp_common_crawl_like_18f.jsonl.zst", "redpajama", 507),
        ("web/rp_stackexchange.jsonl.zst", "redpajama", 1593),
        ("web/rp_github_docs_only.jsonl.zst", "redpajama", 249),
        ("web/pile_schema_sample.jsonl.zst", "pile", None),
    ],
)  # fmt: skip
def test_every_record_of_the_real_files_becomes_a_document(shared_data, path, schema, n):
    found = documents_of(shared_data / path, schema=schema)
    assert not [d for d in found if isinstance(d, Dropped)]
    assert n is None or len(found) == n
    assert all(d.text and d.origin for d in found)


def test_real_rows_with_unicode_line_ends_survive(shared_data):
    path = shared_data / "p3" / "p3_t0train_50k.jsonl.zst"
    found = documents_of(path, fields={"text": "inputs_pretokenized"})
    assert len(found) == 55_185
    assert sum("\x85" in d.text for d in found) == 44


def test_real_latin_1_files_are_dropped_with_the_reason_and_the_others_kept(shared_data):
    found = documents_of(shared_data / "books" / "gutenberg_raw")
    assert [d.reason for d in found if isinstance(d, Dropped)] == ["invalid_utf8"] * 6
    kept = [d.text for d in found if isinstance(d, Document)]
    assert len(kept) == 11
    assert not [text for text in kept if text.startswith("\ufeff")]


def test_real_abstracts_find_their_papers(shared_data, tmp_path):
    spec = Abstracts.model_validate({"path": "arxiv/arxiv_metadata.jsonl.gz"})
    inputs = list_abstracts("papers", spec, data_root=str(shared_data))
    index = AbstractIndex(build_index(spec, inputs, str(tmp_path)))
    papers = documents_of(shared_data / "arxiv/rp_arxiv_papers.jsonl.zst", schema="redpajama")
    assert sum(bool(index.get(p.origin)) for p in papers) == 53
