"""arXiv metadata → abstracts by paper id, kept on disk: the real file has millions of them."""

import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from urllib.parse import quote

import msgspec

from pipelines import files
from pipelines.errors import UserError
from pipelines.mixture import Abstracts, Source, digest
from pipelines.readers import read_blocks
from pipelines.records import InputFile
from pipelines.sources import list_beside, plan_splits

_LARGEST_RECORD = 1 << 20


def list_abstracts(name: str, spec: Abstracts, *, data_root: str | None) -> list[InputFile]:
    """The metadata files of a source.

    Raises:
        UserError: none is there.
    """
    return list_beside(f"sources.{name}.abstracts", spec.path, spec.local, data_root=data_root)


def build_index(spec: Abstracts, inputs: Iterable[InputFile], folder: str) -> str:
    """Write the abstracts as a read-only SQLite file named by what it is made from.

    Returns:
        The path of the index; an existing one of the same inputs is used again.
    """
    inputs = list(inputs)
    key = digest(spec.id, spec.abstract, *[(f.path, f.identity) for f in inputs])
    path = files.join(folder, f"abstracts-{key}.sqlite")
    if files.exists(path):
        return path
    fs, name = files.filesystem(path)
    beside = os.path.dirname(name) if files.is_local(path) else None
    if beside:
        os.makedirs(beside, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        aside = os.path.join(scratch, "abstracts.sqlite")
        with closing(sqlite3.connect(aside)) as database, database:
            database.execute(
                "CREATE TABLE abstracts (id TEXT PRIMARY KEY, abstract TEXT) WITHOUT ROWID"
            )
            rows = _rows(spec, inputs)
            database.executemany("INSERT OR IGNORE INTO abstracts VALUES (?, ?)", rows)
        if beside:
            os.replace(aside, name)
        else:
            fs.put_file(aside, name)
    return path


def _rows(spec: Abstracts, inputs: list[InputFile]) -> Iterator[tuple[str, str]]:
    source = Source.model_validate({"weight": 1, "path": "-", "format": "jsonl"})
    decode = msgspec.json.decode
    for split in plan_splits("abstracts", source, inputs):
        for block in read_blocks(split, max_record=_LARGEST_RECORD, skip=lambda _: False):
            for record in block.records:
                try:
                    value = decode(record.value)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    place = f"{split.file.name}: byte {record.offset}"
                    raise UserError(f"{place}: not a JSON record of metadata: {error}") from error
                if isinstance(value, Mapping) and value.get(spec.id) and value.get(spec.abstract):
                    yield str(value[spec.id]), str(value[spec.abstract])


class AbstractIndex:
    """Look abstracts up by paper id, with or without its version."""

    def __init__(self, path: str) -> None:
        name = quote(_on_disk(path))
        self._database = sqlite3.connect(f"file:{name}?mode=ro", uri=True, check_same_thread=False)

    def get(self, paper: str) -> str:
        """The abstract, or an empty string."""
        for name in (paper, re.sub(r"v\d+$", "", paper)):
            query = "SELECT abstract FROM abstracts WHERE id = ?"
            if found := self._database.execute(query, (name,)).fetchone():
                return str(found[0])
        return ""


def _on_disk(path: str) -> str:
    """The index as a local file; from an object store it is fetched once a machine."""
    fs, name = files.filesystem(path)
    if files.is_local(path):
        return name
    local = os.path.join(tempfile.gettempdir(), os.path.basename(name))
    if not os.path.exists(local):
        aside = f"{local}.{os.getpid()}.tmp"
        fs.get_file(name, aside)
        os.replace(aside, local)
    return local
