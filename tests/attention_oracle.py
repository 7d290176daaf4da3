"""Attention the slow way: a dense mask, in the type of what it is given."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def contexts_of(borders: Tensor, tokens: int) -> Tensor:
    """The context's number for each of the flattened tokens."""
    lengths = borders.diff().long()
    found = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    assert len(found) == tokens
    return found


def dense_mask(borders: Tensor, shape: tuple[int, int]) -> Tensor:
    """bool [B, T, T]: whether a query (first T) sees a key (second T)."""
    contexts = contexts_of(borders, shape[0] * shape[1]).view(shape)
    causal = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    return (contexts[:, :, None] == contexts[:, None, :]) & causal


def scores_of(q: Tensor, k: Tensor, borders: Tensor, scale: float) -> Tensor:
    """[B, H, T, T] of q [B, H, T, D] and k [B, K, T, D]; -inf where a key is not seen."""
    mask = dense_mask(borders, (q.shape[0], q.shape[2]))[:, None]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (q @ k.transpose(2, 3) * scale).masked_fill(~mask, -torch.inf)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, scale: float) -> Tensor:
    """[B, T, H, D] of q [B, H, T, D], k and v [B, K, T, D]."""
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    return (scores_of(q, k, borders, scale).softmax(-1) @ v).transpose(1, 2)


def dense_fa4(calls: list[dict[str, Any]]) -> dict[str, ModuleType]:
    """Modules in the place of flash-attn-4's, with its shapes; notes what they are called with.

    q, k, v are [B, T, heads, D] and the log-sum-exp [B, H, T]; or, with `cu_seqlens_q` and
    `cu_seqlens_k`, [B * T, heads, D] and [H, B * T].
    """

    def rows(tensors: tuple[Tensor, ...], borders: Tensor | None) -> tuple[list[Tensor], Tensor]:
        if borders is None:
            b, t = tensors[0].shape[:2]
            borders = torch.arange(0, b * t + 1, t, dtype=torch.int32)
        else:
            tensors = tuple(x[None] for x in tensors)
        assert all(x.ndim == 4 and x.stride(-1) == 1 for x in tensors)
        flat = [x.reshape(1, -1, *x.shape[2:]).transpose(1, 2) for x in tensors]
        return flat, borders

    def forward(
        q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, causal: bool, return_lse: bool,
        cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert causal and return_lse and (cu_seqlens_q is cu_seqlens_k)
        calls.append({"pass": "forward", "varlen": cu_seqlens_q is not None, "q": q.shape})
        (fq, fk, fv), borders = rows((q, k, v), cu_seqlens_q)
        out = dense_attention(fq, fk, fv, borders, softmax_scale)
        lse = scores_of(fq, fk, borders, softmax_scale).logsumexp(-1)[0].float()
        if cu_seqlens_q is None:  # a layout of its own, which has to be made contiguous
            lse = lse.view(q.shape[2], *q.shape[:2]).transpose(0, 1)
        return out.reshape(q.shape).contiguous(), lse

    def backward(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, lse: Tensor, *,
        softmax_scale: float, causal: bool,
        cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, None]:  # fmt: skip
        assert causal and (cu_seqlens_q is cu_seqlens_k) and grad.is_contiguous()
        calls.append({"pass": "backward", "varlen": cu_seqlens_q is not None, "lse": lse.shape})
        (fq, fk, fv, fo, fg), borders = rows((q, k, v, out, grad), cu_seqlens_q)
        if cu_seqlens_q is None:
            lse = lse.transpose(0, 1).flatten(1)
        weights = (scores_of(fq, fk, borders, softmax_scale) - lse[None, ..., None]).exp()
        group = fq.shape[1] // fk.shape[1]
        wide_k, wide_v = (x.repeat_interleave(group, dim=1) for x in (fk, fv))
        change = fg @ wide_v.transpose(2, 3) - (fg * fo).sum(-1, keepdim=True)
        change = weights * change * softmax_scale
        wide = (change.transpose(2, 3) @ fq, weights.transpose(2, 3) @ fg)
        dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in wide)
        pairs = zip((change @ wide_k, dk, dv), (q, k, v), strict=True)
        # In memory as what they are the gradients of, as the kernel's are.
        dq, dk, dv = (
            torch.empty_like(x).copy_(g.transpose(1, 2).reshape(x.shape)) for g, x in pairs
        )
        return dq, dk, dv, None

    interface = ModuleType("flash_attn.cute.interface")
    interface.__dict__.update(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    names = ("flash_attn", "flash_attn.cute")
    return {**{n: ModuleType(n) for n in names}, "flash_attn.cute.interface": interface}


def install(monkeypatch: Any, calls: list[dict[str, Any]]) -> None:
    """Put the dense stand-in where flash-attn-4 is imported from."""
    for name, module in dense_fa4(calls).items():
        monkeypatch.setitem(sys.modules, name, module)
