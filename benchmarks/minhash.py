"""MinHash signatures beside datasketch and rensa, windowed search, and recall beside theory.

    python benchmarks/minhash.py CORPUS.jsonl.zst … [--rounds 5] [--figure docs/lsh-recall.svg]

Prints Markdown tables; needs `datasketch>=2` and `rensa`. CORPUS are JSON lines with a "text", also
compressed, or folders of such files. Documents are cut every --words words, and every round takes
other documents, so nothing is measured on text it has just seen. All candidates take their turn in
every round, each time in another order, in one process; MB are UTF-8 bytes of text / 10^6 for each
second of CPU; the table gives medians, and the least and the most.

*Ours* goes from the words' hashes to signatures, and, where it says so, from text, with the words
of `decontam.normalize`. The others get what their users have: lists of words (split at white space,
lower case, not timed), of which they make shingles, joined with a space, and signatures.
datasketch is also given our shingles' hashes; its signatures must then be equal to ours.

*Windowed search* looks for 32,000 texts of 20 to 400 words in the documents as a whole, with 32
bands of 4 rows. Half of the texts are pieces of the corpus, but not of what is searched; the others
are random.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from decontam.lsh import Lsh
from decontam.minhash import shingle_hashes, signatures
from decontam.normalize import Normalizer
from decontam.windows import WindowIndex

PERMUTATIONS = 128
SETTINGS = ((32, 4), (16, 8), (20, 6))
BUDGET = {"fast": 8_000_000, "slow": 600_000}
"""Bytes of text that a candidate is given in a round."""


def read_texts(paths: list[Path]) -> Iterator[str]:
    """Texts of JSON lines, of whatever compression their names tell."""
    for path in paths:
        if path.is_dir():
            yield from read_texts(sorted(p for p in path.iterdir() if ".jsonl" in p.name))
            continue
        with pa.input_stream(str(path), compression="detect") as stream:
            for line in stream.read().splitlines():
                yield json.loads(line)["text"]


def cut(texts: Iterator[str], words: int) -> list[str]:
    """Documents of at most so many words, shuffled."""
    pieces = []
    for text in texts:
        found = text.split()
        pieces += [" ".join(found[i : i + words]) for i in range(0, len(found), words)]
    order = np.random.default_rng(0).permutation(len(pieces))
    return [pieces[i] for i in order]


def take(documents: list[str], n_bytes: int, start: int) -> list[str]:
    """Documents from one on, around the end if need be, of about so many bytes."""
    taken, size = [], 0
    while size < n_bytes and len(taken) < len(documents):
        taken.append(documents[(start + len(taken)) % len(documents)])
        size += len(taken[-1].encode())
    return taken


class Candidates:
    """Ways to signatures, by name; each takes documents and gives the seconds that count."""

    def __init__(self, shingle: int) -> None:
        self.shingle = shingle
        self.normalizer = Normalizer.of("default")

    def table(self) -> dict[str, tuple[str, Callable[[list[str]], float]]]:
        """Name -> (budget, candidate)."""
        return {
            "ours, words' hashes to signatures": ("fast", self.ours),
            "ours, text to signatures": ("fast", self.ours_from_text),
            "datasketch 2.0, our hashes": ("slow", self.datasketch_hashes),
            "datasketch 2.0, default": ("slow", self.datasketch_default),
            "datasketch 2.0, xxh32": ("slow", self.datasketch_xxh32),
            "rensa R, words joined": ("slow", self.rensa),
        }

    def hashes(self, documents: list[str]):
        """Words' hashes and offsets."""
        reading = self.normalizer.words([text.encode() for text in documents]).split
        return reading.hashes, reading.offsets

    def shingles(self, documents: list[list[str]]) -> list[list[bytes]]:
        """Shingles as their users write them."""
        k = self.shingle
        return [
            [" ".join(words[i : i + k]).encode() for i in range(max(len(words) - k + 1, 1))]
            for words in documents
        ]

    def ours(self, documents: list[str]) -> float:
        """Words' hashes to signatures."""
        words = self.hashes(documents)
        begin = time.process_time()
        signatures(*words, shingle=self.shingle)
        return time.process_time() - begin

    def ours_from_text(self, documents: list[str]) -> float:
        """Text to signatures."""
        begin = time.process_time()
        signatures(*self.hashes(documents), shingle=self.shingle)
        return time.process_time() - begin

    def datasketch_hashes(self, documents: list[str]) -> float:
        """Our shingles' hashes to signatures, which must equal ours."""
        from datasketch import MinHash

        words = self.hashes(documents)
        hashes, bounds = shingle_hashes(*words, shingle=self.shingle)
        lists = [part.tolist() for part in np.split(hashes & np.uint64(0xFFFFFFFF), bounds[1:-1])]
        begin = time.process_time()
        made = MinHash.bulk(lists, num_perm=PERMUTATIONS, hashfunc=int)
        took = time.process_time() - begin
        ours = signatures(*words, shingle=self.shingle)
        if any((m.hashvalues != row).any() for m, row in zip(made, ours, strict=True)):
            raise AssertionError("a signature differs from datasketch's")
        return took

    def datasketch_default(self, documents: list[str]) -> float:
        """Words to signatures, with SHA-1."""
        from datasketch import MinHash

        words = [text.lower().split() for text in documents]
        begin = time.process_time()
        MinHash.bulk(self.shingles(words), num_perm=PERMUTATIONS)
        return time.process_time() - begin

    def datasketch_xxh32(self, documents: list[str]) -> float:
        """Words to signatures, with a fast hash."""
        import xxhash
        from datasketch import MinHash

        words = [text.lower().split() for text in documents]
        begin = time.process_time()
        MinHash.bulk(self.shingles(words), num_perm=PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest)
        return time.process_time() - begin

    def rensa(self, documents: list[str]) -> float:
        """Words to signatures."""
        from rensa import RMinHash

        words = [text.lower().split() for text in documents]
        k = self.shingle
        begin = time.process_time()
        sets = [[" ".join(w[i : i + k]) for i in range(max(len(w) - k + 1, 1))] for w in words]
        RMinHash.digests_from_token_sets(sets, PERMUTATIONS, 1)
        return time.process_time() - begin


