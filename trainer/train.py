"""Continue the training of a model on a finished data set.

    torchrun --nproc-per-node 8 -m trainer.train --config trainer/configs/pi_32k.yaml \\
        --data data/phase1 --model meta-llama/Llama-2-7b-hf --output runs/pi

On one GPU or on the CPU `python -m trainer.train …` does the same. The same command again goes on
from the newest checkpoint in --output. SIGTERM and Ctrl-C end a run after the step, with a
checkpoint.
"""

import argparse
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW
from transformers.utils.logging import disable_progress_bar

from pipelines.errors import UserError
from trainer.attention import choose_backend
from trainer.cache import open_dataset
from trainer.checkpoint import Checkpoints
from trainer.config import TrainConfig, load_config, microbatches, total_steps
from trainer.crossbatch import LocalContexts, name_memory
from trainer.export import export_model, gathered_weights
from trainer.loader import Loader, Microbatch, check_state
from trainer.memory import add_memory_layers
from trainer.metrics import Cost, Log, peak_flops
from trainer.model import SHAPE, build_model, checkpoint_weights, head_size, model_config
from trainer.parallel import allocate, draw_weights, load_weights, prepare_model, process_group
from trainer.run import claim_run
from trainer.step import Training, take_step

FINISHED, FAULT, STOPPED = 0, 2, 143
"""Exit status: after the last step; on a user's error; when asked to stop."""


class ToldError(Exception):
    """An error that the rank that met it has told; all ranks end together."""


_LESS_MEMORY = (
    "less memory: `--set activation_checkpointing=attention` or `full`, a smaller `micro_batch` or "
    "`loss_chunk`, or more GPUs, which share the states"
)


def train(options: argparse.Namespace, device: torch.device) -> int:
    """Run a training to its end, or until it is asked to stop; gives the exit status.

    Raises:
        UserError: of the configuration, the data, the model, or what lies in the output folder.
    """
    config = load_config(options.config, options.set)
    dataset = open_dataset(options.data, cache=options.cache)
    seq_len, output = dataset.seq_len, options.output or Path("runs", Path(options.config).stem)
    steps = total_steps(config, len(dataset), seq_len)
    microbatches(config, dist.get_world_size())
    vocabulary = dataset.manifest["tokenizer"]["vocab_size"]
    length = seq_len if config.memory is None else config.memory.local_context or seq_len
    built = model_config(options.model, vocabulary=vocabulary, rope=config.rope, seq_len=length)
    contexts = LocalContexts.of(
        config, dataset, layers=built.num_hidden_layers, steps=steps, cuda=device.type == "cuda"
    )
    name_memory(built, contexts, model=options.model)
    compute = getattr(torch, config.compute)
    backend = choose_backend(
        config.attention,
        device=device,
        documents=config.documents,
        seq_len=length,
        head_size=head_size(built),
        compute=compute,
    )
    begun = claim_run(
        output, config=config, dataset=dataset, model=options.model, model_config=built, steps=steps
    )

    model = build_model(built, backend=backend, loss_chunk=config.loss_chunk)
    memory_layers = contexts.memory.layers if contexts else ()
    if contexts:
        add_memory_layers(model, memory_layers, positionals=contexts.memory.positionals)
    cost = Cost.of(model, memory_layers=len(memory_layers))
    prepare_model(
        model,
        checkpointing=config.activation_checkpointing,
        compiled=config.compile and backend != "sdpa",
        compute=compute,
        backend=backend,
    )
    checkpoints = Checkpoints(output, keep=config.checkpoints.keep)
    newest = checkpoints.find()
    if begun and not newest:
        raise UserError(
            f"{output}: none of the checkpoints is complete; delete {output / 'checkpoints'} to "
            "begin anew, or restore one"
        )
    _give_weights(model, options.model, seed=config.seed, device=device, restored=bool(newest))
    optimizer = _optimizer(model, config)
    progress: dict[str, Any] = {}
    if newest:
        progress = checkpoints.restore(newest, model=model, optimizer=optimizer)
    loader = Loader(
        dataset,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        rank=dist.get_rank(),
        ranks=dist.get_world_size(),
        documents=config.documents,
        positions=config.positions,
        seed=config.seed,
        start=check_state(progress["loader"], dataset) if newest else 0,
        linear_cost=cost.matmul_parameters / (cost.layers * cost.width),
        workers=config.loader.workers,
        prefetch=config.loader.prefetch,
    )
    run = Training(
        config, loader, model, optimizer, cost, backend, device, steps, contexts,
        done=progress.get("step", 0), skipped=progress.get("skipped", 0),
    )  # fmt: skip
    if dist.get_rank() == 0:
        print(_introduction(run, newest), flush=True)
    _take_steps(run, checkpoints, output)
    if run.done < steps:
        return STOPPED
    _export(run, built, output)
    return FINISHED


def _give_weights(
    model: nn.Module, name: str, *, seed: int, device: torch.device, restored: bool
) -> None:
    if restored:
        allocate(model, device)
    elif name.startswith(SHAPE):
        draw_weights(model, seed=seed, device=device)
    else:
        load_weights(model, checkpoint_weights(name) if dist.get_rank() == 0 else None, device)


