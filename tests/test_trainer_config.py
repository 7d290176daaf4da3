"""The training configuration: what is accepted, what is computed from it, what the recipes say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import FaultsError, UserError
from trainer.config import (
    FREE,
    TrainConfig,
    config_record,
    learning_rate,
    load_config,
    microbatches,
    total_steps,
)

RECIPES = Path(__file__).resolve().parents[1] / "trainer" / "configs"
GOOD = "global_batch: 8\nsteps: 100\nlearning_rate: 2e-5\n"

Load = Callable[..., TrainConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Reads a text as a configuration file."""

    def read(text: str, *overrides: str) -> TrainConfig:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return read


def faults(load: Load, text: str, *overrides: str) -> Sequence[str]:
    with pytest.raises(FaultsError) as caught:
        load(text, *overrides)
    return caught.value.faults


def config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {"global_batch": 8, "learning_rate": 1.0}
        | ({} if {"tokens", "passes"} & values.keys() else {"steps": 100})
        | values
    )


# The file


def test_a_short_file_gives_a_configuration_with_the_documented_defaults(load):
    read = load(GOOD)
    assert (read.global_batch, read.steps, read.learning_rate) == (8, 100, 2e-5)
    assert (read.documents, read.positions, read.micro_batch) == (True, "restart", 1)
    assert (read.betas, read.eps, read.weight_decay, read.clip) == ((0.9, 0.95), 1e-8, 0, 1)
    assert (read.compute, read.attention, read.rope.type) == ("bfloat16", "auto", "keep")


