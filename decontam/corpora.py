"""Corpora as batches of texts: files of any format that builds read, and finished data sets."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.cleaning import Decontam
from pipelines.decontaminate import policy_of
from pipelines.errors import UserError
from pipelines.mixture import CANNOT_BE_CUT, CHATS, Source
from pipelines.readers import read_blocks
from pipelines.records import Dropped, InputFile, Split
from pipelines.schemas import FILE, column_chooser, document_parser, schema_of
from pipelines.shards import DOCUMENTS, MANIFEST, ShardedDataset
from pipelines.sources import list_source, plan_splits, spread
from pipelines.task_files import task_name
from pipelines.templates.choice import plain_conversations
from pipelines.tokenizer_file import kept_tokenizer, reference

if TYPE_CHECKING:
    from decontam.policy import Policy

_compute = cast(Any, pc)  # made at import time, which type checkers cannot see
_TOKENS = 1 << 20  # of a data set that are decoded at a time


class Text(NamedTuple):
    """One document of a file, or one segment of a data set, in UTF-8."""

    utf8: bytes
    source: str
    """The corpus; its group, where groups are asked for; or the source of the data set."""

    uid: bytes
    """16 bytes: of the text, as in builds; for segments that of their document."""

    file: str = ""
    line: int = 0
    """Line within the batch (JSON lines) or row within the file (tables), from 0."""

    offset: int = -1
    """-1 where `line` counts within the file."""

    origin: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """The texts of a block of input."""

    index: int
    """Place among the batches of the split or shard, from 0."""

    texts: list[Text] = field(repr=False)
    n_lines: int = 0
    """Lines of the file that the batch covers."""

    n_bytes: int = 0
    unread: Counter[str] = field(default_factory=Counter[str])
    """Records that are no documents, by reason and evidence."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker reads from front to back."""

    corpus: "FileCorpus | DatasetCorpus"
    number: int
    """Split or shard of the corpus."""

    split: Split | None = None

    @property
    def n_bytes(self) -> int:
        """Of the input, about."""
        return self.corpus.unit_bytes(self)

    def read(self) -> Iterator[Batch]:
        """The batches of the unit.

        Raises:
            UserError: a file cannot be trusted.
        """
        yield from self.corpus.read(self)


@dataclass(frozen=True)
class FileCorpus:
    """Files, read by the same rules as a source of a mixture."""

    name: str
    source: Source
    by_task: bool
    """Whether texts are counted by their task."""

    policy: "Policy | None"
    """What a build would do with them; None where it would compare nothing."""

    inputs: list[InputFile]

    @property
    def holds_tasks(self) -> bool:
        """Whether a build would look for whole tasks among them."""
        return self.policy is not None and bool(schema_of(self.source).group)

    @cached_property
    def splits(self) -> list[Split]:
        """Pieces of input in the order of the files."""
        return plan_splits(self.name, self.source, self.inputs)

    def units(self, workers: int) -> list[Unit]:
        """Work for several workers; with one, a unit is a split."""
        return [
            Unit(self, number, part)
            for number, split in enumerate(self.splits)
            for part in spread([split], workers=workers)
        ]

    def unit_bytes(self, unit: Unit) -> int:
        """See `Unit`."""
        split = unit.split
        assert split is not None
        size = sum(file.size for file in split.files)
        whole = split.format != "jsonl" or not split.last
        return (size if whole else split.last - split.first) // split.strides

    def read(self, unit: Unit) -> Iterator[Batch]:
        """See `Unit`."""
        split = unit.split
        assert split is not None
        schema = schema_of(self.source)
        renderer = plain_conversations(self.source) if self.source.chat else None
        parse = document_parser(schema, answers_only=False, renderer=renderer)
        columns = column_chooser(schema, renderer)
        blocks = read_blocks(split, max_record=64 << 20, skip=lambda _: False, columns=columns)
        for block in blocks:
            texts: list[Text] = []
            unread = Counter(_why(dropped) for dropped in block.dropped)
            for record in block.records:
                document = parse(record)
                if isinstance(document, Dropped):
                    unread[_why(document)] += 1
                    continue
                utf8 = _encode(document.text)
                if utf8 is None or not document.text.strip():
                    unread["lone_surrogate" if utf8 is None else "empty_text"] += 1
                    continue
                file = split.files[document.file].name
                group = document.group or (task_name(file) if FILE in schema.group else "")
                texts.append(
                    Text(
                        utf8,
                        (group or f"{self.name} (no group)") if self.by_task else self.name,
                        xxhash.xxh3_128_digest(utf8),
                        file,
                        document.line,
                        document.offset,
                        document.origin,
                    )
                )
            yield Batch(block.index, texts, block.n_lines, block.n_bytes, unread)


def _why(dropped: Dropped) -> str:
    return f"{dropped.reason} ({dropped.evidence})" if dropped.evidence else dropped.reason


