"""Decontamination, MB of text per CPU second: the scan, its parts, and plain Python.

    python benchmarks/decontamination.py --index FILE --input FILE.jsonl ... --rounds 5

All run in one process on the same documents, in rotated order, after a warm-up; the figures are
of CPU time, the median of the rounds. `--items` plants each line of a file in a document of its
own, and counts which are found. datatrove runs from its own Python (`--datatrove PYTHON`), on a
twentieth of the text, start-up left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from decontam.index import Index
from decontam.index_build import build_index
from decontam.records import Instance
from decontam.search import Searcher
from decontam.sketches import sketches_of_texts

DATATROVE = """
import json, os, sys, tempfile, time
import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import (
    NGramsDecontConfig, NGramsDecontFilter, NGramsDecontIndexer)
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
texts, items = json.load(sys.stdin)
folder = tempfile.mkdtemp()
config = NGramsDecontConfig(n_grams=10, find_query_ngrams=True, find_overlap_ngrams=True)
NGramsDecontIndexer._requires_dependencies = []
indexer = NGramsDecontIndexer(folder, config=config)
hashes = sorted({h for item in items for h in indexer.compute_hashes("", item)})
np.array(hashes, dtype=config.hash_config.np_descr).tofile(folder + "/all.index.hashes")
step = NGramsDecontFilter(folder, config=config)
sign = MinhashDedupSignature(folder + "/sig", config=MinhashConfig(
    n_grams=5, num_buckets=16, hashes_per_bucket=8, hash_config=HashConfig(precision=64)))
def run(job):
    job("warm up the words of this text once and once more")
    begin = time.process_time()
    found = [job(text) for text in texts]
    return time.process_time() - begin, found
def check(text):
    return step.filter(Document(text=text, id="0")) is not True
def signature(text):
    shingles = sign.get_shingles(text)
    return len(shingles) and sign.get_signature(shingles)
took, flags = run(check)
print(json.dumps([took, sum(map(bool, flags)), run(signature)[0]]))
"""


def texts_of(paths: Sequence[Path], megabytes: float) -> list[bytes]:
    """Documents of JSON lines, until there are so many megabytes."""
    texts: list[bytes] = []
    size = 0
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".zst":
            content = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
        for line in content.splitlines():
            texts.append(json.loads(line)["text"].encode())
            size += len(texts[-1])
            if size >= megabytes * 1e6:
                return texts
    return texts


def padded(items: Sequence[str], ngrams: int) -> Index:
    """An index of some items, and of random ones up to a number of n-grams."""
    rng = np.random.default_rng(1)
    instances = [Instance("real", "", "", str(i), text) for i, text in enumerate(items)]
    for i in range(ngrams // 1000):
        words = rng.integers(0, 1 << 40, 1009)
        instances.append(Instance("random", "", "", str(i), " ".join(f"x{w:x}" for w in words)))
    return build_index(instances)


def plain_scan(index: Index, n: int) -> Callable[[Sequence[bytes]], int]:
    """A set of tuples of strings, by the rules in tests/plain_decontam.py."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from plain_decontam import ngrams, words

    texts = index.entries.columns(["text"])["text"].to_pylist()[:1000]
    known = {g for text in texts for r in words(text.encode()) for g in ngrams(r, n)}
    return lambda batch: sum(
        any(g in known for r in words(text) for g in ngrams(r, n)) for text in batch
    )


def cpu_of(job: Callable[[Sequence[bytes]], object], texts: Sequence[bytes]) -> float:
    """MB of text per CPU second."""
    begin = time.process_time()
    job(texts)
    return sum(map(len, texts)) / 1e6 / (time.process_time() - begin)


def batches(job: Callable[[list[bytes]], object]) -> Callable[[Sequence[bytes]], object]:
    """The job in batches of 2 MB."""

    def run(texts: Sequence[bytes]) -> None:
        batch: list[bytes] = []
        for text in texts:
            batch.append(text)
            if sum(map(len, batch)) >= 2_000_000:
                job(batch)
                batch = []
        if batch:
            job(batch)

    return run


