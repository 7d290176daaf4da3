"""Paths, folders and globs → the files that hold documents, and those passed over by their names.

A folder stands for all files below it. What programs and people leave beside data is passed over
and named; whoever wants it read names it without a wildcard.
"""

import glob
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

from pipelines import files
from pipelines.errors import FaultsError, UserError
from pipelines.formats import COMPRESSIONS, FORMATS, ending_of, format_of, side_file
from pipelines.records import InputFile

UNKNOWN = "unknown ending"
NOT_SAVED = "not named by state.json"
ATTRIBUTES = "attributes"
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Files that are no documents, for one reason."""

    reason: str
    count: int
    examples: tuple[str, ...]
    """Names of the first of them; a folder ends with `/` and counts once."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source, ordered by name."""

    files: list[InputFile]
    passed_over: tuple[PassedOver, ...] = ()


@dataclass(slots=True)
class _Found:
    """What one pattern names."""

    paths: list[str] = field(default_factory=list[str])
    passed: dict[str, str] = field(default_factory=dict[str, str])
    """Reasons by path."""


def list_files(
    patterns: Sequence[str],
    *,
    root: str | None,
    any_ending: bool,
    unknown_files: Literal["stop", "skip"] = "stop",
) -> Listing:
    """All files that paths, folders and globs name, each once, ordered by name.

    Args:
        patterns: as in the mixture file.
        root: what relative patterns are below (--data-root), or None.
        any_ending: take files whatever their ending (an explicit `format`).
        unknown_files: what becomes of files with unknown endings beside known ones.

    Raises:
        UserError: patterns name nothing, or something that cannot be read; all are named.
    """
    found: dict[str, InputFile] = {}  # by what the path really leads to
    passed: dict[str, str] = {}
    faults: list[str] = []
    for pattern in patterns:
        below_root = root is not None and "://" not in pattern and not os.path.isabs(pattern)
        path = files.join(root, pattern) if root and below_root else pattern
        try:
            listed = _find(path)
            known = [p for p in listed.paths if any_ending or format_of(p)]
            strange = sorted(set(listed.paths) - set(known))
            if not known:
                raise UserError(f"{path}: no file to read{_others(strange)}; {_way_out(root)}")
            if strange and unknown_files == "stop":
                raise UserError(
                    f"{path}: files with unknown endings beside known ones{_others(strange)}; "
                    "name the right ones with a glob (FOLDER/**/*.jsonl), or give the source "
                    "`unknown_files: skip`"
                )
            inputs = _inputs(known, root)
        except UserError as error:
            faults.append(str(error))
            continue
        passed |= listed.passed | dict.fromkeys(strange, UNKNOWN)
        for file in inputs:
            place = os.path.realpath(file.path) if files.is_local(file.path) else file.path
            if place not in found or file.name < found[place].name:
                found[place] = file
    if faults:
        raise UserError(faults[0]) if len(faults) == 1 else FaultsError("input", faults)
    read = {file.path for file in found.values()}
    over = {_name(p, root): reason for p, reason in passed.items() if p not in read}
    return Listing(sorted(found.values(), key=lambda file: file.name), _summary(over))


def _summary(passed: Mapping[str, str]) -> tuple[PassedOver, ...]:
    reasons = sorted(set(passed.values()))
    names = {r: sorted(name for name in passed if passed[name] == r) for r in reasons}
    return tuple(PassedOver(r, len(n), tuple(n[:_EXAMPLES])) for r, n in names.items())


def _others(strange: Sequence[str]) -> str:
    if not strange:
        return ""
    endings = sorted({ending_of(path) or "none" for path in strange})
    some = ", ".join(map(os.path.basename, strange[:_EXAMPLES]))
    more = f" and {len(strange) - _EXAMPLES} more" if len(strange) > _EXAMPLES else ""
    shown = ", ".join(endings[:_EXAMPLES]) + (", …" if len(endings) > _EXAMPLES else "")
    return f" (endings {shown}: {some}{more})"


def _way_out(root: str | None) -> str:
    where = f"is --data-root {root} right? " if root else "does it exist? "
    return (
        f"{where}Known endings: {', '.join(sorted(FORMATS))}, with {', '.join(COMPRESSIONS)} too; "
        "`format` says how files with other endings are read"
    )


def _name(path: str, root: str | None) -> str:
    return path.removeprefix(root.rstrip("/") + "/") if root else path


