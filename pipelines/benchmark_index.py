"""The index of benchmark texts: found, loaded, and checked against what a mixture asks of it."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from decontam.benchmark_file import HELM_CORE, load_benchmark_file
from decontam.coverage import (
    CoverageRow,
    partial_lines,
    partial_text,
    share_of,
    share_text,
)
from decontam.records import DecontamError, Overlap
from pipelines import files
from pipelines.cleaning import Decontam
from pipelines.errors import UserError, did_you_mean
from pipelines.mixture import digest

if TYPE_CHECKING:  # numba takes a second to import; builds that compare nothing do without
    from decontam.index import Index

_BUILD = "python -m decontam.build_index"

_TEXTS_KEPT = 4096  # documents of one task repeat the same texts again and again


def open_index(asked: Decontam) -> tuple["Index | None", list[str]]:
    """The index that a mixture names, and every fault of it that stops a build."""
    try:
        index = load_index(asked.path)
    except UserError as error:
        return None, [str(error)]
    return index, [f"decontam.{fault}" for fault in _faults(asked, index)]


def _faults(asked: Decontam, index: "Index") -> Iterator[str]:
    header = index.header
    for key in ("n", "normalization"):
        value, made_with = getattr(asked, key), header[key]
        if value is not None and value != made_with:
            yield (
                f"{key}: the mixture says {value}, {asked.index} was made with {made_with}; change "
                f"the mixture, or make another index with {_BUILD} --{key} {value}"
            )
    rows = {row["scenario"]: row for row in header["coverage"] if sum(row["splits"].values())}
    required = _required(asked, header["coverage"])
    if missing := [name for name in required if name not in rows]:
        named = ", ".join(name + did_you_mean(name, rows).replace(";", ":") for name in missing)
        yield (
            f"require: {asked.index} has nothing of {named}; make it again with these scenarios, "
            f"or name only those that you need (`require: [{next(iter(rows), '')}]`)"
        )
    for name, least in required.items():
        if name in rows and (fault := _too_little(rows[name], least)):
            yield f"require: {asked.index} {fault}"


def _too_little(row: CoverageRow, least: float) -> str | None:
    """What is wrong with the share of a scenario that an index holds."""
    name, share = row["scenario"], share_of(row)
    if not least or (share is not None and share >= least):
        return None
    content = f"`require: {{{name}: 0}}` is content with what is there"
    there = partial_text(row)
    if share is None:
        return (
            f"holds {sum(row['splits'].values()):,} instances of {name}{there and f' ({there})'}; "
            f"which share that is nobody knows, and {least:.4g} is asked for: its size is not in "
            f"the benchmark file (`published`); {content}"
        )
    return (
        f"holds {share_text(row)} of {name} ({there}), and {least:.4g} is asked for; make it again "
        f"from the published files, --hub or runs without a limit, or ask for less; {content}"
    )


def _required(asked: Decontam, coverage: Sequence[CoverageRow]) -> dict[str, float]:
    """Least share of each scenario that must be covered; one named itself goes before `all`."""
    named = dict(asked.require)
    everything = named.pop("all", None)
    if everything is None:
        return named
    core = load_benchmark_file(HELM_CORE).scenarios
    names = [scenario for scenario, about in core.items() if about.core]
    names += [row["scenario"] for row in coverage]
    return dict.fromkeys(names, everything) | named


def index_line(index: "Index", path: str) -> str:
    """What an index holds, in a line or a few, for the plan."""
    rows: Sequence[CoverageRow] = index.header["coverage"]
    held = [row for row in rows if sum(row["splits"].values())]
    n = sum(sum(row["splits"].values()) for row in held)
    first = f"{path}: {n:,} instances of {len(held)} of {len(rows)} scenarios"
    return "\n".join([first, *partial_lines(rows)])


def load_index(path: str) -> "Index":
    """The benchmark's index, memory-mapped; from an object store it is fetched once a machine.

    Raises:
        UserError: it is missing, or no sound index.
    """
    try:
        with files.reachable(path):
            identity = files.identity(path)
            return _load(path, identity)
    except OSError as error:
        raise UserError(
            f"decontam.index: {path}: cannot be read: {error}; make one with {_BUILD}"
        ) from error


@lru_cache(maxsize=2)
def _load(path: str, identity: str) -> "Index":
    from decontam.index import Index

    try:
        return Index.load(_on_disk(path, identity))
    except DecontamError as error:
        raise UserError(f"decontam.index: {error}") from error


def _on_disk(path: str, identity: str) -> str:
    fs, name = files.filesystem(path)
    if files.is_local(path):
        return name
    local = os.path.join(tempfile.gettempdir(), f"benchmark-{digest(path, identity)}.index")
    if not os.path.exists(local):
        aside = f"{local}.{os.getpid()}.tmp"
        fs.get_file(name, aside)
        os.replace(aside, local)
    return local


class BenchmarkTexts:
    """The texts of an index by what an overlap says of them."""

    _PLACE = ("scenario", "variant", "split", "instance", "part", "reference")

    def __init__(self, index: "Index") -> None:
        self._entries = index.entries
        self._text = lru_cache(maxsize=_TEXTS_KEPT)(self._read)

    def of(self, overlap: Overlap) -> bytes:
        """The whole input or reference that an overlap repeats, in UTF-8."""
        o = overlap
        place = (o.scenario, o.variant, o.split, o.instance, o.part, o.reference)
        return self._text(self._numbers[place])

    def _read(self, number: int) -> bytes:
        return self._entries[number].text.encode()

    @cached_property
    def _numbers(self) -> dict[tuple[str | int, ...], int]:
        table = self._entries.columns(self._PLACE)
        columns = (table[name].to_pylist() for name in self._PLACE)
        return {place: number for number, place in enumerate(zip(*columns, strict=True))}
