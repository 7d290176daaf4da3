"""Signatures, banded search and windows against datasketch, theory and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decontam.bands import band_hashes
from decontam.candidates import top_candidates
from decontam.lsh import Lsh
from decontam.minhash import EMPTY, is_empty, sampled_shingles, shingle_hashes, signatures
from decontam.windows import WindowIndex


def words(rng, *lengths):
    """Random words of documents of these lengths, and their offsets."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return rng.integers(0, 2**64, int(offsets[-1]), dtype=np.uint64), offsets


def joined(documents):
    """Word arrays as one, and their offsets."""
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])]).astype(np.int64)
    return np.concatenate(documents), offsets


def perturbed(rng, document, share):
    """The document with a share of its words replaced."""
    other = document.copy()
    places = rng.random(len(other)) < share
    other[places] = rng.integers(0, 2**64, int(places.sum()), dtype=np.uint64)
    return other


def jaccard(one, other):
    return len(np.intersect1d(one, other)) / len(np.union1d(one, other))


def pairs(rng, n, shingle, n_words=300):
    """Documents 2i and 2i + 1 are perturbed pairs; their true similarities."""
    documents = []
    for _ in range(n):
        document = rng.integers(0, 2**64, n_words, dtype=np.uint64)
        documents += [document, perturbed(rng, document, rng.random() * 0.25)]
    hashes, offsets = joined(documents)
    shingles, bounds = shingle_hashes(hashes, offsets, shingle=shingle)
    parts = np.split(shingles, bounds[1:-1])
    true = np.array([jaccard(parts[2 * i], parts[2 * i + 1]) for i in range(n)])
    return hashes, offsets, true


@pytest.mark.parametrize(
    ("shingle", "permutations", "seed"), [(5, 128, 1), (1, 128, 7), (13, 96, 42)]
)
def test_signatures_are_bit_identical_to_datasketch(shingle, permutations, seed):
    datasketch = pytest.importorskip("datasketch", minversion="2.0")
    lengths = [*range(40), 511, 512, 513, 516, 517, 3000]
    hashes, offsets = words(np.random.default_rng(seed), *lengths)
    ours = signatures(hashes, offsets, shingle=shingle, permutations=permutations, seed=seed)
    shingles, bounds = shingle_hashes(hashes, offsets, shingle=shingle)
    for d in range(len(lengths)):
        reference = datasketch.MinHash(num_perm=permutations, seed=seed, hashfunc=int)
        reference.update_batch((shingles[bounds[d] : bounds[d + 1]] & 0xFFFFFFFF).tolist())
        assert (reference.hashvalues == ours[d]).all(), f"{lengths[d]} words"


def test_the_shingles_are_the_runs_of_words_and_nothing_else():
    a, b, c, d = np.arange(1, 5, dtype=np.uint64) * 0x1234567
    hashes, offsets = joined([np.array(x) for x in ([a, b, c, d], [b, c, d, a], [c, b, a, d])])
    shingles, bounds = shingle_hashes(hashes, offsets, shingle=3)
    first, second, third = np.split(shingles, bounds[1:-1])
    assert first[1] == second[0]  # b c d
    assert len({*first, *second, *third}) == 5


def test_a_document_shorter_than_a_shingle_is_one_shingle():
    hashes, _ = words(np.random.default_rng(0), 20)
    short = signatures(hashes[:3], np.array([0, 3]), shingle=5)
    assert (short == signatures(hashes[:3], np.array([0, 3]), shingle=3)).all()
    assert (short != signatures(hashes[:4], np.array([0, 4]), shingle=5)).any()


def test_a_document_without_words_resembles_nothing_not_even_itself():
    hashes, offsets = words(np.random.default_rng(0), 0, 50, 0)
    made = signatures(hashes, offsets, shingle=5)
    assert (made[[0, 2]] == EMPTY).all()
    assert is_empty(made).tolist() == [True, False, True]
    found = Lsh.build(made).query(made, threshold=0.0)
    assert list(zip(found.query, found.signature, strict=True)) == [(1, 1)]
    index = WindowIndex.build(hashes, offsets, shingle=5)
    assert index.search(hashes, offsets, threshold=0.0).entry.tolist() == [1]


@pytest.mark.parametrize(
    ("offsets", "shingle"), [([0, 11], 5), ([-1, 5], 5), ([0, 6, 4, 10], 5), ([0, 10], 0)]
)
def test_offsets_that_do_not_fit_are_refused(offsets, shingle):
    with pytest.raises(ValueError, match=r"10 words there are|at least one"):
        signatures(np.zeros(10, np.uint64), np.array(offsets), shingle=shingle)