class Search:
    """Windowed search, from words' hashes and from text."""

    def __init__(self, documents: list[str], candidates: Candidates) -> None:
        self.candidates = candidates
        hashes, _ = candidates.hashes(take(documents, 20_000_000, 0))
        rng = np.random.default_rng(0)
        lengths = rng.integers(20, 400, 32_000)
        parts = [rng.integers(0, 2**64, n, dtype=np.uint64) for n in lengths]
        for i in range(0, len(parts), 2):
            start = rng.integers(0, len(hashes) - lengths[i])
            parts[i] = hashes[start : start + lengths[i]]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        words = np.concatenate(parts)
        self.index = WindowIndex.build(words, offsets, shingle=candidates.shingle)

    def from_hashes(self, documents: list[str]) -> float:
        """Words' hashes to matches."""
        words = self.candidates.hashes(documents)
        begin = time.process_time()
        self.index.search(*words, threshold=0.4)
        return time.process_time() - begin

    def from_text(self, documents: list[str]) -> float:
        """Text to matches."""
        begin = time.process_time()
        self.index.search(*self.candidates.hashes(documents), threshold=0.4)
        return time.process_time() - begin


def compare(table, documents: list[str], rounds: int) -> None:
    """Run every candidate in every round and print the rates."""
    names = list(table)
    for budget, candidate in table.values():  # compile, import
        candidate(take(documents, BUDGET[budget] // 100, 0))
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            budget, candidate = table[name]
            taken = take(documents, BUDGET[budget], number * len(documents) // rounds)
            rates[name].append(sum(len(t.encode()) for t in taken) / 1e6 / candidate(taken))
    print("| | MB per CPU s | least to most | times |\n|---|---:|---:|---:|")
    base = statistics.median(rates.get("datasketch 2.0, default", [0.0]))
    for name, rate in rates.items():
        middle = statistics.median(rate)
        times = f"{middle / base:.1f}" if base else ""
        print(f"| {name} | {middle:.1f} | {min(rate):.1f} to {max(rate):.1f} | {times} |")
    print(flush=True)


def query_rates() -> None:
    """Insertions and queries per CPU second of 100,000 random signatures each."""
    rng = np.random.default_rng(0)
    stored, asked = (rng.integers(0, 2**32, (100_000, 128), dtype=np.uint32) for _ in range(2))
    print("| bands x rows | insertions per CPU s | queries per CPU s |\n|---|---:|---:|")
    for bands, rows in SETTINGS:
        Lsh.build(stored[:99], bands=bands, rows=rows).query(asked[:99], threshold=0.5)
        begin = time.process_time()
        index = Lsh.build(stored, bands=bands, rows=rows)
        built = time.process_time()
        index.query(asked, threshold=0.5)
        took = built - begin, time.process_time() - built
        print(f"| {bands} x {rows} | {1e5 / took[0]:,.0f} | {1e5 / took[1]:,.0f} |")
    print(flush=True)


def measure_recall(documents: list[str], candidates: Candidates, n_pairs: int):
    """True similarities of perturbed pairs, and for each setting which pairs share a band."""
    hashes, offsets = candidates.hashes(documents)
    long = np.flatnonzero(np.diff(offsets) >= 200)
    rng = np.random.default_rng(0)
    pieces = []
    for number in range(n_pairs):
        start = offsets[long[number % len(long)]]
        piece = hashes[start : start + 200]
        other, changed = piece.copy(), rng.random(200) < rng.random() ** 2 * 0.4
        other[changed] = rng.integers(0, 2**64, int(changed.sum()), dtype=np.uint64)
        pieces += [piece, other]
    words, bounds = np.concatenate(pieces), np.arange(len(pieces) + 1) * 200
    shingles, at = shingle_hashes(words, bounds, shingle=candidates.shingle)
    parts = [np.unique(part) for part in np.split(shingles, at[1:-1])]
    both = np.array([len(np.intersect1d(*parts[i : i + 2])) for i in range(0, len(parts), 2)])
    sizes = np.array([len(part) for part in parts])
    true = both / (sizes[::2] + sizes[1::2] - both)
    made = signatures(words, bounds, shingle=candidates.shingle)
    found = {}
    for bands, rows in SETTINGS:
        used = bands * rows
        shape = (n_pairs, bands, rows)
        equal = made[::2, :used].reshape(shape) == made[1::2, :used].reshape(shape)
        found[bands, rows] = equal.all(2).any(1)
    return true, (made[::2] == made[1::2]).mean(1), found


def draw(true: np.ndarray, found: dict[tuple[int, int], np.ndarray]) -> str:
    """The curves of theory, and what was measured, as a picture."""
    width, height, left, top = 480, 280, 50, 20
    colours = ("#1b6ca8", "#c44536", "#3a7d44")

    def place(x: float, y: float) -> str:
        return f"{left + x * width:.1f},{top + (1 - y) * height:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 80} {height + 70}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width + 80}" height="{height + 70}" fill="#fff"/>',
    ]
    for tick in np.linspace(0, 1, 6):
        (x, y), (x0, y0) = place(tick, 0).split(","), place(0, tick).split(",")
        parts += [
            f'<path d="M{place(tick, 0)} L{place(tick, 1)} M{place(0, tick)} L{place(1, tick)}" '
            'stroke="#ddd" fill="none"/>',
            f'<text x="{x}" y="{float(y) + 18:.1f}" text-anchor="middle">{tick:.1f}</text>',
            f'<text x="{float(x0) - 8:.1f}" y="{float(y0) + 4:.1f}" text-anchor="end">'
            f"{tick:.1f}</text>",
        ]
    for number, ((bands, rows), hit) in enumerate(found.items()):
        colour = colours[number]
        grid = np.linspace(0, 1, 101)
        line = " ".join(place(j, 1 - (1 - j**rows) ** bands) for j in grid)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for low in np.arange(0, 1, 0.05):
            bin = (true >= low) & (true < low + 0.05)
            if bin.sum() >= 20:
                x, y = place(true[bin].mean(), hit[bin].mean()).split(",")
                parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        x, y = place(0.03, 0.93 - 0.07 * number).split(",")
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{bands} bands of {rows} rows</text>')
    middle, foot = left + width / 2, top + height + 38
    parts.append(
        f'<text x="{middle}" y="{foot}" text-anchor="middle">'
        "true Jaccard similarity; lines: theory, points: share of pairs that were found"
        "</text></svg>"
    )
    return "\n".join(parts) + "\n"


def print_recall(true: np.ndarray, estimate: np.ndarray, found) -> None:
    """Recall by similarity beside theory."""
    print("| true J | pairs | error of the estimate (theory) |", end="")
    print(" | ".join(f" {b} x {r} found (theory)" for b, r in found), "|")
    print("|---|" + "---:|" * (2 + len(found)))
    for low in np.arange(0, 1, 0.1):
        bin = (true >= low) & (true < low + 0.1 + (low > 0.85))
        if not bin.any():
            continue
        j = true[bin]
        error = np.sqrt(((estimate[bin] - j) ** 2).mean())
        theory = np.sqrt((j * (1 - j)).mean() / PERMUTATIONS)
        cells = [
            f"{hit[bin].mean():.3f} ({(1 - (1 - j**rows) ** bands).mean():.3f})"
            for (bands, rows), hit in found.items()
        ]
        print(
            f"| {low:.1f}-{low + 0.1:.1f} | {bin.sum():,} | {error:.4f} ({theory:.4f}) | "
            + " | ".join(cells) + " |"
        )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("corpus", type=Path, nargs="+", help="JSON lines, or folders of them")
    made.add_argument("--rounds", type=int, default=5, help="turns of every candidate")
    made.add_argument("--words", type=int, default=2_800, help="of a document for signatures")
    made.add_argument("--long-words", type=int, default=30_000, help="of a document to search")
    made.add_argument("--shingle", type=int, default=5, help="words in a shingle")
    made.add_argument("--pairs", type=int, default=20_000, help="of documents, for the recall")
    made.add_argument("--figure", type=Path, help="where to draw the recall, an SVG file")
    return made


def main() -> None:
    """Print the tables and draw the figure."""
    options = parser().parse_args()
    texts = list(read_texts(options.corpus))
    candidates = Candidates(options.shingle)
    documents = cut(iter(texts), options.words)
    compare(candidates.table(), documents, options.rounds)
    long = cut(iter(texts), options.long_words)
    half = len(long) // 2
    search = Search(long[:half], candidates)
    table = {
        "windowed search, words' hashes to matches": ("fast", search.from_hashes),
        "windowed search, text to matches": ("fast", search.from_text),
    }
    compare(table, long[half:], options.rounds)
    query_rates()
    true, estimate, found = measure_recall(documents[:4000], candidates, options.pairs)
    print_recall(true, estimate, found)
    if options.figure:
        options.figure.write_text(draw(true, found))


if __name__ == "__main__":
    main()
