"""Figures of a model with memory, against one dense forward; and the command with its options."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, prose
from memory_oracle import SHAPE, L, dense_logits, memory_model, plain_model
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.evaluate import main
from trainer.perplexity import (
    by_window,
    losses,
    memory_nll,
    model_nll,
    windows_of,
    with_full_memory,
)


def texts(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, SHAPE["vocab_size"], n) for n in lengths]


def dense_nll(model: Any, ids: list[int]) -> list[float]:
    """nats of every id but the first, each window of L ids seeing the memory before it."""
    tokens = torch.tensor([ids])
    logits = dense_logits(model, tokens, [L] * (len(ids) // L + 1), model.memory_settings)
    return [-float(logits[0, i].log_softmax(-1)[ids[i + 1]]) for i in range(len(ids) - 1)]


def read_once(docs: list[np.ndarray], nll: Any, bos: int | None) -> list[Any]:
    longest = max(map(len, docs)) + 1
    return losses(docs, nll, window=longest, stride=longest, bos=bos, batch_tokens=1, watch=iter)


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("limit", [None, 0, 5, 2 * L])
@pytest.mark.parametrize("chunk", [3, 2048])
def test_losses_are_those_of_one_dense_forward(bos, limit, chunk):
    model, docs = memory_model(mem_limit=limit), texts(5 * L + 3, 3 * L, L - 2)
    found = read_once(docs, memory_nll(model, chunk=chunk), bos)
    for nats, ids in zip(found, docs, strict=True):
        assert nats == pytest.approx(dense_nll(model, [*([bos] if bos else []), *ids]), abs=1e-5)


def test_without_memory_the_windows_are_those_of_the_plain_model_side_by_side():
    (ids,) = texts(5 * L)
    remembering, plain = memory_model(mem_limit=0), plain_model()
    (found,) = read_once([ids], memory_nll(remembering), None)
    windows = torch.from_numpy(ids).view(-1, L)
    with torch.no_grad():
        logits = plain(windows).logits.flatten(0, 1)[:-1]
    expected = torch.nn.functional.cross_entropy(logits, windows.flatten()[1:], reduction="none")
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_few_last_tokens_are_scored_alone():
    model, tokens = memory_model(), torch.from_numpy(np.stack(texts(30, 30)))
    whole = memory_nll(model)(tokens, 29)
    assert whole.shape == (2, 29)
    for n in (1, 6, 7, 20):
        assert torch.equal(memory_nll(model)(tokens, n), whole[:, -n:])


@pytest.mark.parametrize("size", [0, 1, L - 1, L, L + 1, 3 * L])
def test_a_full_memory_is_one_before_the_local_context(size):
    found = [np.arange(1.0, 40), np.arange(1.0, 5)]  # a token's number is how many are before it
    expected = [[p for p in nats if (p - 1) // L * L >= size] for nats in found]
    got = with_full_memory(found, size=size, local_context=L)
    assert [nats.tolist() for nats in got] == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Path:
    """A tiny model with a memory layer in its config.json, and texts."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=640, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.3, mem_layers=[1], mem_dtype="float32", last_context_length=24,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    shutil.copy(tokenizer_model, path / "tokenizer.model")
    (path / "a.txt").write_text(prose(random.Random(1), 300))
    (path / "b.txt").write_text(prose(random.Random(2), 240))
    (path / "c.txt").write_text(prose(random.Random(3), 20))
    for name, n in (("train", 80), ("test", 4)):
        rng = random.Random(name)
        lines = [f"{rng.choice(['NUM:dist', 'HUM:ind'])} who {' '.join(rng.choices(WORDS, k=4))} ?"
                 for _ in range(n)]  # fmt: skip
        (path / f"{name}.label").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def evaluate(folder, capsys, monkeypatch, tmp_path):
    """Runs the command in the folder of the texts; gives its record, or its one message."""
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> Any:
        status = main(["--model", str(folder), "--output", str(tmp_path), *map(str, arguments)])
        errors = capsys.readouterr().err
        if status:
            return errors
        return json.loads((tmp_path / "results.json").read_text())

    return run