def jobs_of(index: Index) -> dict[str, tuple[Callable[[Sequence[bytes]], object], float]]:
    """Names, jobs, and the share of the text that each gets."""
    searcher = Searcher(index)

    def sign(texts: list[bytes]) -> None:
        sketches_of_texts(texts, index.normalizer, shingle=5, one_in=256)

    def full(texts: list[bytes]) -> None:
        searcher.search(texts)
        sign(texts)

    def windows(texts: list[bytes]) -> None:
        index.windows.search_texts(texts, index.normalizer, threshold=0.4)

    return {
        "exact scan and signature": (batches(full), 1),
        "exact scan": (batches(searcher.search), 1),
        "signature": (batches(sign), 1),
        "windowed search": (batches(windows), 1),
        "plain Python, same rule, 1,000 texts": (plain_scan(index, index.n), 0.05),
    }


def datatrove_speeds(python: str, texts: Sequence[bytes], index: Index) -> dict[str, list[float]]:
    """MB per CPU second of datatrove's n-gram decontamination and signatures."""
    items = index.entries.columns(["text"])["text"].to_pylist()[:1000]
    content = json.dumps([[text.decode() for text in texts], items])
    done = subprocess.run(
        [python, "-c", DATATROVE], input=content, text=True, stdout=subprocess.PIPE, check=True
    )
    size = sum(map(len, texts)) / 1e6
    search, flagged, sign = json.loads(done.stdout.splitlines()[-1])
    print(f"datatrove flags {flagged} of {len(texts)} documents\n")
    return {
        "datatrove, 10-grams, 1,000 texts": [size / search],
        "datatrove, MinHash signatures": [size / sign],
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--input", type=Path, nargs="+", required=True, help="JSON lines, `text`")
    result.add_argument("--items", type=Path, help="benchmark texts, one a line")
    result.add_argument("--index", type=Path, help="an index to search instead of a made-up one")
    result.add_argument("--ngrams", type=int, default=5_000_000, help="of the made-up index")
    result.add_argument("--megabytes", type=float, default=50, help="of text to search")
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--datatrove", metavar="PYTHON", help="that has datatrove installed")
    return result


def main() -> None:
    """Print one line of a Markdown table for each job."""
    options = parser().parse_args()
    texts = texts_of(options.input, options.megabytes)
    items = options.items.read_text("utf-8").splitlines() if options.items else []
    if options.index:
        index = Index.load(str(options.index))
    else:
        path = f"{options.input[0]}.{os.getpid()}.index"
        padded(items, options.ngrams).save(path)
        begin = time.process_time()
        index = Index.load(path)
        took = time.process_time() - begin
        print(f"index: {os.path.getsize(path) / 1e6:.0f} MB, {took:.2f} CPU s to load\n")
        os.unlink(path)
    jobs, speeds = jobs_of(index), dict[str, list[float]]()
    names = list(jobs)
    for number in range(-1, options.rounds):
        for k in range(len(names)):
            name = names[(number + k) % len(names)]
            job, share = jobs[name]
            speed = cpu_of(job, texts[: max(1, int(len(texts) * share))])
            if number >= 0:
                speeds.setdefault(name, []).append(speed)
    if options.datatrove:
        some = texts[: max(1, len(texts) // 20)]
        speeds |= datatrove_speeds(options.datatrove, some, index)
    print("| job | MB/CPU s | rounds |\n|---|---:|---|")
    for name, found in speeds.items():
        rounds = " ".join(f"{speed:.1f}" for speed in found)
        print(f"| {name} | {statistics.median(found):.1f} | {rounds} |")
    if items:
        side = b"some words that stand around it "
        planted = [side + item.encode() + b" " + side for item in items]
        hits = sum(bool(one.spans or one.boilerplate) for one in Searcher(index).search(planted))
        false = sum(bool(one.spans) for one in Searcher(index).search(texts))
        print(f"\nplanted: {hits} of {len(items)} found; other documents flagged: {false}")


if __name__ == "__main__":
    main()
