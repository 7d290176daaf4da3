"""Two ranks compute what one does, and a run may go on with another number of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Builder
from training import (
    arguments,
    assert_same_weights,
    log,
    small_checkpoint,
    small_dataset,
    train,
    weights,
)

from pipelines.shards import ShardedDataset

ROOT = Path(__file__).resolve().parents[1]
SETS = ("checkpoints.every=1", "activation_checkpointing=full", "documents=true")
MEMORY = ("checkpoints.every=1", "documents=false", "positions=continue", "memory.layers=[1]",
          "memory.local_context=64", "memory.packing=4", "memory.range=5")  # fmt: skip

COMMANDS = """
import json, os, sys
import torch, trainer.train as command
torch.set_num_threads(1)
for port, words in json.loads(sys.argv[1]):
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    status = command.main(words)
    if os.environ["RANK"] == "0":
        print("status", status, flush=True)
"""


def on_two_ranks(folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Commands one after the other under torchrun, which would take longer to start for each."""
    script = folder / "commands.py"
    script.write_text(COMMANDS)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ports = [free_port() for _ in commands]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *launch, json.dumps(list(zip(ports, commands, strict=True)))],
        check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    return small_dataset(Builder(tmp_path_factory.mktemp("data"), tokenizer_model))


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory) -> Path:
    """`drawn` from a shape, `given` from a checkpoint with tied weights, `memory` with memory.

    They end with `-1` and `-2` for the number of ranks.

    `said` is what two ranks said, after a command with a fault.
    """
    folder = tmp_path_factory.mktemp("runs")
    model = str(small_checkpoint(folder / "model", tied=True))
    assert train(dataset, folder / "drawn-1", *SETS) == 0
    assert train(dataset, folder / "given-1", *SETS, model=model) == 0
    assert train(dataset, folder / "memory-1", *MEMORY, model=model) == 0
    drawn = arguments(dataset, folder / "drawn-2", *SETS)
    given = arguments(dataset, folder / "given-2", *SETS, model=model)
    memory = arguments(dataset, folder / "memory-2", *MEMORY, model=model)
    fault = arguments(dataset, folder / "fault", "micro_batch=4")
    done = on_two_ranks(folder, fault, drawn, given, memory)
    (folder / "said").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 x CPU") == done.stdout.count("finished: ") == 3
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == [
        "status 2", "status 0", "status 0", "status 0"
    ]  # fmt: skip
    return folder


@pytest.mark.parametrize("which", ["drawn", "given", "memory"])
def test_two_ranks_have_the_losses_of_one(runs, which):
    one, two = log(runs / f"{which}-1"), log(runs / f"{which}-2")
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    for exact in ("tokens", "loss_tokens", "learning_rate", "skipped"):
        assert [line[exact] for line in two] == [line[exact] for line in one]
    for close in ("loss", "gradient_norm"):
        found, expected = ([line[close] for line in lines] for lines in (two, one))
        assert found == pytest.approx(expected, rel=2e-4)
        assert found[0] == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize("which", ["drawn", "given", "memory"])
def test_two_ranks_begin_with_the_weights_of_one(runs, which):
    """The first step of the warm-up has a learning rate of 0 and moves nothing."""
    assert log(runs / f"{which}-1")[0]["learning_rate"] == 0.0
    one, two = (weights(runs / f"{which}-{ranks}", 1) for ranks in (1, 2))
    assert_same_weights(one, two)
    assert not torch.equal(weights(runs / f"{which}-1", 2)["model.norm.weight"],
                           one["model.norm.weight"])  # fmt: skip


@pytest.mark.parametrize("which", ["drawn", "given", "memory"])
def test_one_rank_goes_on_from_a_checkpoint_of_two(dataset, runs, tmp_path, which):
    output = Path(shutil.copytree(runs / f"{which}-2", tmp_path / "run"))
    shutil.rmtree(output / "model")
    for step in (4, 5, 6):
        shutil.rmtree(output / "checkpoints" / f"step-{step:08}")
    model = {} if which == "drawn" else {"model": str(runs / "model")}
    assert train(dataset, output, *(MEMORY if which == "memory" else SETS), **model) == 0
    lines = log(output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    for key in ("loss", "gradient_norm"):
        again, before = ([line[key] for line in part] for part in (lines[6:], lines[3:6]))
        assert again == pytest.approx(before, rel=2e-4)


def test_a_fault_on_two_ranks_is_told_once(runs):
    message = "error: global_batch (4) must be a multiple of `micro_batch` × ranks (4 × 2 = 8)"
    assert (runs / "said").read_text().count(message) == 1
    assert not (runs / "fault").exists()
