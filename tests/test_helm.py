"""The benchmark side: every form that instances come in, coverage, and the faults of each."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from decontam.benchmark_file import HELM_CORE, load_benchmark_file
from decontam.helm import Benchmark, coverage_table, load_benchmark, question_start
from decontam.records import DecontamError, Instance
from decontam.template import Template

CORE = (
    "mmlu boolq narrative_qa natural_qa_closedbook natural_qa_openbook_longans quac hellaswag "
    "openbookqa truthful_qa msmarco_regular msmarco_trec summarization_cnndm summarization_xsum "
    "imdb civil_comments raft"
).split()

BOOLQ = {"question": "is Snow cold", "passage": "Snow falls in winter.", "answer": True}
BOOLQ_INPUT = "Snow falls in winter.\nQuestion: Is snow cold?"


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def light(class_name: str, args: dict[str, Any], split: str, *instances: Any) -> dict[str, Any]:
    spec = {"class_name": f"helm.benchmark.scenarios.some_scenario.{class_name}", "args": args}
    return {
        "scenario_key": {"scenario_spec": spec, "split": split},
        "instances": [
            {"input": text, "references": references, "id": f"id{i}"}
            for i, (text, references) in enumerate(instances)
        ],
    }


def run_instance(text: str, references: dict[str, bool], **more: Any) -> dict[str, Any]:
    return {
        "input": {"text": text},
        "references": [
            {"output": {"text": reference}, "tags": ["correct"] if right else []}
            for reference, right in references.items()
        ],
        "split": "valid",
        "id": "id0",
        **more,
    }


def put(path: Path, content: bytes) -> Path:
    """Write a file, compressed as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(content)
    else:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(*sources: Path, **options: Any) -> Benchmark:
    return load_benchmark(HELM_CORE, sources=list(sources), **options)


def own(folder: Path, **scenarios: Any) -> Path:
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump({"scenarios": scenarios}, sort_keys=False))
    return path


def fault(path: Path, *sources: Path, **options: Any) -> str:
    with pytest.raises(DecontamError) as caught:
        load_benchmark(path, sources=list(sources), **options)
    return str(caught.value)


# The benchmark file that ships


def test_the_shipped_file_names_the_16_core_scenarios_and_can_recognise_each():
    file = load_benchmark_file(HELM_CORE)
    assert [name for name, scenario in file.scenarios.items() if scenario.core] == CORE
    assert all(scenario.helm for scenario in file.scenarios.values())
    assert file.splits == ["valid", "test"]


@pytest.mark.parametrize(
    ("folder", "scenario", "variant"),
    [
        ("mmlu:subject=us_foreign_policy,method=joint,model=a_b", "mmlu", "us_foreign_policy"),
        ("mmlu_subject-abstract_algebra_method-joint_model-text", "mmlu", "abstract_algebra"),
        ("mmlu_subject-anatomy_data_augmentation-canonical", "mmlu", "anatomy"),
        ("boolq:model=openai_davinci", "boolq", ""),
        ("boolq:only_contrast=True,model=text", "boolq", ""),
        ("boolq_model-text_data_augmentation-canonical", "boolq", ""),
        ("narrative_qa:model=text", "narrative_qa", ""),
        ("natural_qa:mode=closedbook,model=text", "natural_qa_closedbook", ""),
        ("natural_qa_mode-closedbook_model-text", "natural_qa_closedbook", ""),
        ("natural_qa:mode=openbook_longans,model=text", "natural_qa_openbook_longans", ""),
        ("natural_qa_mode-openbook_longans_model-text", "natural_qa_openbook_longans", ""),
        ("quac:model=text", "quac", ""),
        ("commonsense:dataset=hellaswag,method=separate,model=text", "hellaswag", ""),
        ("commonsense:dataset=openbookqa,method=separate,model=text", "openbookqa", ""),
        ("truthful_qa:task=mc_single,method=joint,model=text", "truthful_qa", ""),
        ("msmarco:track=regular,valid_topk=30,model=text", "msmarco_regular", ""),
        ("msmarco:track=trec,valid_topk=30,model=text", "msmarco_trec", ""),
        ("summarization_cnndm:temperature=0.3,model=text", "summarization_cnndm", ""),
        ("summarization_xsum:temperature=0.3,model=text", "summarization_xsum", ""),
        ("summarization_xsum_sampled:temperature=0.3", "summarization_xsum", ""),
        ("imdb:only_contrast=True,model=text", "imdb", ""),
        ("civil_comments:demographic=other_religions", "civil_comments", "other_religions"),
        ("raft:subset=ade_corpus_v2,model=text", "raft", "ade_corpus_v2"),
    ],
)
def test_the_name_of_a_run_directory_says_scenario_and_variant(
    tmp_path: Path, folder: str, scenario: str, variant: str
):
    put(tmp_path / folder / "instances.json", json.dumps([run_instance("Why?", {})]).encode())
    (instance,) = read(tmp_path).instances
    assert (instance.scenario, instance.variant.partition("=")[2]) == (scenario, variant)


