"""How much of a benchmark an index holds: runs are samples; `require` can ask for more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from conftest import prose

from decontam import build_index
from decontam.benchmark_file import HELM_CORE, load_benchmark_file
from decontam.coverage import (
    CoverageRow,
    counts,
    coverage_table,
    partial_lines,
    partial_rows,
    share_of,
    share_text,
)
from decontam.helm import load_benchmark
from decontam.index import Index
from pipelines.benchmark_index import index_line, open_index
from pipelines.cleaning import Decontam


def row(found: int, published: int | None, **more: Any) -> CoverageRow:
    known = {} if published is None else {"test": published}
    held = {"test": found} if found else {}
    return CoverageRow(
        scenario="exam", splits=held, where="here", asked=["valid", "test"],
        published=known, distinct=held, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "published", "text"),
    [
        (3, 79, "3.8%"),
        (79, 79, "100%"),
        (90, 79, "100%"),
        (1, 14_042, "<0.1%"),
        (14_041, 14_042, "99.9%"),
        (1, 1, "100%"),
        (7, None, "unknown"),
        (0, 79, ""),
    ],
)
def test_a_share_is_full_only_where_nothing_is_missing(found, published, text):
    assert share_text(row(found, published)) == text


def test_a_share_is_of_the_splits_that_are_asked_for():
    both = row(3, 79) | {"published": {"train": 9, "valid": 21, "test": 79}}
    assert counts(both) == {"valid": (0, 21), "test": (3, 79)}
    assert share_of(both) == 3 / 100
    assert share_of(both | {"asked": ["train"]}) == 0
    assert share_of(CoverageRow(scenario="old", splits={"test": 3}, where="here")) is None


def test_scenarios_that_are_there_in_part_are_listed_with_the_reason():
    rows = [
        row(3, 79, limits=[3]),
        row(79, 79, limits=[79]),
        row(5, None),
        row(5, None, limits=[5, 10]),
        row(0, 79),
    ]
    assert partial_rows(rows) == [rows[0], rows[3]]
    limited = "runs were limited to {} instances (max_eval_instances)"
    assert list(partial_lines(rows)) == [
        "in part only; what is not there is not looked for:",
        f"  exam: test 3 of 79; {limited.format(3)}",
        f"  exam: {limited.format('5, 10')}",
    ]
    assert list(partial_lines([row(79, 79)])) == []
    assert "exam: test 3 of 79" in coverage_table(rows)


def instances(n: int, split: str, *, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Instances as HELM writes them."""
    return [
        {
            "input": {"text": prose(Random(f"{split} {first + i}"), 30)},
            "references": [{"output": {"text": "yes"}, "tags": ["correct"]}],
            "split": split,
            "id": f"id{first + i}",
            **more,
        }
        for i in range(n)
    ]


def write_run(folder: Path, name: str, held: list[Any], *, limit: int | None) -> None:
    """A run directory of HELM, with the setting as `helm-run -m` leaves it."""
    run = folder / name
    run.mkdir(parents=True)
    (run / "instances.json").write_text(json.dumps(held))
    adapter = {"method": "generation", "max_train_instances": 5}
    adapter |= {"max_eval_instances": limit} if limit else {}
    scenario = {"class_name": "helm.benchmark.scenarios.exam.ExamScenario", "args": {}}
    spec = {"name": name, "scenario_spec": scenario, "adapter_spec": adapter}
    (run / "run_spec.json").write_text(json.dumps(spec))


def benchmark_file(folder: Path, *, published: Any = None) -> Path:
    exam = {"core": True, "helm": [{"class": "ExamScenario"}]}
    exam |= {"published": published} if published else {}
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump({"scenarios": {"exam": exam}}))
    return path


def index_of(folder: Path, file: Path) -> Path:
    output = folder / "exam.index"
    arguments = ["--benchmark", str(file), "--helm", str(folder / "runs"), "--output", str(output)]
    assert build_index.main(arguments) == 0
    return output


SIZE = {"train": 20, "test": 79, "source": "a paper"}


def test_a_run_with_a_limit_is_a_sample_and_says_so(tmp_path, capsys):
    write_run(tmp_path / "runs", "exam:a=b", instances(3, "test"), limit=3)
    output = index_of(tmp_path, benchmark_file(tmp_path, published=SIZE))
    shown = capsys.readouterr().out
    assert re.search(r"^exam +3 +3.8% +test 3 ", shown, re.M)
    told = "exam: test 3 of 79; runs were limited to 3 instances (max_eval_instances)"
    assert told in shown
    (held,) = Index.load(str(output)).header["coverage"]
    assert (held["published"], held["distinct"]) == ({"train": 20, "test": 79}, {"test": 3})
    assert (held["asked"], held["limits"]) == (["valid", "test"], [3])
    line = index_line(Index.load(str(output)), "exam.index")
    assert line.startswith("exam.index: 3 instances of 1 of 1 scenarios\n") and told in line


