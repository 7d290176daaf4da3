"""Accuracy of a model of `dictionary.py` by the number of tokens in its memory, to 16M and beyond.

    python benchmarks/look_up.py --run RUN --output benchmarks/results/dictionary-h100.json

All definitions of a dictionary are in memory, each local context read by itself, which is exact:
the only memory layer makes its keys and values of what lies below it. Queries then attend to all of
memory and to their own local context in one softmax. A token of a value is right where it is the
likeliest one after the right tokens before it, a value where all its tokens are. `before` are the
weights from before other documents were shown. `difference` is that of the logits at the asked
places from those of `trainer.inference`, which reads a small dictionary window by window.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from dictionary import KEY, QUERY, Task, fixed, made_config, made_model
from gpu import versions
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from trainer.attention import Backend
from trainer.inference import MemorySettings, as_memory_model, new_cache, windows

BATCH = 256
"""Local contexts that are read at a time."""
QUERIES = 4096
"""Whose best keys are sought at a time."""
DICTIONARIES = 16
"""Of a size, at most; queries are shared out."""
Part = tuple[Tensor, Tensor]
"""Two that belong together, mostly raw keys and values, [1, H, M, D] each."""


@dataclass(frozen=True)
class Writing:
    """Keeps what the memory layer makes; a local context sees nothing else."""

    parts: list[Part] = field(default_factory=list)

    def attend(
        self, layer: int, q: Tensor, local_k: Tensor, raw_k: Tensor, v: Tensor, scale: float
    ) -> Tensor:
        """As `trainer.memory.Lookup.attend`."""
        del layer
        self.parts.append((_joined(raw_k), _joined(v)))
        return _attention(q, local_k, v, scale, causal=True)[0].transpose(1, 2)


@dataclass(frozen=True)
class Looking:
    """Attends to memory and to the local context in one softmax."""

    parts: list[Part]
    top: int | None = None
    """How many of the best keys in memory a query and head attends to; None: all."""

    def attend(
        self, layer: int, q: Tensor, local_k: Tensor, raw_k: Tensor, v: Tensor, scale: float
    ) -> Tensor:
        """As `trainer.memory.Lookup.attend`."""
        del layer, raw_k
        n, h, length, d = q.shape
        out, total = (_joined(x) for x in _attention(q, local_k, v, scale, causal=True))
        q = _joined(q)
        for more, log_sum in self._found(q, scale):
            both = torch.logaddexp(total, log_sum)
            out = out * (total - both).exp()[..., None] + more * (log_sum - both).exp()[..., None]
            total = both
        return out.to(v.dtype).view(h, n, length, d).permute(1, 2, 0, 3)

    def _found(self, q: Tensor, scale: float) -> Iterator[Part]:
        """Outputs of attention to memory, and logarithms of the softmaxes' sums, in parts."""
        if self.top is None:
            for keys, values in self.parts:
                yield _attention(q, keys, values, scale, causal=False)
            return
        best = [_best(some, self.parts, self.top) for some in q.split(QUERIES, dim=2)]
        keys, values = (torch.cat(x, dim=2) for x in zip(*best, strict=True))
        scores = (q[..., None, :].float() * keys.float()).sum(-1) * scale
        total = scores.logsumexp(-1)
        yield ((scores - total[..., None]).exp()[..., None] * values).sum(-2), total


def _best(q: Tensor, parts: list[Part], top: int) -> Part:
    """The keys that queries match best, and their values; [1, H, T, top, D] each."""
    found: list[Tensor] = []  # scores, keys, values so far
    for keys, values in parts:
        scores, at = (q @ keys.mT).topk(min(top, keys.shape[2]), dim=-1)
        rows = at.flatten(2)[..., None].expand(-1, -1, -1, q.shape[-1])
        new = [scores, *(x.gather(2, rows).unflatten(2, at.shape[2:]) for x in (keys, values))]
        if found:
            new = [torch.cat(pair, dim=3) for pair in zip(found, new, strict=True)]
        found = new
        found[0], at = found[0].topk(min(top, found[0].shape[3]), dim=-1)
        found[1:] = [x.take_along_dim(at[..., None], dim=3) for x in found[1:]]
    return found[1], found[2]


