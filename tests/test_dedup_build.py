"""Near duplicates of a source left out of a data set: which, why, and always the same ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from conftest import Builder, Built, plain_loop, prose, write_jsonl

from decontam.minhash import sampled_shingles, signatures
from decontam.normalize import Normalizer
from decontam.sketches import sketches_of_texts
from decontam.windows import WindowIndex
from pipelines import dedup, show
from pipelines.errors import UserError
from pipelines.near_stage import FindNear
from pipelines.stages import Prepare
from pipelines.transforms import beam_options, run_stage


def edited(text: str, seed: int, share: float) -> str:
    """The text with a share of its words replaced."""
    rng = random.Random(seed)
    return " ".join(
        f"w{rng.randrange(10**6)}" if rng.random() < share else word for word in text.split(" ")
    )


def uid(text: str) -> str:
    return xxhash.xxh3_128_digest(text.encode()).hex()


def corpus() -> dict[str, str]:
    """Documents by name, in an order in which none of a family stand together."""
    story, other = prose(random.Random(1), 8000), prose(random.Random(2), 900)
    plain = {f"p{i}": prose(random.Random(100 + i), 300) for i in range(30)}
    return {
        "other": other,
        "story": story,
        **dict(list(plain.items())[:15]),
        "story, edited": edited(story, 3, 0.01),
        "other, longer": edited(other, 4, 0.01) + " the end of it",
        "collection": f"{prose(random.Random(5), 9000)} {story} {prose(random.Random(6), 9000)}",
        **dict(list(plain.items())[15:]),
        "other, edited": edited(other, 7, 0.01),
        "other again": other,
        "other, rewritten": edited(other, 8, 0.2),
    }


def write(folder: Path, texts: dict[str, str], *, files: int = 1) -> None:
    records = [{"text": text, "id": name} for name, text in texts.items()]
    for i in range(files):
        write_jsonl(folder / "in" / f"{i}.jsonl", records[i::files])


def build(builder: Builder, *, dedup: Any = None, tokens: int = 30_000, **values: Any) -> Built:
    source = {"weight": 1, "path": "in/*.jsonl", "max_passes": 9, "dedup": dedup or {}}
    return builder.build({"a": source}, tokens=tokens, **values)


def kept(built: Built) -> set[str]:
    path = built.dataset.folder / "documents.arrow"
    return set(pa.ipc.open_file(path).read_all()["origin"].to_pylist())


def dropped(built: Built) -> list[dict[str, Any]]:
    with pa.input_stream(str(built.dataset.folder / "dropped.jsonl.zst")) as stream:
        return [json.loads(line) for line in stream.read().splitlines()]


def clusters(built: Built) -> list[dict[str, Any]]:
    lines = (built.dataset.folder / "near_duplicates.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def names(built: Built) -> dict[str, set[str]]:
    return {c["kept"]["origin"]: {d["origin"] for d in c["dropped"]} for c in clusters(built)}


CLUSTERS = {
    "other, longer": {"other", "other, edited"},
    "collection": {"story", "story, edited"},
}


def test_of_each_cluster_the_longest_is_kept_and_the_account_closes(builder):
    texts = corpus()
    write(builder.folder, texts)
    built = build(builder)
    assert names(built) == CLUSTERS
    gone = set.union(*CLUSTERS.values())
    assert kept(built) == texts.keys() - gone - {"other again"}
    (account,) = built.accounts
    assert account.documents_dropped == {"duplicate": 1, "near_duplicate": 4}
    assert account.documents_read == account.documents_kept + 5
    counts = {k: account.near[k] for k in ("compared", "clusters", "documents", "contained")}
    assert counts == {"compared": len(texts) - 1, "clusters": 2, "documents": 4, "contained": 2}
    assert account.tokens_stored == (
        account.tokens_available + account.tokens_duplicate + account.near["tokens"]
    )
    assert min(account.tokens_duplicate, account.near["tokens"]) > 0
    assert not list(built.dataset.verify())


def test_every_dropped_document_says_what_was_kept_instead_and_how_alike_they_are(builder):
    texts = corpus()
    write(builder.folder, texts)
    built = build(builder)
    rows = {d["uid"]: d for d in dropped(built) if d["reason"] == "near_duplicate"}
    assert rows.keys() == {uid(texts[n]) for group in CLUSTERS.values() for n in group}
    row = rows[uid(texts["other, edited"])]
    assert row["line"] == list(texts).index("other, edited") + 1
    assert row["evidence"].endswith(f"kept: {uid(texts['other, longer'])}")
    assert row["evidence"].startswith("similar, similarity 0.8")
    assert rows[uid(texts["story"])]["evidence"].startswith("contained 1.00, similarity 0.")
    (cluster,) = (c for c in clusters(built) if c["kept"]["origin"] == "collection")
    assert cluster["source"] == "a"
    assert [d["because"] for d in cluster["dropped"]] == ["contained"] * 2
    assert all(0.8 <= d["contained"] <= 1 for d in cluster["dropped"])
    assert all(0.2 < d["similarity"] < 0.45 for d in cluster["dropped"])
    assert [d["uid"] for d in cluster["dropped"]] == sorted(d["uid"] for d in cluster["dropped"])
    lines = [cluster["kept"]["line"], *(d["line"] for d in cluster["dropped"])]
    assert [list(texts)[line - 1] for line in lines] == [
        "collection", *(d["origin"] for d in cluster["dropped"])
    ]  # fmt: skip


def versions(n: int) -> dict[str, str]:
    """A text of 400 words that drifts: of each version 14 words are other than before."""
    rng = random.Random(1)
    words = prose(rng, 400).split(" ")
    found: dict[str, str] = {}
    for i in range(n):
        found[f"v{i}"] = " ".join(words)
        for at in range(14 * i, 14 * (i + 1)):
            words[at % len(words)] = f"w{rng.randrange(10**6)}"
    return found


@pytest.mark.parametrize("files", [1, 3])
def test_of_a_chain_of_versions_each_is_dropped_for_one_that_is_kept_and_like_it(
    builder, monkeypatch, files
):
    texts = versions(60)
    shuffled = list(texts.items())
    random.Random(files).shuffle(shuffled)
    write(builder.folder, dict(shuffled), files=files)
    monkeypatch.setattr(dedup, "_TOGETHER", 10**6 if files == 1 else 2)
    built = build(builder, tokens=2000)
    stay = kept(built)
    found = clusters(built)
    assert all(d["similarity"] >= 0.8 for c in found for d in c["dropped"])
    assert {c["kept"]["origin"] for c in found} <= stay
    gone = [d["origin"] for c in found for d in c["dropped"]]
    assert sorted([*gone, *stay]) == sorted(texts)
    # All have 400 words, so they are taken in the order of their ids.
    order = sorted(texts, key=lambda name: uid(texts[name]))
    utf8 = [texts[name].encode() for name in order]
    made = sketches_of_texts(utf8, Normalizer.of("default"), shingle=5, one_in=256).signatures
    expected: list[int] = []
    for i in range(60):
        if not any((made[i] == made[j]).mean() >= 0.8 for j in expected):
            expected.append(i)
    assert stay == {order[i] for i in expected}
    assert 9 <= len(stay) <= 20


def test_without_containment_the_story_stays_beside_the_collection(builder):
    write(builder.folder, corpus())
    built = build(builder, dedup={"contained": None})
    assert "collection" in kept(built)
    assert names(built)["other, longer"] == CLUSTERS["other, longer"]
    (story,) = (group for group in names(built) if group.startswith("story"))
    assert names(built)[story] | {story} == {"story", "story, edited"}


def test_only_sources_that_ask_for_it_are_compared_and_nothing_else_changes(builder):
    write(builder.folder, corpus())
    plain = {"weight": 1, "path": "in/*.jsonl", "max_passes": 9}
    off = builder.build({"a": plain}, output="off", tokens=30_000)
    assert not (off.dataset.folder / "near_duplicates.jsonl").exists()
    assert off.accounts[0].near == {}
    assert not list((builder.folder / "store").rglob("*.sketches.arrow"))
    both = builder.build({"a": plain, "b": plain | {"dedup": {}}}, output="both", tokens=30_000)
    assert {c["source"] for c in clusters(both)} == {"b"}
    assert [bool(account.near) for account in both.accounts] == [False, True]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_what_is_kept_does_not_depend_on_the_files_or_their_order(builder, order):
    texts = corpus()
    shuffled = list(texts.items())
    random.Random(order).shuffle(shuffled)
    write(builder.folder, dict(shuffled), files=order)
    by_uid = {c["kept"]["uid"]: {d["uid"] for d in c["dropped"]} for c in clusters(build(builder))}
    assert by_uid == {
        uid(texts[name]): {uid(texts[other]) for other in others}
        for name, others in CLUSTERS.items()
    }


def test_the_shards_and_the_report_do_not_depend_on_how_blocks_are_cut(builder, monkeypatch):
    write(builder.folder, corpus())
    whole = build(builder, output="whole")
    monkeypatch.setattr("pipelines.sources.BLOCK_BYTES", 20_000)
    monkeypatch.setattr("pipelines.readers.BLOCK_BYTES", 20_000, raising=False)
    (builder.folder / "store").rename(builder.folder / "before")
    cut = build(builder, output="cut")
    batches = [len(list((builder.folder / f).rglob("*.tokens"))) for f in ("before", "store")]
    assert batches[0] == 1 < batches[1]
    assert cut.shard_bytes() == whole.shard_bytes()
    assert cut.files()["near_duplicates.jsonl"] == whole.files()["near_duplicates.jsonl"]


def test_a_slice_of_a_few_documents_at_a_time_finds_the_same(builder, monkeypatch):
    write(builder.folder, corpus())
    whole = build(builder, output="whole")
    for path in (builder.folder / "store").rglob("near/*"):
        path.unlink()
    monkeypatch.setattr(dedup, "_TOGETHER", 2)
    assert build(builder, output="sliced").files() == whole.files()


def test_with_workers_of_beam_the_data_set_is_the_same(builder):
    write(builder.folder, corpus(), files=3)
    plain = build(builder, output="plain")
    (builder.folder / "store").rename(builder.folder / "before")

    def beam(stage, work, workers):
        run_stage(stage, work, beam_options([], workers=2))

    assert build(builder, output="beam", run_stage=beam, workers=2).files() == plain.files()


def test_edges_are_found_once_and_a_killed_comparison_goes_on(builder):
    write(builder.folder, corpus())
    ran: list[int] = []

    def killed(stage, work, workers):
        worker = stage(work)
        for task in stage.tasks(work):
            if len(ran) == 5:
                raise KeyboardInterrupt
            worker.run(task)
            if stage is FindNear:
                ran.append(task)

    with pytest.raises(KeyboardInterrupt):
        build(builder, run_stage=killed)
    stages: list[tuple[str, int]] = []

    def counted(stage, work, workers):
        stages.append((stage.__name__, len(list(stage.tasks(work)))))
        plain_loop(stage, work, workers)

    resumed = build(builder, run_stage=counted)
    assert (Prepare.__name__, 1) not in stages
    assert stages[0] == ("FindNear", dedup.TASKS - 5)
    stages.clear()
    again = build(builder, output="again", run_stage=counted)
    assert [name for name, _ in stages] == ["Pack", "Write"]
    assert again.shard_bytes() == resumed.shard_bytes()


def test_another_threshold_reuses_the_sketches_and_another_shingle_does_not(builder):
    write(builder.folder, corpus())
    build(builder, output="one")
    ran: list[str] = []

    def counted(stage, work, workers):
        ran.append(stage.__name__)
        plain_loop(stage, work, workers)

    loose = build(builder, output="two", dedup={"threshold": 0.5}, run_stage=counted)
    assert ran[0] == "FindNear"
    assert names(loose)["other, longer"] == CLUSTERS["other, longer"]
    build(builder, output="three", dedup={"shingle": 3}, run_stage=counted)
    assert ran[3:5] == ["Prepare", "FindNear"]


def test_show_names_clusters(builder, capsys):
    texts = corpus()
    write(builder.folder, texts)
    folder = str(build(builder).dataset.folder)
    assert show.main([folder]) == 0
    out = capsys.readouterr().out
    assert "compared with each other" in out and "near_duplicates.jsonl" in out
    for name in ("other, edited", "other, longer"):
        assert show.main([folder, "--document", uid(texts[name])]) == 0
        out = capsys.readouterr().out
        assert f"{uid(texts['other, longer'])}  kept instead of its near duplicates in a" in out
        assert f"dropped {uid(texts['other, edited'])} (similar, similarity 0." in out


def test_dedup_beside_kept_duplicates_is_refused(builder):
    write(builder.folder, corpus())
    with pytest.raises(UserError, match=r"sources.a.dedup needs `duplicates: drop`"):
        build(builder, duplicates="keep")


def test_a_source_of_one_document_and_one_without_words_has_no_near_duplicates(builder):
    write(builder.folder, {"a": prose(random.Random(0), 300), "b": "?! " * 50, "c": "!! " * 60})
    built = build(builder, tokens=500)
    assert clusters(built) == [] and len(kept(built)) == 3


# The kernels that read texts


PIECES = ["a", "caf\\'e", "don't", "é", "漢字", "1,000", "x-y-z-w" * 9, "the", "&amp;", "\n\n"]


def texts_of(seed: int) -> list[bytes]:
    """Texts whose words end at, before and behind the ends of chunks and steps."""
    rng = random.Random(seed)
    lengths = [0, 1, 3, 4, 5, 6, 20, 1027, 1028, 1029, 1156, 4095, 4096, 4100, 4160, 5252, 20_000]
    return [
        *(" ".join(rng.choices(PIECES, k=n)).encode() for n in lengths),
        *(" ".join(f"w{rng.randrange(999)}" for _ in range(n)).encode() for n in lengths),
    ]


@pytest.mark.parametrize("shingle", [1, 5, 13])
def test_sketches_of_texts_are_those_of_all_their_words(shingle):
    texts, normalizer = texts_of(shingle), Normalizer.of("default")
    words = normalizer.words(texts).split
    made = sketches_of_texts(texts, normalizer, shingle=shingle, one_in=7)
    assert (made.n_words == np.diff(words.offsets)).all()
    assert (made.signatures == signatures(words.hashes, words.offsets, shingle=shingle)).all()
    samples, bounds = sampled_shingles(words.hashes, words.offsets, shingle=shingle, one_in=7)
    assert (made.samples == samples).all() and (made.bounds == bounds).all()
    assert bounds[-1] > 1000


def test_windows_of_texts_are_those_of_all_their_words():
    texts, normalizer = texts_of(0), Normalizer.of("default")
    rng = random.Random(1)
    entries = []
    for text in texts:
        words = text.split()
        starts = [rng.randrange(len(words)) for _ in range(20) if words]
        entries += [b" ".join(words[s : s + rng.choice([8, 40, 100, 400])]) for s in starts]
    words = normalizer.words(entries).split
    index = WindowIndex.build(words.hashes, words.offsets, shingle=5)
    words = normalizer.words(texts).split
    expected = index.search(words.hashes, words.offsets, threshold=0.4)
    found = index.search_texts(texts, normalizer, threshold=0.4)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert len(set(expected.entry.tolist())) > 200


# Real data


def test_of_two_editions_of_a_novel_one_is_left_and_no_other_novel_goes(builder, shared_data):
    folder = shared_data / "books"
    editions = ["rp_book_train", "rp_book_neardup_of_train", "rp_book_heldout_pg19like"]
    paths = [str(folder / f"{name}.jsonl.zst") for name in editions]
    source = {"weight": 1, "path": paths, "schema": "redpajama", "dedup": {}}
    built = builder.build({"books": source}, tokens=1_000_000)
    found = clusters(built)
    assert len(found) == 11
    for cluster in found:
        (other,) = cluster["dropped"]
        files = {Path(d["file"]).name.partition(".")[0] for d in (cluster["kept"], other)}
        assert files == set(editions[:2])
    (account,) = built.accounts
    assert account.documents_kept == account.documents_read - 11
