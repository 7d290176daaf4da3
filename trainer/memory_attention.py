"""Attention of a window's newest tokens to memory and to the window, without a mask on a GPU.

Keys and values stand as [memory | window], the window's last tokens being the queries' own. So a
query sees all keys but those of the queries behind it: causal, aligned to the lower right corner,
which flash attention knows by itself.

Shapes: B texts, T queries, N keys, H heads, K key/value heads, D of a head.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.nn.functional import scaled_dot_product_attention

from pipelines.errors import UserError

Seen = Callable[[slice], tuple[Tensor, Tensor]]
"""Gives keys and values [B, heads, N, D] of some key/value heads."""


def lower_right(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of the last T of N tokens; [B, H, T, D] of q [B, H, T, D], k and v [B, K, N, D]."""
    t, n = q.shape[2], k.shape[2]
    bias = None
    # A single query sees all. On a GPU it goes the same way as many: without a bias torch may take
    # cuDNN, which plans anew for each N, so for each token that is generated.
    if t > 1 or q.is_cuda:
        # Its own constructor also makes a tensor of 2 T N numbers, which nothing reads.
        bias = cast(Any, CausalBias.__new__(CausalBias))
        bias.variant, bias.seq_len_q, bias.seq_len_kv = CausalVariant.LOWER_RIGHT, t, n
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)


def attend_all(
    q: Tensor, seen: Seen, *, kv_heads: int, scale: float, grouping: tuple[int, int] | None
) -> Tensor:
    """Attention to all keys, some heads and queries at a time; [B, T, H, D].

    Args:
        q: [B, H, T, D].
        seen: all keys and values, of which the last T are the queries' own.
        kv_heads: K.
        scale: of the scores.
        grouping: most (heads, queries) at a time.
    """
    b, h, t, d = q.shape
    heads, queries = grouping or (h, t)
    out = q.new_empty(b, t, h, d)
    for own, shared in head_slices(h, kv_heads, most=heads):
        k, v = seen(shared)
        before = k.shape[2] - t
        for start in range(0, t, queries):
            end = min(start + queries, t)
            part = q[:, own, start:end], k[:, :, : before + end], v[:, :, : before + end]
            out[:, start:end, own] = lower_right(*part, scale).transpose(1, 2)
    return out


def head_slices(heads: int, kv_heads: int, *, most: int) -> Iterator[tuple[slice, slice]]:
    """Heads, at most `most` at a time, and the key/value heads that they share."""
    group = heads // kv_heads
    whole = max(most // group * group, group)  # heads with all their key/value heads' others
    for start in range(0, heads, whole):
        stop = min(start + whole, heads)
        for first in range(start, stop, most):
            last = min(first + most, stop)
            yield slice(first, last), slice(first // group, (last - 1) // group + 1)


def faiss_module() -> Any:
    """faiss.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("faiss")
    except ImportError as error:
        raise UserError(
            "mem_top_k: the search for the best keys needs faiss-cpu (extra `[faiss]`); "
            "without `mem_top_k` all of memory is read"
        ) from error


class KeySearch:
    """Exact inner-product search over one layer's memory keys, a faiss index a text and head.

    Holds the keys once more, as float32 in the host's memory.
    """

    def __init__(self) -> None:
        self._indexes: list[list[Any]] = []

    def add(self, keys: Tensor) -> None:
        """Append keys [B, K, N, D]."""
        b, k, _, d = keys.shape
        if not self._indexes:
            index = faiss_module().IndexFlatIP
            self._indexes = [[index(d) for _ in range(k)] for _ in range(b)]
        for row, indexes in zip(_array(keys), self._indexes, strict=True):
            for part, index in zip(row, indexes, strict=True):
                index.add(part)

    def best(self, row: int, head: int, queries: Tensor, count: int) -> Tensor:
        """Places int64 [T, count] of the keys that queries [T, D] match best."""
        _, places = self._indexes[row][head].search(_array(queries), count)
        return torch.from_numpy(places).to(queries.device)

    def reorder(self, rows: list[int]) -> None:
        """Let each text go on from another's."""
        clone = faiss_module().clone_index
        self._indexes = [[clone(index) for index in self._indexes[row]] for row in rows]


def _array(x: Tensor) -> Any:
    return x.float().cpu().contiguous().numpy()


def attend_best(
    q: Tensor,
    memory: Sequence[Tensor],
    window: Sequence[Tensor],
    search: KeySearch,
    *,
    count: int,
    scale: float,
    grouping: tuple[int, int] | None,
) -> Tensor:
    """Attention of each query and head to its best keys in memory, and to its window; [B, T, H, D].

    Args:
        q: [B, H, T, D].
        memory: keys and values [B, K, M, D], M > 0.
        window: keys and values [B, K, P, D], of which the last T are the queries' own.
        search: over the keys of `memory`.
        count: of best keys; where memory has no more it is read whole.
        scale: of the scores.
        grouping: most (heads, queries) at a time; one key/value head's at the most.
    """
    b, h, t, d = q.shape
    kv_heads, group = memory[0].shape[1], h // memory[0].shape[1]
    heads, queries = grouping or (h, t)
    out = q.new_empty(b, t, h, d)
    for row in range(b):
        for own, shared in head_slices(h, kv_heads, most=min(heads, group)):
            far, near = (tuple(x[row, shared.start] for x in kv) for kv in (memory, window))
            for start in range(0, t, queries):
                some = q[row, own, start : start + queries]
                places = search.best(row, shared.start, some.flatten(0, 1), min(count, len(far[0])))
                own_k, own_v = (x[: len(x) - t + start + some.shape[1]] for x in near)
                far_k, far_v = (x[places].unflatten(0, some.shape[:2]).to(q.dtype) for x in far)
                result = _one_softmax(some, far_k, far_v, own_k, own_v, scale)
                out[row, start : start + queries, own] = result.transpose(0, 1)
    return out


def _one_softmax(
    q: Tensor, far_k: Tensor, far_v: Tensor, near_k: Tensor, near_v: Tensor, scale: float
) -> Tensor:
    """q [H, T, D], far [H, T, count, D] and near [P, D], whose last T are the queries' own."""
    t, p, count = q.shape[1], len(near_k), far_k.shape[2]
    far = (far_k @ q[..., None])[..., 0]
    later = torch.ones(t, p, dtype=torch.bool, device=q.device).triu(p - t + 1)
    near = (q @ near_k.T).masked_fill(later, -torch.inf)
    kind = torch.promote_types(q.dtype, torch.float32)
    weights = (torch.cat([far, near], dim=-1).to(kind) * scale).softmax(-1).to(q.dtype)
    read = (weights[..., None, :count] @ far_v)[..., 0, :]
    return read + weights[..., count:] @ near_v
