"""XXH3 in numpy equals the package, which a machine that only reads shards need not have."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.xxh3 import SHORTEST, hash_rows, xxh3_64


def rows_of(n: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size), np.uint8)


def expected(rows: np.ndarray) -> list[int]:
    return [xxhash.xxh3_64_intdigest(row.tobytes(), seed=0) for row in rows]


@settings(max_examples=250)
@given(size=st.integers(SHORTEST, 6000), n=st.integers(1, 4), seed=st.integers(0, 99))
@example(size=241, n=1, seed=0)
@example(size=1023, n=2, seed=0)
@example(size=1024, n=2, seed=0)
@example(size=1025, n=2, seed=0)
@example(size=1024 + 64, n=2, seed=0)
@example(size=2048, n=3, seed=0)
@example(size=65_536, n=3, seed=1)
def test_any_length_above_240_bytes(size, n, seed):
    rows = rows_of(n, size, seed)
    assert xxh3_64(rows).tolist() == expected(rows)


@pytest.mark.parametrize("byte", [0, 255])
@pytest.mark.parametrize("size", [256, 1024, 4096, 65_536])
def test_constant_rows(byte, size):
    rows = np.full((2, size), byte, np.uint8)
    assert xxh3_64(rows).tolist() == expected(rows)


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i8"])
def test_rows_of_any_integer_type_are_hashed_by_their_bytes(dtype):
    rows = rows_of(3, 4096, 7).view(dtype)
    assert xxh3_64(rows).tolist() == hash_rows(rows).tolist() == expected(rows)


def test_rows_in_parts_are_hashed_as_rows_in_one():
    rows = rows_of(70, 65_536, 3)  # more than twice what is hashed at a time
    assert xxh3_64(rows).tolist() == expected(rows)


def test_views_that_skip_bytes_are_hashed_as_their_copies():
    rows = rows_of(6, 4000, 5)[::2, 100:700]
    assert xxh3_64(rows).tolist() == hash_rows(rows).tolist() == expected(rows)


def test_no_rows_have_no_hashes():
    assert xxh3_64(rows_of(0, 512, 0)).shape == hash_rows(rows_of(0, 512, 0)).shape == (0,)


@pytest.mark.parametrize("size", [0, 1, 128, 240])
def test_shorter_rows_are_refused(size):
    with pytest.raises(ValueError, match=rf"of {size} bytes: without the package `xxhash`"):
        xxh3_64(rows_of(1, size, 0))


def test_without_the_package_the_values_are_the_same(monkeypatch):
    rows = rows_of(5, 65_536, 11).view("<u2")
    with_package = hash_rows(rows)
    monkeypatch.setitem(sys.modules, "xxhash", None)  # an import of it now fails
    with pytest.raises(ImportError):
        import xxhash  # noqa: F401
    assert hash_rows(rows).tolist() == with_package.tolist()
    assert hash_rows(rows).dtype == with_package.dtype == np.uint64


def test_one_bit_changes_one_hash():
    rows = rows_of(4, 512, 2)
    before = xxh3_64(rows)
    rows[2, 511] ^= 1
    assert np.flatnonzero(xxh3_64(rows) != before).tolist() == [2]
