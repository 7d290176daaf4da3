"""Memory layers: the crossbatch schedule and mask, against a dense reference in float64."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from trainer.attention import BLOCK, Backend, plan_of
from trainer.memory import CrossBatch, add_memory_layers, cross_batch, memory_blocks, visible
from trainer.model import build_model
from trainer.schedule import Memory, extra_contexts, positives_and_negatives

torch.set_num_threads(1)
SIZES = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "initializer_range": 0.3}  # fmt: skip


def published(entries: int, r: int, k: int) -> list[list[int]]:
    """Which local contexts each one sees beside its own, nearest first, as the published code."""
    n = 1 + r
    step = -(-n // max(k - 1, 1))
    seen = []
    for i in range(entries):
        p = n if k == 1 else min((i % k) * step + 1, n)
        seen.append([i - j for j in range(1, min(p, i + 1))])
    return seen


def dense_attention(
    q: Tensor, local_k: Tensor, raw_k: Tensor, v: Tensor, seen: list[list[int]], scale: float
) -> Tensor:
    """One local context after the other: scores over own and seen tokens, one softmax."""
    groups = q.shape[1] // v.shape[1]
    local_k, raw_k, v = (x.repeat_interleave(groups, dim=1) for x in (local_k, raw_k, v))
    out = []
    for i, others in enumerate(seen):
        own = (q[i] @ local_k[i].transpose(1, 2) * scale).masked_fill(
            torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1), -torch.inf
        )
        far = [q[i] @ raw_k[j].transpose(1, 2) * scale for j in others]
        weights = torch.cat([own, *far], dim=-1).softmax(-1)
        values = torch.cat([v[i], *(v[j] for j in others)], dim=1)
        out.append((weights @ values).transpose(0, 1))
    return torch.stack(out)


YARN = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 10_000.0,
        "original_max_position_embeddings": 64}  # fmt: skip


def random_model(
    *,
    kind: str = "llama",
    layers: tuple[int, ...] = (1,),
    rope: dict[str, Any] | None = None,
    backend: Backend = "sdpa",
) -> Any:
    """A small planned model with memory layers and large float64 weights."""
    config = AutoConfig.for_model(
        kind, **SIZES, num_key_value_heads=2, head_dim=8, rope_parameters=rope
    )
    model: Any = build_model(config, backend=backend, loss_chunk=32)
    add_memory_layers(model, layers, positionals=True)
    model.to_empty(device="cpu")
    model.model.rotary_emb.reset(torch.device("cpu"))
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return model.double()


def batch(entries: int, length: int, *, seed: int = 1, backend: Backend = "sdpa") -> dict[str, Any]:
    """What a planned model takes but for labels and memory."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 90, (entries, length), generator=generator)
    positions = torch.arange(length).expand(entries, length)
    borders = torch.arange(0, entries * length + 1, length, dtype=torch.int32)
    plan = plan_of(borders, shape=(entries, length), backend=backend)
    return {"tokens": tokens, "positions": positions, **plan}


def lookup(entries: int, length: int, r: int, k: int) -> Any:
    extra = extra_contexts(entries, range=r, packing=k, stepping=True)
    return cross_batch(torch.from_numpy(extra), local_context=length)


@pytest.mark.parametrize(
    ("r", "k", "slots"),
    [
        (3, 4, [(0, 0), (1, 1), (2, 1), (3, 0)]),  # the paper's 3B model
        (7, 4, [(0, 0), (1, 2), (2, 4), (3, 4)]),  # its code's 7B model
        (6, 4, [(0, 0), (1, 2), (2, 4), (3, 3)]),
        (1, 2, [(0, 0), (1, 0)]),
        (2, 1, [(0, 2)]),
        (0, 4, [(0, 0)] * 4),
    ],
)
def test_each_slot_has_the_published_positives_and_negatives(
    r: int, k: int, slots: list[tuple[int, int]]
) -> None:
    assert positives_and_negatives(range=r, packing=k, stepping=True, together=k) == slots


@pytest.mark.parametrize(
    ("r", "k", "slots"),
    [
        (3, 1, [(0, 3), (1, 2), (2, 1), (3, 0)]),
        (3, 2, [(0, 0), (1, 2), (0, 0), (3, 0)]),
        (6, 4, [(0, 0), (1, 2), (2, 4), (3, 3)]),
    ],
)
def test_where_more_than_a_pack_stay_together_more_are_their_own(
    r: int, k: int, slots: list[tuple[int, int]]
) -> None:
    assert positives_and_negatives(range=r, packing=k, stepping=True, together=4) == slots


def test_without_stepping_every_slot_sees_as_many() -> None:
    assert positives_and_negatives(range=3, packing=4, stepping=False, together=4) == [
        (0, 3), (1, 2), (2, 1), (3, 0),
    ]  # fmt: skip