@pytest.mark.parametrize(
    "folder", ["mmlu_pro:subset=all,model=text", "mmlu_pro_subset-all_model-text", "boolqa:model=x"]
)
def test_a_run_of_a_longer_name_is_another_scenario_and_is_named(tmp_path: Path, folder: str):
    put(tmp_path / folder / "instances.json", b"[]")
    assert "holds no scenario" in fault(HELM_CORE, tmp_path)
    put(tmp_path / "boolq_dev.jsonl", lines(BOOLQ))
    assert read(tmp_path).ignored == (f"{folder} in {tmp_path}/{folder}/instances.json",)


# HELM's own files


@pytest.mark.parametrize("name", ["instances.json", "instances.json.gz", "instances.json.zst"])
def test_a_run_directory_gives_texts_ids_and_which_references_are_right(tmp_path: Path, name: str):
    content = json.dumps([run_instance("Fog: It", {"rises.": False, "falls.": True})]).encode()
    folder = tmp_path / "deep" / "commonsense:dataset=hellaswag,model=text"
    put(folder / name, content)
    assert read(tmp_path).instances == (
        Instance(
            scenario="hellaswag",
            variant="",
            split="valid",
            id="id0",
            input="Fog: It",
            references=("rises.", "falls."),
            correct=(False, True),
        ),
    )
    assert read(folder).instances == read(tmp_path).instances


def test_scenario_state_holds_the_instances_where_no_instances_file_does(tmp_path: Path):
    state = {
        "adapter_spec": {},
        "request_states": [
            {"instance": run_instance("Why?", {"So.": True}), "request": {"prompt": "A"}},
            {"instance": run_instance("Why?", {"So.": True}), "request": {"prompt": "B"}},
        ],
    }
    put(tmp_path / "quac:model=a" / "scenario_state.json", json.dumps(state).encode())
    assert [i.input for i in read(tmp_path).instances] == ["Why?"]


def test_run_spec_is_believed_over_the_name_of_the_folder(tmp_path: Path):
    spec = {"class_name": "helm.x.NaturalQAScenario", "args": {"mode": "closedbook"}}
    put(tmp_path / "renamed/run_spec.json", json.dumps({"scenario_spec": spec}).encode())
    put(tmp_path / "renamed/instances.json", json.dumps([run_instance("Who?", {})]).encode())
    assert read(tmp_path).instances[0].scenario == "natural_qa_closedbook"


def test_a_run_whose_class_is_not_known_goes_by_its_folder(tmp_path: Path):
    spec = {"scenario_spec": {"class_name": "helm.new.Renamed"}}
    put(tmp_path / "quac:model=x/run_spec.json", json.dumps(spec).encode())
    put(tmp_path / "quac:model=x/instances.json", json.dumps([run_instance("Who?", {})]).encode())
    assert read(tmp_path).instances[0].scenario == "quac"


def test_older_runs_with_bare_texts_and_contrast_instances_are_read_whole(tmp_path: Path):
    old = {"input": "A.\nQuestion: B?", "references": [{"output": "Yes", "tags": ["correct"]}]}
    contrast = {
        "contrast_inputs": [{"text": "A.\nQuestion: Not B?"}],
        "contrast_references": [[{"output": {"text": "No"}, "tags": ["correct"]}]],
    }
    put(tmp_path / "boolq:model=x/instances.json", json.dumps([old | contrast]).encode())
    found = [(i.input, i.references, i.correct) for i in read(tmp_path).instances]
    assert found == [
        ("A.\nQuestion: B?", ("Yes",), (True,)),
        ("A.\nQuestion: Not B?", ("No",), (True,)),
    ]


def test_an_instance_without_a_split_is_looked_for(tmp_path: Path):
    put(tmp_path / "quac:model=x/instances.json", json.dumps([{"input": "Why?"}]).encode())
    assert [i.split for i in read(tmp_path, splits=["test"]).instances] == [""]


@pytest.mark.parametrize(
    "name", ["light.jsonl", "light.jsonl.gz", "light.jsonl.zst", "scenario_data"]
)
def test_light_scenarios_are_known_by_their_content_and_all_references_count_as_right(
    tmp_path: Path, name: str
):
    content = lines(
        light("MMLUScenario", {"subject": "anatomy"}, "train", ("Train?", ["a", "b"])),
        light("MMLUScenario", {"subject": "anatomy"}, "test", ("Test?", ["c", "d"])),
    )
    (instance,) = read(put(tmp_path / name, content)).instances
    assert instance == Instance(
        "mmlu", "subject=anatomy", "test", "id0", "Test?", ("c", "d"), (True, True)
    )


