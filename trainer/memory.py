"""Memory layers and crossbatch training (Focused Transformer, Tworkowski et al. 2023).

A microbatch is cut into *local contexts* of L tokens. In every layer a token attends causally to
its own local context. In memory layers it also sees whole local contexts before it in the
microbatch, their keys encoded as if they stood at position 0, which RoPE leaves as they are: some
of them its own document's past (positives), the others strangers (negatives). One softmax weighs
both, and gradients reach the keys and values that were looked up.

Shapes: E local contexts of L tokens, H heads, K key/value heads, D of a head, N = E * L.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pipelines.options import Frozen, Whole
from trainer.attention import BLOCK, compiled_flex, tiles_first

Natural = Annotated[Whole, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]


class Memory(Frozen):
    """Memory layers, and what they see in training (crossbatch)."""

    layers: Annotated[tuple[Natural, ...], Field(min_length=1)]
    """Numbers of the memory layers, from 0; LongLLaMA-3B has 6, 12, 18 and 7B 8, 16, 24."""

    local_context: Count | None = None
    """L: tokens of a local context; default: `seq_len` of the data set, which it must divide."""

    packing: Count = 1
    """k: local contexts that follow each other in one stream; the data set must keep as many
    together (`stream_sequences` times `seq_len` / L)."""

    stepping: bool = True
    """Whether the first of k local contexts sees none, and each later one more than the one before;
    otherwise all see as many."""

    range: Natural | None = None
    """r: the most local contexts that one sees beside its own; 0 turns memory off."""

    range_from: dict[Natural, Natural] | None = None
    """Instead: r by the step (counted from 0) that it begins at."""

    range_choices: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = None
    """Instead: one of these is drawn for every step."""

    positionals: bool = True
    """Whether queries and local keys of memory layers are rotated; plain Llama needs it."""

    @model_validator(mode="after")
    def _consistent(self) -> "Memory":
        names = ("range", "range_from", "range_choices")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            have = " and ".join(f"`{name}`" for name in given) or "none"
            raise ValueError(
                f"give one of `range`, `range_from` and `range_choices` (given: {have})"
            )
        if self.range_from is not None and 0 not in self.range_from:
            raise ValueError("`range_from` must say what r is from step 0 on")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"`layers` names one twice: {list(self.layers)}")
        return self

    def ranges(self) -> set[int]:
        """Every r that a step may have."""
        if self.range is not None:
            return {self.range}
        return set((self.range_from or {}).values()) | set(self.range_choices or ())

    def range_at(self, step: int, *, seed: int) -> int:
        """r of a step, counted from 0."""
        if self.range is not None:
            return self.range
        if self.range_from is not None:
            return self.range_from[max(s for s in self.range_from if s <= step)]
        choices = self.range_choices or ()
        return choices[int(np.random.default_rng([seed, step]).integers(len(choices)))]


def extra_contexts(
    entries: int, *, range: int, packing: int, stepping: bool
) -> npt.NDArray[np.int64]:
    """How many local contexts before it each one sees: int64 [entries].

    None sees later ones. Of those that local context i sees, the nearest i mod `packing` are of its
    own stream. As `cross_batch_attention` of the published code counts them.
    """
    place = np.arange(entries)
    most = 1 + range
    step = -(-most // max(packing - 1, 1))
    seen = np.full(entries, most)
    if stepping and packing > 1:
        seen = np.minimum(place % packing * step + 1, most)
    return np.minimum(seen, place + 1) - 1


def positives_and_negatives(*, range: int, packing: int, stepping: bool) -> list[tuple[int, int]]:
    """How many local contexts of its own stream, and of others, each of `packing` slots sees."""
    first = -(-range // packing) * packing  # of a pack that has enough others before it
    extra = extra_contexts(first + packing, range=range, packing=packing, stepping=stepping)[first:]
    own = [min(slot, seen) for slot, seen in enumerate(extra.tolist())]
    return [(near, seen - near) for near, seen in zip(own, extra.tolist(), strict=True)]


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
        out = memory.attend(layer.layer_idx, local_q, local_k, k, v, layer.scaling)
        return layer.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), None


def add_memory_layers(model: nn.Module, layers: tuple[int, ...], *, positionals: bool) -> None:
    """Make the attention of some layers look up memory, in place; parameters keep their names."""
    for number in layers:
        attention: Any = cast(Any, model).model.layers[number].self_attn
        kind = type(attention)
        attention.__class__ = type(f"Memory{kind.__name__}", (MemoryAttention, kind), {})
        attention.memory_positionals = positionals


@dataclass(frozen=True, slots=True)
class CrossBatch:
    """Which local contexts of a microbatch see which, for its memory layers."""

    blocks: BlockMask | None
    """FlexAttention's tiles, on a GPU."""
    mask: Tensor | None
    """bool [N, 2 N], on the CPU."""

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
        if self.blocks is not None:
            grouped = h != k.shape[1]
            out = compiled_flex(q, k, v, block_mask=self.blocks, scale=scale, enable_gqa=grouped)
        else:
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=self.mask, scale=scale, enable_gqa=True
            )
        return out.view(h, e, length, d).permute(1, 2, 0, 3)


def cross_batch(extra: Tensor, *, local_context: int) -> CrossBatch:
    """The plan of memory layers.

    Args:
        extra: int [E], how many local contexts before it each one sees; on the device.
        local_context: L; on a GPU a multiple of 128.
    """
    n, length = len(extra) * local_context, local_context

    def visible(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own, other = q // length, (k - n) // length
        local = (k < n) & (k // length == own) & (k <= q)
        memory = (k >= n) & (other < own) & (other >= own - extra[own])
        return local | memory

    if extra.device.type == "cpu":
        zero, at = torch.zeros(()), torch.arange(2 * n)
        return CrossBatch(None, visible(zero, zero, at[:n, None], at))
    q, k = (torch.arange(size // BLOCK, device=extra.device) for size in (n, 2 * n))
    of_q, of_k = (tiles * BLOCK // length for tiles in (q[:, None], k))
    far = of_k - len(extra)
    local = (of_k == of_q) & (k < q[:, None])
    memory = (far >= 0) & (far < of_q) & (far >= of_q - extra[of_q])
    blocks = BlockMask.from_kv_blocks(
        *tiles_first((k == q[:, None])[None]), *tiles_first((local | memory)[None]),
        BLOCK_SIZE=BLOCK, mask_mod=visible,
    )  # fmt: skip
    return CrossBatch(blocks, None)
