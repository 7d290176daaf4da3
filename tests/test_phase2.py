"""The phase 2 recipe on real text: decontaminated, few-shot contexts, after a phase 1."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from test_mixtures import Made, recipe_of

from benchmarks.mixtures import overrides
from decontam.benchmark_file import HELM_CORE
from decontam.helm import load_benchmark
from decontam.index_build import build_index

BOOKS = "path: books/rp_book_neardup_of_train.jsonl.zst"
PAPERS = "path: arxiv/rp_arxiv_papers.jsonl.zst, sample: 1, max_passes: 2, schema: redpajama"


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    """A small phase 1 and the phase 2 that follows it."""
    from conftest import SHARED_DATA

    scenarios = SHARED_DATA / "helm" / "light_scenarios_core.jsonl.zst"
    if not scenarios.exists():
        pytest.skip("the real corpora are not here")
    pytest.importorskip("mistral_common")
    folder = tmp_path_factory.mktemp("phases")
    index = folder / "helm.index"
    build_index(load_benchmark(HELM_CORE, sources=[scenarios]).instances).save(str(index))
    sets = [
        *overrides("phase1", recipe_of("phase1")), "tokens=1_703_936", "sources.redpajama=null",
        "sources.ul2_oscar=null", f"sources.book={{weight: 1, schema: redpajama, {BOOKS}}}",
        f"sources.arxiv={{weight: 3, {PAPERS}}}",
    ]  # fmt: skip
    first = Made("phase1", SHARED_DATA, folder / "one", sets)
    sets = [
        *overrides("phase2", recipe_of("phase2")), "tokens=983_040",
        f"after={folder / 'one' / 'out'}", f"decontam.index={index}", "decontam.require=[]",
        f"sources.book={{weight: 20, schema: redpajama, {BOOKS}}}",
        f"sources.arxiv={{weight: 20, {PAPERS}}}",
        "sources.natural_instructions.path=[ni/v2_other/task13*, ni/v2_helm_mmlu/task66*]",
    ]  # fmt: skip
    return first, Made(
        "phase2", SHARED_DATA, folder / "two", [x for x in sets if not x.endswith("=null")]
    )


def test_tasks_that_are_a_benchmark_are_dropped_whole(phases: tuple[Made, Made]) -> None:
    _, made = phases
    lines = (made.dataset.folder / "tasks.jsonl").read_text().splitlines()
    dropped = {x["task"]: x for x in map(json.loads, lines) if x["decision"] == "dropped"}
    mmlu = {name for name in dropped if "mmmlu" in name}
    assert len(mmlu) == 4, "task664 to task667"
    account = made.accounts["natural_instructions"]
    assert account.documents_dropped["contaminated_task"] >= 500
    groups = group_of(made)
    used = {groups[s["document"]] for q in made.sequences("natural_instructions")
            for s in q.segments}  # fmt: skip
    assert used
    assert not used & set(dropped)


def group_of(made: Made) -> dict[bytes, str]:
    """The task of every document: what its origin is, too."""
    return {row["uid"]: row["origin"] for row in lineage(made)}


def lineage(made: Made) -> list[dict[str, Any]]:
    return pa.ipc.open_file(str(made.dataset.folder / "documents.arrow")).read_all().to_pylist()


@pytest.mark.parametrize("source", ["natural_instructions", "p3"])
def test_a_context_is_of_one_task_and_has_no_example_twice(phases, source) -> None:
    _, made = phases
    groups = group_of(made)
    n_contexts = 0
    for sequence in made.sequences(source):
        contexts: list[list[bytes]] = []
        for segment in sequence.segments:
            if segment["continues"]:
                contexts[-1].append(segment["document"])
            else:
                contexts.append([segment["document"]])
        for documents in contexts:
            assert len({groups[uid] for uid in documents}) == 1
            assert len(set(documents)) == len(documents)
        n_contexts += len(contexts)
    account = made.accounts[source]
    assert n_contexts
    assert account.padding <= 0.01 * account.sequences * made.dataset.seq_len + made.dataset.seq_len


def test_what_phase_1_has_used_comes_last_and_is_counted(phases: tuple[Made, Made]) -> None:
    first, made = phases
    places = {row["uid"]: (row["file"], row["line"]) for row in lineage(first) + lineage(made)}
    used = {places[s["document"]] for name in first.accounts for q in first.sequences(name)
            for s in q.segments}  # fmt: skip
    for name in ("book", "arxiv"):
        rows = [{places[s["document"]] for s in q.segments} for q in made.sequences(name)]
        again = [bool(places & used) for places in rows]
        assert again == sorted(again)
        assert len(set.union(*rows) & used) == made.accounts[name].documents_again
    assert made.accounts["book"].documents_again == 0, "enough others are left"
    assert 0 < made.accounts["arxiv"].documents_again < made.accounts["arxiv"].documents_used


def test_books_and_papers_lose_the_passage_and_examples_are_dropped(phases) -> None:
    _, made = phases
    for name in ("pile", "book", "arxiv"):
        assert "contaminated" not in made.accounts[name].documents_dropped
    for account in made.accounts.values():
        assert account.decontam["documents"] > 0
