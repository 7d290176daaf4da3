"""Every shipped mixture on real text: fill rates, examples in a sequence, shares of loss.

    python benchmarks/mixtures.py --data-root DATA --work DIR [NAME ...]

DATA is a folder of small public corpora in their published schemas; what stands in for the sources
of a mixture is in `STAND_INS`. Sequences are as long as the mixture has them, budgets are small.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import build
from pipelines.shards import ShardedDataset

TOKENIZER = "package://mistral_common/data/tokenizer.model.v1"


class StandIns(NamedTuple):
    """What a mixture is built from here."""

    tokens: int
    sources: Mapping[str, str]
    """What replaces keys of a source, as YAML; `{}` replaces none."""


def _stream(path: str, more: str = "schema: redpajama") -> str:
    return f"path: {path}, local: {path}, {more}, max_passes: 30"


STAND_INS: Mapping[str, StandIns] = {
    "phase1": StandIns(
        6_000_000,
        {
            "book": "path: books/rp_book_train.jsonl.zst, sample: 1",
            "arxiv": "path: arxiv/rp_arxiv_papers.jsonl.zst, sample: 1, max_passes: 2, "
            "abstracts: {path: arxiv/arxiv_metadata.jsonl.gz}",
            "redpajama": "path: web/rp_*.jsonl.zst",
            "ul2_oscar": "path: books/rp_book_heldout_pg19like.jsonl.zst, schema: redpajama, "
            "fill_in: {form: oig, roles: human}",
        },
    ),
    "phase2": StandIns(
        5_000_000,
        {
            "natural_instructions": "path: ni/v2_other, schema: natural_instructions",
            "p3": "path: p3/rp_instruct_p3_sample.jsonl.zst",
            "pile": "path: web/pile_schema_sample.jsonl.zst",
            "book": "path: books/rp_book_train.jsonl.zst, sample: 1",
            "arxiv": "path: arxiv/rp_arxiv_papers.jsonl.zst, sample: 1, max_passes: 2, "
            "abstracts: {path: arxiv/arxiv_metadata.jsonl.gz}",
        },
    ),
    "llama2_long": StandIns(
        1_000_000,
        {
            "dialogues": "path: instruct/llamafactory_alpaca_en_demo.json.gz, schema: alpaca, "
            "max_passes: 10",
            "long_qa": "path: longqa/qmsum_*.jsonl.gz, long_qa: {document: meeting_transcripts, "
            "question: specific_query_list.0.query, answer: specific_query_list.0.answer, "
            "style: normal}",
        },
    ),
    "longllama_instruct": StandIns(
        300_000,
        {
            "openorca": "path: instruct/gpteacher_roleplay.json.gz, schema: alpaca",
            "sharegpt": "path: instruct/fastchat_dummy_conversation.json.gz, max_passes: 10, "
            "chat: {template: longllama}",
        },
    ),
    "longllama_pretrain": StandIns(
        2_000_000,
        {
            "arxiv": _stream("arxiv/rp_arxiv_papers.jsonl.zst"),
            "python": _stream("web/rp_github_docs_only.jsonl.zst", "fields: {text: text}"),
            "book": _stream("books/rp_book_neardup_of_train.jsonl.zst"),
            "common_crawl": _stream("web/rp_common_crawl_like_18f.jsonl.zst"),
            "c4": _stream("web/rp_c4_demo.jsonl.zst", "schema: c4"),
            "github": _stream("web/rp_github_docs_only.jsonl.zst"),
            "stackexchange": _stream("web/rp_stackexchange.jsonl.zst"),
            "wikipedia": _stream("web/rp_wikipedia.jsonl.zst"),
        },
    ),
    "booksum": StandIns(
        1_000_000,
        {
            "booksum": "path: longqa/qmsum_*.jsonl.gz, schema: null, summary: "
            "{text: meeting_transcripts, summary: general_query_list.0.answer}"
        },
    ),
    "multi_document_qa": StandIns(
        2_000_000,
        {
            "natural_questions": "path: longqa/nq-open-oracle.jsonl.gz, schema: null, "
            "multi_document: {passages: {path: longqa/nq-open-oracle.jsonl.gz, items: ctxs}}"
        },
    ),
    "ul2": StandIns(
        4_000_000,
        {
            "dialogues": "path: books/rp_book_train.jsonl.zst, schema: redpajama",
            "denoisers": "path: books/rp_book_heldout_pg19like.jsonl.zst, schema: redpajama",
        },
    ),
}


def overrides(name: str, mixture: Mapping[str, Any]) -> list[str]:
    """The `--set` values that put the stand-ins into a mixture (as it stands in its file)."""
    import yaml

    found = STAND_INS[name]
    values = [f"tokens={found.tokens}", f"tokenizer.path={TOKENIZER}"]
    for source, text in found.sources.items():
        replaced = yaml.safe_load(f"{{{text}}}")
        merged = {**mixture["sources"][source], **replaced}
        kept = {k: v for k, v in merged.items() if v is not None and k != "local"}
        if "fields" in replaced:
            kept.pop("schema", None)
        values.append(
            f"sources.{source}={yaml.safe_dump(kept, default_flow_style=True, width=9999)}"
        )
    return [*values, *(f"{key}=null" for key in ("after", "decontam") if key in mixture)]


def rows(dataset: ShardedDataset) -> list[list[str]]:
    """One line a source: what its sequences hold."""
    found: list[list[str]] = []
    for source in dataset.manifest["sources"]:
        places = source["sequences"] * dataset.seq_len
        placed = max(source["tokens_placed"], 1)
        found.append(
            [
                source["name"],
                f"{source['tokens_placed']:,}",
                f"{source['share_got']:.2%}",
                f"{source['tokens_loss'] / placed:.1%}",
                f"{source['sequences']:,}",
                f"{source['segments'] / max(source['sequences'], 1):.1f}",
                f"{source['tokens_placed'] / max(places, 1):.2%}",
            ]
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Build and print."""
    import yaml

    command = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    command.add_argument("--data-root", required=True)
    command.add_argument("--work", required=True, type=Path)
    command.add_argument("names", nargs="*", default=list(STAND_INS))
    args = command.parse_args(argv)
    head = ["source", "tokens", "share", "with loss", "sequences", "examples each", "fill"]
    for name in args.names:
        path = Path(__file__).parents[1] / "mixtures" / f"{name}.yaml"
        sets = [f"--set={v}" for v in overrides(name, yaml.safe_load(path.read_text()))]
        output = args.work / name
        places = ["--output", str(output), "--data-root", args.data_root, "--quiet"]
        if status := build.main(["--mixture", str(path), *places, "--max-bad=0.1", *sets]):
            return status
        dataset = ShardedDataset(output)
        print(f"\n{name}: sequences of {dataset.seq_len:,}")
        table = [head, *rows(dataset)]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        for row in table:
            print("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
