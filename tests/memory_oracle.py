"""A whole text in one dense forward, as windows with memory should read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from trainer.inference import MemorySettings, as_memory_model

torch.set_num_threads(1)

L = 8
"""Tokens of a window."""
SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
    "max_position_embeddings": L, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
FAMILY: dict[str, type[PreTrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config}


def settings(**values: Any) -> MemorySettings:
    """Two memory layers, exact."""
    usual = {
        "mem_layers": (0, 2), "mem_dtype": "float64", "last_context_length": 3, "local_context": L
    }  # fmt: skip
    return MemorySettings(**usual | values)


def plain_model(kind: str = "llama", **shape: Any) -> Any:
    """A random transformers model of three layers, float64."""
    torch.manual_seed(3)
    config = FAMILY[kind](**SHAPE | shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):  # which computes in float32
                setattr(module, name, torch.nn.RMSNorm(child.weight.shape, dtype=torch.float64))
    return model


def memory_model(kind: str = "llama", *, shape: dict[str, Any] | None = None, **values: Any) -> Any:
    """The same model, reading with memory."""
    model = plain_model(kind, **shape or {})
    as_memory_model(model, settings(**values))
    return model


def text(length: int, *, texts: int = 2, seed: int = 0) -> Tensor:
    """Random tokens int64 [texts, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SHAPE["vocab_size"], (texts, length), generator=generator)


def prompt_windows(length: int, last: int = 3) -> list[int]:
    """What LongLLaMA's rule makes of a prompt, and windows for what follows."""
    if length <= last:
        return [L] * 9
    whole, rest = divmod(length - last, L)
    return [L] * whole + [rest] * (rest > 0) + [L] * 9


@torch.no_grad()
def dense_logits(model: Any, tokens: Tensor, sizes: Sequence[int], s: MemorySettings) -> Tensor:
    """Logits [B, T, V] where windows have `sizes` tokens, of which the last may be more than left.

    Every pair of tokens has a score; what a token may not see is minus infinity.
    """
    total = tokens.shape[1]
    window = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[:total]
    starts = torch.tensor([sum(sizes[:n]) for n in range(len(sizes))])[window]
    q, k = torch.arange(total)[:, None], torch.arange(total)
    local = (window[:, None] == window) & (k <= q)
    memory = window < window[:, None]
    if s.mem_limit is not None:
        memory &= k >= starts[:, None] - s.mem_limit
    x = model.model.embed_tokens(tokens)
    for number, layer in enumerate(model.model.layers):
        remembers = number in s.mem_layers
        seen = torch.cat([local, memory & remembers], dim=1)
        rotated = s.mem_positionals or not remembers
        x = x + _attention(
            layer.self_attn, layer.input_layernorm(x), q[:, 0] - starts, seen, rotated, s.mem_top_k
        )
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x))


def _attention(
    a: Any, x: Tensor, positions: Tensor, seen: Tensor, rotated: bool, top: int | None
) -> Tensor:
    b, t, _ = x.shape
    d, base = a.head_dim, a.config.rope_parameters["rope_theta"]
    q, k, v = (p(x).view(b, t, -1, d) for p in (a.q_proj, a.k_proj, a.v_proj))
    if hasattr(a, "q_norm"):
        q, k = a.q_norm(q), a.k_norm(k)
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    local_q, local_k = (_rotate(y, positions, base) for y in (q, k)) if rotated else (q, k)
    scores = torch.einsum("bqhd,bkhd->bhqk", local_q, torch.cat([local_k, k], dim=1)) / d**0.5
    scores = scores.masked_fill(~seen, -torch.inf)
    if top is not None:
        far = scores[..., t:]
        best = torch.zeros_like(far, dtype=torch.bool)
        best.scatter_(-1, far.topk(min(top, t), dim=-1).indices, True)
        scores = torch.cat([scores[..., :t], far.masked_fill(~best, -torch.inf)], dim=-1)
    out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), torch.cat([v, v], dim=1))
    return a.o_proj(out.reshape(b, t, -1))


def _rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    d = x.shape[-1]
    # transformers computes frequencies and angles in float32.
    rates = 1.0 / base ** (torch.arange(0, d, 2, dtype=torch.int64).float() / d)
    angles = positions[:, None].float() * rates
    cos, sin = angles.cos().double()[:, None], angles.sin().double()[:, None]
    first, second = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def assert_close(one: Tensor, other: Tensor, *, within: float = 1e-9) -> None:
    """They are equal up to rounding, and say something."""
    assert other.std() > 0.1
    assert one.shape == other.shape
    assert (one - other).abs().max() < within
