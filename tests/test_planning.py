"""From counts to sequences: shares, passes, policies and an account that closes, without Beam.

Tokens are checked against sentencepiece itself, and the account against what the files hold.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from conftest import Builder, Built, documents, prose, write_jsonl

from pipelines import planning
from pipelines.errors import FaultsError

T = 256

Record = dict[str, Any]


@dataclass
class Segment:
    """One piece of a document, as the meta files have it, and its tokens."""

    position: int
    source: str
    pass_: int
    document: bytes
    start: int
    offset: int
    head_cut: bool
    tail_cut: bool
    tokens: list[int]
    no_loss: list[int]
    """Places in the document, of the tokens that carry no loss."""


def rows_of(built: Built) -> Iterator[tuple[Record, Any]]:
    """Every sequence in training order: its row of the meta file, and its tokens."""
    for shard in range(len(built.dataset.manifest["shards"])):
        meta = built.dataset.meta(shard).to_pylist()
        yield from zip(meta, built.dataset.tokens(shard), strict=True)


def segments_of(built: Built) -> list[Segment]:
    found: list[Segment] = []
    for position, (row, tokens) in enumerate(rows_of(built)):
        silent = [t for span in row["no_loss"] for t in range(span["start"], span["end"])]
        name = built.dataset.sources[row["source"]]
        for s in row["segments"]:
            start, end = s["start"], s["start"] + s["length"]
            found.append(
                Segment(
                    position, name, row["pass"], s["document"], start, s["offset"],
                    s["head_cut"], s["tail_cut"], tokens[start:end].tolist(),
                    [t - start + s["offset"] for t in silent if start <= t < end],
                )
            )  # fmt: skip
    return found


class Oracle:
    """What documents should look like, by sentencepiece alone."""

    def __init__(self, model: Path) -> None:
        import sentencepiece

        self._sp = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def uid(self, record: Record) -> bytes:
        return xxhash.xxh3_128_digest(record["text"].encode())

    def tokens(self, record: Record) -> list[int]:
        return self._tokens(record["text"])

    @cache  # noqa: B019
    def _tokens(self, text: str) -> list[int]:
        return [self._sp.bos_id(), *self._sp.encode(text), self._sp.eos_id()]

    def prompt_tokens(self, record: Record) -> int:
        """BOS and the tokens that end within the prompt (of one-byte characters)."""
        ids = self._sp.encode(record["text"])
        ends = [len(self._sp.decode(ids[: n + 1])) for n in range(len(ids))]
        return 1 + sum(end <= len(record["prompt"]) for end in ends)

    def by_uid(self, records: Sequence[Record]) -> dict[bytes, list[int]]:
        return {self.uid(r): self.tokens(r) for r in records}


@pytest.fixture(scope="session")
def oracle(tokenizer_model: Path) -> Oracle:
    return Oracle(tokenizer_model)


@cache
def texts(seed: int, *, low: int = 20, high: int = 250) -> list[Record]:
    """Sixty documents, most of them shorter than two sequences."""
    return documents(seed, 60, low=low, high=high)


@cache
def completions(seed: int, n: int) -> list[Record]:
    """Records of the Long-Data-Collections schema: a prompt and what follows it."""
    rng = random.Random(seed)
    records: list[Record] = []
    for _ in range(n):
        prompt, completion = prose(rng, rng.randint(5, 120)), prose(rng, rng.randint(5, 60))
        text = f"{prompt}\n{completion}"
        records.append({"prompt": prompt, "completion": completion, "text": text})
    return records


def write(builder: Builder, **corpora: Sequence[Any]) -> None:
    for name, records in corpora.items():
        write_jsonl(builder.folder / f"{name}.jsonl", records)


def source(name: str, weight: Any = 1, **values: Any) -> Record:
    return {"weight": weight, "path": f"{name}.jsonl"} | values


def assert_tokens_are_true(built: Built, expected: Mapping[str, Mapping[bytes, list[int]]]) -> None:
    """Every placed token is the document's at that offset, each at most once a pass; rows are
    filled from the left and zero behind."""
    placed: set[tuple[str, int, bytes, int]] = set()
    filled: Counter[int] = Counter()
    for s in segments_of(built):
        truth = expected[s.source][s.document]
        assert s.start == filled[s.position]
        assert s.tokens == truth[s.offset : s.offset + len(s.tokens)]
        assert s.head_cut == (s.offset > 0)
        assert s.tail_cut == (s.offset + len(s.tokens) < len(truth))
        here = {(s.source, s.pass_, s.document, s.offset + i) for i in range(len(s.tokens))}
        assert not here & placed
        placed |= here
        filled[s.position] += len(s.tokens)
    for position, (row, tokens) in enumerate(rows_of(built)):
        assert row["n_real"] == filled[position]
        assert not tokens[row["n_real"] :].any()


# Tokens


@pytest.mark.parametrize(
    ("policy", "frame"),
    [("pack", (True, True)), ("pad", (True, True)), ("stream", (False, False))],
)
def test_every_placed_token_is_sentencepieces(builder, oracle, policy, frame):
    records = texts(1)[:40]
    write(builder, a=records)
    bos, eos = frame
    tokenizer = {"path": str(builder.tokenizer), "bos": bos, "eos": eos}
    built = builder.build({"a": source("a", policy=policy)}, tokens=7_000, tokenizer=tokenizer)
    expected = {
        uid: tokens[1 - bos : len(tokens) - 1 + eos]
        for uid, tokens in oracle.by_uid(records).items()
    }
    assert_tokens_are_true(built, {"a": expected})
    assert sum(len(s.tokens) for s in segments_of(built)) == 7_000


def test_the_same_sequences_come_from_one_file_and_from_many(builder):
    records = texts(2)
    write(builder, a=records)
    one = builder.build({"a": source("a")}, output="one", tokens=9_000)
    (builder.folder / "a.jsonl").unlink()
    write(builder, **{f"part{i}": records[i * 20 : i * 20 + 20] for i in range(3)})
    many = builder.build({"a": source("part*")}, output="many", tokens=9_000)
    assert many.shard_bytes() == one.shard_bytes()


# Shares


def test_weighing_by_loss_tokens_gives_exact_shares_of_loss_tokens(builder, oracle):
    questions, plain = completions(1, 60), texts(1)[:30]
    write(builder, q=questions, p=plain)
    sources = {
        "q": source("q", "0.3", schema="long_data", loss="answers"),
        "p": source("p", "0.7"),
    }
    built = builder.build(sources, tokens=3_333, weight_by="loss_tokens")
    prompt = {oracle.uid(r): oracle.prompt_tokens(r) for r in questions}
    loss: Counter[str] = Counter()
    for s in segments_of(built):
        place = range(s.offset, s.offset + len(s.tokens))
        assert s.no_loss == [t for t in place if t < prompt.get(s.document, 0)]
        loss[s.source] += len(s.tokens) - len(s.no_loss)
    assert loss == {"q": 1_000, "p": 2_333}
    stated = {s["name"]: s["tokens_loss"] for s in built.dataset.manifest["sources"]}
    assert stated == loss
    n_loss: Counter[str] = Counter()
    for row, _ in rows_of(built):
        n_loss[built.dataset.sources[row["source"]]] += row["n_loss"]
    assert n_loss == loss
    placed = {a.name: a.tokens_placed for a in built.accounts}
    assert placed["q"] > 2 * loss["q"], "prompts stand in the sequences, without loss"
    assert_tokens_are_true(built, {"q": oracle.by_uid(questions), "p": oracle.by_uid(plain)})


def test_weighing_by_tokens_counts_prompts_too(builder):
    write(builder, q=completions(1, 60), p=texts(1)[:30])
    sources = {"p": source("p"), "q": source("q", schema="long_data", loss="answers")}
    built = builder.build(sources, tokens=6_001)
    plain, questions = built.accounts
    assert [plain.tokens_placed, questions.tokens_placed] == [3_001, 3_000]
    assert plain.tokens_loss == 3_001
    assert questions.tokens_loss < 1_500


def test_documents_without_any_loss_do_not_disturb_shares_of_loss(builder):
    silent = [{"text": r["text"], "prompt": r["text"]} for r in texts(2)[:20]]
    write(builder, q=[*completions(1, 60), *silent], p=texts(1)[:30])
    sources = {
        "q": source("q", schema="long_data", loss="answers", policy="pad"),
        "p": source("p"),
    }
    built = builder.build(sources, tokens=1_000, weight_by="loss_tokens")
    assert [a.tokens_loss for a in built.accounts] == [500, 500]


def test_a_tiny_share_gets_its_few_tokens(builder):
    write(builder, a=texts(1), b=texts(2)[:10])
    built = builder.build({"a": source("a", 19_997), "b": source("b", 3)}, tokens=20_000)
    assert [a.tokens_placed for a in built.accounts] == [19_997, 3]
    (only,) = [s for s in segments_of(built) if s.source == "b"]
    assert len(only.tokens) == 3
    assert (only.offset, only.tail_cut) == (0, True)


def test_a_share_below_half_a_token_is_empty_and_the_rest_is_whole(builder):
    write(builder, a=texts(2)[:10], b=texts(1))
    built = builder.build({"a": source("a", 1), "b": source("b", 10**6)}, tokens=20_000)
    assert [a.tokens_placed for a in built.accounts] == [0, 20_000]
    assert built.accounts[0].sequences == built.accounts[0].tokens_offered == 0
    assert {s.source for s in segments_of(built)} == {"b"}


def test_many_sources_of_uneven_shares_are_exact(builder):
    weights = ["0.1", "0.2", "1/3", 7, "1e-3"]
    for i in range(len(weights)):
        write(builder, **{f"s{i}": texts(i)})
    sources = {f"s{i}": source(f"s{i}", w, max_passes=9) for i, w in enumerate(weights)}
    built = builder.build(sources, tokens=15_000)
    # By hand: 15,000 * w / 7.634333…, largest remainders first.
    assert [a.tokens_placed for a in built.accounts] == [196, 393, 655, 13_754, 2]


# Passes


def test_documents_occur_once_a_pass_and_those_of_the_partial_pass_once_more(builder, oracle):
    records = texts(1)[:40]
    write(builder, a=records)
    expected = oracle.by_uid(records)
    available = sum(map(len, expected.values()))
    built = builder.build({"a": source("a", max_passes=3)}, tokens=int(2.4 * available))
    assert built.accounts[0].passes_whole == 2
    used: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
    for s in segments_of(built):
        used[s.document][s.pass_] += len(s.tokens)
    assert used.keys() == expected.keys()
    partial = cut = 0
    for uid, tokens in expected.items():
        assert used[uid][0] == used[uid][1] == len(tokens)
        assert set(used[uid]) <= {0, 1, 2}
        partial += used[uid][2]
        cut += 0 < used[uid][2] < len(tokens)
    assert partial == int(2.4 * available) - 2 * available
    assert cut <= 1


def test_an_exact_number_of_passes_cuts_and_leaves_nothing(builder, oracle):
    records = texts(1)[:20]
    write(builder, a=records)
    available = sum(map(len, oracle.by_uid(records).values()))
    built = builder.build({"a": source("a", max_passes=3)}, tokens=3 * available)
    (account,) = built.accounts
    assert (account.passes_whole, account.passes_partial_tokens) == (3, 0)
    assert (account.tokens_cut, account.tokens_left_over) == (0, 0)


def test_later_passes_have_another_order_and_packing(builder, oracle):
    records = texts(8, low=10, high=50)
    write(builder, a=records)
    available = sum(map(len, oracle.by_uid(records).values()))
    built = builder.build({"a": source("a", max_passes=3)}, tokens=3 * available)
    order: list[list[bytes]] = [[], [], []]
    rows: defaultdict[tuple[int, int], set[bytes]] = defaultdict(set)
    for s in segments_of(built):
        order[s.pass_] += [s.document] if s.offset == 0 else []
        rows[s.pass_, s.position].add(s.document)
    assert sorted(order[0]) == sorted(order[1]) == sorted(order[2])
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        assert order[earlier] != order[later]
        shared = [
            [r for (p, _), r in rows.items() if p == n and len(r) > 1] for n in (earlier, later)
        ]
        assert sum(row in shared[1] for row in shared[0]) < len(shared[0]) / 4


def test_an_earlier_pass_is_used_up_before_the_next_begins_but_for_exchanges_in_a_window(builder):
    write(builder, a=texts(2)[:10], b=texts(1))
    built = builder.build({"a": source("a", max_passes=4), "b": source("b")}, tokens=20_000)
    windows: defaultdict[int, list[int]] = defaultdict(list)
    for s in segments_of(built):
        if s.source == "a":
            windows[s.pass_].append(s.position // 8)
    assert set(windows) == {0, 1, 2, 3}
    assert all(max(windows[p]) <= min(windows[p + 1]) for p in range(3))


def test_a_budget_that_is_too_large_fails_with_what_fits_and_publishes_nothing(builder, oracle):
    small, large = texts(2)[:10], texts(1)
    write(builder, small=small, large=large)
    has = sum(map(len, oracle.by_uid(small).values()))
    sources = {"small": source("small", 3, max_passes=1.5), "large": source("large", 2)}
    fits = int(1.5 * has) * 5 // 3
    with pytest.raises(FaultsError) as caught:
        builder.build(sources, tokens=60_000)
    assert caught.value.faults == (
        f"sources.small: takes 36,000 tokens, has {has:,}: that needs {36_000 / has:.2f} passes, "
        "and max_passes is 1.5",
        f"a budget of `tokens: {fits}` would fit, or raise max_passes, lower the weight, or add "
        "documents",
    )
    out = builder.folder / "out"
    published = [p.name for p in out.rglob("*") if p.suffix in (".tok", ".arrow", ".json")]
    assert {"manifest.json", "00000.tok", "documents.arrow"}.isdisjoint(published)
    built = builder.build(sources, output="smaller", tokens=fits)
    assert sum(a.tokens_placed for a in built.accounts) == fits


# Policies


def test_padding_gives_each_document_a_sequence_and_accounts_for_what_is_cut(builder, oracle):
    records = texts(1)[:40]
    write(builder, a=records)
    expected = oracle.by_uid(records)
    fitting = sum(min(len(t), T) for t in expected.values())
    built = builder.build({"a": source("a", policy="pad")}, tokens=fitting)
    found = segments_of(built)
    assert len(found) == len({s.position for s in found}) == len(built.dataset) == len(records)
    for s in found:
        assert (s.start, s.offset) == (0, 0)
        assert s.tokens == expected[s.document][:T]
        assert s.tail_cut == (len(expected[s.document]) > T)
    (account,) = built.accounts
    assert account.tokens_cut == sum(max(len(t) - T, 0) for t in expected.values()) > 0
    assert account.padding == len(records) * T - fitting


@pytest.mark.parametrize("policy", ["pack", "pad", "stream"])
def test_a_prompt_longer_than_a_sequence_is_dropped_with_its_answer(builder, policy):
    long = [
        {"text": r["text"] + " end", "prompt": r["text"]} for r in texts(11, low=300, high=300)[:6]
    ]
    write(builder, q=[*long, *completions(1, 10)])
    asked = source("q", schema="long_data", loss="answers", policy=policy)
    (account,) = builder.build({"q": asked}, tokens=T).accounts
    assert account.documents_dropped["too_many_tokens"] >= len(long)
    write(builder, q=long)
    with pytest.raises(FaultsError, match="none of 6 records is left: 6 too_many_tokens"):
        builder.build({"q": asked}, output="none", tokens=T)


@pytest.mark.parametrize("k", [1, 3])
def test_a_stream_keeps_k_sequences_together_and_goes_on_across_them(builder, oracle, k):
    records, other = texts(1), texts(2)
    write(builder, a=records, b=other)
    streamed = source("a", 1, policy="stream", stream_sequences=k)
    built = builder.build({"a": streamed, "b": source("b")}, tokens=24_000)
    assert_tokens_are_true(built, {"a": oracle.by_uid(records), "b": oracle.by_uid(other)})
    sequences = [row for row, _ in rows_of(built)]
    names = [built.dataset.sources[row["source"]] for row in sequences]
    assert names.count("a") % k == 0
    rows: defaultdict[int, list[Segment]] = defaultdict(list)
    for s in segments_of(built):
        rows[s.position].append(s)
    units: list[list[int]] = []
    position = 0
    while position < len(names):
        unit = list(range(position, position + (k if names[position] == "a" else 1)))
        assert {names[i] for i in unit} == {names[position]}
        units += [unit] if names[position] == "a" else []
        position = unit[-1] + 1
    short = [i for unit in units for i in unit if sequences[i]["n_real"] < T]
    # The end of the stream: at most one sequence that is not full, and empty ones behind it.
    assert len(short) <= k
    assert {u for u, unit in enumerate(units) for i in unit if i in short} in (
        set(), {u for u, unit in enumerate(units) if short and short[0] in unit}
    )  # fmt: skip
    goes_on = ends = 0
    for first, second in pairwise(chain(*units)):
        if not rows[first] or not rows[second]:
            continue
        last, following = rows[first][-1], rows[second][0]
        continued = (last.document, last.offset + len(last.tokens)) == (
            following.document, following.offset
        )  # fmt: skip
        if any(first in unit and second in unit for unit in units):
            assert continued or (not last.tail_cut and following.offset == 0)
            goes_on += continued
        else:
            ends += continued
    assert goes_on > 0 or k == 1
    assert ends <= 1 + len(units) / 4, "neighbouring units come from elsewhere in the stream"


def test_a_stream_of_one_token_is_whole_and_its_balance_a_number(builder):
    write(builder, a=texts(2)[:10])
    streamed = source("a", policy="stream", stream_sequences=3)
    built = builder.build({"a": streamed}, tokens=1, order={"global_batch": 1, "window": 1})
    assert [row["n_real"] for row, _ in rows_of(built)] == [1, 0, 0]
    assert built.dataset.manifest["order"]["rank_imbalance_worst"] == 1


def test_groups_are_packed_apart_and_hold_every_document_once(builder, oracle, monkeypatch):
    monkeypatch.setattr(planning, "GROUP_DOCUMENTS", 12)
    records = texts(1)
    write(builder, a=records)
    expected = oracle.by_uid(records)
    available = sum(map(len, expected.values()))
    for policy in ("pack", "stream", "pad"):
        k = 3 if policy == "stream" else 1
        of_a = source("a", policy=policy, max_passes=2, stream_sequences=k)
        tokens = available if policy == "pad" else available + available // 2
        if policy == "pad":
            tokens = sum(min(len(t), T) for t in expected.values())
        built = builder.build({"a": of_a}, output=policy, tokens=tokens)
        assert_tokens_are_true(built, {"a": expected})
        first = {s.document for s in segments_of(built) if s.pass_ == 0}
        assert first == expected.keys()


# What is left out


def test_duplicates_are_dropped_within_a_source_and_kept_on_demand(builder, oracle):
    records = texts(1)[:20]
    write(builder, a=[*records, *records[:5], records[0]], b=[*texts(2)[:20], records[1]])
    sources = {"a": source("a"), "b": source("b")}
    drop = builder.build(sources, output="drop", tokens=8_000)
    assert [a.documents_dropped for a in drop.accounts] == [{"duplicate": 6}, {}]
    assert [a.documents_kept for a in drop.accounts] == [20, 21]
    again = [r for r in dropped_records(drop) if r["reason"] == "duplicate"]
    assert [r["line"] for r in again] == list(range(21, 27))
    assert again[0]["uid"] == oracle.uid(records[0]).hex()

    keep = builder.build(sources, output="keep", tokens=8_000, duplicates="keep")
    assert [a.documents_dropped for a in keep.accounts] == [{}, {}]
    assert keep.accounts[0].documents_kept == 26
    lengths = {uid: len(t) for uid, t in oracle.by_uid(records).items()}
    six = [oracle.uid(r) for r in (*records[:5], records[0])]
    assert keep.accounts[0].tokens_available - drop.accounts[0].tokens_available == sum(
        lengths[uid] for uid in six
    )


def test_a_document_that_is_kept_n_times_occurs_n_times_in_a_pass(builder, oracle):
    records = texts(8, low=10, high=50)[:8]
    write(builder, a=[*records, records[0], records[0]])
    lengths = {uid: len(t) for uid, t in oracle.by_uid(records).items()}
    twice = oracle.uid(records[0])
    tokens = sum(lengths.values()) + 2 * lengths[twice]
    built = builder.build({"a": source("a")}, tokens=tokens, duplicates="keep")
    begun = Counter(s.document for s in segments_of(built) if s.offset == 0)
    assert begun == dict.fromkeys(lengths, 1) | {twice: 3}


def test_a_sample_looks_at_a_share_of_the_texts_wherever_they_stand(builder):
    records = documents(17, 400, low=10, high=30)
    write(builder, a=records)
    sources = {"a": source("a", sample=0.25)}
    built = builder.build(sources, output="all", tokens=1_000)
    (account,) = built.accounts
    assert account.documents_read == 400
    assert 60 < account.documents_kept < 140
    assert account.documents_kept + account.documents_not_sampled == 400
    write(builder, a=records[::-1])
    turned = builder.build(sources, output="turned", tokens=1_000)
    assert uids(turned) == uids(built)
    more = builder.build({"a": source("a", sample=0.5)}, output="more", tokens=1_000)
    assert uids(built) < uids(more)


# The account


def table(built: Built, name: str) -> list[Record]:
    return pa.ipc.open_file(str(built.dataset.folder / name)).read_all().to_pylist()


def uids(built: Built) -> set[bytes]:
    return {d["uid"] for d in table(built, "documents.arrow")}


def dropped_records(built: Built) -> list[Record]:
    path = built.dataset.folder / "dropped.jsonl.zst"
    with pa.CompressedInputStream(str(path), "zstd") as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


class Recount:
    """The account of a source, counted again from the files of the data set."""

    def __init__(self, built: Built, source: int) -> None:
        manifest = built.dataset.manifest
        self._seq_len: int = manifest["seq_len"]
        name = manifest["sources"][source]["name"]
        self._kept = [d for d in table(built, "documents.arrow") if d["source"] == source]
        self._dropped = [r for r in dropped_records(built) if r["source"] == name]
        metas = [built.dataset.meta(i).to_pylist() for i in range(len(manifest["shards"]))]
        self._rows = [row for meta in metas for row in meta if row["source"] == source]

    @cached_property
    def _placed(self) -> dict[int, Counter[bytes]]:
        """Of each pass, the tokens placed of each document."""
        passes: defaultdict[int, Counter[bytes]] = defaultdict(Counter)
        for row in self._rows:
            for segment in row["segments"]:
                passes[row["pass"]][segment["document"]] += segment["length"]
        return passes

    def figures(self, duplicate_tokens: Mapping[str, int]) -> Record:
        available = {d["uid"]: d["n_tokens"] for d in self._kept}
        placed = sum(sum(of_pass.values()) for of_pass in self._placed.values())
        used = sum(available[uid] for of_pass in self._placed.values() for uid in of_pass)
        silent = sum(s["end"] - s["start"] for row in self._rows for s in row["no_loss"])
        duplicate = sum(
            duplicate_tokens[r["uid"]] for r in self._dropped if r["reason"] == "duplicate"
        )
        total = sum(available.values())
        return {
            "documents_kept": len(self._kept),
            "documents_dropped": dict(Counter(r["reason"] for r in self._dropped)),
            "documents_used": len({uid for of_pass in self._placed.values() for uid in of_pass}),
            "tokens_stored": total + duplicate,
            "tokens_duplicate": duplicate,
            "tokens_available": total,
            "tokens_offered": total * len(self._placed),
            "tokens_used": used,
            "tokens_cut": used - placed,
            "tokens_left_over": total * len(self._placed) - used,
            "tokens_placed": placed,
            "tokens_loss": placed - silent,
            "segments": sum(len(row["segments"]) for row in self._rows),
            "sequences": len(self._rows),
            "padding": len(self._rows) * self._seq_len - placed,
        }


def broken_lines() -> Iterator[bytes]:
    yield b'{"text": "not closed'
    yield b'{"text": "\xff\xfe"}'
    yield b'{"no text": 1}'
    yield b'{"text": 5}'
    yield b"[1, 2]"
    yield b'{"text": "\\ud800 alone"}'


def test_the_account_closes_and_agrees_with_the_files(builder, oracle):
    a = texts(3, low=5)[:30]
    b, c = completions(2, 40), texts(2)[:50]
    write(
        builder,
        a=[*broken_lines(), *a, *a[:3], {"text": ""}],
        b=[*b, {"text": "x", "prompt": "y"}, *b[:2]],
        c=c,
    )
    sources = {
        "a": source("a", 5, max_passes=4, filters={"min_tokens": 30, "min_words": 8}),
        "b": source("b", 2, policy="pad", schema="long_data", loss="answers"),
        "c": source("c", 3, policy="stream", stream_sequences=3, sample=0.8, max_passes=2),
    }
    built = builder.build(sources, tokens=20_001)
    read = {"a": 40, "b": 43, "c": 50}
    tokens = {uid.hex(): len(t) for uid, t in oracle.by_uid([*a, *b, *c]).items()}
    manifest = built.dataset.manifest
    for number, stated in enumerate(manifest["sources"]):
        found = Recount(built, number).figures(tokens)
        assert {key: stated[key] for key in found} == found
        dropped = sum(stated["documents_dropped"].values())
        assert read[stated["name"]] == stated["documents_read"]
        assert stated["documents_read"] == (
            stated["documents_kept"] + dropped + stated["documents_not_sampled"]
        )
        assert stated["tokens_placed"] == stated["quota"]
    assert [s["quota"] for s in manifest["sources"]] == [10_001, 4_000, 6_000]
    assert manifest["totals"]["tokens"] == 20_001
    for total, key in (("sequences", "sequences"), ("segments", "segments"), ("padding", "padding"),
                       ("tokens", "tokens_placed"), ("loss_tokens", "tokens_loss")):  # fmt: skip
        assert manifest["totals"][total] == sum(s[key] for s in manifest["sources"])
    assert [s["sequences"] for s in manifest["shards"]] == [
        len(built.dataset.meta(i)) for i in range(len(manifest["shards"]))
    ]
    reasons = manifest["sources"][0]["documents_dropped"]
    assert reasons["duplicate"] == sum(len(r["text"].split()) >= 8 for r in a[:3])
    assert {"invalid_json", "invalid_utf8", "missing_text", "text_not_a_string", "not_an_object",
            "lone_surrogate"} <= reasons.keys()  # fmt: skip
    longer = sum(tokens[oracle.uid(r).hex()] > T for r in [*b, *b[:2]])
    assert manifest["sources"][1]["documents_dropped"] == {
        "prompt_not_a_prefix": 1, "too_many_tokens": longer
    }  # fmt: skip


def test_every_dropped_record_says_where_it_stood(builder):
    good = texts(1)[:12]
    lines: list[Any] = [*broken_lines(), *good]
    random.Random(0).shuffle(lines)
    path = write_jsonl(builder.folder / "a.jsonl", lines)
    content = path.read_bytes()
    built = builder.build({"a": source("a")}, tokens=1_000)
    records = dropped_records(built)
    assert len(records) == 6
    for record in records:
        line = content.split(b"\n")[record["line"] - 1]
        assert line in set(broken_lines())
        assert content[record["offset"] :].startswith(line)
        assert (record["source"], record["file"]) == ("a", "a.jsonl")
    for document in table(built, "documents.arrow"):
        text = json.loads(content.split(b"\n")[document["line"] - 1])["text"]
        assert xxhash.xxh3_128_digest(text.encode()) == document["uid"]
        assert json.loads(content[document["offset"] :].split(b"\n")[0])["text"] == text


def test_every_prefix_keeps_the_shares_to_a_sequence(builder):
    write(builder, a=texts(1), b=texts(2), c=texts(3))
    sources = {"a": source("a", 5), "b": source("b", 3), "c": source("c", 1)}
    built = builder.build(sources, tokens=30_000)
    rows = [row for row, _ in rows_of(built)]
    held = np.array([[r["n_real"] * (r["source"] == s) for s in range(3)] for r in rows]).cumsum(0)
    shares = held[-1] / held[-1].sum()
    assert np.abs(held - held.sum(1, keepdims=True) * shares).max() <= T


def test_a_small_source_used_often_fills_one_sequence_a_pass(builder):
    write(builder, p=texts(1)[:12])
    available = builder.build({"p": source("p")}, tokens=1_000).accounts[0].tokens_available
    assert available < 8192
    often = {"p": source("p", max_passes=5)}
    built = builder.build(often, output="often", tokens=5 * available, seq_len=8192)
    assert built.accounts[0].sequences == 5