def _optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW; only matrices decay."""
    decays = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decays, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def _introduction(run: Training, newest: Path | None) -> str:
    n_parameters = sum(p.numel() for p in run.model.parameters())
    begun = f"goes on from {newest.name}" if newest else "begins"
    where = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    config, dataset = run.config, run.loader.dataset
    contexts = "documents apart" if config.documents else "whole sequences"
    contexts = f"{contexts}, positions {config.positions}"
    if run.contexts:
        contexts = "local contexts, positions restart in each"
    memory = f"{run.contexts}\n" if run.contexts else ""
    return (
        f"{n_parameters:,} parameters, {dist.get_world_size()} x {where}; "
        f"attention: {run.backend}, {contexts}\n{memory}"
        f"{dataset.manifest['name']}: {len(dataset):,} sequences of {dataset.seq_len:,}; "
        f"{run.steps:,} steps of {config.global_batch:,}: {begun}"
    )


def _take_steps(run: Training, checkpoints: Checkpoints, output: Path) -> None:
    """All steps that are left, or until any rank is asked to stop; logged, with checkpoints."""

    def ask(*_: Any) -> None:
        run.asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    log = None
    if dist.get_rank() == 0 and run.done < run.steps:
        peak = peak_flops(run.device)
        log = Log(output, steps=run.steps, ranks=dist.get_world_size(), peak=peak)
    gc.freeze()  # a collection on one rank makes all of them wait
    gc.disable()
    batches = iter(run.loader)
    stopped = False
    while run.done < run.steps and not stopped:
        begin, waited = time.perf_counter(), run.loader.wait_seconds
        batch, fault = _next(batches)
        if _on_any_rank(fault is not None):
            checkpoints.finish()
            if fault:
                print(f"error: rank {dist.get_rank()}: {fault}", file=sys.stderr, flush=True)
            raise ToldError
        try:
            step = take_step(run, batch, begin=begin, waited=waited)
        except UserError:  # on all ranks, which then end what they are writing together
            checkpoints.finish()
            raise
        stopped = run.stop
        last = stopped or run.done == run.steps
        if log and (last or run.done % run.config.log_every == 0):
            log.write(step)
        if last or run.done % run.config.checkpoints.every == 0:
            progress = {"loader": run.loader.state, "skipped": run.skipped}
            if run.optimizer.state:  # else every step so far was skipped
                checkpoints.save(
                    run.done, model=run.model, optimizer=run.optimizer, progress=progress
                )
            gc.collect()  # here all ranks meet anyway
    run.loader.close()
    checkpoints.finish()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if log:
        log.close()
        if run.done < run.steps:
            print(f"stopped after step {run.done:,}; the same command goes on from there")


def _next(
    batches: Iterator[list[Microbatch]],
) -> tuple[list[Microbatch], UserError | OSError | None]:
    """The next step's data, or why this rank has none."""
    try:
        return next(batches), None
    except (UserError, OSError) as error:
        return [], error


def _on_any_rank(here: bool) -> bool:
    """Whether it is so on any rank; on the CPU, so the device goes on."""
    there = torch.tensor(int(here))
    dist.all_reduce(there)
    return bool(there)


def _export(run: Training, config: Any, output: Path) -> None:
    """The trained model for transformers, once."""
    if not (output / "model").exists():
        weights = gathered_weights(run.model)
        if dist.get_rank() == 0:
            export_model(weights, config, output / "model", tokenizer=output)
    if dist.get_rank() == 0:
        print(f"finished: {output / 'model'} is for transformers")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m trainer.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--config", required=True, metavar="FILE", help="how to train, see docs/training.md")
    add("--data", required=True, metavar="DIR", help="a finished data set; or gs://…, s3://…")
    add("--model", required=True, metavar="NAME",
        help="folder or hub name of a Llama-family checkpoint; FOLDER::FILE.gguf; or shape:NAME "
        "for random weights (llama-7b, open-llama-3b, llama-3b, llama-1b, tiny)")  # fmt: skip
    add("--output", type=Path, metavar="DIR",
        help="folder of the run (default: runs/ and the name of --config)")  # fmt: skip
    add("--cache", type=Path, metavar="DIR", help="local folder for a data set that is not local")
    add("--set", action="append", default=[], metavar="KEY=VALUE",
        help="overrides a key of the configuration; may be repeated")  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 where the user has something to mend, 143 where it was asked to stop."""
    options = parser().parse_args(arguments)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    disable_progress_bar()
    with process_group() as device:
        try:
            return train(options, device)
        except ToldError:
            return FAULT
        except (UserError, OSError) as error:
            if os.environ.get("LOCAL_RANK", "0") == "0":  # once on each host
                print(f"error: {error}", file=sys.stderr)
            return FAULT
        except torch.OutOfMemoryError as error:
            print(f"error: {error}\n{_LESS_MEMORY}", file=sys.stderr)
            return FAULT
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
