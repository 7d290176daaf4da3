"""Attention inside contexts: no token sees another document, whatever the kernel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_oracle import contexts_of, dense_attention, dense_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention

from pipelines.errors import UserError
from trainer.attention import BLOCK, choose_backend, context_blocks, plan_of
from trainer.attention import _sdpa as sdpa
from trainer.model import build_model, model_config
from trainer.rope import Rope

torch.set_num_threads(1)


def borders_of(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


# --- isolation -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny model with large random weights, so that every change is seen."""
    config = model_config("shape:tiny", vocabulary=640, rope=Rope(), seq_len=300)
    made: Any = build_model(config, backend="sdpa", loss_chunk=64).to_empty(device="cpu")
    made.model.rotary_emb.reset(torch.device("cpu"))
    torch.manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else parameter.data.fill_(1)
    return made


@torch.no_grad()
def logits(model: Any, tokens: Tensor, *borders: int) -> Tensor:
    """With positions that run on, so that only attention knows of contexts."""
    plan = plan_of(borders_of(*borders), shape=(tokens.shape[0], tokens.shape[1]), backend="sdpa")
    return model(tokens, torch.arange(tokens.shape[1]).expand(tokens.shape), **plan)


TOKENS = torch.randint(0, 640, (2, 300), generator=torch.Generator().manual_seed(1))
DOCUMENTS = (0, 130, 211, 300, 350, 600)  # three in the first row, two in the second


@pytest.mark.parametrize("at", [0, 129, 130, 170, 210, 211, 299, 300, 349, 350, 599])
def test_no_token_sees_another_document_or_a_later_token(model, at):
    changed = TOKENS.clone()
    changed.view(-1)[at] = (changed.view(-1)[at] + 1) % 640
    one, other = (logits(model, tokens, *DOCUMENTS).flatten(0, 1) for tokens in (TOKENS, changed))
    end = next(border for border in DOCUMENTS if border > at)
    moved = (one != other).any(dim=1)
    assert not moved[:at].any() and not moved[end:].any()
    assert moved[at:end].all()


def test_whole_sequences_see_every_document_before(model):
    changed = TOKENS.clone()
    changed[0, 5] += 1
    one, other = (logits(model, tokens, 0, 300, 600) for tokens in (TOKENS, changed))
    moved = (one != other).any(dim=2)
    assert not moved[0, :5].any() and moved[0, 5:].all() and not moved[1].any()


def test_a_document_has_the_logits_that_it_has_alone(model):
    together = logits(model, TOKENS, *DOCUMENTS)
    positions = torch.arange(130, 211)[None]
    with torch.no_grad():
        plan = plan_of(borders_of(0, 81), shape=(1, 81), backend="sdpa")
        alone = model(TOKENS[:1, 130:211], positions, **plan)
    torch.testing.assert_close(together[:1, 130:211], alone, atol=1e-5, rtol=1e-5)


# --- kernels against a dense float64 reference ---------------------------------------------


def random_qkv(b: int, heads: int, kv_heads: int, t: int, d: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(t)
    return [torch.randn(b, h, t, d, generator=g, dtype=torch.float64)
            for h in (heads, kv_heads, kv_heads)]  # fmt: skip


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("t", "borders"),
    [(150, (0, 150, 300)), (150, (0, 1, 98, 150, 277, 300)), (256, (0, 130, 256, 385, 512)),
     (77, (0, 77, 154))],
)  # fmt: skip
def test_sdpa_has_the_values_and_gradients_of_dense_attention(t, borders, kv_heads):
    exact = random_qkv(2, 4, kv_heads, t, 8)
    single = [x.float().requires_grad_() for x in exact]
    exact = [x.requires_grad_() for x in exact]
    reference = dense_attention(*exact, borders_of(*borders), 0.3)
    found = sdpa(*single, 0.3, borders=borders_of(*borders))
    assert found.shape == (2, t, 4, 8)
    torch.testing.assert_close(found.double(), reference, atol=2e-6, rtol=1e-5)
    weight = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)).double()
    (reference * weight).sum().backward()
    (found * weight.float()).sum().backward()
    for x, y in zip(single, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        torch.testing.assert_close(x.grad.double(), y.grad, atol=2e-5, rtol=1e-4)


# --- tiles ---------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[tuple[int, int], Tensor]:
    rows, tiles = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    t = tiles * BLOCK
    near = st.integers(0, tiles).flatmap(lambda n: st.integers(n * BLOCK - 2, n * BLOCK + 2))
    starts = {0}
    for row in range(rows):
        inside = draw(st.lists(st.one_of(st.integers(0, t - 1), near), max_size=6))
        starts |= {row * t} | {row * t + i for i in inside if 0 <= i < t}
    return (rows, t), borders_of(*sorted(starts), rows * t)


@given(batches())
@settings(max_examples=150)
def test_tiles_cover_what_is_visible_and_nothing_more(batch):
    shape, borders = batch
    blocks = context_blocks(borders, shape=shape)
    mask = dense_mask(borders, shape)
    n = shape[1] // BLOCK
    tiles = mask.view(shape[0], n, BLOCK, n, BLOCK).transpose(2, 3).flatten(3)
    assert torch.equal(listed(blocks.full_kv_num_blocks, blocks.full_kv_indices), tiles.all(-1))
    part = tiles.any(-1) & ~tiles.all(-1)
    assert torch.equal(listed(blocks.kv_num_blocks, blocks.kv_indices), part)
    rows = [torch.arange(k) for k in (shape[0], shape[1], shape[1])]
    b, q, k = torch.meshgrid(*rows, indexing="ij")
    assert torch.equal(blocks.mask_mod(b, torch.zeros_like(b), q, k), mask)


def listed(counts: Tensor, indices: Tensor) -> Tensor:
    """bool [B, Q, K]: which tiles a row of tiles names among its first `counts`."""
    chosen = torch.zeros(indices.shape, dtype=torch.bool)
    in_use = torch.arange(indices.shape[-1]) < counts[..., None]
    chosen.scatter_(-1, indices.long(), in_use)
    assert torch.equal(chosen.sum(-1, dtype=torch.int32), counts)  # each tile once
    return chosen[:, 0]


def test_flex_attention_by_these_tiles_is_dense_attention():
    borders = borders_of(0, 100, 128, 300, 384, 384 + 200, 768)
    q, k, v = (x.float() for x in random_qkv(2, 4, 2, 384, 16))
    blocks = context_blocks(borders, shape=(2, 384))
    compiled = torch.compile(flex_attention, dynamic=False)
    found = compiled(q, k, v, block_mask=blocks, scale=0.25, enable_gqa=True).transpose(1, 2)
    expected = dense_attention(q.double(), k.double(), v.double(), borders, 0.25)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=1e-5)


