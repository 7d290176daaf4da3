"""Training with memory layers: the same command, data sets, checkpoints and exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Builder, documents, write_jsonl
from torch import nn
from training import assert_same_weights, losses, small_checkpoint, train, weights
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.shards import ShardedDataset
from trainer.config import load_config
from trainer.memory import add_memory_layers, cross_batch
from trainer.metrics import Step
from trainer.model import build_model, checkpoint_weights
from trainer.step import take_step

MEMORY = ("documents=false", "positions=continue", "memory.layers=[1]", "memory.packing=4")
"""Of runs on `streams`: 4 sequences of 128 tokens of one stream stay together."""


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> ShardedDataset:
    """64 sequences of 128 tokens, 4 of one stream together."""
    builder = Builder(tmp_path_factory.mktemp("streams"), tokenizer_model)
    write_jsonl(builder.folder / "out.jsonl", documents(1, 40, low=120, high=400))
    source = {"weight": 1, "path": "out.jsonl", "policy": "stream", "stream_sequences": 4,
              "max_passes": 9}  # fmt: skip
    order = {"global_batch": 8, "window": 2}
    return builder.build({"prose": source}, tokens=64 * 128, seq_len=128, order=order).dataset


def run(streams: ShardedDataset, output: Path, *sets: str, **options: Any) -> int:
    """`CONFIG` with memory: a microbatch of 8 local contexts, 4 steps."""
    given = ("global_batch=8", "micro_batch=8", "steps=4", "memory.range=3")
    return train(streams, output, *MEMORY, *given, *sets, **options)


def test_memory_layers_are_trained_and_change_what_is_learned(
    streams: ShardedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(small_checkpoint(tmp_path / "start"))
    for name, extra in (("with", "memory.range=3"), ("without", "memory.range=0")):
        (tmp_path / name).mkdir()
        assert run(streams, tmp_path / name / "run", extra, model=checkpoint) == 0
    out = capsys.readouterr().out
    assert "memory layers 1; 8 local contexts of 128 a microbatch" in out
    assert (
        "4 of a stream together, of which each sees at most own + others: 0 + 0, 1 + 1, 2 + 1, 3"
        in out
    )
    looked, plain = (losses(tmp_path / name / "run") for name in ("with", "without"))
    assert looked[0] != plain[0] and looked[-1] != plain[-1]


def test_without_range_the_run_is_the_plain_run_bit_for_bit(
    streams: ShardedDataset, tmp_path: Path
) -> None:
    checkpoint = str(small_checkpoint(tmp_path / "start"))
    plain = ("documents=false", "positions=continue", "global_batch=8", "micro_batch=8", "steps=4")
    for name in ("memory", "plain"):
        (tmp_path / name).mkdir()
    assert run(streams, tmp_path / "memory" / "run", "memory.range=0", model=checkpoint) == 0
    assert train(streams, tmp_path / "plain" / "run", *plain, model=checkpoint) == 0
    assert_same_weights(*(weights(tmp_path / name / "run") for name in ("memory", "plain")))


def test_a_resumed_run_is_the_run_without_a_break(streams: ShardedDataset, tmp_path: Path) -> None:
    choices = ("memory.range=null", "memory.range_choices=[1, 3, 7]")
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    assert run(streams, tmp_path / "whole" / "run", *choices) == 0
    broken = tmp_path / "broken" / "run"
    assert run(streams, broken, *choices) == 0
    (broken / "checkpoints" / "step-00000004" / "progress.json").unlink()  # torn
    assert run(streams, broken, *choices) == 0
    assert_same_weights(*(weights(tmp_path / name / "run") for name in ("whole", "broken")))


def test_the_size_of_a_microbatch_belongs_to_the_run(
    streams: ShardedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(streams, tmp_path / "run") == 0
    assert run(streams, tmp_path / "run", "micro_batch=4") == 2
    assert "micro_batch: 8 there, 4 now" in capsys.readouterr().err


def test_the_export_is_a_plain_model_that_names_its_memory(
    streams: ShardedDataset, tmp_path: Path
) -> None:
    assert run(streams, tmp_path / "run") == 0
    written: Any = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert written.model_type == "llama"
    assert (written.mem_layers, written.mem_local_context) == ([1], 128)
    assert (written.last_context_length, written.mem_positionals) == (64, True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    trained = weights(tmp_path / "run")
    assert plain.state_dict().keys() == trained.keys()


def test_a_sequence_may_hold_several_local_contexts(
    streams: ShardedDataset, tmp_path: Path
) -> None:
    """128 tokens as two local contexts of 64, eight of them together: as a data set built so."""
    cut = ("memory.local_context=64", "memory.packing=8", "memory.range=7", "micro_batch=4")
    assert run(streams, tmp_path / "run", *cut) == 0
    written: Any = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert written.mem_local_context == 64


STEP = ("memory.local_context=64", "memory.range=null", "memory.range_from={0: 1, 1: 3}")


@pytest.mark.parametrize("positionals", [True, False])
def test_a_step_sees_what_the_configuration_says(
    streams: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positionals: bool
) -> None:
    """Two steps without learning, of 128 tokens as two local contexts, by hand."""
    steps: list[Step] = []

    def spy(*args: Any, **options: Any) -> Step:
        steps.append(take_step(*args, **options))
        return steps[-1]

    monkeypatch.setattr("trainer.loop.take_step", spy)
    checkpoint, still = small_checkpoint(tmp_path / "start"), ("steps=2", "learning_rate=1e-30")
    sets = (*STEP, *still, f"memory.positionals={str(positionals).lower()}")
    assert run(streams, tmp_path / "run", *sets, model=str(checkpoint)) == 0

    config = AutoConfig.from_pretrained(checkpoint)
    model: Any = build_model(config, backend="sdpa", loss_chunk=64)
    add_memory_layers(model, (1,), positionals=positionals)
    model.to_empty(device="cpu")
    model.model.rotary_emb.reset(torch.device("cpu"))
    model.load_state_dict(checkpoint_weights(str(checkpoint)))
    extra = {0: [0, 1, 1, 1] * 4, 1: [0, 1, 2, 3] + [0, 2, 3, 3] * 3}
    rows = streams_of(streams)
    for number, step in enumerate(steps):
        tokens, labels = (x[8 * number : 8 * number + 8].reshape(-1, 64) for x in rows)
        memory = cross_batch(torch.tensor(extra[number]), local_context=64)
        with torch.no_grad():
            plan = {"borders": torch.arange(0, 16 * 64 + 1, 64, dtype=torch.int32)}
            positions = torch.arange(64).expand(16, 64)
            total = model(tokens, positions, labels, memory=memory, **plan)
        assert step.loss_tokens == int((labels != -100).sum())
        assert step.loss == pytest.approx(float(total) / step.loss_tokens, rel=1e-5)
        pairs, looked_up = 16 * 64 * 65 // 2, sum(extra[number]) * 64**2
        products = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
        assert step.flops_visible == 6 * products * 1024 + 12 * 32 * (2 * pairs + looked_up)


def streams_of(dataset: ShardedDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of all sequences, as the format's own reader gives them."""
    sequences = [dataset.sequence(i) for i in range(len(dataset))]
    tokens = torch.stack([torch.from_numpy(s.tokens.astype("int64")) for s in sequences])
    targets = torch.stack([torch.from_numpy(s.targets()) for s in sequences])
    labels = torch.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:].where(targets[:, 1:], labels[:, 1:])
    return tokens, labels


