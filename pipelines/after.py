"""What the data set that this one follows has used: it comes last, and is counted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus import Corpus
from pipelines.errors import UserError
from pipelines.shards import DOCUMENTS, ShardedDataset
from pipelines.store import read_index

_compute = cast(Any, pc)  # made at import time, which type checkers cannot see


@dataclass(frozen=True)
class Before:
    """Documents of an earlier data set that stand in its sequences."""

    uids: frozenset[bytes]
    places: frozenset[tuple[str, int]]
    """(name of the input file, line) of these."""

    known: frozenset[bytes]
    """Documents that the data set kept, used or not: of others, which decontamination may have cut
    otherwise, the place tells."""

    def documents(self, corpus: Corpus) -> npt.NDArray[np.bool_]:
        """[N] whether a document of a source, or what it was cut out of, was used before."""
        known = (
            uid in self.uids or (uid not in self.known and place in self.places)
            for uid, place in zip(corpus.uid, _places(corpus), strict=True)
        )
        return np.fromiter(known, np.bool_, len(corpus.uid))


def _places(corpus: Corpus) -> Iterator[tuple[str, int]]:
    for number, path in enumerate(corpus.batches):
        table, _ = read_index(path, ["file", "line", "offset"])
        for row in table.to_pylist():
            name = corpus.batch_files[number][row["file"]]
            yield name, corpus.line(number, row["line"], row["offset"])


def followed(folder: str) -> str:
    """The id of the data set in a folder.

    Raises:
        UserError: the folder holds none.
    """
    return _open(folder).manifest["dataset_id"]


def _open(folder: str) -> ShardedDataset:
    try:
        return ShardedDataset(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"after: {error}; give the folder of a finished data set, or follow none "
            "(--set after=null)"
        ) from error


def open_before(folder: str) -> Before:
    """Read what a finished data set has used.

    Raises:
        UserError: the folder holds none.
    """
    dataset = _open(folder)
    used: set[bytes] = set()
    try:
        for shard in range(len(dataset.manifest["shards"])):
            segments = _compute.list_flatten(dataset.meta(shard)["segments"])
            uids = _compute.unique(_compute.struct_field(segments, "document"))
            used.update(uids.to_pylist())
        lineage = pa.ipc.open_file(pa.memory_map(str(dataset.folder / DOCUMENTS))).read_all()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"after: {folder}: cannot be read to its end: {error}") from error
    wanted = pa.array(sorted(used), pa.binary(16))
    here = lineage.filter(_compute.is_in(lineage["uid"], value_set=wanted))
    places = zip(here["file"].to_pylist(), here["line"].to_pylist(), strict=True)
    return Before(frozenset(used), frozenset(places), frozenset(lineage["uid"].to_pylist()))


def mark_used(corpora: Mapping[str, Corpus], folder: str | None) -> dict[str, Corpus]:
    """The corpora with what the data set in a folder has used marked; None: it follows none.

    Raises:
        UserError: the folder holds no data set.
    """
    if folder is None:
        return dict(corpora)
    before = open_before(folder)
    return {name: replace(c, again=before.documents(c)) for name, c in corpora.items()}
