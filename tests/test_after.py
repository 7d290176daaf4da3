"""A data set that follows another one: what that has used comes last, and is counted."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import xxhash
from conftest import Builder, Built, documents, prose, write_index, write_jsonl

from pipelines import files
from pipelines.after import followed, open_before
from pipelines.errors import UserError

SOURCE = {"weight": 1, "path": "a.jsonl"}
QUESTION = "which of these seven planets has the thickest ring of ice around its cold middle"


def uid(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())


def used(built: Built, source: str = "a") -> set[bytes]:
    """Documents that stand in sequences."""
    sequences = map(built.dataset.sequence, range(len(built.dataset)))
    return {s["document"] for q in sequences if q.source == source for s in q.segments}


def places(built: Built) -> dict[int, dict[bool, list[int]]]:
    """Positions of the sequences of each pass by whether a document was used before."""
    before = used_before(built)
    found: dict[int, dict[bool, list[int]]] = defaultdict(lambda: {False: [], True: []})
    for position in range(len(built.dataset)):
        sequence = built.dataset.sequence(position)
        again = {s["document"] in before for s in sequence.segments}
        assert len(again) == 1, "what is fresh and what is not stand apart"
        found[sequence.pass_][again.pop()].append(position)
    return found


def used_before(built: Built) -> frozenset[bytes]:
    return open_before(built.dataset.manifest["recipe"]["after"]).uids


@pytest.fixture
def records(builder: Builder) -> Sequence[dict[str, str]]:
    found = documents(1, 60, low=20, high=120)
    write_jsonl(builder.folder / "a.jsonl", found)
    return found


@pytest.fixture
def first(builder: Builder, records: Sequence[Any]) -> Built:
    """A data set of a third of the tokens."""
    return builder.build({"a": SOURCE}, output="first", tokens=3_000)


def follow(builder: Builder, first: Built, sources: Any = None, **values: Any) -> Built:
    values = {"output": "second", "after": str(first.dataset.folder)} | values
    return builder.build(sources or {"a": SOURCE}, **values)


def available(built: Built) -> int:
    return built.accounts[0].tokens_available


def test_fresh_documents_are_taken_first(builder, first):
    total = available(first)
    fresh = total - sum(
        d["n_tokens"]
        for d in files.read_table(str(first.dataset.folder / "documents.arrow")).to_pylist()
        if d["uid"] in used(first)
    )
    built = follow(builder, first, tokens=fresh)
    assert used(built).isdisjoint(used(first))
    assert built.dataset.manifest["sources"][0]["documents_again"] == 0
    more = follow(builder, first, tokens=fresh + 500, output="more")
    again = used(more) & used(first)
    assert more.dataset.manifest["sources"][0]["documents_again"] == len(again) > 0
    assert used(more) - again == used(built), "all that is fresh, and a little more"


def test_used_documents_come_last_in_every_pass(builder, first):
    total = available(first)
    order = {"global_batch": 1, "window": 1}  # no exchange within a window
    built = follow(builder, first, {"a": SOURCE | {"max_passes": 2}}, tokens=2 * total, order=order)
    passes = places(built)
    assert set(passes) == {0, 1}
    for found in passes.values():
        assert found[False]
        assert found[True]
        assert max(found[False]) < min(found[True])
    assert max(passes[0][True]) < min(passes[1][False])
    (account,) = built.accounts
    assert account.documents_again == len(used(first))
    assert account.documents_used == 60


def test_every_document_is_still_used_once_a_pass_and_shares_are_exact(builder, first):
    write_jsonl(builder.folder / "b.jsonl", documents(2, 30, low=20, high=120))
    sources = {"a": SOURCE, "b": {"weight": 1, "path": "b.jsonl"}}
    built = follow(builder, first, sources, tokens=5_001)
    assert [a.tokens_placed for a in built.accounts] == [2_501, 2_500]
    assert built.accounts[1].documents_again == 0, "nothing of it was used"


def test_a_document_is_known_in_a_file_of_another_name(builder, first, records):
    write_jsonl(builder.folder / "moved" / "x.jsonl", reversed(records))
    built = follow(builder, first, {"a": SOURCE | {"path": "moved"}}, tokens=available(first))
    assert built.accounts[0].documents_again == len(used(first))


def test_a_document_that_decontamination_cut_is_known_by_its_place(builder):
    texts = documents(3, 20, low=60, high=90)
    for record in texts[:10]:
        half = len(record["text"]) // 2
        record["text"] = f"{record['text'][:half]} {QUESTION} {record['text'][half:]}"
    write_jsonl(builder.folder / "a.jsonl", texts)
    index = write_index(builder.folder / "exam.index", [QUESTION])
    first = builder.build({"a": SOURCE}, output="first", tokens=1_200)
    before = used(first)
    cut_before = {uid(r["text"]) for r in texts[:10]} & before
    assert cut_before
    assert len(before) < 20
    decontam = {"index": str(index), "require": [], "margin_words": 2}
    size = builder.build(
        {"a": SOURCE}, output="size", tokens=1, decontam=decontam
    ).accounts[0].tokens_available  # fmt: skip
    built = follow(builder, first, tokens=size, decontam=decontam)
    assert built.accounts[0].documents_split_off == 10
    assert not cut_before & used(built)
    lines = {i + 1 for i, record in enumerate(texts) if uid(record["text"]) in before}
    lineage = files.read_table(str(built.dataset.folder / "documents.arrow")).to_pylist()
    assert built.accounts[0].documents_again == sum(d["line"] in lines for d in lineage)
    assert built.accounts[0].documents_again == len(before) + len(cut_before)


def test_pieces_of_one_data_set_are_known_as_documents_of_the_next(builder):
    texts = documents(3, 6, low=60, high=90)
    texts[0]["text"] += f" {QUESTION} " + prose(random.Random(1), 60)
    write_jsonl(builder.folder / "a.jsonl", texts)
    index = write_index(builder.folder / "exam.index", [QUESTION])
    decontam = {"index": str(index), "require": [], "margin_words": 2}
    size = builder.build({"a": SOURCE}, output="size", tokens=1, decontam=decontam)
    first = builder.build({"a": SOURCE}, output="first", tokens=available(size), decontam=decontam)
    size = builder.build({"a": SOURCE}, output="uncut", tokens=1)
    built = follow(builder, first, tokens=available(size))
    assert built.accounts[0].documents_again == 6


def test_examples_that_were_used_are_counted_and_what_is_fresh_comes_first(builder):
    rng = random.Random(1)
    records = [
        {"inputs": prose(rng, 12), "targets": f"yes {i}", "task": f"t{i % 2}", "definition": "Do."}
        for i in range(160)
    ]
    write_jsonl(builder.folder / "p3.jsonl", records)
    few_shot = {"weight": 1, "path": "p3.jsonl", "schema": "p3", "policy": "few_shot"}
    first = builder.build({"a": few_shot}, output="first", tokens=1_500)
    order = {"global_batch": 1, "window": 1}
    size = first.accounts[0].tokens_per_pass
    built = follow(builder, first, {"a": few_shot}, tokens=size, order=order)
    assert built.accounts[0].documents_again == len(used(first))
    examples = {uid(f"{r['inputs']}\n{r['targets']}\n\n") for r in records}
    seen = used(first) & examples
    held = [
        {s["document"] for s in built.dataset.sequence(i).segments} & examples
        for i in range(len(built.dataset))
    ]
    fresh = [i for i, documents in enumerate(held) if not documents & seen]
    again = [i for i, documents in enumerate(held) if documents & seen]
    assert fresh, "examples that were not used have contexts of their own"
    assert max(fresh) < min(again)


@pytest.mark.parametrize("name", ["nowhere", "empty", "broken"])
def test_a_folder_that_is_no_data_set_is_named(builder, records, name):
    folder = builder.folder / name
    if name != "nowhere":
        folder.mkdir()
    if name == "broken":
        (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=f"after: .*{name}.*give the folder of a finished data set"):
        builder.build({"a": SOURCE}, tokens=500, after=str(folder))


def test_a_data_set_whose_files_are_gone_is_named(builder, first):
    (first.dataset.folder / "documents.arrow").unlink()
    with pytest.raises(UserError, match=r"after: .*first: cannot be read to its end"):
        follow(builder, first, tokens=500)


def test_following_another_data_set_is_another_build(builder, first):
    other = builder.build({"a": SOURCE}, output="other", tokens=2_000)
    built = follow(builder, first, tokens=1_000)
    claimed = json.loads((built.dataset.folder / "build.json").read_bytes())
    assert claimed["data set that it follows"] == first.dataset.manifest["dataset_id"]
    with pytest.raises(UserError, match=r"another build; different: data set that it follows\."):
        follow(builder, other, tokens=1_000)
    with pytest.raises(UserError, match=r"another build; different: data set that it follows\."):
        builder.build({"a": SOURCE}, output="second", tokens=1_000)


def test_where_the_data_set_lies_does_not_matter(builder, first):
    built = follow(builder, first, tokens=1_000)
    moved = first.dataset.folder.rename(builder.folder / "moved")
    assert followed(str(moved)) == first.dataset.manifest["dataset_id"]
    again = builder.build({"a": SOURCE}, output="again", tokens=1_000, after=str(moved))
    assert again.shard_bytes() == built.shard_bytes()


def test_nothing_was_used_before_where_nothing_is_followed(builder, first):
    assert first.dataset.manifest["sources"][0]["documents_again"] == 0
