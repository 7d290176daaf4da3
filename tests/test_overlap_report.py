"""What people read of a scan: a row for each overlap, tables of text, one HTML page."""

from __future__ import annotations

import hashlib
import random
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import pairwise

import pyarrow as pa
import pytest

from decontam.coverage import CoverageRow, coverage_table
from decontam.grid import Grid
from decontam.page import write_page
from decontam.records import Overlap
from decontam.report import (
    NOTHING,
    OVERLAP_SCHEMA,
    SourceTotals,
    describe_overlap,
    instance_counts,
    instance_table,
    scenario_table,
    source_table,
)

COVERAGE = [
    CoverageRow(scenario="mmlu", splits={"valid": 31, "test": 1_200}, where="mmlu.jsonl"),
    CoverageRow(scenario="quac", splits={}, where="no file declared"),
    CoverageRow(scenario="boolq", splits={"valid": 3_270}, where="org/boolq"),
]
TOTALS = {"books": SourceTotals(1_000, 2_000_000, 250), "web": SourceTotals(50, 40_000, 0)}
EMPTY = OVERLAP_SCHEMA.empty_table()
HOSTILE = (
    '</script><script>alert(1)</script><img src=x onerror="alert(1)"> \' onclick="alert(1)" <!-- '
    "\x00\x1b[31m \u202egnihtyna\u202c zero\u200bwidth &lt; \ud7ff\r\nnext\n\n\nlast"
)
VOID = {"meta", "link", "input", "br", "img"}


def overlap(**changes: object) -> Overlap:
    fields = {"scenario": "mmlu", "variant": "subject=anatomy", "split": "test", "instance": "id1"}
    fields |= {"part": "input", "reference": -1, "rule": "ngram", "n_words": 10, "start": 0}
    fields |= {"end": 0, "benchmark_start": 0, "benchmark_end": 0, "in_question": True}
    return Overlap(**(fields | changes))


def row(document: int = 0, **changes: object) -> dict[str, object]:
    """A row of the table; `document` n is one of its own."""
    texts = ("before", "passage", "after", "benchmark_before", "benchmark", "benchmark_after")
    place = {"source": "books", "uid": document.to_bytes(16), "file": "a.jsonl", "line": document}
    return {
        **place,
        "origin": f"Book {document}",
        "decision": "dropped",
        **overlap()._asdict(),
        **{name: f"the {name} text" for name in texts},
        **changes,
    }


