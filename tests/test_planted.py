"""Benchmark text planted in documents is found whatever a copy went through: all of it."""

from __future__ import annotations

import html
import json
import random
import re
import unicodedata
from collections.abc import Callable

import pyarrow as pa
import pytest
from conftest import SHARED_DATA, prose

from decontam.index import Index
from decontam.index_build import build_index
from decontam.normalize import Normalizer
from decontam.policy import Decontaminator, Policy
from decontam.records import Instance
from decontam.search import Searcher

N = 10
A_SCENARIO = 16


def lines_of(words: int) -> Callable[[str], str]:
    def edit(text: str) -> str:
        parts = text.split()
        return "\n".join(" ".join(parts[i : i + words]) for i in range(0, len(parts), words))

    return edit


def inside(mark: str) -> Callable[[str], str]:
    """Put a mark into the middle of long words of letters."""
    return lambda text: re.sub(r"\b([a-zA-Z]{3})([a-zA-Z]{3,})\b", rf"\1{mark}\2", text)


def replaced(*pairs: tuple[str, str]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        for old, new in pairs:
            text = text.replace(old, new)
        return text

    return edit


def full_width(text: str) -> str:
    """Letters and digits; TeX commands stay, since full-width letters make no command."""

    def widen(match: re.Match[str]) -> str:
        if match[0][0] == "\\":
            return match[0]
        return "".join(chr(ord(c) + 0xFEE0) for c in match[0])

    return re.sub(r"\\[A-Za-z]+|[A-Za-z0-9]+", widen, text)


EDITS: dict[str, Callable[[str], str]] = {
    "verbatim": lambda text: text,
    "upper case": str.upper,
    "lower case": str.lower,
    "punctuation deleted": lambda text: re.sub(r"(?<=\w)[.,;:!?'\"-](?=\w|\s|$)", "", text),
    "punctuation to spaces": lambda text: re.sub(r"[.,;:!?'\"()-]", " ", text),
    "curly": replaced(("'", "’"), ('"', "”"), ("-", "–"), ("--", "—")),
    "8 words a line": lines_of(8),
    "a word a line": lines_of(1),
    "bullets": lambda text: " - ".join(text.split()),
    "hyphenated": inside("-\n"),
    "hyphenated, indented": inside("-\r\n  "),
    "soft hyphens": inside("\u00ad"),
    "zero width": inside("\u200b"),
    "&shy;": inside("&shy;"),
    "LaTeX": lambda text: re.sub(
        r"(\w+) (\w+)", r"\\emph{\1} \2", replaced(("&", r"\&"), ("%", r"\%"), ("é", r"\'e"))(text)
    ),
    "LaTeX ties and dashes": lambda text: text.replace(" - ", " -- ").replace(" ", "~"),
    "entities": lambda text: html.escape(text).replace("é", "&eacute;"),
    "escaped twice": lambda text: html.escape(html.escape(text)),
    "numeric entities": replaced(("'", "&#39;"), ('"', "&#x22;"), ("e", "&#101;")),
    "<br/>": lambda text: "<br/>".join(text.split()),
    "tags": lambda text: re.sub(r"(\w+) (\w+)", r'<b>\1</b> <a href="x">\2</a>', text),
    "NBSP": lambda text: text.replace(" ", "\u00a0"),
    "&nbsp;": lambda text: text.replace(" ", "&nbsp;"),
    "ligatures": replaced(("ffi", "ﬃ"), ("fi", "ﬁ"), ("fl", "ﬂ"), ("ff", "ﬀ")),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "without accents": lambda text: "".join(
        c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)
    ),
    "full width": full_width,
}

NAMES = "Agnès of Kraków", "the café's owner", "an e-mail well-known officer", "Zoë & Chloë"


