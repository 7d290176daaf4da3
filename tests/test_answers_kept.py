"""With loss on answers alone: records without one are dropped, and no other loses it to a cut."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Builder, Built, documents, prose, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import FaultsError, UserError

POLICIES = ("pack", "pad", "stream")
BLANKS = ("", " ", " \n\t", "\u00a0\u3000", "\u200b\ufeff")
LONG = prose(random.Random(0), 900)
TEMPLATES = yaml.safe_dump(
    {"dataset": "made", "templates": {"one": {
        "name": "ask", "jinja": "{{ q }}? ||| {{ a }}", "answer_choices": None,
        "metadata": {"original_task": True, "languages": ["en"]}}}}
)  # fmt: skip


def pair(question: str, answer: str | None) -> dict[str, Any]:
    record = {"q": question, "a": answer, "task": "t", "ctxs": [{"title": "T", "text": "it is 42"}]}
    return record if answer is None else record | {"whole": question + answer}


SOURCES: dict[str, dict[str, Any]] = {
    "prompt": {"fields": {"text": "whole", "prompt": "q"}},
    "two fields": {"fields": {"text": ["q", "a"]}},
    "long_data": {"schema": "long_data"},
    "p3": {"schema": "p3"},
    "natural_instructions": {"schema": "natural_instructions", "format": "jsonl"},
    "summary": {"summary": {"text": "q", "summary": "a"}},
    "long_qa": {"long_qa": {"document": "q", "question": "task", "answer": "a", "style": "short"}},
    "multi_document": {"multi_document": {
        "question": "q", "answers": "a", "documents": [2, 3],
        "passages": {"path": "passages.jsonl"}}},
    "promptsource": {"promptsource": {"path": "templates.yaml"}},
}  # fmt: skip
NAMES = {
    "long_data": {"q": "prompt", "whole": "text"},
    "p3": {"q": "inputs", "a": "targets"},
    "natural_instructions": {"q": "input", "a": "output"},
}
CASES = [(name, policy) for name in SOURCES for policy in POLICIES] + [
    ("p3", "few_shot"), ("natural_instructions", "few_shot"), ("promptsource", "few_shot")
]  # fmt: skip
CANNOT_BE_TOO_LONG = ("summary", "long_qa", "multi_document")
"""Their documents lose what is not the question."""


def write(builder: Builder, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = NAMES.get(name, {})
    renamed = [{names.get(k, k): v for k, v in row.items()} for row in rows]
    write_jsonl(builder.folder / "a.jsonl", renamed)
    write_jsonl(builder.folder / "passages.jsonl", [{"title": "P", "text": "of nothing"}] * 9)
    (builder.folder / "templates.yaml").write_text(TEMPLATES)
    source = {"weight": 1, "path": "a.jsonl", "loss": "answers", "max_passes": 99, **SOURCES[name]}
    if name == "promptsource":
        source["promptsource"] = {"path": str(builder.folder / "templates.yaml")}
    return source


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_records_without_an_answer_or_whose_answer_a_cut_would_remove_are_dropped(
    builder: Builder, name: str, policy: str
) -> None:
    bad = [(pair(f"What is {i}", blank), "no_answer") for i, blank in enumerate(BLANKS)]
    if name not in (
        "prompt",
        "long_data",
        "promptsource",
    ):  # there the text is missing
        bad += [(pair("What is that", None), "no_answer")]
    if name == "multi_document":
        bad = [(row | {"a": [row["a"]]}, reason) for row, reason in bad]
    if name not in CANNOT_BE_TOO_LONG:
        bad += [(pair(LONG, " 42"), "too_many_tokens")]
    good = [pair(f"How much is {i}", " 42 of them") for i in range(9)]
    if name == "multi_document":
        good = [row | {"a": "42"} for row in good]
    source = write(builder, name, [row for row, _ in bad] + good) | {"policy": policy}
    built = builder.build({"a": source}, tokens=250)
    (account,) = built.accounts
    reasons = [reason for _, reason in bad]
    assert account.documents_dropped == {r: reasons.count(r) for r in sorted(set(reasons))}
    assert account.documents_kept == len(good)
    assert_all_learn(built)


def assert_all_learn(built: Built) -> None:
    """Every sequence that is not empty has a token that a model learns to predict."""
    for position in range(len(built.dataset)):
        sequence = built.dataset.sequence(position)
        assert sequence.n_real == 0 or sequence.targets().any()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_source_without_any_answer_stops_the_build_and_leaves_no_folder(
    builder: Builder, policy: str
) -> None:
    source = write(builder, "p3", [pair("Two?", ""), pair("Three?", " ")]) | {"policy": policy}
    with pytest.raises(FaultsError, match=r"sources\.a: none of 2 records is left: 2 no_answer"):
        builder.build({"a": source}, tokens=20)
    assert not (builder.folder / "out").exists()


@settings(max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=12),
    tokens=st.integers(1, 1500),
    policy=st.sampled_from([*POLICIES, "few_shot"]),
    weight_by=st.sampled_from(["tokens", "loss_tokens"]),
    eos=st.booleans(),
)
def test_no_sequence_is_without_loss_and_answers_stay_whole(
    tmp_path_factory, tokenizer_model, lengths, tokens, policy, weight_by, eos
) -> None:
    builder = Builder(tmp_path_factory.mktemp("build"), tokenizer_model)
    rng = random.Random(1)
    rows = [
        {"inputs": prose(rng, asked), "targets": prose(rng, said), "task": f"t{i % 2}"}
        for i, (asked, said) in enumerate(lengths)
    ]
    write_jsonl(builder.folder / "a.jsonl", rows)
    source = {"weight": 1, "path": "a.jsonl", "loss": "answers", "max_passes": 999, "schema": "p3",
              "policy": policy}  # fmt: skip
    values = {"weight_by": weight_by, "seq_len": 128}
    vocabulary = {"path": str(tokenizer_model), "eos": eos}
    try:
        built = builder.build({"a": source}, tokens=tokens, tokenizer=vocabulary, **values)
    except UserError as error:
        assert "too few for any part of an answer" in str(error) or "is left: " in str(error)
        return
    assert_all_learn(built)
    (account,) = built.accounts
    assert (account.tokens_placed if weight_by == "tokens" else account.tokens_loss) == tokens
    n_cut = 0
    for position in range(len(built.dataset)):
        for segment in built.dataset.sequence(position).segments:
            n_cut += segment["tail_cut"]
    assert n_cut <= 1, "of the last unit alone"
    if weight_by == "tokens" and tokens > 1000 and min(asked for asked, _ in lengths) > 8:
        assert n_cut == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("form", ["oig", "ul2"])
def test_long_texts_to_fill_in_are_divided_between_exercises(
    builder: Builder, form: str, policy: str
) -> None:
    write_jsonl(builder.folder / "a.jsonl", documents(4, 12, low=300, high=900))
    options = {"form": form} | ({"piece_units": 40} if form == "ul2" else {})
    source = {"weight": 1, "path": "a.jsonl", "loss": "answers", "policy": policy,
              "fill_in": options, "max_passes": 2}  # fmt: skip
    built = builder.build({"a": source}, tokens=6_000)
    (account,) = built.accounts
    assert account.documents_windowed > 12
    assert account.documents_read + account.documents_windowed == account.documents_kept + sum(
        account.documents_dropped.values()
    )
    assert set(account.documents_dropped) <= {"too_many_tokens"}
    assert_all_learn(built)
    segments = [s for i in range(len(built.dataset)) for s in built.dataset.sequence(i).segments]
    assert not any(s["tail_cut"] for s in segments)
    assert sum(s["head_cut"] for s in segments) <= 2
    again = builder.build({"a": source}, output="again", tokens=6_000)
    assert again.shard_bytes() == built.shard_bytes()


def test_a_decontaminated_record_is_dropped_and_not_cut(builder: Builder) -> None:
    source = write(builder, "p3", [pair("Two?", "2")]) | {"decontam": {"policy": "excise"}}
    with pytest.raises(UserError, match="documents with `loss: answers` cannot be cut"):
        builder.build({"a": source}, tokens=20, decontam={"index": "none"})


def test_an_abstract_behind_an_answer_is_learned_with_it(builder: Builder) -> None:
    rows = [{"text": f"Who? Ann {i}.\n", "prompt": "Who?", "id": str(i)} for i in range(5)]
    write_jsonl(builder.folder / "a.jsonl", rows)
    write_jsonl(
        builder.folder / "meta.jsonl", [{"id": str(i), "abstract": "More."} for i in range(5)]
    )
    source = {"weight": 1, "path": "a.jsonl", "loss": "answers",
              "fields": {"text": "text", "prompt": "prompt", "origin": "id"},
              "abstracts": {"path": "meta.jsonl"}}  # fmt: skip
    built = builder.build({"a": source}, tokens=60)
    sequence = built.dataset.sequence(0)
    first = sequence.segments[0]
    targets = sequence.targets()[first["start"] : first["start"] + first["length"]]
    assert targets[np.flatnonzero(targets)[0] :].all(), "the abstract and the end too"


def test_the_reasons_stand_with_the_dropped_records(builder: Builder) -> None:
    rows = [pair("What is 1", "\u200b"), pair("What is 2", " 2 or so"), pair(LONG, " 3")]
    built = builder.build({"a": write(builder, "p3", rows)}, tokens=24)
    import pyarrow as pa

    with pa.CompressedInputStream(str(built.dataset.folder / "dropped.jsonl.zst"), "zstd") as file:
        lines = [json.loads(line) for line in file.read().splitlines()]
    assert [(x["line"], x["reason"], x["evidence"]) for x in lines] == [
        (1, "no_answer", repr("\u200b")), (3, "too_many_tokens", "more than 256")
    ]  # fmt: skip