def _inputs(paths: Sequence[str], root: str | None) -> list[InputFile]:
    """The files as they are now; of several that cannot be read the first is named."""
    inputs: list[InputFile] = []
    faults: list[str] = []
    for path in paths:
        try:
            inputs.append(_input(path, root))
        except UserError as error:
            faults.append(str(error))
    if faults:
        more = f" ({len(faults) - 1} more such files)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)
    return inputs


def _input(path: str, root: str | None) -> InputFile:
    """The file as it is now.

    Raises:
        UserError: it is no file, or may not be read.
    """
    if files.is_local(path):
        try:
            about = os.stat(path)
        except OSError as error:
            why = "a link to nothing" if os.path.islink(path) else error.strerror
            raise UserError(f"{path}: {why}; remove it, or name the right files") from error
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path}: no regular file, so it cannot be read twice; copy it to one")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path}: no permission to read it; give it to who runs this command")
        return InputFile(path, _name(path, root), about.st_size, files.identity(path))
    try:
        with files.reachable(path):
            fs, name = files.filesystem(path)
            return InputFile(path, _name(path, root), int(fs.size(name)), files.identity(path))
    except (OSError, ValueError, TypeError) as error:  # TypeError: a size that is not known
        raise UserError(f"{path}: cannot list it: {error}") from error


def _find(pattern: str) -> _Found:
    """The files that a path, folder or glob names."""
    if files.is_local(pattern):
        pattern = pattern.removeprefix("file://")
        if os.path.lexists(pattern) and not os.path.isdir(pattern):
            return _Found([pattern])
        is_glob = glob.has_magic(pattern) and not os.path.isdir(pattern)
        base, parts = _divide(pattern) if is_glob else (pattern, ("**",))
        found = _walk(base, _Pattern(parts)) if os.path.isdir(base) else _Found()
    else:
        names = _remote_names(pattern)
        if names == [pattern]:
            return _Found(names)
        base, parts = _divide(pattern) if _is_remote_glob(pattern) else (pattern, ("**",))
        found = _judge(names, base.rstrip("/") + "/", _Pattern(parts))
    return _without_attributes(_only_saved(found, pattern))


def _divide(pattern: str) -> tuple[str, tuple[str, ...]]:
    """The folder in front of the first part with a wildcard, and the parts from there on."""
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:first]) or ("/" if first else ".")
    return base, tuple(part for part in parts[first:] if part)


