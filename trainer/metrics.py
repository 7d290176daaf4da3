"""What a step costs and how it went: FLOPs, use of the GPU, one line a step."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from trainer.model import head_size

_PEAK = {"H100": 989.4e12, "H200": 989.4e12, "GH200": 989.4e12, "A100": 312e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of data sheets, without sparsity."""


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by its data sheet; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in sorted(_PEAK.items(), reverse=True) if key in name), None)


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of training on tokens; recomputed ones are not counted."""

    matmul_parameters: int
    """Weights of linear layers, the head's too and the embedding's not."""
    layers: int
    width: int
    """Heads times head size."""
    memory_layers: int = 0

    @classmethod
    def of(cls, model: nn.Module, *, memory_layers: int = 0) -> "Cost":
        """Counted on a model's modules."""
        config: Any = cast(Any, model).config
        counted = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        width = config.num_attention_heads * head_size(config)
        return cls(counted, config.num_hidden_layers, width, memory_layers)

    def visible(self, tokens: int, pairs: int, looked_up: int = 0) -> float:
        """FLOPs by what is needed.

        Args:
            tokens: trained on.
            pairs: of a token and one that it sees, in every layer.
            looked_up: such pairs in memory layers only.
        """
        seen = self.layers * pairs + self.memory_layers * looked_up
        return 6 * self.matmul_parameters * tokens + 12 * self.width * seen

    def non_causal(self, tokens: int, seq_len: int, looked_up: int = 0) -> float:
        """FLOPs as others count them: as if every token saw its whole sequence."""
        return self.visible(tokens, tokens * seq_len, looked_up)


@dataclass(frozen=True, slots=True)
class Step:
    """One step, over all ranks but for `data_wait`."""

    number: int
    loss: float
    """Mean over the tokens with loss, nats; NaN where there are none."""
    gradient_norm: float
    """Before clipping; NaN where no token carries loss."""
    learning_rate: float
    tokens: int
    """Processed, padding too."""
    loss_tokens: int
    seconds: float
    data_wait: float
    """Share of the seconds that this rank waited for data."""
    flops_visible: float
    flops_non_causal: float
    skipped: int = 0
    """Steps so far that changed neither weights nor states: no token carried loss, or a number was
    not finite."""


class Log:
    """One line a step: to the screen, as JSON to `log.jsonl`, and to TensorBoard."""

    def __init__(self, folder: Path, *, steps: int, ranks: int, peak: float | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._board = cast(Any, SummaryWriter)(str(folder / "tensorboard"))
        self._steps, self._ranks, self._peak = steps, ranks, peak
        self._speed: float | None = None

    def write(self, step: Step) -> None:
        """Log one step."""
        speed = step.tokens / step.seconds / self._ranks
        self._speed = speed if self._speed is None else 0.9 * self._speed + 0.1 * speed
        values: dict[str, Any] = {
            "step": step.number,
            "loss": step.loss,
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "tokens": step.tokens,
            "loss_tokens": step.loss_tokens,
            "seconds": step.seconds,
            "tokens_per_s_per_gpu": speed,
            "mfu_visible": self._mfu(step.flops_visible, step.seconds),
            "mfu_noncausal": self._mfu(step.flops_non_causal, step.seconds),
            "data_wait": step.data_wait,
            "skipped": step.skipped,
        }
        # JSON has no NaN: what is not finite is null there.
        finite = {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"time": time.time(), **finite}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, step.number)
        print(self._line(values, step), flush=True)

    def _mfu(self, flops: float, seconds: float) -> float | None:
        return flops / seconds / self._ranks / self._peak if self._peak else None

    def _line(self, values: Mapping[str, Any], step: Step) -> str:
        eta = (self._steps - step.number) * step.tokens / ((self._speed or 1) * self._ranks)
        learned = [f"loss {step.loss:.4f}", f"grad {step.gradient_norm:.3g}"]
        parts = [
            f"step {step.number:,}/{self._steps:,}",
            *(learned if step.loss_tokens else ["no token with loss, nothing changed"]),
            f"lr {step.learning_rate:.3g}",
            f"{values['tokens_per_s_per_gpu']:,.0f} tok/s/gpu",
        ]
        if self._peak:
            parts.append(
                f"mfu {values['mfu_visible']:.1%} (non-causal {values['mfu_noncausal']:.1%})"
            )
        parts += [f"data wait {step.data_wait:.1%}", f"eta {_clock(eta)}"]
        return " | ".join(parts + ([f"{step.skipped} skipped"] if step.skipped else []))

    def close(self) -> None:
        """Write out what is held."""
        self._file.close()
        self._board.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{rest:02}s"
