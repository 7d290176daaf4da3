"""What memory layers cost: steps of training, the attention kernel alone, and long inputs.

    python benchmarks/memory.py train --shape open-llama-3b --output memory.jsonl
    python benchmarks/memory.py kernel --shape open-llama-3b --output memory.jsonl
    python benchmarks/memory.py read --shape open-llama-3b --output memory.jsonl

Random weights and tokens; a line of JSON a result. `train`: whole steps of the same model on the
same local contexts, without memory and with each range; beside the time the FLOPs, by pairs of
query and key that see each other. `kernel`: forward and backward of one layer's attention, its own
kernel against that of memory layers. `read`: a long input by windows with memory, then token by
token, and the same model without memory layers, with keys and values of the whole input.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from gpu import versions
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM

from trainer.attention import Backend, attention_name, choose_backend, plan_of
from trainer.crossbatch import LocalContexts
from trainer.inference import MemorySettings, as_memory_model, new_cache, windows
from trainer.memory import add_memory_layers
from trainer.metrics import Cost, peak_flops
from trainer.model import build_model, head_size, model_config
from trainer.parallel import draw_weights, prepare_model, process_group
from trainer.rope import Rope
from trainer.schedule import Memory

VOCABULARY = 32_000


def main() -> None:
    """Measure one part."""
    options = _options()
    measure = {"train": _train, "kernel": _kernel, "read": _read}[options.command]
    with process_group() as device:
        for row in measure(options, device):
            line = json.dumps(
                {**versions(), "part": options.command, "shape": options.shape, **row}
            )
            print(line, flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(line + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "kernel", "read"):
        add = commands.add_parser(name).add_argument
        add("--shape", default="open-llama-3b")
        add("--local-context", type=int, default=2048)
        add("--output", type=Path)
        if name != "kernel":
            add("--layers", type=int, help="fewer layers than the shape has")
            add("--memory-layers", type=int, nargs="+", default=[6, 12, 18])
        if name == "read":
            add("--lengths", type=int, nargs="+", default=[32_768, 100_000, 262_144])
            add("--generate", type=int, default=16, help="tokens")
            continue
        add("--contexts", type=int, default=16, help="local contexts of a microbatch")
        add("--packing", type=int, default=4)
        add("--ranges", type=int, nargs="+", default=[3, 7])
        if name == "train":
            add("--steps", type=int, default=6, help="measured, after three of warm-up")
            add("--checkpointing", default="attention", choices=("mlp", "attention", "full"))
    return parser.parse_args()


def _config(options: argparse.Namespace) -> Any:
    name, length = f"shape:{options.shape}", options.local_context
    config: Any = model_config(name, vocabulary=VOCABULARY, rope=Rope(), seq_len=length)
    config.num_hidden_layers = getattr(options, "layers", None) or config.num_hidden_layers
    return config


def _backend(config: Any, length: int, device: torch.device) -> Backend:
    return choose_backend(
        "auto",
        device=device,
        documents=False,
        seq_len=length,
        head_size=head_size(config),
        compute=_dtype(device),
    )


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _contexts(options: argparse.Namespace, reach: int, layers: tuple[int, ...]) -> LocalContexts:
    memory = Memory(layers=layers, packing=options.packing, range=reach)
    return LocalContexts(
        memory, options.local_context, options.contexts, together=options.packing, seed=0
    )


def _train(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Steps without memory, then with each range; time and FLOPs are relative to the first."""
    config, layers = _config(options), tuple(options.memory_layers)
    backend = _backend(config, options.local_context, device)
    model: Any = build_model(config, backend=backend, loss_chunk=4096)
    add_memory_layers(model, layers, positionals=True)
    cost = Cost.of(model, memory_layers=len(layers))
    prepare_model(
        model,
        checkpointing=options.checkpointing,
        compiled=backend != "sdpa",
        compute=_dtype(device),
        backend=backend,
    )
    draw_weights(model, seed=0, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)
    shape = options.contexts, options.local_context
    tokens = torch.randint(VOCABULARY, shape, device=device)
    positions = torch.arange(shape[1], device=device).expand(shape)
    first: list[float] = []
    for reach in (0, *options.ranges):
        contexts = _contexts(options, reach, layers)

        def step(contexts: LocalContexts = contexts) -> None:
            memory, _ = contexts.lookup(0, device)
            plan = plan_of(contexts.borders(device), shape=shape, backend=backend)
            loss = model(tokens, positions, tokens.roll(-1, 1), memory=memory, **plan)
            (loss / tokens.numel()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        seconds, gib = _timed(step, options.steps, device)
        flops = cost.visible(tokens.numel(), contexts.local_pairs, contexts.lookup(0, device)[1])
        first, peak = first or [seconds, flops], peak_flops(device)
        yield {
            "layers": config.num_hidden_layers,
            "memory_layers": layers,
            "attention": backend,
            "checkpointing": options.checkpointing,
            "range": reach,
            "packing": options.packing,
            "seconds_per_step": round(seconds, 4),
            "tokens_per_s": round(tokens.numel() / seconds),
            "mfu_visible": round(flops / seconds / peak, 4) if peak else None,
            "time": round(seconds / first[0], 4),
            "flops": round(flops / first[1], 4),
            "peak_gib": gib,
        }


def _timed(step: Callable[[], None], steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a step after three of warm-up, and the peak of memory in GiB."""
    for _ in range(3):
        step()
    begin = _now(device, reset=True)
    for _ in range(steps):
        step()
    return (_now(device) - begin) / steps, _peak(device)


def _now(device: torch.device, *, reset: bool = False) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
    return time.perf_counter()


def _peak(device: torch.device) -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else 0.0


def _kernel(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Forward and backward of one layer; TFLOP/s count visible pairs, 3.5 times the forward."""
    config = _config(options)
    backend, size = _backend(config, options.local_context, device), head_size(config)
    local = _contexts(options, 0, (0,))
    plan = plan_of(local.borders(device), shape=(local.count, local.length), backend=backend)
    kernel = AttentionInterface._global_mapping[attention_name(backend)]
    of_layer = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
    heads = [(n, local.length, size) for n in (*of_layer, config.num_key_value_heads)]
    made = [_random(local.count, *shape, device=device) for shape in heads]
    q, k, v, raw = (x.requires_grad_() for x in made)
    grad = _random(local.count, local.length, heads[0][0], size, device=device)
    for reach in (None, *options.ranges):
        memory, looked_up = _contexts(options, reach or 0, (0,)).lookup(0, device)

        def run(memory: Any = memory) -> None:
            if memory is None:
                out = kernel(None, q, k, v, None, scaling=size**-0.5, **plan)[0]
                torch.autograd.grad(out, (q, k, v), grad)
            else:
                out = memory.attend(0, q, k, raw, v, size**-0.5)
                torch.autograd.grad(out, (q, k, raw, v), grad)

        seconds = _median(run, device)
        flops = 3.5 * 4 * heads[0][0] * size * (local.local_pairs + looked_up)
        yield {
            "attention": "crossbatch" if memory else backend,
            "range": reach,
            "packing": options.packing,
            "milliseconds": round(seconds * 1e3, 3),
            "tflops": round(flops / seconds / 1e12, 1),
        }


def _random(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=_dtype(device))


def _median(run: Callable[[], None], device: torch.device) -> float:
    run()
    times = []
    for _ in range(20 if device.type == "cuda" else 2):
        begin = _now(device)
        run()
        times.append(_now(device) - begin)
    return statistics.median(times)


@torch.no_grad()
def _read(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """With memory, then with all keys and values, at each length that fits."""
    config = _config(options)
    with device:
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=_dtype(device), attn_implementation="sdpa"
        ).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
    settings = MemorySettings(
        mem_layers=tuple(options.memory_layers),
        mem_dtype=str(model.dtype).removeprefix("torch."),
        local_context=options.local_context,
        last_context_length=options.local_context // 2,
    )
    for kind, prefill in (("whole", _prefill_whole), ("memory", _prefill_windows)):
        if kind == "memory":
            as_memory_model(model, settings)
        for length in options.lengths:
            tokens = torch.randint(VOCABULARY, (1, length), device=device)
            row = {"layers": config.num_hidden_layers, "kind": kind, "tokens": length}
            try:
                yield row | _lengthwise(model, tokens, prefill, options.generate, weights, device)
            except torch.OutOfMemoryError:
                yield row | {"fits": False}
            gc.collect()


def _lengthwise(
    model: Any, tokens: Tensor, prefill: Callable[[Any, Tensor], Any], generate: int,
    weights: float, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Time and memory of one input; memory without the weights."""
    prefill(model, tokens[:, :4096])  # warm
    begin = _now(device, reset=True)
    cache = prefill(model, tokens)
    seconds, peak = _now(device) - begin, _peak(device) - weights
    held = torch.cuda.memory_allocated() / 2**30 - weights if device.type == "cuda" else 0.0
    last, begin = tokens[:, -1:], _now(device)
    for _ in range(generate):
        output = model(input_ids=last, past_key_values=cache, use_cache=True)
        last = output.logits[:, -1:].argmax(-1)
    decode, share = (_now(device) - begin) / generate, 100_000 / tokens.shape[1]
    return {
        "fits": True,
        "prefill_seconds": round(seconds, 3),
        "seconds_per_100k": round(seconds * share, 3),
        "peak_gib": round(peak, 2),
        "held_gib": round(held, 2),
        "held_gib_per_100k": round(held * share, 2),
        "seconds_per_token": round(decode, 4),
        "weights_gib": round(weights, 2),
    }


def _prefill_whole(model: Any, tokens: Tensor) -> Any:
    return model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values


def _prefill_windows(model: Any, tokens: Tensor) -> Any:
    cache = new_cache(model)
    for _ in windows(model, tokens, cache):
        pass
    return cache


if __name__ == "__main__":
    main()