def rows(items: Iterable[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(list(items), schema=OVERLAP_SCHEMA)


def page(table: pa.Table, **options: object) -> str:
    defaults = {"title": "Overlaps", "full_table": "overlaps.arrow"}
    return write_page(table, COVERAGE, TOTALS, **(defaults | options))


class Parsed(HTMLParser):
    """Elements and text of a page; fails where elements are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def inside(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    @property
    def text(self) -> str:
        return "".join(text for tag, text in self.texts if tag not in ("script", "style"))


# --- One overlap


def test_an_excerpt_is_the_words_of_either_side_with_their_context() -> None:
    text, benchmark = (
        b"Long ago: it was the best of times, he said.",
        b"Q: It was the best of times?",
    )
    found = overlap(start=10, end=34, benchmark_start=3, benchmark_end=27)
    described = describe_overlap(text, found, benchmark)
    assert described["passage"] == "it was the best of times"
    assert described["benchmark"] == "It was the best of times"
    assert (described["before"], described["after"]) == ("Long ago: ", ", he said.")
    assert (described["benchmark_before"], described["benchmark_after"]) == ("Q: ", "?")


def test_described_columns_and_what_is_left_to_the_caller_make_up_the_schema() -> None:
    described = describe_overlap(b"some words", overlap(end=4), b"some words")
    left = {"source", "uid", "file", "line", "origin", "decision"}
    assert {*described, *left} == set(OVERLAP_SCHEMA.names)
    assert not left & set(described)
    assert len(rows([row(**described)])) == 1


@pytest.mark.parametrize("character", ["a", "é", "語", "🦉"])
def test_long_passages_and_contexts_are_cut_at_whole_characters(character: str) -> None:
    width = len(character.encode())
    text = (character * 5_000).encode()
    for n_characters in (1, 399, 400, 401, 1_601, 3_000):
        start, end = 1_000 * width, (1_000 + n_characters) * width
        d = describe_overlap(text, overlap(start=start, end=end), text)
        expected = n_characters * character
        if n_characters > 400:
            expected = f"{200 * character}…{199 * character}"
        assert d["passage"] == expected
        assert d["before"] == d["after"] == 160 * character


def test_a_span_inside_a_character_loses_and_repeats_nothing() -> None:
    text = "αβγδ".encode()
    for start in range(len(text)):
        for end in range(start, len(text) + 1):
            d = describe_overlap(text, overlap(start=start, end=end), b"")
            assert d["before"] + d["passage"] + d["after"] == "αβγδ"


def test_control_characters_stay_and_bytes_that_are_no_utf8_become_marks() -> None:
    d = describe_overlap(b"a\x00b\xffc \x80\x80\x80\x80\x80d", overlap(end=5), b"")
    assert d["passage"] == "a\x00b\N{REPLACEMENT CHARACTER}c"
    assert d["after"] == " " + 5 * "\N{REPLACEMENT CHARACTER}" + "d"


# --- Tables


def cells(table: str, name: str) -> list[str]:
    """The figures behind `name`, of the first line that begins so."""
    line = next(line for line in table.splitlines() if line.startswith(f"{name} "))
    return line[len(name) :].split()


def test_scenario_table_counts_instances_by_part_and_documents_by_strongest_decision() -> None:
    table = scenario_table(
        rows(
            [
                row(1, instance="id1"),
                row(1, instance="id1", decision="kept"),
                row(2, instance="id1", part="reference", reference=0, decision="cut"),
                row(2, instance="id1", part="reference", reference=1, decision="kept"),
                row(3, instance="id2", part="reference", reference=0, decision="kept"),
                row(3, instance="id2", variant="subject=virology", decision="kept"),
            ]
        ),
        COVERAGE,
    )
    # instances touched inputs references documents dropped cut kept
    assert cells(table, "mmlu") == "1,231 3 2 2 3 1 1 1".split()
    assert cells(table, "boolq") == "3,270 0 0 0 0 0 0 0".split()
    assert cells(table, "quac") == "none 0 0 0 0 0 0 0".split()


def test_boilerplate_is_in_a_table_of_its_own_and_in_no_other_figure() -> None:
    table = rows(
        [row(1), row(2, instance="id7", rule="frequent", decision="kept"), row(2, rule="no_words")]
    )
    counted, boilerplate = scenario_table(table, COVERAGE).split("\n\n")
    assert cells(counted, "mmlu") == "1,231 1 1 0 1 1 0 0".split()
    assert "mmlu      frequent        1          1        0    0     1" in boilerplate
    assert "mmlu      no_words        1          1        1    0     0" in boilerplate
    # documents overlapping boilerplate dropped cut removed share
    assert cells(source_table(table, TOTALS), "books") == "1,000 1 1 2 0 250 0.013%".split()


def test_only_boilerplate_means_that_no_document_repeats_a_benchmark_text() -> None:
    text = scenario_table(rows([row(rule="many_scenarios")]), COVERAGE)
    assert text.startswith(NOTHING)
    assert "many_scenarios" in text


def test_the_same_text_in_two_places_is_two_documents() -> None:
    table = rows([row(1), row(1, line=2), row(1, source="web")])
    assert cells(scenario_table(table, COVERAGE), "mmlu")[4] == "3"
    assert cells(source_table(table, TOTALS), "books")[1] == "2"
    assert cells(source_table(table, TOTALS), "web")[1] == "1"


def test_source_table_sums_sources_and_shows_no_share_as_zero_that_is_not() -> None:
    totals = TOTALS | {"papers": SourceTotals(10, 10**9, 3)}
    table = source_table(rows([row(1), row(2, decision="cut")]), totals)
    assert cells(table, "books") == "1,000 2 0 1 1 250 0.013%".split()
    assert cells(table, "web")[-1] == "0.000%"
    assert cells(table, "papers")[-1] == "<0.001%"
    assert cells(table, "all sources")[:2] == ["1,060", "2"]


def test_instance_counts_are_exact_and_keep_boilerplate_apart() -> None:
    counts = instance_counts(
        rows(
            [
                *(row(n, n_words=n) for n in range(10, 14)),
                row(10, rule="frequent", n_words=40),
                row(50, rule="no_words"),
                row(1, instance="id2", rule="no_words"),
            ]
        )
    ).to_pylist()
    found = [(c["instance"], c["documents"], c["boilerplate_only"], c["longest"]) for c in counts]
    assert found == [("id1", 4, 1, 40), ("id2", 0, 1, 10)]


def test_instance_table_shows_the_most_touched_and_counts_the_rest() -> None:
    table = rows(row(n, instance=f"id{i}") for i in range(30) for n in range(i + 1))
    lines = instance_table(table, most=3).splitlines()
    assert [line.split()[3:5] for line in lines[2:5]] == [
        ["id29", "30"],
        ["id28", "29"],
        ["id27", "28"],
    ]
    assert lines[5:] == ["and 27 more, each touched by at most 27 documents"]
    assert "more" not in instance_table(table, most=30)


def test_coverage_table_names_what_is_missing() -> None:
    table = coverage_table(COVERAGE)
    assert re.search(r"^mmlu +1,231 +unknown  valid 31, test 1,200  mmlu.jsonl$", table, re.M)
    assert re.search(r"^quac +0 +missing +no file declared$", table, re.M)
    assert table.endswith("2 of 3 scenarios; missing: quac")


def test_tables_work_on_nothing() -> None:
    assert scenario_table(EMPTY, []) == scenario_table(EMPTY, COVERAGE) == NOTHING
    assert instance_table(EMPTY) == source_table(EMPTY, {}) == NOTHING
    assert cells(source_table(EMPTY, TOTALS), "books") == "1,000 0 0 0 0 250 0.013%".split()
    assert coverage_table([]).endswith("0 of 0 scenarios")
    assert len(instance_counts(EMPTY)) == 0


def test_lines_of_tables_have_at_most_100_columns_and_stay_aligned() -> None:
    long = "a/very/long/name/" * 20
    grid = Grid(
        "Names",
        ("name", "figure", "place"),
        "<><",
        [(long, "1,234,567", long), ("b\n\x1b", "2", "c")],
    )
    lines = str(grid).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 100
    assert lines[2].index("1,234,567") + 9 == lines[3].index("2") + 1
    assert lines[2].startswith("a/very") and "…" in lines[2]


# --- The page


def test_every_shown_passage_is_a_card_with_its_evidence() -> None:
    table = rows([row(255, start=1_000, end=1_234, file="a.jsonl", line=7), row(2, decision="cut")])
    parsed = Parsed(page(table))
    assert len(parsed.all("article")) == 2
    assert sorted(parsed.inside("mark")) == sorted(["the passage text", "the benchmark text"] * 2)
    evidence = parsed.inside("dd")
    assert (255).to_bytes(16).hex() in evidence
    assert {"a.jsonl:7", "[1,000, 1,234)", "mmlu subject=anatomy test id1", "Book 255"} <= {
        *evidence
    }
    assert {"ngram", "dropped", "cut"} <= {*parsed.inside("span")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_question": True}, "input, into the question itself"),
        ({"in_question": False}, "input, only before the question"),
        ({"part": "reference", "reference": 2, "in_question": True}, "reference 2, a right answer"),
        (
            {"part": "reference", "reference": 0, "in_question": False},
            "reference 0, not a right answer",
        ),
    ],
)
def test_a_card_says_which_part_is_touched(changes: dict[str, object], words: str) -> None:
    assert words in Parsed(page(rows([row(**changes)]))).inside("dd")


def test_filters_offer_what_is_there_and_cards_carry_the_same_values() -> None:
    table = rows(
        [
            row(1, scenario="boolq", source="web"),
            row(2, scenario="mmlu", rule="frequent", decision="kept"),
            row(3, scenario="unknown", rule="whole", decision="cut"),
        ]
    )
    html = page(table)
    for name, column in (
        ("scenario", "scenario"),
        ("source", "source"),
        ("rule", "rule"),
        ("decision", "decision"),
    ):
        select = re.search(f'<select name="{name}">(.*?)</select>', html).group(1)
        options = dict(re.findall(r'<option value="(\d+)">(.*?)</option>', select))
        assert set(options.values()) == set(table[column].to_pylist())
        carried = [options[value] for value in re.findall(f'data-{name}="(\\d+)"', html)]
        assert Counter(carried) == Counter(table[column].to_pylist())


def test_the_page_states_what_it_leaves_out_and_shows_the_longest_of_each_kind() -> None:
    many = [row(n, n_words=10 + n) for n in range(40)]
    few = [row(100, scenario="boolq", n_words=11), row(101, rule="whole", n_words=3)]
    html = page(rows([*many, *few]), most=5, full_table="all.arrow")
    parsed = Parsed(html)
    titles = re.findall(r"(\d+) words</span>", html)
    assert titles == ["49", "48", "47", "3", "11"]
    assert "5 of 42 passages" in parsed.text
    assert "37 are left out. All are in all.arrow" in parsed.text
    assert "left out" not in Parsed(page(rows(few))).text


def test_the_same_rows_in_another_order_give_the_same_bytes() -> None:
    kinds = [("mmlu", "ngram"), ("boolq", "whole"), ("mmlu", "frequent")]
    items = [row(n % 7, scenario=kinds[n % 3][0], rule=kinds[n % 3][1], start=n) for n in range(60)]
    first = page(rows(items), most=20)
    for seed in range(5):
        random.Random(seed).shuffle(items)
        assert page(rows(items), most=20) == first


def hostile_page(hostile: str) -> str:
    strings = [f.name for f in OVERLAP_SCHEMA if pa.types.is_string(f.type)]
    own = {name: hostile for name in strings if name not in ("part", "rule", "decision")}
    coverage = [CoverageRow(scenario=hostile, splits={hostile: 1}, where=hostile)]
    totals = {hostile: SourceTotals(1, 1, 1)}
    return write_page(rows([row(**own)]), coverage, totals, title=hostile, full_table=hostile)


def test_documents_can_put_no_markup_into_the_page() -> None:
    parsed, harmless = Parsed(hostile_page(HOSTILE)), Parsed(hostile_page("harmless"))
    tags = [(tag, sorted(attributes)) for tag, attributes in parsed.tags if tag != "i"]
    assert tags == [(tag, sorted(attributes)) for tag, attributes in harmless.tags]
    assert {tuple(a) for a in parsed.all("i")} == {("data-c",)}
    assert "<img src=x onerror=" in parsed.inside("mark")[0]


def test_what_cannot_be_seen_is_shown_and_steers_nothing() -> None:
    html = hostile_page(HOSTILE)
    signs = {a["data-c"] for a in Parsed(html).all("i")}
    assert signs == {"U+0000", "U+001B", "U+202E", "U+202C", "U+200B", "↵", "¶"}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", html)


def test_a_hundred_kilobytes_without_a_space_are_shortened_and_may_break_anywhere() -> None:
    html = hostile_page("x" * 100_000)
    assert len(html) < 50_000
    assert "overflow-wrap: anywhere" in html


def test_the_page_needs_and_asks_for_nothing_outside_itself() -> None:
    parsed = Parsed(page(rows([row(origin="http://example.org/book", passage="see https://a.b")])))
    addresses = [v for _, a in parsed.tags for k, v in a.items() if k in ("src", "href", "action")]
    assert addresses == ["data:,"]
    (style,), (script,) = parsed.inside("style"), parsed.inside("script")
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"fetch|XMLHttp|import\b|https?:|innerHTML|eval", script)


def test_the_policy_lets_only_the_page_s_own_style_and_script_work() -> None:
    parsed = Parsed(page(EMPTY))
    policy = next(a["content"] for a in parsed.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for kind in ("style", "script"):
        (content,) = parsed.inside(kind)
        digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not [a for _, a in parsed.tags if "style" in a or any(k.startswith("on") for k in a)]


def test_tables_have_captions_and_headers_and_controls_have_labels() -> None:
    parsed = Parsed(page(rows([row(1), row(2, rule="frequent")])))
    tables = len(parsed.all("table"))
    assert tables == len(parsed.all("caption")) == 5
    assert all(a.get("scope") in ("col", "row") for a in parsed.all("th"))
    assert len(parsed.all("label")) == len(parsed.all("select")) + len(parsed.all("input"))
    headings = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))
    assert parsed.all("html") == [{"lang": "en"}]


def test_a_page_without_overlaps_says_so_and_offers_no_filters() -> None:
    parsed = Parsed(page(EMPTY))
    assert "No document repeats a benchmark text." in parsed.text
    assert not parsed.all("form") and not parsed.all("article")
    assert "missing: quac" in parsed.text
    assert Parsed(write_page(EMPTY, [], {}, title="", full_table="x")).all("h1") == [{}]


def test_the_page_s_headline_counts_documents_and_keeps_boilerplate_apart() -> None:
    table = rows([row(1), row(1, instance="id2"), row(2, decision="cut"), row(3, rule="frequent")])
    text = Parsed(page(table)).text
    assert "repeat a benchmark text: 2 (1 dropped, 1 cut), in 3 passages." in text
    assert "boilerplate: 1 passage in 1 document." in text
