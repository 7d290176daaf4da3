"""Reading with memory equals one dense forward in which windows see all windows before them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from memory_oracle import (
    L,
    assert_close,
    dense_logits,
    memory_model,
    plain_model,
    prompt_windows,
    settings,
    text,
)

from pipelines.errors import FaultsError, UserError
from trainer.inference import as_memory_model, memory_settings, new_cache, windows
from trainer.memory import add_memory_layers, cross_batch
from trainer.schedule import extra_contexts


@pytest.mark.parametrize("length", [1, 7, L, L + 1, 19, 20, 27, 40])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_prompt_is_read_as_one_dense_forward_would(kind, length):
    model, tokens = memory_model(kind), text(length)
    expected = dense_logits(model, tokens, prompt_windows(length), model.memory_settings)
    assert_close(model(tokens).logits, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": {"num_key_value_heads": 4}},
        {"shape": {"num_key_value_heads": 1, "head_dim": 10}},
        {"mem_positionals": False},
        {"mem_limit": 0},
        {"mem_limit": 5},
        {"mem_limit": 13},
        {"mem_layers": (1,)},
        {"mem_layers": (0, 1, 2)},
        {"last_context_length": L},
        {"mem_attention_grouping": (1, 3)},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [6, 19])
def test_tokens_read_one_by_one_after_a_prompt_see_what_the_dense_forward_lets_them(
    options, length
):
    model, tokens = memory_model(**options), text(length + 21)
    s = model.memory_settings
    sizes = prompt_windows(length, s.last_context_length)
    expected = dense_logits(model, tokens, sizes, s)
    first = model(tokens[:, :length])
    parts, cache = [first.logits], first.past_key_values
    for token in tokens[:, length:].split(1, dim=1):
        parts.append(model(token, past_key_values=cache).logits)
    assert_close(torch.cat(parts, dim=1), expected)
    assert cache.get_seq_length() == length + 21


@tries(max_examples=30)
@given(
    st.lists(st.integers(1, 2 * L + 3), min_size=1, max_size=6),
    st.sampled_from([None, 0, 1, 7, 11, 16]),
    st.sampled_from([None, (1, 1), (2, 5), (3, 2), (4, 100)]),
    st.sampled_from(["float64", "float32"]),
)
def test_windows_do_not_depend_on_the_pieces_a_text_comes_in(pieces, limit, grouping, kept):
    model = memory_model(mem_limit=limit, mem_attention_grouping=grouping, mem_dtype=kept)
    tokens = text(sum(pieces))
    expected = dense_logits(model, tokens, [L] * 99, model.memory_settings)
    cache, found = new_cache(model), []
    for piece in tokens.split(pieces, dim=1):
        states = [*windows(model, piece, cache)]
        assert all(part.shape[1] <= L for part in states)
        found += [model.lm_head(part) for part in states]
    assert_close(torch.cat(found, dim=1), expected, within=1e-9 if kept == "float64" else 1e-3)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("positionals", [True, False])
def test_whole_windows_equal_training_that_sees_all_before(kind, positionals):
    tokens, trained = text(5 * L, texts=1), plain_model(kind)
    add_memory_layers(trained, (0, 2), positionals=positionals)
    extra = extra_contexts(5, range=99, packing=1, stepping=False)
    plan = cross_batch(torch.from_numpy(extra.astype(np.int32)), local_context=L)
    with torch.no_grad():
        expected = trained(tokens.view(5, L), memory=plan, use_cache=False).logits
    model = memory_model(kind, mem_positionals=positionals)
    found = [model.lm_head(part) for part in windows(model, tokens, new_cache(model))]
    assert_close(torch.cat(found, dim=1), expected.view(1, 5 * L, -1))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_text_of_one_window_is_read_as_transformers_reads_it(kind):
    tokens, plain = text(L), plain_model(kind)
    with torch.no_grad():
        expected = plain(tokens, labels=tokens)
    found = memory_model(kind, last_context_length=L)(tokens, labels=tokens)
    assert_close(found.logits, expected.logits)
    assert abs(found.loss - expected.loss) < 1e-9


def test_an_interrupted_forward_pass_leaves_the_cache_as_it_was(monkeypatch):
    model, tokens = memory_model(), text(2 * L + 6)
    cache = new_cache(model)
    model(tokens[:, : L + 5], past_key_values=cache)
    norm = model.model.layers[1].post_attention_layernorm

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(norm, "forward", stop)
        with pytest.raises(KeyboardInterrupt):
            model(tokens[:, -3:], past_key_values=cache)
    found = model(tokens[:, L + 5 :], past_key_values=cache).logits
    whole = new_cache(model)
    model(tokens[:, : L + 5], past_key_values=whole)
    assert_close(found, model(tokens[:, L + 5 :], past_key_values=whole).logits, within=1e-12)


def test_memory_reaches_the_first_token():
    model, tokens = memory_model(), text(6 * L)
    other = tokens.clone()
    other[:, 0] = (tokens[:, 0] + 1) % 61
    changed = (model(tokens).logits - model(other).logits).abs().amax(-1)
    assert (changed > 1e-9).all()


@pytest.mark.parametrize("keep", [1, 2, 5, 13, 27, 30])
def test_only_the_logits_that_are_asked_for_are_made(keep):
    model, tokens = memory_model(), text(27)
    found = model(tokens, logits_to_keep=keep).logits
    assert_close(found, model(tokens).logits[:, -keep:])


def test_states_of_which_no_logits_are_wanted_are_let_go():
    model, seen, alive = memory_model(), [], []

    def count(_module, _inputs):
        alive.append(sum(states() is not None for states in seen))

    model.model.norm.register_forward_hook(lambda _m, _i, out: seen.append(weakref.ref(out)))
    model.lm_head.register_forward_pre_hook(count)
    model(text(9 * L), logits_to_keep=1)
    assert len(seen) > 8
    assert alive == [1]


def test_memory_of_a_smaller_type_is_read_in_the_models_own():
    exact, small = memory_model(), memory_model(mem_dtype="bfloat16")
    tokens = text(30)
    off = (exact(tokens).logits - small(tokens).logits).abs().max()
    assert 0 < off < 0.5


def test_reading_bfloat16_keeps_one_buffer_for_memory_and_window():
    exact, tokens = memory_model(), text(30)
    model = plain_model().bfloat16()
    as_memory_model(model, settings(mem_dtype="bfloat16"))
    logits = model(tokens).logits
    assert logits.dtype == torch.bfloat16
    assert (exact(tokens).logits - logits).abs().mean() < 0.3


def test_parameters_keep_their_names():
    assert memory_model().state_dict().keys() == plain_model().state_dict().keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}, "must have one length"),
        ({"past_key_values": object()}, "make one with `new_cache`"),
        ({"output_hidden_states": True}, "`output_hidden_states` does not work"),
        ({"input_ids": None}, "at least one token"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.int64)}, "at least one token"),
        ({"attention_mask": torch.ones(2, 5)}, r"the shape \[2, 5\]; the input has \[2, 3\]"),
        ({"attention_mask": torch.ones(3)}, r"mask of the shape \[3\]"),
        ({"logits_to_keep": torch.tensor([2])}, "a number of last tokens"),
    ],
)
def test_what_cannot_be_read_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        memory_model()(**{"input_ids": text(3)} | call)


def test_a_mask_that_hides_what_was_read_is_refused():
    model = memory_model()
    cache = model(text(3)).past_key_values
    mask = torch.ones(2, 5)
    model(text(2), past_key_values=cache, attention_mask=mask)
    with pytest.raises(UserError, match="must have one length"):
        mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])
        model(text(1), past_key_values=cache, attention_mask=mask)


def test_a_cache_of_other_texts_is_refused():
    model = memory_model()
    cache = model(text(3)).past_key_values
    with pytest.raises(UserError, match="a cache of 2 texts, and input of 3"):
        next(windows(model, text(3, texts=3), cache))


def test_a_model_gets_memory_once_and_only_of_known_families():
    model = memory_model()
    with pytest.raises(UserError, match="already"):
        as_memory_model(model, settings())
    other = plain_model()
    other.config.model_type = "gpt2"
    with pytest.raises(UserError, match="gpt2"):
        as_memory_model(other, settings())


def config(**values: Any) -> Any:
    """A configuration as LongLLaMA's config.json, with three layers."""
    found = plain_model().config
    usual = {"mem_layers": [0, 2], "max_position_embeddings": 2048}
    for name, value in {**usual, **values}.items():
        setattr(found, name, value)
    return found