def _joined(x: Tensor) -> Tensor:
    """[1, H, n * T, …] of [n, H, T, …]."""
    return x.transpose(0, 1).flatten(1, 2)[None]


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> Part:
    """Output [B, H, T, D], and logarithms of the softmaxes' sums [B, H, T]."""
    if q.is_cuda:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        return kernel(q, k, v, 0.0, causal, False, scale=scale)[:2]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, k, v, 0.0, causal, scale=scale)


@dataclass(frozen=True)
class Subject:
    """A trained model, ready to read."""

    model: Any
    task: Task
    backend: Backend
    device: torch.device

    def logits(self, tokens: Tensor, memory: Any) -> Tensor:
        """[n, T, V] of local contexts [n, T], each read by itself but for its memory."""
        given = fixed(len(tokens), self.task.length, self.backend, self.device)
        return self.model(tokens, memory=memory, **given)


def main() -> None:
    """Measure the stages of a run, as far as it got."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of dictionary.py")
    add("--max-tokens", type=int, default=2**24, help="of the largest dictionary")
    add("--windows", type=int, default=128, help="local contexts of queries for each size")
    add("--top", type=int, help="also by so many best keys of a query and head")
    add("--seed", type=int, default=1)
    add("--output", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = json.loads((options.run / "training.json").read_text())
    trained = argparse.Namespace(**training["options"])
    task = Task(trained.symbols, trained.key, trained.value, trained.local_context)
    result = {**versions(), "task": asdict(task), "published": "more than 92 % at 16M tokens"}
    for stage in dict.fromkeys(line["stage"] for line in training["log"]):
        weights = load_file(options.run / f"{stage}.safetensors", device=str(device))
        with torch.no_grad():
            result[stage] = _measure(stage, weights, trained, task, device, options)
        if options.output:
            text = json.dumps({**result, "training": training}, indent=1)
            options.output.write_text(text + "\n")


def _measure(
    stage: str, weights: dict[str, Tensor], trained: argparse.Namespace, task: Task,
    device: torch.device, options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    if device.type == "cuda":
        weights = {name: weight.bfloat16() for name, weight in weights.items()}
    model, backend = made_model(trained, task, device)
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb.reset(device)
    subject = Subject(model.eval(), task, backend, device)
    difference = _difference(subject, trained, weights, options.seed)
    print(json.dumps({"stage": stage, "difference": difference}), flush=True)
    assert difference < (1e-4 if device.type == "cpu" else 0.05)
    rows = []
    for row in _by_size(subject, options):
        rows.append(row)
        print(json.dumps({"stage": stage, **row}), flush=True)
    return {"difference": difference, "sizes": rows}


def _by_size(subject: Subject, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Sizes grow by four; a dictionary is so many local contexts that follow each other."""
    task, generator = subject.task, torch.Generator(subject.device).manual_seed(options.seed)
    keys, values = _dictionary(task, options.max_tokens // task.length, generator)
    most = len(keys)
    begin = _now(subject.device)
    memory = _remembered(subject, task.windows(KEY, keys, values))
    wrote = _now(subject.device) - begin
    for size in (4**i for i in range(32) if 4**i <= most):
        count = min(DICTIONARIES, most // size, options.windows)
        asked = [
            (start, _queries(task, keys[start : start + size], values[start : start + size],
                             options.windows // count, generator))
            for start in range(0, count * size, size)
        ]  # fmt: skip
        for top in (None, options.top) if options.top else (None,):
            begin, found = _now(subject.device), []
            for start, queries in asked:
                parts = _between(memory, start * task.length, (start + size) * task.length)
                found.append(_answers(subject, queries, Looking(parts, top)))
            right, nats = (torch.cat(column) for column in zip(*found, strict=True))
            yield {
                "tokens": size * task.length,
                "definitions": size * task.records,
                "best_keys": top,
                "accuracy": round(right.float().mean().item(), 4),
                "whole_values": round(right.all(-1).float().mean().item(), 4),
                "nats": round(nats.mean().item(), 4),
                "asked_tokens": right.numel(),
                "dictionaries": count,
                "seconds": round(_now(subject.device) - begin, 2),
                "seconds_to_write": round(wrote * size / most, 2),
            }


def _dictionary(task: Task, most: int, generator: torch.Generator) -> Part:
    """Keys and values of so many local contexts, or as many as there are keys for."""
    keys = task.keys(generator, task.symbols)
    most = min(most, len(keys) // task.records)
    keys = keys[: most * task.records].view(most, task.records)
    return keys, task.values((most, task.records), generator)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _remembered(subject: Subject, tokens: Tensor) -> list[Part]:
    writing = Writing()
    for batch in tokens.split(BATCH):
        subject.logits(batch, writing)
    return writing.parts


def _between(memory: list[Part], start: int, end: int) -> list[Part]:
    """Tokens start … end - 1."""
    found, at = [], 0
    for part in memory:
        size = part[0].shape[2]
        if at < end and at + size > start:
            inside = slice(max(0, start - at), end - at)
            found.append(tuple(x[:, :, inside] for x in part))
        at += size
    return found


def _queries(
    task: Task, keys: Tensor, values: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Local contexts of queries about random keys, in each about different ones."""
    keys, values = keys.flatten(), values.flatten()
    chosen = torch.stack(
        [
            torch.randperm(len(keys), generator=generator, device=keys.device)[: task.records]
            for _ in range(count)
        ]
    )
    return task.windows(QUERY, keys[chosen], values[chosen])


def _answers(subject: Subject, tokens: Tensor, memory: Looking) -> tuple[Tensor, Tensor]:
    """Of every token of every value [queries, value]: whether it is right, and its loss."""
    places = subject.task.asked(subject.device)
    logits = subject.logits(tokens, memory)[:, places].float().flatten(0, 1)
    wanted = tokens[:, places + 1].flatten(0, 1)
    nats = logits.logsumexp(-1) - logits.gather(-1, wanted[..., None]).squeeze(-1)
    return logits.argmax(-1) == wanted, nats


def _difference(
    subject: Subject, trained: argparse.Namespace, weights: dict[str, Tensor], seed: int
) -> float:
    """‖difference‖ / ‖logits‖ from the trainer's inference, on 16 local contexts and queries."""
    task, generator = subject.task, torch.Generator(subject.device).manual_seed(seed)
    keys, values = _dictionary(task, 16, generator)
    definitions = task.windows(KEY, keys, values)
    queries = _queries(task, keys, values, 1, generator)
    places = task.asked(subject.device)
    got = subject.logits(queries, Looking(_remembered(subject, definitions)))[0, places]
    model: Any = AutoModelForCausalLM.from_config(
        made_config(trained, task), dtype=got.dtype, attn_implementation="sdpa"
    ).to(subject.device)
    model.load_state_dict(weights)
    settings = MemorySettings(
        mem_layers=(trained.memory_layer,), mem_positionals=trained.positionals,
        mem_dtype=str(got.dtype).removeprefix("torch."), local_context=task.length,
        last_context_length=task.length,
    )  # fmt: skip
    as_memory_model(model.eval(), settings)
    *_, last = windows(model, torch.cat([definitions, queries]).view(1, -1), new_cache(model))
    want = model.lm_head(last)[0, places]
    return round(((got - want).float().norm() / want.float().norm()).item(), 6)


if __name__ == "__main__":
    main()
