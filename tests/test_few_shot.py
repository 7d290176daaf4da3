"""Builds of instruction data: as many examples of one task as fit, behind its definition."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import documents, write_jsonl
from few_shot_corpora import NI, P3, contexts, known, per_pass, prompts, sequences, three_tasks, uid

from pipelines.errors import FaultsError

T = 256


def processor_of(path: Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_a_context_is_one_task_its_definition_first_and_then_its_examples(builder, tokenizer_model):
    documents_of = known(three_tasks(builder))
    size = per_pass(builder, NI)
    built = builder.build({"ni": NI}, tokens=size)
    processor = processor_of(tokenizer_model)
    used: Counter[bytes] = Counter()
    for sequence in sequences(built):
        predicted = sequence.targets()
        silent = {t for a, b in sequence.no_loss for t in range(a, b)}
        for context in contexts(sequence):
            parts = [documents_of[s["document"]] for s in context]
            assert len({name for name, *_ in parts}) == 1, "of one task only"
            headers = [header for _, header, *_ in parts]
            assert headers[:2] == [1, 2]
            assert set(headers[2:]) == {0}
            assert len({s["document"] for s in context}) == len(context)
            used.update(s["document"] for s in context)
            assert not predicted[context[0]["start"]]
            for place, (segment, part) in enumerate(zip(context, parts, strict=True)):
                start, end = segment["start"], segment["start"] + segment["length"]
                ids = sequence.tokens[start:end].tolist()
                assert (ids[0] == 1, ids[-1] == 2) == (place == 0, place == len(context) - 1)
                assert segment["offset"] == (place > 0)
                assert (segment["head_cut"], segment["tail_cut"]) == (False, False)
                assert processor.decode(ids) == part[2]
                answer = [t for i, t in zip(range(start, end), ids, strict=True) if i not in silent]
                assert processor.decode(answer) == part[3]
    assert {u for u, (_, header, *_) in documents_of.items() if header == 0} == {
        u for u, n in used.items() if n == 1
    }
    (account,) = built.accounts
    assert (account.documents_read, account.definitions, account.documents_kept) == (243, 3, 246)
    assert account.tokens_placed == account.tokens_per_pass == size
    assert (account.tokens_cut, account.tokens_left_over) == (0, 0)
    assert account.padding < 0.01 * size + T


def test_attention_work_counts_contexts_and_not_their_parts(builder):
    three_tasks(builder)
    built = builder.build({"ni": NI}, tokens=4_000)
    for shard in range(len(built.dataset.manifest["shards"])):
        for row in built.dataset.meta(shard).to_pylist():
            lengths: list[int] = []
            for segment in row["segments"]:
                if segment["continues"]:
                    lengths[-1] += segment["length"]
                else:
                    lengths.append(segment["length"])
            assert row["sum_len_sq"] == sum(n * n for n in lengths)


@pytest.mark.parametrize("weight_by", ["tokens", "loss_tokens"])
@pytest.mark.parametrize("total", [2_001, 2_502])
def test_shares_are_exact_and_examples_whole(builder, weight_by, total):
    documents_of = known(three_tasks(builder))
    write_jsonl(builder.folder / "p3.jsonl", prompts(1))
    write_jsonl(builder.folder / "web.jsonl", documents(2, 20))
    sources = {"ni": NI | {"weight": 2, "max_passes": 3}, "p3": P3 | {"max_passes": 9},
               "web": {"weight": 1, "path": "web.jsonl"}}  # fmt: skip
    built = builder.build(sources, tokens=total, weight_by=weight_by)
    key = "tokens_placed" if weight_by == "tokens" else "tokens_loss"
    got = [getattr(account, key) for account in built.accounts]
    assert sum(got) == total
    for account, n in zip(built.accounts, got, strict=True):
        assert n == account.quota
        assert account.tokens_offered == (
            account.tokens_placed + account.tokens_cut + account.tokens_left_over
        )
    assert all(abs(n - total * w / 4) < 1 for n, w in zip(got, (2, 1, 1), strict=True))
    whole = {account.name: account.tokens_cut == 0 for account in built.accounts}
    assert whole["ni"], "some context has examples that hold just what is wanted"
    processor = processor_of(builder.tokenizer)
    for sequence in sequences(built):
        for segment in sequence.segments if sequence.source == "ni" else ():
            ids = sequence.tokens[segment["start"] :][: segment["length"]].tolist()
            assert processor.decode(ids) == documents_of[segment["document"]][2]


def test_tasks_share_a_sequence_but_no_context(builder):
    documents_of = known(three_tasks(builder))
    built = builder.build({"ni": NI}, tokens=per_pass(builder, NI, seq_len=2048), seq_len=2048)
    together = 0
    for sequence in sequences(built):
        tasks = [documents_of[c[0]["document"]][0] for c in contexts(sequence)]
        together += len(set(tasks)) > 1
        for context, name in zip(contexts(sequence), tasks, strict=True):
            assert {documents_of[s["document"]][0] for s in context} == {name}
    assert together


def test_a_second_pass_puts_every_example_into_another_context(builder):
    documents_of = known(three_tasks(builder))
    size = per_pass(builder, NI)
    built = builder.build({"ni": NI | {"max_passes": 2}}, tokens=2 * size)
    used: defaultdict[int, Counter[bytes]] = defaultdict(Counter)
    rows: defaultdict[int, set[frozenset[bytes]]] = defaultdict(set)
    for sequence in sequences(built):
        for context in contexts(sequence):
            used[sequence.pass_].update(s["document"] for s in context)
            rows[sequence.pass_].add(frozenset(s["document"] for s in context))
    examples = {u for u, (_, header, *_) in documents_of.items() if header == 0}
    for pass_ in (0, 1):
        assert {u: used[pass_][u] for u in examples} == dict.fromkeys(examples, 1)
    assert len(rows[0]) == len(rows[1]) > 10
    assert len(rows[0] & rows[1]) <= 1


def test_p3_has_no_definition_and_its_prompts_stand_as_they_are(builder, tokenizer_model):
    records = prompts(1)
    write_jsonl(builder.folder / "p3.jsonl", records)
    built = builder.build({"p3": P3}, tokens=per_pass(builder, P3))
    by_id = {uid(f"{r['inputs']}\n{r['targets']}\n\n"): r for r in records}
    processor = processor_of(tokenizer_model)
    for sequence in sequences(built):
        for context in contexts(sequence):
            assert len({by_id[s["document"]]["task"] for s in context}) == 1
        ids = sequence.tokens[: sequence.n_real].tolist()
        silent = {t for a, b in sequence.no_loss for t in range(a, b)}
        for s in sequence.segments:
            place = range(s["start"], s["start"] + s["length"])
            answer = processor.decode([ids[t] for t in place if t not in silent])
            assert answer == by_id[s["document"]]["targets"]
    assert built.accounts[0].documents_used == len(records)


def test_more_examples_than_there_are_is_refused_with_what_fits(builder):
    three_tasks(builder)
    size = per_pass(builder, NI)
    with pytest.raises(FaultsError, match=rf"(?s)has {size:,}: .* `tokens: {size}`"):
        builder.build({"ni": NI}, tokens=size + 1)
