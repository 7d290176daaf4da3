"""Streams feed crossbatch training: own past and strangers in each microbatch, as published."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from conftest import Builder, documents, prose, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mixture_file import load_mixture
from pipelines.shards import ShardedDataset
from trainer.config import load_config
from trainer.crossbatch import LocalContexts
from trainer.loader import Loader, Microbatch, documents_of
from trainer.schedule import extra_contexts, positives_and_negatives

ROOT = Path(__file__).resolve().parents[1]
T, K, PACKS = 128, 4, 3
"""Tokens of a sequence, sequences of a pack, packs of a document."""
DOCUMENTS = {"a": 8, "b": 12, "c": 16}


def of_exactly(tokens: int, seed: int, model: Path) -> str:
    """A text of so many tokens, with what the build puts around it."""
    encode = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode
    text = prose(random.Random(seed), tokens // 8)
    lacking = tokens - 2 - len(encode(text))
    return text + "~" * lacking  # which is no piece of this tokenizer: a token for its byte


@pytest.fixture(scope="module")
def packs(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    """Three sources of documents that are three packs each: 108 packs of four sequences."""
    builder = Builder(tmp_path_factory.mktemp("packs"), tokenizer_model)
    sources: dict[str, Any] = {}
    for name, count in DOCUMENTS.items():
        texts = [of_exactly(PACKS * K * T, 100 * ord(name) + i, tokenizer_model)
                 for i in range(count)]  # fmt: skip
        write_jsonl(builder.folder / f"{name}.jsonl", [{"text": text} for text in texts])
        sources[name] = {"weight": count, "path": f"{name}.jsonl", "policy": "stream",
                         "stream_sequences": K}  # fmt: skip
    tokenizer = {"path": str(tokenizer_model), "bos": True, "eos": True}
    tokens = sum(DOCUMENTS.values()) * PACKS * K * T
    order = {"global_batch": 16, "window": 2}
    return builder.build(
        sources, tokens=tokens, seq_len=T, tokenizer=tokenizer, order=order
    ).dataset


def steps(dataset: ShardedDataset, count: int, **options: Any) -> list[list[Microbatch]]:
    loader = Loader(dataset, documents=False, positions="continue", **options)
    taken = list(islice(loader, count))
    loader.close()
    return taken


def only_document(dataset: ShardedDataset, index: int) -> str:
    (document,) = documents_of(dataset, index)
    return document


# --- positives and negatives ---------------------------------------------------------------

TABLE = {
    (3, 4): [(0, 0), (1, 1), (2, 1), (3, 0)],
    (6, 4): [(0, 0), (1, 2), (2, 4), (3, 3)],
    (7, 4): [(0, 0), (1, 2), (2, 4), (3, 4)],
    (7, 8): [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 2), (6, 1), (7, 0)],
}
"""Own and other local contexts by place in a pack, by range and packing; those of the paper first.
"""


@pytest.mark.parametrize(("reach", "packing"), TABLE)
def test_local_contexts_see_their_document_and_others_as_the_paper_counts(packs, reach, packing):
    parts = packing // K  # local contexts of a sequence
    table = positives_and_negatives(range=reach, packing=packing, stepping=True, together=packing)
    assert table == TABLE[reach, packing]
    before = -(-reach // packing)
    checked = Counter[bool]()
    for (batch,) in steps(packs, 27, global_batch=16, micro_batch=16):
        held = np.repeat([only_document(packs, i) for i in batch.indices.tolist()], parts)
        extra = extra_contexts(len(held), range=reach, packing=packing, stepping=True)
        for begin in range(before * packing, len(held), packing):
            own = held[begin]
            strangers = own not in held[begin - before * packing : begin]
            checked[strangers] += 1
            found = []
            for i in range(begin, begin + packing):
                seen = held[i - extra[i] : i]
                found.append((int((seen == own).sum()), int((seen != own).sum())))
            if strangers:
                assert found == table
    assert checked[True] > 9 * checked[False]


# --- the order -----------------------------------------------------------------------------


@settings(max_examples=25)
@given(data=st.data())
def test_packs_stay_whole_and_in_order_for_any_ranks_and_in_every_pass(packs, data):
    ranks, held, rounds = (data.draw(st.integers(1, n)) for n in (4, 3, 2))
    options = {"micro_batch": K * held, "global_batch": K * held * ranks * rounds, "seed": 3}
    first = data.draw(st.integers(0, 3 * len(packs) // K)) * K
    of_ranks = [steps(packs, 2, rank=r, ranks=ranks, start=first, **options) for r in range(ranks)]
    alone = steps(packs, 2, start=first, **options)
    for parts in of_ranks:
        for batch in (b for step in parts for b in step):
            units = batch.indices.reshape(-1, K)
            assert (units[:, 0] % K == 0).all()
            assert (np.diff(units, axis=1) == 1).all()
            assert (batch.positions == np.arange(T)).all()
    for number, step in enumerate(alone):
        together = [i for parts in of_ranks for b in parts[number] for i in b.indices.tolist()]
        assert sorted(together) == sorted(i for b in step for i in b.indices.tolist())


def test_a_pack_is_one_unbroken_piece_of_its_stream(packs):
    for index in range(len(packs)):
        (segment,) = packs.sequence(index).segments
        place = divmod(segment["offset"], T)
        assert (place[0] % K, place[1], segment["length"]) == (index % K, 0, T)
        if index % K:
            assert segment["document"] == packs.sequence(index - 1).segments[0]["document"]


def test_neighbouring_packs_are_seldom_of_one_document(packs):
    n_packs = len(packs) // K
    for pass_ in range(3):
        taken = steps(
            packs, n_packs // 4, global_batch=16, micro_batch=16, start=pass_ * len(packs)
        )
        neighbours = [
            pair
            for (batch,) in taken
            for pair in pairwise([only_document(packs, i) for i in batch.indices[::K].tolist()])
        ]
        assert len(neighbours) == 3 * n_packs // 4
        by_chance = (PACKS - 1) / (n_packs - 1)
        met = sum(one == other for one, other in neighbours)
        assert met <= 4 * by_chance * len(neighbours)


# --- what is shipped, and real text --------------------------------------------------------


def test_at_most_one_pack_of_a_source_and_pass_is_padded(builder):
    sources = {}
    for seed, name in enumerate(("a", "b")):
        write_jsonl(builder.folder / f"{name}.jsonl", documents(seed, 20))
        sources[name] = {"weight": 1, "path": f"{name}.jsonl", "policy": "stream",
                         "stream_sequences": K, "max_passes": 3}  # fmt: skip
    dataset = builder.build(sources, tokens=256 * 200).dataset
    rows = [dataset.sequence(i) for i in range(len(dataset))]
    short = {(row.source, row.pass_, i // K) for i, row in enumerate(rows) if row.n_real < 256}
    assert short
    assert len(short) == len({place[:2] for place in short})


def test_the_shipped_mixture_fits_the_shipped_configuration(packs):
    mixture = load_mixture(str(ROOT / "mixtures" / "longllama_pretrain.yaml"))
    config = load_config(ROOT / "trainer" / "configs" / "fot_3b.yaml")
    assert {(s.policy, s.stream_sequences) for s in mixture.sources.values()} == {("stream", 4)}
    assert mixture.seq_len == 2048
    assert config.memory is not None
    assert (config.memory.packing, config.memory.local_context or 2048) == (4, 2048)
    assert config.global_batch == mixture.order.global_batch == 128
    assert not config.documents
    assert LocalContexts.of(config, packs, layers=26, steps=10, cuda=False)


def test_packs_of_real_papers_are_mostly_one_document(builder, shared_data):
    for path in ("arxiv/rp_arxiv_papers.jsonl.zst", "web/rp_wikipedia.jsonl.zst"):
        (builder.folder / Path(path).name).symlink_to(shared_data / path)
    sources = {
        name: {
            "weight": 1,
            "path": f"{name}.jsonl.zst",
            "schema": "redpajama",
            "policy": "stream",
            "stream_sequences": 4,
        }
        for name in ("rp_arxiv_papers", "rp_wikipedia")
    }
    dataset = builder.build(sources, tokens=60 * 4 * 2048, seq_len=2048).dataset
    whole = Counter[tuple[str, bool]]()
    for begin in range(0, len(dataset), 4):
        rows = [dataset.sequence(i) for i in range(begin, begin + 4)]
        held = {s["document"] for row in rows for s in row.segments}
        whole[rows[0].source, len(held) == 1] += 1
    assert whole["rp_arxiv_papers", True] > 0.7 * 30
    assert whole["rp_wikipedia", True] > 0.4 * 30
