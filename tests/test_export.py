"""What is exported is the trained model: plain transformers loads it and computes the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from pipelines.errors import UserError
from trainer.checkpoint import Checkpoints
from trainer.export import export_model, gathered_weights, main
from trainer.model import build_model
from trainer.rope import Rope, apply_rope

torch.set_num_threads(1)
TOKENS = torch.randint(0, 128, (1, 96), generator=torch.Generator().manual_seed(3))


def configuration(rope: Rope, *, tied: bool = False) -> LlamaConfig:
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=24,
        tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    apply_rope(config, rope, seq_len=96)
    return config


def random_model(config: LlamaConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(TOKENS, use_cache=False).logits


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")


ROPES = {
    "keep": Rope(),
    "linear": Rope(type="linear"),
    "base": Rope(type="base", base=500_000),
    "yarn": Rope(type="yarn"),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("rope", ROPES)
def test_an_exported_model_gives_the_same_logits(tmp_path, rope, tied):
    config = configuration(ROPES[rope], tied=tied)
    model = random_model(config)
    before = copy.deepcopy(config.to_dict())
    export_model(model.state_dict(), config, tmp_path / "out", dtype=torch.float32)
    assert config.to_dict() == before
    loaded = load(tmp_path / "out")
    assert loaded.dtype == torch.float32
    assert loaded.config.rope_parameters == config.rope_parameters
    assert loaded.config.max_position_embeddings == 96
    assert torch.equal(logits(loaded), logits(model))
    if rope != "keep":
        assert not torch.allclose(logits(loaded), logits(random_model(configuration(Rope()))))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with checkpoints of steps 1 and 2, of a model as it is trained."""
    folder = tmp_path / "run"
    config = configuration(ROPES["linear"], tied=True)
    model = build_model(config, backend="sdpa", loss_chunk=64)
    plain = random_model(config)
    model.load_state_dict(plain.state_dict(), assign=True)
    model.tie_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5 - step)
        optimizer.step()
        checkpoints.save(step, model=model, optimizer=optimizer, progress={})
        torch.save(model.state_dict(), tmp_path / f"weights-{step}.pt")
    checkpoints.finish()
    config.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


@pytest.mark.parametrize("step", [None, 1])
def test_a_checkpoint_of_a_run_is_exported_with_its_tokenizer(run, tmp_path, capsys, step):
    out = tmp_path / "out"
    arguments = ["--run", str(run), "--output", str(out), "--dtype", "float32"]
    assert main([*arguments, *(["--step", str(step)] if step else [])]) == 0
    assert f"step-0000000{step or 2} of " in capsys.readouterr().out
    expected = random_model(configuration(ROPES["linear"], tied=True))
    expected.load_state_dict(torch.load(tmp_path / f"weights-{step or 2}.pt"))
    assert torch.equal(logits(load(out)), logits(expected))
    assert (out / "tokenizer.model").read_bytes() == b"pieces"
    assert AutoConfig.from_pretrained(out).architectures == ["LlamaForCausalLM"]
    assert not (tmp_path / "out.partial").exists()


def test_bfloat16_is_what_is_written_where_nothing_is_said(run, tmp_path):
    assert main(["--run", str(run), "--output", str(tmp_path / "out")]) == 0
    loaded = load(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    weights = torch.load(tmp_path / "weights-2.pt")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, weights[name].bfloat16()), name


def test_the_model_in_memory_is_exported_without_a_checkpoint(tmp_path):
    config = configuration(ROPES["yarn"])
    model = random_model(config)
    weights = gathered_weights(model)
    assert weights.keys() == model.state_dict().keys()
    export_model(weights, config, tmp_path / "out", dtype=torch.float32)
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    weights = random_model(configuration(Rope())).state_dict()
    weights["extra"] = weights.pop("model.norm.weight")
    with pytest.raises(
        UserError, match=r"not those of the configuration: model.norm.weight, extra"
    ):
        export_model(weights, configuration(Rope()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("mine")
    assert main(["--run", str(run), "--output", str(tmp_path / "out")]) == 2
    assert "holds something already" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["kept"]
    (tmp_path / "out" / "kept").unlink()
    assert main(["--run", str(run), "--output", str(tmp_path / "out")]) == 0


def test_the_working_folder_can_be_written_to(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["--run", str(run), "--output", "."]) == 0
    assert (tmp_path / "here" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--run", "nowhere"], "not the folder of a run"),
     (["--run", "RUN", "--step", "7"], "step-00000007: no such checkpoint; steps that are there: "
      "2, 1")],
)  # fmt: skip
def test_what_is_not_there_is_a_message(run, tmp_path, capsys, arguments, message):
    given = [str(run) if a == "RUN" else a for a in arguments]
    assert main([*given, "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