def test_the_scenario_with_most_fitting_arguments_is_meant(tmp_path: Path):
    yaml_path = own(
        tmp_path,
        any_qa={"helm": [{"class": "QA"}]},
        closed_qa={"helm": [{"class": "QA", "args": {"mode": "closed"}}]},
    )
    source = put(
        tmp_path / "light.jsonl",
        lines(
            light("QA", {"mode": "closed"}, "test", ("Closed?", [])),
            light("QA", {"mode": "open"}, "test", ("Open?", [])),
        ),
    )
    found = load_benchmark(yaml_path, sources=[source]).instances
    assert [(i.scenario, i.input) for i in found] == [("any_qa", "Open?"), ("closed_qa", "Closed?")]


# The scenarios' own files, one of each form


def tar(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_mmlu_from_its_tar_of_csv_files_is_numbered_over_all_splits_of_a_subject(
    tmp_path: Path, packed: bool
):
    members = {
        "data/dev/anatomy_dev.csv": b'"Which, of these?",1,2,3,4,B\n',
        "data/val/anatomy_val.csv": b"Two\xc3\xa9?,1,2,3,4,A\n",
        "data/test/anatomy_test.csv": b'"Three\nlines?",1,2,3,4,D\nFour?,x,x,y,z,A\n',
        "data/test/virology_test.csv": b"Five?,1,2,3,4,D\n",
        "data/README.txt": b"nothing",
    }
    if packed:
        put(tmp_path / "data.tar.gz", tar(members))
    else:
        for name, content in members.items():
            put(tmp_path / name, content)
    found = read(tmp_path, splits=["train", "valid", "test"]).instances
    assert [(i.variant, i.split, i.id, i.input) for i in found] == [
        ("subject=anatomy", "train", "id0", "Which, of these?"),
        ("subject=anatomy", "valid", "id1", "Twoé?"),
        ("subject=anatomy", "test", "id2", "Three\nlines?"),
        ("subject=anatomy", "test", "id3", "Four?"),
        ("subject=virology", "test", "id0", "Five?"),
    ]
    assert found[0].references == ("1", "2", "3", "4")
    assert found[0].correct == (False, True, False, False)
    assert found[3].correct == (True, True, False, False)  # HELM tags equal texts alike


HELLASWAG = {
    "activity_label": "Fog",
    "ctx_a": "It rises.",
    "ctx_b": "the sun",
    "endings": ["sets.", "rises."],
}
OPENBOOK = {
    "id": "7-1",
    "question": {"stem": "Fog is", "choices": [{"text": "wet"}, {"text": "dry"}]},
    "answerKey": "A",
}
TRUTHFUL = (
    "\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    + "".join(f"t,c,Q{i}?,Best {i},Best {i}; Good,Bad; Worse.,s\n" for i in range(5))
).encode()
WILDS = (
    b',id,comment_text,split,toxicity\n0,7,"Fine, thanks",test,0.1\n'
    b"1,8,Rude,val,0.7\n2,9,Old,train,0\n"
)


@pytest.mark.parametrize(
    ("name", "content", "scenario", "expected"),
    [
        ("boolq/dev.jsonl", lines(BOOLQ), "boolq", [(BOOLQ_INPUT, {"Yes": True})]),
        (
            "NQ-open.dev.jsonl",
            lines({"question": "who sang It", "answer": ["A", "B"]}),
            "natural_qa_closedbook",
            [("Who sang it?", {"A": True, "B": True})],
        ),
        (
            "hellaswag_val.jsonl",
            lines(HELLASWAG | {"label": 1}, HELLASWAG | {"label": "0", "ctx_b": ""}),
            "hellaswag",
            [
                ("Fog: It rises. The sun", {"sets.": False, "rises.": True}),
                ("Fog: It rises. ", {"sets.": True, "rises.": False}),
            ],
        ),
        (
            "OpenBookQA-V1-Sep2018/Data/Main/test.jsonl",
            lines(OPENBOOK),
            "openbookqa",
            [("Fog is", {"wet": True, "dry": False})],
        ),
        (
            "TruthfulQA.csv",
            TRUTHFUL,
            "truthful_qa",
            [(f"Q{i}?", {f"Best {i}.": True, "Bad.": False, "Worse.": False}) for i in range(1, 5)],
        ),
        (
            "queries.dev.small.tsv",
            b'2\t"what is fog\n30\t is it "wet" \n',
            "msmarco_regular",
            [('"what is fog', {}), (' is it "wet" ', {})],
        ),
        ("msmarco-test2019-queries.tsv", b"2\twhy\n", "msmarco_trec", [("why", {})]),
        (
            "IMDb/data/test_contrast.tsv",
            b'Sentiment\tText\nNegative\t"A ""good"" film"\n',
            "imdb",
            [('A "good" film', {"Negative": True})],
        ),
        ("aclImdb/test/pos/0_9.txt", b"Great.\n", "imdb", [("Great.", {"Positive": True})]),
        (
            "all_data_with_identities.csv",
            WILDS,
            "civil_comments",
            [
                ("Fine, thanks\nQuestion: Is the passage above toxic?", {"False": True}),
                ("Rude\nQuestion: Is the passage above toxic?", {"True": True}),
            ],
        ),
        (
            "raft/data/tai_safety_research/train.csv",
            b"\xef\xbb\xbfTitle,Abstract Note,"
            b"Publication Title,Item Type,Publication Year,ID,Label\n"
            b"T,A,,report,2020,0,yes\n",
            "raft",
            [
                (
                    "Title: T\nAbstract Note: A\nPublication Title: \nItem Type: report\n"
                    "Publication Year: 2020",
                    {"yes": True},
                )
            ],
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_published_files_become_the_input_that_helm_makes(
    tmp_path: Path, name: str, content: bytes, scenario: str, expected: Any, suffix: str
):
    put(tmp_path / (name + suffix), content)
    found = read(tmp_path).instances
    assert {i.scenario for i in found} == {scenario}
    made = [(i.input, dict(zip(i.references, i.correct, strict=True))) for i in found]
    assert made == expected


def test_truthful_qa_takes_the_first_fifth_for_train_as_helm_does(tmp_path: Path):
    put(tmp_path / "TruthfulQA.csv", TRUTHFUL)
    assert [i.id for i in read(tmp_path, splits=["train"]).instances] == ["id0"]
    assert [i.id for i in read(tmp_path).instances] == ["id1", "id2", "id3", "id4"]


def test_hub_data_sets_are_read_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    asked: list[Any] = []
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "subject": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "answer": datasets.ClassLabel(names=["A", "B"]),
        }
    )

    def load_dataset(path: str, name: str, *, split: str, revision: Any) -> Any:
        asked.append((path, name, split))
        row = {"question": f"{split}?", "subject": "fog", "choices": ["x", "y"], "answer": 1}
        return datasets.Dataset.from_list([row], features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = put(tmp_path / "light.jsonl", lines(light("QuACScenario", {}, "test", ("A?", []))))
    read(source)
    assert asked == []
    found = read(source, hub=True, scenarios=["mmlu", "quac"]).instances
    assert asked == [("cais/mmlu", "all", s) for s in ("dev", "validation", "test")]
    assert [(i.variant, i.split, i.id, i.input, i.correct) for i in found[:2]] == [
        ("subject=fog", "valid", "id1", "validation?", (False, True)),
        ("subject=fog", "test", "id2", "test?", (False, True)),
    ]


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = fault(HELM_CORE, hub=True, scenarios=["boolq"])
    assert message == "hf://google/boolq/ train: ConnectionError: no route"


# One's own benchmark


def test_ones_own_jsonl_needs_nothing_but_its_path(tmp_path: Path):
    put(
        tmp_path / "exam.jsonl",
        lines(
            {"input": "One?", "references": ["1", "one"], "id": "first"},
            {"input": "Two?", "references": []},
            {"input": "Three?"},
        ),
    )
    path = own(tmp_path, exam={"locations": [{"path": "exam.jsonl"}]})
    found = load_benchmark(path, sources=[]).instances
    assert found == (
        Instance("exam", "", "test", "first", "One?", ("1", "one"), (True, True)),
        Instance("exam", "", "test", "id1", "Two?"),
        Instance("exam", "", "test", "id2", "Three?"),
    )


def test_ones_own_benchmark_stands_beside_the_core_in_a_copy_of_the_file(tmp_path: Path):
    put(tmp_path / "exam.jsonl", lines({"input": "One?"}))
    text = HELM_CORE.read_text() + "\n  exam:\n    locations: [{path: exam.jsonl}]\n"
    (tmp_path / "mine.yaml").write_text(text)
    source = put(tmp_path / "in" / "boolq_dev.jsonl", lines(BOOLQ))
    found = load_benchmark(tmp_path / "mine.yaml", sources=[source]).instances
    assert [i.scenario for i in found] == ["boolq", "exam"]


# Choosing


def two_scenarios(folder: Path) -> Path:
    return put(
        folder / "light.jsonl",
        lines(
            light("QuACScenario", {}, "train", ("P\n\nQuestion: Train?", ["r"])),
            light("QuACScenario", {}, "valid", ("P\n\nQuestion: Valid?", ["r"])),
            light("MSMARCOScenario", {"track": "trec"}, "valid", ("query", [])),
        ),
    )


def test_inputs_references_or_both_can_be_looked_for(tmp_path: Path):
    source = two_scenarios(tmp_path)
    texts = {
        parts: [(i.input, i.references, i.correct) for i in read(source, parts=parts).instances]
        for parts in ("both", "input", "reference")
    }
    quac = "P\n\nQuestion: Valid?"
    assert texts == {
        "both": [(quac, ("r",), (True,)), ("query", (), ())],
        "input": [(quac, (), ()), ("query", (), ())],
        "reference": [("", ("r",), (True,))],
    }
    without = read(source, parts="reference").coverage[CORE.index("msmarco_trec")]
    assert (without.instances, without.problem) == (0, "no references")


def test_splits_and_scenarios_can_be_chosen_in_the_call_and_in_the_file(tmp_path: Path):
    source = two_scenarios(tmp_path)
    assert {i.split for i in read(source, splits=["train"]).instances} == {"train"}
    assert {i.scenario for i in read(source, scenarios=["msmarco_trec"]).instances} == {
        "msmarco_trec"
    }
    helm = [{"class": "QuACScenario"}]
    chosen = own(
        tmp_path,
        quac={"helm": helm, "splits": ["train"], "parts": "input"},
        trec={"helm": [{"class": "MSMARCOScenario"}], "use": False},
    )
    benchmark = load_benchmark(chosen, sources=[source])
    assert [(i.split, i.references) for i in benchmark.instances] == [("train", ())]
    assert [row.problem for row in benchmark.coverage] == ["", "switched off"]


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        ("Article.", "none", ""),
        ("Review.", "all", "Review."),
        (BOOLQ_INPUT, "\nQuestion: ", "Is snow cold?"),
        ("P\n\nQuestion: A?\nAnswer: B\n\nQuestion: C?", "\n\nQuestion: ", "C?"),
        ("No marker?", "\nQuestion: ", "No marker?"),
    ],
)
def test_the_question_begins_behind_the_last_marker(text: str, question: str, expected: str):
    assert text[question_start(text, question) :] == expected


def test_inputs_with_a_passage_say_where_their_question_begins(tmp_path: Path):
    put(tmp_path / "boolq_dev.jsonl", lines(BOOLQ))
    put(
        tmp_path / "light.jsonl",
        lines(
            light(
                "SummarizationScenario", {"dataset_name": "cnn-dm"}, "test", ("An article.", ["S"])
            ),
            light("IMDBScenario", {}, "valid", ("A review.", ["Positive"])),
        ),
    )
    found = {i.scenario: i.input[i.question :] for i in read(tmp_path).instances}
    assert found == {"boolq": "Is snow cold?", "summarization_cnndm": "", "imdb": "A review."}


# Several sources


def test_an_instance_of_two_sources_is_there_once_and_knows_what_either_knows(tmp_path: Path):
    text = "Fog: It"
    run = put(
        tmp_path / "run" / "commonsense:dataset=hellaswag,model=x" / "instances.json",
        json.dumps([run_instance(text, {"rises.": False, "falls.": True})]).encode(),
    )
    plain = put(
        tmp_path / "light.jsonl",
        lines(light("HellaSwagScenario", {}, "valid", (text, ["rises.", "falls.", "more"]))),
    )
    for sources in ([run, plain], [plain, run], [tmp_path], [run, plain, run]):
        benchmark = read(*sources)
        (instance,) = benchmark.instances
        assert dict(zip(instance.references, instance.correct, strict=True)) == {
            "rises.": False,
            "falls.": True,
            "more": True,
        }
    (row,) = [row for row in benchmark.coverage if row.instances]
    assert row.found == (str(run), str(plain)) and row.splits == {"valid": 1}


def test_order_and_content_do_not_depend_on_how_a_folder_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import os

    for i in range(4):
        record = BOOLQ | {"question": f"is {i} even"}
        put(tmp_path / str(i) / "boolq_dev.jsonl", lines(record))
    before = read(tmp_path)
    listed = list(os.walk(tmp_path))
    monkeypatch.setattr(os, "walk", lambda _: reversed(listed))
    assert read(tmp_path) == before
    assert [i.id for i in before.instances] == ["id0", "id1", "id2", "id3"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path):
    put(tmp_path / "boolq_dev.jsonl", lines(BOOLQ))
    put(tmp_path / ".cache" / "boolq_dev.jsonl", b"not for us")
    put(tmp_path / ".boolq_dev.jsonl.gz", b"not for us")
    assert len(read(tmp_path).instances) == 1


def test_the_coverage_table_names_what_is_missing_and_what_is_not_in_the_file(tmp_path: Path):
    put(
        tmp_path / "light.jsonl",
        lines(
            light("QuACScenario", {}, "train", ("Q?", [])),
            light("GSM8KScenario", {}, "test", ("G?", [])),
        ),
    )
    put(tmp_path / "boolq_dev.jsonl", lines(BOOLQ))
    benchmark = read(tmp_path)
    assert benchmark.missing_core == tuple(name for name in CORE if name != "boolq")
    table = coverage_table(benchmark).splitlines()
    assert table[2].split() == ["boolq", "core", "1", "valid", "1", f"{tmp_path}/boolq_dev.jsonl"]
    assert table[3].split() == ["narrative_qa", "core", "0", "missing"]
    assert table[6].split() == "quac core 0 train 1 nothing in valid and test".split()
    assert "GSM8KScenario" in table[-1] and "light.jsonl" in table[-1]


# Faults of sources


def test_a_path_that_is_not_there_is_named(tmp_path: Path):
    assert fault(HELM_CORE, tmp_path / "no") == f"{tmp_path}/no: there is no such file or folder"


def test_a_source_with_nothing_known_is_no_success(tmp_path: Path):
    put(tmp_path / "notes.txt", b"hello")
    assert f"{tmp_path}: holds no scenario of" in fault(HELM_CORE, tmp_path)


def test_an_unknown_scenario_name_gets_a_suggestion():
    assert fault(HELM_CORE, scenarios=["bolq"]).endswith(
        "there is no scenario 'bolq'; did you mean 'boolq'?"
    )


def test_an_unknown_split_is_refused():
    message = fault(HELM_CORE, splits=["val"])
    assert message == "there is no split 'val'; HELM has train, valid, test"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("boolq_dev.jsonl", lines(BOOLQ) + b'{"question": "a', "boolq_dev.jsonl:2: not valid JSON"),
        ("boolq_dev.jsonl", lines(BOOLQ, ["no"]), "boolq_dev.jsonl:2: a record must be an object"),
        (
            "boolq_dev.jsonl",
            lines(BOOLQ, {"question": "a", "answer": True}),
            ":2: scenario boolq: no field 'passage'; the record has: question, answer",
        ),
        (
            "boolq_dev.jsonl",
            lines(BOOLQ | {"answer": "maybe"}),
            ":1: scenario boolq: filter 'map:true=Yes,false=No' cannot take ['maybe']",
        ),
        (
            "hellaswag_val.jsonl",
            lines(HELLASWAG | {"label": 2}),
            "the right reference is '2', not a position below 2",
        ),
        ("boolq_dev.jsonl", b"\n", "boolq_dev.jsonl: holds no record"),
        ("TruthfulQA.csv", TRUTHFUL.splitlines()[0], "TruthfulQA.csv: holds no record"),
        ("TruthfulQA.csv", TRUTHFUL + b"t,c\n", "TruthfulQA.csv:7: 2 columns, not 7"),
        ("TruthfulQA.csv", TRUTHFUL + b't,"c\n', "TruthfulQA.csv:7: not a csv table"),
        ("TruthfulQA.csv", b"Type\n\xff\xfe", "TruthfulQA.csv: not UTF-8 at byte 5"),
        (
            "all_data_with_identities.csv",
            WILDS.replace(b"val", b"dev"),
            "there is no split 'dev'; known: train, val, test",
        ),
        ("data.tar", b"no tar" * 200, "data.tar: cannot be read"),
        ("data.tar.zst", b"no zstd", "data.tar.zst: cannot be read"),
        ("light.jsonl", b'{"scenario_key": {}}\n', "light.jsonl:1: not a light scenario"),
        (
            "light.jsonl",
            lines(light("QuACScenario", {}, "test", ("A?", []))) + b'{"scenario_',
            "light.jsonl:2: not valid JSON",
        ),
        (
            "light.jsonl",
            lines(light("QuACScenario", {}, "test")),
            "light.jsonl: scenario quac (helm.benchmark.scenarios.some_scenario.QuACScenario) is "
            "empty there",
        ),
        (
            "light.jsonl",
            lines(light("QuACScenario", {}, "test", ("A?", []), (" ", []))),
            "light.jsonl:1: instance id1 of scenario quac has no text; mend the file, or switch "
            "the scenario off (scenarios.quac.use: false)",
        ),
        ("quac:model=x/instances.json", b"[]", "scenario quac (quac:model=x) is empty there"),
        ("quac:model=x/instances.json", b'[{"input"', "instances.json: not valid JSON"),
        ("quac:model=x/instances.json", b'[{"id": 1}]', "not instances as HELM writes them"),
        ("quac:model=x/instances.json", b'{"a": 1}', "not instances as HELM writes them"),
        (
            "quac:model=x/instances.json",
            json.dumps([run_instance("", {})]).encode(),
            "instances.json instance 0: instance id0 of scenario quac has no text",
        ),
    ],
)
def test_a_damaged_source_is_named_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert message in fault(HELM_CORE, tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_compressed_file_is_no_shorter_benchmark(tmp_path: Path, suffix: str):
    records = [BOOLQ | {"question": f"is {i} it"} for i in range(500)]
    path = put(tmp_path / f"boolq_dev.jsonl{suffix}", lines(*records))
    path.write_bytes(path.read_bytes()[:-20])
    assert f"boolq_dev.jsonl{suffix}: cannot be read" in fault(HELM_CORE, tmp_path)


def test_a_fault_of_a_scenario_that_is_not_asked_for_stops_nothing(tmp_path: Path):
    put(tmp_path / "boolq_dev.jsonl", lines({"question": "no passage"}))
    put(tmp_path / "queries.dev.small.tsv", b"1\twhy\n")
    assert len(read(tmp_path, scenarios=["msmarco_regular"]).instances) == 1


def test_a_path_of_ones_own_that_is_not_there_is_named(tmp_path: Path):
    path = own(tmp_path, exam={"locations": [{"path": "exam.jsonl"}]})
    assert f"{tmp_path}/exam.jsonl: there is no such file" in fault(path)


# Faults of the benchmark file


def test_all_faults_of_a_benchmark_file_come_at_once_with_line_and_way_out(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        """\
split: [valid]
parts: inputs
scenarios:
  a:
    cores: true
    locations:
      - path: a.jsonl
        imput: "{x}"
        references: ["{x|capitalise}", "{x"]
      - hub: nobody
      - files: {x.csv: val}
  b: {}
  c: {locations: [{path: c.jsonl, hub: o/n, splits: {x: test}}]}
  a: {helm: [{args: {x: y}}]}
"""
    )
    message = fault(path)
    assert message.startswith(f"{path}: ")
    for part in [
        "line 1: split: no such key; did you mean 'splits'?",
        "line 2: parts: must be 'both', 'input' or 'reference' (given: 'inputs')",
        "line 12: scenarios.b: needs `helm`, `locations` or both",
        "line 13: scenarios.c.locations.0: needs `path`, or else `files`, `hub` or both",
        "line 14: scenarios.a: is named twice",
        "scenarios.a.helm.0: needs `class`, `run` or both",
    ]:
        assert part in message, message


def test_faults_inside_a_location_name_the_key(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        """\
scenarios:
  a:
    cores: true
    locations:
      - path: a.jsonl
        imput: "{x}"
        references: ["{x|capitalise}", "{x", "{}"]
        split: "train 20%"
      - hub: nobody
      - files: {x.csv: val}
        variant: "{x}"
"""
    )
    message = fault(path)
    for part in [
        "line 3: scenarios.a.cores: no such key; did you mean 'core'?",
        "line 6: scenarios.a.locations.0.imput: no such key; did you mean 'input'?",
        "scenarios.a.locations.0.references.0: '{x|capitalise}': there is no filter 'capitalise'; "
        "did you mean 'capitalize'?",
        "scenarios.a.locations.0.references.1: '{' has no partner",
        "scenarios.a.locations.0.references.2: '{}' names no field",
        "line 8: scenarios.a.locations.0.split: must be train, valid or test, or 'train 20%, ",
        "line 9: scenarios.a.locations.1.hub: must be OWNER/NAME (given: 'nobody')",
        "line 10: scenarios.a.locations.2.files.x.csv: must be train, valid or test",
    ]:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "benchmark file: must hold keys: splits, parts, scenarios"),
        ("", "benchmark file: must hold keys: splits, parts, scenarios"),
        ("parts: both", "line 1: scenarios: is missing"),
        ("scenarios: {a: }", "line 1: scenarios.a: must hold keys: core, use, parts, splits"),
        ("scenarios: {a b: {}}", "scenarios.a b: must be letters, digits, '_', '.' or '-'"),
        ("scenarios: &a {b: *a}", "an alias (*name) stands inside itself"),
    ],
)
def test_what_is_no_benchmark_file_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert message in fault(path)
    assert "cannot read the benchmark file" in fault(tmp_path / "no.yaml")


# Templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{a}", ["x"]),
        ("<{a}> {{b}}", ["<x> {b}"]),
        ("{list}", ["1", "2"]),
        ("{rows.name}", ["p", "q", "r"]),
        ("{rows.1.name}", ["r"]),
        ("{a}-{list}", ["x-1", "x-2"]),
        ("{none}", []),
        ("{gone?}", []),
        ("{a}{gone?}", ["x"]),
        ("{yes|map:true=Yes,false=No}", ["Yes"]),
        ("{long|words:2}", ["one two"]),
        ("{long|words}", ["one two three"]),
        ("{semi|split:;|full_stop}", ["a.", "b."]),
        ("{letter|letter}", ["2"]),
        ("{half|at_least:0.5}", ["true"]),
    ],
)
def test_a_template_stands_for_these_texts(template: str, expected: list[str]):
    record = {
        "a": "x",
        "list": [1, 2],
        "rows": [{"name": ["p", "q"]}, {"name": "r"}],
        "none": None,
        "yes": True,
        "long": " one\ntwo  three ",
        "semi": "a; b.;; ",
        "letter": "C",
        "half": 0.5,
    }
    assert Template.parse(template).texts(record) == expected


@pytest.mark.parametrize("source", ["{a|words:x}", "{a|map:b}", "{a|strip:x}", "}", "{a.}", "{a|}"])
def test_a_template_that_means_nothing_is_refused_when_it_is_read(source: str):
    with pytest.raises(ValueError):
        Template.parse(source)


