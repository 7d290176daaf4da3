"""Long documents to score, as ids: of a data set or of text files, by the model's tokenizer."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from transformers.utils.hub import cached_file

from pipelines.errors import UserError
from pipelines.references import FORMATS, Reference, open_reference
from pipelines.shards import ShardedDataset
from trainer.model import first_line

Ids = npt.NDArray[np.int64]


def dataset_documents(dataset: ShardedDataset) -> Iterator[tuple[str, Ids]]:
    """Documents of a data set's first pass, put together again, by name, in the order they begin.

    BOS and EOS are left out. A document with a gap ends there (tokens that the mixture cut).
    """
    places = defaultdict[tuple[int, bytes], dict[int, tuple[int, int, int, int]]](dict)
    for shard in range(len(dataset.manifest["shards"])):
        columns = dataset.meta(shard).select(["source", "pass", "segments"])
        for i, row in enumerate(columns.to_pylist()):
            for s in row["segments"] if row["pass"] == 0 else ():
                place = shard, i, s["start"], s["start"] + s["length"]
                places[row["source"], s["document"]].setdefault(s["offset"], place)
    ends = dataset.manifest["tokenizer"]
    for (source, uid), pieces in places.items():
        parts, at = list[npt.NDArray[Any]](), min(pieces)
        while at in pieces:
            shard, i, start, end = pieces[at]
            parts.append(dataset.tokens(shard)[i, start:end])
            at += end - start
        ids = np.concatenate(parts).astype(np.int64)
        # Text never becomes a control token, so these are what the build put around it.
        first, last = int(ids[0] == ends["bos_id"]), int(ids[-1] == ends["eos_id"])
        yield f"{dataset.sources[source]} {uid.hex()}", ids[first : len(ids) - last]


def text_documents(
    paths: Sequence[Path], encode: Callable[[str], npt.ArrayLike]
) -> Iterator[tuple[str, Ids]]:
    """One document for a text file, one for each line of a .jsonl file (its field `text`).

    Raises:
        UserError: a file is not UTF-8, or a line has no text.
    """
    for path in paths:
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: byte {error.start:,} is not UTF-8") from error
        texts = {str(path): text}
        if path.suffix == ".jsonl":
            lines = enumerate(text.rstrip().split("\n"), 1)
            texts = {(name := f"{path}:{n}"): _text_of(line, name) for n, line in lines}
        for name, content in texts.items():
            yield name, np.array(encode(content), np.int64)


def _text_of(line: str, name: str) -> str:
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        (text := json.loads(line)["text"]).encode()  # half a character is no text
        return text
    raise UserError(f"{name}: no JSON object with a string `text` of whole characters")


def long_documents(
    documents: Iterable[tuple[str, Ids]], *, least: int, wanted: int | None
) -> dict[str, Ids]:
    """The first `wanted` (None: all) documents with `least` ids or more, by name.

    Raises:
        UserError: there are fewer.
    """
    found, short = dict[str, Ids](), list[tuple[int, str]]()
    for name, ids in documents:
        if len(ids) < least:
            short.append((len(ids), name))
        else:
            found[name] = ids
        if len(found) == wanted:
            break
    if len(found) < (wanted or 1):
        longest = "".join(f"\n  {n:,}  {name}" for n, name in sorted(short, reverse=True)[:5])
        raise UserError(
            f"documents with {least:,} tokens or more: {len(found)}, wanted: {wanted or 1}; tokens "
            f"of the longest of the {len(short)} others:{longest or ' none'}"
        )
    return found


def load_tokenizer(place: str) -> Reference:
    """The tokenizer in a file, a folder or a hub repository, by the library of its format.

    Text never becomes a control token.

    Raises:
        UserError: there is none.
    """
    if not Path(place).exists() and (place.count("/") != 1 or place[0] in "./~"):
        raise UserError(f"{place}: no such file or folder, and no OWNER/NAME of a hub")
    found, why = [place] if Path(place).is_file() else list[str](), ""
    names = [f.file_name for f in FORMATS]
    for name in () if found else names:
        try:
            found.append(cast(str, cached_file(place, name)))
        except OSError as error:
            why = "" if Path(place).exists() else f" ({first_line(error)})"
    if not found:
        raise UserError(f"{place}: no {' or '.join(names)}{why}; name one by --tokenizer")
    content = Path(found[0]).read_bytes()
    try:
        return open_reference(content)
    except Exception as error:  # both libraries raise plain RuntimeError and Exception
        raise UserError(
            f"{found[0]}: no SentencePiece model, no tokenizer.json: {error}"
        ) from error


def usual_bos(tokenizer: Reference) -> int | None:
    """BOS, where the tokenizer begins texts with one."""
    return tokenizer.own_bos
