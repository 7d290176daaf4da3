"""The build as a whole, without Beam: shares, determinism, real data, the phase 1 recipe."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import Builder, documents, plain_loop, prose, write_jsonl

from pipelines.job import assemble, claim_output
from pipelines.mixture_file import load_mixture
from pipelines.progress import Reporter
from pipelines.run import build
from pipelines.shards import ShardedDataset
from pipelines.tokenizer import load_tokenizer
from pipelines.tokenizer_file import fetch_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TWO = {"a": {"weight": 2, "path": "a"}, "b": {"weight": 1, "path": "b"}}


def write_zst(path: Path, records: list[dict[str, Any]]) -> None:
    write_jsonl(path.with_suffix(""), records)
    with pa.output_stream(str(path)) as stream:
        stream.write(path.with_suffix("").read_bytes())
    path.with_suffix("").unlink()


def test_shares_are_exact_to_the_token(builder: Builder) -> None:
    write_jsonl(builder.folder / "a/1.jsonl", documents(1, 120))
    write_jsonl(builder.folder / "b/1.jsonl", documents(2, 120))
    built = builder.build(TWO)
    assert [a.tokens_placed for a in built.accounts] == [13_333, 6_667]
    assert built.dataset.manifest["totals"]["tokens"] == 20_000
    assert list(built.dataset.verify()) == []


def test_every_prefix_of_the_training_order_is_within_one_sequence_of_the_shares(
    builder: Builder,
) -> None:
    write_jsonl(builder.folder / "a/1.jsonl", documents(1, 200))
    write_jsonl(builder.folder / "b/1.jsonl", documents(2, 200))
    built = builder.build(TWO, tokens=60_000)
    placed, total = [0, 0], 0
    for shard in range(len(built.dataset.manifest["shards"])):
        meta = built.dataset.meta(shard)
        for source, n in zip(meta["source"].to_pylist(), meta["n_real"].to_pylist(), strict=True):
            placed[source] += n
            total += n
            assert abs(placed[0] * 3 - total * 2) <= 256 * 3
    assert total == 60_000


def test_shards_do_not_depend_on_how_the_corpus_is_cut_into_files(
    builder: Builder, tmp_path: Path
) -> None:
    """Not on the number of files, their names, their order, or their compression."""
    records, others = documents(1, 90), documents(2, 120)
    write_jsonl(builder.folder / "b/1.jsonl", others)
    write_jsonl(builder.folder / "a/whole.jsonl", records)
    one = builder.build(TWO, output="one")
    (builder.folder / "a/whole.jsonl").unlink()
    random.Random(0).shuffle(records)
    write_jsonl(builder.folder / "a/x.jsonl", records[:30])
    write_jsonl(builder.folder / "a/deep/er/w.ndjson", records[30:31])
    write_zst(builder.folder / "a/k.jsonl.zst", records[31:])
    many = builder.build(TWO, output="many")
    assert one.shard_bytes() == many.shard_bytes()
    assert one.dataset.manifest["dataset_id"] == many.dataset.manifest["dataset_id"]


def test_another_seed_gives_other_documents_and_another_order(builder: Builder) -> None:
    write_jsonl(builder.folder / "a/1.jsonl", documents(1, 120))
    write_jsonl(builder.folder / "b/1.jsonl", documents(2, 120))
    one = builder.build(TWO, output="one")
    two = builder.build(TWO, output="two", seed=1)
    assert one.shard_bytes() != two.shard_bytes()


def test_the_budget_is_met_with_very_long_and_very_short_documents(builder: Builder) -> None:
    rng = random.Random(3)
    texts = [{"text": prose(rng, 20_000)}, *({"text": f"w{i}"} for i in range(500))]
    write_jsonl(builder.folder / "a/1.jsonl", texts)
    built = builder.build({"a": {"weight": 1, "path": "a"}}, tokens=30_000)
    assert built.accounts[0].tokens_placed == 30_000


def build_phase1(
    folder: Path, data_root: Path, tokenizer: str, *overrides: str, tokens: int, seq_len: int
) -> ShardedDataset:
    values = [f"tokens={tokens}", f"seq_len={seq_len}", f"tokenizer.path={tokenizer}", *overrides]
    mixture = load_mixture(str(ROOT / "mixtures/phase1.yaml"), values)
    file = fetch_tokenizer(mixture.tokenizer)
    output = str(folder / "out")
    store = str(folder / "store")
    job = assemble(mixture, file, data_root=str(data_root), store=store, output=output)
    assert not claim_output(job)
    build(
        job,
        load_tokenizer(file),
        run_stage=plain_loop,
        report=Reporter(quiet=True, log_json=False),
        max_bad=0.0,
        workers=2,
    )
    dataset = ShardedDataset(output)
    assert list(dataset.verify()) == []
    return dataset


def shares(dataset: ShardedDataset) -> dict[str, float]:
    return {s["name"]: s["share_got"] for s in dataset.manifest["sources"]}


def ul2_records(n: int) -> list[dict[str, Any]]:
    """Dialogues as OIG's UL2-Oscar publishes them, long enough for phase 1."""
    rng = random.Random(7)
    return [
        {
            "text": f"User: Fill in the missing words: {prose(rng, 2100)} [words 1]\n"
            f"Assistant: \nwords 1: {prose(rng, 5)}",
            "metadata": {"source": "ul2_plus_oscar_en_00300"},
        }
        for _ in range(n)
    ]


