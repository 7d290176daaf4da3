"""The files that close a data set: lineage, dropped records, manifest, card."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines import files
from pipelines.audit import DUPLICATE, NEAR_DUPLICATE, SourceAudit
from pipelines.clusters import has_dedup, near_evidence
from pipelines.corpus import Corpus
from pipelines.evidence import describe_decontamination
from pipelines.job import Job
from pipelines.ordering import TrainingOrder
from pipelines.report import audit_table, decontam_table, dropped_table, near_table
from pipelines.shards import (
    DOCUMENTS,
    DROPPED,
    FORMAT_VERSION,
    MANIFEST,
    NEAR_DUPLICATES,
    OVERLAPS,
    OVERLAPS_PAGE,
    TASKS,
    dataset_id,
    encode_manifest,
    shard_name,
)
from pipelines.store import read_index
from pipelines.tokenizer import Tokenizer

DOCUMENT_SCHEMA = pa.schema(
    [
        ("uid", pa.binary(16)),
        ("source", pa.uint16()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("line", pa.int64()),
        ("offset", pa.int64()),
        ("n_tokens", pa.int64()),
        ("origin", pa.string()),
    ]
)


def write_documents(job: Job, corpora: Mapping[str, Corpus]) -> None:
    """`documents.arrow`: for every kept document where it came from."""
    path = files.join(job.output, DOCUMENTS)
    names = sorted({name for c in corpora.values() for fs in c.batch_files for name in fs})
    dictionary = pa.array(names, pa.string())
    codes = {name: code for code, name in enumerate(names)}
    with files.write_atomic(path) as file, pa.ipc.new_file(file, DOCUMENT_SCHEMA) as writer:
        for source, corpus in enumerate(corpora.values()):
            first = 0
            for number, batch in enumerate(corpus.batches):
                table, _ = read_index(batch)
                keep = pa.array(corpus.is_unique[first : first + len(table)])
                first += len(table)
                if job.mixture.duplicates == "drop":
                    table = table.filter(keep)
                in_batch = [codes[corpus.batch_files[number][i]] for i in table["file"].to_pylist()]
                indices = pa.array(in_batch, pa.int32())
                lines = [
                    corpus.line(number, line, offset)
                    for line, offset in zip(
                        table["line"].to_pylist(), table["offset"].to_pylist(), strict=True
                    )
                ]
                columns: list[Any] = [
                    table["uid"].combine_chunks(),
                    pa.array([source] * len(table), pa.uint16()),
                    pa.DictionaryArray.from_arrays(indices, dictionary),
                    pa.array(lines, pa.int64()),
                    *(table[name].combine_chunks() for name in ("offset", "n_tokens", "origin")),
                ]
                writer.write_batch(pa.record_batch(columns, schema=DOCUMENT_SCHEMA))


def write_dropped(job: Job, corpora: Mapping[str, Corpus]) -> None:
    """`dropped.jsonl.zst`: every record that is not in the data set, and why."""
    path = files.join(job.output, DROPPED)
    with (
        files.write_atomic(path) as file,
        pa.CompressedOutputStream(pa.PythonFile(file, "w"), "zstd") as stream,
    ):
        for source, corpus in corpora.items():
            duplicates = job.mixture.duplicates == "drop"
            for record in dropped_records(source, corpus, duplicates=duplicates):
                stream.write(msgspec.json.encode(record) + b"\n")


def dropped_records(
    source: str, corpus: Corpus, *, duplicates: bool = False
) -> Iterator[dict[str, Any]]:
    """The records of one source that were dropped, in the order of the input."""
    first = 0
    for number, batch in enumerate(corpus.batches):
        table = files.read_table(f"{batch}.dropped.arrow")
        rows = table.to_pylist()
        index, _ = read_index(batch)
        if duplicates:
            again = pa.array(~corpus.is_first[first : first + len(index)])
            evidence = {"reason": DUPLICATE, "evidence": "the same text occurred before"}
            rows += [row | evidence for row in index.filter(again).to_pylist()]
            rows += _near_duplicates(corpus, index, first)
        first += len(index)
        for row in sorted(rows, key=lambda r: (r["file"], r["line"], r["offset"])):
            yield {
                "source": source,
                "file": corpus.batch_files[number][row["file"]],
                "line": corpus.line(number, row["line"], row["offset"]),
                "offset": row["offset"],
                "reason": row["reason"],
                "evidence": row["evidence"],
                "uid": row["uid"].hex() if row["uid"] else None,
            }


def _near_duplicates(corpus: Corpus, index: pa.Table, first: int) -> Iterator[dict[str, Any]]:
    """Those in a batch whose first document is number `first` of the corpus."""
    near = corpus.near
    begin, end = np.searchsorted(near.document, [first, first + len(index)])
    documents = index.take(near.document[begin:end] - first).to_pylist()
    for i, document in enumerate(documents, int(begin)):
        evidence = f"{near_evidence(near.why(i))}, kept: {corpus.uid[near.kept[i]].hex()}"
        yield document | {"reason": NEAR_DUPLICATE, "evidence": evidence}


def write_manifest(
    job: Job,
    tokenizer: Tokenizer,
    accounts: Sequence[SourceAudit],
    order: TrainingOrder,
    shards: Sequence[Mapping[str, Any]],
) -> None:
    """`manifest.json`, the file that makes the data set finished, and the card before it."""
    mixture = job.mixture
    files.write_bytes(files.join(job.output, job.tokenizer.file_name), job.tokenizer.content)
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": mixture.name,
        "recipe": mixture.recipe(),
        "seq_len": mixture.seq_len,
        "token_type": tokenizer.token_type,
        "pad_id": 0,
        "tokenizer": job.tokenizer.describe() | {"vocab_size": tokenizer.vocab_size},
        "sources": [account.as_json() for account in accounts],
        "totals": _totals(accounts),
        "order": {
            "global_batch": mixture.order.global_batch,
            "window": mixture.order.window,
            "max_deviation_tokens": float(order.max_deviation),
            "rank_imbalance_mean": round(order.after.mean, 6),
            "rank_imbalance_worst": round(order.after.worst, 6),
        },
        "inputs": [
            {"source": source.name, "name": file.name, "bytes": file.size}
            for source in job.sources
            for file in source.inputs
        ],
        "passed_over": [
            {"source": source.name, **asdict(over)}
            for source in job.sources
            for over in source.passed_over
        ],
        "shards": list(shards),
        "files": {name: _sha256(files.join(job.output, name)) for name in _other_files(job)},
        "program": job.fingerprint["program"],
        "versions": {
            name: metadata.version(name)
            for name in ("apache-beam", "numpy", "pyarrow", "sentencepiece", "tokenizers")
        },
    }
    if decontamination := describe_decontamination(job):
        manifest["decontamination"] = decontamination
    manifest["dataset_id"] = dataset_id(manifest)
    files.write_bytes(files.join(job.output, "README.md"), _card(manifest, accounts).encode())
    files.write_bytes(files.join(job.output, MANIFEST), encode_manifest(manifest))


def _other_files(job: Job) -> list[str]:
    """The files beside the shards that the manifest answers for."""
    evidence = [OVERLAPS, OVERLAPS_PAGE] if job.benchmark else []
    evidence += [TASKS] if any(source.has_tasks for source in job.sources) else []
    clusters = [NEAR_DUPLICATES] if has_dedup(job) else []
    return [DOCUMENTS, DROPPED, *evidence, *clusters, job.tokenizer.file_name]


def _sha256(path: str) -> str:
    with files.open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _totals(accounts: Sequence[SourceAudit]) -> dict[str, int]:
    return {
        "sequences": sum(a.sequences for a in accounts),
        "segments": sum(a.segments for a in accounts),
        "tokens": sum(a.tokens_placed for a in accounts),
        "loss_tokens": sum(a.tokens_loss for a in accounts),
        "padding": sum(a.padding for a in accounts),
    }


def describe_shard(output: str, number: int) -> tuple[dict[str, Any], pa.Table]:
    """A shard's entry in the manifest, and its rows of `shards.META_SCHEMA`."""
    content = files.read_bytes(files.join(output, f"{shard_name(number)}.meta.arrow"))
    meta = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    entry = {
        "name": shard_name(number),
        "sequences": len(meta),
        "tokens": int(meta["n_real"].to_numpy().sum()),
        "sha256_tok": meta.schema.metadata[b"sha256_tok"].decode(),
        "sha256_meta": hashlib.sha256(content).hexdigest(),
    }
    return entry, meta


