"""A finished data set as microbatches of one rank: read by position, verified, built ahead.

A step is a pure function of its position, so threads may build several at once, and the order is
the same for any number of ranks, workers and steps ahead. Shapes: B = sequences of a microbatch,
T = tokens of a sequence.
"""

import time
import weakref
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipelines.errors import FaultsError, UserError
from pipelines.shards import ShardedDataset, file_sha256, shard_name
from pipelines.xxh3 import hash_rows
from trainer.order import Ints, PassOrder, deal

IGNORE_INDEX = -100
_PADDING_SPAN = 128  # padding attends to no more than this, so it costs next to nothing
_OPEN_SHARDS = 16
_PIECE = 4096  # sequences of the order that are computed together

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Microbatch:
    """What one rank puts through the model at once."""

    tokens: Int32s
    """[B, T] ids; padding, at the end of a sequence, is 0."""

    labels: Int32s
    """[B, T] what position i is to predict, the id at i + 1; or `IGNORE_INDEX`."""

    positions: Int32s
    """[B, T] positions for RoPE."""

    borders: Int32s
    """[n + 1] from 0 to B * T, ascending: tokens borders[i] to borders[i + 1] of the flattened
    batch attend to each other and to no others. Padding has spans of its own."""

    n_loss: int
    """Labels that are not `IGNORE_INDEX`."""

    visible_pairs: int
    """Pairs of a token and one that it attends to, itself included; padding does not count."""

    indices: Ints
    """[B] which sequences of the data set these are."""


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """A column of lists: that of row i has the values offsets[i] to offsets[i + 1]."""

    values: Int32s
    offsets: list[int]

    def __getitem__(self, row: int) -> list[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]].tolist()

    def places(self, seq_len: int) -> Ints:
        """The values as places in the whole shard, whose sequences follow each other."""
        begins = np.repeat(np.arange(len(self.offsets) - 1) * seq_len, np.diff(self.offsets))
        return (self.values.T + begins).T


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    """Columns of a shard."""

    tokens: npt.NDArray[Any]
    xxh3: list[int]
    n_real: list[int]
    n_loss: list[int]
    """As in `Microbatch`."""
    sum_len_sq: list[int]
    contexts: _Lists
    """Where contexts begin."""
    no_loss: _Lists
    """Spans, [N, 2]."""

    @classmethod
    def open(cls, dataset: ShardedDataset, number: int) -> "_Shard":
        try:
            meta = dataset.meta(number).combine_chunks()
            path = dataset.folder / f"{shard_name(number)}.meta.arrow"
            if file_sha256(path) != dataset.manifest["shards"][number]["sha256_meta"]:
                raise ValueError(f"{path.name}: its sha256 is not the one in the manifest")
            tokens = np.asarray(dataset.tokens(number))
        except (OSError, ValueError) as error:
            raise UserError(f"{dataset.folder}: {error}; {_way_out(dataset)}") from error
        segments, spans = (meta[name].chunk(0) for name in ("segments", "no_loss"))
        first = ~segments.values.field("continues").to_numpy(zero_copy_only=False)
        offsets = np.append(0, np.cumsum(first))[segments.offsets.to_numpy()]
        contexts = _Lists(segments.values.field("start").to_numpy()[first], offsets.tolist())
        ends = [spans.values.field(name).to_numpy() for name in ("start", "end")]
        no_loss = _Lists(np.stack(ends, axis=1), spans.offsets.to_pylist())
        # Of what carries loss only the first tokens of contexts are not predicted. Spans are in
        # order and apart: what comes after an even number of their ends is outside of them.
        begins, edges = contexts.places(dataset.seq_len), no_loss.places(dataset.seq_len).ravel()
        outside = begins[np.searchsorted(edges, begins, "right") % 2 == 0] // dataset.seq_len
        n_loss = meta["n_loss"].to_numpy() - np.bincount(outside, minlength=len(tokens))
        plain = {name: meta[name].to_pylist() for name in ("xxh3", "n_real", "sum_len_sq")}
        return cls(tokens, n_loss=n_loss.tolist(), contexts=contexts, no_loss=no_loss, **plain)


_Row = tuple[_Shard, int]


def _way_out(dataset: ShardedDataset) -> str:
    return f"`python -m pipelines.show {dataset.folder} --verify` lists all damage; copy it again"


def documents_of(dataset: ShardedDataset, index: int) -> list[str]:
    """The documents in a sequence, each once, in order: 32 hexadecimal digits each."""
    return list(dict.fromkeys(s["document"].hex() for s in dataset.sequence(index).segments))


def check_state(state: Mapping[str, Any], dataset: ShardedDataset) -> int:
    """The position at which a run that saved `Loader.state` goes on.

    Raises:
        UserError: the run read another data set.
    """
    if (read := state["dataset_id"]) != (here := dataset.manifest["dataset_id"]):
        raise UserError(
            f"{dataset.folder}: this is data set {here}, but the run has read {read} so far; its "
            "position means nothing here: name that data set, or start a new run from the weights"
        )
    return int(state["position"])


