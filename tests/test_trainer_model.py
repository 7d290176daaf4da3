"""The model of training is transformers' model: families, names, loss; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_oracle import dense_mask
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from pipelines.errors import UserError
from trainer.attention import plan_of
from trainer.metrics import Cost
from trainer.model import build_model, checkpoint_weights, model_config
from trainer.rope import Rope

torch.set_num_threads(1)
T, VOCABULARY = 48, 101
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, wide heads": LlamaConfig(**SIZES, head_dim=12),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=12),
}
BORDERS = torch.tensor([0, 11, 12, 40, 48, 70, 96], dtype=torch.int32)


def saved(config: Any, folder: Path) -> str:
    """A random checkpoint; biases too, which are 0 as they are made."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return str(folder)


def loaded(name: str, rope: Rope) -> Any:
    """As training builds it, on one device, without a process group."""
    config = model_config(name, vocabulary=VOCABULARY, rope=rope, seq_len=T)
    model: Any = build_model(config, backend="sdpa", loss_chunk=17)
    model.load_state_dict(checkpoint_weights(name), strict=True, assign=True)
    model.tie_weights()
    model.model.rotary_emb.reset(torch.device("cpu"))
    return model


@pytest.mark.parametrize("rope", [Rope(), Rope(type="yarn", factor=4)], ids=["keep", "yarn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_with_a_dense_mask(tmp_path, family, rope):
    name = saved(FAMILIES[family], tmp_path)
    model = loaded(name, rope)
    tokens = torch.randint(0, VOCABULARY, (2, T), generator=torch.Generator().manual_seed(2))
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = labels.view(-1)[BORDERS[1:] - 1] = -100
    positions = torch.cat([torch.arange(int(n)) for n in BORDERS.diff()]).view(2, T)
    plan = plan_of(BORDERS, shape=(2, T), backend="sdpa")
    ours = model(tokens, positions, labels, **plan)
    ours.backward()

    plain: Any = AutoModelForCausalLM.from_pretrained(
        name, config=model_config(name, vocabulary=VOCABULARY, rope=rope, seq_len=T),
        attn_implementation="eager",
    )  # fmt: skip
    mask = torch.zeros(2, 1, T, T).masked_fill(~dense_mask(BORDERS, (2, T))[:, None], -torch.inf)
    logits = plain(tokens, attention_mask=mask, position_ids=positions).logits
    theirs = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected = dict(plain.named_parameters())
    assert dict(model.named_parameters()).keys() == expected.keys()
    for parameter, value in model.named_parameters():
        scale = float(expected[parameter].grad.abs().max())
        torch.testing.assert_close(value.grad, expected[parameter].grad, atol=1e-4 * scale, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, positions, **plan), logits, atol=1e-4, rtol=1e-4)


# --- configurations ------------------------------------------------------------------------


def refused(name: str, vocabulary: int = VOCABULARY) -> str:
    with pytest.raises(UserError) as caught:
        model_config(name, vocabulary=vocabulary, rope=Rope(), seq_len=T)
    return str(caught.value)


def folder_of(config: Any, folder: Path) -> str:
    config.save_pretrained(folder)
    return str(folder)


def test_a_sliding_window_is_refused_where_it_is_used(tmp_path):
    name = folder_of(MistralConfig(**SIZES, sliding_window=4096), tmp_path / "mistral")
    assert refused(name) == (
        f"{name}: attention in a sliding window of 4,096: a long context needs full attention; "
        "set `sliding_window` to null in its config.json"
    )
    unused = folder_of(Qwen2Config(**SIZES, sliding_window=4096), tmp_path / "qwen2")
    model_config(unused, vocabulary=VOCABULARY, rope=Rope(), seq_len=T)
    used = folder_of(
        Qwen2Config(**SIZES, sliding_window=16, use_sliding_window=True, max_window_layers=0),
        tmp_path / "used",
    )
    assert "sliding window of 16" in refused(used)


def test_another_family_is_refused_with_those_that_are_known(tmp_path):
    name = folder_of(GPT2Config(), tmp_path)
    assert refused(name) == (
        f"{name}: a model of type `gpt2`; the trainer knows llama, mistral, qwen2, qwen3 "
        "and longllama"
    )


def test_too_few_token_ids_are_refused(tmp_path):
    name = folder_of(FAMILIES["llama"], tmp_path)
    assert "101 token ids, the tokenizer has 102" in refused(name, vocabulary=102)
    assert model_config(name, vocabulary=90, rope=Rope(), seq_len=T).vocab_size == 101


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert refused(str(tmp_path)).startswith(f"{tmp_path}: cannot read a model there: ")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="cannot load the weights: "):
        checkpoint_weights(str(tmp_path))


def test_shapes_have_room_for_the_vocabulary_in_blocks_of_64():
    sizes = [model_config("shape:tiny", vocabulary=n, rope=Rope(), seq_len=T).vocab_size
             for n in (1, 64, 65, 32_000)]  # fmt: skip
    assert sizes == [64, 64, 128, 32_000]


def test_the_exported_configuration_says_how_far_the_model_reaches(tmp_path):
    config = model_config("shape:tiny", vocabulary=600, rope=Rope(type="linear"), seq_len=32_768)
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.max_position_embeddings == 32_768
    assert read.rope_parameters["factor"] == 8


# --- cost ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "vocabulary", "parameters", "causal", "non_causal"),
    [("llama-7b", 32_000, 6.607e9, 65.4e9, 91.2e9), ("llama-1b", 128_256, 1.236e9, None, None)],
)
def test_the_cost_of_a_token_is_that_of_the_papers(
    shape, vocabulary, parameters, causal, non_causal
):
    config = model_config(f"shape:{shape}", vocabulary=vocabulary, rope=Rope(), seq_len=32_768)
    cost = Cost.of(build_model(config, backend="sdpa", loss_chunk=4096))
    assert cost.matmul_parameters == pytest.approx(parameters, rel=1e-3)
    if causal:
        seq_len = 32_768
        assert (cost.layers, cost.width) == (32, 4096)
        assert cost.visible(seq_len, seq_len**2 // 2) / seq_len == pytest.approx(causal, rel=1e-3)
        assert cost.non_causal(seq_len, seq_len) / seq_len == pytest.approx(non_causal, rel=1e-3)
        # Attention costs by pairs: half as many pairs, half of its part.
        linear = 6 * cost.matmul_parameters * seq_len
        parts = [cost.visible(seq_len, pairs) - linear for pairs in (2**20, 2**21)]
        assert parts[1] == pytest.approx(2 * parts[0])
