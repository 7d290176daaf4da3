"""Steps in which no token carries loss: nothing moves, the data counts as seen, and all is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Builder
from test_train_ranks import ROOT, free_port
from training import arguments, log, small_dataset, train

import trainer.loop
import trainer.prepare
from pipelines.shards import ShardedDataset
from trainer.step import take_step

SILENT = 3
SETS = ("steps=5", "weight_decay=0.5", "checkpoints.every=1")
TWO_RANKS = """
import json, os, sys
from dataclasses import replace
import numpy as np, torch, torch.distributed as dist
import trainer.loop, trainer.train as command
from trainer.step import take_step
torch.set_num_threads(1)

def stepping(run, batches, **options):
    # Before the silent step, one in which only the second rank has tokens with loss.
    if run.done + 1 == 3 or (run.done + 1 == 2 and dist.get_rank() == 0):
        batches = [replace(b, labels=np.full_like(b.labels, -100), n_loss=0) for b in batches]
    return take_step(run, batches, **options)

trainer.loop.take_step = stepping
os.environ |= {"MASTER_PORT": sys.argv[1], "TORCHELASTIC_USE_AGENT_STORE": "False"}
sys.exit(command.main(json.loads(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    return small_dataset(Builder(tmp_path_factory.mktemp("data"), tokenizer_model))


def state_of(run: Any) -> list[torch.Tensor]:
    """Weights and the optimizer's states, copied."""
    states = [s for state in run.optimizer.state.values() for s in state.values()]
    return [t.detach().clone() for t in (*run.model.parameters(), *states)]


def test_a_step_without_loss_moves_no_weight_and_no_state(dataset, tmp_path, monkeypatch, capsys):
    moved: dict[int, bool] = {}

    def stepping(run, batches, **options):
        if run.done + 1 == SILENT:
            batches = [replace(b, labels=np.full_like(b.labels, -100), n_loss=0) for b in batches]
        before = state_of(run)
        step = take_step(run, batches, **options)
        after = state_of(run)
        moved[step.number] = len(before) != len(after) or not all(map(torch.equal, before, after))
        return step

    monkeypatch.setattr(trainer.loop, "take_step", stepping)
    assert train(dataset, tmp_path / "run", *SETS) == 0
    assert moved == {n: n != SILENT for n in range(1, 6)}
    said = capsys.readouterr()
    assert f"step {SILENT}/5 | no token with loss, nothing changed | lr " in said.out
    assert "| 1 skipped" in said.out
    assert f"warning: step {SILENT}: no token of its sequences carries loss (sequences " in said.err
    lines = log(tmp_path / "run")
    silent = lines[SILENT - 1]
    assert (silent["loss_tokens"], silent["loss"], silent["gradient_norm"]) == (0, None, None)
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1]
    progress = tmp_path / "run/checkpoints/step-00000003/progress.json"
    assert json.loads(progress.read_text())["progress"]["loader"]["position"] == 4 * SILENT


def test_all_ranks_together_decide_whether_a_step_has_loss(dataset, tmp_path):
    script = tmp_path / "commands.py"
    script.write_text(TWO_RANKS)
    words = json.dumps(arguments(dataset, tmp_path / "run", *SETS))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launch, str(free_port()), words],
        check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("no token of its sequences carries loss") == 1
    lines = log(tmp_path / "run")
    assert lines[1]["loss_tokens"] > 0 < lines[1]["loss"]
    assert lines[2]["loss_tokens"] == 0
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1]


def test_a_data_set_without_loss_is_refused(dataset, tmp_path, monkeypatch, capsys):
    silent = copy(dataset)
    totals = dataset.manifest["totals"] | {"loss_tokens": 0}
    silent.manifest = dataset.manifest | {"totals": totals}
    monkeypatch.setattr(trainer.prepare, "open_dataset", lambda *_, **__: silent)
    assert train(dataset, tmp_path / "run") == 2
    assert "no token of this data set carries loss" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