def kept_together(dataset: ShardedDataset) -> int:
    """Neighbouring sequences that stay together and in order (`stream_sequences`), at least 1."""
    return max(1, PassOrder.of(dataset.manifest, seed=0).unit)


def parting_faults(name: str, sequences: int, dataset: ShardedDataset) -> Generator[str]:
    """What is wrong with a number of sequences that parts those that stay together."""
    if sequences % (unit := kept_together(dataset)) or sequences < 0:
        yield (
            f"{name}: {sequences}: must be a multiple of {unit}: so many sequences of this data "
            "set stay together (stream_sequences)"
        )


@dataclass(eq=False)
class Loader:
    """Steps of one rank, without end: pass follows pass.

    Iterating goes on where it was left. Threads end with the iterator.

    Raises:
        FaultsError: the numbers do not fit together, or the data set is empty.
    """

    dataset: ShardedDataset
    _: KW_ONLY
    global_batch: int
    """Sequences of one step, over all ranks."""
    micro_batch: int
    """Sequences that a rank puts through the model at once."""
    rank: int = 0
    ranks: int = 1
    documents: bool = True
    """Contexts do not see each other; else only sequences are kept apart."""
    positions: Literal["restart", "continue"] = "restart"
    """Begin at 0 at each border, or run through the sequence."""
    seed: int = 0
    """Of the passes after the first."""
    start: int = 0
    """Position of the first step, see `check_state`."""
    linear_cost: float = 0.0
    """Work per token that does not depend on its context, over that of attending to one token
    more, in the unit of `sum_len_sq`. Only the dealing to ranks depends on it."""
    workers: int = 1
    """Threads that build steps."""
    prefetch: int = 2
    """Steps built ahead of the one in use."""

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise FaultsError(f"loader of {self.dataset.folder}", faults)
        self.position = self.start
        """First position of the next step."""
        self.wait_seconds = 0.0
        """Time that iterators have waited for steps."""
        self._order = PassOrder.of(self.dataset.manifest, seed=self.seed)
        sizes = [shard["sequences"] for shard in self.dataset.manifest["shards"]]
        self._ends = np.cumsum(sizes)
        self._firsts = self._ends - sizes
        self._shard = lru_cache(_OPEN_SHARDS)(partial(_Shard.open, self.dataset))
        self._piece = lru_cache(4)(
            lambda n: self._order.indices(np.arange(n * _PIECE, (n + 1) * _PIECE))
        )
        self._count = np.arange(self.dataset.seq_len, dtype=np.int32)
        self._running: weakref.WeakSet[Generator[list[Microbatch]]] = weakref.WeakSet()

    def _faults(self) -> Generator[str]:
        least = {"global_batch": 1, "micro_batch": 1, "ranks": 1, "workers": 1, "prefetch": 0}
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                yield f"{name}: {value}: must be at least {low}"
        if not 0 <= self.rank < max(1, self.ranks):
            yield f"rank: {self.rank}: must be from 0 to {self.ranks - 1}"
        together = max(1, self.ranks * self.micro_batch)
        if self.global_batch % together:
            yield (
                f"global_batch: {self.global_batch}: must be a multiple of ranks * micro_batch = "
                f"{self.ranks} * {self.micro_batch}; the nearest is "
                f"{max(1, round(self.global_batch / together)) * together}"
            )
        if self.positions not in ("restart", "continue"):
            yield f"positions: {self.positions!r}: must be 'restart' or 'continue'"
        if len(self.dataset) == 0:
            yield "the data set has no sequences: build it with a larger budget of tokens"
        for name in ("micro_batch", "start"):
            yield from parting_faults(name, getattr(self, name), self.dataset)

    @property
    def state(self) -> dict[str, Any]:
        """Where to go on after the last step that was handed out."""
        return {"dataset_id": self.dataset.manifest["dataset_id"], "position": self.position}

    def __iter__(self) -> Generator[list[Microbatch]]:
        """Lists of microbatches: one list a step, one microbatch an accumulation step.

        Raises:
            UserError: a sequence is damaged, or a shard cannot be read.
        """
        steps = self._steps()
        self._running.add(steps)
        return steps

    def close(self) -> None:
        """End all iterators and their threads."""
        for steps in list(self._running):
            steps.close()

    def _steps(self) -> Generator[list[Microbatch]]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        ahead: deque[Future[list[Microbatch]]] = deque()
        try:
            while True:
                while len(ahead) <= self.prefetch:
                    first = self.position + len(ahead) * self.global_batch
                    ahead.append(pool.submit(self._step, first))
                begin = time.perf_counter()
                batches = ahead.popleft().result()
                self.wait_seconds += time.perf_counter() - begin
                self.position += self.global_batch
                yield batches
        finally:
            pool.shutdown(cancel_futures=True)

    def _step(self, position: int) -> list[Microbatch]:
        """The microbatches of the step that begins at a position."""
        indices = self._indices(position)
        rows = self._rows(indices)
        dealt = self._dealt(rows)
        mine = [[rows[i] for i in batch] for batch in dealt.tolist()]
        ids = self._verified(indices[dealt.ravel()], [*chain(*mine)])
        # One piece of memory for all: the allocator keeps it, and no page is faulted in anew.
        memory = np.empty((len(dealt), 3, self.micro_batch, self.dataset.seq_len), np.int32)
        parts = zip(indices[dealt], mine, ids.reshape(*dealt.shape, -1), memory, strict=True)
        return [self._microbatch(*part) for part in parts]

    def _dealt(self, rows: list[_Row]) -> Ints:
        """[microbatches, B] which sequences of a step are this rank's."""
        if not self.documents:  # all cost the same, and microbatches are those of one rank
            places = np.arange(len(rows)).reshape(-1, self.ranks, self.micro_batch)
            return places[:, self.rank]
        squares = [shard.sum_len_sq[row] for shard, row in rows]
        costs = np.array(squares, np.float64) + self.linear_cost * self.dataset.seq_len
        unit = max(1, self._order.unit)
        return deal(costs, ranks=self.ranks, micro_batch=self.micro_batch, unit=unit)[self.rank]

    def _indices(self, position: int) -> Ints:
        """[global_batch] sequences of a step, from pieces of the order: it costs less in bulk."""
        first, offset = divmod(position, _PIECE)
        pieces = range(first, (position + self.global_batch - 1) // _PIECE + 1)
        return np.concatenate([*map(self._piece, pieces)])[offset : offset + self.global_batch]

    def _rows(self, indices: Ints) -> list[_Row]:
        shards = np.searchsorted(self._ends, indices, "right")
        rows = indices - self._firsts[shards]
        return [(self._shard(s), r) for s, r in zip(shards.tolist(), rows.tolist(), strict=True)]

    def _verified(self, indices: Ints, rows: list[_Row]) -> npt.NDArray[Any]:
        """[N, T] ids as they are stored; hashed together, which is faster without `xxhash`."""
        ids = np.stack([shard.tokens[row] for shard, row in rows])
        damaged = hash_rows(ids) != np.array([shard.xxh3[row] for shard, row in rows], np.uint64)
        if damaged.any():
            raise self._damage(int(indices[damaged.argmax()]))
        return ids

    def _microbatch(
        self, indices: Ints, rows: list[_Row], ids: npt.NDArray[Any], memory: Int32s
    ) -> Microbatch:
        """Sequences [B], their ids [B, T] as stored, and memory [3, B, T] for what is made."""
        tokens, labels, positions = memory
        seq_len, borders = self.dataset.seq_len, list[int]()
        n_loss = pairs = 0
        for b, (shard, row) in enumerate(rows):
            n_real = shard.n_real[row]
            tokens[b] = ids[b]
            _fill_labels(labels[b], tokens[b], n_real, shard.contexts[row], shard.no_loss[row])
            padding = range(n_real, seq_len, _PADDING_SPAN)
            starts = [*shard.contexts[row], *padding] if self.documents else [0]
            restarts = starts if self.positions == "restart" else [0]
            for start, end in pairwise([*restarts, seq_len]):
                positions[b, start:end] = self._count[: end - start]
            borders += [b * seq_len + start for start in starts]
            n_loss += shard.n_loss[row]
            pairs += n_real + (shard.sum_len_sq[row] if self.documents else n_real**2)
        ends = np.array([*borders, labels.size], np.int32)
        return Microbatch(tokens, labels, positions, ends, n_loss, pairs // 2, indices)

    def _damage(self, index: int) -> UserError:
        number, row = self.dataset.locate(index)
        documents = ", ".join(documents_of(self.dataset, index)) or "none"
        return UserError(
            f"{self.dataset.folder / shard_name(number)}.tok: sequence {index} (row {row} of the "
            f"shard) is damaged: its xxh3 is not the one that the build stored; documents in it: "
            f"{documents}; {_way_out(self.dataset)}"
        )


def _fill_labels(
    labels: Int32s, tokens: Int32s, n_real: int, contexts: list[int], no_loss: list[list[int]]
) -> None:
    """The [T] labels of a sequence: of the last token, before contexts and in spans, none."""
    labels[:-1] = tokens[1:]
    labels[max(0, n_real - 1) :] = IGNORE_INDEX
    for start in contexts[1:]:
        labels[start - 1] = IGNORE_INDEX
    for start, end in no_loss:
        labels[max(0, start - 1) : end - 1] = IGNORE_INDEX