# --- the choice ----------------------------------------------------------------------------


def choice(asked: Any, **values: Any) -> str:
    options = {
        "documents": True,
        "seq_len": 256,
        "head_size": 64,
        "compute": torch.bfloat16,
    } | values
    options = {"device": torch.device("cpu")} | options
    return choose_backend(asked, **options)


def test_the_cpu_has_one_kernel():
    assert choice("auto") == choice("sdpa") == choice("auto", documents=False) == "sdpa"


@pytest.mark.parametrize(
    ("installed", "capability", "documents", "seq_len", "expected"),
    [
        (True, (9, 0), True, 256, "fa4"),
        (True, (9, 0), False, 200, "fa4"),
        (True, (8, 0), True, 256, "flex"),
        (True, (8, 0), False, 256, "cudnn"),
        (False, (9, 0), True, 256, "flex"),
        (False, (9, 0), False, 256, "cudnn"),
    ],
)
def test_auto_takes_the_fastest_that_is_there(
    monkeypatch, installed, capability, documents, seq_len, expected
):
    pretend_gpu(monkeypatch, installed, capability)
    cuda = torch.device("cuda", 0)
    assert choice("auto", device=cuda, documents=documents, seq_len=seq_len) == expected


def test_heads_that_fast_kernels_cannot_take_are_left_to_flex(monkeypatch):
    pretend_gpu(monkeypatch, installed=True, capability=(9, 0))
    cuda = torch.device("cuda", 0)
    assert choice("auto", device=cuda, head_size=100) == "flex"
    assert choice("auto", device=cuda, compute=torch.float32) == "flex"
    assert choice("auto", device=cuda, compute=torch.float32, documents=False) == "flex"


def test_a_gpu_is_never_left_to_the_loop_over_contexts_unasked(monkeypatch):
    pretend_gpu(monkeypatch, installed=False, capability=(9, 0))
    cuda = torch.device("cuda", 0)
    with pytest.raises(
        UserError, match=r"^attention: no kernel works here: `fa4` needs .*; `flex`"
    ):
        choice("auto", device=cuda, seq_len=200)
    assert choice("sdpa", device=cuda, seq_len=200) == "sdpa"


def pretend_gpu(monkeypatch, installed: bool, capability: tuple[int, int]) -> None:
    monkeypatch.setattr("trainer.attention.find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("asked", "documents", "seq_len", "needs"),
    [
        (
            "fa4",
            True,
            256,
            r"flash-attn-4 \(extra `\[fa4\]`\), a Hopper .* and heads of a multiple of 8",
        ),
        (
            "cudnn",
            True,
            256,
            "a CUDA device, `documents: false`, `compute: bfloat16` and heads of a multiple of 8",
        ),
        ("flex", True, 200, "a CUDA device and sequences of a multiple of 128"),
    ],
)
def test_a_kernel_that_cannot_is_refused_with_what_it_needs(
    monkeypatch, asked, documents, seq_len, needs
):
    pretend_gpu(monkeypatch, installed=False, capability=(9, 0))
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        with pytest.raises(UserError, match=rf"^attention: `{asked}` needs {needs}; `auto` takes"):
            choice(asked, device=device, documents=documents, seq_len=seq_len)


def test_the_dense_reference_is_attention():
    """Guards the oracle: one query, two keys, by hand."""
    q, k, v = (torch.tensor(x).double().view(1, 1, 2, 1) for x in ([0.0, 1], [0.0, 2], [3.0, 5]))
    share = 1 / (1 + math.exp(2))
    found = dense_attention(q, k, v, borders_of(0, 2), 1.0).flatten().tolist()
    assert found == pytest.approx([3, 3 * share + 5 * (1 - share)])
    assert contexts_of(borders_of(0, 1, 2), 2).tolist() == [0, 1]
    assert create_mask(lambda b, h, q, k: q >= k, 1, 1, 2, 2, device="cpu").sum() == 3
