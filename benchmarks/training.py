"""Tokens a second and use of the GPU of whole training steps: random weights, real sequences.

    python benchmarks/training.py --shape llama-7b --data DIR --checkpointing mlp
    torchrun --nproc-per-node 2 benchmarks/training.py --shape llama-7b --contexts seven

A step is what the trainer's is: forward, backward, clipping, AdamW; float32 weights and states,
bfloat16 compute. Sequences come from a data set through the loader, or with `--contexts` have
random tokens and one context, or seven (12,000, 9,000, 5,000, 3,000, 2,000, 1,000, 768).
Appends one JSON object a run to `--output`. `mfu_visible` counts pairs of query and key that see
each other, `mfu_noncausal` all pairs of a sequence as others do; both against the data sheet.
`--profile` prints where the time of one step goes.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
import torch.distributed as dist
from gpu import versions

from pipelines.shards import ShardedDataset
from trainer.attention import choose_backend, plan_of
from trainer.loader import Loader, Microbatch
from trainer.metrics import Cost, peak_flops
from trainer.model import build_model, head_size, model_config
from trainer.parallel import draw_weights, prepare_model, process_group
from trainer.rope import Rope

SEVEN = (12_000, 9_000, 5_000, 3_000, 2_000, 1_000, 768)


def main() -> None:
    """Measure one variant."""
    options = _options()
    with process_group() as device:
        result = _measure(options, device)
        if dist.get_rank() == 0:
            print(json.dumps(result), flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(result) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--shape", default="llama-7b")
    add("--layers", type=int, help="fewer layers than the shape has")
    add("--data", type=Path, help="a finished data set")
    add("--contexts", choices=("one", "seven"), default="one")
    add("--attention", default="auto", choices=("auto", "fa4", "cudnn", "flex"))
    add("--checkpointing", default="attention", choices=("none", "mlp", "attention", "full"))
    add("--loss-chunk", type=int, default=4096)
    add("--micro-batch", type=int, default=1)
    add("--accumulate", type=int, default=1, help="microbatches of a step")
    add("--steps", type=int, default=6, help="measured, after three of warm-up")
    add("--no-compile", dest="compile", action="store_false")
    add("--profile", action="store_true")
    add("--output", type=Path)
    return parser.parse_args()


def _measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    loader = _loader(options) if options.data else None
    seq_len = loader.dataset.seq_len if loader else 32_768
    vocabulary = loader.dataset.manifest["tokenizer"]["vocab_size"] if loader else 32_000
    documents = bool(loader) or options.contexts == "seven"
    name = f"shape:{options.shape}"
    config = model_config(name, vocabulary=vocabulary, rope=Rope(type="linear"), seq_len=seq_len)
    backend = choose_backend(
        options.attention,
        device=device,
        documents=documents,
        seq_len=seq_len,
        head_size=head_size(config),
        compute=torch.bfloat16,
    )
    config.num_hidden_layers = options.layers or config.num_hidden_layers
    model = build_model(config, backend=backend, loss_chunk=options.loss_chunk)
    cost = Cost.of(model)
    prepare_model(
        model,
        checkpointing=options.checkpointing,
        compiled=options.compile,
        compute=torch.bfloat16,
        backend=backend,
    )
    draw_weights(model, seed=0, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)
    batches = iter(loader) if loader else _random(options, seq_len, vocabulary)
    losses: list[float] = []

    def step() -> tuple[int, int]:
        tokens = pairs = 0
        n_loss = torch.tensor(0, device=device)
        chosen = next(batches)
        for batch in chosen:
            n_loss += batch.n_loss
        dist.all_reduce(n_loss)
        total = torch.zeros((), device=device)
        for batch in chosen:
            tensors = [
                torch.from_numpy(x).pin_memory().to(device, non_blocking=True)
                for x in (batch.tokens, batch.positions, batch.labels, batch.borders)
            ]
            plan = plan_of(tensors[3], shape=batch.tokens.shape, backend=backend)
            loss = model(*tensors[:3], **plan) / n_loss
            loss.backward()
            total += loss.detach()
            tokens += batch.tokens.size
            pairs += batch.visible_pairs
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        losses.append(total.item())
        assert torch.isfinite(norm.full_tensor())
        optimizer.step()
        optimizer.zero_grad()
        return tokens, pairs

    begin = time.perf_counter()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    warm = time.perf_counter() - begin
    torch.cuda.reset_peak_memory_stats()
    waited = loader.wait_seconds if loader else 0.0
    counts = []
    begin = time.perf_counter()
    for _ in range(options.steps):
        counts.append(step())
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    wait = (loader.wait_seconds - waited) / seconds if loader else None
    if options.profile:
        _profile(step)
    if loader:
        loader.close()
    tokens, pairs = (sum(column) for column in zip(*counts, strict=True))
    peak = peak_flops(device) or float("nan")
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (tokens, pairs))
    tokens, pairs = (sum(column) / len(ranks) for column in zip(*ranks, strict=True))
    return {
        **versions(),
        "gpus": len(ranks),
        "shape": options.shape,
        "layers": config.num_hidden_layers,
        "attention": backend,
        "checkpointing": options.checkpointing,
        "compile": options.compile,
        "documents": options.data.name if loader else options.contexts,
        "seq_len": seq_len,
        "accumulate": options.accumulate,
        "seconds_per_step": round(seconds / options.steps, 4),
        "tokens_per_s_per_gpu": round(tokens / seconds),
        "mfu_visible": round(cost.visible(tokens, pairs) / seconds / peak, 4),
        "mfu_noncausal": round(cost.non_causal(tokens, seq_len) / seconds / peak, 4),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "data_wait": None if wait is None else round(wait, 5),
        "warm_up_seconds": round(warm, 1),
        "losses": [round(loss, 4) for loss in losses],
    }


def _loader(options: argparse.Namespace) -> Loader:
    ranks = dist.get_world_size()
    return Loader(
        ShardedDataset(options.data),
        global_batch=ranks * options.micro_batch * options.accumulate,
        micro_batch=options.micro_batch,
        rank=dist.get_rank(),
        ranks=ranks,
    )


def _random(options: argparse.Namespace, seq_len: int, vocabulary: int) -> Iterator[Any]:
    lengths = SEVEN if options.contexts == "seven" else (seq_len,)
    rng = np.random.default_rng(dist.get_rank())
    rows = options.micro_batch
    borders = np.concatenate([[0], np.cumsum(lengths * rows)]).astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths * rows]).reshape(rows, seq_len)
    while True:
        yield [
            Microbatch(
                tokens=(tokens := rng.integers(0, vocabulary, (rows, seq_len))),
                labels=np.roll(tokens, -1, axis=1),
                positions=positions,
                borders=borders,
                n_loss=tokens.size,
                visible_pairs=rows * sum(n * (n + 1) // 2 for n in lengths),
                indices=np.arange(rows),
            )
            for _ in range(options.accumulate)
        ]


def _profile(step: Callable[[], Any]) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=30))


if __name__ == "__main__":
    main()