def test_the_readme_example_of_the_published_code_holds() -> None:
    extra = extra_contexts(8, range=6, packing=4, stepping=True)
    assert extra.tolist() == [0, 1, 2, 3, 0, 3, 6, 6]


@given(entries=st.integers(1, 24), r=st.integers(0, 20), k=st.integers(1, 8))
def test_local_contexts_see_those_before_them_as_published(entries: int, r: int, k: int) -> None:
    extra = extra_contexts(entries, range=r, packing=k, stepping=True)
    seen = [[i - j for j in range(1, n + 1)] for i, n in enumerate(extra.tolist())]
    assert seen == published(entries, r, k)


@settings(max_examples=25)
@given(
    shape=st.sampled_from([(8, 6, 4), (8, 3, 4), (8, 7, 4), (4, 2, 2), (6, 2, 1), (3, 0, 1)]),
    length=st.integers(1, 9),
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    seed=st.integers(0, 99),
)
def test_memory_attention_is_the_dense_reference_with_its_gradients(
    shape: tuple[int, int, int], length: int, heads: tuple[int, int], seed: int
) -> None:
    entries, r, k = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(h: int) -> Tensor:
        drawn = torch.randn(entries, h, length, 8, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    q, local_k, raw_k, v = draw(heads[0]), draw(heads[1]), draw(heads[1]), draw(heads[1])
    out = lookup(entries, length, r, k).attend(0, q, local_k, raw_k, v, 0.4)
    wanted = dense_attention(q, local_k, raw_k, v, published(entries, r, k), 0.4)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    inputs = (q, local_k, raw_k, v)
    found = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
    expected = torch.autograd.grad((wanted * weight).sum(), inputs, allow_unused=True)
    for one, other in zip(found, expected, strict=True):  # None: no raw key is seen
        wanted = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("kind", "rope"), [("llama", None), ("qwen3", None), ("llama", YARN)])