class _Pattern:
    """Parts of a glob, followed name by name: `**` stands for any number of folders."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self._parts = parts
        self.start = self._closed({0})

    def _closed(self, places: set[int]) -> frozenset[int]:
        """With the places that follow where `**` stands for no folder."""
        for place, part in enumerate(self._parts):
            if part == "**" and place in places:
                places.add(place + 1)
        return frozenset(places)

    def step(self, places: frozenset[int], name: str) -> tuple[frozenset[int], frozenset[int]]:
        """The places behind a name, and those that it would have if it were no side file's.

        A part names side files where it begins without a wildcard and reads like one: `_old*`.
        """
        following: set[int] = set()
        forbidden: set[int] = set()
        side = side_file(name)
        for place in places:
            part = self._parts[place] if place < len(self._parts) else None
            if part is None or (part != "**" and not fnmatchcase(name, part)):
                continue
            names_it = part[0] not in "*?[" and side_file(re.sub(r"[*?]|\[.*\]", "", part))
            allowed = following if not side or names_it else forbidden
            allowed.add(place if part == "**" else place + 1)
        return self._closed(following), self._closed(forbidden)

    def names(self, places: frozenset[int], *, folder: bool) -> bool:
        """Whether the glob names a file there, or may name one in a folder there."""
        end = len(self._parts)
        return any(place < end for place in places) if folder else end in places


def _walk(base: str, pattern: _Pattern) -> _Found:
    """The files below a folder of this machine; one that cannot be listed stops the build.

    Links are followed, after what is really there, and each folder is entered once for every part
    of the pattern: a link to a folder above ends there.
    """
    found = _Found()
    entered: set[tuple[int, int, frozenset[int]]] = set()
    folders, links = [(base, pattern.start)], deque[tuple[str, frozenset[int]]]()
    while folders or links:
        folder, places = folders.pop() if folders else links.popleft()
        try:
            about = os.stat(folder)
            if (key := (about.st_dev, about.st_ino, places)) in entered:
                continue
            entered.add(key)
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{folder}: cannot list it: {error.strerror}") from error
        below: list[tuple[str, frozenset[int]]] = []
        for entry in ordered:
            path = os.path.join(folder, entry.name) if folder != "." else entry.name
            following, forbidden = pattern.step(places, entry.name)
            is_folder = os.path.isdir(path)
            if pattern.names(following, folder=is_folder):
                if is_folder:
                    (links if entry.is_symlink() else below).append((path, following))
                else:
                    found.paths.append(path)
            # Nobody misses compiled code, so it is not named.
            elif entry.name != "__pycache__" and pattern.names(forbidden, folder=is_folder):
                found.passed[f"{path}/" if is_folder else path] = str(side_file(entry.name))
        folders += reversed(below)
    return found


def _judge(names: Iterable[str], base: str, pattern: _Pattern) -> _Found:
    """The same of names that a store has matched with the pattern already."""
    found = _Found()
    for path in names:
        # Some stores spell a folder in another way than the pattern; then the name alone counts.
        start = len(base) if path.startswith(base) else path.rfind("/") + 1
        places = pattern.start
        for part in re.finditer(r"[^/]+", path[start:]):
            places, forbidden = pattern.step(places, part[0])
            if forbidden and not places:
                end = start + part.end()
                found.passed[path[: end + 1]] = str(side_file(part[0]))
                break
        else:
            found.paths.append(path)
    return found


def _is_remote_glob(url: str) -> bool:
    """Whether a URL has wildcards; of a web address `?` begins the query."""
    is_web = url.startswith(("http://", "https://"))
    return "*" in url if is_web else glob.has_magic(url)


def _remote_names(pattern: str) -> list[str]:
    fs, name = files.filesystem(pattern)
    scheme = pattern.split("://", 1)[0]
    try:
        with files.reachable(pattern):
            if _is_remote_glob(pattern):
                matched: dict[str, Any] = fs.glob(name, detail=True)
                names = [n for n, about in matched.items() if about["type"] == "file"]
            else:
                names = [name] if scheme in ("http", "https") else list(fs.find(name))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{pattern}: cannot list it: {error}") from error
    return sorted(n if "://" in n else f"{scheme}://{n.lstrip('/')}" for n in names)


def _only_saved(found: _Found, pattern: str) -> _Found:
    """Of folders that `datasets` saved, the data files that they name themselves.

    Raises:
        UserError: the files are of several splits, or one that is named is not there.
    """
    folders = {os.path.dirname(path) for path in found.paths if format_of(path) == "arrow"}
    for path in found.passed:
        if os.path.basename(path) == "dataset_dict.json":
            folder = os.path.dirname(path)
            splits = [s for s in _json(path).get("splits", ()) if f"{folder}/{s}" in folders]
            if len(splits) > 1:
                raise UserError(
                    f"{pattern}: {folder} holds the splits {', '.join(splits)}; name the one to "
                    f"read: {folder}/{splits[0]}"
                )
    for folder in sorted(folders):
        if (named := _saved_files(folder)) is not None:
            here = {path for path in found.paths if os.path.dirname(path) == folder}
            found.passed |= {p: NOT_SAVED for p in here if os.path.basename(p) not in named}
    found.paths = [path for path in found.paths if path not in found.passed]
    return found


def _saved_files(folder: str) -> set[str] | None:
    """The data files of a folder made by `save_to_disk`, or None where it is no such folder."""
    path = files.join(folder, "state.json")
    if not files.exists(path) or "_data_files" not in (state := _json(path)):
        return None
    if state.get("_indices_data_files"):
        raise UserError(
            f"{path}: the data set is a selection of its files' rows, which older versions of "
            "`datasets` kept apart; load it and save it again with a newer one"
        )
    names = {str(file["filename"]) for file in state["_data_files"]}
    if missing := sorted(name for name in names if not files.exists(files.join(folder, name))):
        raise UserError(f"{path}: names {', '.join(missing)}, not there; fetch the folder again")
    return names


def _json(path: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}; mend or remove it") from error
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _without_attributes(found: _Found) -> _Found:
    """Of Dolma's layout, the documents: what stands in `attributes` says things about them."""
    documents, attributes = re.compile(r"(?<![^/])documents/"), re.compile(r"(?<![^/])attributes/")
    beside = {path[: m.start()] for path in found.paths for m in documents.finditer(path)}
    for path in found.paths:
        if any(path[: m.start()] in beside for m in attributes.finditer(path)):
            found.passed[path] = ATTRIBUTES
    found.paths = [path for path in found.paths if path not in found.passed]
    return found