@pytest.mark.parametrize("shingle", [5, 13])
def test_estimates_are_unbiased_and_as_exact_as_theory_says(shingle):
    hashes, offsets, true = pairs(np.random.default_rng(shingle), 1500, shingle)
    made = signatures(hashes, offsets, shingle=shingle)
    estimate = (made[::2] == made[1::2]).mean(1)
    deviation = (estimate - true) / np.sqrt(np.maximum(true * (1 - true), 1e-3) / 128)
    assert abs(deviation.mean()) < 4 / np.sqrt(len(true))
    assert 0.92 < deviation.std() < 1.08


@pytest.mark.parametrize(("bands", "rows"), [(32, 4), (16, 8), (9, 13)])
def test_recall_of_bands_is_that_of_theory(bands, rows):
    hashes, offsets, true = pairs(np.random.default_rng(1), 2000, 5)
    made = signatures(hashes, offsets, shingle=5)
    found = Lsh.build(made[::2], bands=bands, rows=rows).query(made[1::2], threshold=0.0)
    hit = np.zeros(len(true), bool)
    hit[found.query[found.query == found.signature]] = True
    theory = 1 - (1 - true**rows) ** bands
    for low in np.arange(0, 1, 0.1):
        bin = (true >= low) & (true < low + 0.1)
        deviation = np.sqrt((theory[bin] * (1 - theory[bin])).sum() + 1)
        assert abs(hit[bin].sum() - theory[bin].sum()) < 4 * deviation


def test_the_search_by_bands_finds_what_comparing_bands_finds():
    rng = np.random.default_rng(2)
    made = rng.integers(0, 3, (300, 12), dtype=np.uint32)  # many equal bands
    groups = rng.integers(0, 3, 300).astype(np.uint8)
    index = Lsh.build(made[:200], bands=4, rows=3, groups=groups[:200])
    found = index.query(made[200:], threshold=0.5, groups=groups[200:])
    cut = made.reshape(300, 4, 3)
    expected = [
        (q, s, int((made[200 + q] == made[s]).sum()))
        for q in range(100)
        for s in range(200)
        if groups[200 + q] == groups[s]
        and (cut[200 + q] == cut[s]).all(1).any()
        and (made[200 + q] == made[s]).mean() >= 0.5
    ]
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected
    assert len(expected) > 20


def test_bands_of_an_odd_number_of_rows_are_equal_where_their_rows_are():
    made = np.random.default_rng(0).integers(0, 2, (400, 20), dtype=np.uint32)
    hashes = band_hashes(made, bands=4, rows=5)
    for band in range(4):
        rows = made[:, 5 * band : 5 * band + 5]
        same = (rows[:, None] == rows[None]).all(2)
        assert ((hashes[band][:, None] == hashes[band][None]) == same).all()
    assert len(np.unique(hashes)) == 4 * 32, "the same rows in another band are another hash"


def test_an_index_is_the_same_after_saving(tmp_path):
    hashes, offsets = words(np.random.default_rng(0), *range(10, 400, 10))
    index = WindowIndex.build(hashes, offsets, shingle=5)
    for name, array in index.arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
    loaded = WindowIndex.from_arrays(
        {path.stem: np.load(path, mmap_mode="r") for path in tmp_path.iterdir()}
    )
    found, again = (i.search(hashes, offsets, threshold=0.5) for i in (index, loaded))
    assert all((a == b).all() for a, b in zip(found, again, strict=True))
    assert found.entry.tolist() == list(range(39))


@pytest.mark.parametrize("damage", ["keys", "first", "filter", "entry", "owners", "sections"])
def test_arrays_that_do_not_fit_together_are_refused(damage):
    hashes, offsets = words(np.random.default_rng(0), 50, 60, 70)
    arrays = WindowIndex.build(hashes, offsets, shingle=5).arrays()
    arrays[damage] = arrays[damage][:-1]
    with pytest.raises(ValueError, match="do not fit together"):
        WindowIndex.from_arrays(arrays)


@pytest.mark.parametrize("length", [30, 36, 40, 68, 100, 132, 200, 260, 700])
def test_a_text_is_found_wherever_it_stands_in_a_long_document(length):
    rng = np.random.default_rng(length)
    entries, bounds = words(rng, *[length] * 300)
    documents, offsets = words(rng, *[30_000] * 300)
    starts = rng.integers(0, 30_000 - length + 1, 300)
    starts[:40] = np.arange(40)
    starts[40:80] = 30_000 - length - np.arange(40)
    for d, start in enumerate(starts):
        documents[offsets[d] + start :][:length] = entries[bounds[d] : bounds[d + 1]]
    index = WindowIndex.build(entries, bounds, shingle=5)
    found = index.search(documents, offsets, threshold=0.3)
    assert (found.document == found.entry).all()
    assert len(found.document) >= 290  # expected: 87 % at J = 0.5, more above it
    at = starts[found.document]
    assert ((found.start < at + length) & (found.end > at)).all(), "the window is where the text is"


