"""Texts → what near duplicates are found by, without ever holding the words of a whole text.

Words go through a chunk that fits in the processor's cache: read, hashed to shingles, permuted,
forgotten. What comes out is what `decontam.minhash` makes of all words of the split reading.

Shapes: D documents, P permutations, S sampled shingles.
"""
# pyright: basic, reportCallIssue=false

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from decontam.minhash import (
    EMPTY,
    UNROLLED,
    Ints,
    UInt32s,
    UInt64s,
    distinct_samples,
    fill_shingles,
    lower,
    open_shingle,
    permutation_parameters,
    power_of,
    premix,
)
from decontam.normalize import Normalizer, join_texts
from decontam.word_kernels import fill_words, new_stream

_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)


class Sketches(NamedTuple):
    """What is kept of some documents to compare them with others."""

    signatures: UInt32s
    """[D, P] as of `minhash.signatures`."""

    n_words: Ints
    """[D] words of the split reading."""

    samples: UInt64s
    """[S] as of `minhash.sampled_shingles`."""

    bounds: Ints
    """[D + 1] where the samples of each document begin."""


def sketches_of_texts(
    texts: Sequence[bytes],
    normalizer: Normalizer,
    *,
    shingle: int,
    one_in: int,
    permutations: int = 128,
    seed: int = 1,
) -> Sketches:
    """MinHash signatures and sampled shingles of UTF-8 texts.

    Give some megabytes at a time: a call costs about 50 microseconds. Memory: a copy of the texts,
    200 KB, and the results.

    Args:
        texts: D documents.
        normalizer: the rule by which words are told.
        shingle: words in a shingle, >= 1.
        one_in: a shingle is sampled where its hash is in the lowest such part.
        permutations: P.
        seed: signatures of different seeds cannot be compared.

    Raises:
        ValueError: a shingle would have no word.
    """
    if shingle < 1:
        raise ValueError(f"a shingle of {shingle} words; it must have at least one")
    data, bounds = join_texts(texts)
    stream = new_stream(carry=shingle - 1)
    parameters = permutation_parameters(permutations, seed)
    made = np.full((len(texts), permutations), EMPTY, np.uint32)
    counts = np.zeros((2, len(texts)), np.int64)
    limit = _FULL // np.uint64(one_in)
    samples = _sketch(data, bounds, normalizer.tables, stream, shingle, parameters, limit,
                      made, counts)  # fmt: skip
    document = np.repeat(np.arange(len(texts)), counts[1])
    return Sketches(made, counts[0], *distinct_samples(samples, document, len(texts)))


@njit(cache=True, nogil=True)
def _sketch(data, bounds, tables, stream, shingle, parameters, limit, made, counts):
    """Lower made[d] to the signature of text d, fill counts [words, samples], return samples."""
    words = stream[0]
    hashes = np.empty(len(words), np.uint64)
    mixed = np.empty(len(words) + UNROLLED, np.uint32)
    samples, n_samples = np.empty(1024, np.uint64), 0
    position = np.empty(2, np.int64)
    for d in range(len(bounds)):
        position[:] = 0
        held = total = 0  # the stream begins with `held` words that no shingle began with yet
        while position[0] == 0:
            n, _ = fill_words(data, bounds[d : d + 1], tables, stream, held, 0, position)
            total += n - held
            size = shingle
            if n < shingle:  # only a text that ends now counts as one short shingle
                size = n if position[0] and total == n else 0
            count = n - size + 1 if size else 0
            if count > 0:
                h = open_shingle(words, 0, size)
                fill_shingles(words, 0, count, size, power_of(size), h, hashes)
                lower(mixed, 0, premix(hashes, count, mixed), parameters, made, d)
                before = n_samples
                for i in range(count):
                    if hashes[i] <= limit:
                        if n_samples == len(samples):
                            samples = np.concatenate((samples, samples))
                        samples[n_samples] = hashes[i]
                        n_samples += 1
                counts[1, d] += n_samples - before
            held = min(n, shingle - 1)
            for i in range(held):
                words[i] = words[n - held + i]
        counts[0, d] = total
    return samples[:n_samples].copy()