def test_memory_keys_are_those_of_position_zero(kind: str, rope: dict[str, Any] | None) -> None:
    """As transformers' own layer rotates them, told that all tokens stand at 0."""
    model = random_model(kind=kind, rope=rope)
    layer, states = model.model.layers[1].self_attn, torch.randn(4, 5, 32, dtype=torch.float64)
    angles = model.model.rotary_emb(states, torch.arange(5).expand(4, 5))
    at_zero = model.model.rotary_emb(states, torch.zeros(4, 5, dtype=torch.long))
    kept: dict[str, Tensor] = {}

    class Spy:
        def update(self, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
            kept["k"] = k
            return k, v

    plan = batch(4, 5)
    plain = super(type(layer), layer)
    plain.forward(states, at_zero, None, cast(Any, Spy()), borders=plan["borders"])
    plain_k = kept["k"]
    seen: dict[str, Tensor] = {}

    class Probe:
        def attend(self, _: int, q: Tensor, local_k: Tensor, raw_k: Tensor, v: Tensor, s: float):
            seen.update(raw_k=raw_k, local_k=local_k)
            return q.transpose(1, 2)

    plain.forward(states, angles, None, cast(Any, Spy()), borders=plan["borders"])
    layer(states, angles, memory=cast(Any, Probe()))
    # cos and sin, and with them YaRN's factor, are float32.
    torch.testing.assert_close(seen["raw_k"], plain_k, rtol=1e-7 if rope else 0, atol=1e-14)
    torch.testing.assert_close(seen["local_k"], kept["k"], rtol=0, atol=1e-14)


def test_a_range_of_zero_is_the_plain_model_bit_for_bit() -> None:
    model, plain = random_model(layers=(0, 2)), random_model(layers=())
    given = batch(4, 6)
    assert torch.equal(model(**given, memory=None), plain(**given))
    looked = model(**given, memory=lookup(4, 6, 0, 2))
    torch.testing.assert_close(looked, plain(**given), rtol=0, atol=1e-12)


def test_parameters_keep_their_names_and_load_into_plain_transformers() -> None:
    model = random_model()
    config = LlamaConfig(**SIZES, num_key_value_heads=2, head_dim=8)
    plain = AutoModelForCausalLM.from_config(config).double()
    plain.load_state_dict(model.state_dict())
    given = batch(1, 7)
    torch.testing.assert_close(
        plain(given["tokens"]).logits, model(**given, memory=None), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("place", [(0, 3), (2, 0), (5, 4), (7, 4)])
def test_a_token_changes_only_what_comes_after_it_and_sees_it(place: tuple[int, int]) -> None:
    model, given, r, k = random_model(), batch(8, 5), 3, 4
    memory = lookup(8, 5, r, k)
    before = model(**given, memory=memory)
    given["tokens"][place] = (given["tokens"][place] + 1) % 90
    moved = (model(**given, memory=memory) - before).abs().amax(-1) > 1e-9
    entry, at = place
    for i, others in enumerate(published(8, r, k)):
        if i == entry:
            assert moved[i].tolist() == [j >= at for j in range(5)]
        else:
            assert moved[i].all() if entry in others else not moved[i].any()


@pytest.mark.parametrize(("entries", "r", "k", "length"), [(8, 3, 4, 128), (4, 3, 2, 384)])
def test_tiles_hold_exactly_what_the_mask_shows(entries: int, r: int, k: int, length: int) -> None:
    extra = torch.from_numpy(extra_contexts(entries, range=r, packing=k, stepping=True))
    blocks, n = memory_blocks(extra, local_context=length), entries * length
    at = torch.arange(2 * n)
    mask = visible(extra, length, at[:n, None], at)
    tiles = mask.view(n // BLOCK, BLOCK, 2 * n // BLOCK, BLOCK)
    some, every = tiles.any(3).any(1), tiles.all(3).all(1)

    def chosen(counts: Tensor, numbers: Tensor) -> Tensor:
        found = torch.zeros_like(some)
        for row, count in enumerate(counts[0, 0].tolist()):
            found[row, numbers[0, 0, row, :count].long()] = True
        return found

    part = chosen(blocks.kv_num_blocks, blocks.kv_indices)
    whole = chosen(cast(Tensor, blocks.full_kv_num_blocks), cast(Tensor, blocks.full_kv_indices))
    assert torch.equal(whole, every)
    assert torch.equal(part, some & ~every)
    assert torch.equal(blocks.mask_mod(at[:1], at[:1], at[:n, None], at), mask)


def test_flex_attention_by_these_tiles_is_the_dense_reference() -> None:
    entries, length, r, k = 4, 128, 3, 2
    generator = torch.Generator().manual_seed(2)
    q, local_k, raw_k, v = (
        torch.randn(entries, h, length, 16, generator=generator) for h in (4, 2, 2, 2)
    )
    extra = torch.from_numpy(extra_contexts(entries, range=r, packing=k, stepping=True))
    plan = CrossBatch(extra, length, memory_blocks(extra, local_context=length))
    found = plan.attend(0, q, local_k, raw_k, v, 0.25)
    inputs = (x.double() for x in (q, local_k, raw_k, v))
    wanted = dense_attention(*inputs, published(entries, r, k), 0.25)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-6)


def test_layers_are_compiled_once_whatever_the_step_and_the_number_of_memory_layers() -> None:
    torch._dynamo.reset()
    model, graphs = random_model(layers=(0, 1, 2), backend="flex").float(), CompileCounter()
    model.requires_grad_(False)  # FlexAttention has no gradients on the CPU
    for layer in model.model.layers:
        layer.compile(backend=graphs, fullgraph=True)
    for r in (1, 3, 0, 2):
        extra = torch.from_numpy(extra_contexts(4, range=r, packing=2, stepping=True))
        plan = CrossBatch(extra, BLOCK, memory_blocks(extra, local_context=BLOCK))
        model(**batch(4, BLOCK, backend="flex"), memory=plan if r else None)
    assert graphs.frame_count == 2  # with memory, without


def test_ranges_follow_the_schedule_that_is_given() -> None:
    steps = range(2000)
    constant = Memory(layers=(1,), range=3)
    assert {constant.range_at(s, seed=0) for s in steps} == {3}
    stepwise = Memory(layers=(1,), range_from={0: 1, 1900: 127})
    assert [stepwise.range_at(s, seed=0) for s in (0, 1899, 1900, 1999)] == [1, 1, 127, 127]
    drawn = Memory(layers=(1,), range_choices=(2, 128))
    ranges = [drawn.range_at(s, seed=7) for s in steps]
    assert ranges == [drawn.range_at(s, seed=7) for s in steps]
    assert 900 < ranges.count(2) < 1100 and ranges.count(128) == 2000 - ranges.count(2)
    assert ranges != [drawn.range_at(s, seed=8) for s in steps]
    assert (constant.ranges(), stepwise.ranges(), drawn.ranges()) == ({3}, {1, 127}, {2, 128})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "give one of `range`, `range_from` and `range_choices` (given: none)"),
        ({"range": 1, "range_from": {0: 2}}, "given: `range` and `range_from`"),
        ({"range_from": {5: 2}}, "must say what r is from step 0 on"),
        ({"range": 1, "layers": [1, 1]}, "`layers` names one twice: [1, 1]"),
        ({"range": -1}, "greater than or equal to 0"),
        ({"range": 1, "packing": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as error:
        Memory.model_validate({"layers": [1], **options})
    assert told in str(error.value)
