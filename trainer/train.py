"""Continue the training of a model on a finished data set.

    torchrun --nproc-per-node 8 -m trainer.train --config trainer/configs/pi_32k.yaml \\
        --data data/phase1 --model meta-llama/Llama-2-7b-hf --output runs/pi

On one GPU or on the CPU `python -m trainer.train …` does the same. The same command again goes on
from the newest checkpoint in --output. SIGTERM and Ctrl-C end a run after the step, with a
checkpoint.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from pipelines.errors import UserError
from trainer.export import export_model, gathered_weights
from trainer.loop import ToldError, take_steps
from trainer.parallel import process_group
from trainer.prepare import Setup, begin_run
from trainer.step import Training

FINISHED, FAULT, STOPPED = 0, 2, 143
"""Exit status: after the last step; on a user's error; when asked to stop."""

_LESS_MEMORY = (
    "less memory: `--set activation_checkpointing=attention` or `full`, a smaller `micro_batch` or "
    "`loss_chunk`, or more GPUs, which share the states"
)


def train(options: argparse.Namespace, device: torch.device) -> int:
    """Run a training to its end, or until it is asked to stop; gives the exit status.

    Raises:
        UserError: of the configuration, the data, the model, or what lies in the output folder.
    """
    setup = Setup.of(options, device)
    with setup.claim() as begun:
        run, checkpoints, newest = begin_run(setup, device, begun=begun)
        if dist.get_rank() == 0:
            print(_introduction(run, newest), flush=True)
        take_steps(run, checkpoints, setup.output)
        if run.done < run.steps:
            return STOPPED
        _export(run, setup.model_config, setup.output)
    return FINISHED


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
