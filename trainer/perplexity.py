"""Perplexity in sliding windows over long documents, and loss by position.

What is scored is any `Nll`, so a model with a memory is measured by the same code.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipelines.errors import UserError
from trainer.inference import new_cache, windows
from trainer.texts import Ids

Nll = Callable[[torch.Tensor, int], torch.Tensor]
"""`nll(tokens, n)`: ids, int64 [B, T] → nats, float32 [B, n], of the last n < T ids of each row."""

Watch = Callable[[Sequence[Any]], Iterable[Any]]
"""Gives the same things in the same order, and may tell how many are done."""

Floats = npt.NDArray[np.float64]


class Window(NamedTuple):
    """Tokens [start, end) of a document; the last `n_scored` count, the others are context."""

    document: int
    start: int
    end: int
    n_scored: int


@dataclass(frozen=True)
class Scores:
    """Sums of losses, float64, and the number of tokens in each: one a window, or a bucket."""

    nats: Floats
    tokens: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if not np.isfinite(self.nats).all():
            raise UserError("the loss is not finite; try --dtype float32, and look at the weights")

    @property
    def token_weighted(self) -> float:
        """Perplexity with equal weight for each token; every token is scored exactly once."""
        return float(np.exp(self.nats.sum() / self.tokens.sum()))

    @property
    def window_mean(self) -> float:
        """Perplexity with equal weight for each window, as published scripts average."""
        return float(np.exp((self.nats / self.tokens).mean()))


def windows_of(lengths: Sequence[int], *, window: int, stride: int, has_bos: bool) -> list[Window]:
    """The windows of documents of so many tokens (Chen et al. 2023, §3.3).

    The first window of a document scores all its tokens; each later one begins `stride` tokens on
    and scores those that are new. `window` counts the BOS that each window begins with. Without
    one, nothing predicts the first token of a document, and it is not scored.
    """
    places = list[Window]()
    for document, n_tokens in enumerate(lengths):
        start, scored = 0, 0 if has_bos else 1
        while scored < n_tokens:
            end = min(start + window - has_bos, n_tokens)
            places.append(Window(document, start, end, end - scored))
            start, scored = start + stride, end
    return places


def losses(
    documents: Sequence[Ids], nll: Nll, *, window: int, stride: int, bos: int | None,
    batch_tokens: int, watch: Watch,
) -> list[Floats]:  # fmt: skip
    """For each of `windows_of`, nats of the tokens that it scores, in order.

    About `batch_tokens` ids go through the model at a time.
    """
    head = np.array([] if bos is None else [bos], np.int64)
    lengths = [len(document) for document in documents]
    places = windows_of(lengths, window=window, stride=stride, has_bos=len(head) > 0)

    def shape(i: int) -> tuple[int, int]:
        return places[i].end - places[i].start, places[i].n_scored

    batches = list[list[int]]()
    # The largest go first: where memory does not suffice, it shows at once.
    for (n_ids, _), same in groupby(sorted(range(len(places)), key=shape, reverse=True), shape):
        group, size = list(same), max(1, batch_tokens // (n_ids + len(head)))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    found = [np.zeros(0)] * len(places)
    for batch in watch(batches):
        pieces = [documents[at][start:end] for at, start, end, _ in (places[i] for i in batch)]
        ids = torch.from_numpy(np.stack([np.concatenate([head, piece]) for piece in pieces]))
        nats = nll(ids, places[batch[0]].n_scored).double().numpy()
        for i, row in zip(batch, nats, strict=True):
            found[i] = row
    return found


def by_window(found: Sequence[Floats]) -> Scores:
    """The loss of each window.

    Raises:
        UserError: a loss is not finite.
    """
    return Scores(np.array([nats.sum() for nats in found]), np.array([len(n) for n in found]))


def by_position(found: Sequence[Floats], edges: Sequence[int]) -> Scores:
    """The loss of each bucket of positions, where each document has one window.

    A token's position is the number of ids before it, BOS included. Bucket i holds the positions
    [edges[i], edges[i + 1]); tokens before the first edge are left out.

    Raises:
        UserError: a loss is not finite.
    """
    positions = np.concatenate([np.arange(1, len(nats) + 1) for nats in found])
    nats, _ = np.histogram(positions, edges, weights=np.concatenate(found))
    return Scores(nats, np.histogram(positions, edges)[0])


def with_full_memory(found: Sequence[Floats], *, size: int, local_context: int) -> list[Floats]:
    """Of the losses of whole documents, those of tokens with a memory of `size` tokens or more.

    What a local context sees in memory are the documents' ids before it, so all its tokens have it
    or none.
    """
    first = -(-size // local_context) * local_context
    return [nats[first:] for nats in found]


def model_nll(model: Any, *, chunk: int = 2048) -> Nll:
    """The loss of a transformers model whose logits are its head's alone, as those of LLaMA.

    There is never a mask, nor are there logits of more than `chunk` positions; only those of
    tokens that count are computed. The log-softmax is float32.
    """

    def states(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        yield model.base_model(input_ids=tokens, use_cache=False).last_hidden_state

    return _nll(model, states, chunk)


def memory_nll(model: Any, *, chunk: int = 2048) -> Nll:
    """The loss of a model with memory, which reads each row as a text of its own from the start.

    Local contexts follow each other without overlap; nothing is kept of earlier ones but memory.
    """
    return _nll(model, lambda tokens: windows(model, tokens, new_cache(model)), chunk)


def _nll(model: Any, states: Callable[[torch.Tensor], Iterator[torch.Tensor]], chunk: int) -> Nll:
    """The loss by hidden states, which come in pieces [B, t, hidden] that follow each other."""
    head = model.get_output_embeddings()

    @torch.inference_mode()
    def nll(tokens: torch.Tensor, n_scored: int) -> torch.Tensor:
        tokens = tokens.to(model.device)
        first, last = tokens.shape[1] - n_scored - 1, tokens.shape[1] - 1
        nats, start = list[torch.Tensor](), 0
        for piece in states(tokens):
            low, high = max(start, first), min(start + piece.shape[1], last)
            before = piece[:, max(0, low - start) : max(0, high - start)].flatten(0, 1).split(chunk)
            after = tokens[:, low + 1 : high + 1].flatten().split(chunk)
            found = [
                functional.cross_entropy(head(h).float(), ids, reduction="none")
                for h, ids in zip(before, after, strict=True)
            ]
            nats.append(torch.cat(found).view(len(tokens), -1))
            start += piece.shape[1]
        return torch.cat(nats, dim=1).cpu()

    return nll
