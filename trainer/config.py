"""How a model is trained: one YAML file, checked; paths come from the command line."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.errors import UserError
from pipelines.options import Frozen, Real, Share, Weight
from pipelines.yaml_model import parse_model
from trainer.rope import Rope
from trainer.schedule import Count, Memory, Natural

Decay = Annotated[Real, Field(ge=0, lt=1)]
Positive = Annotated[Real, Field(gt=0)]

FREE = ("micro_batch", "attention", "activation_checkpointing", "compile", "loss_chunk",
        "checkpoints", "log_every", "non_finite", "loader")  # fmt: skip
"""Keys that may change within a run: they move no result beyond rounding."""


class CheckpointOptions(Frozen):
    """When a run is written down."""

    every: Count = 500
    """Steps from one checkpoint to the next; the last step of a run always has one."""

    keep: Count = 2
    """Checkpoints that stay; older ones are deleted once a newer one is complete."""


class LoaderOptions(Frozen):
    """How sequences are read; the order does not depend on it."""

    workers: Count = 2
    """Threads that read and verify."""

    prefetch: Natural = 2
    """Steps that are read ahead; 0 reads when the step asks."""


class TrainConfig(Frozen):
    """Everything about a run but where its files are."""

    global_batch: Count
    """Sequences of an optimizer step, over all ranks and microbatches."""

    micro_batch: Count = 1
    """Sequences that one rank computes at a time."""

    steps: Count | None = None
    """Length of the run in optimizer steps."""

    tokens: Count | None = None
    """Length of the run in tokens, padding counted; the last step is a whole one."""

    passes: Weight | None = None
    """Length of the run in passes over the data set; what does not fill a last step is left."""

    documents: bool = True
    """Whether no token sees another document; `false` is causal attention over the sequence."""

    positions: Literal["restart", "continue"] = "restart"
    """Whether positions begin at 0 in every document, or run through the sequence; with `documents:
    true` the same but for rounding."""

    attention: Literal["auto", "fa4", "cudnn", "flex", "sdpa"] = "auto"
    """The attention kernel; `auto` takes the fastest that is installed and runs on the device."""

    rope: Rope = Rope()
    """How positions beyond the trained ones are told apart."""

    memory: Memory | None = None
    """Memory layers and crossbatch training (Focused Transformer); none by default."""

    compute: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the computation; weights, gradients' sums and Adam's states are float32 always."""

    activation_checkpointing: Literal["none", "mlp", "attention", "full"] = "attention"
    """What of a layer the backward pass computes again: nothing, its MLP, all but attention
    itself, or everything; each saves memory over the one before."""

    compile: bool = True
    """Whether decoder layers are compiled; with `sdpa` they never are."""

    loss_chunk: Count = 4096
    """Positions whose logits exist at a time."""

    learning_rate: Positive
    """The maximum, after the warm-up."""

    schedule: Literal["constant", "cosine"] = "cosine"
    """The learning rate after the warm-up."""

    warmup_steps: Natural = 0
    """Steps of a linear rise; the step after them has the maximum."""

    warmup_from: Share = 0.0
    """Share of the maximum that the first step of the warm-up has."""

    final: Share | None = None
    """Share of the maximum that the last step of `cosine` has; default: 0.1."""

    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's two decay rates."""

    eps: Positive = 1e-8
    """AdamW's ε."""

    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    """AdamW's decay of the weights, a step: this times the learning rate."""

    clip: Annotated[Real, Field(ge=0)] = 1.0
    """Largest norm of the gradient, larger ones are scaled down to it; 0 clips nothing."""

    seed: Natural = 0
    """What random weights and the order of later passes come from."""

    non_finite: Literal["stop", "skip"] = "stop"
    """What a step with an infinite gradient or none at all (NaN) does: stop the run, or leave
    the weights as they were and count it. Its documents are named in both cases."""

    checkpoints: CheckpointOptions = CheckpointOptions()
    """When a run is written down."""

    loader: LoaderOptions = LoaderOptions()
    """How sequences are read."""

    log_every: Count = 1
    """Steps from one line of the log to the next."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        given = [key for key in ("steps", "tokens", "passes") if getattr(self, key) is not None]
        if len(given) != 1:
            have = " and ".join(f"`{key}`" for key in given) or "none"
            way = "; `--set KEY=null` takes one away" if given else ""
            raise ValueError(f"give one of `steps`, `tokens` and `passes` (given: {have}){way}")
        if not self.documents and self.positions == "restart":
            raise ValueError(
                "`documents: false` needs `positions: continue`: a token that sees other documents "
                "has to know how far away they are"
            )
        if self.memory and self.documents:
            raise ValueError(
                "`memory` needs `documents: false`: local contexts are whole, and what they see of "
                "each other does not follow documents"
            )
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"`global_batch` ({self.global_batch:,}) must be a multiple of `micro_batch` "
                f"({self.micro_batch:,})"
            )
        if self.schedule == "constant" and self.final is not None:
            raise ValueError("`final` needs `schedule: cosine`")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a configuration file and apply `KEY.KEY=VALUE` overrides (`KEY.KEY=null` removes a key).

    Raises:
        UserError: the file cannot be read or is not YAML.
        FaultsError: it is YAML but no configuration; every fault is named.
    """
    what = "training configuration"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what}: {error}") from error
    holds = "`global_batch`, `learning_rate` and one of `steps`, `tokens` and `passes`"
    return parse_model(content, TrainConfig, overrides, path=str(path), what=what, holds=holds)


def config_record(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON values; `TrainConfig.model_validate` takes them back."""
    return config.model_dump(mode="json")


def total_steps(config: TrainConfig, dataset_sequences: int, seq_len: int) -> int:
    """Optimizer steps of the whole run on a data set.

    Raises:
        UserError: `passes` do not fill one step, or the warm-up takes longer than the run.
    """
    of_tokens = -(-(config.tokens or 0) // (config.global_batch * seq_len))
    of_passes = int((config.passes or 0) * dataset_sequences / config.global_batch)
    steps = config.steps or of_tokens or of_passes
    if not steps:
        raise UserError(
            f"passes ({config.passes}): the data set's {dataset_sequences:,} sequences do not fill "
            f"one step of {config.global_batch:,}; lower `global_batch`, or give `steps`"
        )
    if config.warmup_steps > steps:
        raise UserError(
            f"warmup_steps ({config.warmup_steps:,}): the run has {steps:,} steps and would never "
            "reach its learning rate; set `warmup_steps` lower"
        )
    return steps


def microbatches(config: TrainConfig, ranks: int) -> int:
    """Microbatches that every rank computes in a step.

    Raises:
        UserError: a step cannot be shared equally.
    """
    share = config.micro_batch * ranks
    if config.global_batch % share:
        raise UserError(
            f"global_batch ({config.global_batch:,}) must be a multiple of `micro_batch` × ranks "
            f"({config.micro_batch:,} × {ranks:,} = {share:,})"
        )
    return config.global_batch // share


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate of a step, counted from 0, of `total` steps."""
    if step < config.warmup_steps:
        risen = step / config.warmup_steps
        return config.learning_rate * (config.warmup_from + (1 - config.warmup_from) * risen)
    if config.schedule == "constant":
        return config.learning_rate
    final = 0.1 if config.final is None else config.final
    done = (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps)
    return config.learning_rate * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
