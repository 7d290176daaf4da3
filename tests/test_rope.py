"""RoPE for longer sequences: the angles are those that transformers computes from config.json."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pipelines.errors import UserError
from trainer.rope import Fp32Rotary, Rope, apply_rope

HEAD, TRAINED, SEQ_LEN = 16, 2048, 16384


def config(**values: Any) -> LlamaConfig:
    return LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=TRAINED,
                       **values)  # fmt: skip


def extended(rope: Rope, **values: Any) -> LlamaConfig:
    made = config(**values)
    apply_rope(made, rope, seq_len=SEQ_LEN)
    return made


def frequencies(base: float) -> list[float]:
    return [base ** (-2 * i / HEAD) for i in range(HEAD // 2)]


def yarn(base: float, factor: float) -> list[float]:
    """Peng et al. 2023, §3.2 and eq. 23: α = 1, β = 32, over rotations in the trained length."""

    def dimension(rotations: float) -> float:
        return HEAD * math.log(TRAINED / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), HEAD - 1)
    ramp = [min(max((i - low) / (high - low), 0), 1) for i in range(HEAD // 2)]
    return [f / factor * r + f * (1 - r) for f, r in zip(frequencies(base), ramp, strict=True)]


CASES = {
    "keep": (Rope(), frequencies(10_000), 1.0),
    "linear": (Rope(type="linear"), [f / 8 for f in frequencies(10_000)], 1.0),
    "linear by 4": (Rope(type="linear", factor=4), [f / 4 for f in frequencies(10_000)], 1.0),
    "linear, larger base": (
        Rope(type="linear", base=20_000), [f / 8 for f in frequencies(20_000)], 1.0),
    "base": (Rope(type="base", base=500_000), frequencies(500_000), 1.0),
    "yarn": (Rope(type="yarn"), yarn(10_000, 8), 0.1 * math.log(8) + 1),
    "yarn by 16": (Rope(type="yarn", factor=16), yarn(10_000, 16), 0.1 * math.log(16) + 1),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_angles_are_the_paper_s_and_those_of_the_exported_checkpoint(tmp_path, case):
    rope, expected, scaling = CASES[case]
    extended(rope).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    reach = (rope.factor or 0) * 2048 if rope.type == "yarn" else 0
    assert loaded.max_position_embeddings == max(SEQ_LEN, reach)
    theirs = LlamaRotaryEmbedding(loaded)
    ours = Fp32Rotary(LlamaRotaryEmbedding(extended(rope)))
    assert ours.inv_freq.tolist() == pytest.approx(expected, rel=1e-5)
    assert ours.attention_scaling == pytest.approx(scaling)
    positions = torch.tensor([[0, 1, 77, TRAINED, SEQ_LEN - 1], [5, 4, 3, 2, 1]])
    for found, plain in zip(ours(torch.ones(1), positions),
                            theirs(torch.ones(1), positions), strict=True):  # fmt: skip
        assert found.shape == (2, 5, HEAD)
        torch.testing.assert_close(found, plain, atol=0, rtol=0)


def test_cos_and_sin_stay_float32_in_a_bfloat16_model():
    ours = Fp32Rotary(LlamaRotaryEmbedding(config()))
    x, positions = torch.ones(1, dtype=torch.bfloat16), torch.arange(3000)[None]
    assert [t.dtype for t in ours(x, positions)] == [torch.float32] * 2
    exact = positions.double()[..., None] * torch.tensor(frequencies(10_000) * 2).double()
    assert (ours(x, positions)[0].double() - exact.cos()).abs().max() < 1e-3


def test_frequencies_come_back_for_a_module_made_without_memory():
    made = extended(Rope(type="yarn"))
    expected = LlamaRotaryEmbedding(made).inv_freq
    with torch.device("meta"):
        ours = Fp32Rotary(LlamaRotaryEmbedding(made))
    ours.to_empty(device="cpu")
    ours.reset(torch.device("cpu"))
    assert torch.equal(ours.inv_freq, expected)
    assert "inv_freq" not in ours.state_dict()


def test_the_factor_is_the_new_length_over_the_trained_one():
    assert extended(Rope(type="linear")).rope_parameters["factor"] == 8
    shorter = extended(Rope(type="yarn", original_length=4096))
    assert shorter.rope_parameters["factor"] == 4
    assert shorter.rope_parameters["original_max_position_embeddings"] == 4096
    assert extended(Rope(type="yarn", factor=2)).rope_parameters["factor"] == 2


def test_a_longer_checkpoint_keeps_its_length():
    made = config()
    apply_rope(made, Rope(), seq_len=100)
    assert made.max_position_embeddings == TRAINED
    assert made.rope_parameters == config().rope_parameters


SCALED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_checkpoint_that_is_scaled_already_is_not_scaled_twice(kind):
    with pytest.raises(UserError, match=r"^rope: the checkpoint is scaled already .*'factor': 4.0"):
        extended(Rope(type=kind), rope_parameters=dict(SCALED))
    assert extended(Rope(), rope_parameters=dict(SCALED)).rope_parameters == SCALED
    larger = extended(Rope(type="base", base=500_000), rope_parameters=dict(SCALED))
    assert larger.rope_parameters == {**SCALED, "rope_theta": 500_000.0}


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("rope", [Rope(), Rope(type="base", base=5e5), Rope(type="linear")])
def test_frequencies_that_follow_the_text_are_refused(kind, rope):
    made = config()
    made.rope_parameters = {"rope_type": kind, "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(UserError, match=f"^rope: the checkpoint's frequencies change .*'{kind}'"):
        apply_rope(made, rope, seq_len=SEQ_LEN)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_nothing_to_scale_is_a_fault(kind):
    for original in (SEQ_LEN, 2 * SEQ_LEN):
        with pytest.raises(UserError, match=rf"reaches {original:,} positions .* have 16,384: "):
            extended(Rope(type=kind, original_length=original))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "base"}, "`type: base` needs `base`"),
        ({"type": "keep", "factor": 2}, "`factor` has no meaning with `type: keep`"),
        ({"type": "base", "base": 5e5, "factor": 2}, "`factor` has no meaning with `type: base`"),
        ({"base": 5e5}, "did you mean `type: base`"),
        ({"type": "linear", "factor": 1}, "greater than 1"),
        ({"type": "linear", "factor": "inf"}, "factor"),
        ({"type": "ntk"}, "'keep', 'linear', 'base' or 'yarn'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Rope.model_validate(values)
