"""The log: one line a step on the screen, the same as JSON, and in TensorBoard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from trainer.metrics import Cost, Log, Step, peak_flops

STEP = Step(
    number=12, loss=2.34567, gradient_norm=0.98765, learning_rate=2e-5, tokens=4_194_304,
    loss_tokens=4_100_000, seconds=200.0, data_wait=0.0012, flops_visible=2.0e17,
    flops_non_causal=3.0e17,
)  # fmt: skip


def logged(folder: Path, *steps: Step, peak: float | None = None, ranks: int = 2) -> list[Any]:
    log = Log(folder, steps=1000, ranks=ranks, peak=peak)
    for step in steps:
        log.write(step)
    log.close()
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_line_says_how_a_step_went(tmp_path, capsys):
    logged(tmp_path, STEP, peak=989.4e12)
    assert capsys.readouterr().out == (
        "step 12/1,000 | loss 2.3457 | grad 0.988 | lr 2e-05 | 10,486 tok/s/gpu | "
        "mfu 50.5% (non-causal 75.8%) | data wait 0.1% | eta 54h53m\n"
    )


def test_what_is_not_known_is_left_out_and_what_went_wrong_is_added(tmp_path, capsys):
    logged(tmp_path, replace(STEP, number=999, seconds=20.0, skipped=3), ranks=1)
    assert capsys.readouterr().out == (
        "step 999/1,000 | loss 2.3457 | grad 0.988 | lr 2e-05 | 209,715 tok/s/gpu | "
        "data wait 0.1% | eta 0m20s | 3 skipped\n"
    )


def test_json_lines_hold_all_figures_unrounded(tmp_path):
    (line,) = logged(tmp_path, STEP, peak=1e15)
    assert line.pop("time") > 1.7e9
    assert line == {
        "step": 12, "loss": 2.34567, "gradient_norm": 0.98765, "learning_rate": 2e-5,
        "tokens": 4_194_304, "loss_tokens": 4_100_000, "seconds": 200.0,
        "tokens_per_s_per_gpu": 4_194_304 / 200 / 2, "mfu_visible": pytest.approx(0.5),
        "mfu_noncausal": pytest.approx(0.75), "data_wait": 0.0012, "skipped": 0,
    }  # fmt: skip
    (tmp_path / "cpu").mkdir()
    (line,) = logged(tmp_path / "cpu", STEP)
    assert line["mfu_visible"] is None and line["mfu_noncausal"] is None


def test_a_run_that_goes_on_adds_to_its_log(tmp_path):
    logged(tmp_path, STEP)
    lines = logged(tmp_path, replace(STEP, number=13), replace(STEP, number=14))
    assert [line["step"] for line in lines] == [12, 13, 14]


def test_tensorboard_has_the_same_figures(tmp_path):
    logged(tmp_path, STEP, replace(STEP, number=13, loss=2.25), peak=1e15)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [
        (12, pytest.approx(2.34567)), (13, 2.25)
    ]  # fmt: skip
    assert [e.value for e in board.Scalars("mfu_visible")] == [pytest.approx(0.5)] * 2


def test_the_time_left_follows_the_speed_slowly(tmp_path, capsys):
    slow = replace(STEP, number=13, seconds=2000.0)
    logged(tmp_path, STEP, slow, peak=None)
    first, second = (line.rsplit("eta ", 1)[1] for line in capsys.readouterr().out.splitlines())
    assert first == "54h53m"  # 988 steps of 200 s
    assert second == "60h15m"  # 987 steps at 0.9 of the speed before and 0.1 of a tenth of it


class Layers(nn.Module):
    """Two linear layers, an embedding, and a configuration."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=4, num_hidden_layers=3, hidden_size=32,
                                      **values)  # fmt: skip
        self.embedding, self.norm = nn.Embedding(100, 32), nn.LayerNorm(32)
        self.inner, self.head = nn.Linear(32, 8), nn.Linear(32, 100, bias=False)


def test_what_is_multiplied_counts_and_the_embedding_does_not():
    assert Cost.of(Layers()) == Cost(matmul_parameters=32 * 8 + 32 * 100, layers=3, width=32)
    assert Cost.of(Layers(head_dim=16)).width == 64


def test_flops_are_six_a_parameter_and_twelve_a_pair():
    cost = Cost(matmul_parameters=10, layers=3, width=7)
    assert cost.visible(tokens=5, pairs=11) == 6 * 10 * 5 + 12 * 3 * 7 * 11
    assert cost.non_causal(tokens=8, seq_len=4) == cost.visible(8, 8 * 4)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H200", 989.4e12),
     ("NVIDIA GH200 480GB", 989.4e12), ("NVIDIA A100-SXM4-80GB", 312e12),
     ("NVIDIA GeForce RTX 3090", None)],
)  # fmt: skip
def test_the_peak_is_that_of_the_data_sheet(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == peak
    assert peak_flops(torch.device("cpu")) is None
