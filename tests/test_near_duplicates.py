"""Near duplicates against brute force, and on real editions of novels."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from test_minhash import joined, perturbed

from decontam.bands import band_hashes
from decontam.minhash import EMPTY, sampled_shingles, signatures
from pipelines import near_duplicates as near

THRESHOLD = 0.6


def uids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def edges_of(made, uids, *, bands=32, rows=4, threshold=THRESHOLD):
    hashes = band_hashes(made, bands=bands, rows=rows)
    return near.join_edges(
        [near.band_edges(band, made, uids, threshold=threshold) for band in hashes]
    )


def families(rng, n):
    """Documents of which many descend from another by replacing some words."""
    documents = []
    for i in range(n):
        if i and rng.random() < 0.7:
            parent = documents[rng.integers(0, i)]
            documents.append(perturbed(rng, parent, rng.choice([0.0, 0.02, 0.05, 0.1, 0.5])))
        else:
            documents.append(rng.integers(0, 2**64, rng.integers(50, 200), dtype=np.uint64))
    return documents


def as_sets(labels):
    return {tuple(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}


def test_components_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    made = signatures(*joined(families(rng, 400)), shingle=5)
    similar = (made[:, None] == made[None]).mean(2) >= THRESHOLD
    bands = made.reshape(len(made), 1, 32, 4)
    similar &= (bands == bands.transpose(1, 0, 2, 3)).all(3).any(2)
    reached = similar
    for _ in range(9):
        reached = (reached.astype(np.float32) @ reached) > 0
    edges = edges_of(made, uids_of(len(made)))
    assert set(zip(edges.one, edges.other, strict=True)) == set(
        zip(*np.nonzero(np.triu(similar, 1)), strict=True)
    )
    labels = near.components(len(made), edges)
    assert (labels == reached.argmax(1)).all()
    assert 50 < len(set(labels.tolist())) < 300


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_does_not_depend_on_the_order_of_the_documents(seed):
    rng = np.random.default_rng(1)
    documents = families(rng, 200)
    documents += [documents[3][:90], documents[5].copy()]
    documents += [documents[0]] * 200  # a bucket that is not compared pair by pair
    made = signatures(*joined(documents), shingle=5)
    uids, n_words = uids_of(len(made)), np.array([len(d) for d in documents])
    order = np.random.default_rng(seed).permutation(len(made))
    results = []
    for chosen in (np.arange(len(made)), order):
        labels = near.components(len(made), edges_of(made[chosen], uids[chosen]))
        samples, bounds = sampled_shingles(
            *joined([documents[i] for i in chosen]), shingle=5, one_in=2
        )
        lengths = n_words[chosen]
        found = near.contained_documents(samples, bounds, lengths, uids[chosen], threshold=0.9)
        kept = near.replacements(labels, lengths, uids[chosen], found)
        by_number = np.empty(len(kept), np.int64)
        by_number[chosen] = chosen[kept]
        results.append(by_number.tolist())
    assert results[0] == results[1]
    assert 10 < len(set(results[0])) < 250


def test_the_longest_is_kept_and_of_equals_the_first_by_uid():
    labels = np.array([0, 0, 0, 3, 3])
    uids = np.zeros((5, 16), np.uint8)
    uids[:, 0] = [9, 5, 7, 2, 1]
    kept = near.replacements(labels, np.array([10, 30, 30, 8, 8]), uids)
    assert kept.tolist() == [1, 1, 1, 4, 4]


def test_two_collections_that_share_a_story_are_both_kept_and_the_story_is_not():
    rng = np.random.default_rng(0)
    story, one, other = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (2000, 6000, 5000))
    documents = [np.concatenate([one, story]), story, np.concatenate([story, other]), story[:1500]]
    uids, n_words = uids_of(4), np.array([len(d) for d in documents])
    samples, bounds = sampled_shingles(*joined(documents), shingle=5, one_in=16)
    found = near.contained_documents(samples, bounds, n_words, uids, threshold=0.9)
    assert near.replacements(np.arange(4), n_words, uids, found).tolist() == [0, 0, 2, 0]


def test_documents_without_words_are_no_duplicates_of_each_other():
    made = np.full((50, 128), EMPTY, np.uint32)
    assert not len(edges_of(made, uids_of(50)).one)


def test_a_bucket_of_many_thousand_documents_costs_no_pairs():
    n = 30_000
    made = np.tile(np.random.default_rng(0).integers(0, 2**32, 128, dtype=np.uint32), (n, 1))
    made[1::2, 64:] = np.random.default_rng(1).integers(0, 2**32, 64, dtype=np.uint32)
    uids = uids_of(n)
    edges = near.band_edges(np.zeros(n, np.uint64), made, uids, threshold=THRESHOLD)
    assert len(edges.one) == n - 2
    labels = near.components(n, edges)
    assert as_sets(labels) == {tuple(range(0, n, 2)), tuple(range(1, n, 2))}


def books(path):
    """Word hashes of the books of a file, and their titles."""
    with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
        lines = stream.read().splitlines()
    known: dict[str, int] = {}
    documents, titles = [], []
    for line in map(json.loads, lines):
        found = re.findall(r"\w+", line["text"].lower())
        hashes = [
            known.get(w) or known.setdefault(w, xxhash.xxh3_64_intdigest(w.encode())) for w in found
        ]
        documents.append(np.array(hashes, np.uint64))
        titles.append(line["meta"]["short_book_title"])
    return documents, titles


def test_all_other_editions_of_the_novels_are_found_and_no_other_pair(shared_data):
    old, titles = books(shared_data / "books" / "rp_book_train.jsonl.zst")
    new, more = books(shared_data / "books" / "rp_book_neardup_of_train.jsonl.zst")
    other, rest = books(shared_data / "books" / "rp_book_heldout_pg19like.jsonl.zst")
    documents, titles = old + new + other, titles + more + rest
    hashes, offsets = joined(documents)
    made, uids, n_words = (
        signatures(hashes, offsets, shingle=5),
        uids_of(len(documents)),
        np.diff(offsets),
    )
    editions = set(range(len(old), len(old) + len(new)))

    edges = edges_of(made, uids, threshold=0.8)
    assert {titles[i] for i in editions - set(edges.other)} == {"Miss Brown by Lee, Vernon"}
    assert (edges.one < len(old)).all() and set(edges.other) < editions
    assert len(edges.one) == len(new) - 1

    # Its partner is the first volume alone: a third of the words, all of them in it.
    samples, bounds = sampled_shingles(hashes, offsets, shingle=5, one_in=256)
    found = near.contained_documents(samples, bounds, n_words, uids, threshold=0.8)
    kept = near.replacements(near.components(len(documents), edges), n_words, uids, found)
    pairs = [(int(i), int(kept[i])) for i in np.flatnonzero(kept != np.arange(len(kept)))]
    assert all(len(editions & set(pair)) == 1 for pair in pairs)
    assert len(pairs) == len(editions) == len(set.union(*map(set, pairs)) & editions)
    (volume,) = ((i, j) for i, j in pairs if (made[i] == made[j]).mean() < 0.5)
    assert [titles[i] for i in volume] == ["Brown by Vernon Lee", "Miss Brown by Lee, Vernon"]