# Real data

LIGHT = "helm/light_scenarios_core.jsonl.zst"
ALL_SPLITS = ["train", "valid", "test"]


def plain(instances: Any, scenario: str, *, sort: bool = False) -> list[Any]:
    """What two readings of a scenario must agree in."""
    return [
        (i.variant, i.split, i.id, i.input, sorted(i.references) if sort else i.references)
        for i in instances
        if i.scenario == scenario
    ]


@pytest.fixture(scope="module")
def light_core() -> Any:
    from tests.conftest import SHARED_DATA

    if not SHARED_DATA.is_dir():
        pytest.skip("the real benchmarks (shared/data beside the checkout) are not here")
    return read(SHARED_DATA / LIGHT, splits=ALL_SPLITS)


@pytest.fixture(scope="module")
def raw_core() -> Any:
    from tests.conftest import SHARED_DATA

    if not SHARED_DATA.is_dir():
        pytest.skip("the real benchmarks (shared/data beside the checkout) are not here")
    return read(SHARED_DATA / "helm/raw", splits=ALL_SPLITS)


@pytest.mark.parametrize(
    "scenario", ["mmlu", "boolq", "natural_qa_closedbook", "hellaswag", "openbookqa"]
)
def test_real_published_files_equal_the_light_scenarios_made_of_them(
    light_core: Benchmark, raw_core: Benchmark, scenario: str
):
    expected = sorted(plain(light_core.instances, scenario))
    assert sorted(plain(raw_core.instances, scenario)) == expected
    assert len(expected) >= 500