WEBQS = ("classify", "--task", "webqs")
SIZES = ("memory", "--text", "a.txt", "b.txt", "c.txt", "--sizes", "0,64,150")


def test_perplexity_by_memory(evaluate, folder):
    record = evaluate(*SIZES)
    rows = record["table"]
    assert [(row["memory"], row["context"]) for row in rows] == [(0, 64), (64, 128), (150, 214)]
    counts = record["data"]["tokens"]
    assert list(counts) == ["a.txt", "b.txt"], "c.txt is shorter than memory and local context"
    assert {row["tokens scored"] for row in rows} == {sum(counts.values())}
    # With BOS, the first local context with 150 ids before it begins at id 192.
    assert {row["tokens after 150"] for row in rows} == {sum(n - 192 for n in counts.values())}
    figures = [(row["perplexity"], row["perplexity after 150"]) for row in rows]
    assert len(set(figures)) == 3
    assert record["memory"]["mem_layers"] == [1]
    assert record["memory"]["local_context"] == 64

    none = evaluate("--mem-layers", "none", "positions", "--text", "a.txt", "b.txt",
                    "--length", 64, "--buckets", "1")  # fmt: skip
    assert none["memory"] is None
    first = evaluate("positions", "--text", "a.txt", "b.txt", "--length", 64, "--buckets", "1")
    assert first["table"] == none["table"], "nothing is in memory yet"


def test_documents_without_a_full_memory_give_no_figures_of_one(evaluate):
    record = evaluate(*SIZES, "--min-tokens", 20, "--length", 214, "--documents", 3)
    assert len(record["data"]["tokens"]) == 3
    assert record["table"][0]["tokens after 150"] == 2 * (214 - 192)
    short = evaluate("memory", "--text", "c.txt", "--sizes", "64", "--min-tokens", 2)
    assert list(short["table"][0]) == ["context", "memory", "tokens scored", "perplexity"]


def test_memory_of_all_sizes_is_that_of_a_model_with_such_a_limit(evaluate, folder):
    from trainer.inference import as_memory_model, memory_settings
    from trainer.texts import load_tokenizer

    record = evaluate(*SIZES)
    tokenizer = load_tokenizer(str(folder))
    docs = [tokenizer.encode([(folder / f).read_text()])[0].astype(int) for f in ("a.txt", "b.txt")]
    model: Any = LlamaForCausalLM.from_pretrained(folder).eval()
    read = memory_settings(model.config)
    as_memory_model(model, read)
    for row in record["table"]:
        model.memory_settings = replace(read, mem_limit=row["memory"])
        scores = by_window(read_once(docs, memory_nll(model), 1))
        assert row["perplexity"] == pytest.approx(scores.token_weighted, rel=1e-6)


def test_loss_by_position_goes_on_with_a_growing_memory(evaluate, folder):
    text = ("positions", "--text", "a.txt", "--length", 300, "--buckets", "1,64,200")
    remembering, plain = evaluate(*text), evaluate("--mem-layers", "none", *text)
    grouped = evaluate("--mem-grouping", "2,16", *text)
    losses_ = [[row["nats per token"] for row in r["table"]] for r in (remembering, plain, grouped)]
    assert losses_[0][0] == pytest.approx(losses_[1][0], rel=1e-5)
    assert losses_[0][1:] != pytest.approx(losses_[1][1:], rel=1e-3)
    assert losses_[0] == pytest.approx(losses_[2], rel=1e-5)
    assert grouped["memory"]["mem_attention_grouping"] == [2, 16]


def test_passkeys_are_asked_for_far_beyond_the_local_context(evaluate):
    record = evaluate("--last-context", 30, "passkey", "--lengths", "300,2000", "--trials", 1)
    assert [row["tokens"] for row in record["table"]] == [300, 2000]
    assert record["memory"]["last_context_length"] == 30
    assert len(record["trials"]) == 2


