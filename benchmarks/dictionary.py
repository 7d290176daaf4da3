"""The dictionary look-up of the Focused Transformer (Tworkowski et al. 2023, §4, appendix): train.

    python benchmarks/dictionary.py --run RUN
    python benchmarks/look_up.py --run RUN --output benchmarks/results/dictionary-h100.json

A document has two local contexts: definitions `<k> k1 k2 k3 k4 <v> v1 v2 v3 v4` of random symbols,
and queries `<q> k1 k2 k3 k4 <v> v1 v2 v3 v4` about all of them in another order. Only the values
of queries have loss, and they can only be known from memory. Crossbatch shows a document its own
definitions alone (d = 1) until they are looked up well or `--steps` are done, and then other
documents too (d = 128), where the learning rates fall in the second half. There the keys of a step
are of few symbols, and so as much alike as in a large dictionary: random ones of a step hardly
share any. The paper has 5,000 steps, 2 % of them with other documents. The weights from before are
kept too.

Muon updates the matrices of layers: with AdamW alone the look-up was not learned in ten times the
steps.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu import versions
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Config

from trainer.attention import Backend, choose_backend, plan_of
from trainer.export import gathered_weights
from trainer.loss import IGNORE
from trainer.memory import CrossBatch, add_memory_layers, cross_batch
from trainer.model import build_model
from trainer.parallel import draw_weights, prepare_model, process_group
from trainer.schedule import Memory, extra_contexts

PADDING, KEY, VALUE, QUERY, SYMBOL = range(5)
"""Special tokens, and the first symbol."""


@dataclass(frozen=True)
class Task:
    """What is looked up: keys and values of so many of `symbols`, in windows of `length` tokens."""

    symbols: int
    key: int
    value: int
    length: int

    @property
    def records(self) -> int:
        """Of a window."""
        return self.length // (self.key + self.value + 2)

    def keys(self, generator: torch.Generator, symbols: int) -> Tensor:
        """Every key of so many symbols, which are drawn, once, as a number."""
        draw = partial(torch.randperm, generator=generator, device=generator.device)
        if symbols == self.symbols:
            return draw(self.symbols**self.key)
        drawn = draw(self.symbols)[:symbols]
        places = torch.arange(self.key, device=drawn.device)
        digits = draw(symbols**self.key)[:, None] // symbols**places % symbols
        return (drawn[digits] * self.symbols**places).sum(-1)

    def values(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Random values, as numbers [n, records]."""
        n = self.symbols**self.value
        return torch.randint(n, shape, generator=generator, device=generator.device)

    def windows(self, mark: int, keys: Tensor, values: Tensor) -> Tensor:
        """Tokens [n, length] of numbers [n, records]."""
        parts = [_column(mark, keys), self._symbols(keys, self.key),
                 _column(VALUE, keys), self._symbols(values, self.value)]  # fmt: skip
        tokens = torch.cat(parts, dim=-1).flatten(1)
        return functional.pad(tokens, (0, self.length - tokens.shape[1]), value=PADDING)

    def _symbols(self, numbers: Tensor, count: int) -> Tensor:
        places = self.symbols ** torch.arange(count, device=numbers.device)
        return numbers[..., None] // places % self.symbols + SYMBOL

    def asked(self, device: torch.device) -> Tensor:
        """Where a window of queries predicts values: places [records, value]."""
        first = torch.arange(self.records, device=device) * (self.key + self.value + 2)
        return first[:, None] + self.key + 1 + torch.arange(self.value, device=device)

    def documents(self, keys: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels [2 n, length]: definitions of keys [n, records], then their queries."""
        values = self.values(tuple(keys.shape), generator)
        order = torch.rand(keys.shape, generator=generator, device=keys.device).argsort()
        queries = self.windows(QUERY, keys.gather(1, order), values.gather(1, order))
        tokens = torch.stack([self.windows(KEY, keys, values), queries], dim=1)
        labels = torch.full_like(tokens, IGNORE)
        places = self.asked(keys.device).flatten()
        labels[:, 1, places] = queries[:, places + 1]
        return tokens.flatten(0, 1), labels.flatten(0, 1)


def _column(token: int, like: Tensor) -> Tensor:
    return like.new_full((*like.shape, 1), token)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder to write")
    add("--steps", type=int, default=4000, help="at most, that show own definitions alone")
    add("--learned", type=float, default=0.05, help="loss of 100 steps that ends these steps")
    add("--negatives", type=int, default=2000, help="steps after them that show other documents")
    add("--key-symbols", type=int, default=8, help="that keys of such a step are made of")
    add("--documents", type=int, default=128, help="of a step; d of the last part of training")
    add("--warmup", type=int, default=200, help="steps in which the learning rate rises")
    add("--width", type=int, default=512)
    add("--layers", type=int, default=12)
    add("--heads", type=int, default=8)
    add("--memory-layer", type=int, default=6)
    add("--positionals", action="store_true", help="RoPE in the memory layer, as LongLLaMA")
    add("--rope-base", type=float, default=100.0, help="of the other layers; a record is short")
    add("--symbols", type=int, default=60)
    add("--key", type=int, default=4, help="tokens of a key")
    add("--value", type=int, default=4, help="tokens of a value")
    add("--local-context", type=int, default=256)
    add("--learning-rate", type=float, default=2e-3, help="of AdamW: embeddings, norms, output")
    add("--muon", type=float, default=1e-2, help="learning rate of the matrices of layers")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("steps", "negatives", "key_symbols", "documents", "warmup"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: at least 1")
    if not 0 <= options.memory_layer < options.layers:
        parser.error(f"--memory-layer {options.memory_layer}: of --layers {options.layers}, from 0")
    return options


def train(options: argparse.Namespace, device: torch.device) -> None:
    """Train on documents made on the way; leaves weights and `training.json` in the run."""
    task = Task(options.symbols, options.key, options.value, options.local_context)
    if options.key_symbols > task.symbols:
        raise SystemExit(f"--key-symbols {options.key_symbols}: there are {task.symbols} symbols")
    if (most := options.key_symbols**task.key) < (needed := options.documents * task.records):
        raise SystemExit(
            f"--key-symbols or --symbols: they make {most:,} keys, a step needs {needed:,}"
        )
    learner, backend = _learner(options, task, device)
    generator = torch.Generator(device).manual_seed(options.seed)
    contexts = 2 * options.documents
    given = fixed(contexts, task.length, backend, device)
    log: list[dict[str, Any]] = []
    result = {
        **versions(),
        "options": {k: v for k, v in vars(options).items() if k != "run"},
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "attention": backend,
        "log": log,
    }
    options.run.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    for stage, steps, seen, symbols in (
        ("before", options.steps, 1, task.symbols),
        ("after", options.negatives, contexts - 1, options.key_symbols),
    ):
        plan = {**given, "memory": _crossbatch(options, seen, contexts, task.length, device)}
        documents = _documents(task, options.documents, generator, symbols)
        losses: list[Tensor] = []
        for step, (tokens, labels) in zip(range(steps), documents, strict=False):
            rise, fall = (step + 1) / options.warmup, 2 * (steps - step) / steps
            share = min(1, rise if stage == "before" else fall)
            losses.append(learner.step(tokens, labels, plan, share))
            if len(losses) < 100 and step + 1 < steps:
                continue  # losses are read seldom: the host would wait for the device
            log.append(_line(stage, step, losses, time.perf_counter() - begin))
            save_file(gathered_weights(learner.model), options.run / f"{stage}.safetensors")
            (options.run / "training.json").write_text(json.dumps(result, indent=1) + "\n")
            losses = []
            if stage == "before" and log[-1]["loss"] < options.learned:
                break


@dataclass(frozen=True)
class Learner:
    """A model and what updates it."""

    model: Any
    parameters: list[tuple[Any, Tensor]]
    """DTensors, and the plain tensors in them that optimizers update: of DTensors, Muon's many
    small operations take longer than the rest of a step."""
    optimizers: tuple[tuple[torch.optim.Optimizer, float], ...]
    """With their learning rates."""

    def step(self, tokens: Tensor, labels: Tensor, plan: dict[str, Any], share: float) -> Tensor:
        """The loss of a step with a share of the learning rates."""
        loss = self.model(tokens, labels=labels, **plan) / (labels != IGNORE).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for parameter, local in self.parameters:
            local.grad, parameter.grad = parameter.grad.to_local(), None
        for optimizer, rate in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
        return loss.detach()


def _learner(
    options: argparse.Namespace, task: Task, device: torch.device
) -> tuple[Learner, Backend]:
    """Muon (Jordan et al. 2024) updates the matrices of layers, AdamW all else."""
    model, backend = made_model(options, task, device)
    prepare_model(
        model,
        checkpointing="none",
        compiled=backend != "sdpa",
        compute=torch.bfloat16 if device.type == "cuda" else torch.float32,
        backend=backend,
    )
    draw_weights(model, seed=options.seed, device=device)
    parameters = {name: (p, p.to_local().detach()) for name, p in model.named_parameters()}
    matrices = {n for n, (p, _) in parameters.items() if p.ndim == 2 and ".layers." in n}
    others = [p for n, (_, p) in parameters.items() if n not in matrices]
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0, fused=True)
    muon = torch.optim.Muon([parameters[n][1] for n in sorted(matrices)], weight_decay=0)
    optimizers = (adam, options.learning_rate), (muon, options.muon)
    return Learner(model, list(parameters.values()), optimizers), backend


def _line(stage: str, step: int, losses: list[Tensor], seconds: float) -> dict[str, Any]:
    mean = torch.stack(losses).mean().item()
    line = {"stage": stage, "step": step + 1, "loss": round(mean, 4), "seconds": round(seconds, 1)}
    print(json.dumps(line), flush=True)
    return line


def _documents(
    task: Task, count: int, generator: torch.Generator, symbols: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The documents of every step; all keys of a step are different, and of so many symbols."""
    keys = task.keys(generator, symbols)
    some = torch.arange(count * task.records, device=keys.device)
    while True:
        start = torch.randint(len(keys), (), generator=generator, device=keys.device)
        chosen = keys[(start + some) % len(keys)]
        yield task.documents(chosen.view(count, task.records), generator)
        if symbols < task.symbols:  # others in every step
            keys = task.keys(generator, symbols)


def _crossbatch(
    options: argparse.Namespace, seen: int, contexts: int, length: int, device: torch.device
) -> CrossBatch:
    memory = Memory(layers=(options.memory_layer,), packing=2, range=seen)
    extra = extra_contexts(contexts, range=seen, packing=memory.packing, stepping=memory.stepping)
    return cross_batch(torch.from_numpy(extra).to(device), local_context=length)


def made_model(
    options: argparse.Namespace, task: Task, device: torch.device
) -> tuple[Any, Backend]:
    """A Qwen3 with a memory layer, on the meta device."""
    backend = choose_backend(
        "auto",
        device=device,
        documents=False,
        seq_len=task.length,
        head_size=options.width // options.heads,
        compute=torch.bfloat16,
    )
    model = build_model(made_config(options, task), backend=backend, loss_chunk=65_536)
    add_memory_layers(model, (options.memory_layer,), positionals=options.positionals)
    return model, backend


def made_config(options: argparse.Namespace, task: Task) -> Qwen3Config:
    """12 layers of 512 have 37M parameters.

    Queries and keys are normalized and scaled by learned numbers: attention gets sharp sooner, and
    it is the learned temperature that the paper gives memory layers.
    """
    return Qwen3Config(
        vocab_size=SYMBOL + task.symbols,
        hidden_size=options.width,
        intermediate_size=round(options.width * 2.625 / 32) * 32,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        head_dim=options.width // options.heads,
        max_position_embeddings=task.length,
        rope_parameters={"rope_type": "default", "rope_theta": options.rope_base},
        initializer_range=options.width**-0.5 / 2,
    )


def fixed(contexts: int, length: int, backend: Backend, device: torch.device) -> dict[str, Any]:
    """What a model is told of so many local contexts, each with its own positions."""
    borders = torch.arange(0, contexts * length + 1, length, dtype=torch.int32, device=device)
    positions = torch.arange(length, device=device).expand(contexts, length)
    return {
        "positions": positions,
        **plan_of(borders, shape=(contexts, length), backend=backend),
    }


if __name__ == "__main__":
    with process_group() as place:
        train(_options(), place)
