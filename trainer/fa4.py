"""flash-attn-4 as two operators that torch.compile and selective checkpointing can see.

Shapes: B sequences of T tokens, H heads, K key/value heads, D of a head, n contexts.
"""

from typing import Any

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]


def _layout(borders: Tensor, *tensors: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """Rows as they are where each is one context, which is faster; else all tokens in one row."""
    if borders.numel() - 1 == tensors[0].shape[0]:
        return list(tensors), {}
    return [t.flatten(0, 1) for t in tensors], {"cu_seqlens_q": borders, "cu_seqlens_k": borders}


@torch.library.custom_op("longcontext::fa4_forward", mutates_args=())
def fa4_forward(
    q: Tensor, k: Tensor, v: Tensor, borders: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside contexts.

    Args:
        q: bfloat16 [B, T, H, D].
        k: bfloat16 [B, T, K, D].
        v: bfloat16 [B, T, K, D].
        borders: int32 [n+1] of the flattened B * T tokens; every row begins a context.
        scale: of the scores.

    Returns:
        Output [B, T, H, D], and the log-sum-exp of the scores, float32, [B, H, T] or [H, B * T],
        flat.
    """
    from flash_attn.cute.interface import _flash_attn_fwd  # type: ignore[import-not-found]

    tensors, contexts = _layout(borders, q, k, v)
    out, lse, *_ = _flash_attn_fwd(
        *tensors, softmax_scale=scale, causal=True, return_lse=True, **contexts
    )
    return out.view(q.shape), lse.contiguous().view(-1)


@torch.library.custom_op("longcontext::fa4_backward", mutates_args=())
def fa4_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    borders: Tensor,
    scale: float,
) -> Triple:
    """Gradients of q, k and v; shapes as in `fa4_forward`."""
    from flash_attn.cute.interface import _flash_attn_bwd  # type: ignore[import-not-found]

    tensors, contexts = _layout(borders, q, k, v, out, grad.contiguous())
    heads = q.shape[2]
    lse = lse.view(heads, -1) if contexts else lse.view(q.shape[0], heads, -1)
    found = _flash_attn_bwd(*tensors, lse, softmax_scale=scale, causal=True, **contexts)[:3]
    dq, dk, dv = (g.reshape(x.shape).contiguous() for g, x in zip(found, (q, k, v), strict=True))
    return dq, dk, dv


@fa4_forward.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(q), q.new_empty(q.shape[0] * q.shape[1] * q.shape[2], dtype=torch.float32)


@fa4_backward.register_fake
def _(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Triple:
    return _like(q), _like(k), _like(v)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, borders, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, borders)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    q, k, v, out, lse, borders = ctx.saved_tensors
    return *fa4_backward(grad, q, k, v, out, lse, borders, ctx.scale), None, None


fa4_forward.register_autograd(_backward, setup_context=_setup)
