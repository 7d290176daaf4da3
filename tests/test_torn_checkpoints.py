"""Checkpoints that are not complete, not whole or not this model's: named, passed over, refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from test_checkpoint import fresh, full_disk, names, saved, train
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from pipelines.errors import FaultsError, UserError
from trainer.checkpoint import Checkpoints, checkpoint_of, newest


def tear(path: Path, how: str) -> None:
    data = max((p for p in path.iterdir() if p.suffix == ".distcp"), key=lambda p: p.stat().st_size)
    if how == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    elif how == "record":
        (path / "progress.json").write_text('{"files": ')
    else:
        (path / how if how != "data" else data).unlink()


@pytest.mark.parametrize(
    ("how", "reason"),
    [("cut", "__0_0.distcp has "), ("data", "__0_0.distcp is missing"),
     (".metadata", ".metadata is missing"), ("rng-00000.pt", "rng-00000.pt is missing"),
     ("progress.json", "progress.json is missing"), ("record", "progress.json is damaged")],
)  # fmt: skip
def test_a_torn_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog, how, reason):
    checkpoints = saved(tmp_path, 1, 2)
    newer = tmp_path / "checkpoints" / "step-00000002"
    tear(newer, how)
    with caplog.at_level(logging.WARNING, logger="trainer.checkpoint"):
        assert checkpoints.find() == tmp_path / "checkpoints" / "step-00000001"
    (message,) = [r.message for r in caplog.records if r.name == "trainer.checkpoint"]
    assert message.startswith(f"{newer}: the checkpoint is torn and passed over: {reason}")
    model, optimizer = fresh()
    with pytest.raises(UserError, match="is torn"):
        checkpoints.restore(newer, model=model, optimizer=optimizer)
    with pytest.raises(UserError, match=r"step-00000002: .*; steps that are there: 2, 1"):
        checkpoint_of(tmp_path, 2)
    assert checkpoint_of(tmp_path).name == "step-00000001"


def test_a_torn_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    saved(tmp_path, 1, 2)
    tear(tmp_path / "checkpoints" / "step-00000002", "cut")
    saved(tmp_path, 2)
    assert newest(tmp_path).name == "step-00000002"


def test_a_torn_checkpoint_does_not_push_a_good_one_out(tmp_path):
    saved(tmp_path, 4, 9)
    tear(tmp_path / "checkpoints" / "step-00000009", "cut")
    saved(tmp_path, 6, keep=1)
    assert newest(tmp_path).name == "step-00000006"


def test_a_write_that_fails_leaves_the_one_before_and_says_why(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)
    model, optimizer = fresh()
    train(model, optimizer, range(1))

    with monkeypatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", full_disk)
        checkpoints.save(2, model=model, optimizer=optimizer, progress={})
        with pytest.raises(UserError) as caught:
            checkpoints.finish()
    assert "step 2 could not be written" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "the newest complete one is step-00000001" in str(caught.value)
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002.partial"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000001\n"

    checkpoints.finish()  # the failure was told once
    again = Checkpoints(tmp_path, keep=9)
    assert names(tmp_path) == ["latest", "step-00000001"]
    again.save(2, model=model, optimizer=optimizer, progress={})
    again.finish()
    assert again.find().name == "step-00000002"


def test_a_failure_in_the_background_stops_the_next_save(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)
    model, optimizer = fresh()
    train(model, optimizer, range(1))
    monkeypatch.setattr("trainer.checkpoint._LATEST", "no/such/folder")
    checkpoints.save(2, model=model, optimizer=optimizer, progress={})
    with pytest.raises(UserError, match="step 2 could not be written: FileNotFoundError"):
        checkpoints.save(3, model=model, optimizer=optimizer, progress={})


def test_damage_that_keeps_the_size_is_a_message_too(tmp_path):
    checkpoints = saved(tmp_path, 1)
    data = tmp_path / "checkpoints" / "step-00000001" / "__0_0.distcp"
    data.write_bytes(b"\0" * data.stat().st_size)
    model, optimizer = fresh()
    with pytest.raises(UserError, match=r"cannot be read: .*; delete its folder"):
        checkpoints.restore(checkpoints.find(), model=model, optimizer=optimizer)


def test_a_checkpoint_of_another_model_is_refused_with_names(tmp_path):
    checkpoints = saved(tmp_path, 1)
    wider, its = fresh(width=8)
    with pytest.raises(FaultsError) as caught:
        checkpoints.restore(checkpoints.find(), model=wider, optimizer=its)
    assert caught.value.faults == (
        "first.bias: [7] in the checkpoint, [8] in the model",
        "first.weight: [7, 5] in the checkpoint, [8, 5] in the model",
        "second.weight: [3, 7] in the checkpoint, [3, 8] in the model",
    )
    other = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(FaultsError) as caught:
        checkpoints.restore(checkpoints.find(), model=other, optimizer=optimizer)
    assert caught.value.faults[0] == "0.bias: missing in the checkpoint, [2] in the model"
    assert caught.value.faults[5:] == ("… and 16 more",)
