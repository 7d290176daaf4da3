"""Checkpoints: what is saved comes back bit for bit, on any number of ranks."""

from __future__ import annotations

import errno
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pipelines.errors import UserError
from trainer.checkpoint import Checkpoints, saved_shapes

torch.set_num_threads(1)


class Net(nn.Module):
    """Layers of odd sizes, as shards of unequal length need."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, width), nn.Linear(width, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def fresh(seed: int = 0, width: int = 7) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Net(width)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.95))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.arange(20, dtype=torch.float32).reshape(4, 5).sin() + step
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Everything that training changes, whole."""
    parts = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, entry in enumerate(optimizer.state.values()):
        parts |= {f"optimizer.{i}.{k}": v for k, v in entry.items()}
    parts["lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
    whole = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in parts.items()}
    return {k.replace("_checkpoint_wrapped_module.", ""): v.clone() for k, v in whole.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def saved(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
    """A run with complete checkpoints at these steps."""
    checkpoints = Checkpoints(folder, keep=keep)
    model, optimizer = fresh()
    train(model, optimizer, range(1))
    for step in steps:
        checkpoints.save(step, model=model, optimizer=optimizer, progress={"position": 8 * step})
    checkpoints.finish()
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# One process


def test_what_was_saved_comes_back_bit_for_bit_and_training_goes_on_the_same(tmp_path):
    model, optimizer = fresh()
    train(model, optimizer, range(3))
    then = state(model, optimizer)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, model=model, optimizer=optimizer, progress={"position": 24})
    train(model, optimizer, range(3, 6))  # while it is being written
    checkpoints.finish()

    other, its = fresh(seed=1)
    path = checkpoints.find()
    assert path == tmp_path / "checkpoints" / "step-00000003"
    assert checkpoints.restore(path, model=other, optimizer=its) == {"position": 24, "step": 3}
    assert_same(state(other, its), then)
    train(other, its, range(3, 6))
    assert_same(state(other, its), state(model, optimizer))


def test_random_generators_go_on_where_they_were(tmp_path):
    model, optimizer = fresh()
    train(model, optimizer, range(1))
    torch.manual_seed(5)
    torch.randn(3)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, model=model, optimizer=optimizer, progress={})
    expected = torch.randn(9)
    checkpoints.finish()
    checkpoints.restore(checkpoints.find(), model=model, optimizer=optimizer)
    assert torch.equal(torch.randn(9), expected)


def test_wrapped_layers_leave_no_trace_in_the_names(tmp_path):
    model, optimizer = fresh()
    model.first = checkpoint_wrapper(model.first)
    model.first.compile(backend="eager")
    train(model, optimizer, range(2))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(2, model=model, optimizer=optimizer, progress={})
    checkpoints.finish()
    path = checkpoints.find()
    assert saved_shapes(path) == {k: v.shape for k, v in Net().state_dict().items()}

    plain, its = fresh(seed=1)
    checkpoints.restore(path, model=plain, optimizer=its)
    train(model, optimizer, range(2, 4))
    train(plain, its, range(2, 4))
    assert torch.equal(plain.second.weight, model.second.weight)


def test_a_parameter_with_two_names_comes_back(tmp_path):
    def tied(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Tanh(), nn.Linear(5, 5, bias=False))
        model[2].weight = model[0].weight
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    model, optimizer = tied(0)
    train(model, optimizer, range(2))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(2, model=model, optimizer=optimizer, progress={})
    checkpoints.finish()
    other, its = tied(1)
    checkpoints.restore(checkpoints.find(), model=other, optimizer=its)
    assert other[2].weight is other[0].weight
    assert_same(state(other, its), state(model, optimizer))


def test_the_newest_stay_and_latest_names_the_last(tmp_path):
    saved(tmp_path, 1, 2, 3, 10, keep=2)
    assert names(tmp_path) == ["latest", "step-00000003", "step-00000010"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000010\n"


def test_before_the_first_step_there_is_nothing_to_save_and_nothing_to_find(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    model, optimizer = fresh()
    with pytest.raises(ValueError, match="no step was done"):
        checkpoints.save(0, model=model, optimizer=optimizer, progress={})
    checkpoints.finish()
    assert not optimizer.state, "reading the state must not take a step"
    assert checkpoints.find() is None


# Several


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _rank(rank: int, folder: Path, store: str) -> None:
    """Go on from a checkpoint, train, save, fail to save, and leave the whole states in files."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, _ = fresh(seed=1)
    for part in (model.first, model.second, model):
        fully_shard(part)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no average
        part.set_gradient_divide_factor(2.0)  # both ranks see the same data
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.95))
    checkpoints = Checkpoints(folder, keep=2)
    progress = checkpoints.restore(checkpoints.find(), model=model, optimizer=optimizer)
    states = {"progress": progress, "restored": state(model, optimizer), "draw": torch.rand(1)}
    train(model, optimizer, range(3, 5))
    checkpoints.save(5, model=model, optimizer=optimizer, progress={"position": 40})
    states["saved"] = state(model, optimizer)
    train(model, optimizer, range(5, 6))  # while it is being written
    checkpoints.finish()
    if rank == 1:
        FileSystemWriter.write_data = full_disk
    checkpoints.save(6, model=model, optimizer=optimizer, progress={})
    with pytest.raises(UserError) as caught:
        checkpoints.finish()
    states["failure"] = str(caught.value)
    torch.save(states, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    model, optimizer = fresh()
    train(model, optimizer, range(3))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, model=model, optimizer=optimizer, progress={"position": 24})
    checkpoints.finish()

    multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "trainer.checkpoint"])
    store = str(tmp_path / "store")
    mp.start_processes(_rank, (tmp_path, store), nprocs=2, start_method="forkserver")
    one, other = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    assert one["progress"] == other["progress"] == {"position": 24, "step": 3}
    assert_same(one["restored"], state(model, optimizer))
    assert_same(other["restored"], one["restored"])
    assert one["draw"] != other["draw"]
    assert one["failure"] == other["failure"], "all ranks stop, whichever could not write"
    assert "step 6 could not be written: OSError: [Errno 28] No space" in one["failure"]

    again, its = fresh(seed=1)
    found = Checkpoints(tmp_path, keep=2).find()
    assert found.name == "step-00000005"
    assert checkpoints.restore(found, model=again, optimizer=its) == {"position": 40, "step": 5}
    assert_same(state(again, its), one["saved"])
    train(model, optimizer, range(3, 5))
    for name, tensor in state(model, optimizer).items():
        torch.testing.assert_close(tensor, one["saved"][name], msg=name)
