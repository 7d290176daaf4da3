"""How fast the loader hands out sequences, beside other readers, and how evenly it loads ranks.

    PYTHONPATH=. python benchmarks/loader.py
    PYTHONPATH=. python benchmarks/loader.py --model "phase 2" --answers --data data/phase1

Makes a data set of `--rows` sequences of 32,768 uint16 tokens whose documents have the lengths of a
model of `benchmarks/packing.py`, and the same rows for the others, then reads all of them in turn
in one process, `--rounds` times. Each gives int32 arrays, one sequence at a time. Files are in the
page cache; opening and the first sequence are not timed. *Loader* gives whole verified
microbatches: tokens, labels, positions, borders; the others give tokens alone and check nothing.
*x streaming* is tokens per CPU second over those of mosaicml-streaming in the same round.

Peers that are not installed are skipped. To install them without another torch (mosaicml-streaming
imports torchvision for images only):

    pip install --no-deps mosaicml-streaming litdata

and what `import streaming` and `import litdata` then miss.

The second table is the time that a step takes over what it would take if all ranks worked equally,
as they wait for each other in each microbatch (of one sequence): plainly by position, and as the
loader deals. *7B* adds the work that does not depend on contexts in the shape of LLaMA-2-7B.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from packing import MODELS, SEQ_LEN, draw_documents

from pipelines.gather import write_shard
from pipelines.packing import pack_documents
from pipelines.shards import (
    FORMAT_VERSION,
    MANIFEST,
    META_SCHEMA,
    SEGMENT,
    SPAN,
    ShardedDataset,
    dataset_id,
    encode_manifest,
    file_sha256,
    shard_name,
)
from pipelines.xxh3 import hash_rows
from trainer.loader import Loader
from trainer.order import deal

ROWS_PER_SHARD = 512
GLOBAL_BATCH = 16  # of a rank: 128 sequences on 8 GPUs
LINEAR_7B = 6.607e9 / (32 * 4096)  # multiplications by weights over layers * width: one token

Reader = Callable[[Path, int], Iterator[np.ndarray]]


def lists(counts: np.ndarray, values: pa.Array) -> pa.ListArray:
    """`counts` values a row."""
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(counts)).astype(np.int32), values)


def table(rows: np.ndarray, keep: np.ndarray, lengths: np.ndarray, answers: bool) -> pa.Table:
    """The columns of the sequences `keep` of packed documents, with the tokens `rows`."""
    packed = pack_documents(lengths, seq_len=SEQ_LEN)
    first = np.searchsorted(packed.row, np.arange(packed.n_rows + 1))
    counts = np.diff(first)[keep]
    at = np.concatenate([np.arange(first[row], first[row + 1]) for row in keep])
    start, length, offset = (a[at] for a in (packed.start, packed.length, packed.offset))
    uid = pa.array([i.to_bytes(16) for i in packed.document[at].tolist()], pa.binary(16))
    flags = [offset > 0, offset + length < lengths[packed.document[at]], np.zeros(len(at), bool)]
    columns = [start.astype(np.int32), length.astype(np.int32), uid, offset, *flags]
    segments = pa.StructArray.from_arrays(map(pa.array, columns), fields=list(SEGMENT))
    half = start + np.maximum(1, length // 2)
    spans = pa.StructArray.from_arrays(
        [pa.array(a.astype(np.int32)) for a in (start, half)], fields=list(SPAN)
    )
    row = np.repeat(np.arange(len(keep)), counts)
    n_real = np.bincount(row, length, len(keep)).astype(np.int32)
    off = np.bincount(row, half - start, len(keep)).astype(np.int32)
    zeros = np.zeros(len(keep), np.uint16)
    squares = np.bincount(row, length.astype(float) ** 2, len(keep)).astype(np.uint64)
    no_loss = lists(counts if answers else counts * 0, spans if answers else spans[:0])
    return pa.table(
        [n_real, n_real - off * answers, squares, zeros, zeros, hash_rows(rows),
         lists(counts, segments), no_loss],
        schema=META_SCHEMA,
    )  # fmt: skip


def make_dataset(folder: Path, model: str, n_rows: int, answers: bool) -> None:
    """A data set in the format of the builds, of random tokens, in random order."""
    rng = np.random.default_rng(0)
    lengths = draw_documents(MODELS[model], 100_000, 0)
    lengths = lengths[np.cumsum(lengths) < (n_rows + 50) * SEQ_LEN]
    n_packed = pack_documents(lengths, seq_len=SEQ_LEN).n_rows
    if n_packed < n_rows:
        raise SystemExit(f"--rows {n_rows}: the model's documents fill only {n_packed}")
    order, shards = rng.permutation(n_packed)[:n_rows], []
    for number, begin in enumerate(range(0, n_rows, ROWS_PER_SHARD)):
        keep = order[begin : begin + ROWS_PER_SHARD]
        rows = (32_000 * rng.random((len(keep), SEQ_LEN), np.float32) ** 3).astype("<u2")
        path = folder / shard_name(number)
        write_shard(str(path), rows, table(rows, keep, lengths, answers))
        digests = [file_sha256(Path(f"{path}.{kind}")) for kind in ("tok", "meta.arrow")]
        shards.append({"name": path.name, "sequences": len(keep), "tokens": int(rows.size),
                       "sha256_tok": digests[0], "sha256_meta": digests[1]})  # fmt: skip
    manifest = {
        "format_version": FORMAT_VERSION, "seq_len": SEQ_LEN, "token_type": "uint16", "pad_id": 0,
        "tokenizer": {"file": "none", "vocab_size": 32_000}, "shards": shards, "files": {},
        "sources": [{"name": "all", "sequences": n_rows}], "recipe": {"sources": {"all": {}}},
        "order": {"global_batch": 128, "window": 8},
    }  # fmt: skip
    manifest["dataset_id"] = dataset_id(manifest)
    (folder / MANIFEST).write_bytes(encode_manifest(manifest))


# --- readers: construct, then give one int32 array after the other -------------------------


def rows_of(folder: Path) -> Iterator[np.ndarray]:
    """All rows of a data set, mapped."""
    dataset = ShardedDataset(folder)
    for number in range(len(dataset.manifest["shards"])):
        yield from dataset.tokens(number)


def read_memmap(work: Path, n_rows: int) -> Iterator[np.ndarray]:
    """The least that reading can cost."""
    for row in islice(rows_of(work / "ours"), n_rows):
        yield row.astype(np.int32)


def read_ours(work: Path, n_rows: int, start: int = 0) -> Iterator[np.ndarray]:
    """The loader, with one thread."""
    dataset = ShardedDataset(work / "ours")
    loader = Loader(dataset, global_batch=GLOBAL_BATCH, micro_batch=1, start=start)
    for step in islice(loader, n_rows // GLOBAL_BATCH):
        for batch in step:
            yield batch.tokens
    loader.close()


def read_second_pass(work: Path, n_rows: int) -> Iterator[np.ndarray]:
    """The loader, in an order that is permuted."""
    return read_ours(work, n_rows, start=n_rows)


def read_ours_numpy(work: Path, n_rows: int) -> Iterator[np.ndarray]:
    """The loader where `xxhash` is not installed."""
    found = sys.modules.pop("xxhash", None)
    sys.modules["xxhash"] = None  # type: ignore[assignment]
    try:
        yield from read_ours(work, n_rows)
    finally:
        sys.modules.pop("xxhash")
        if found:
            sys.modules["xxhash"] = found


def read_streaming(work: Path, _: int) -> Iterator[np.ndarray]:
    """mosaicml-streaming: iteration in this process, not shuffled."""
    from streaming import MDSWriter, StreamingDataset

    folder = work / "mds"
    if not folder.exists():
        columns = {"tokens": f"ndarray:uint16:{SEQ_LEN}"}
        with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 26) as writer:
            for row in rows_of(work / "ours"):
                writer.write({"tokens": np.array(row)})
    for sample in StreamingDataset(local=str(folder), shuffle=False, batch_size=1):
        yield sample["tokens"].astype(np.int32)


def read_litdata(work: Path, _: int) -> Iterator[np.ndarray]:
    """litdata: iteration of its token format in this process, not shuffled."""
    import torch
    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    folder = work / "litdata"
    if not folder.exists():
        cache = Cache(str(folder), chunk_bytes=1 << 26, item_loader=TokensLoader(SEQ_LEN))
        for i, row in enumerate(rows_of(work / "ours")):
            cache[i] = torch.from_numpy(np.array(row))
        cache.done()
        cache.merge()
    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(SEQ_LEN), shuffle=False)
    for sample in dataset:
        yield sample.to(torch.int32).numpy()


READERS: dict[str, Reader] = {
    "memory map": read_memmap,
    "loader": read_ours,
    "loader, second pass": read_second_pass,
    "loader without xxhash": read_ours_numpy,
    "mosaicml-streaming": read_streaming,
    "litdata": read_litdata,
}


def measure(reader: Reader, work: Path, n_rows: int) -> tuple[float, float]:
    """Wall and CPU seconds of all rows but the first."""
    rows = reader(work, n_rows)
    next(rows)
    wall, cpu = time.perf_counter(), time.process_time()
    count = sum(row.shape[-1] == SEQ_LEN and row.dtype == np.int32 for row in rows)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    if count != n_rows - 1:
        raise SystemExit(f"{reader.__name__}: {count + 1} sequences of {n_rows}")
    return seconds


def print_speed(work: Path, n_rows: int, rounds: int) -> None:
    """The first table: medians over interleaved rounds."""
    taken: dict[str, list[tuple[float, float]]] = {}
    for name, reader in READERS.items():
        try:
            measure(reader, work, n_rows)
            taken[name] = []
        except ImportError as error:
            print(f"{name} is skipped: {error}", file=sys.stderr)
    for _ in range(rounds):
        for name, seconds in taken.items():
            seconds.append(measure(READERS[name], work, n_rows))
    base = [cpu for _, cpu in taken.get("mosaicml-streaming", [])]
    print("\n| reader | sequences/s | Mtokens/s | Mtokens per CPU s | x streaming |")
    print("|---|---:|---:|---:|---:|")
    for name, seconds in taken.items():
        wall, cpu = (statistics.median(s[i] for s in seconds) for i in (0, 1))
        ratios = [b / s[1] for b, s in zip(base, seconds, strict=False)]
        times = f"{statistics.median(ratios):.1f}" if ratios else ""
        rate = (n_rows - 1) * SEQ_LEN / 1e6
        print(f"| {name} | {(n_rows - 1) / wall:,.0f} | {rate / wall:,.0f} | {rate / cpu:,.0f} "
              f"| {times} |", flush=True)  # fmt: skip


def print_balance(folder: Path) -> None:
    """Lines of the second table."""
    dataset = ShardedDataset(folder)
    metas = [
        dataset.meta(i)["sum_len_sq"].to_numpy() for i in range(len(dataset.manifest["shards"]))
    ]
    squares = np.concatenate(metas).astype(float)
    global_batch = dataset.manifest["order"]["global_batch"]
    for label, linear in (("attention", 0.0), ("7B", LINEAR_7B)):
        steps = squares[: len(squares) // global_batch * global_batch].reshape(-1, global_batch)
        for ranks in (2, 8):
            cells = []
            for order in (plainly, deal):
                work = [s[order(s, ranks=ranks, micro_batch=1)].sum(axis=2)
                        for s in steps + linear * dataset.seq_len]  # fmt: skip
                ratio = [w.max(axis=0).sum() / w.mean(axis=0).sum() for w in work]
                cells += [f"{np.mean(ratio):.4f}", f"{np.max(ratio):.4f}"]
            print(f"| {folder.name} | {len(steps)} x {global_batch} | {label} | {ranks} "
                  f"| {' | '.join(cells)} |", flush=True)  # fmt: skip


def plainly(costs: np.ndarray, *, ranks: int, micro_batch: int) -> np.ndarray:
    """Rank r takes the positions p with p % ranks == r, as they come."""
    return np.arange(len(costs)).reshape(-1, micro_batch, ranks).transpose(2, 0, 1)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_600, help="sequences; a multiple of 16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="phase 1", choices=list(MODELS), help="lengths")
    parser.add_argument("--answers", action="store_true", help="half of each segment has no loss")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="built data sets")
    options = parser.parse_args()
    n_rows = options.rows // GLOBAL_BATCH * GLOBAL_BATCH
    work = Path(tempfile.mkdtemp(prefix="loader-"))
    try:
        (work / "ours").mkdir()
        make_dataset(work / "ours", options.model, n_rows, options.answers)
        print_speed(work, n_rows, options.rounds)
        print("\n| data set | steps | work | ranks | plain mean | worst | dealt mean | worst |")
        print("|---|---:|---|---:|---:|---:|---:|---:|")
        for folder in (work / "ours", *options.data):
            print_balance(folder)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