def test_settings_come_from_config_json_under_longllamas_names():
    assert memory_settings(config(mem_attention_grouping=[4, 2048])) == settings(
        mem_dtype="bfloat16", mem_attention_grouping=(4, 2048), last_context_length=1024,
        local_context=2048,
    )  # fmt: skip
    assert memory_settings(config(mem_local_context=512)).last_context_length == 256
    assert memory_settings(config(last_context_length=900), local_context=512) == settings(
        mem_dtype="bfloat16", last_context_length=256, local_context=512
    )
    assert memory_settings(config(last_context_length=2048)).last_context_length == 2048
    assert memory_settings(config(), local_context=700, mem_limit=None).local_context == 700
    assert memory_settings(config(mem_layers=[])) is None
    assert memory_settings(plain_model().config) is None
    assert memory_settings(plain_model().config, mem_layers=(1,)).local_context == L


def test_all_faults_of_settings_are_told_at_once():
    bad = {
        "mem_layers": [0, 0, 3], "mem_dtype": "bfloat", "mem_attention_grouping": [4, 0],
        "last_context_length": 4096, "mem_limit": -1, "mem_top_k": 0,
    }  # fmt: skip
    with pytest.raises(FaultsError) as error:
        memory_settings(config(), **bad)
    assert error.value.faults == (
        "mem_layers: no layer 3: the model has 3, numbered from 0",
        "mem_layers names one twice: [0, 0, 3]",
        "mem_dtype: 'bfloat' is not known; did you mean 'bfloat16'?",
        "mem_attention_grouping: [4, 0]; two numbers from 1, [heads, queries], or null",
        "last_context_length: 4,096 tokens do not fit in a local context of 2,048",
        "mem_limit: -1; at least 0 tokens, or null for all",
        "mem_top_k: 0; at least 1 key, or null for all",
        "mem_top_k: its index forgets nothing, so it has no `mem_limit`; leave one out",
    )


def test_a_setting_that_does_not_exist_is_told():
    with pytest.raises(FaultsError) as error:
        memory_settings(config(), mem_layer=(1,), memory=3)
    assert error.value.faults[0] == "mem_layer: no such setting; did you mean 'mem_layers'?"
    assert len(error.value.faults) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mem_layers": "6,12"}, "a list of layer numbers"),
        ({"mem_layers": [True]}, "no layer True"),
        ({"mem_positionals": "no"}, "mem_positionals: 'no'; true or false"),
        ({"mem_attention_grouping": 4}, "two numbers from 1"),
        ({"mem_local_context": 0}, "at least 1 token"),
        ({"last_context_length": 0}, "at least 1 token"),
        ({"sliding_window": 1024}, "sliding window of 1,024"),
    ],
)
def test_a_fault_of_config_json_is_told(values, message):
    with pytest.raises(FaultsError, match=message):
        memory_settings(config(**values))