def made_up() -> list[Instance]:
    """Questions and passages with questions, with none to four references."""
    rng = random.Random(11)
    instances: list[Instance] = []
    for shape in range(12):
        for number in range(3 * A_SCENARIO):
            question = f"{rng.choice(NAMES)} {prose(rng, rng.randint(12, 30))} first, finally?"
            passage = "" if shape % 3 else prose(rng, 150) + " "
            references = tuple(prose(rng, rng.choice([1, 3, 14])) for _ in range(shape % 5))
            correct = tuple(i == 0 for i in range(len(references)))
            at = len(passage)
            instances.append(
                Instance(
                    f"shape{shape}", "", "test", str(number),
                    passage + question, references, correct, at,
                )
            )  # fmt: skip
    return instances


def light_scenarios() -> list[Instance]:
    """HELM's core scenarios, some instances of each, where a checkout has them."""
    path = SHARED_DATA / "helm" / "light_scenarios_core.jsonl.zst"
    if not path.is_file():
        return []
    rng = random.Random(12)
    instances: list[Instance] = []
    for line in pa.CompressedInputStream(str(path), "zstd").read().splitlines():
        row = json.loads(line)
        name = json.dumps(row["scenario_key"])
        for item in rng.sample(row["instances"], min(3, len(row["instances"]))):
            refs = tuple(item["references"])
            instances.append(
                Instance(name, "", "", item["id"], item["input"], refs, (True,) * len(refs))
            )
    return instances


@pytest.fixture(scope="module", params=["made up", "HELM"])
def benchmark(request: pytest.FixtureRequest) -> tuple[Index, list[str]]:
    """An index, and texts of at least N words in both readings that stand in it."""
    instances = made_up() if request.param == "made up" else light_scenarios()
    if not instances:
        pytest.skip("HELM's scenarios (shared/data/helm beside the checkout) are not here")
    texts = [text for i in instances for text in (i.input, *i.references[:1])]
    split, joined = Normalizer.of("default").words([text.encode() for text in texts])
    long = [
        text
        for i, text in enumerate(texts)
        if len(split.of(i).hashes) >= N and len(joined.of(i).hashes) >= N
    ]
    return build_index(instances, n=N), [text[:2000] for text in long]


@pytest.mark.parametrize("edit", EDITS)
def test_every_planted_text_is_found(benchmark: tuple[Index, list[str]], edit: str) -> None:
    index, texts = benchmark
    rng = random.Random(edit)
    documents: list[bytes] = []
    for number, text in enumerate(texts):
        planted, side = EDITS[edit](text), prose(rng, rng.choice([5, 200]))
        around = [(f"{side}\n", ""), ("", f"\n{side}"), (f"{side}\n", f"\n{side}")][number % 3]
        documents.append(planted.join(around).encode())
    found = Searcher(index).search(documents)
    missed = [texts[i] for i, one in enumerate(found) if not (one.spans or one.boilerplate)]
    assert len(texts) > 200
    assert missed == []


@pytest.mark.parametrize("action", ["drop", "excise", "threshold"])
def test_every_policy_acts_on_all_that_is_planted(
    benchmark: tuple[Index, list[str]], action: str
) -> None:
    index, texts = benchmark
    policy = Policy(action=action, boilerplate="drop")
    side = "w " * 50
    documents = [f"{side}\n{text}\n{side}".encode() for text in texts]
    for document, verdict in zip(
        documents, Decontaminator(index, policy).check(documents), strict=True
    ):
        assert verdict.kept != [(0, len(document))]


def test_all_are_found_within_one_long_document(benchmark: tuple[Index, list[str]]) -> None:
    index, texts = benchmark
    filler = (prose(random.Random(2), 400) + "\n") * (5_000_000 // 2200 // len(texts) + 1)
    document, places = b"", []
    for text in texts:
        document += filler.encode()
        places.append((len(document), len(document) + len(text.encode())))
        document += text.encode() + b"\n"
    assert len(document) > 5_000_000
    (found,) = Searcher(index).search([document])
    spans = [*found.spans, *found.boilerplate]
    missed = [p for p in places if not any(s < p[1] and p[0] < e for s, e in spans)]
    assert missed == []