@pytest.mark.parametrize("layers", ["1", "none"])
def test_questions_after_examples(evaluate, layers):
    command = ("--mem-layers", layers, "classify", "--task", "trec", "--train", "train.label",
               "--test", "test.label", "--contexts", "200,500", "--questions", 3)  # fmt: skip
    record = evaluate(*command)
    few, many = record["table"]
    assert (few["context"], many["context"]) == (200, 500)
    assert 1 <= few["examples"] < many["examples"]
    assert few["longest prompt"] < 200 < many["longest prompt"] < 500
    asked = record["questions"]
    assert len(asked) == 2 * 3
    assert {tuple(one["answers"]) for one in asked} <= {("distance",), ("individual",)}
    for row in (few, many):
        here = [one["right"] for one in asked if one["context"] == row["context"]]
        assert (len(here), np.mean(here)) == (row["questions"], row["right answers"])
    assert evaluate(*command)["questions"] == asked
    assert [len(digest) for digest in record["data"]["sha256"].values()] == [64, 64]


def test_rope_is_scaled_to_the_local_context_only(evaluate):
    text = ("positions", "--text", "a.txt", "--length", 300, "--buckets", "1")
    record = evaluate("--rope", "linear", "--local-context", 128, *text)
    assert record["rope"]["factor"] == 2.0
    assert record["max_position_embeddings"] == 128
    assert "nothing to scale" in evaluate("--rope", "linear", *text)


def test_a_plain_model_gets_memory_by_options(evaluate, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    kept = {k: v for k, v in config.items() if k not in ("mem_layers", "last_context_length")}
    (plain / "config.json").write_text(json.dumps(kept | {"mem_dtype": None}))
    options = ("--mem-layers", "1", "--mem-dtype", "float32")
    assert evaluate("--model", plain, *options, *SIZES)["table"] == evaluate(*SIZES)["table"]
    assert "6,12,18" in evaluate("--model", plain, *SIZES)
    message = evaluate("--model", plain, "--local-context", 8, "--mem-grouping", "1,2", "passkey")
    assert message.startswith("error: --local-context, --mem-grouping: the model has no memory")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("perplexity", "--text", "a.txt"), "perplexity: windows do not slide over a model with"),
        (("--mem-layers", "none", "--mem-dtype", "float16", "passkey"), "--mem-dtype: the model"),
        (("--mem-layers", "none", *SIZES), "memory: the model has no memory layers"),
        (("--mem-layers", "1,7", "--last-context", "65", "passkey"), "memory: 2 faults"),
        (("--mem-top-k", "4", *SIZES), "(--mem-top-k, or of config.json) the best keys are"),
        ((*SIZES, "--length", "213"), "--sizes 150: with a local context of 64 these are 214"),
        (("memory", "--text", "a.txt"), "documents with 63,552 tokens or more: 0"),
        (("memory",), "either --data or --text"),
        ((*WEBQS, "--train", "none", "--test", "a.txt"), "No such file or directory: 'none'"),
        ((*WEBQS, "--train", "a.txt", "--test", "a.txt"), "a.txt: line 1: no JSON"),
    ],
)
def test_what_does_not_go_together_is_one_message(evaluate, arguments, message):
    errors = evaluate(*arguments)
    assert errors.startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "option", ["--mem-layers=x", "--mem-layers=", "--mem-grouping=4", "--local-context=0"]
)
def test_options_that_are_no_numbers_stop_with_status_2(evaluate, option):
    with pytest.raises(SystemExit) as stopped:
        evaluate(option, "passkey")
    assert stopped.value.code == 2


def test_a_window_of_a_plain_model_and_one_pass_with_memory_score_the_same_tokens():
    docs = texts(50, 33)
    places = windows_of([50, 33], window=51, stride=51, has_bos=True)
    assert [(w.start, w.end) for w in places] == [(0, 50), (0, 33)]
    plain, remembering = model_nll(plain_model()), memory_nll(memory_model())
    for one, other in pairwise([read_once(docs, nll, 1) for nll in (plain, remembering)]):
        assert [len(nats) for nats in one] == [len(nats) for nats in other] == [50, 33]
        assert math.isfinite(sum(map(np.sum, one)))
