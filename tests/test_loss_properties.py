"""What carries loss: made-up records of every template, and sequences of finished builds."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from conftest import Builder, prose, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_runs import (
    assemble_source,
    byte_level_tokenizer,
    document_runs,
    learned,
    prepare_some,
    runs_of_content,
    shown,
)
from test_loss_spans import CHATML, LLAMA3, MISTRAL_CHAT

from pipelines.job import Job
from pipelines.prepare import Preparer
from pipelines.readers import Block
from pipelines.records import RawRecord
from pipelines.tokenizer import Tokenizer, load_tokenizer

WORDS = ["the", "hour", " ", "  ", "\n", "\n\n", ".", "a. ", "</s>", "<s>", "<|im_end|>", "é", "漢",
         "👍🏽", "\u2028", "\t", "Answer:", "[words 1", "{{ x }}", "1=", "<|im_start|>user\n",
         "<|eot_id|>"]  # fmt: skip
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map("".join).filter(str.strip)
long = st.lists(st.sampled_from(WORDS), min_size=8, max_size=60).map("".join).filter(
    lambda text: len(text.split()) > 1
)  # fmt: skip
PASSAGES = [{"title": f"T{i}", "text": f"passage number {i} is about nothing"} for i in range(8)]
QUESTIONS = yaml.safe_dump(
    {"dataset": "made", "templates": {"one": {
        "name": "ask", "jinja": "{{ q }}? ||| {{ a }}", "answer_choices": None,
        "metadata": {"original_task": True, "languages": ["en"]}}}}
)  # fmt: skip


class Case(NamedTuple):
    source: dict[str, Any]
    records: st.SearchStrategy[Any]
    answers: Callable[[Any], list[str]] | None = None
    """What a record asks the model to learn, without what ends it."""

    end: str | None = ""
    """Control token that is learned behind each answer; None: the EOS."""


def talk() -> st.SearchStrategy[Any]:
    pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)
    return pairs.map(
        lambda found: {"messages": [
            {"role": role, "content": text}
            for pair in found for role, text in zip(("user", "assistant"), pair, strict=True)
        ]}
    )  # fmt: skip


def said(record: Any) -> list[str]:
    return [turn["content"] for turn in record["messages"][1::2]]


def chat(written: Callable[[str], str], end: str | None = None, **options: str) -> Case:
    source = {"schema": "messages", "chat": options}
    return Case(source, talk(), lambda r: list(map(written, said(r))), end)


def plain(text: str) -> str:
    return text


QA = st.fixed_dictionaries(
    {"document": long, "question": texts, "answer": texts,
     "kind": st.sampled_from(["normal", "short"])}
)  # fmt: skip
ASKED = texts.map(
    lambda text: {"question": text, "answers": ["forty-two"],
                  "ctxs": [{"title": "gold", "text": "it is forty-two here", "isgold": True}]}
)  # fmt: skip
PAIR = st.fixed_dictionaries({"inputs": texts, "targets": texts, "task": st.just("t")})

CASES = {
    "p3, few shot": Case({"schema": "p3", "policy": "few_shot"}, PAIR, lambda r: [r["targets"]]),
    "p3": Case({"schema": "p3"}, PAIR, lambda r: [r["targets"]], None),
    "long_data": Case(
        {"schema": "long_data"},
        st.builds(lambda p, c: {"text": p + c, "prompt": p}, texts, texts),
        lambda r: [r["text"].removeprefix(r["prompt"])],
        None,
    ),
    "fields": Case({"fields": {"text": ["q", "a"]}},
                   st.fixed_dictionaries({"q": texts, "a": texts}), lambda r: [r["a"]], None),
    "promptsource": Case({"promptsource": {"path": "templates.yaml"}},
                         st.fixed_dictionaries({"q": texts, "a": texts}),
                         lambda r: [r["a"].strip()], None),
    "long_qa": Case({"long_qa": {}}, QA, lambda r: [r["answer"].strip()], None),
    "summary": Case({"summary": {"text": "document", "summary": "answer"}}, QA,
                    lambda r: [" " + r["answer"].strip()], None),
    "multi_document": Case(
        {"multi_document": {"passages": {"path": "passages.jsonl"}, "documents": [2, 6]}}, ASKED
    ),
    "openorca": Case(
        {"schema": "openorca", "chat": {"template": "longllama_instruct"}},
        st.fixed_dictionaries({"system_prompt": texts, "question": texts, "response": texts}),
        lambda r: [r["response"]],
        None,
    ),
    "inst_text": Case(
        {"schema": "inst_text", "chat": {"template": "llama2"}},
        st.builds(lambda q, a: {"text": f"[INST]\n{q}\n[/INST]\n\n{a}"}, texts, texts),
        lambda r: [f" {r['text'].partition('[/INST]')[2].strip()} "],
        None,
    ),
    "llama2": chat(lambda text: f" {text.strip()} ", template="llama2"),
    "longllama": chat(lambda text: f" {text}", template="longllama"),
    "mistral": chat(lambda text: f" {text}", jinja=MISTRAL_CHAT),
    "chatml": chat(plain, "<|im_end|>\n", jinja=CHATML),
    "llama 3": chat(str.strip, "<|eot_id|>", jinja=LLAMA3),
    "oig": Case({"fill_in": {"form": "oig"}}, st.fixed_dictionaries({"text": long})),
    "ul2, words": Case({"fill_in": {"form": "ul2", "piece_units": 16}},
                       st.fixed_dictionaries({"text": long})),
    "ul2, tokens": Case({"fill_in": {"form": "ul2", "unit": "tokens", "piece_units": 16}},
                        st.fixed_dictionaries({"text": long})),
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabularies(tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    rng = random.Random(4)
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    byte_level_tokenizer((prose(rng, 200) for _ in range(50)), path)
    return {"sentencepiece": str(tokenizer_model), "byte level": str(path)}


@pytest.fixture(scope="module")
def prepared_by(
    vocabularies: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Job, Tokenizer, Preparer]]:
    @cache
    def make(name: str, kind: str) -> tuple[Job, Tokenizer, Preparer]:
        folder = tmp_path_factory.mktemp("case")
        write_jsonl(folder / "a.jsonl", [{}])
        write_jsonl(folder / "passages.jsonl", PASSAGES)
        (folder / "templates.yaml").write_text(QUESTIONS)
        source = {"path": "a.jsonl", **CASES[name].source}
        if "promptsource" in source:
            source["promptsource"] = {"path": str(folder / "templates.yaml")}
        job = assemble_source(source, root=folder, work=folder, vocabulary=vocabularies[kind])
        tokenizer = load_tokenizer(job.tokenizer)
        return job, tokenizer, Preparer(job.sources[0].spec, tokenizer)

    return make


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_tokens_with_loss_are_the_answers_and_all_tokens_the_text(name, kind, prepared_by, data):
    case = CASES[name]
    job, tokenizer, preparer = prepared_by(name, kind)
    records = data.draw(st.lists(case.records, min_size=1, max_size=4))
    rows = [RawRecord(record, line, -1) for line, record in enumerate(records)]
    prepared = preparer.prepare(Block(0, 0, 0, rows, []), job.sources[0].inputs)
    assert len(prepared.documents) + len(prepared.dropped) == len(records)
    spec = job.sources[0].spec.template
    rewrite = spec.rewriter(tokenizer) if spec and not spec.reads_records else None
    for number, document in enumerate(prepared.documents):
        content = document.content
        if rewrite:
            content = rewrite(document.text, prepared.uids[number])
        runs = document_runs(prepared, number, tokenizer)
        assert runs == runs_of_content(content, tokenizer)
        if case.answers:
            end = learned_end(case, tokenizer)
            assert learned(runs) == [f"{a}{end}" for a in case.answers(records[document.line])]


def learned_end(case: Case, tokenizer: Tokenizer) -> str:
    """What ends an answer: a control token where the vocabulary has it, else its text."""
    specials = tokenizer.reference.specials
    if case.end is None:
        eos = tokenizer.file.eos_token.text or ""
        return shown(eos) if eos in specials else ""
    token = case.end.rstrip("\n")
    return (shown(token) if token in specials else token) + case.end[len(token) :]


# --- finished builds ---


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    """One source of each policy, with records to fill it."""
    rng = random.Random(9)
    qa = [{"document": prose(rng, rng.randint(20, 300)), "question": f"what {i}?",
           "answer": prose(rng, 5), "kind": "short"} for i in range(60)]  # fmt: skip
    tasks = [{"inputs": prose(rng, rng.randint(2, 40)), "targets": prose(rng, 3),
              "task": f"t{i % 3}", "definition": f"Task {i % 3}"} for i in range(300)]  # fmt: skip
    talks = [{"messages": [{"role": role, "content": prose(rng, rng.randint(3, 30))}
                           for role in ("user", "assistant") * rng.randint(1, 9)]}
             for _ in range(120)]  # fmt: skip
    books = [{"text": prose(rng, rng.randint(100, 1500))} for _ in range(20)]
    for name, rows in {"qa": qa, "tasks": tasks, "talks": talks, "books": books}.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    common = {"weight": 1, "loss": "answers", "max_passes": 3}
    return {
        "qa": {**common, "path": "qa.jsonl", "long_qa": {}, "policy": "pad"},
        "tasks": {**common, "path": "tasks.jsonl", "schema": "p3", "policy": "few_shot"},
        "talks": {**common, "path": "talks.jsonl", "schema": "messages",
                  "chat": {"template": "llama2"}},
        "books": {**common, "path": "books.jsonl", "policy": "stream", "stream_sequences": 2,
                  "fill_in": {"form": "ul2", "piece_units": 64}},
    }  # fmt: skip


@pytest.mark.parametrize("weight_by", ["tokens", "loss_tokens"])
def test_shards_hold_what_was_prepared_and_nothing_predicts_a_first_token(
    builder: Builder, weight_by
):
    recipe = sources(builder.folder)
    tokens = 40_000 if weight_by == "tokens" else 8_000
    dataset = builder.build(recipe, tokens=tokens, weight_by=weight_by).dataset
    known: dict[tuple[str, bytes], tuple[Any, Any]] = {}
    for name, source in recipe.items():
        job = assemble_source(source, root=builder.folder, work=builder.folder,
                              vocabulary=str(builder.tokenizer), seq_len=256)  # fmt: skip
        for _, prepared in prepare_some(job, load_tokenizer(job.tokenizer), limit=1_000):
            for number, uid in enumerate(prepared.uids):
                start, end = prepared.offsets[number], prepared.offsets[number + 1]
                loss = np.ones(end - start, np.bool_)
                for first, last in prepared.no_loss[number]:
                    loss[first:last] = False
                known[name, uid] = prepared.tokens[start:end], loss
    n_learned = 0
    for position in range(len(dataset)):
        sequence = dataset.sequence(position)
        targets = sequence.targets()
        assert not targets[sequence.n_real :].any()
        for start, end in sequence.no_loss:
            assert not targets[start:end].any()
        for segment in sequence.segments:
            start, end = segment["start"], segment["start"] + segment["length"]
            ids, loss = known[sequence.source, segment["document"]]
            inside = slice(segment["offset"], segment["offset"] + segment["length"])
            assert sequence.tokens[start:end].tolist() == ids[inside].tolist()
            expected = loss[inside].copy()
            expected[0] &= segment["continues"]
            assert targets[start:end].tolist() == expected.tolist()
        n_learned += int(targets.sum())
    assert n_learned > tokens / 20
    assert list(dataset.verify()) == []
