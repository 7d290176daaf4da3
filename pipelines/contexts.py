"""Examples of tasks → contexts: as many of one task as fit into a sequence, behind its definition.

A context is BOS, what stands before the examples of the task (its definition, examples that show
how it is done), examples in random order, EOS. No example is cut, and none stands in it twice.
Sources of the policy `few_shot` are chosen and packed by whole contexts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.corpus import Corpus
from pipelines.mixing import UInt64
from pipelines.packing import fill_evenly

Int64 = npt.NDArray[np.int64]

_HEADER_SHARE = 4  # what stands before the examples takes a fourth of a context at most


@dataclass(frozen=True, slots=True)
class Frame:
    """Tokens around every document of the store: kept around a context, left out inside it."""

    bos: int
    eos: int


@dataclass(frozen=True, slots=True)
class Contexts:
    """U contexts of P pieces. A piece is the text of a document, all of it."""

    key: list[bytes]
    """[U] the task and the number of the context within it."""

    first: Int64
    """[U + 1] first piece of each context."""

    document: Int64
    """[P] index into the corpus."""

    begin: Int64
    """[P] first token of the document that is used: its BOS only where a context begins."""

    take: Int64
    """[P] tokens of the document that are used."""


def compose(
    corpus: Corpus, usable: Int64, keys: UInt64, *, frame: Frame, seq_len: int, pass_: int = 0
) -> Contexts:
    """All contexts of one pass, task by task.

    Examples that were used before have contexts of their own. How many there are and how many
    tokens they hold does not depend on the keys.

    Args:
        corpus: the documents of a source.
        usable: [N] those that may be used, in the order of the input.
        keys: [N] random numbers that order the examples of a task.
        frame: BOS and EOS around every document.
        seq_len: most tokens in a context.
        pass_: number of the pass; each puts examples together otherwise.
    """
    room = seq_len - frame.bos - frame.eos
    key: list[bytes] = []
    pieces: list[Int64] = []
    for name, headers, examples in _tasks(corpus, usable, keys):
        again = corpus.used_before[examples]
        parts = (examples[~again], examples[again])
        found = [c for p in parts for c in _of_task(corpus, headers, p, frame, room, pass_)]
        key += [f"{name}\0{number}".encode() for number in range(len(found))]
        pieces += found
    return _framed(corpus, key, pieces, frame)


def _tasks(corpus: Corpus, usable: Int64, keys: UInt64) -> Iterator[tuple[str, Int64, Int64]]:
    """(name, headers, examples) of every task, by name; examples in random order."""
    group, header = corpus.group[usable], corpus.header[usable]
    order = np.lexsort((keys, group))
    bounds = np.searchsorted(group[order], np.arange(len(corpus.groups) + 1))
    for number in sorted(range(len(corpus.groups)), key=lambda n: corpus.groups[n]):
        members = order[bounds[number] : bounds[number + 1]]
        is_header = header[members] > 0
        said_once = is_header & corpus.is_first[usable[members]]  # where duplicates are kept, too
        headers = np.sort(members[said_once])
        headers = headers[np.argsort(header[headers], kind="stable")]
        yield corpus.groups[number], usable[headers], usable[members[~is_header]]


def _of_task(
    corpus: Corpus, headers: Int64, examples: Int64, frame: Frame, room: int, pass_: int
) -> Iterator[Int64]:
    """The documents of each context of a task.

    An example that fits into a sequence only without what stands before it stands alone.
    """
    before, inner = (
        corpus.n_tokens[documents] - frame.bos - frame.eos for documents in (headers, examples)
    )
    fits = np.cumsum(before) <= room // _HEADER_SHARE
    left = room - int(before[fits].sum())
    headers, normal = headers[fits], examples[inner <= left]
    if len(normal):
        row = fill_evenly(inner[inner <= left], seq_len=left, draw=pass_)
        by_row = normal[np.argsort(row, kind="stable")]
        bounds = np.cumsum(np.bincount(row))[:-1]
        for members in np.split(by_row, bounds):
            yield np.concatenate([headers, members])
    yield from examples[inner > left][:, None]


def _framed(corpus: Corpus, key: list[bytes], pieces: list[Int64], frame: Frame) -> Contexts:
    """Contexts with BOS before the first of their pieces and EOS behind the last."""
    sizes = np.array([len(members) for members in pieces], np.int64)
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    document = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    begin = np.full(len(document), frame.bos, np.int64)
    end = corpus.n_tokens[document] - frame.eos
    begin[first[:-1]] -= frame.bos
    end[first[1:] - 1] += frame.eos
    return Contexts(key, first, document, begin, end - begin)


def subset_of(lengths: Int64, total: int) -> npt.NDArray[np.bool_] | None:
    """[N] some lengths that add up to exactly `total`, the first ones as far as it goes.

    Returns:
        Which, or None where no subset does.
    """
    reachable = [1]  # bit t: a subset of the first i lengths adds up to t
    for length in lengths.tolist():
        reachable.append((reachable[-1] | reachable[-1] << length) & ((2 << total) - 1))
    if not reachable[-1] >> total & 1:
        return None
    chosen = np.zeros(len(lengths), np.bool_)
    left = total
    for i in range(len(lengths) - 1, -1, -1):
        if not reachable[i] >> left & 1:
            chosen[i] = True
            left -= int(lengths[i])
    return chosen
