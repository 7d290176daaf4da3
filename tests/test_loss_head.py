"""The loss in pieces is the loss: values and gradients, whatever the size of the pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.loss import IGNORE, LossHead, as_loss_head

torch.set_num_threads(1)


def head(chunk: int, dtype: torch.dtype = torch.float32) -> LossHead:
    torch.manual_seed(1)
    return as_loss_head(nn.Linear(6, 11, bias=False, dtype=dtype), chunk=chunk)


def hidden(rows: int, tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + tokens)
    return (3 * torch.randn(rows, tokens, 6, generator=generator)).to(dtype).requires_grad_()


def labels_of(ids: list[int], rows: int) -> Tensor:
    return torch.tensor([IGNORE if i < 0 else i for i in ids]).view(rows, -1)


def exact(h: Tensor, linear: nn.Linear, labels: Tensor, factor: float) -> tuple[Tensor, ...]:
    """PyTorch's own, float64: the summed loss, and gradients of hidden states and weight."""
    x, w = (t.detach().double().requires_grad_() for t in (h, linear.weight))
    logits = (x @ w.t()).flatten(0, -2)
    loss = cross_entropy(logits, labels.flatten().long(), ignore_index=IGNORE, reduction="sum")
    return loss, *torch.autograd.grad(loss * factor, (x, w))


@given(
    rows=st.integers(1, 3),
    ids=st.lists(st.integers(-3, 10), min_size=1, max_size=20),
    chunk=st.integers(1, 25),
    factor=st.sampled_from([1.0, 0.125, 3.0]),
    integers=st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=150)
def test_any_chunk_gives_pytorch_s_loss_and_gradients(rows, ids, chunk, factor, integers):
    labels = labels_of(ids * rows, rows).to(integers)
    linear, h = head(chunk), hidden(rows, len(ids))
    loss = linear(h, labels)
    (loss * factor).backward()
    expected, d_hidden, d_weight = exact(h, linear, labels, factor)
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(h.grad.double(), d_hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(linear.weight.grad.double(), d_weight, atol=1e-4, rtol=1e-5)


def test_tokens_without_loss_have_none_and_no_gradient():
    linear, h = head(2), hidden(1, 5)
    loss = linear(h, labels_of([IGNORE, 4, IGNORE, IGNORE, 7], 1))
    loss.backward()
    assert (h.grad[0] == 0).all(dim=1).tolist() == [True, False, True, True, False]
    none = linear(h, torch.full((1, 5), IGNORE))
    assert none.item() == 0.0
    none.backward()
    assert torch.isfinite(h.grad).all()


def test_bfloat16_is_off_by_its_rounding_alone():
    labels = torch.arange(400).remainder(11).view(4, 100)
    linear, h = head(64, torch.bfloat16), hidden(4, 100, torch.bfloat16)
    loss = linear(h, labels)
    loss.backward()
    expected, d_hidden, d_weight = exact(h, linear, labels, 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for found, right in ((h.grad, d_hidden), (linear.weight.grad, d_weight)):
        assert found.dtype == torch.bfloat16
        error = (found.double() - right).norm() / right.norm()
        assert error < 0.01


def test_large_logits_do_not_overflow():
    linear = head(4)
    h = (1e4 * hidden(1, 8).detach()).requires_grad_()
    loss = linear(h, torch.zeros(1, 8, dtype=torch.int64))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(h.grad).all()


def test_without_gradients_the_loss_is_the_same():
    linear, h, labels = head(3), hidden(2, 7), torch.arange(14).remainder(11).view(2, 7)
    with torch.no_grad():
        plain = linear(h, labels)
    assert torch.equal(plain, linear(h, labels).detach())


def test_without_labels_it_is_the_linear_layer_that_it_was():
    linear = nn.Linear(6, 11, bias=False)
    weight, h = linear.weight, hidden(2, 5)
    expected = linear(h)
    made = as_loss_head(linear, chunk=3)
    assert made is linear and made.weight is weight
    assert torch.equal(made(h), expected)


def test_a_bias_is_refused():
    with pytest.raises(ValueError, match="bias"):
        as_loss_head(nn.Linear(6, 11), chunk=3)
