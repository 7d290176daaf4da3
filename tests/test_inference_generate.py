"""transformers' generate with memory."""

from __future__ import annotations

import copy

import pytest
import torch
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
from transformers import DynamicCache, GenerationConfig
from transformers.generation import stopping_criteria

from pipelines.errors import UserError
from trainer.inference import as_memory_model, new_cache, windows


def greedy(model, tokens, new):
    """What the dense forward would write."""
    sizes = prompt_windows(tokens.shape[1])
    for _ in range(new):
        logits = dense_logits(model, tokens, sizes, model.memory_settings)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens


@pytest.mark.parametrize("length", [3, L, 21])
@pytest.mark.parametrize("cache", [True, False])
def test_greedy_generation_writes_what_the_dense_forward_would(length, cache):
    model, tokens = memory_model(), text(length)
    own = {"past_key_values": new_cache(model)} if cache else {}
    found = model.generate(tokens, max_new_tokens=15, do_sample=False, **own)
    assert torch.equal(found, greedy(model, tokens, 15))


def test_generation_goes_on_from_a_text_that_was_read():
    model, tokens = memory_model(last_context_length=L), text(2 * L + 5)
    cache = new_cache(model)
    for _ in windows(model, tokens[:, : 2 * L], cache):
        pass
    found = model.generate(tokens, max_new_tokens=9, do_sample=False, past_key_values=cache)
    expected = tokens
    for _ in range(9):
        logits = dense_logits(model, expected, [L] * 9, model.memory_settings)
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, expected)
    assert cache.get_seq_length() == 2 * L + 5 + 8


def test_text_beyond_the_local_context_is_no_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(stopping_criteria.logger, "warning_once", warnings.append)
    model = memory_model()
    most = model.config.max_position_embeddings
    model.generate(text(most), max_new_tokens=4, do_sample=False)
    assert not warnings


@pytest.mark.parametrize("cache", [True, False])
def test_sampling_draws_the_same_from_a_seed_and_writes_several_answers(cache):
    model, tokens = memory_model(), text(21)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        own = {"past_key_values": new_cache(model)} if cache else {}
        options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 12}
        found.append(model.generate(tokens, **options, **own))
    assert torch.equal(*found)
    assert found[0].shape == (6, 33)
    assert len({tuple(row.tolist()) for row in found[0]}) == 6


@pytest.mark.parametrize("kept", ["float64", "float32"])
def test_beam_search_scores_each_answer_as_the_dense_forward_does(kept):
    model, tokens = memory_model(mem_dtype=kept), text(21)
    found = model.generate(
        tokens, num_beams=4, num_return_sequences=4, max_new_tokens=12, do_sample=False,
        length_penalty=0.0, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    logits = dense_logits(model, found.sequences, prompt_windows(21), model.memory_settings)
    chances = logits[:, 20:-1].log_softmax(-1)
    each = chances.gather(2, found.sequences[:, 21:, None]).sum((1, 2))
    assert (each - found.sequences_scores).abs().max() < 1e-4  # generate rounds to float32
    best = greedy(model, tokens, 12)
    assert not torch.equal(found.sequences[::4], best)


def test_a_prompt_that_is_read_once_can_be_answered_several_times():
    model, tokens = memory_model(), text(21)
    cache = model(tokens).past_key_values
    cache.batch_repeat_interleave(3)
    more = text(9, texts=6, seed=1)
    found = model(more, past_key_values=cache).logits
    whole = torch.cat([tokens.repeat_interleave(3, dim=0), more], dim=1)
    expected = dense_logits(model, whole, prompt_windows(21), model.memory_settings)
    assert_close(found, expected[:, 21:])


def test_a_cache_can_be_used_anew():
    model, tokens = memory_model(), text(21)
    cache = model(text(30, texts=3, seed=1)).past_key_values
    cache.reset()
    assert_close(model(tokens, past_key_values=cache).logits, model(tokens).logits, within=1e-12)


def test_a_streamed_answer_is_the_answer():
    class Streamer:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            pass

    model, tokens, streamer = memory_model(), text(21, texts=1), Streamer()
    found = model.generate(tokens, max_new_tokens=9, do_sample=False, streamer=streamer)
    assert streamer.tokens == found[0].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}, "must have one length"),
        ({"use_cache": False}, "read the text anew"),
        ({"generation_config": GenerationConfig(use_cache=False)}, "read the text anew"),
        ({"past_key_values": DynamicCache()}, "make one with `new_cache`"),
        ({"prompt_lookup_num_tokens": 2}, "an assistant or prompt look-up"),
    ],
    ids=str,
)
def test_generation_that_cannot_be_right_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        tokens = torch.tensor([[1, 2, 3]] * len(options.get("attention_mask", "1")))
        memory_model().generate(tokens, max_new_tokens=9, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_cache": False}, "read the text anew"),
        ({"prefill_chunk_size": 4}, "windows of its own"),
        ({"cache_implementation": "static"}, "windows of its own"),
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["model", "keyword", "second argument"])
def test_it_is_refused_wherever_it_is_configured(values, message, place):
    model, tokens, config = memory_model(), text(21), GenerationConfig(**values)
    first, options = (tokens,), {"max_new_tokens": 4}
    if place == "model":
        model.generation_config.update(**values)
    elif place == "keyword":
        options["generation_config"] = config
    else:
        first = (tokens, config)
    with pytest.raises(UserError, match=message):
        model.generate(*first, **options)


def test_a_checkpoint_tuned_without_a_cache_generates_with_one():
    plain = plain_model()
    plain.config.use_cache = plain.generation_config.use_cache = False
    as_memory_model(plain, settings())
    tokens = text(21)
    assert torch.equal(plain.generate(tokens, max_new_tokens=12), greedy(plain, tokens, 12))


@pytest.mark.parametrize("given", [9, 21])
def test_input_that_was_read_already_is_refused(given):
    model, tokens = memory_model(), text(21)
    cache = model(tokens).past_key_values
    with pytest.raises(UserError, match="21 tokens have been read, and the input has"):
        model.generate(tokens[:, :given], past_key_values=cache, max_new_tokens=4)


@pytest.mark.parametrize("top", [None, 9])
def test_copies_of_a_cache_answer_apart(top):
    if top:
        pytest.importorskip("faiss")
    model, tokens = memory_model(mem_top_k=top), text(21)
    cache = model(tokens).past_key_values
    answers = [
        model.generate(torch.cat([tokens, more], dim=1), past_key_values=copy.deepcopy(cache),
                       max_new_tokens=9, do_sample=False)
        for more in (text(5, seed=1), text(12, seed=2), text(5, seed=1))
    ]  # fmt: skip
    assert torch.equal(answers[0], answers[2])
    assert cache.read == 21
