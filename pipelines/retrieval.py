"""Passages → an index on disk → those most like a question, by BM25 (the library bm25s).

The index is a folder: the passages and the words in SQLite, the scores of every word in every
passage that has it as arrays, all read where they lie. A worker holds 4 bytes for each passage
while it looks for a question. A million passages of 100 words take about 2 GB of memory to build
and 0.7 GB of disk (ten times what 100,000 took).
"""

import array
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import xxhash

from pipelines import files
from pipelines.errors import UserError
from pipelines.mixture import Source, digest
from pipelines.readers import read_blocks
from pipelines.records import InputFile
from pipelines.sources import list_beside, plan_splits
from pipelines.templates.multi_document import MultiDocument
from pipelines.templates.passages import Passage, Passages, one_line, words
from pipelines.templates.values import at

_LARGEST_RECORD = 16 << 20
_FIRST_RANKS = 512
_DATABASE, _SCORES, _DONE = "passages.sqlite", "bm25", "done.json"


def list_passages(spec: Passages, *, data_root: str | None) -> list[InputFile]:
    """The files of a source's passages.

    Raises:
        UserError: none is there.
    """
    return list_beside("passages", spec.path, spec.local, data_root=data_root)


def build_index(options: MultiDocument, inputs: Iterable[InputFile], folder: str) -> str:
    """Write the passages with their BM25 scores into a folder named by what it is made from.

    Equal passages are kept once. The ranks are left out where they are not asked for.

    Returns:
        The path of the index; an existing one of the same inputs is used again.

    Raises:
        UserError: a file is no JSON or holds no passages.
    """
    inputs = list(inputs)
    path = files.join(folder, f"passages-{_key(options, inputs)}")
    if files.exists(files.join(path, _DONE)):
        return path
    fs, name = files.filesystem(path)
    beside = os.path.dirname(name) if files.is_local(path) else None
    if beside:
        os.makedirs(beside, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        aside = os.path.join(scratch, "index")
        os.mkdir(aside)
        done = {"passages": _write(options, inputs, aside)}
        if beside:
            files.write_json(os.path.join(aside, _DONE), done)
            _move(aside, name)
        else:
            fs.put(aside + "/", name + "/", recursive=True)
            files.write_json(files.join(path, _DONE), done)
    return path


def _move(aside: str, folder: str) -> None:
    """Give a finished folder its name, unless another process was faster."""
    try:
        os.rename(aside, folder)
    except OSError:
        if not os.path.exists(os.path.join(folder, _DONE)):
            raise


def _key(options: MultiDocument, inputs: list[InputFile]) -> str:
    spec = options.passages
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    library = version("bm25s") if options.retriever == "bm25" else None
    return digest(
        spec.items, spec.title, spec.text, library, code, *[(f.path, f.identity) for f in inputs]
    )


def _write(options: MultiDocument, inputs: list[InputFile], folder: str) -> int:
    """Write the index; returns how many passages it has."""
    ids: dict[str, int] = {}
    found: list[array.array[int]] = []

    def rows() -> Iterator[tuple[int, str, str]]:
        for number, passage in enumerate(_distinct(options.passages, inputs)):
            if options.retriever == "bm25":
                line = words(f"{passage.title} {passage.text}")
                found.append(array.array("i", [ids.setdefault(w, len(ids)) for w in line]))
            yield number, passage.title, passage.text

    with closing(sqlite3.connect(os.path.join(folder, _DATABASE))) as database, database:
        database.execute("CREATE TABLE passages (number INTEGER PRIMARY KEY, title, text)")
        database.execute("CREATE TABLE words (word TEXT PRIMARY KEY, id INTEGER) WITHOUT ROWID")
        n = database.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows()).rowcount
        database.executemany("INSERT INTO words VALUES (?, ?)", sorted(ids.items()))
    if n < 1:
        raise UserError(
            f"{inputs[0].name}: no passage with a text in field '{options.passages.text}'; name "
            "the fields in `passages.text`, or in `passages.items` where records hold lists of them"
        )
    if ids:
        _write_scores(found, len(ids), os.path.join(folder, _SCORES))
    return n


def _write_scores(found: list["array.array[int]"], n_words: int, folder: str) -> None:
    import bm25s  # pulls in numba where that is installed, which takes a while

    bm25: Any = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    bm25.scores = bm25.build_index_from_ids(list(range(n_words)), found, show_progress=False)
    bm25.vocab_dict = {}  # SQLite has it: as a dictionary every worker would hold all words
    bm25.save(folder, show_progress=False)


