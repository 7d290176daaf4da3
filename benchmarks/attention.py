"""Speed and error of the attention kernels on this GPU, at the length of training.

    python benchmarks/attention.py --output benchmarks/results/attention-h100.json

Forward and backward of one layer's attention, bfloat16; TFLOP/s count the pairs of query and key
that see each other, 3.5 times the forward. *Error* is that of output and gradients against float64
on contexts whose lengths are no multiples of 128, ‖difference‖ / ‖reference‖. `matmul` is a dense
product of 8192³, what the device can do at most.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu import versions
from torch import Tensor
from transformers import AttentionInterface

from pipelines.errors import UserError
from trainer.attention import attention_name, choose_backend, plan_of

HEADS, SIZE, T = 32, 128, 32_768
CONTEXTS = {"one": [T], "seven": [12_000, 9_000, 5_000, 3_000, 2_000, 1_000, 768]}
ODD = {"one": [1_000], "seven": [401, 300, 1, 129, 127, 42]}


def main() -> None:
    """Print a table; write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kv-heads", type=int, default=HEADS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [{"backend": "matmul", "tflops": _matmul()}]
    for backend in ("fa4", "cudnn", "flex"):
        for contexts in CONTEXTS:
            try:
                rows.append(_measure(backend, contexts, options.kv_heads))
            except UserError as error:
                rows.append({"backend": backend, "contexts": contexts, "absent": str(error)})
            print(json.dumps(rows[-1]), flush=True)
    if options.output:
        result = {**versions(), "seq_len": T, "heads": HEADS, "kv_heads": options.kv_heads}
        options.output.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


def _measure(backend: str, contexts: str, kv_heads: int) -> dict[str, Any]:
    device, documents = torch.device("cuda"), contexts != "one"
    choose_backend(
        backend,
        device=device,
        documents=documents,
        seq_len=T,
        head_size=SIZE,
        compute=torch.bfloat16,
    )
    attend = _attention(backend, CONTEXTS[contexts])
    q, k, v, grad = _inputs(T, kv_heads)
    pairs = sum(n * (n + 1) // 2 for n in CONTEXTS[contexts])
    flops = 4 * HEADS * SIZE * pairs
    forward = _seconds(lambda: attend(q, k, v).detach())
    both = _seconds(lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), grad))
    return {
        "backend": backend,
        "contexts": contexts,
        "forward_tflops": round(flops / forward / 1e12, 1),
        "both_tflops": round(3.5 * flops / both / 1e12, 1),
        "milliseconds": round(both * 1e3, 2),
        **_error(backend, ODD[contexts], kv_heads),
    }


def _attention(backend: str, lengths: list[int]) -> Callable[..., Tensor]:
    total = sum(lengths)
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    plan = plan_of(borders.cuda(), shape=(1, total), backend=backend)
    kernel = AttentionInterface._global_mapping[attention_name(backend)]
    return lambda q, k, v: kernel(None, q, k, v, None, scaling=SIZE**-0.5, **plan)[0]


def _inputs(tokens: int, kv_heads: int) -> list[Tensor]:
    """q, k, v as layers make them, [1, heads, T, D] of memory [1, T, heads, D], and dO."""
    heads = (HEADS, kv_heads, kv_heads)
    made = [torch.randn(1, tokens, h, SIZE, device="cuda", dtype=torch.bfloat16) for h in heads]
    made = [x.transpose(1, 2).detach().requires_grad_() for x in made]
    grad = torch.randn(1, tokens, HEADS, SIZE, device="cuda", dtype=torch.bfloat16)
    return [*made, grad]


def _error(backend: str, lengths: list[int], kv_heads: int) -> dict[str, float]:
    if backend == "flex":  # whose tiles need a multiple of 128
        lengths = [*lengths, -sum(lengths) % 128]
    q, k, v, grad = _inputs(sum(lengths), kv_heads)
    found = _attention(backend, lengths)(q, k, v)
    got = [found, *torch.autograd.grad(found, (q, k, v), grad)]
    double = [x.detach().double().requires_grad_() for x in (q, k, v)]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(*p, is_causal=True, enable_gqa=True)
        for p in zip(*(x.split(lengths, dim=2) for x in double), strict=True)
    ]
    exact = torch.cat(parts, dim=2).transpose(1, 2)
    want = [exact, *torch.autograd.grad(exact, double, grad.double())]
    names = ("error_out", "error_dq", "error_dk", "error_dv")
    return {
        name: float(f"{((g - w).norm() / w.norm()).item():.2e}")
        for name, g, w in zip(names, got, want, strict=True)
    }


def _matmul() -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return round(2 * 8192**3 / _seconds(lambda: a @ b) / 1e12, 1)


def _seconds(run: Callable[[], Any]) -> float:
    """Median of one call."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=200, rep=600, return_mode="median")) / 1e3


if __name__ == "__main__":
    main()