def test_a_full_run_is_full_whatever_its_limit_and_copies_do_not_count(tmp_path, capsys):
    whole = [*instances(20, "train", first=100), *instances(79, "test")]
    write_run(tmp_path / "runs", "exam:a=b", whole, limit=1000)
    index_of(tmp_path, benchmark_file(tmp_path, published=SIZE))
    shown = capsys.readouterr().out
    assert re.search(r"^exam +79 +100% +train 20, test 79 ", shown, re.M)
    assert "in part only" not in shown


def test_augmented_and_contrast_copies_of_three_instances_are_three(tmp_path):
    held = instances(3, "test")
    for i, raw in enumerate(list(held)):
        held.append(raw | {"input": {"text": f"typo {raw['input']['text']}"}, "perturbation": {}})
        raw |= {"contrast_inputs": [{"text": prose(Random(f"contrast {i}"), 30)}]}
        raw |= {"contrast_references": [raw["references"]]}
    write_run(tmp_path / "runs", "exam:a=b", held, limit=3)
    file = benchmark_file(tmp_path, published=SIZE)
    benchmark = load_benchmark(file, sources=[tmp_path / "runs"])
    (coverage,) = benchmark.coverage
    assert coverage.instances == 9
    assert (coverage.distinct, coverage.limits) == ({"test": 3}, (3,))


def test_the_limit_is_read_of_the_state_where_there_is_no_run_spec(tmp_path):
    run = tmp_path / "runs" / "exam:a=b"
    run.mkdir(parents=True)
    states = [{"instance": i} for i in instances(3, "test")]
    state = {"adapter_spec": {"max_eval_instances": 3}, "request_states": states}
    (run / "scenario_state.json").write_text(json.dumps(state))
    exam = {"core": True, "helm": [{"run": "exam"}]}
    file = tmp_path / "benchmark.yaml"
    file.write_text(yaml.safe_dump({"scenarios": {"exam": exam}}))
    (coverage,) = load_benchmark(file, sources=[tmp_path / "runs"]).coverage
    assert coverage.limits == (3,)


def test_texts_that_variants_share_count_once_where_the_file_says_so(tmp_path):
    shared = instances(4, "test")
    for name in ("a", "b"):
        write_run(tmp_path / "runs", f"exam:part={name}", shared, limit=None)
    counted = {}
    for how in ("instances", "inputs"):
        exam = {
            "variant": "part",
            "helm": [{"run": "exam"}],
            "published": {"test": 9, "source": "a paper", "counted": how},
        }
        file = tmp_path / "benchmark.yaml"
        file.write_text(yaml.safe_dump({"scenarios": {"exam": exam}}))
        for spec in (tmp_path / "runs").glob("*/run_spec.json"):
            spec.unlink()
        (coverage,) = load_benchmark(file, sources=[tmp_path / "runs"]).coverage
        counted[how] = coverage.distinct
    assert counted == {"instances": {"test": 8}, "inputs": {"test": 4}}


@pytest.mark.parametrize(
    ("require", "faults"),
    [
        ("exam", []),
        (["all"], ["has nothing of mmlu"]),
        ([], []),
        ({"exam": 0.03}, []),
        ({"exam": 0.9}, ["holds 3.8% of exam (test 3 of 79; runs were limited to 3"]),
        ({"exam": 0.9, "quiz": 0.5}, ["has nothing of quiz", "holds 3.8% of exam"]),
        ({"all": 0.9, "exam": 0}, ["has nothing of mmlu"]),
    ],
)
def test_require_can_ask_for_a_share(tmp_path, require, faults):
    write_run(tmp_path / "runs", "exam:a=b", instances(3, "test"), limit=3)
    output = index_of(tmp_path, benchmark_file(tmp_path, published=SIZE))
    _, found = open_index(Decontam(index=str(output), require=require))
    assert len(found) == len(faults)
    assert all(part in fault for part, fault in zip(faults, found, strict=True))


def test_a_share_of_a_scenario_of_unknown_size_cannot_be_promised(tmp_path):
    write_run(tmp_path / "runs", "exam:a=b", instances(3, "test"), limit=None)
    output = index_of(tmp_path, benchmark_file(tmp_path))
    assert open_index(Decontam(index=str(output), require={"exam": 0}))[1] == []
    (fault,) = open_index(Decontam(index=str(output), require={"exam": 0.5}))[1]
    assert "holds 3 instances of exam; which share that is nobody knows, and 0.5 is asked" in fault
    assert "`require: {exam: 0}`" in fault


def test_the_core_scenarios_have_sizes_with_a_source_but_for_natural_questions():
    core = load_benchmark_file(HELM_CORE).scenarios
    unknown = [name for name, about in core.items() if about.core and not about.published]
    assert unknown == ["natural_qa_closedbook", "natural_qa_openbook_longans"]
    for name, about in core.items():
        if about.published:
            assert about.published.source and set(about.published.splits) & {"valid", "test"}, name
    assert core["mmlu"].published and core["mmlu"].published.splits == {
        "train": 285, "valid": 1531, "test": 14_042
    }  # fmt: skip
