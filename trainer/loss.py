"""Next-token loss in pieces: logits of a few thousand tokens at a time, never of all."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

IGNORE = -100
"""Label of a token whose prediction is not learned."""


class _ChunkedLoss(Function):
    """Summed cross entropy; gradients are made on the way, so logits are computed once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if d_hidden is not None else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _matmul(hidden[part], weight.t())
            summed, d_logits = _cross_entropy(logits, labels[part], gradient=d_hidden is not None)
            loss += summed
            if d_hidden is not None and d_weight is not None:
                d_logits = d_logits.to(hidden.dtype)
                d_hidden[part] = d_logits @ weight
                d_weight += _matmul(d_logits.t(), hidden[part])
        ctx.save_for_backward(d_hidden, d_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(grads[0]), d_weight.mul_(grads[0]), None, None


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product in float32, not rounded to the type of its factors on the way."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _cross_entropy(logits: Tensor, labels: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor]:
    """Summed loss, and its gradient in the memory of the logits, float32 [N, V]."""
    learned = labels != IGNORE
    index = labels.clamp(min=0).long()[:, None]
    total = logits.logsumexp(dim=-1, keepdim=True)
    loss = ((total - logits.gather(1, index)).squeeze(1) * learned).sum()
    if gradient:
        logits.sub_(total).exp_()
        logits.scatter_add_(1, index, logits.new_full((1, 1), -1.0).expand_as(index))
        logits.mul_(learned[:, None])
    return loss, logits


class LossHead(nn.Linear):
    """An output projection that, given labels, returns the summed loss instead of logits.

    As the head does it itself, FSDP gathers its weight once and reduces its gradient once.
    """

    chunk: int
    """Tokens whose logits are held at a time."""

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [..., V] of hidden states [..., D]; given integer labels [...], summed loss."""
        if labels is None:
            return super().forward(input)
        flat = input.flatten(0, -2)
        loss = _ChunkedLoss.apply(flat, self.weight, labels.flatten(), self.chunk)
        return cast(Tensor, loss)


def as_loss_head(linear: nn.Linear, *, chunk: int) -> LossHead:
    """The same module, its parameters where they were, as a `LossHead`.

    Raises:
        ValueError: it has a bias, which no model of the Llama family has.
    """
    if cast(Any, linear).bias is not None:
        raise ValueError("a head with a bias is not supported")
    linear.__class__ = LossHead
    head = cast(LossHead, linear)
    head.chunk = chunk
    return head
