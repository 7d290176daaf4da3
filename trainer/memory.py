"""Memory layers and crossbatch training (Focused Transformer, Tworkowski et al. 2023).

A microbatch is cut into *local contexts* of L tokens. In every layer a token attends causally to
its own local context. In memory layers it also sees whole local contexts before it in the
microbatch, their keys encoded as if they stood at position 0, which RoPE leaves as they are: some
of them its own document's past (positives), the others strangers (negatives). One softmax weighs
both, and gradients reach the keys and values that were looked up.

Shapes: E local contexts of L tokens, H heads, K key/value heads, D of a head, N = E * L.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from trainer.attention import BLOCK, compiled_flex, tiles_first


class Lookup(Protocol):
    """What memory layers attend by: `CrossBatch` in training, a memory of keys in inference."""

    def attend(
        self, layer: int, q: Tensor, local_k: Tensor, raw_k: Tensor, v: Tensor, scale: float
    ) -> Tensor:
        """One softmax over local context and memory; [B, T, H, D].

        Args:
            layer: number of the layer.
            q: [B, H, T, D], rotated.
            local_k: [B, K, T, D], rotated.
            raw_k: [B, K, T, D], as the projection gives them: keys at position 0.
            v: [B, K, T, D].
            scale: of the scores.
        """
        ...


class MemoryAttention(nn.Module):
    """Mixed into a transformers attention layer; without a `memory` it is that layer, bit for bit.

    Parameters are the layer's own.
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        *,
        memory: Lookup | None = None,
        **plan: Any,
    ) -> tuple[Tensor, None]:
        """Attend to the local context and to the memory; as the layer's own forward."""
        if memory is None:
            return super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **plan
            )
        layer = cast(Any, self)
        shape = (*hidden_states.shape[:-1], -1, layer.head_dim)
        q, k, v = (p(hidden_states).view(shape) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        if hasattr(layer, "q_norm"):
            q, k = layer.q_norm(q), layer.k_norm(k)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        local_q, local_k = q, k
        if layer.memory_positionals:
            local_q, local_k = (
                x.to(v.dtype) for x in apply_rotary_pos_emb(q, k, *position_embeddings)
            )
            if layer.memory_scaling != 1:
                k = k * layer.memory_scaling
        out = memory.attend(layer.layer_idx, local_q, local_k, k, v, layer.scaling)
        return layer.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), None


def add_memory_layers(model: nn.Module, layers: tuple[int, ...], *, positionals: bool) -> None:
    """Make the attention of some layers look up memory, in place; parameters keep their names."""
    stem = cast(Any, model).model
    for number in layers:
        attention = stem.layers[number].self_attn
        attention.__class__ = _memory_kind(type(attention))
        attention.memory_positionals = positionals
        # YaRN makes rotated queries and keys longer, those of position 0 too.
        attention.memory_scaling = float(stem.rotary_emb.attention_scaling)


@cache
def _memory_kind(kind: type) -> type:
    """One class for all layers: compilation asks for it, and compiles once."""
    return type(f"Memory{kind.__name__}", (MemoryAttention, kind), {})


@dataclass(frozen=True, slots=True)
class CrossBatch:
    """Which local contexts of a microbatch see which, for its memory layers."""

    extra: Tensor
    """int64 [E], how many local contexts before it each one sees."""
    length: int
    """L."""
    blocks: BlockMask | None
    """FlexAttention's tiles, on a GPU; on the CPU it is done local context by local context."""

    def attend(
        self, layer: int, q: Tensor, local_k: Tensor, raw_k: Tensor, v: Tensor, scale: float
    ) -> Tensor:
        """As `Lookup.attend`; the rows of the batch are the local contexts."""
        del layer
        e, h, length, d = q.shape
        q, local_k, raw_k, v = (
            x.transpose(0, 1).reshape(1, x.shape[1], e * length, d) for x in (q, local_k, raw_k, v)
        )
        k, v = torch.cat([local_k, raw_k], dim=2), torch.cat([v, v], dim=2)
        if self.blocks is None:
            return torch.cat([self._one(i, q, k, v, scale) for i in range(e)])
        grouped = h != local_k.shape[1]
        out = compiled_flex(q, k, v, block_mask=self.blocks, scale=scale, enable_gqa=grouped)
        return out.view(h, e, length, d).permute(1, 2, 0, 3)

    def _one(self, i: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """[1, L, H, D] of a local context: the same mask, of what it can see alone."""
        begin, n = i * self.length, q.shape[2]
        own = torch.arange(begin, begin + self.length)
        first = begin - int(self.extra[i]) * self.length
        seen = torch.cat([own, torch.arange(n + first, n + begin)])
        mask = visible(self.extra, self.length, own[:, None], seen)
        out = scaled_dot_product_attention(
            q[:, :, own], k[:, :, seen], v[:, :, seen], mask, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2)


def visible(extra: Tensor, length: int, q: Tensor, k: Tensor) -> Tensor:
    """Whether a query sees a key: the one mask of memory layers.

    Args:
        extra: int [E].
        length: L.
        q: place of a query, from 0 to N.
        k: place of a key: one rotated in its local context, from 0 to N, or raw, from N to 2 N.
    """
    n = len(extra) * length
    own, other = q // length, (k - n) // length
    local = (k < n) & (k // length == own) & (k <= q)
    memory = (k >= n) & (other < own) & (other >= own - extra[own])
    return local | memory


def cross_batch(extra: Tensor, *, local_context: int) -> CrossBatch:
    """The plan of memory layers.

    Args:
        extra: int [E], how many local contexts before it each one sees; on the device.
        local_context: L; on a GPU a multiple of 128.
    """
    cpu = extra.device.type == "cpu"
    blocks = None if cpu else memory_blocks(extra, local_context=local_context)
    return CrossBatch(extra, local_context, blocks)


def memory_blocks(extra: Tensor, *, local_context: int) -> BlockMask:
    """FlexAttention's tiles, from local contexts alone: 2 (N / 128)² numbers, never N²."""

    def mask(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(extra, local_context, q, k)

    n = len(extra) * local_context
    q, k = (torch.arange(size // BLOCK, device=extra.device) for size in (n, 2 * n))
    of_q, of_k = (tiles * BLOCK // local_context for tiles in (q[:, None], k))
    far = of_k - len(extra)
    local = (of_k == of_q) & (k < q[:, None])
    memory = (far >= 0) & (far < of_q) & (far >= of_q - extra[of_q])
    return BlockMask.from_kv_blocks(
        *tiles_first((k == q[:, None])[None]), *tiles_first((local | memory)[None]),
        BLOCK_SIZE=BLOCK, mask_mod=mask,
    )  # fmt: skip
