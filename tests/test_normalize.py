"""Text → words: the kernels against a plain implementation, and the promises one by one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_decontam import LAST_PLANE, Word, words

from decontam.index import Index
from decontam.index_build import build_index
from decontam.normalize import Normalizer, Reading
from decontam.records import Instance
from decontam.word_kernels import CHUNK_WORDS, MOST_PIECES

DEFAULT = Normalizer.of("default")
HELM = Normalizer.of("helm")

PIECES = [
    *"aZé9²ﬁIßİıςΣΩñдЖ中国語ひカกภาษา한글हिन्दी١٢٣ⅣªºǅŒÅ𝒜Ａ１ﬀ①½",
    *"  \n\t\r~-–—'’“”\".,;:!?/()[]{}|$%^*_+=@#`´ʼ·•…\u3000\u00a0\u2028\u0085",
    *"\u00ad\u200b\u200c\u200d\u2060\ufeff\u0301\u0308\u0000\u0007\u007f\u2010\u2011\U0001f600",
    *"&<>\\;#xXn",
    *["don't", "well-known", "1,000", "co-\noperate", "co-  \r\n\t operate", "co\u00ad\noperate"],
    *["co-\n1", "co-\n\nx", "co-" + "\n" + 70 * " " + "x", "-\nx", "x\u200b-\u200b\ny"],
    *["&amp;", "&eacute;", "&amp;quot;", "&amp;amp;amp;eacute;", "&#39;", "&#x2019;", "&#xD800;"],
    *["&#0;", "&#99999999;", "&nosuch;", "&nbsp;", "&shy;", "&lt;br&gt;", "&;", "&#;", "&#x;"],
    *["&shy;\nx", "&ThickSpace;", "&CounterClockwiseContourIntegral;", "&amp;#38;#233;", "&a#b;"],
    *["<br>", "<br />", "<br/>", "</p>", '<a href="x">', "<a b>", "<b and c>", "<", "</>", "<1>"],
    *["<abcdefghij>", "<abcdefghijk>", "<a " + 600 * "b" + "=>", "<p\nx=1>", "<a b/>", "<a<b>"],
    *["\\emph{", "\\n", "\\nabout", "\\t", "\\\\", "\\'e", '\\"o', "\\&", "\\", "\\textbf", "\\R"],
]
NASTY = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TEXTS = st.one_of(NASTY, ANY, st.lists(st.one_of(NASTY, ANY), max_size=3).map(" ".join))


class Dictionary:
    """Gives every word its hash, and no two words the same."""

    def __init__(self) -> None:
        self._hash: dict[str, int] = {}
        self._word: dict[int, str] = {}

    def check(self, found: Reading, expected: list[Word], text: bytes) -> None:
        spans = [(word.start, word.end) for word in expected]
        assert found.spans.tolist() == [list(span) for span in spans], text
        for code, (word, *_) in zip(found.hashes.tolist(), expected, strict=True):
            assert self._hash.setdefault(word, code) == code, (word, text)
            assert self._word.setdefault(code, word) == word, (word, text)


def check_all(normalizer: Normalizer, texts: list[str], dictionary: Dictionary) -> None:
    """The kernels' words of a batch are those of the plain implementation."""
    contents = [text.encode() for text in texts]
    split, joined = normalizer.words(contents)
    for i, content in enumerate(contents):
        expected = words(content, normalizer.name)
        dictionary.check(split.of(i), expected[0], content)
        dictionary.check(joined.of(i), expected[1], content)


def words_of(text: str, normalizer: Normalizer = DEFAULT) -> tuple[list[str], list[str]]:
    """Both readings of a text as folded strings, proved to be the kernels' words."""
    check_all(normalizer, [text], Dictionary())
    split, joined = words(text.encode(), normalizer.name)
    return [word.text for word in split], [word.text for word in joined]


def below_the_table_end(text: str) -> str:
    """A text without the characters above U+32400 that the documentation excepts."""
    return "".join(char for char in text if ord(char) < 0x32400)


@settings(max_examples=400)
@given(texts=st.lists(TEXTS, max_size=4))
def test_words_are_those_of_the_plain_implementation(texts: list[str]) -> None:
    check_all(DEFAULT, texts, Dictionary())


@settings(max_examples=200)
@example(texts=["a", "a\0", "\0a", "a\0\0", "\0", "\0\0"])
@given(texts=st.lists(TEXTS.map(below_the_table_end), max_size=4))
def test_helm_words_are_those_of_the_plain_implementation(texts: list[str]) -> None:
    check_all(HELM, texts, Dictionary())


@settings(max_examples=100)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), name=st.sampled_from(["default", "helm"]))
def test_words_do_not_depend_on_the_batch(texts: list[str], name: str) -> None:
    normalizer = DEFAULT if name == "default" else HELM
    contents = [text.encode() for text in texts]
    together = normalizer.words(contents)
    for i, content in enumerate(contents):
        alone = normalizer.words([content])
        for one, other in zip(alone, together, strict=True):
            for a, b in zip(one, other.of(i), strict=True):
                assert np.array_equal(a, b)


@pytest.mark.parametrize(
    "code_points", [range(i, i + 0x8000) for i in range(0, LAST_PLANE, 0x8000)]
)
def test_every_character_alone_and_within_a_word(code_points: range) -> None:
    chars = [chr(c) for c in code_points if not 0xD800 <= c < 0xE000]
    texts = [" ".join(f"x{c}y {c} a" for c in chars[i : i + 64]) for i in range(0, len(chars), 64)]
    check_all(DEFAULT, texts, Dictionary())


