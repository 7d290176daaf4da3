"""Every shipped mixture on local copies of the published files, with made-up records in them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import prose, write_jsonl
from loss_runs import learned
from test_mixtures import CHECKS, Made, recipe_of


def write(root: Path, path: str, rows: list[dict[str, Any]]) -> None:
    """Records in the format that the file's name says."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), target)
    elif target.suffix == ".zst":
        with pa.output_stream(str(target), compression="zstd") as stream:
            stream.write(write_jsonl(target.with_suffix(""), rows).read_bytes())
    else:
        write_jsonl(target, rows)


def published(root: Path, name: str, rng: random.Random) -> None:
    """Local copies of all files of a mixture."""

    def words(n: int) -> str:
        return prose(rng, n)

    def texts(n: int, **more: Any) -> list[dict[str, Any]]:
        return [{"text": words(1_200), **more} for _ in range(n)]

    def tasks() -> list[dict[str, Any]]:
        return [{"inputs": words(20), "targets": words(2), "meta": {"task": f"t{i % 5}"}}
                for i in range(600)]  # fmt: skip

    def talk(field: str, one: str, sides: tuple[str, str], text: str) -> list[dict[str, Any]]:
        return [{field: [{one: side, text: words(25)} for side in sides * 2], "lang": "en"}
                for _ in range(150)]  # fmt: skip

    def finished() -> list[dict[str, Any]]:
        pairs = [(words(400), words(20)) for _ in range(30)]
        tail = "\n\nQ: Can you write an appropriate summary of the above paragraphs?\nA:"
        tail = tail if name == "booksum" else "\n\nQuestion: which?\n"
        after = "" if name == "booksum" else "\nGold Document ID: 3"
        return [{"text": f"{p}{tail} {c}{after}", "prompt": f"{p}{tail}",
                 "completion": f" {c}{after}"} for p, c in pairs]  # fmt: skip

    layouts: dict[str, dict[str, Callable[[], list[dict[str, Any]]]]] = {
        "phase2": {
            "data/NI_decontaminated.jsonl.zst": tasks,
            "data/P3_decontaminated.jsonl.zst": tasks,
            "pretrain/pile_sub.jsonl.zst": lambda: texts(12, meta={"pile_set_name": "Pile-CC"}),
            "pretrain/book.jsonl.zst": lambda: texts(12, meta={"short_book_title": "B"}),
            "pretrain/arxiv_doc_to_abs.jsonl.zst": lambda: texts(12, meta={"arxiv_id": "2301.1"}),
        },
        "llama2_long": {
            "dialogues/a.jsonl": lambda: talk("messages", "role", ("user", "assistant"), "content"),
            "qa/qa.jsonl.zst": lambda: [
                {"document": words(900), "question": words(6), "answer": words(9), "kind": "short",
                 "chunk": {"start": 100, "end": 200}} for _ in range(20)],
        },
        "longllama_instruct": {
            "openorca/1M.parquet": lambda: [
                {"id": str(i), "system_prompt": words(5), "question": words(20),
                 "response": words(20)} for i in range(300)],
            "sharegpt/a.parquet": lambda: talk("conversations", "from", ("human", "gpt"), "value"),
        },
        "longllama_pretrain": {
            "arxiv/a.jsonl": lambda: texts(8, meta={"arxiv_id": "2301.1"}),
            "python/a.parquet": lambda: [{"content": words(4_000), "id": i} for i in range(4)],
            "book/book.jsonl": lambda: texts(8, meta={"short_book_title": "B"}),
            "common_crawl/2019/a.jsonl.zst": lambda: texts(8, source="cc"),
            **{f"{part}/a.jsonl": lambda: texts(4) for part in ("c4", "github")},
            "stackexchange/stackexchange.jsonl": lambda: texts(4, meta={"url": "u"}),
            "wikipedia/wiki.jsonl": lambda: texts(4, meta={"title": "t"}),
        },
        "booksum": {"fine-tune/booksum.jsonl.zst": finished},
        "multi_document_qa": {"fine-tune/natural_questions_10_200_docs.jsonl.zst": finished},
        "ul2": {"c4/a.jsonl": lambda: [{"text": words(2_100), "url": "u"} for _ in range(16)],
                "books/a.jsonl": lambda: [{"text": words(2_100)} for _ in range(16)]},
    }  # fmt: skip
    for path, rows in layouts[name].items():
        write(root, path, rows())


@pytest.mark.parametrize("name", CHECKS)
def test_mixtures_are_built_from_local_copies_of_the_published_files(
    name, tokenizer_model, tmp_path
):
    published(tmp_path, name, random.Random(name))
    recipe = recipe_of(name)
    seq_len = 512 if name == "longllama_pretrain" else 2_048
    sets = [f"tokens={16 * seq_len}", f"seq_len={seq_len}", f"tokenizer.path={tokenizer_model}"]
    sets += [f"{key}=null" for key in ("after", "decontam") if key in recipe]
    sets += [
        f"sources.{source}.sample=1" for source, x in recipe["sources"].items() if "sample" in x
    ]
    sets += [f"sources.{source}.max_passes=20" for source in recipe["sources"]]
    CHECKS[name](Made(name, tmp_path, tmp_path, sets))


@pytest.mark.parametrize("name", ["booksum", "multi_document_qa"])
def test_finished_records_can_be_learned_from_their_completion_on(name, tokenizer_model, tmp_path):
    published(tmp_path, name, random.Random(name))
    (source,) = recipe_of(name)["sources"]
    sets = ["tokens=16_384", "seq_len=2_048", f"tokenizer.path={tokenizer_model}",
            f"sources.{source}.loss=answers", f"sources.{source}.max_passes=20"]  # fmt: skip
    made = Made(name, tmp_path, tmp_path, sets)
    (path,) = (tmp_path / "fine-tune").glob("*.jsonl")
    completions = {f"{json.loads(line)['completion']}⟦</s>⟧" for line in path.open()}
    whole = [q for q in made.sequences(source)
             if not any(s["head_cut"] or s["tail_cut"] for s in q.segments)]  # fmt: skip
    assert {text for q in whole for text in learned(made.runs(q))} <= completions
    assert whole
    assert 0 < made.loss_share(source) < 0.2
