"""What a training refuses: status 2 and one message that names place, value, rule and way out."""

from __future__ import annotations

import errno
import fcntl
import shutil
from pathlib import Path

import pytest
from conftest import Builder
from training import arguments, contents, small_checkpoint, small_dataset, train

from pipelines.shards import ShardedDataset
from trainer.train import main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    return small_dataset(Builder(tmp_path_factory.mktemp("data"), tokenizer_model))


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that has to be refused, before anything is written; gives its message."""

    def run(*args, **options) -> str:
        before = contents(tmp_path)
        before.pop("config.yaml", None)
        assert train(*args, **options) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ") and "Traceback" not in captured.err
        assert {k: v for k, v in contents(tmp_path).items() if k != "config.yaml"} == before
        return captured.err.removeprefix("error: ").removesuffix("\n")

    return run


FAULTS = {
    "misspelt key": ("global_batsh=4", "did you mean 'global_batch'?"),
    "two faults": ("learning_rate=-1", "learning_rate"),
    "batch and microbatch": ("micro_batch=3", "`global_batch` (4) must be a multiple of"),
    "cudnn on a CPU": (
        "attention=cudnn",
        "attention: `cudnn` needs a CUDA device, `documents: false`, `compute: bfloat16`",
    ),
    "fa4 on a CPU": (
        "attention=fa4",
        "attention: `fa4` needs flash-attn-4 (extra `[fa4]`), a Hopper or data-center ",
    ),
    "flex on a CPU": (
        "attention=flex",
        "attention: `flex` needs a CUDA device and sequences of a multiple of 128; "
        "`auto` takes what works",
    ),
    "a warm-up without end": ("warmup_steps=7", "warmup_steps (7): the run has 6 steps"),
    "nothing to interpolate": (
        "rope.type=linear",
        "rope: the checkpoint reaches 4,096 positions and sequences have 256: nothing to scale; "
        "use `type: keep`, or name `factor` or `original_length`",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_configuration_that_cannot_be(dataset, tmp_path, refused, fault):
    override, message = FAULTS[fault]
    assert message in refused(dataset, tmp_path / "run", override)


def test_a_configuration_that_is_not_there(dataset, tmp_path, capsys):
    given = arguments(dataset, tmp_path / "run")
    given[1] = str(tmp_path / "no.yaml")
    assert main(given) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'no.yaml'}: cannot read the training config")
    assert message.count("\n") == 1


def test_data_that_are_not_there_or_not_whole(dataset, tmp_path, refused):
    missing = tmp_path / "no-data"
    assert str(missing) in refused(missing, tmp_path / "run")
    shutil.copytree(dataset.folder, tmp_path / "part")
    (tmp_path / "part" / "manifest.json").unlink()
    assert str(tmp_path / "part") in refused(tmp_path / "part", tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("shape:llama-7", "shape:llama-7: no such shape; did you mean 'llama-7b'?"),
        ("shape:?", "shape:?: no such shape; known: llama-7b, "),
        ("EMPTY", ": cannot read a model there: "),
        ("SMALL", ": 599 token ids, the tokenizer has 600: it is another model's"),
    ],
)
def test_a_model_that_is_none_or_another_tokenizer_s(dataset, tmp_path, refused, model, message):
    (tmp_path / "EMPTY").mkdir()
    small_checkpoint(tmp_path / "SMALL", vocabulary=599)
    name = model if model.startswith("shape:") else str(tmp_path / model)
    said = refused(dataset, tmp_path / "run", model=name)
    assert said.startswith(name) and message in said


def test_weights_that_are_torn(dataset, tmp_path, capsys):
    model = small_checkpoint(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"torn")
    assert train(dataset, tmp_path / "run", model=str(model)) == 2
    assert capsys.readouterr().err.startswith(f"error: {model}: cannot load the weights: ")


def test_a_folder_that_holds_something_else(dataset, tmp_path, refused):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("chapter 1")
    said = refused(dataset, tmp_path / "run")
    assert said == (
        f"{tmp_path / 'run'}: holds something that is no run; give a new folder to --output"
    )


def test_a_folder_where_another_process_trains(dataset, tmp_path, refused):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = refused(dataset, tmp_path / "run")
        assert said == (
            f"{tmp_path / 'run'}: another process is training there; wait for it, or stop it"
        )
    assert train(dataset, tmp_path / "run", "steps=2") == 0
    assert train(dataset, tmp_path / "run", "steps=2") == 0, "the lock is not kept"


def test_an_output_that_is_a_file(dataset, tmp_path, refused):
    (tmp_path / "run").write_text("chapter 1")
    assert refused(dataset, tmp_path / "run") == f"--output {tmp_path / 'run'}: File exists"


def test_a_file_system_without_locks_is_said(dataset, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert train(dataset, tmp_path / "run", "steps=2") == 0
    assert "its file system has no locks; start no second run there" in capsys.readouterr().err


def test_another_run_in_the_same_folder_is_told_all_differences(dataset, tmp_path, capsys, refused):
    output = tmp_path / "run"
    assert train(dataset, output, "steps=2") == 0
    capsys.readouterr()
    other = small_dataset(Builder(tmp_path, Path(dataset.folder) / "tokenizer.model"), seed=2)
    model = str(small_checkpoint(tmp_path / "model"))
    said = refused(other, output, "steps=3", "learning_rate=0.5", "seed=1", model=model)
    there, here = (data.manifest["dataset_id"] for data in (dataset, other))
    heading, *faults = said.splitlines()
    assert heading.startswith(f"{output}: holds another run; give a new --output")
    assert [fault.strip(" -") for fault in faults] == [
        f"dataset_id: '{there}' there, '{here}' now",
        f"model: 'shape:tiny' there, '{model}' now",
        "steps: 2 there, 3 now",
        "learning_rate: 0.01 there, 0.5 now",
        "seed: 0 there, 1 now",
    ]


def test_arguments_that_are_missing(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--config", "c.yaml"])
    assert ended.value.code == 2
    assert "required: --data, --model" in capsys.readouterr().err