def test_everything_that_does_not_fit_is_told_at_once(
    streams: ShardedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("memory.layers=[1, 7]", "memory.packing=3", "memory.range=9", "micro_batch=2")
    assert run(streams, tmp_path / "run", *wrong) == 2
    told = capsys.readouterr().err
    assert "memory.layers: 7: the model has layers 0 to 1" in told
    assert "memory.packing: 3: the data set keeps 4 local contexts of a stream together" in told
    assert "packing` to 4 or a divisor of it, or build the data set with `policy: stream`" in told
    assert "`stream_sequences` of 3 for every source" in told
    assert "micro_batch: 2: must be a multiple of 4: so many sequences" in told
    assert "memory: range 9: a microbatch has only 2 local contexts" in told
    assert "raise `micro_batch` to 12 or more" in told
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (("memory.local_context=48",), "memory.local_context: 48: must divide the 128 tokens"),
        (("memory.range=null", "memory.range_from={0: 1, 4: 3}"),
         "memory.range_from: 4: the run has only steps 0 to 3"),
        (("memory.layers=[-1]",), "1 fault"),
        (("documents=true",), "`memory` needs `documents: false`"),
        (("memory.layer=[1]",), "layers"),
    ],
)  # fmt: skip
def test_configurations_that_make_no_sense_are_refused(
    streams: ShardedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    sets: tuple[str, ...], told: str,
) -> None:  # fmt: skip
    assert run(streams, tmp_path / "run", *sets) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_microbatch_that_parts_streams_is_refused_before_anything_is_written(
    streams: ShardedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(streams, tmp_path / "run", "micro_batch=2") == 2
    assert "micro_batch: 2: must be a multiple of 4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_with_memory_is_not_trained_as_a_plain_one_by_accident(
    streams: ShardedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(streams, tmp_path / "run") == 0
    again = str(tmp_path / "run" / "model")
    (tmp_path / "plain").mkdir()
    assert train(streams, tmp_path / "plain" / "run", model=again) == 2
    assert "has memory layers [1], and the configuration names none" in capsys.readouterr().err
    assert run(streams, tmp_path / "plain" / "run", model=again) == 0


def test_a_schedule_survives_in_the_record_of_the_run(
    streams: ShardedDataset, tmp_path: Path
) -> None:
    schedule = ("memory.range=null", "memory.range_from={0: 1, 2: 3}")
    assert run(streams, tmp_path / "run", *schedule) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["memory"]["range_from"] == {"0": 1, "2": 3}
    assert run(streams, tmp_path / "run", *schedule) == 0  # is the same run


def test_the_recipe_is_the_published_one() -> None:
    folder = Path(__file__).parents[1] / "trainer" / "configs"
    config = load_config(folder / "fot_3b.yaml")
    assert config.memory and config.memory.layers == (6, 12, 18)
    assert (config.memory.packing, config.memory.range, config.memory.stepping) == (4, 3, True)
    assert config.global_batch * 2048 == 256 * 1024
    seven = load_config(folder / "fot_3b.yaml", ["memory.layers=[8,16,24]", "memory.range=7"])
    assert seven.memory and seven.memory.layers == (8, 16, 24)
