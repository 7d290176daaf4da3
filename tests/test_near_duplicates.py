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
    labels = near.components(len(made), edges.one, edges.other)
    assert (labels == reached.argmax(1)).all()
    assert 50 < len(set(labels.tolist())) < 300


def choice_of(documents, uids, *, threshold=THRESHOLD, contained=None, one_in=2):
    """What is chosen of documents as words, with all that it was chosen by."""
    made = signatures(*joined(documents), shingle=5)
    n_words = np.array([len(d) for d in documents])
    found = None
    if contained:
        samples, bounds = sampled_shingles(*joined(documents), shingle=5, one_in=one_in)
        found = near.contained_documents(samples, bounds, n_words, uids, threshold=contained)
    chosen = near.choose(made, n_words, uids, threshold=threshold, bands=32, contained=found)
    return chosen, made, found


def likeness(made):
    """Estimated similarities of all documents that share a band, 0 elsewhere."""
    similar = (made[:, None] == made[None]).mean(2)
    bands = made.reshape(len(made), 1, 32, 4)
    return similar * (bands == bands.transpose(1, 0, 2, 3)).all(3).any(2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_a_document_is_dropped_where_and_only_where_one_that_stays_is_like_it(seed, threshold):
    rng = np.random.default_rng(seed)
    documents = families(rng, 250)
    documents += [documents[int(i)][: rng.integers(30, 60)] for i in rng.integers(0, 250, 50)]
    chosen, made, found = choice_of(documents, uids_of(300), threshold=threshold, contained=0.9)
    stays = chosen.kept == np.arange(300)
    similar = likeness(made)
    held = dict(zip(zip(found.inner, found.outer, strict=True), found.share, strict=True))
    order = near.keeping_order(np.array([len(d) for d in documents]), uids_of(300))
    rank = order.argsort()
    reasons = set()
    for i in range(300):
        earlier = [j for j in np.flatnonzero(stays) if rank[j] < rank[i]]
        alike = {j: similar[i, j] for j in earlier if similar[i, j] >= threshold}
        holders = {j: held[i, j] for j in earlier if (i, j) in held}
        kept = int(chosen.kept[i])
        if alike:
            assert kept == min(alike, key=lambda j: (-alike[j], rank[j]))
            assert chosen.similarity[i] == alike[kept] and np.isnan(chosen.contained[i])
        elif holders:
            assert kept == min(holders, key=lambda j: (-holders[j], rank[j]))
            assert chosen.contained[i] == holders[kept] >= 0.9
        else:
            assert stays[i] and chosen.similarity[i] == 1
        reasons.add((bool(alike), bool(holders)))
    assert reasons >= {(False, False), (False, True), (True, True)}
    assert 40 < stays.sum() < 280


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_does_not_depend_on_the_order_of_the_documents(seed):
    rng = np.random.default_rng(1)
    documents = families(rng, 200)
    documents += [documents[3][:90], documents[5].copy()]
    documents += [documents[0]] * 200  # a bucket that is not compared pair by pair
    uids = uids_of(len(documents))
    order = np.random.default_rng(seed).permutation(len(documents))
    results = []
    for chosen in (np.arange(len(documents)), order):
        found, _, _ = choice_of([documents[i] for i in chosen], uids[chosen], contained=0.9)
        by_number = np.empty(len(documents), np.int64)
        by_number[chosen] = chosen[found.kept]
        results.append(by_number.tolist())
    assert results[0] == results[1]
    assert 10 < len(set(results[0])) < 250


def test_the_longest_is_kept_and_of_equals_the_first_by_uid():
    made = np.random.default_rng(0).integers(0, 2**32, (2, 128), dtype=np.uint32)[[0, 0, 0, 1, 1]]
    uids = np.zeros((5, 16), np.uint8)
    uids[:, 0] = [9, 5, 7, 2, 1]
    chosen = near.choose(made, np.array([10, 30, 30, 8, 8]), uids, threshold=0.8, bands=32)
    assert chosen.kept.tolist() == [1, 1, 1, 4, 4]


def drifting(n, *, n_words=400, step=14):
    """Versions of a text: each is the one before, with its next `step` words written anew."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, 2**64, n_words, dtype=np.uint64)
    for i in range(n):
        yield text.copy()
        where = np.arange(i * step, (i + 1) * step) % n_words
        text[where] = rng.integers(0, 2**64, step, dtype=np.uint64)


def test_of_a_chain_of_drifting_versions_each_that_resembles_none_that_stays_is_kept():
    documents = list(drifting(60))
    chosen, made, _ = choice_of(documents, uids_of(60), threshold=0.8)
    edges = edges_of(made, uids_of(60), threshold=0.8)
    assert set(near.components(60, edges.one, edges.other)) == {0}  # all are connected
    stays = np.flatnonzero(chosen.kept == np.arange(60))
    similar = (made[:, None] == made[None]).mean(2)
    assert (similar[np.ix_(stays, stays)] - np.eye(len(stays)) < 0.8).all()
    assert (similar[np.arange(60), chosen.kept] >= 0.8).all()
    assert 8 <= len(stays) <= 20


def test_a_document_is_not_dropped_for_one_that_is_dropped():
    rng = np.random.default_rng(0)
    story, before, after = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (2000, 100, 400))
    # The second holds the first, and is itself held by the third but for its beginning.
    documents = [
        np.concatenate([before, story[:200]]),
        np.concatenate([before, story]),
        np.concatenate([story, after]),
    ]
    chosen, _, found = choice_of(documents, uids_of(3), threshold=1.0, contained=0.9)
    assert sorted(zip(found.inner.tolist(), found.outer.tolist(), strict=True)) == [(0, 1), (1, 2)]
    assert chosen.kept.tolist() == [0, 2, 2]


def test_two_collections_that_share_a_story_are_both_kept_and_the_story_is_not():
    rng = np.random.default_rng(0)
    story, one, other = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (2000, 6000, 5000))
    documents = [np.concatenate([one, story]), story, np.concatenate([story, other]), story[:1500]]
    chosen, _, _ = choice_of(documents, uids_of(4), threshold=0.8, contained=0.9, one_in=16)
    assert chosen.kept.tolist() == [0, 0, 2, 0]


def test_a_hundred_thousand_almost_equal_documents_cost_no_pairs():
    n, rng = 100_000, np.random.default_rng(0)
    made = np.tile(rng.integers(0, 2**32, 128, dtype=np.uint32), (n, 1))
    made[np.arange(n), rng.integers(0, 128, n)] = rng.integers(0, 2**32, n, dtype=np.uint32)
    made[::2, 64:] = rng.integers(0, 2**32, 64, dtype=np.uint32)
    uids, n_words = uids_of(n), rng.integers(40, 60, n)
    edges = near.band_edges(band_hashes(made, bands=32, rows=4)[0], made, uids, threshold=THRESHOLD)
    assert len(edges.one) < 3 * n
    chosen = near.choose(made, n_words, uids, threshold=THRESHOLD, bands=32)
    assert len(set(chosen.kept.tolist())) == 2
    assert (chosen.similarity >= THRESHOLD).all()


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
    labels = near.components(n, edges.one, edges.other)
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
    kept = near.choose(made, n_words, uids, threshold=0.8, bands=32, contained=found).kept
    pairs = [(int(i), int(kept[i])) for i in np.flatnonzero(kept != np.arange(len(kept)))]
    assert all(len(editions & set(pair)) == 1 for pair in pairs)
    assert len(pairs) == len(editions) == len(set.union(*map(set, pairs)) & editions)
    (volume,) = ((i, j) for i, j in pairs if (made[i] == made[j]).mean() < 0.5)
    assert [titles[i] for i in volume] == ["Brown by Vernon Lee", "Miss Brown by Lee, Vernon"]
