"""Tasks that are a benchmark in another format: the rule, the candidates, the stage of a build."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from conftest import SHARED_DATA, Builder, Built, plain_loop, prose, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from decontam.benchmark_file import HELM_CORE
from decontam.helm import load_benchmark
from decontam.index import Index
from decontam.index_build import build_index
from decontam.likeness import TOP_DOCUMENTS, Comparer, top_documents
from decontam.records import Instance
from decontam.tasks import SHORT_EXAMPLES, Example, Kind, Verdict, judge
from pipelines import build as build_command
from pipelines.candidates import CANDIDATE_SCHEMA, most_alike
from pipelines.errors import FaultsError
from pipelines.job import assemble
from pipelines.mixture_file import load_mixture
from pipelines.sources import BLOCK_BYTES
from pipelines.stages import Compare, CompareTasks, save_tasks
from pipelines.task_files import task_records
from pipelines.tokenizer_file import fetch_tokenizer

PASSAGE = (
    "The sugar glider is a small, nocturnal gliding possum; it is found in the eastern forests and "
    "was once thought to be a single species across the whole of the northern islands."
)
ASKED = "does the sugar glider live in northern islands"
ARTICLE = (
    "Rangers on the northern islands counted fewer gliding possums this winter than in any year "
    "since the survey began, and blame a late frost for the missing blossom."
)
SUMMARY = "A late frost is blamed for the lowest count of gliding possums since the survey began."
LONG = (
    "A ranger counts seventeen possums on the first night and twice as many on the second, then "
    "loses a page of her notebook to the rain; how many possums has she still on paper?"
)
STEM = "Which of the following is an example of a marsupial behaviour?"
SHORTS = ("Who first described the sugar glider?", "Where do tree kangaroos sleep?",
          "What does the numbat eat?")  # fmt: skip
ANSWERS = ("George Shaw", "high branches", "only termites")


def instances() -> list[Instance]:
    behind = Instance("boolq", "", "valid", "q0", f"{PASSAGE}\nQuestion: {ASKED}?", ("Yes",),
                      (True,), len(PASSAGE) + len("\nQuestion: "))  # fmt: skip
    article = Instance("xsum", "", "test", "a0", ARTICLE, (SUMMARY,), (True,), len(ARTICLE))
    right = (False, True)
    stem = Instance(
        "mmlu", "", "test", "s0", STEM, ("molting", "carrying a joey in a pouch"), right
    )
    long = Instance("mmlu", "", "test", "l0", LONG, ("fifty", "thirty-four"), right)
    shorts = [
        Instance("mmlu", "", "test", f"k{i}", question, ("no one", answer), right)
        for i, (question, answer) in enumerate(zip(SHORTS, ANSWERS, strict=True))
    ]
    return [behind, article, stem, long, *shorts]


@pytest.fixture(scope="module")
def index() -> Index:
    return build_index(instances())


@pytest.fixture(scope="module")
def comparer(index: Index) -> Comparer:
    return Comparer(index)


def verdict(comparer: Comparer, *texts: str, **rules: int) -> Verdict:
    """What the rule says of a task with these documents."""
    examples: list[Example] = []
    for line, likenesses in enumerate(comparer.compare([text.encode() for text in texts]), 1):
        examples += [
            Example(
                x.kind, x.similarity, *comparer.place(x.entry), x.words, x.passage, "", "f", line
            )
            for x in likenesses
            if x.kind is not Kind.RESEMBLES
        ]
    return judge(examples, **rules)


# The rule


def test_a_task_with_the_same_question_in_another_format_is_dropped(comparer):
    said = verdict(comparer, f"{ASKED.capitalize()}? Read: {PASSAGE}\nAnswer: no")
    assert said.dropped
    assert said.same.instances == {"boolq": 1}
    assert said.same.strongest.passage.startswith("The sugar glider is a small")


def test_a_task_with_the_same_article_and_another_question_is_kept_and_reported(comparer):
    said = verdict(comparer, f"{PASSAGE}\nWhen is the sugar glider awake?\nat night")
    assert not said.dropped
    assert said.same is None
    assert said.shared.instances == {"boolq": 1}


def test_an_article_counts_only_with_its_summary(comparer):
    assert not verdict(comparer, f"Translate: {ARTICLE}\nDie Ranger").dropped
    assert not verdict(comparer, f"Say it again: {SUMMARY}").dropped
    assert verdict(comparer, f"Summarize: {ARTICLE}\n{SUMMARY}").dropped


def test_half_of_a_long_question_counts_without_an_answer_and_a_sentence_of_it_does_not(comparer):
    words = LONG.split()
    assert verdict(comparer, f"Q: {' '.join(words[:24])}, and so on.").dropped
    assert not verdict(comparer, f"Q: {' '.join(words[:12])}, and so on.").dropped


def test_a_stem_counts_only_beside_the_right_answer(comparer):
    assert verdict(comparer, f"{STEM} (A) singing (B) carrying a joey in a pouch").dropped
    assert not verdict(comparer, f"{STEM} (A) singing (B) molting").dropped


def test_short_questions_count_from_three_different_ones_on_with_their_answers(comparer):
    asked = [f"{q} {a}" for q, a in zip(SHORTS, ANSWERS, strict=True)]
    assert len(asked) == SHORT_EXAMPLES
    assert not verdict(comparer, *asked[:2]).dropped
    assert not verdict(comparer, *asked[:2] * 3).dropped
    assert not verdict(comparer, *SHORTS).dropped
    said = verdict(comparer, *asked)
    assert said.dropped
    assert said.same.instances == {"mmlu": 3}


def test_a_task_needs_as_many_different_instances_as_asked(comparer):
    one, other = f"{LONG} thirty-four", f"{STEM} carrying a joey in a pouch"
    assert not verdict(comparer, one, one, min_examples=2).dropped
    assert verdict(comparer, one, other, min_examples=2).dropped


def test_a_task_that_shares_nothing_has_no_evidence(comparer):
    assert verdict(comparer, prose(random.Random(1), 80)) == Verdict(False, None, None)


def test_the_order_of_documents_makes_no_difference(comparer):
    texts = [f"{LONG} thirty-four", f"{ASKED}? {PASSAGE}", f"{STEM} molting", *SHORTS]
    assert (
        verdict(comparer, *texts).same.instances == verdict(comparer, *texts[::-1]).same.instances
    )


def test_the_similarity_is_that_of_the_passage_where_no_window_is_nearer(comparer):
    words = LONG.split()
    (found,) = comparer.compare([f"{' '.join(words[:15])} {prose(random.Random(1), 90)}".encode()])
    assert [x.similarity for x in found] == [pytest.approx(15 / len(words), abs=0.02)]
    (whole,) = comparer.compare([LONG.encode()])
    assert max(x.similarity for x in whole) == 1


# The most alike


def candidates(rows: list[tuple[int, str, float, int]]) -> pa.Table:
    """Candidates by (entry, task, similarity, number of the document)."""
    return pa.Table.from_pylist(
        [
            {
                "entry": entry, "task": task, "similarity": similarity, "kind": 1,
                "uid": xxhash.xxh3_128_digest(str(number).encode()), "file": "f", "line": number,
                "words": "", "passage": "",
            }
            for entry, task, similarity, number in rows
        ],
        CANDIDATE_SCHEMA,
    )  # fmt: skip


def test_a_hundred_and_fifty_near_copies_in_one_task_do_not_hide_another_task():
    flood = [(0, "templates", 0.99, i) for i in range(150)]
    kept = most_alike(candidates([*flood, (0, "other", 0.4, 150)]))
    assert len(kept) == TOP_DOCUMENTS
    assert kept["task"].to_pylist().count("other") == 1
    assert kept["task"].to_pylist()[:3] == ["templates", "other", "templates"]


def test_of_more_tasks_than_places_the_most_alike_have_them():
    rows = [(0, f"task{i:03d}", i / 200, i) for i in range(150)]
    kept = most_alike(candidates(rows))
    assert sorted(kept["task"].to_pylist()) == [f"task{i:03d}" for i in range(50, 150)]


def test_the_same_text_in_two_tasks_counts_for_both():
    kept = most_alike(candidates([(0, "a", 0.5, 1), (0, "b", 0.5, 1), (0, "b", 0.5, 1)]))
    assert kept["task"].to_pylist() == ["a", "b"]


pairs = st.tuples(st.integers(0, 2), st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 30))


@given(st.lists(pairs, max_size=60), st.lists(st.integers(0, 60), max_size=4), st.integers(1, 6))
def test_the_best_of_the_best_of_parts_are_the_best_of_all(rows, cuts, limit):
    def best(some: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        if not some:
            return []
        entry, task, similarity, number = map(np.array, zip(*some, strict=True))
        uids = np.array([[*bytes(15), n] for n in number.tolist()], np.uint8)
        order = top_documents(entry, task, similarity.astype(np.float32), uids, limit=limit)
        return [some[i] for i in order.tolist()]

    numbered = [(e, ord(t), s, n) for e, t, s, n in rows]
    edges = [0, *sorted(cuts), len(rows)]
    parts = [best(numbered[a:b]) for a, b in itertools.pairwise(edges)]
    assert best([row for part in parts for row in part]) == best(numbered)


# In a build


def records(task: str, texts: list[str]) -> list[dict[str, Any]]:
    return [{"inputs": text, "targets": "yes", "meta": {"task": task}} for text in texts]


def clean_texts(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    return [prose(rng, rng.randint(40, 80)) for _ in range(n)]


CONTAMINATED = [*clean_texts(1, 6), f"{LONG} thirty-four", f"{ASKED}? {PASSAGE}"]
QUOTING = [*clean_texts(2, 20), f"{PASSAGE} When is it awake?"]


def write_tasks(builder: Builder) -> None:
    write_jsonl(builder.folder / "bad.jsonl", records("copied_exam", CONTAMINATED))
    write_jsonl(builder.folder / "good.jsonl", records("quoting", QUOTING))


def build(
    builder: Builder, *, output: str = "out", run_stage: Any = plain_loop, **tasks: Any
) -> Built:
    path = builder.folder / "bench.index"
    if not path.exists():
        build_index(instances()).save(str(path))
        write_tasks(builder)
    sources = {
        "p3": {"weight": 1, "path": ["bad.jsonl", "good.jsonl"], "schema": "p3", "max_passes": 50},
        "web": {"weight": 1, "path": "good.jsonl", "fields": {"text": "inputs"}, "max_passes": 50},
    }
    decontam = {"index": str(path), "require": []} | ({"tasks": tasks} if tasks else {})
    return builder.build(
        sources, tokens=4_000, output=output, run_stage=run_stage, decontam=decontam
    )


def task_lines(built: Built) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (built.dataset.folder / "tasks.jsonl").open()]


def test_a_contaminated_task_is_dropped_whole_and_the_ledger_is_exact(builder):
    built = build(builder)
    p3, web = built.accounts
    n_bytes = sum(len(f"{text}\nyes".encode()) for text in CONTAMINATED)
    assert p3.documents_read == len(CONTAMINATED) + len(QUOTING)
    assert p3.documents_dropped == {"contaminated_task": len(CONTAMINATED), "contaminated": 1}
    assert p3.decontam["task_documents"] == len(CONTAMINATED)
    assert p3.decontam["task_bytes"] == n_bytes
    assert p3.decontam["documents"] == len(QUOTING)
    assert "task_documents" not in web.decontam
    lines = task_lines(built)
    assert [(x["source"], x["task"], x["documents"], x["decision"]) for x in lines] == [
        ("p3", "copied_exam", len(CONTAMINATED), "dropped"),
        ("p3", "quoting", len(QUOTING), "kept"),
    ]
    dropped, kept = lines
    assert dropped["same"]["instances"] == {"boolq": 1, "mmlu": 1}
    strongest = dropped["same"]["strongest"]
    assert (strongest["instance"], strongest["similarity"]) == ("l0", 1.0)
    assert (strongest["file"], strongest["line"]) == ("bad.jsonl", 7)
    assert strongest["uid"] == xxhash.xxh3_128_hexdigest(f"{LONG} thirty-four\nyes".encode())
    assert kept["same"] is None
    assert kept["shared"]["instances"] == {"boolq": 1}
    assert kept["shared"]["strongest"]["line"] == len(QUOTING)
    manifest = built.dataset.manifest
    assert manifest["decontamination"]["tasks"] == {
        "p3": {"tasks": 2, "dropped": 1, "overridden": 0}
    }
    assert "tasks.jsonl" in manifest["files"]


def test_dropped_records_say_which_task_and_why(builder):
    built = build(builder)
    with pa.input_stream(str(built.dataset.folder / "dropped.jsonl.zst")) as stream:
        rows = [json.loads(line) for line in stream.read().splitlines()]
    row = next(row for row in rows if row["reason"] == "contaminated_task")
    assert row["evidence"].startswith(
        "copied_exam: 1 of boolq, 1 of mmlu; mmlu/test/l0, 1.00: A ranger"
    )


def test_overrides_decide_and_stand_in_the_evidence(builder):
    built = build(builder, keep={"copied_exam": "read by A"}, drop={"quoting": "B said so"})
    assert [(x["decision"], x["override"]) for x in task_lines(built)] == [
        ("kept", "read by A"),
        ("dropped", "B said so"),
    ]
    assert built.accounts[0].documents_dropped == {
        "contaminated_task": len(QUOTING),
        "contaminated": 2,
    }
    counts = built.dataset.manifest["decontamination"]["tasks"]
    assert counts == {"p3": {"tasks": 2, "dropped": 1, "overridden": 2}}


def test_an_override_of_a_task_that_is_not_there_stops_the_build_and_lets_the_folder_go(builder):
    with pytest.raises(FaultsError) as fault:
        build(builder, keep={"copied_exams": "?"}, drop={"zzz": "?"})
    assert fault.value.faults == (
        "keep.copied_exams: no source has such a task; did you mean 'copied_exam'?",
        "drop.zzz: no source has such a task",
    )
    assert not (builder.folder / "out").exists()


def test_the_number_of_examples_is_the_mixtures(builder):
    built = build(builder, min_examples=3)
    assert [x["decision"] for x in task_lines(built)] == ["kept", "kept"]
    assert built.accounts[0].documents_dropped == {"contaminated": 3}


def test_other_decisions_make_another_store_and_no_second_comparison(builder):
    build(builder)
    stores = set((builder.folder / "store").iterdir())
    build(builder, output="other", run_stage=without(Compare), keep={"copied_exam": "read"})
    new = set((builder.folder / "store").iterdir()) - stores
    assert [path.name.startswith("candidates-") for path in new] == [False]


def without(refused: Any) -> Any:
    def run(stage: Any, work: str, workers: int) -> None:
        assert stage is not refused
        plain_loop(stage, work, workers)

    return run


def candidate_files(builder: Builder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (builder.folder / "store").glob("candidates-*/*")}


class Killed(Exception):
    pass


def test_a_comparison_that_was_killed_goes_on_where_it_was(builder):
    compared: list[int] = []

    def backwards(stage: Any, work: str, workers: int, *, limit: int = 99) -> None:
        worker = stage(work)
        for task in reversed(list(stage.tasks(work))):
            if stage is Compare:
                if len(compared) == limit:
                    raise Killed
                compared.append(task)
            worker.run(task)

    def dies(*call: Any) -> None:
        backwards(*call, limit=1)

    with pytest.raises(Killed):
        build(builder, run_stage=dies)
    assert len(compared) == 1
    halfway = candidate_files(builder)
    resumed = build(builder, run_stage=backwards)
    assert len(compared) == 2
    files = candidate_files(builder)
    assert halfway.items() < files.items()
    for path in (builder.folder / "store").glob("candidates-*/*"):
        path.unlink()
    again = build(builder, output="again")
    assert candidate_files(builder) == files
    assert again.files()["tasks.jsonl"] == resumed.files()["tasks.jsonl"]
    assert again.shard_bytes() == resumed.shard_bytes()


def test_candidates_are_the_same_bytes_however_many_workers_share_a_file(builder, tmp_path):
    build_index(instances()).save(str(tmp_path / "bench.index"))
    filler = [f"{i} {prose(random.Random(i), 50)} " * 3_500 for i in range(18)]
    lines = [*records("copied", CONTAMINATED), *records("long", filler), *records("end", QUOTING)]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert len(content) > BLOCK_BYTES
    (builder.folder / "a.jsonl.gz").write_bytes(gzip.compress(content, 1, mtime=0))
    mixture = builder.mixture(
        {"p3": {"weight": 1, "path": "a.jsonl.gz", "schema": "p3"}},
        decontam={"index": str(tmp_path / "bench.index"), "require": []},
    )
    loaded, root = load_mixture(str(mixture)), str(builder.folder)
    file = fetch_tokenizer(loaded.tokenizer)
    job = assemble(loaded, file, data_root=root, store=f"{root}/store", output=f"{root}/out")
    (source,) = job.sources
    made: list[dict[str, bytes]] = []
    for strides in (1, 2):
        splits = [replace(source.splits[0], stride=i, strides=strides) for i in range(strides)]
        folder, work = tmp_path / f"candidates{strides}", str(tmp_path / f"work{strides}")
        save_tasks(work, "compare", CompareTasks(splits, {"p3": source.spec}, {"p3": str(folder)}))
        plain_loop(Compare, work, strides)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1]
    assert len(made[0]) == 3


def test_one_file_or_two_the_decisions_and_their_evidence_are_the_same(builder):
    def evidence(built: Built) -> list[dict[str, Any]]:
        lines = task_lines(built)
        for line in lines:
            for found in filter(None, (line["same"], line["shared"])):
                del found["strongest"]["file"], found["strongest"]["line"]
        return lines

    two = build(builder)
    one = records("copied_exam", CONTAMINATED) + records("quoting", QUOTING)
    write_jsonl(builder.folder / "bad.jsonl", one[::2])
    write_jsonl(builder.folder / "good.jsonl", one[1::2])
    other = build(builder, output="mixed")
    assert evidence(other) == evidence(two)


def test_a_dry_run_compares_no_tasks_and_says_so(builder, capsys):
    build(builder)
    mixture = str(builder.folder / "mixture.yaml")
    store = builder.folder / "dry"
    arguments = ["--mixture", mixture, "--data-root", str(builder.folder), "--dry-run"]
    assert build_command.main([*arguments, "--store", str(store)]) == 0
    assert "tasks: a build first looks for those that are a benchmark's" in capsys.readouterr().out
    assert not store.exists()


def test_ten_dropped_tasks_are_named_and_the_others_counted(builder, capsys):
    build_index(instances()).save(str(builder.folder / "bench.index"))
    rows = [x for i in range(12) for x in records(f"copy{i:02d}", [f"{LONG} {i} thirty-four"])]
    write_jsonl(builder.folder / "a.jsonl", [*rows, *records("clean", clean_texts(3, 20))])
    builder.mixture(
        {"p3": {"weight": 1, "path": "a.jsonl", "schema": "p3", "max_passes": 50}},
        tokens=2_000,
        decontam={"index": str(builder.folder / "bench.index"), "require": []},
    )
    mixture, output = str(builder.folder / "mixture.yaml"), str(builder.folder / "out")
    arguments = ["--mixture", mixture, "--data-root", str(builder.folder), "--output", output]
    assert build_command.main([*arguments, "--workers", "1"]) == 0
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("tasks    | ")]
    assert sum("dropped p3/copy" in x for x in said) == 10
    assert "tasks    | and 2 more, see tasks.jsonl" in said


@pytest.mark.parametrize(
    ("task", "dropped"),
    [
        ("v2_helm_mmlu/task721_mmmlu_answer_generation_medical_genetics", True),
        ("v2_superni_sampled/task002_quoref_answer_generation.train", False),
        ("v1/subtask043_essential_terms_answering_incomplete_questions", False),
    ],
)
def test_tasks_of_natural_instructions_are_told_apart(shared_data, helm, task, dropped):
    path = shared_data / "ni" / f"{task}.json.gz"
    values = [record.value for record in task_records(gzip.decompress(path.read_bytes()), task)]
    texts = [f"{value['input']}\n{value['output']}" for value in values]
    assert verdict(helm, *texts).dropped == dropped


@pytest.fixture(scope="module")
def helm() -> Comparer:
    """HELM's core scenarios, as far as they are here."""
    source = SHARED_DATA / "helm" / "light_scenarios_core.jsonl.zst"
    if not source.exists():
        pytest.skip("the real corpora are not here")
    return Comparer(build_index(load_benchmark(HELM_CORE, sources=[source]).instances))