def test_phase1_runs_on_local_copies_of_the_published_files(
    tmp_path: Path, tokenizer_model: Path
) -> None:
    rng = random.Random(5)
    long = [{"text": prose(rng, 3000), "meta": {"short_book_title": f"B{i}"}} for i in range(20)]
    short = {"text": prose(rng, 1500), "meta": {"short_book_title": "pamphlet"}}
    papers = [{"text": prose(rng, 2500), "meta": {"arxiv_id": f"2301.{i}"}} for i in range(20)]
    pages = [{"text": prose(rng, 2200), "source": f"cc/1/line{i}"} for i in range(20)]
    pretrain = tmp_path / "data/pretrain"
    pretrain.mkdir(parents=True)
    write_zst(pretrain / "book.jsonl.zst", [*long, short])
    write_zst(pretrain / "arxiv_doc_to_abs.jsonl.zst", papers)
    write_zst(pretrain / "rp_sub.jsonl.zst", pages)
    write_zst(pretrain / "ul2_plus_oscar_en.jsonl.zst", ul2_records(20))
    dataset = build_phase1(
        tmp_path,
        tmp_path / "data",
        str(tokenizer_model),
        "sources.book.sample=1",
        "sources.arxiv.sample=1",
        tokens=200_000,
        seq_len=4096,
    )
    assert shares(dataset) == dict.fromkeys(["book", "arxiv", "redpajama", "ul2_oscar"], 0.25)
    assert dataset.manifest["sources"][0]["documents_dropped"] == {"too_few_words": 1}


def test_phase1_runs_on_real_books_papers_and_web_pages(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("mistral_common")
    root = tmp_path / "data"
    root.mkdir()
    for name in ("books", "arxiv", "web"):
        (root / name).symlink_to(shared_data / name)
    write_zst(root / "ul2.jsonl.zst", ul2_records(60))
    dataset = build_phase1(
        tmp_path,
        root,
        "package://mistral_common/data/tokenizer.model.v1",
        "sources.book={weight: 1, schema: redpajama, "
        "path: books/rp_book_neardup_of_train.jsonl.zst}",
        "sources.arxiv={weight: 1, path: arxiv/rp_arxiv_papers.jsonl.zst, schema: redpajama, "
        "abstracts: {path: arxiv/arxiv_metadata.jsonl.gz}}",
        "sources.redpajama={weight: 1, path: web/rp_*.jsonl.zst, schema: redpajama, max_passes: 2}",
        "sources.ul2_oscar={weight: 1, path: ul2.jsonl.zst, schema: oig, max_passes: 10}",
        tokens=1_600_000,
        seq_len=32_768,
    )
    assert shares(dataset) == dict.fromkeys(["book", "arxiv", "redpajama", "ul2_oscar"], 0.25)
    web = dataset.manifest["sources"][2]
    assert web["documents_read"] == 2_799
    assert web["documents_dropped"] == {"too_few_words": 2_600}
