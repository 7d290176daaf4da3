"""Small runs of the trainer: a data set, a configuration, the command in this process."""

from __future__ import annotations

import gc
import json
import signal
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import Builder, documents, write_jsonl
from transformers import AutoModelForCausalLM, LlamaConfig

from pipelines.shards import ShardedDataset
from trainer.checkpoint import checkpoint_of
from trainer.export import saved_weights
from trainer.train import main

torch.set_num_threads(1)

CONFIG: dict[str, Any] = {
    "compute": "float32", "compile": False, "activation_checkpointing": "none",
    "global_batch": 4, "micro_batch": 2, "steps": 6, "learning_rate": 1e-2, "warmup_steps": 2,
    "checkpoints": {"every": 2, "keep": 9}, "loader": {"workers": 1, "prefetch": 2},
}  # fmt: skip
"""Of a float32 run of a tiny model on the CPU."""


def small_dataset(builder: Builder, *, output: str = "out", seed: int = 1) -> ShardedDataset:
    """32 sequences of 256 tokens: several documents in each, some of them in two."""
    write_jsonl(builder.folder / f"{output}.jsonl", documents(seed, 60, low=10, high=120))
    source = {"weight": 1, "path": f"{output}.jsonl", "max_passes": 9}
    return builder.build({"prose": source}, tokens=32 * 256, output=output).dataset


def small_checkpoint(folder: Path, *, tied: bool = False, vocabulary: int = 600) -> Path:
    """A random model as transformers saves it; large weights, so that its loss says something."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def write_config(folder: Path, **values: Any) -> Path:
    """`CONFIG` with other values, as a file."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **values}))
    return path


def arguments(
    dataset: ShardedDataset | Path, output: Path, *sets: str, model: str = "shape:tiny"
) -> list[str]:
    """A command line of `CONFIG` with overrides."""
    data = dataset.folder if isinstance(dataset, ShardedDataset) else dataset
    config = write_config(output.parent)
    args = ["--config", config, "--data", data, "--model", model, "--output", output]
    return [*map(str, args), *(word for text in sets for word in ("--set", text))]


def train(*args: Any, **options: Any) -> int:
    """The command in this process, which stays as it was."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        return main(arguments(*args, **options))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.enable()
        gc.unfreeze()


def log(output: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def losses(output: Path) -> list[float]:
    """The loss of each step; of a step that was done twice, the later one."""
    return list({line["step"]: line["loss"] for line in log(output)}.values())


def weights(output: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """The model in a checkpoint, whole."""
    return saved_weights(checkpoint_of(output, step))


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """They are equal bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
