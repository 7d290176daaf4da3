"""What a finished data set says of near duplicates: every cluster, with places.

A cluster is a document that is kept, and those that are dropped for it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import files
from pipelines.corpus import Corpus
from pipelines.job import Job
from pipelines.shards import NEAR_DUPLICATES
from pipelines.store import read_index


def has_dedup(job: Job) -> bool:
    """Whether near duplicates of any source were looked for."""
    return any(source.dedup for source in job.mixture.sources.values())


def write_clusters(job: Job, corpora: Mapping[str, Corpus]) -> None:
    """`near_duplicates.jsonl`; nothing where the mixture looks for none."""
    if not has_dedup(job):
        return
    with files.write_atomic(files.join(job.output, NEAR_DUPLICATES)) as file:
        for source, corpus in corpora.items():
            for cluster in _clusters(corpus):
                line = json.dumps({"source": source, **cluster}, ensure_ascii=False)
                file.write(line.encode() + b"\n")


def _clusters(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Clusters by the uid of the document kept, the others in each by uid."""
    near = corpus.near
    places = _places(corpus, np.unique(np.concatenate([near.document, near.kept])))
    numbers = range(len(near.document))
    uids = [(corpus.uid[near.kept[i]], corpus.uid[near.document[i]]) for i in numbers]
    members: dict[int, list[dict[str, Any]]] = {}
    for i in sorted(numbers, key=uids.__getitem__):
        members.setdefault(int(near.kept[i]), []).append(
            places[int(near.document[i])] | near.why(i)
        )
    for kept, dropped in members.items():
        yield {"kept": places[kept], "dropped": dropped}


def _places(corpus: Corpus, documents: np.ndarray[Any, Any]) -> dict[int, dict[str, Any]]:
    """Where documents, given by ascending numbers, come from."""
    starts = np.searchsorted(corpus.batch, np.arange(len(corpus.batches)))
    batches = corpus.batch[documents]
    found: dict[int, dict[str, Any]] = {}
    for batch in np.unique(batches).tolist():
        here = documents[batches == batch]
        table, _ = read_index(corpus.batches[batch])
        rows = table.take(here - starts[batch]).to_pylist()
        for document, row in zip(here.tolist(), rows, strict=True):
            found[document] = {
                "uid": row["uid"].hex(),
                "file": corpus.batch_files[batch][row["file"]],
                "line": corpus.line(batch, row["line"], row["offset"]),
                "offset": row["offset"],
                "origin": row["origin"],
                "n_tokens": row["n_tokens"],
            }
    return found


def cluster_lines(folder: Path, prefix: str) -> Iterator[str]:
    """Clusters with a document whose id begins so, for people."""
    path = folder / NEAR_DUPLICATES
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for cluster in map(json.loads, file):
            kept, dropped = cluster["kept"], cluster["dropped"]
            if any(d["uid"].startswith(prefix) for d in (kept, *dropped)):
                yield f"{kept['uid']}  kept instead of its near duplicates in {cluster['source']}:"
                yield f"  {_place(kept)}"
                for d in dropped:
                    how = f"{d['because']}, similarity {d['similarity']:.2f}"
                    yield f"  dropped {d['uid']} ({how}): {_place(d)}"


def near_evidence(why: Mapping[str, Any]) -> str:
    """What `NearDuplicates.why` says, for people."""
    share = f" {why['contained']:.2f}" if "contained" in why else ""
    return f"{why['because']}{share}, similarity {why['similarity']:.2f}"


def _place(document: Mapping[str, Any]) -> str:
    return f"{document['file']}:{document['line']}  {document['origin']}".rstrip()
