"""Decoding exactly the tokens with loss gives exactly the answers: real records, any template."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pytest
from conftest import prose, write_jsonl
from loss_runs import (
    MISTRAL,
    assemble_source,
    byte_level_tokenizer,
    document_runs,
    learned,
    prepare_some,
    runs_of_content,
    shown,
)

from pipelines.readers import Block
from pipelines.tokenizer import Tokenizer, load_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}\n"
    "{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role "
    "+ '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ ' ' + m.content + eos_token }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)


class Case(NamedTuple):
    source: dict[str, Any]
    answers: Callable[[Any], list[str]] | None = None
    """What a record asks the model to learn, without the EOS; None: only what its text says."""

    limit: int = 150
    ends: bool = True
    """Whether the EOS behind an answer is learned, too."""


def target(record: Any) -> list[str]:
    return [record.get("targets", record.get("targets_pretokenized"))]


def two(field: str) -> Callable[[Any], list[str]]:
    return lambda record: [record[field]]


QUERY = "specific_query_list.0"
NQ = "longqa/nq-open-oracle.jsonl.gz"
QMSUM = {"document": "meeting_transcripts", "question": f"{QUERY}.query",
         "answer": f"{QUERY}.answer", "style": "normal"}  # fmt: skip
QED = {"document": "paragraph_text", "question": "question_text", "style": "short",
       "answer": "original_nq_answers"}  # fmt: skip
NI = {"path": ["ni/v1/subtask04*", "ni/v2_superni_sampled/task*.test.*", "ni/v2_bbh_gsm/task175*"],
      "schema": "natural_instructions"}  # fmt: skip
WEB = {"path": ["web/rp_wikipedia.jsonl.zst", "web/rp_c4_demo.jsonl.zst"], "schema": "redpajama"}

CASES = {
    "natural_instructions, few shot": Case(
        {**NI, "policy": "few_shot"}, lambda r: [f" {r['output']}"], 25, ends=False
    ),
    "natural_instructions": Case(NI, two("output"), 25),
    "p3, few shot": Case(
        {"path": "p3/rp*", "schema": "p3", "policy": "few_shot"}, target, 500, ends=False
    ),
    "p3": Case({"path": ["p3/rp*", "p3/p3*"], "schema": "p3"}, target, 500),
    "long_qa, short": Case(
        {"path": "longqa/qed-dev.jsonl.gz", "long_qa": QED},
        lambda r: [r["original_nq_answers"][0][0]["string"].strip()],
        500,
    ),
    "long_qa, normal": Case(
        {"path": "longqa/qmsum_*", "long_qa": QMSUM},
        lambda r: [r["specific_query_list"][0]["answer"].strip()],
        15,
    ),
    "multi_document": Case(
        {"path": NQ, "multi_document": {"documents": [10, 20],
                                        "passages": {"path": NQ, "items": "ctxs"}}},
        limit=60,
    ),
    "summary": Case(
        {"path": "longqa/qmsum_*", "summary": {"text": "meeting_transcripts",
                                               "summary": "general_query_list.0.answer"}},
        lambda r: [f" {r['general_query_list'][0]['answer'].strip()}"],
        15,
    ),
    "fill_in, oig": Case({**WEB, "fill_in": {"form": "oig"}}, limit=30),
    "fill_in, oig, books": Case(
        {"path": "books/rp_book_neardup_of_train.jsonl.zst", "fill_in": {"roles": "human"}}, limit=1
    ),
    "fill_in, words": Case({**WEB, "fill_in": {"form": "ul2"}}, limit=30),
    "fill_in, tokens": Case({**WEB, "fill_in": {"form": "ul2", "unit": "tokens"}}, limit=30),
}  # fmt: skip


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(4)
    folder = tmp_path_factory.mktemp("vocabulary")
    return byte_level_tokenizer((prose(rng, 200) for _ in range(50)), folder / "tokenizer.json")


@pytest.fixture(params=["sentencepiece", "byte level"])
def vocabulary(request: pytest.FixtureRequest, byte_level: Path) -> str:
    """A vocabulary that puts a space in front of beginnings, and one that does not."""
    if request.param == "byte level":
        return str(byte_level)
    pytest.importorskip("mistral_common")
    return MISTRAL


def records_by_line(block: Block) -> Mapping[int, Any]:
    return {
        r.line: msgspec.json.decode(r.value) if isinstance(r.value, bytes) else r.value
        for r in block.records
    }


def check(
    case: Case, *, root: Path, work: Path, vocabulary: str, eos: str | None = None
) -> tuple[int, int]:
    """Documents compared, and runs of tokens with loss in them."""
    job = assemble_source(case.source, root=root, work=work, vocabulary=vocabulary)
    tokenizer = load_tokenizer(job.tokenizer)
    spec = job.sources[0].spec.template
    rewrite = spec.rewriter(tokenizer) if spec and not spec.reads_records else None
    end = eos if eos is not None else end_of(tokenizer) if case.ends else ""
    n_documents = n_runs = 0
    for block, prepared in prepare_some(job, tokenizer, limit=case.limit):
        records = records_by_line(block)
        assert prepared.documents or prepared.dropped
        for number, document in enumerate(prepared.documents):
            runs = document_runs(prepared, number, tokenizer)
            content = document.content
            if rewrite and not content.answers:  # windows are kept as they were rewritten
                content = rewrite(document.text, prepared.uids[number])
            assert runs == runs_of_content(content, tokenizer)
            if case.answers and document.header != 1:
                wanted = [f"{answer}{end}" for answer in case.answers(records[document.line])]
                assert learned(runs) == wanted
            n_documents += 1
            n_runs += len(learned(runs))
    return n_documents, n_runs


def end_of(tokenizer: Tokenizer) -> str:
    return shown(tokenizer.file.eos_token.text or "")


@pytest.mark.parametrize("name", CASES)
def test_tokens_with_loss_are_the_answers(name, vocabulary, shared_data, tmp_path):
    n_documents, n_runs = check(CASES[name], root=shared_data, work=tmp_path, vocabulary=vocabulary)
    assert n_runs >= n_documents * 0.8 > 0, "definitions alone have none"


def sharegpt(record: Any) -> list[str]:
    turns = [*record["conversations"], *([record["chosen"]] if "chosen" in record else [])]
    return [t["value"] for t in turns if t["from"] in ("gpt", "function_call")]


def messages(record: Any) -> list[str]:
    turns = [t for t in record["messages"] if t["role"] == "assistant" and t.get("loss_weight", 1)]
    parts = [t["content"] for t in turns]
    return [x if isinstance(x, str) else "".join(p["value"] for p in x) for x in parts]


def alpaca(record: Any) -> list[str]:
    inner = record.get("instances", [record])[0]
    return [inner.get("output", inner.get("response"))]


def oasst(record: Any) -> list[str]:
    found, node = [], record["prompt"]
    while replies := node["replies"]:
        answered = [r for r in replies if r["role"] == "assistant" or r["replies"]]
        ranked = [r for r in answered or replies if r.get("rank") is not None]
        node = min(ranked, key=lambda r: r["rank"]) if ranked else (answered or replies)[0]
        found += [node["text"]] if node["role"] == "assistant" else []
    return found


CHATS: dict[str, tuple[str | list[str], str, Callable[[Any], list[str]]]] = {
    "sharegpt": (["instruct/fastchat*", "instruct/llamafactory_dpo*", "instruct/llamafactory_gl*"],
                 "sharegpt", sharegpt),
    "messages": (["instruct/llamafactory_kto*", "instruct/llamafactory_v1*"], "messages", messages),
    "alpaca": (["instruct/gpteacher_*", "instruct/llamafactory_alpaca*", "instruct/alpaca_seed*"],
               "alpaca", alpaca),
    "oasst": ("instruct/oasst_en_100_tree.jsonl.gz", "oasst", oasst),
}  # fmt: skip
STYLES: dict[str, tuple[dict[str, Any], Callable[[str], str], str | None]] = {
    "llama2": ({"template": "llama2"}, lambda answer: f" {answer.strip()} ", None),
    "longllama": ({"template": "longllama"}, lambda answer: f" {answer}", None),
    "longllama_instruct": ({"template": "longllama_instruct"}, lambda answer: answer, None),
    "mistral": ({"jinja": MISTRAL_CHAT}, lambda answer: f" {answer}", None),
    "chatml": ({"jinja": CHATML}, lambda answer: answer, "<|im_end|>"),
    "llama 3": ({"jinja": LLAMA3}, str.strip, "<|eot_id|>"),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("schema", CHATS)
def test_tokens_with_loss_are_the_turns_of_the_assistant(
    schema, style, vocabulary, shared_data, tmp_path
):
    path, name, said = CHATS[schema]
    chat, written, control = STYLES[style]
    source = {"path": path, "schema": name, "chat": chat}
    # A vocabulary that lacks the control token has it as text; a line break behind it is learned.
    end = None if control is None else control if vocabulary == MISTRAL else shown(control)
    end = f"{end}\n" if style == "chatml" else end
    case = Case(source, lambda record: list(map(written, said(record))), 60)
    n_documents, _ = check(case, root=shared_data, work=tmp_path, vocabulary=vocabulary, eos=end)
    assert n_documents or (schema, style) == ("oasst", "longllama_instruct")


def test_finished_records_are_learned_from_their_prompt_on(vocabulary, shared_data, tmp_path):
    with pa.input_stream(str(shared_data / "p3/rp_instruct_p3_sample.jsonl.zst")) as stream:
        pairs = [msgspec.json.decode(x) for x in stream.read().split(b"\n")[:300] if x]
    rows = [{"text": f"{r['inputs']}\n{r['targets']}", "prompt": f"{r['inputs']}\n"} for r in pairs]
    write_jsonl(tmp_path / "a.jsonl", rows)
    case = Case({"path": "a.jsonl", "schema": "long_data"},
                lambda r: [r["text"].removeprefix(r["prompt"])], 300)  # fmt: skip
    assert check(case, root=tmp_path, work=tmp_path, vocabulary=vocabulary) == (300, 300)


@pytest.mark.parametrize("policy", ["few_shot", "pack"])
def test_promptsource_targets_are_learned(policy, vocabulary, shared_data, tmp_path):
    with pa.input_stream(str(shared_data / "p3/promptsource_templates.tar.zst")) as stream:
        archive = io.BytesIO(stream.read())
    with tarfile.open(fileobj=archive) as tar:
        name = "promptsource/templates/super_glue/boolq/templates.yaml"
        (tmp_path / "templates.yaml").write_bytes(tar.extractfile(name).read())
    lines = pa.input_stream(str(shared_data / "helm/raw/boolq_dev.jsonl.gz")).read().split(b"\n")
    rows = [msgspec.json.decode(line) for line in lines[:200]]
    write_jsonl(tmp_path / "a.jsonl", [r | {"label": int(r["answer"])} for r in rows])
    options = {"path": str(tmp_path / "templates.yaml")}
    case = Case({"path": "a.jsonl", "policy": policy, "promptsource": options}, limit=200)
    found = check(case, root=tmp_path, work=tmp_path, vocabulary=vocabulary)
    assert found == (200, 200)