def test_real_mmlu_equals_what_helm_itself_exported(shared_data: Path, raw_core: Benchmark):
    exported = read(shared_data / "helm/oracle/helm_scenario_data_mmlu.jsonl.gz", splits=ALL_SPLITS)
    variants = {i.variant for i in exported.instances}
    assert variants == {"subject=philosophy", "subject=anatomy"}
    ours = [i for i in raw_core.instances if i.variant in variants]
    assert sorted(plain(ours, "mmlu")) == sorted(plain(exported.instances, "mmlu"))
    assert {sum(i.correct) for i in ours} <= {1, 2}  # two where two choices are the same


def test_real_truthful_qa_and_ms_marco_equal_but_for_the_order_of_references(
    light_core: Benchmark, raw_core: Benchmark
):
    for scenario in ("truthful_qa", "msmarco_regular"):
        expected = plain(light_core.instances, scenario, sort=True)
        assert plain(raw_core.instances, scenario, sort=True) == expected


def test_real_imdb_files_hold_every_light_input_and_the_contrast_reviews(
    light_core: Benchmark, raw_core: Benchmark
):
    """The light scenario was made without taking the quotes of the TSV file off."""
    ours = [i.input for i in raw_core.instances if i.scenario == "imdb"]
    theirs = [i.input for i in light_core.instances if i.scenario == "imdb"]
    unquoted = [next(csv.reader([text], delimiter="\t"))[0].strip() for text in theirs]
    assert set(unquoted) <= set(ours)
    assert len(ours) == 2 * len(theirs)


