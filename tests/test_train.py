"""A whole run, one process: exact however it is interrupted, and what comes out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Builder
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.nn.functional import cross_entropy
from training import (
    arguments,
    assert_same_weights,
    contents,
    log,
    losses,
    small_checkpoint,
    small_dataset,
    train,
    weights,
)
from transformers import AutoConfig, AutoModelForCausalLM

import trainer.loop
from pipelines.shards import ShardedDataset
from trainer.attention import plan_of
from trainer.export import main as export
from trainer.loader import documents_of
from trainer.model import build_model
from trainer.step import take_step

ROOT = Path(__file__).resolve().parents[1]
STEPS = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    return small_dataset(Builder(tmp_path_factory.mktemp("data"), tokenizer_model))


def whole_run(dataset: ShardedDataset, output: Path, *sets: str, **options: Any) -> Path:
    assert train(dataset, output, f"steps={STEPS}", *sets, **options) == 0
    return output


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    return whole_run(dataset, tmp_path_factory.mktemp("whole") / "run")


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, weights and the exported model are equal bit for bit."""
    assert losses(one) == losses(other)
    assert_same_weights(weights(one), weights(other))
    files = [folder / "model" / "model.safetensors" for folder in (one, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


# --- interruptions -------------------------------------------------------------------------

KILLED = """
import os, pathlib, signal, sys, time
import torch, trainer.loop as loop, trainer.train as command
torch.set_num_threads(1)
take_step, latest = loop.take_step, pathlib.Path(sys.argv.pop(1), "checkpoints", "latest")
def step_or_death(run, *args, **options):
    while run.done == 5:
        if latest.exists() and latest.read_text() == "step-00000004\\n":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
    return take_step(run, *args, **options)
loop.take_step = step_or_death
sys.exit(command.main(sys.argv[1:]))
"""


def test_a_killed_run_ends_as_one_that_was_not(dataset, whole, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(output)]
    command += arguments(dataset, output, f"steps={STEPS}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [line["step"] for line in log(output)] == [1, 2, 3, 4, 5]
    assert not (output / "model").exists()
    whole_run(dataset, output)
    assert [line["step"] for line in log(output)] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert log(output)[4]["loss"] == log(output)[5]["loss"]
    assert_same_run(output, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_with_the_same_command(
    dataset, whole, tmp_path, monkeypatch, capsys, number
):
    def interrupted(run, *args, **options):
        backward = torch.Tensor.backward

        def signalled(tensor):
            if run.done == 4:
                os.kill(os.getpid(), number)  # in the middle of step 5
            backward(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", signalled)
            return take_step(run, *args, **options)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.loop, "take_step", interrupted)
        assert train(dataset, output, f"steps={STEPS}", "checkpoints.every=100") == 143
    said = capsys.readouterr().out
    assert said.endswith("stopped after step 5; the same command goes on from there\n")
    assert [p.name for p in (output / "checkpoints").glob("step-*")] == ["step-00000005"]
    whole_run(dataset, output, "checkpoints.every=100")
    assert "goes on from step-00000005" in capsys.readouterr().out
    assert_same_run(output, whole)


def test_keys_that_move_no_result_may_change_in_a_run(dataset, whole, tmp_path, monkeypatch):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.loop, "take_step", stopping_after(3))
        assert train(dataset, output, f"steps={STEPS}") == 143
    free = ("activation_checkpointing=full", "loss_chunk=100", "loader.prefetch=1",
            "micro_batch=4", "log_every=2", "attention=sdpa")  # fmt: skip
    whole_run(dataset, output, *free)
    assert [line["step"] for line in log(output)] == [1, 2, 3, 4, 6, 8]
    expected = [line["loss"] for line in log(whole)]
    found = {line["step"]: line["loss"] for line in log(output)}
    assert found == pytest.approx({n: expected[n - 1] for n in found}, rel=1e-5)


def stopping_after(n: int):
    def stopping(run, *args, **options):
        run.asked = run.done + 1 >= n
        return take_step(run, *args, **options)

    return stopping


def test_a_finished_run_says_so_and_changes_nothing(dataset, whole, capsys):
    before = contents(whole)
    whole_run(dataset, whole)
    assert capsys.readouterr().out.endswith(f"finished: {whole / 'model'} is for transformers\n")
    assert contents(whole) == before


# --- what a run writes ---------------------------------------------------------------------


def test_the_log_has_a_line_a_step(dataset, whole):
    lines = log(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    keys = ("time step loss gradient_norm learning_rate tokens loss_tokens seconds "
            "tokens_per_s_per_gpu mfu_visible mfu_noncausal data_wait skipped")  # fmt: skip
    assert {" ".join(line) for line in lines} == {keys}
    for number, line in enumerate(lines):
        sequences = [dataset.sequence(i) for i in range(4 * number, 4 * number + 4)]
        assert line["tokens"] == 4 * 256
        # Counted where tokens are predicted: what begins a document has nothing before it.
        assert line["loss_tokens"] == sum(int(q.targets().sum()) for q in sequences)
        assert line["seconds"] > 0 and 0 <= line["data_wait"] <= 1 and line["skipped"] == 0
    assert lines[0]["learning_rate"] == 0.0
    assert lines[2]["learning_rate"] == 0.01 == max(line["learning_rate"] for line in lines)


def test_the_trained_model_is_for_plain_transformers(dataset, tmp_path):
    rope = ("rope.type=linear", "rope.factor=8", "positions=continue")
    output = whole_run(dataset, tmp_path / "run", *rope, "compute=bfloat16")
    folder = tmp_path / "float32"
    assert export(["--run", str(output), "--output", str(folder), "--dtype", "float32"]) == 0
    config = AutoConfig.from_pretrained(output / "model")
    expected = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10_000.0}
    assert config.rope_parameters == expected
    trained = build_model(AutoConfig.from_pretrained(output), backend="sdpa", loss_chunk=64)
    trained.load_state_dict(weights(output), assign=True)
    trained.model.rotary_emb.reset(torch.device("cpu"))
    tokens = torch.from_numpy(dataset.sequence(3).tokens.astype("int64"))[None]
    borders = torch.tensor([0, 256], dtype=torch.int32)
    plan = plan_of(borders, shape=(1, 256), backend="sdpa")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    with torch.no_grad():
        ours = trained(tokens, torch.arange(256)[None], **plan)
        torch.testing.assert_close(loaded(tokens).logits, ours, atol=1e-5, rtol=1e-5)
    assert AutoModelForCausalLM.from_pretrained(output / "model").dtype == torch.bfloat16
    assert (output / "model" / "tokenizer.model").exists()


# --- what a run begins with ----------------------------------------------------------------


@torch.no_grad()
def plain_loss(model: Any, dataset: ShardedDataset, indices: range) -> float:
    """Mean loss of sequences by plain transformers, which sees one document at a time."""
    total, count = 0.0, 0
    for sequence in map(dataset.sequence, indices):
        tokens = torch.from_numpy(sequence.tokens.astype("int64"))
        learned = torch.from_numpy(sequence.targets())
        starts = [s["start"] for s in sequence.segments if not s["continues"]]
        for start, end in pairwise([*starts, sequence.n_real]):
            logits = model(tokens[None, start:end]).logits[0, :-1]
            wanted = tokens[start + 1 : end].masked_fill(~learned[start + 1 : end].bool(), -100)
            total += cross_entropy(logits, wanted, reduction="sum").item()
            count += int((wanted >= 0).sum())
    return total / count


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_checkpoint_begins_with_the_loss_that_transformers_gives_it(dataset, tmp_path, tied):
    model = str(small_checkpoint(tmp_path / "model", tied=tied))
    output = tmp_path / "run"
    assert train(dataset, output, "steps=2", model=model) == 0
    plain = AutoModelForCausalLM.from_pretrained(model)
    assert log(output)[0]["loss"] == pytest.approx(plain_loss(plain, dataset, range(4)), rel=1e-5)
    trained = AutoModelForCausalLM.from_pretrained(output / "model")
    assert trained.config.tie_word_embeddings == tied
    assert (trained.lm_head.weight is trained.model.embed_tokens.weight) == tied


def test_what_can_be_learned_by_heart_is(tmp_path, tokenizer_model):
    builder = Builder(tmp_path, tokenizer_model)
    (tmp_path / "one.jsonl").write_text('{"text": "%s"}\n' % ("They make this water first. " * 60))
    source = {"weight": 1, "path": "one.jsonl", "max_passes": 99}
    data = builder.build({"one": source}, tokens=8 * 256).dataset
    assert train(data, tmp_path / "run", "steps=25") == 0
    found = losses(tmp_path / "run")
    assert found[0] > 6 and found[-1] < 1


# --- numbers that are not finite -----------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(dataset, tmp_path_factory) -> tuple[str, int]:
    """A checkpoint that is infinite for a token of one sequence alone; and that sequence."""
    seen: dict[int, set[int]] = {}
    for i in range(4 * STEPS):
        sequence = dataset.sequence(i)
        for token in sequence.tokens[: sequence.n_real - 1].tolist():
            seen.setdefault(token, set()).add(i)
    token, index = next((t, min(s)) for t, s in seen.items() if len(s) == 1 and min(s) >= 8)
    folder = small_checkpoint(tmp_path_factory.mktemp("poisoned"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.embed_tokens.weight.data[token] = float("inf")
    model.save_pretrained(folder)
    return str(folder), index


def test_a_step_that_is_not_finite_is_left_out_or_ends_the_run(
    dataset, poisoned, tmp_path, monkeypatch, capsys
):
    model, index = poisoned
    bad = index // 4 + 1
    documents = ", ".join(documents_of(dataset, index))
    sets = ("micro_batch=1", "checkpoints.every=1")

    skipping = whole_run(dataset, tmp_path / "skip", "non_finite=skip", *sets, model=model)
    captured = capsys.readouterr()
    assert f"step {bad:,}: loss nan, gradient norm nan: not finite" in captured.err
    assert f"\n  sequence {index}: {documents}\n" in captured.err
    assert captured.err.count("  sequence ") == 1
    assert "| 1 skipped" in captured.out
    assert [line["skipped"] for line in log(skipping)] == [int(n >= bad) for n in range(1, 9)]
    before, after = weights(skipping, bad - 1), weights(skipping, bad)
    assert_same_weights(before, after)
    assert not torch.equal(*(w["lm_head.weight"] for w in (after, weights(skipping, bad + 1))))

    write = FileSystemWriter.write_data

    def slow(*args, **options):
        time.sleep(0.3)  # longer than a step: the checkpoint before is still being written
        return write(*args, **options)

    monkeypatch.setattr(FileSystemWriter, "write_data", slow)
    output = tmp_path / "stop"
    assert train(dataset, output, f"steps={STEPS}", *sets, model=model) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: step {bad:,}: loss nan")
    assert f"\n  sequence {index}: {documents}\n" in message
    assert "Traceback" not in message
    assert_same_weights(weights(output), before)
    whole_run(dataset, output, "non_finite=skip", *sets, model=model)
    assert_same_weights(weights(output), weights(skipping))
