"""flash-attn-4's operators over a dense stand-in for its kernels: gradients, compilation."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from attention_oracle import dense_attention, install
from torch import Tensor, nn
from torch._dynamo.utils import counters

from trainer.attention import plan_of
from trainer.fa4 import fa4_backward, fa4_forward
from trainer.model import build_model, model_config
from trainer.parallel import draw_weights, prepare_model, process_group
from trainer.rope import Rope

torch.set_num_threads(1)
B, T, H, K, D = 2, 48, 4, 2, 8


@pytest.fixture
def calls(monkeypatch) -> list[dict[str, Any]]:
    """What the kernels are called with."""
    noted: list[dict[str, Any]] = []
    install(monkeypatch, noted)
    return noted


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v [B, T, heads, D], laid out as transformers' layers give them: heads before tokens."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(B, n, T, D, generator=g, dtype=dtype).transpose(1, 2) for n in (H, K, K)]


BORDERS = {
    "one context a row": (0, 48, 96),
    "documents": (0, 1, 30, 48, 61, 96),
}


@pytest.mark.parametrize("which", ["one context a row", "documents"])
def test_the_operator_is_attention_with_its_gradients(calls, which):
    borders = torch.tensor(BORDERS[which], dtype=torch.int32)
    ours, exact = ([x.clone().requires_grad_() for x in inputs()] for _ in range(2))
    out, lse = fa4_forward(*ours, borders, 0.3)
    expected = dense_attention(*(x.transpose(1, 2) for x in exact), borders, 0.3)
    assert out.shape == (B, T, H, D) and not lse.requires_grad
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for x, y in zip(ours, exact, strict=True):
        assert x.grad is not None
        # The log-sum-exp is float32, as the kernel's is.
        torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    varlen = which == "documents"
    assert [(c["pass"], c["varlen"]) for c in calls] == [("forward", varlen), ("backward", varlen)]
    assert calls[0]["q"] == ((B * T, H, D) if varlen else (B, T, H, D))
    assert calls[1]["lse"] == ((H, B * T) if varlen else (B, H, T))


@pytest.mark.parametrize("which", ["one context a row", "documents"])
def test_what_is_traced_has_the_shapes_of_what_runs(calls, which):
    q, k, v = inputs(torch.float32)
    borders = torch.tensor(BORDERS[which], dtype=torch.int32)
    forward = (q, k, v, borders, 0.3)
    out, lse = fa4_forward(*forward)
    backward = (torch.ones_like(out), q, k, v, out, lse, borders, 0.3)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(fa4_forward, forward, test_utils=checks)
    torch.library.opcheck(fa4_backward, backward, test_utils=checks)


# --- compiled and recomputed layers --------------------------------------------------------

TOKENS = torch.randint(0, 640, (2, 64), generator=torch.Generator().manual_seed(0))
LABELS = torch.where(torch.arange(64) % 9 == 8, -100, TOKENS.roll(-1, 1))
CONTEXTS = ((0, 64, 128), (0, 40, 64, 128), (0, 1, 2, 40, 64, 100, 128))


def results(checkpointing: Any, *, compiled: bool) -> list[tuple[float, list[Tensor]]]:
    """Loss and gradients for one number of contexts after the other."""
    with process_group() as device:
        config = model_config("shape:tiny", vocabulary=640, rope=Rope(), seq_len=64)
        model: Any = build_model(config, backend="fa4", loss_chunk=50)
        prepare_model(model, checkpointing=checkpointing, compiled=compiled,
                      compute=torch.float32, backend="fa4")  # fmt: skip
        draw_weights(model, seed=1, device=device)
        found = []
        for contexts in CONTEXTS:
            plan = plan_of(torch.tensor(contexts, dtype=torch.int32), shape=(2, 64), backend="fa4")
            loss = model(TOKENS, torch.arange(64).expand(2, 64), LABELS, **plan)
            loss.backward()
            gradients = [p.grad.full_tensor().clone() for p in model.parameters()]
            found.append((loss.item(), gradients))
            model.zero_grad()
        return found


@pytest.fixture
def plain(calls) -> list[tuple[float, list[Tensor]]]:
    found = results("none", compiled=False)
    calls.clear()
    return found


def assert_close(found: Any, expected: Any) -> None:
    for (loss, gradients), (other, others) in zip(found, expected, strict=True):
        assert loss == pytest.approx(other, rel=1e-5)
        torch.testing.assert_close(gradients, others, atol=1e-4, rtol=1e-4)


FORWARDS = {"none": 1, "mlp": 1, "attention": 1, "full": 2}
"""How often attention runs forward in a layer: what is kept is not computed again."""


@pytest.mark.parametrize("checkpointing", FORWARDS)
def test_recomputed_layers_give_the_same_gradients(calls, plain, checkpointing):
    assert_close(results(checkpointing, compiled=False), plain)
    forwards = sum(call["pass"] == "forward" for call in calls)
    assert forwards == FORWARDS[checkpointing] * 2 * len(CONTEXTS)


@pytest.mark.parametrize("checkpointing", FORWARDS)
def test_compiled_layers_are_one_graph_for_any_number_of_contexts(
    calls, plain, checkpointing, monkeypatch
):
    # What is compiled and recomputed is decided before code is generated, which takes longest.
    without_code = functools.partialmethod(nn.Module.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(nn.Module, "compile", without_code)
    torch._dynamo.reset()
    counters.clear()
    assert_close(results(checkpointing, compiled=True), plain)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    forwards = sum(call["pass"] == "forward" for call in calls)
    assert forwards == FORWARDS[checkpointing] * 2 * len(CONTEXTS)
