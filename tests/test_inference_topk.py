"""Attention to the best keys in memory only, and in groups of heads and queries."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from memory_oracle import L, assert_close, dense_logits, memory_model, plain_model, settings, text

from pipelines.errors import UserError
from trainer.inference import as_memory_model, new_cache, windows
from trainer.memory_attention import attend_all, head_slices, lower_right


def read(model, tokens, piece):
    cache = new_cache(model)
    states = [x for part in tokens.split(piece, dim=1) for x in windows(model, part, cache)]
    return model.lm_head(torch.cat(states, dim=1))


@pytest.mark.parametrize("top", [1, 3, 10, 31, 32, 33, 1000])
@pytest.mark.parametrize("grouping", [None, (1, 3)])
@pytest.mark.parametrize("piece", [40, 3])
def test_each_query_and_head_attends_to_its_best_keys_only(top, grouping, piece):
    pytest.importorskip("faiss")
    model, tokens = memory_model(mem_top_k=top, mem_attention_grouping=grouping), text(5 * L)
    expected = dense_logits(model, tokens, [L] * 5, model.memory_settings)
    assert_close(read(model, tokens, piece), expected)


@pytest.mark.parametrize("options", [{}, {"shape": {"num_key_value_heads": 4, "head_dim": 10}}])
@pytest.mark.parametrize("kept", ["float64", "float32"])
def test_as_many_keys_as_memory_has_are_all_of_it(options, kept):
    pytest.importorskip("faiss")
    tokens = text(5 * L)
    few, all_of_it = (memory_model(mem_top_k=k, mem_dtype=kept, **options) for k in (99, None))
    assert_close(few(tokens).logits, all_of_it(tokens).logits)


def test_fewer_keys_than_memory_has_are_less():
    pytest.importorskip("faiss")
    few, all_of_it = (memory_model(mem_top_k=k) for k in (2, None))
    tokens = text(5 * L)
    assert (few(tokens).logits - all_of_it(tokens).logits).abs().max() > 1e-3


def test_beam_search_takes_the_index_along():
    pytest.importorskip("faiss")
    found = [
        memory_model(mem_top_k=k).generate(text(21), num_beams=3, max_new_tokens=20)
        for k in (99, None)
    ]
    assert torch.equal(*found)


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"extra `\[faiss\]`"):
        as_memory_model(plain_model(), settings(mem_top_k=3))


@tries(max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(0, 9),
    st.integers(1, 13), st.integers(1, 10),
)  # fmt: skip
def test_groups_of_heads_and_queries_change_nothing(kv_heads, group, t, before, heads, queries):
    torch.manual_seed(1)
    q = torch.randn(2, kv_heads * group, t, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, before + t, 8, dtype=torch.float64)
    found = attend_all(
        q, lambda some: (k[:, some], v[:, some]), kv_heads=kv_heads, scale=0.5,
        grouping=(heads, queries),
    )  # fmt: skip
    scores = 0.5 * q @ k.repeat_interleave(group, dim=1).transpose(2, 3)
    later = torch.ones(t, before + t, dtype=torch.bool).triu(before + 1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    expected = (weights @ v.repeat_interleave(group, dim=1)).transpose(1, 2)
    assert (found - expected).abs().max() < 1e-12


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40))
def test_groups_hold_each_head_once_with_the_keys_that_it_shares(kv_heads, group, most):
    heads = kv_heads * group
    seen = []
    for own, shared in head_slices(heads, kv_heads, most=most):
        part, keys = range(heads)[own], range(kv_heads)[shared]
        assert len(part) <= most
        each = len(part) // len(keys)  # as grouped attention shares keys out
        assert [n // group for n in part] == [key for key in keys for _ in range(each)]
        seen += part
    assert seen == list(range(heads))


def test_a_causal_corner_makes_no_tensor_of_queries_by_memory():
    q = torch.empty(1, 1, 10**6, 8, device="meta")
    k = torch.empty(1, 1, 2 * 10**6, 8, device="meta")  # torch's own constructor takes 16 TB here
    assert lower_right(q, k, k, 1.0).shape == q.shape