def test_all_faults_are_named_at_once_by_line_with_the_rule_and_a_suggestion(load):
    text = """\
globl_batch: 8
steps: 1e3
learning_rate: fast
schedule: cosin
betas: [0.9, 1]
documents: 2
clip: -1
rope:
  type: liner
  fator: 8
checkpoints: 500
loader: {workers: two}
"""
    assert faults(load, text, "warmup=3", "log_every=0") == (
        "global_batch: is missing",
        "--set log_every=0: log_every: must be greater than or equal to 1 (given: 0)",
        "--set warmup=3: warmup: no such key; did you mean 'warmup_from'?",
        "line 1: globl_batch: no such key; did you mean 'global_batch'?",
        "line 2: steps: must be a whole number (given: '1e3'); write 1_000",
        "line 3: learning_rate: must be a number (given: 'fast')",
        "line 4: schedule: must be 'constant' or 'cosine' (given: 'cosin'); did you mean 'cosine'?",
        "line 5: betas.1: must be less than 1 (given: 1)",
        "line 6: documents: must be a valid boolean, unable to interpret input (given: 2)",
        "line 7: clip: must be greater than or equal to 0 (given: -1)",
        "line 9: rope.type: must be 'keep', 'linear', 'base' or 'yarn' (given: 'liner'); did you "
        "mean 'linear'?",
        "line 10: rope.fator: no such key; did you mean 'factor'?",
        "line 11: checkpoints: must hold keys: every, keep (given: 500)",
        "line 12: loader.workers: must be a whole number (given: 'two')",
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD + "passes: 1\n", "give one of `steps`, `tokens` and `passes` (given: `steps` and "
         "`passes`); `--set KEY=null` takes one away"),
        (GOOD.replace("steps: 100\n", ""), "give one of `steps`, `tokens` and `passes` (given: "
         "none)"),
        (GOOD + "documents: false\n", "`documents: false` needs `positions: continue`: a token "
         "that sees other documents has to know how far away they are"),
        (GOOD + "micro_batch: 3\n", "`global_batch` (8) must be a multiple of `micro_batch` (3)"),
        (GOOD + "schedule: constant\nfinal: 0.1\n", "`final` needs `schedule: cosine`"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_a_fault(load, text, fault):
    assert faults(load, text) == (f"training configuration: {fault}",)


def test_rope_is_checked_in_its_place(load):
    (fault,) = faults(load, GOOD + "rope: {type: base}\n")
    assert fault.startswith("line 4: rope: `type: base` needs `base`")


def test_a_file_that_is_none_is_refused_with_the_reason(load, tmp_path):
    with pytest.raises(UserError, match=r"c.yaml: a training configuration is a mapping with `glo"):
        load("- steps")
    with pytest.raises(UserError, match=r"none.yaml: cannot read the training configuration"):
        load_config(tmp_path / "none.yaml")


def test_a_configuration_survives_json(load):
    for one in (load(GOOD), config(passes="1/3"), load_config(RECIPES / "abf_32k.yaml")):
        again = TrainConfig.model_validate(json.loads(json.dumps(config_record(one))))
        assert again == one


@pytest.mark.parametrize(
    ("override", "lowest"), [("loader.workers=0", 1), ("loader.prefetch=-1", 0)]
)
def test_the_loader_gets_what_it_can_use(load, override, lowest):
    (fault,) = faults(load, GOOD, override)
    assert f"must be greater than or equal to {lowest}" in fault
    assert load(GOOD, "loader.prefetch=0").loader.prefetch == 0


def test_every_key_is_described_and_the_free_ones_exist():
    assert all(info.description for info in TrainConfig.model_fields.values())
    assert set(FREE) < set(TrainConfig.model_fields)


# Length and shares of a run


@pytest.mark.parametrize(
    ("values", "steps"),
    [({"steps": 7}, 7), ({"tokens": 8 * 32}, 1), ({"tokens": 8 * 32 + 1}, 2),
     ({"passes": 1}, 12), ({"passes": 2}, 25), ({"passes": "0.08"}, 1)],
)  # fmt: skip
def test_the_length_of_a_run_in_steps_of_8_sequences_of_32_tokens_out_of_100(values, steps):
    assert total_steps(config(**values), 100, 32) == steps


@given(st.fractions(min_value=0, max_value=9).filter(bool), st.integers(1, 500))
def test_passes_never_begin_a_step_that_they_cannot_fill(passes, sequences):
    try:
        steps = total_steps(config(passes=passes), sequences, 32)
    except UserError:
        steps = 0
    assert 8 * steps <= passes * sequences < 8 * (steps + 1)


def test_a_run_without_a_step_or_without_its_learning_rate_is_refused():
    with pytest.raises(UserError, match=r"passes \(1/2\): the data set's 15 sequences do not fill"):
        total_steps(config(passes="1/2"), 15, 32)
    with pytest.raises(UserError, match=r"warmup_steps \(101\): the run has 100 steps"):
        total_steps(config(warmup_steps=101), 15, 32)
    assert total_steps(config(warmup_steps=100), 15, 32) == 100


def test_a_step_is_shared_equally_or_refused():
    assert [microbatches(config(), ranks) for ranks in (1, 2, 8)] == [8, 4, 1]
    assert microbatches(config(micro_batch=2), 4) == 1
    with pytest.raises(UserError, match=r"global_batch \(8\) .* \(2 × 3 = 6\)"):
        microbatches(config(micro_batch=2), 3)


# The learning rate


def test_position_interpolation_rises_from_a_tenth_in_20_steps_and_stays():
    recipe = load_config(RECIPES / "pi_32k.yaml")
    rates = [learning_rate(recipe, step, 1_000) for step in range(1_000)]
    assert rates[0] == pytest.approx(2e-6)
    assert rates[10] == pytest.approx(1.1e-5)
    assert rates[19] == pytest.approx(1.91e-5)
    assert set(rates[20:]) == {2e-5}


def test_llama_2_long_rises_in_2000_steps_and_falls_to_a_tenth():
    recipe = load_config(RECIPES / "abf_32k.yaml")
    total = total_steps(recipe, 12_800, 32_768)
    assert total == 100_000
    rates = {s: learning_rate(recipe, s, total) for s in (0, 500, 2_000, 50_999, 51_000, 99_999)}
    assert rates[0] == 0
    assert rates[500] == pytest.approx(5e-6)
    assert rates[2_000] == 2e-5
    assert (rates[50_999] + rates[51_000]) / 2 == pytest.approx(1.1e-5)  # half way
    assert rates[99_999] == pytest.approx(2e-6)
    assert learning_rate(recipe, 26_499, total) == pytest.approx(
        2e-5 * (0.1 + 0.45 * (1 + cos(pi * 24_499 / 97_999)))
    )


@given(
    st.integers(0, 20), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1),
    st.sampled_from(["constant", "cosine"]),
)  # fmt: skip
def test_the_rate_rises_then_falls_and_ends_where_it_is_told_to(warmup, rest, begin, end, schedule):
    final = {"final": end} if schedule == "cosine" else {}
    chosen = config(warmup_steps=warmup, warmup_from=begin, schedule=schedule, **final)
    total = warmup + rest
    rates = [learning_rate(chosen, step, total) for step in range(total)]
    assert all(0 <= rate <= 1 + 1e-12 for rate in rates)
    assert rates[warmup] == pytest.approx(1)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert all(a >= b - 1e-12 for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    if warmup:
        assert rates[0] == begin
    if rest > 1:
        assert rates[-1] == pytest.approx(end if schedule == "cosine" else 1)


# The recipes


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads_and_runs_on_1_2_4_and_8_gpus(path):
    recipe = load_config(path)
    assert total_steps(recipe, 46_000, 32_768) > recipe.warmup_steps
    if not path.stem.endswith("tiny"):
        assert [microbatches(recipe, ranks) for ranks in (1, 2, 4, 8)]
        assert recipe.compute == "bfloat16"


@pytest.mark.parametrize(
    ("name", "rope", "tokens_per_step", "steps", "rate"),
    [
        ("pi_32k", "linear", 128 * 32_768, 1_000, 2e-5),
        ("abf_32k", "base", 2**22, 100_000, 2e-5),  # "4M tokens"
        ("yarn_32k", "yarn", 64 * 32_768, 400, 2e-5),
        ("together_32k", "linear", 128 * 32_768, 358, 2e-5),  # 1.5B tokens
    ],
)
def test_the_recipes_are_those_of_the_papers(name, rope, tokens_per_step, steps, rate):
    recipe = load_config(RECIPES / f"{name}.yaml")
    assert recipe.rope.type == rope
    assert recipe.rope.factor is None
    assert recipe.global_batch * 32_768 == tokens_per_step
    assert total_steps(recipe, 10**6, 32_768) == steps
    assert learning_rate(recipe, recipe.warmup_steps, steps) == rate
    assert (recipe.documents, recipe.positions) == (False, "continue")
    assert recipe.betas == (0.9, 0.95)