def _encode(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


@dataclass(frozen=True)
class DatasetCorpus:
    """A finished data set, decoded segment by segment with its own tokenizer."""

    name: str
    folder: str
    policy: "Policy | None" = None
    """What would be done with its segments; None where they are only looked at."""

    holds_tasks = False

    @property
    def dataset(self) -> ShardedDataset:
        """The data set, opened."""
        return ShardedDataset(self.folder)

    def units(self, workers: int) -> list[Unit]:
        """One for each shard."""
        del workers
        return [Unit(self, shard) for shard in range(len(self.dataset.manifest["shards"]))]

    def unit_bytes(self, unit: Unit) -> int:
        """See `Unit`; of tokens."""
        return os.path.getsize(Path(self.folder) / f"{unit.number:05d}.tok")

    def read(self, unit: Unit) -> Iterator[Batch]:
        """See `Unit`."""
        dataset = self.dataset
        tokens, meta = dataset.tokens(unit.number), dataset.meta(unit.number)
        decode = self._decoder()
        rows = max(1, _TOKENS // dataset.seq_len)
        for index, first in enumerate(range(0, len(meta), rows)):
            texts: list[Text] = []
            for row, about in enumerate(meta.slice(first, rows).to_pylist(), first):
                source = dataset.sources[about["source"]]
                for segment in about["segments"]:
                    ids = tokens[row, segment["start"] : segment["start"] + segment["length"]]
                    texts.append(Text(decode(ids.tolist()), source, segment["document"]))
            n_bytes = min(rows, len(meta) - first) * dataset.seq_len * dataset.dtype.itemsize
            yield Batch(index, texts, n_bytes=n_bytes)

    def _decoder(self) -> Any:
        """Ids → UTF-8, without the tokens that stand around documents."""
        about = self.dataset.manifest["tokenizer"]
        content = (Path(self.folder) / about["file"]).read_bytes()
        plain = reference(kept_tokenizer(content, about)).decode
        frame = {about["bos_id"], about["eos_id"]}

        def decode(ids: list[int]) -> bytes:
            first = 1 if ids and ids[0] in frame else 0
            last = len(ids) - (1 if len(ids) > first and ids[-1] in frame else 0)
            return plain(ids[first:last]).encode(errors="replace")

        return decode

    def count_documents(self) -> Counter[str]:
        """Documents in the data set, by source; one in several sequences or passes is one."""
        dataset = self.dataset
        seen: dict[str, list[Any]] = {name: [] for name in dataset.sources}
        for shard in range(len(dataset.manifest["shards"])):
            meta = dataset.meta(shard)
            parents = _compute.list_parent_indices(meta["segments"])
            segments = _compute.list_flatten(meta["segments"])
            uids = _compute.struct_field(segments, "document")
            sources = meta["source"].take(parents)
            for number, name in enumerate(dataset.sources):
                here = uids.filter(_compute.equal(sources, number))
                seen[name].append(_compute.unique(here.cast(pa.binary())))
        counts = {
            n: len(_compute.unique(pa.chunked_array(u, pa.binary()))) for n, u in seen.items()
        }
        return Counter(counts)

    def places(self, uids: Sequence[bytes]) -> dict[tuple[str, bytes], tuple[str, int, str]]:
        """(File, line, origin) of documents by their source and id."""
        dataset = self.dataset
        table = pa.ipc.open_file(pa.memory_map(str(dataset.folder / DOCUMENTS))).read_all()
        wanted = _compute.is_in(table["uid"], value_set=pa.array(uids, pa.binary(16)))
        return {
            (dataset.sources[d["source"]], d["uid"]): (d["file"], d["line"], d["origin"])
            for d in reversed(table.filter(wanted).to_pylist())
        }


Corpus = FileCorpus | DatasetCorpus


def open_corpora(
    paths: Sequence[str],
    *,
    schema: str,
    fields: Sequence[str],
    group: Sequence[str],
    decontam: Decontam,
) -> list[Corpus]:
    """What paths name: files, folders, globs, or folders of finished data sets.

    Args:
        paths: one corpus each; `hf://datasets/…` and object stores as in mixtures.
        schema: how records keep their text.
        fields: text fields, instead of a schema.
        group: what names the task of a record, as `group` of a mixture's source.
        decontam: of the mixture that would be built.

    Raises:
        UserError: there is nothing to read, a data set is not one that this program reads, or a
            build would refuse the policy.
    """
    layout: dict[str, Any] = {"fields": {"text": list(fields)}} if fields else {"schema": schema}
    if schema in CHATS and not fields:
        layout["chat"] = {"template": "llama2"}  # any: conversations are read as plain text
    layout["group"] = list(group)
    return [
        _open_dataset(name, path, decontam)
        if os.path.exists(os.path.join(path, MANIFEST))
        else _open_files(name, path, layout, decontam)
        for path, name in zip(paths, _names(paths), strict=True)
    ]


def _open_dataset(name: str, path: str, decontam: Decontam) -> DatasetCorpus:
    """Its segments are as good as built: what would be done counts only where it is asked for."""
    source = Source.model_validate({"weight": 1, "path": path})
    try:
        dataset = DatasetCorpus(
            name, path, policy_of(source, decontam) if decontam.policy else None
        )
        dataset.dataset  # noqa: B018 - opening checks it
    except ValueError as error:
        raise UserError(str(error)) from error
    return dataset


def _open_files(name: str, path: str, layout: Mapping[str, Any], decontam: Decontam) -> FileCorpus:
    source = Source.model_validate({"weight": 1, "path": path, **layout})
    if source.would_be_cut(decontam):
        raise UserError(
            f"--policy excise: {CANNOT_BE_CUT}, and a build would refuse it; give drop, threshold "
            f"or none, or leave --policy out ({name} is read with --schema {source.schema_})"
        )
    try:
        inputs = list_source(name, source, data_root=None).files
    except UserError as error:
        raise UserError(str(error).removeprefix(f"sources.{name}: ")) from error
    return FileCorpus(name, source, bool(source.group), policy_of(source, decontam), inputs)


def _names(paths: Sequence[str]) -> list[str]:
    """Short names of corpora, or their paths where those would be equal."""
    short = [os.path.basename(path.rstrip("/")) or path for path in paths]
    counts = Counter(short)
    return [s if counts[s] == 1 else p for s, p in zip(short, paths, strict=True)]
