"""RoPE for longer sequences: linear interpolation, a larger base, YaRN.

What is set here is what transformers computes from `config.json`, so an exported checkpoint needs
nothing of this project.
"""

from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedConfig

from pipelines.errors import UserError
from pipelines.options import Frozen, Real, Whole


class Rope(Frozen):
    """How positions beyond the trained ones are told apart."""

    type: Literal["keep", "linear", "base", "yarn"] = "keep"
    """`keep` what the checkpoint says; `linear` position interpolation (Chen et al. 2023, §2.2);
    `base` a larger base (Xiong et al. 2023, §2.1); `yarn` (Peng et al. 2023, §3)."""

    factor: Annotated[Real, Field(gt=1)] | None = None
    """Of `linear` and `yarn`: the new length over the old; default: `seq_len` over the length that
    the checkpoint was trained with."""

    base: Annotated[Real, Field(gt=1)] | None = None
    """The base θ: required by `base`; the others keep the checkpoint's where it is not given."""

    original_length: Annotated[Whole, Field(ge=1)] | None = None
    """Length that the checkpoint was trained with; default: its `max_position_embeddings`."""

    @model_validator(mode="after")
    def _consistent(self) -> "Rope":
        if self.type == "base" and self.base is None:
            raise ValueError("`type: base` needs `base`, for instance 500000")
        if self.type in ("keep", "base") and self.factor is not None:
            raise ValueError(f"`factor` has no meaning with `type: {self.type}`")
        if self.type == "keep" and self.base is not None:
            raise ValueError("`base` has no meaning with `type: keep`; did you mean `type: base`?")
        if self.type in ("keep", "base") and self.original_length is not None:
            raise ValueError(f"`original_length` has no meaning with `type: {self.type}`")
        return self


def apply_rope(config: PreTrainedConfig, rope: Rope, *, seq_len: int) -> None:
    """Write RoPE settings into a transformers configuration, and the new longest position.

    Raises:
        UserError: the checkpoint is scaled already, or by the length of the text; or no factor is
            left to scale by.
    """
    before: dict[str, Any] = dict(config.rope_parameters or {})
    if before.get("rope_type") in ("dynamic", "longrope"):
        raise UserError(
            f"rope: the checkpoint's frequencies change with the length of the text ({before}); "
            "the trainer knows those that do not: default, linear, yarn, llama3"
        )
    trained: int = rope.original_length or config.max_position_embeddings
    config.max_position_embeddings = max(seq_len, config.max_position_embeddings)
    if rope.type == "keep":
        return
    if rope.type == "base":
        config.rope_parameters = {**before, "rope_theta": float(rope.base or 0)}
        return
    if before.get("rope_type", "default") != "default":
        raise UserError(
            f"rope: the checkpoint is scaled already ({before}); `{rope.type}` extends one that is "
            "not: use `type: keep` or `type: base`"
        )
    factor = rope.factor or seq_len / trained
    if factor <= 1:
        raise UserError(
            f"rope: the checkpoint reaches {trained:,} positions and sequences have {seq_len:,}: "
            "nothing to scale; use `type: keep`, or name `factor` or `original_length`"
        )
    theta = float(rope.base or before["rope_theta"])
    config.max_position_embeddings = max(seq_len, round(factor * trained))
    config.rope_parameters = {"rope_type": rope.type, "factor": factor, "rope_theta": theta}
    if rope.type == "yarn":
        config.rope_parameters["original_max_position_embeddings"] = trained


class Fp32Rotary(nn.Module):
    """transformers' rotary embedding that gives its angles' cos and sin in float32.

    transformers computes angles in float32 and rounds cos and sin to the compute type; then the
    rotation is rounded too, and scores of bfloat16 lose another third of a digit.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.config: PreTrainedConfig = inner.config  # type: ignore[assignment]
        self._kind = type(inner)
        self.inv_freq = nn.Buffer(cast(torch.Tensor, inner.inv_freq), persistent=False)
        self.attention_scaling = float(inner.attention_scaling)  # type: ignore[arg-type]

    def reset(self, device: torch.device) -> None:
        """Compute the frequencies anew, for a module that was made without memory."""
        fresh = cast(torch.Tensor, self._kind(self.config).inv_freq)
        self.inv_freq = nn.Buffer(fresh.to(device), persistent=False)

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """cos and sin, float32 [B, T, head_dim] each, of positions int64 [B, T]."""
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device).float()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