def _card(manifest: Mapping[str, Any], accounts: Sequence[SourceAudit]) -> str:
    dropped = dropped_table(accounts)
    return f"""# {manifest["name"]}

{manifest["totals"]["tokens"]:,} tokens in {manifest["totals"]["sequences"]:,} sequences of
{manifest["seq_len"]:,}; data set `{manifest["dataset_id"]}`.

```
{audit_table(accounts, seq_len=manifest["seq_len"])}
```

```
{dropped or "no document was dropped"}
```
{_decontam_section(accounts)}{_near_section(accounts)}
`NNNNN.tok` and `NNNNN.meta.arrow` are the shards, `manifest.json` says what they hold and what
they were made from, `documents.arrow` where every document came from, `dropped.jsonl.zst` which
records were left out and why.
"""


def _near_section(accounts: Sequence[SourceAudit]) -> str:
    if not (compared := near_table(accounts)):
        return ""
    return f"""
Compared with each other; `{NEAR_DUPLICATES}` has every cluster of near duplicates:

```
{compared}
```
"""


def _decontam_section(accounts: Sequence[SourceAudit]) -> str:
    if not (compared := decontam_table(accounts)):
        return ""
    return f"""
Compared with benchmarks; `{OVERLAPS}` has every overlap, `{OVERLAPS_PAGE}` shows them:

```
{compared}
```
"""
