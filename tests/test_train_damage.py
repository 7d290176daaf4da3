"""What a run does when something under it is damaged: it stops, says what, and loses nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Builder
from training import losses, small_checkpoint, small_dataset, train, weights

from pipelines.shards import ShardedDataset
from trainer.checkpoint import newest
from trainer.rope import Rope


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    return small_dataset(Builder(tmp_path_factory.mktemp("data"), tokenizer_model))


@pytest.fixture
def copied(dataset, tmp_path) -> Path:
    """The data set in a folder of the test's own."""
    return Path(shutil.copytree(dataset.folder, tmp_path / "copy"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_damaged_sequence_ends_the_run_after_the_checkpoint_in_flight(copied, tmp_path, capsys):
    flip(copied / "00000.tok", 2 * 256 * 9 + 7)  # sequence 9, in step 3 of 4 sequences each
    output = tmp_path / "run"
    assert train(copied, output, "loader.prefetch=0") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: rank 0: ") and "sequence 9 (row 9 of the" in said
    assert "documents in it: " in said and "Traceback" not in said
    assert (saved := newest(output)) is not None and saved.name == "step-00000002"


def test_a_changed_manifest_is_refused_before_the_run_begins(copied, tmp_path, capsys):
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"window": 2', '"window": 4'))
    assert train(copied, tmp_path / "run") == 2
    assert "manifest.json: changed since the build" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_shard_cut_short_is_refused_before_the_run_begins(copied, tmp_path, capsys):
    shard = copied / "00001.tok"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert train(copied, tmp_path / "run") == 2
    assert "00001.tok: 8,190 bytes, not 8,192" in capsys.readouterr().err


def test_a_run_that_has_checkpoints_is_known_without_the_file_latest(dataset, tmp_path, capsys):
    output = tmp_path / "run"
    assert train(dataset, output, "steps=2") == 0
    (output / "checkpoints" / "latest").unlink()
    assert train(dataset, output, "steps=2", "learning_rate=0.5") == 2
    assert "learning_rate: 0.01 there, 0.5 now" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "unreadable"])
def test_a_run_whose_only_checkpoint_is_damaged_does_not_begin_anew(
    dataset, tmp_path, capsys, damage
):
    output = tmp_path / "run"
    assert train(dataset, output, "steps=2") == 0
    metadata = output / "checkpoints" / "step-00000002" / ".metadata"
    if damage == "missing":
        metadata.unlink()
    else:
        metadata.write_bytes(bytes(metadata.stat().st_size))
    capsys.readouterr()
    assert train(dataset, output, "steps=2") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert ("none of the checkpoints is complete" in said) is (damage == "missing")
    assert ("the checkpoint cannot be read" in said) is (damage == "unreadable")


def test_a_damaged_record_of_a_run_is_named(dataset, tmp_path, capsys):
    output = tmp_path / "run"
    assert train(dataset, output, "steps=2") == 0
    (output / "run.json").write_text("{")
    assert train(dataset, output, "steps=2") == 2
    assert f"{output / 'run.json'}: damaged" in capsys.readouterr().err


def test_a_model_with_far_more_ids_than_the_tokenizer_is_another_s(dataset, tmp_path, capsys):
    model = small_checkpoint(tmp_path / "model", vocabulary=2_000)
    assert train(dataset, tmp_path / "run", model=str(model)) == 2
    assert "2,000 token ids, the tokenizer has only 600" in capsys.readouterr().err


def test_steps_that_were_all_skipped_leave_nothing_to_save(dataset, tmp_path, monkeypatch):
    """A checkpoint of an optimizer that never stepped would hold what torch invents for it."""
    norm = SimpleNamespace(full_tensor=lambda: torch.tensor(torch.inf))
    monkeypatch.setattr("trainer.step.clip_grad_norm_", lambda *_: norm)
    output = tmp_path / "run"
    assert train(dataset, output, "steps=2", "non_finite=skip") == 0
    assert newest(output) is None and (output / "model" / "config.json").exists()


def test_positions_change_nothing_between_documents_that_cannot_see_each_other(dataset, tmp_path):
    """RoPE sees differences of positions alone."""
    rope = f"rope={Rope(type='linear', factor=8).model_dump(exclude_none=True)}"
    for positions in ("restart", "continue"):
        sets = ("steps=2", f"positions={positions}", rope)
        assert train(dataset, tmp_path / positions, *sets) == 0
    one, other = (losses(tmp_path / name) for name in ("restart", "continue"))
    assert one == pytest.approx(other, rel=1e-5)
    norms = [torch.cat([w.flatten() for w in weights(tmp_path / n).values()]) for n in
             ("restart", "continue")]  # fmt: skip
    torch.testing.assert_close(norms[0], norms[1], atol=2e-3, rtol=0)
