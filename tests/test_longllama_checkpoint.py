"""A published LongLLaMA is read without its code, and exported as a plain Llama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from training import CONFIG, small_dataset, train
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipelines.errors import UserError
from pipelines.references import SentencePieceReference
from trainer.export import export_model, main
from trainer.model import checkpoint_config, checkpoint_weights, model_config
from trainer.rope import Rope
from trainer.texts import load_tokenizer

torch.set_num_threads(1)
SIZES: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
}  # fmt: skip
MEMORY: dict[str, Any] = {
    "mem_layers": [0, 2], "mem_positionals": True, "mem_dtype": "float32",
    "mem_attention_grouping": [2, 64], "last_context_length": 32,
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    **SIZES, **MEMORY, "model_type": "longllama", "architectures": ["LongLlamaForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_longllama.LongLlamaConfig",
                 "AutoModelForCausalLM": "modeling_longllama.LongLlamaForCausalLM"},
    "gradient_checkpoint_every_ith": 1, "torch_attention": False, "hidden_act": "silu",
    "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False, "use_cache": True, "torch_dtype": "float32",
    "transformers_version": "4.30.0",
}  # fmt: skip
"""A config.json as transformers 4.30 wrote it: without `rope_theta` and `num_key_value_heads`."""

LAYOUTS = ("one .bin", "several .bin", "one safetensors", "several safetensors")
TOKENS = torch.randint(0, 640, (2, 64), generator=torch.Generator().manual_seed(3))


def plain_llama(**values: Any) -> Any:
    """The same model, made by transformers alone; weights so large that logits say something."""
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3, **values)).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(TOKENS, use_cache=False).logits


def stored(model: Any) -> dict[str, torch.Tensor]:
    """Its weights under the published names, with the buffers of old versions."""
    frequencies = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4) for i in range(3)
    }
    return {**{name: t.clone() for name, t in model.state_dict().items()}, **frequencies}


def publish(
    folder: Path, weights: dict[str, torch.Tensor], *, layout: str = "one .bin", **values: Any
) -> Path:
    """A folder as on the hub, with code that must not run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(PUBLISHED | values))
    for name in ("configuration_longllama.py", "modeling_longllama.py"):
        (folder / name).write_text("raise SystemExit('remote code was run')\n")
    count, kind = layout.split()
    stem = "pytorch_model" if kind == ".bin" else "model"
    suffix = ".bin" if kind == ".bin" else ".safetensors"
    save: Any = (
        torch.save if kind == ".bin" else lambda part, path: save_file(part, path, {"format": "pt"})
    )
    if count == "one":
        save(weights, folder / f"{stem}{suffix}")
        return folder
    places = {name: f"{stem}-0000{1 + i % 2}-of-00002{suffix}" for i, name in enumerate(weights)}
    for file in sorted(set(places.values())):
        save({name: t for name, t in weights.items() if places[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    return folder


# --- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_all_there_in_every_layout_and_frequencies_are_left_out(tmp_path, layout):
    model = plain_llama()
    name = str(publish(tmp_path, stored(model), layout=layout))
    config = model_config(name, vocabulary=600, rope=Rope(), seq_len=1)
    weights = checkpoint_weights(name)
    assert type(config) is LlamaConfig
    assert weights.keys() == model.state_dict().keys()
    for parameter, value in model.state_dict().items():
        assert torch.equal(weights[parameter], value), parameter
    read: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    read.load_state_dict(weights)
    assert torch.equal(logits(read), logits(model))


def test_the_configuration_is_llamas_and_keeps_how_memory_is_to_be_read(tmp_path):
    config = checkpoint_config(str(publish(tmp_path, {})))
    for key, value in {**SIZES, **MEMORY, "mem_local_context": 64, "num_key_value_heads": 4,
                       "pad_token_id": 0, "model_type": "llama", "architectures": None,
                       "dtype": torch.float32}.items():  # fmt: skip
        assert getattr(config, key) == value, key
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    for key in ("auto_map", "gradient_checkpoint_every_ith", "torch_attention"):
        assert not hasattr(config, key), key


def test_a_padding_id_that_is_none_is_one_message(tmp_path):
    name = str(publish(tmp_path, stored(plain_llama()), pad_token_id="x"))
    with pytest.raises(UserError, match=r"cannot read a model there: .*pad_token_id"):
        checkpoint_config(name)


def test_a_base_of_rope_no_scaling_and_no_padding_are_read_as_they_are_meant(tmp_path):
    values = {
        "rope_theta": 1e6,
        "rope_scaling": None,
        "pad_token_id": -1,
        "torch_dtype": "bfloat16",
    }
    model = plain_llama(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    name = str(publish(tmp_path, stored(model), **values))
    config = checkpoint_config(name)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert config.pad_token_id is None
    assert config.dtype == torch.bfloat16
    read: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    read.load_state_dict(model.state_dict())
    assert torch.equal(logits(read), logits(model))
    assert not torch.allclose(logits(read), logits(plain_llama()))


def test_rope_for_longer_sequences_leaves_the_local_context_as_it_was(tmp_path):
    name = str(publish(tmp_path, {}))
    config = model_config(name, vocabulary=600, rope=Rope(type="linear"), seq_len=256)
    assert (config.max_position_embeddings, config.mem_local_context) == (256, 64)


def test_weights_without_a_place_and_missing_ones_are_refused(tmp_path):
    weights = stored(plain_llama())
    weights["model.layers.1.self_attn.memory_bias"] = torch.zeros(4)
    name = publish(tmp_path / "more", weights)
    with pytest.raises(UserError) as caught:
        checkpoint_weights(str(name))
    assert str(caught.value) == (
        f"{name}: 1 weights have no place, model.layers.1.self_attn.memory_bias first"
    )
    weights = stored(plain_llama())
    del weights["model.layers.2.mlp.up_proj.weight"]
    name = publish(tmp_path / "less", weights)
    with pytest.raises(UserError) as caught:
        checkpoint_weights(str(name))
    assert str(caught.value) == (
        f"{name}: 1 weights are missing, model.layers.2.mlp.up_proj.weight first"
    )


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid 0", b""])
def test_files_that_hold_no_weights_are_a_message(tmp_path, content):
    folder = publish(tmp_path, stored(plain_llama()))
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError) as caught:
        checkpoint_weights(str(folder))
    assert str(caught.value) == (
        f"{folder}: cannot load the weights: a .bin file holds none: it is damaged, or stands for "
        "a file that Git LFS has not fetched yet (`git lfs pull`)"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [({"hidden_size": "large"}, "Field 'hidden_size' expected int, got str (value: 'large')"),
     ({"num_attention_heads": 5}, "The hidden size (32) is not a multiple of the number of"),
     ({"model_type": "otherllama"}, "contains custom code"),
     ({"model_type": "gpt2", "auto_map": {}}, "a model of type `gpt2`; the trainer knows llama, "
      "mistral, qwen2, qwen3 and longllama")],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_a_message_and_no_code_is_run(tmp_path, values, message):
    name = str(publish(tmp_path, {}, **values))
    for read in (checkpoint_config, checkpoint_weights):
        with pytest.raises(UserError) as caught:
            read(name)
        assert str(caught.value).startswith(f"{name}: ")
        assert message in str(caught.value)


def test_its_tokenizer_is_read_by_sentencepiece(tmp_path, tokenizer_model):
    folder = publish(tmp_path, {})
    shutil.copy(tokenizer_model, folder / "tokenizer.model")
    tokenizer = load_tokenizer(str(folder))
    assert isinstance(tokenizer, SentencePieceReference)
    assert tokenizer.decode(tokenizer.encode(["some words"])[0].tolist()) == "some words"


# --- exporting -----------------------------------------------------------------------------


def test_a_published_model_is_exported_as_a_plain_llama_that_is_a_memory_model_here(
    tmp_path, tokenizer_model, capsys
):
    model = plain_llama()
    folder = publish(tmp_path / "published", stored(model))
    shutil.copy(tokenizer_model, folder / "tokenizer.model")
    out, again = tmp_path / "out", tmp_path / "again"
    arguments = ["--model", str(folder), "--output", str(out), "--dtype", "float32"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{folder}: {out}\n"
    exported = json.loads((out / "config.json").read_bytes())
    assert exported["model_type"] == "llama"
    assert exported["architectures"] == ["LlamaForCausalLM"]
    assert {key: exported[key] for key in MEMORY} == MEMORY
    assert exported["mem_local_context"] == exported["max_position_embeddings"] == 64
    assert "auto_map" not in exported
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert type(plain) is LlamaForCausalLM
    assert torch.equal(logits(plain), logits(model))
    assert (out / "tokenizer.model").read_bytes() == tokenizer_model.read_bytes()
    assert not list(out.glob("*.py"))

    assert main(["--model", str(out), "--output", str(again), "--dtype", "float32"]) == 0
    for file in out.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_whatever_names_memory_stays_through_export_and_reading(tmp_path):
    model = plain_llama()
    config = model.config
    config.mem_layers, config.mem_attention_grouping = (1, 2), (4, 2048)
    config.mem_positionals, config.mem_dtype = False, "bfloat16"
    config.last_context_length, config.mem_local_context = 16, 32
    export_model(model.state_dict(), config, tmp_path / "out", dtype=torch.float32)
    for read in (
        AutoConfig.from_pretrained(tmp_path / "out"),
        checkpoint_config(str(tmp_path / "out")),
    ):
        assert (read.mem_layers, read.mem_attention_grouping) == ([1, 2], [4, 2048])
        assert (read.mem_positionals, read.mem_dtype) == (False, "bfloat16")
        assert (read.last_context_length, read.mem_local_context) == (16, 32)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))


def test_a_published_model_is_trained_with_memory_and_is_a_llama_again(tmp_path, builder):
    dataset = small_dataset(builder)
    name = publish(tmp_path / "published", stored(plain_llama()), layout="several .bin")
    memory = "memory={layers: [0, 2], local_context: 64, packing: 4, range: 3}"
    sets = ["steps=1", "warmup_steps=0", "documents=false", "positions=continue", memory]
    assert CONFIG["compute"] == "float32"
    assert train(dataset, tmp_path / "run", *sets, model=str(name)) == 0
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(trained) is LlamaForCausalLM
    assert (trained.config.mem_layers, trained.config.mem_local_context) == ([0, 2], 64)
    assert trained.config.mem_dtype == "float32"
    assert torch.isfinite(logits(trained)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--model", "MODEL", "--step", "3"], "error: --step: has a meaning with --run alone\n"),
     (["--model", "shape:tiny"], "error: shape:tiny: cannot read a model there: ")],
)  # fmt: skip
def test_what_cannot_be_exported_is_a_message(tmp_path, capsys, arguments, message):
    folder = publish(tmp_path / "published", stored(plain_llama()))
    given = [str(folder) if word == "MODEL" else word for word in arguments]
    assert main([*given, "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_hub_name_is_exported_from_the_cache_and_an_absent_one_is_a_message(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model, revision = plain_llama(), "0123456789abcdef" * 2 + "01234567"
    cached = tmp_path / "hub" / "models--syzymon--long_llama_3b"
    publish(cached / "snapshots" / revision, stored(model))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    options = ["--output", str(tmp_path / "out"), "--dtype", "float32"]
    assert main(["--model", "syzymon/absent", *options]) == 2
    assert capsys.readouterr().err.startswith("error: syzymon/absent: cannot read a model there: ")
    assert main(["--model", "syzymon/long_llama_3b", *options]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(exported), logits(model))
