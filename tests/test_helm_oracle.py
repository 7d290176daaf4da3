"""The same benchmark items in the same documents as HELM's own overlap tool finds.

Needs the real data beside the checkout: HELM's inputs (light scenarios, 3,449 documents) and what
its tool (`scripts/data_overlap`) wrote for them with n = 5, 9, 10 and 13.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from plain_decontam import ngrams, words

from decontam.index import Index
from decontam.index_build import build_index
from decontam.normalize import Normalizer, join_texts
from decontam.records import Instance
from decontam.search import Searcher
from decontam.search_kernels import NGRAM, carry_words, search
from decontam.word_kernels import new_stream

Key = tuple[str, str, str]
"""Scenario, split and part."""

Found = dict[Key, set[str]]


class Oracle(NamedTuple):
    """What HELM's tool read and found."""

    instances: list[Instance]
    documents: list[bytes]
    found: dict[int, Found]
    """By n."""

    counts: dict[int, Counter[tuple[tuple[str, str, str, str], tuple[str, ...]]]]
    """By n: how often each n-gram of each text stands in the documents."""


def rows(path: Path) -> list[dict[str, Any]]:
    content = pa.CompressedInputStream(str(path), "zstd").read()
    return [json.loads(line) for line in content.splitlines() if line]


def scenario_of(key: dict[str, Any]) -> str:
    spec = key["scenario_spec"]
    return spec["class_name"].rsplit(".", 1)[-1] + json.dumps(spec["args"])


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    from conftest import SHARED_DATA

    folder = SHARED_DATA / "helm" / "oracle"
    if not folder.is_dir():
        pytest.skip("HELM's own results (shared/data/helm/oracle beside the checkout) are not here")
    instances: list[Instance] = []
    for light in rows(folder / "light_scenarios.jsonl.zst"):
        key = light["scenario_key"]
        for item in light["instances"]:
            references = tuple(item["references"])
            text = (scenario_of(key), "", key["split"], item["id"], item["input"])
            instances.append(Instance(*text, references, (True,) * len(references)))
    documents = [row["text"].encode() for row in rows(folder / "train.jsonl.zst")]
    found: dict[int, Found] = {}
    for name in ("helm_stats_n10_13.jsonl.zst", "helm_stats_n5_9_13.jsonl.zst"):
        for row in rows(folder / name):
            stats = row["data_overlap_stats_key"]
            light, n = stats["light_scenario_key"], stats["overlap_protocol_spec"]["n"]
            for part in ("input", "reference"):
                ids = set(row[f"instance_ids_with_overlapping_{part}"])
                found.setdefault(n, {})[scenario_of(light), light["split"], part] = ids
    return Oracle(instances, documents, found, _counts(folder))


def _counts(folder: Path) -> dict[int, Counter[Any]]:
    counts: dict[int, Counter[Any]] = {}
    for row in rows(folder / "helm_stats_n10_13_ngrams.jsonl.zst"):
        entry = row["entry_data_overlap_key"]
        light = entry["stats_key"]["light_scenario_key"]
        n = entry["stats_key"]["overlap_protocol_spec"]["n"]
        part = entry["part"].removesuffix("s")
        place = scenario_of(light), light["split"], part, entry["instance_id"]
        for ngram, count in row["overlapping_ngram_counts"]:
            counts.setdefault(n, Counter())[place, tuple(ngram)] += count
    return counts


def index_of(oracle: Oracle, name: str, n: int) -> Index:
    return build_index(oracle.instances, n=n, normalizer=Normalizer.of(name))


def found_by(index: Index, documents: list[bytes]) -> Found:
    """Instances found by n-grams; boilerplate too, whole texts not: HELM has neither notion."""
    numbers = {
        int(entry)
        for found in Searcher(index).search(documents)
        for entry, rule in found.entries.tolist()
        if rule != 1
    }
    result: Found = {}
    for number in numbers:
        entry = index.entries[number]
        result.setdefault((entry.scenario, entry.split, entry.part), set()).add(entry.instance)
    return result


@pytest.mark.parametrize("n", [5, 9, 10, 13])
def test_helm_normalization_finds_exactly_what_helm_finds(oracle: Oracle, n: int) -> None:
    found, expected = found_by(index_of(oracle, "helm", n), oracle.documents), oracle.found[n]
    assert sum(map(len, expected.values())) > 300
    assert found.keys() <= expected.keys()
    for key, ids in expected.items():
        assert found.get(key, set()) == ids, key


@pytest.mark.parametrize("n", [10, 13])
def test_every_n_gram_is_found_as_often_as_helm_finds_it(oracle: Oracle, n: int) -> None:
    index = index_of(oracle, "helm", n)
    data, bounds = join_texts(oracle.documents)
    stream = new_stream(carry_words(n))
    hits, _ = search(data, bounds, index.normalizer.tables, index.kernel_arrays, stream)
    payloads, times = np.unique(hits[hits[:, 3] == NGRAM, 4], return_counts=True)
    places = index.occurrences(payloads)
    found: Counter[Any] = Counter()
    seen: set[Any] = set()
    for hit, word, sequence in zip(*(column.tolist() for column in places), strict=True):
        begin, number = index.arrays.sequences[sequence].tolist()[:2]
        entry = index.entries[number]
        ngram = ngrams(words(entry.text.encode(), "helm")[0], n)[word - begin]
        place = entry.scenario, entry.split, entry.part, entry.instance
        if (place, ngram) not in seen:
            found[place, ngram] += int(times[hit])
            seen.add((place, ngram))
    assert found == oracle.counts[n]


@pytest.mark.parametrize(
    ("n", "missing", "more"),
    [
        (10, {("computer_security", "id31")}, {("philosophy", "id89")}),
        (13, {("computer_security", "id94")}, {("philosophy", "id140"), ("longans", "id1114")}),
    ],
)
def test_the_default_normalization_differs_in_these_instances_alone(
    oracle: Oracle, n: int, missing: set[tuple[str, str]], more: set[tuple[str, str]]
) -> None:
    """id31 and id94 begin with a blank (`_____ is …`), which HELM counts as a word: of words they
    have 9 and 12. id89 and id140 reach n words by a curly apostrophe, which HELM does not split
    at, and id1114 because a dash between spaces is a word to HELM, and differs there."""
    found, expected = found_by(index_of(oracle, "default", n), oracle.documents), oracle.found[n]
    differences: tuple[set[tuple[str, str]], ...] = set(), set()
    for key, ids in expected.items():
        got = found.get(key, set())
        name = key[0].split('"')[-2].removeprefix("openbook_") if '"' in key[0] else key[0]
        differences[0].update((name, i) for i in ids - got)
        differences[1].update((name, i) for i in got - ids)
    assert differences == (missing, more)
