"""Sliding windows: what is scored, against the plainest computation, and how it is averaged."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import Builder, documents, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.errors import UserError
from trainer.perplexity import Scores, by_position, by_window, losses, model_nll, windows_of
from trainer.texts import dataset_documents, load_tokenizer, long_documents, text_documents

BOS = 1


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def texts(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 97, n) for n in lengths]


def plain_nll(model: LlamaForCausalLM, ids: list[int]) -> list[float]:
    """nats of every id but the first, from whole logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return [-float(logits[i].log_softmax(-1)[ids[i + 1]]) for i in range(len(ids) - 1)]


def plain_windows(model, ids, window, stride, bos) -> list[list[float]]:
    """Slide as the paper says it, one window at a time: nats of what each window scores."""
    head = [] if bos is None else [bos]
    body, scored, found, start = window - len(head), 0, [], 0
    while True:
        piece = head + ids[start : start + body]
        new = min(start + body, len(ids)) - scored
        losses = plain_nll(model, piece)
        found.append(losses[-new:] if new <= len(losses) else losses)
        scored += new
        if scored == len(ids):
            return found
        start += stride


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize(("window", "stride"), [(16, 4), (16, 15), (40, 7)])
@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
def test_scores_are_those_of_whole_logits_window_by_window(window, stride, bos, batch_tokens):
    model, docs = tiny(), texts(61, 40, 16)
    found = losses(
        docs, model_nll(model, chunk=5), window=window, stride=stride, bos=bos,
        batch_tokens=batch_tokens, watch=iter,
    )  # fmt: skip
    got = by_window(found)
    expected = [w for d in docs for w in plain_windows(model, d.tolist(), window, stride, bos)]
    assert got.tokens.tolist() == [len(w) for w in expected]
    for nats, plain in zip(found, expected, strict=True):
        assert nats == pytest.approx(plain, abs=1e-5)
    assert got.nats == pytest.approx([sum(w) for w in expected], abs=1e-4)
    everything = [loss for w in expected for loss in w]
    assert got.token_weighted == pytest.approx(math.exp(np.mean(everything)), rel=1e-5)
    means = [np.mean(w) for w in expected]
    assert got.window_mean == pytest.approx(math.exp(np.mean(means)), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_size_of_chunks_changes_nothing(chunk):
    model, tokens = tiny(), torch.from_numpy(np.stack(texts(30, 30)))
    whole = model_nll(model)(tokens, 29)
    assert whole.dtype == torch.float32
    assert whole.shape == (2, 29)
    assert torch.allclose(model_nll(model, chunk=chunk)(tokens, 29), whole, atol=1e-5)
    assert torch.allclose(model_nll(model)(tokens, 4), whole[:, -4:], atol=1e-5)


def test_the_two_averages_on_a_case_by_hand():
    # A window that scores 30 tokens at 2 nats and two that score 10 each at 1 nat.
    scores = Scores(np.array([60.0, 10.0, 10.0]), np.array([30, 10, 10]))
    assert scores.token_weighted == pytest.approx(math.exp(80 / 50))
    assert scores.window_mean == pytest.approx(math.exp((2 + 1 + 1) / 3))


def test_a_loss_that_is_no_number_stops_the_evaluation():
    with pytest.raises(UserError, match="not finite"):
        Scores(np.array([1.0, math.nan]), np.array([1, 1]))


document_lengths = st.lists(st.integers(1, 90), min_size=1, max_size=4)


@given(document_lengths, st.integers(2, 40), st.data(), st.booleans())
def test_every_token_is_scored_once_with_as_much_context_as_there_is(n, window, data, has_bos):
    stride = data.draw(st.integers(1, window - 1))
    scored: dict[int, list[int]] = {i: [] for i in range(len(n))}
    for w in windows_of(n, window=window, stride=stride, has_bos=has_bos):
        assert w.end - w.start + has_bos <= window
        assert w.n_scored > 0
        first = w.end - w.n_scored
        scored[w.document] += range(first, w.end)
        assert w.start == 0 or first - w.start >= window - has_bos - stride
    assert [*scored.values()] == [list(range(0 if has_bos else 1, k)) for k in n]


def test_the_bump_of_the_paper_is_one_window_against_sixty_five():
    # Documents cut to 32,768 tokens: at 32,768 each token of the one window counts the same.
    sizes = {w: len(windows_of([32_768], window=w, stride=256, has_bos=False))
             for w in (16_384, 32_768)}  # fmt: skip
    assert sizes == {16_384: 65, 32_768: 1}


@pytest.mark.parametrize("bos", [None, BOS])
def test_loss_by_position_is_that_of_whole_logits(bos):
    model, docs, edges = tiny(), texts(40, 33), [1, 2, 4, 8, 16, 32]
    head = [] if bos is None else [bos]
    cut = [d[: 32 - len(head)] for d in docs]
    found = losses(cut, model_nll(model), window=32, stride=32, bos=bos, batch_tokens=1, watch=iter)
    got = by_position(found, edges)
    plain = np.array([plain_nll(model, (head + d.tolist())[:32]) for d in docs])
    assert got.tokens.tolist() == [2, 4, 8, 16, 32]
    expected = [plain[:, a - 1 : b - 1].sum() for a, b in pairwise(edges)]
    assert got.nats == pytest.approx(expected, rel=1e-5)


def test_positions_before_the_first_edge_are_left_out():
    got = by_position([np.arange(1.0, 20), np.ones(19)], [10, 15, 20])
    assert got.tokens.tolist() == [10, 10]
    assert got.nats.tolist() == [sum(range(10, 15)) + 5, sum(range(15, 20)) + 5]


def test_documents_of_a_data_set_are_put_together_again(builder: Builder):
    records = [*documents(3, 12, high=400), {"text": "a long one. " * 400, "id": "long"}]
    write_jsonl(builder.folder / "a.jsonl", records)
    built = builder.build(
        {"a": {"weight": 1, "path": "a.jsonl", "max_passes": 3}}, tokens=20_000
    )  # fmt: skip
    tokenizer = load_tokenizer(str(built.dataset.folder))
    wanted = {tuple(tokenizer.encode([record["text"]])[0].tolist()) for record in records}
    got = [tuple(ids.tolist()) for _, ids in dataset_documents(built.dataset)]
    assert len(got) == len(set(got))
    whole = [ids for ids in got if ids in wanted]
    cut = [ids for ids in got if ids not in wanted]
    assert max(map(len, whole)) > built.dataset.seq_len, "of more than one sequence"
    assert len(whole) >= len(got) - 2
    assert all(any(full[: len(ids)] == ids for full in wanted) for ids in cut)


def test_text_files_are_documents_and_so_are_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    write_jsonl(tmp_path / "b.jsonl", [{"text": "three\u2028"}, {"text": "four"}])
    paths = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    found = {name: ids.tolist() for name, ids in text_documents(paths, lambda t: [*t.encode()])}
    a, b = map(str, paths)
    assert found == {
        a: [*b"one\ntwo"], f"{b}:1": [*"three\u2028".encode()], f"{b}:2": [*b"four"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good \xff bad", "byte 5 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"body": 1}', ":2: no JSON object"),
        ("a.jsonl", b"[]", ":1: no JSON object"),
        ("a.jsonl", b'{"text": 5}', ":1: no JSON object"),
    ],
)
def test_a_file_that_holds_no_text_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(text_documents([tmp_path / name], lambda t: [*t.encode()]))


def test_the_first_documents_that_are_long_enough_are_taken_and_no_more_is_read():
    def source():
        yield from (("short", np.zeros(3)), ("a", np.zeros(5)), ("b", np.zeros(9)))
        raise AssertionError("read on")

    assert list(long_documents(source(), least=5, wanted=2)) == ["a", "b"]


def test_too_few_documents_are_refused_with_what_they_have():
    source = [("a", np.zeros(5)), ("b", np.zeros(3)), ("c", np.zeros(4))]
    with pytest.raises(
        UserError, match=r"documents with 5 tokens or more: 1, wanted: 2(.|\n)*4  c\n *3  b"
    ):
        long_documents(source, least=5, wanted=2)
    with pytest.raises(UserError, match="with 9 tokens or more: 0"):
        long_documents(source, least=9, wanted=None)