def _distinct(spec: Passages, inputs: Iterable[InputFile]) -> Iterator[Passage]:
    seen: set[bytes] = set()
    for record in _records(spec, inputs):
        lists = [at(record, path) for path in spec.items] if spec.items else [[record]]
        for item in (item for items in lists if isinstance(items, list) for item in items):
            passage = Passage(_text(at(item, spec.title)), _text(at(item, spec.text)))
            key = xxhash.xxh3_128_digest("\n".join(passage).encode())
            if passage.text and key not in seen:
                seen.add(key)
                yield passage


def _text(value: Any) -> str:
    """A text in one line; rows of tables come as bytes."""
    if isinstance(value, str):
        value = value.encode(errors="replace")
    return one_line(value.decode(errors="replace")) if isinstance(value, bytes) else ""


def _records(spec: Passages, inputs: Iterable[InputFile]) -> Iterator[Mapping[str, Any]]:
    fields = {path.split(".")[0] for path in spec.items or (spec.title, spec.text)}
    source = Source.model_validate({"weight": 1, "path": "-"})
    for split in plan_splits("passages", source, inputs):
        blocks = read_blocks(
            split,
            max_record=_LARGEST_RECORD,
            skip=lambda _: False,
            columns=lambda name: name in fields,
        )
        for block in blocks:
            for record in block.records:
                value = record.value
                try:
                    yield json.loads(value) if isinstance(value, bytes) else value
                except (ValueError, RecursionError) as error:
                    place = f"{split.file.name}: byte {record.offset}"
                    raise UserError(f"{place}: not a JSON record of passages: {error}") from error


class PassageIndex:
    """Passages by number, and their ranks for a question; a `Retriever`."""

    def __init__(self, path: str) -> None:
        folder = _on_disk(path)
        name = quote(os.path.join(folder, _DATABASE))
        self._database = sqlite3.connect(f"file:{name}?mode=ro", uri=True, check_same_thread=False)
        (self._n,) = self._database.execute("SELECT count(*) FROM passages").fetchone()
        self._bm25: Any = None
        self._scores = os.path.join(folder, _SCORES)

    def __len__(self) -> int:
        return self._n

    def passage(self, number: int) -> Passage:
        """A passage by its number, in the order of the files."""
        query = "SELECT title, text FROM passages WHERE number = ?"
        return Passage(*self._database.execute(query, (number,)).fetchone())

    def ranked(self, question: str) -> Iterator[int]:
        """The passages that share a word with a question, best first; among equals the first."""
        scores = self.scores(question)
        n, sent = int(np.count_nonzero(scores)), 0
        while sent < n:
            best = _best(scores, min(max(_FIRST_RANKS, 8 * sent), n))
            yield from best[sent:].tolist()
            sent = len(best)

    def scores(self, question: str) -> npt.NDArray[np.float32]:
        """BM25 (Lucene's variant, k1 = 1.5, b = 0.75) of every passage [N] for a question."""
        if not os.path.isdir(self._scores):  # no passage has a word
            return np.zeros(self._n, np.float32)
        if self._bm25 is None:
            import bm25s

            self._bm25 = bm25s.BM25.load(self._scores, mmap=True)
        query = "SELECT id FROM words WHERE word = ?"
        found = [self._database.execute(query, (word,)).fetchone() for word in words(question)]
        return self._bm25.get_scores_from_ids([row[0] for row in found if row])


def _best(scores: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.intp]:
    """The n highest scores' places, highest first and equals in their order."""
    least = np.partition(scores, len(scores) - n)[len(scores) - n]
    above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
    return np.concatenate(
        [above[np.argsort(-scores[above], kind="stable")], equal[: n - len(above)]]
    )


def _on_disk(path: str) -> str:
    """The index as a local folder; from an object store it is fetched once a machine."""
    fs, name = files.filesystem(path)
    if files.is_local(path):
        return name
    local = os.path.join(tempfile.gettempdir(), os.path.basename(name.rstrip("/")))
    if not os.path.exists(local):
        with tempfile.TemporaryDirectory() as scratch:
            aside = os.path.join(scratch, "index")
            fs.get(name + "/", aside, recursive=True)
            _move(aside, local)
    return local