def test_the_signature_of_a_whole_document_does_not_show_what_its_windows_show():
    rng = np.random.default_rng(0)
    entry = rng.integers(0, 2**64, 30, dtype=np.uint64)
    document = rng.integers(0, 2**64, 30_000, dtype=np.uint64)
    document[12_345:12_375] = entry
    made = signatures(*joined([entry, document]), shingle=5)
    assert (made[0] == made[1]).mean() < 0.05
    assert not len(Lsh.build(made[:1]).query(made[1:], threshold=0.0).query)
    index = WindowIndex.build(*joined([entry]), shingle=5)
    found = index.search(*joined([document]), threshold=0.4)
    assert found.entry.tolist() == [0]
    assert found.start[0] < 12_375 and found.end[0] > 12_345


def test_windows_are_those_of_the_definition():
    """Each size and place against the signature of the window's own words."""
    rng = np.random.default_rng(5)
    for n_words in (1, 4, 5, 20, 21, 37, 52, 100, 1028, 1029, 1155, 2600):
        document = rng.integers(0, 2**64, n_words, dtype=np.uint64)
        expected = []
        for size in (32, 64, 128, 256):
            starts = [
                s for s in range(0, n_words, size // 2) if s == 0 or s + size // 2 + 4 < n_words
            ]
            expected += [(s, min(s + size + 4, n_words)) for s in starts]
        texts = [document[a:b] for a, b in expected]
        index = WindowIndex.build(*joined(texts), shingle=5)
        found = index.search(*joined([document]), threshold=1.0)
        assert sorted(set(found.entry.tolist())) == list(range(len(texts))), n_words
        assert (found.similarity == 1).all()
        for entry, start, end in zip(found.entry, found.start, found.end, strict=True):
            assert (start, end) == expected[entry]


def test_a_short_document_is_a_window_of_its_own():
    rng = np.random.default_rng(0)
    hashes, offsets = words(rng, *rng.integers(1, 250, 200))
    found = WindowIndex.build(hashes, offsets, shingle=5).search(hashes, offsets, threshold=1.0)
    assert found.document.tolist() == found.entry.tolist() == list(range(200))
    assert (found.end - found.start == np.diff(offsets)).all()


def test_matches_do_not_depend_on_what_else_is_in_the_batch():
    rng = np.random.default_rng(3)
    entries, bounds = words(rng, *rng.integers(20, 400, 50))
    documents = [
        np.concatenate([perturbed(rng, entries[bounds[e] : bounds[e + 1]], 0.02) for e in chosen])
        for chosen in rng.integers(0, 50, (20, 30))
    ]
    index = WindowIndex.build(entries, bounds, shingle=5)
    together = index.search(*joined(documents), threshold=0.3)
    assert len(together.entry) > 300
    alone = [index.search(*joined([d]), threshold=0.3) for d in documents]
    for column in ("entry", "start", "end", "similarity"):
        separate = np.concatenate([getattr(found, column) for found in alone])
        assert (separate == getattr(together, column)).all()


@given(data=st.data())
@settings(max_examples=100)
def test_the_best_of_the_best_of_batches_are_the_best_of_all(data):
    n = data.draw(st.integers(0, 60))
    column = lambda low, high: np.array(  # noqa: E731
        data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n)), np.int64
    )
    entry, equal, batch = column(0, 3), column(0, 4), column(0, 3)
    uids = np.zeros((n, 16), np.uint8)
    uids[:, 3], uids[:, 12] = column(0, 2), column(0, 9)
    limit = data.draw(st.integers(1, 5))
    kept = [
        part[top_candidates(entry[part], equal[part], uids[part], limit=limit)]
        for part in (np.flatnonzero(batch == b) for b in data.draw(st.permutations(range(4))))
    ]
    merged = np.concatenate(kept)
    best = merged[top_candidates(entry[merged], equal[merged], uids[merged], limit=limit)]
    whole = top_candidates(entry, equal, uids, limit=limit)
    rows = lambda chosen: [(entry[i], -equal[i], uids[i].tobytes()) for i in chosen]  # noqa: E731
    assert rows(best) == rows(whole)
    every = sorted(
        {(e, u): (e, s, u) for e, s, u in sorted(rows(range(n)), key=lambda r: -r[1])}.values()
    )
    assert rows(whole) == [
        r for i, r in enumerate(every) if sum(x[0] == r[0] for x in every[:i]) < limit
    ]


def test_samples_hold_the_same_shingles_of_every_document():
    hashes, _ = words(np.random.default_rng(0), 50_000)
    nested, offsets = joined([hashes, hashes[1000:21_000], hashes[:0], hashes[:20]])
    samples, bounds = sampled_shingles(nested, offsets, shingle=5, one_in=16)
    whole, part, empty, _ = np.split(samples, bounds[1:-1])
    assert set(part) <= set(whole)
    assert 1100 < len(part) < 1400
    assert not len(empty)
    assert (np.diff(whole.astype(object)) > 0).all()