def test_every_html_entity_is_what_it_stands_for() -> None:
    import html.entities

    for name, value in html.entities.html5.items():
        if name.endswith(";") and len(value) == 1 and value not in "&<\\":
            assert words_of(f"x&{name}y") == words_of(f"x{value}y"), name
            assert words_of(f"x&amp;{name}y") == words_of(f"x{value}y"), name


@pytest.mark.parametrize("shift", range(2 * MOST_PIECES + 2))
@pytest.mark.parametrize(
    "unit", ["a ", "a-b ", "it's 中 ", "x\\nabout ", "a-b-c-d-e-f-g-h-", "1,", "中"]
)
def test_words_do_not_depend_on_chunk_borders(unit: str, shift: int) -> None:
    text = "w " * (CHUNK_WORDS - shift) + unit * (2 * MOST_PIECES) + "w " * CHUNK_WORDS + unit
    check_all(DEFAULT, [unit, text, unit], Dictionary())


@pytest.mark.parametrize(
    "pieces", [1, 2, MOST_PIECES - 1, MOST_PIECES, MOST_PIECES + 1, 64, 65, 200]
)
def test_long_groups_are_joined_in_parts(pieces: int) -> None:
    split, joined = words_of("-".join(f"p{i}" for i in range(pieces)))
    assert len(split) == pieces
    assert len(joined) == -(-pieces // MOST_PIECES)
    assert "".join(split) == "".join(joined)


@pytest.mark.parametrize(
    "unit", ["a", "é", "中", "a-", "&", "<", "\\", "&amp;", "<b", "\\n", "a\u200b", "\x00"]
)
def test_a_megabyte_without_spaces_is_read_in_time_that_grows_with_it(unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    DEFAULT.words([unit.encode()])
    begin = time.process_time()
    split, joined = DEFAULT.words([text.encode()])
    assert time.process_time() - begin < 5
    tail = words((unit * 50).encode())
    assert (len(split.hashes) > 1) == (len(tail[0]) > 1)
    assert len(joined.hashes) <= len(split.hashes)


@pytest.mark.parametrize(
    ("text", "split", "joined"),
    [
        ("Élan, ÉLAN élan e\u0301lan", "elan elan elan elan", "elan elan elan elan"),
        ("of&#64257;ce o\ufb03ce OFFICE", "office office office", "office office office"),
        ("x² 1,000 3.5", "x2 1 000 3 5", "x2 1000 35"),
        ("don't don’t dont", "don t don t dont", "dont dont dont"),
        ("caf\\'e na\\\"{\\i}ve", "caf e na ve", "cafe nave"),
        ("co-\noperate", "co operate", "cooperate"),
        ("co\u00adop\u200berate", "cooperate", "cooperate"),
        ("line\\nbreak a\\tb", "line break a b", "line a"),
        ("中文 ab中c", "中 文 ab 中 c", "中 文 ab 中 c"),
        ("one<br />two<b>three</b>", "one two three", "one two three"),
        ("a < b > c; a<b and c> d", "a b c a b and c d", "a b c ab and c d"),
        ("R&amp;D AT&T", "r d at t", "rd att"),
        ("&amp;quot;Yes&amp;quot; &amp;eacute;t&eacute;", "yes ete", "yes ete"),
        ("Straße STRASSE", "strasse strasse", "strasse strasse"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width", "full width"),
        ("a~b", "a b", "a b"),
        ("", "", ""),
        ("!? ... –", "", ""),
    ],
)
def test_what_words_are(text: str, split: str, joined: str) -> None:
    assert words_of(text) == (split.split(), joined.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is it?", ["what", "is", "it", ""]),
        ("(a) b", ["", "a", "b"]),
        ("", [""]),
        ("?", ["", ""]),
        ("a–b “c”", ["a–b", "“c”"]),
        ("voilà", ["voilà"]),
        ("\u00a0Å", ["", "Å".lower()]),
        ("co-\noperate", ["co", "operate"]),
        ("é co-\noperate", ["é", "co", "operate"]),
        ("x &amp; \\emph <br>", ["x", "amp", "emph", "br", ""]),
    ],
)
def test_helm_words_are_helms_with_its_empty_ones(text: str, expected: list[str]) -> None:
    assert words_of(text, HELM) == (expected, expected)


@settings(max_examples=100)
@given(text=TEXTS)
def test_spans_cut_whole_characters(text: str) -> None:
    content = text.encode()
    for reading in DEFAULT.words([content]):
        for start, end in reading.spans.tolist():
            assert start < end
            content[start:end].decode()


def test_only_words_with_a_letter_have_the_lowest_bit() -> None:
    split, joined = DEFAULT.words([b"12 a1 1,000 x-1 2nd 3-d"])
    assert (split.hashes & 1).tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1]
    assert (joined.hashes & 1).tolist() == [0, 1, 0, 1, 1, 1]


def test_a_saved_table_gives_the_same_words(tmp_path: Path) -> None:
    text = " ".join(PIECES).encode()
    for normalizer in (DEFAULT, HELM):
        path = str(tmp_path / normalizer.name)
        instance = Instance("s", "", "test", "1", "one two three four five six")
        build_index([instance], n=3, normalizer=normalizer).save(path)
        loaded = Index.load(path).normalizer
        assert (loaded.name, loaded.digest) == (normalizer.name, normalizer.digest)
        for one, other in zip(normalizer.words([text]), loaded.words([text]), strict=True):
            assert np.array_equal(one.hashes, other.hashes)
            assert np.array_equal(one.spans, other.spans)
    assert DEFAULT.digest != HELM.digest