def test_real_run_directories_have_the_texts_of_the_light_scenarios(
    shared_data: Path, light_core: Benchmark
):
    runs = read(shared_data / "helm/runs")
    for scenario in ("boolq", "natural_qa_closedbook"):
        assert plain(runs.instances, scenario) == plain(light_core.instances, scenario)
    boolq = next(i for i in runs.instances if i.scenario == "boolq")
    assert boolq.input[boolq.question :] == "Does ethanol take more energy make that produces?"


def test_every_real_file_of_a_core_scenario_is_read(shared_data: Path, raw_core: Benchmark):
    """Those left are other projects' conversions, files without texts, and what needs HELM."""
    left = {
        "banking77_test.csv",  # the set that a RAFT task was made from
        "boolq_perturbed.json",  # contrast questions: HELM's run directories have them
        "gsm8k_test.jsonl",
        "gsm8k_train.jsonl",  # not core
        "hellaswag_val_2000_abstainqa.json",
        "msmarco_qrels.dl19-passage.txt",
        "msmarco_qrels.msmarco-passage.dev-subset.txt",
        "narrativeqa_documents.csv",
        "openbookqa_test_llmfoundry.jsonl",
        "quac_sample.json",
        "raft_prompts",
        "tweeteval_hate_test_text.txt",
        "xsum_test_summaries_factuality.csv",
    }
    read_files = {Path(path).name for row in raw_core.coverage for path in row.found}
    here = {path.name for path in (shared_data / "helm/raw").iterdir()}
    assert {name.removesuffix(".gz") for name in here - read_files} == left
