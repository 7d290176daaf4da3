"""The loader: exact order however it runs, and microbatches as the stored segments say."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import Builder, documents, write_jsonl

from pipelines.errors import FaultsError, UserError
from pipelines.shards import ShardedDataset
from trainer.loader import IGNORE_INDEX, Loader, check_state, documents_of

T = 256


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    """Packed, padded, streamed and few-shot sources, two of them with prompts; many shards."""
    builder = Builder(tmp_path_factory.mktemp("mixed"), tokenizer_model)
    write_jsonl(builder.folder / "books.jsonl", documents(1, 30))
    asked = [{"prompt": f"What follows {i}? ", "text": f"What follows {i}? " + d["text"]}
             for i, d in enumerate(documents(2, 20, low=10, high=60))]  # fmt: skip
    write_jsonl(builder.folder / "asked.jsonl", asked)
    write_jsonl(builder.folder / "stream.jsonl", documents(3, 8))
    shots = [{"task": f"t{i % 3}", "definition": "Say which colour.", "inputs": f"Thing {i}:",
              "targets": "red" if i % 2 else "black"} for i in range(120)]  # fmt: skip
    write_jsonl(builder.folder / "shots.jsonl", shots)
    prompts = {"fields": {"text": "text", "prompt": "prompt"}, "loss": "answers"}
    sources = {
        "books": {"weight": 4, "path": "books.jsonl", "max_passes": 9},
        "asked": {"weight": 1, "path": "asked.jsonl", "policy": "pad", "max_passes": 9, **prompts},
        "stream": {"weight": 2, "path": "stream.jsonl", "policy": "stream", "stream_sequences": 3},
        "shots": {"weight": 1, "path": "shots.jsonl", "schema": "p3", "policy": "few_shot",
                  "loss": "answers", "max_passes": 9},
    }  # fmt: skip
    return builder.build(sources, tokens=16_000).dataset


@pytest.fixture(scope="module")
def streams(tmp_path_factory, tokenizer_model) -> ShardedDataset:
    """Two sources that stream four sequences at a time; the last ones are empty."""
    builder = Builder(tmp_path_factory.mktemp("streams"), tokenizer_model)
    sources = {}
    for seed, name in enumerate(("a", "b")):
        write_jsonl(builder.folder / f"{name}.jsonl", documents(seed, 20))
        sources[name] = {"weight": 1, "path": f"{name}.jsonl", "policy": "stream",
                         "stream_sequences": 4}  # fmt: skip
    return builder.build(sources, tokens=T * 25 * 2).dataset


@pytest.fixture
def copy(mixed, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(mixed.folder, tmp_path / "copy"))


def take(loader: Loader, n: int):
    steps = list(islice(loader, n))
    loader.close()
    return steps


def indices(steps) -> list[list[int]]:
    return [[i for batch in step for i in batch.indices.tolist()] for step in steps]


# --- what a microbatch holds ---------------------------------------------------------------


def plain(dataset: ShardedDataset, index: int, *, documents: bool):
    """Labels, spans, positions and visible pairs of a sequence, token by token."""
    sequence = dataset.sequence(index)
    targets = sequence.targets().tolist()
    ids = sequence.tokens.tolist()
    labels = [ids[i + 1] if i + 1 < T and targets[i + 1] else IGNORE_INDEX for i in range(T)]
    starts = [s["start"] for s in sequence.segments if not s["continues"]]
    spans = [*starts, *range(sequence.n_real, T, 128)] if documents else [0]
    positions = [i - max(s for s in spans if s <= i) for i in range(T)]
    real = list(pairwise([*starts, sequence.n_real])) if documents else [(0, sequence.n_real)]
    pairs = sum(q + 1 - a for a, b in real for q in range(a, b))
    return ids, labels, spans, positions, pairs


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("which", ["mixed", "streams"])
def test_microbatches_are_what_the_stored_segments_say(which, documents, request):
    dataset = request.getfixturevalue(which)
    steps = -(-len(dataset) // 8)
    loader = Loader(dataset, global_batch=8, micro_batch=4, documents=documents)
    for batch in (b for step in take(loader, steps) for b in step):
        wanted = [plain(dataset, i, documents=documents) for i in batch.indices.tolist()]
        assert batch.tokens.tolist() == [w[0] for w in wanted]
        assert batch.labels.tolist() == [w[1] for w in wanted]
        borders = [b * T + start for b, w in enumerate(wanted) for start in w[2]]
        assert batch.borders.tolist() == [*borders, 4 * T]
        assert batch.positions.tolist() == [w[3] for w in wanted]
        assert batch.visible_pairs == sum(w[4] for w in wanted)
        assert batch.n_loss == sum(label >= 0 for w in wanted for label in w[1])


def test_the_data_sets_of_these_tests_hold_every_case(mixed, streams):
    rows = [mixed.sequence(i) for i in range(len(mixed))]
    assert any(s["continues"] for row in rows for s in row.segments)
    assert any(row.no_loss for row in rows)
    assert any(0 < row.n_real < T for row in rows)
    assert any(row.n_real == T and len(row.segments) > 1 for row in rows)
    assert any(streams.sequence(i).n_real == 0 for i in range(len(streams)))
    assert len(mixed.manifest["shards"]) > 3


def arrays_of(batch) -> list[np.ndarray]:
    return [batch.tokens, batch.labels, batch.positions, batch.borders]


def test_arrays_are_whole_int32_and_stay_as_they_were_handed_out(mixed):
    held, copies = [], []
    for step in islice(Loader(mixed, global_batch=8, micro_batch=4, workers=2), 30):
        for array in (a for batch in step for a in arrays_of(batch)):
            assert array.dtype == np.int32
            assert array.flags.c_contiguous
            assert array.flags.writeable
            held.append(array)
            copies.append(array.copy())
    assert all((a == b).all() for a, b in zip(held, copies, strict=True))


def test_positions_may_run_through_the_sequence(mixed):
    for isolated in (True, False):
        loader = Loader(mixed, global_batch=4, micro_batch=2, positions="continue",
                        documents=isolated)  # fmt: skip
        for batch in take(loader, 1)[0]:
            assert (batch.positions == np.arange(T)).all()


def test_hashes_are_compared_without_xxhash_too(mixed, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xxhash", None)
    assert len(take(Loader(mixed, global_batch=8, micro_batch=2), 1)[0]) == 4


# --- order ---------------------------------------------------------------------------------

SETTINGS = [(1, 8, 1, 0), (1, 2, 3, 5), (2, 4, 1, 2), (4, 2, 2, 1), (8, 1, 1, 3)]


@pytest.mark.parametrize("documents", [True, False])
def test_each_step_holds_the_same_sequences_however_it_is_read(mixed, documents):
    n = 2 * -(-len(mixed) // 8) + 3
    found = []
    for ranks, micro_batch, workers, prefetch in SETTINGS:
        parts = []
        for rank in range(ranks):
            loader = Loader(mixed, global_batch=8, micro_batch=micro_batch, rank=rank, ranks=ranks,
                            workers=workers, prefetch=prefetch, documents=documents)  # fmt: skip
            parts.append(indices(take(loader, n)))
        found.append([sorted(chain(*step)) for step in zip(*parts, strict=True)])
    assert all(steps == found[0] for steps in found)
    flat = list(chain(*found[0]))
    whole = len(mixed) // 8 * 8
    assert flat[:whole] == list(range(whole))
    assert set(Counter(flat)) == set(range(len(mixed)))
    assert set(Counter(flat).values()) <= {2, 3}


def test_the_same_settings_give_the_same_bytes_with_any_workers(mixed):
    def content(workers, prefetch):
        loader = Loader(mixed, global_batch=4, micro_batch=2, workers=workers, prefetch=prefetch)
        return [(b.tokens.tobytes(), b.labels.tobytes(), b.borders.tobytes())
                for step in take(loader, 20) for b in step]  # fmt: skip

    assert content(1, 0) == content(4, 7)


@pytest.mark.parametrize("stop", [0, 1, 7, 19, 20])
def test_a_run_goes_on_where_it_was_stopped(mixed, stop):
    how = {"global_batch": 8, "micro_batch": 2, "workers": 2}
    whole = indices(take(Loader(mixed, **how), 24))
    first = Loader(mixed, **how)
    assert indices(take(first, stop)) == whole[:stop]
    state = json.loads(json.dumps(first.state))
    assert state == {"dataset_id": mixed.manifest["dataset_id"], "position": stop * 8}
    again = Loader(mixed, **how, start=check_state(state, mixed))
    assert indices(take(again, 24 - stop)) == whole[stop:]


def test_a_run_goes_on_with_other_ranks_and_another_batch(mixed):
    state = {"dataset_id": mixed.manifest["dataset_id"], "position": 24}
    parts = [Loader(mixed, global_batch=6, micro_batch=1, ranks=3, rank=r,
                    start=check_state(state, mixed)) for r in range(3)]  # fmt: skip
    read = sorted(i for loader in parts for step in indices(take(loader, 2)) for i in step)
    assert read == list(range(24, 36))


def test_streams_stay_together_in_every_pass(streams):
    steps = 3 * (len(streams) // 8)
    for rank in range(2):
        loader = Loader(streams, global_batch=8, micro_batch=4, ranks=2, rank=rank)
        for batch in (b for step in take(loader, steps) for b in step):
            assert batch.indices[0] % 4 == 0
            assert (np.diff(batch.indices) == 1).all()


def test_iterating_again_goes_on(mixed):
    loader = Loader(mixed, global_batch=8, micro_batch=4)
    assert loader.wait_seconds == 0
    for step in loader:
        assert sorted(indices([step])[0]) == list(range(8))
        break
    assert sorted(indices(take(loader, 1))[0]) == list(range(8, 16))
    assert loader.wait_seconds > 0


# --- threads -------------------------------------------------------------------------------


def loader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("loader")]


def test_no_thread_is_left_behind(mixed):
    loader = Loader(mixed, global_batch=8, micro_batch=4, workers=3)
    steps = iter(loader)
    next(steps)
    assert loader_threads()
    loader.close()
    assert not loader_threads()
    for _ in loader:
        break
    assert not loader_threads()


# --- damage and faults ---------------------------------------------------------------------


def test_a_damaged_sequence_stops_the_run_and_is_named(copy):
    path = copy / "00001.tok"
    content = bytearray(path.read_bytes())
    content[5 * T * 2 + 77] ^= 4
    path.write_bytes(content)
    dataset = ShardedDataset(copy)
    steps = iter(Loader(dataset, global_batch=4, micro_batch=4, prefetch=9))
    for _ in range(5):
        next(steps)
    with pytest.raises(UserError) as raised:
        next(steps)
    message = str(raised.value)
    assert "00001.tok: sequence 21 (row 5 of the shard) is damaged" in message
    assert documents_of(dataset, 21)
    assert ", ".join(documents_of(dataset, 21)) in message
    assert f"python -m pipelines.show {copy} --verify" in message
    assert not loader_threads()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("00000.tok", b"short", "00000.tok: 5 bytes, not"),
        ("00000.meta.arrow", b"ARROW1", "File is too small"),
        ("00000.meta.arrow", None, "00000.meta.arrow"),
    ],
)
def test_broken_shards_are_named(copy, name, damage, message):
    (copy / name).unlink()
    if damage is not None:
        (copy / name).write_bytes(damage)
    with pytest.raises(UserError, match=message):
        next(iter(Loader(ShardedDataset(copy), global_batch=4, micro_batch=4)))


def test_a_changed_table_is_found(copy):
    path = copy / "00000.meta.arrow"
    content = path.read_bytes()
    at = content.rindex(documents_bytes := ShardedDataset(copy).sequence(0).segments[0]["document"])
    path.write_bytes(content[:at] + documents_bytes[::-1] + content[at + 16 :])
    with pytest.raises(UserError, match=r"00000\.meta\.arrow: its sha256 is not the one"):
        next(iter(Loader(ShardedDataset(copy), global_batch=4, micro_batch=4)))


def test_another_data_set_is_refused_with_both_ids(mixed, streams):
    state = Loader(streams, global_batch=4, micro_batch=4).state
    with pytest.raises(UserError) as raised:
        check_state(state, mixed)
    for dataset in (mixed, streams):
        assert dataset.manifest["dataset_id"] in str(raised.value)


def test_faults_are_reported_together(streams):
    with pytest.raises(FaultsError) as raised:
        Loader(streams, global_batch=10, micro_batch=3, rank=2, ranks=2, positions="up", start=-4,
               workers=0)  # type: ignore[arg-type]  # fmt: skip
    assert raised.value.faults == (
        "workers: 0: must be at least 1",
        "rank: 2: must be from 0 to 1",
        "global_batch: 10: must be a multiple of ranks * micro_batch = 2 * 3; the nearest is 12",
        "positions: 'up': must be 'restart' or 'continue'",
        "micro_batch: 3: must be a multiple of 4: so many sequences of this data set stay together "
        "(stream_sequences)",
        "start: -4: must be a multiple of 4: so many sequences of this data set stay together "
        "(stream_sequences)",
    )


def test_a_batch_that_ranks_cannot_share_is_refused_with_the_nearest(mixed):
    with pytest.raises(FaultsError, match=r"multiple of ranks \* micro_batch = 3 \* 2; .* 12"):
        Loader(mixed, global_batch=10, micro_batch=2, ranks=3)
