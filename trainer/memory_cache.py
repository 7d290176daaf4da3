"""Memory of texts that are being read: keys and values of the running window and of all before it.

Layers without memory keep the running window only. A memory layer keeps one buffer of memory and,
behind it, the running window, so that attention reads both as they lie; the window's rotated keys
give way to raw ones when it is moved to memory. Memory has no order, so where `mem_limit` drops the
oldest tokens, new ones take their places.

Shapes: B texts, T tokens that are read, L of a window, H heads, K key/value heads, D of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from pipelines.errors import UserError
from trainer.memory_attention import KeySearch, attend_all, attend_best
from trainer.memory_settings import MemorySettings


class LocalWindow:
    """Keys and values of one layer's running window: [B, K, L, D]."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._kv: tuple[Tensor, Tensor] | None = None

    def add(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write those of T tokens from a place on; gives those of the window so far."""
        if self._kv is None:
            self._kv = (_room(k, self._length), _room(v, self._length))
        end = start + k.shape[2]
        for kept, new in zip(self._kv, (k, v), strict=True):
            kept[:, :, start:end] = new
        return self._kv[0][:, :, :end], self._kv[1][:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Let each text go on from another's."""
        if self._kv is not None:
            self._kv = (_rows(self._kv[0], rows), _rows(self._kv[1], rows))


class MemoryLayer:
    """Keys and values of one memory layer: memory first, behind it the running window."""

    def __init__(self, settings: MemorySettings) -> None:
        self._settings = settings
        self._dtype: torch.dtype = getattr(torch, settings.mem_dtype)
        self._search = None if settings.mem_top_k is None else KeySearch()
        self._kv: list[Tensor] = []  # of memory [B, K, capacity, D], D as kernels want it
        self._apart: list[Tensor] = []  # [B, K, L, D] the running window, where its type differs
        self._raw: Tensor | None = None  # [B, K, L, D] keys of the running window, not rotated
        self._size = self._moved = self._used = 0
        self.expected = 0
        """Tokens that will have been read soon: room for them is made at once."""

    def attend(
        self, q: Tensor, local_k: Tensor, raw_k: Tensor, v: Tensor, scale: float, start: int
    ) -> Tensor:
        """As `Lookup.attend`, of tokens that stand in the running window from `start` on."""
        width = q.shape[3]
        self._add(*(_padded(x, self._width(width)) for x in (local_k, raw_k, v)), start=start)
        q = _padded(q, self._width(width))
        grouping, top = self._settings.mem_attention_grouping, self._settings.mem_top_k
        if self._search is None or top is None or not self._size:
            out = attend_all(q, self._seen, kv_heads=v.shape[1], scale=scale, grouping=grouping)
        else:
            memory = [x[:, :, : self._size] for x in self._kv]
            window = [x[:, :, : self._used] for x in self._window()]
            out = attend_best(
                q, memory, window, self._search, count=top, scale=scale, grouping=grouping
            )
        return out[..., :width]

    def close(self) -> None:
        """Move the running window to memory; the next one begins."""
        limit = self._settings.mem_limit
        count = self._used if limit is None else min(self._used, limit)
        new, self._used = slice(self._used - count, self._used), 0
        if self._raw is None or not count:
            return
        raw = self._raw[:, :, new]
        v = self._window()[1][:, :, new].to(self._dtype, copy=True)  # may lie where it goes
        places = torch.arange(self._moved, self._moved + count, device=raw.device)
        places = places if limit is None else places % limit  # of the oldest, once it is full
        for kept, part in zip(self._kv, (raw, v), strict=True):
            kept.index_copy_(2, places, part)
        if self._search is not None:
            self._search.add(raw)
        self._moved += count
        self._size = self._limited(self._moved)

    def reorder(self, rows: Tensor) -> None:
        """Let each text go on from another's."""
        self._kv, self._apart = ([_rows(x, rows) for x in kv] for kv in (self._kv, self._apart))
        self._raw = None if self._raw is None else _rows(self._raw, rows)
        if self._search is not None:
            self._search.reorder(rows.tolist())

    def _add(self, local_k: Tensor, raw_k: Tensor, v: Tensor, *, start: int) -> None:
        raw = self._make_room(v)
        self._used = start + v.shape[2]
        for x, new in zip((*self._window(), raw), (local_k, v, raw_k), strict=True):
            x[:, :, start : self._used] = new

    def _make_room(self, like: Tensor) -> Tensor:
        """Let the buffers hold memory and a window; gives `_raw`."""
        length = self._settings.local_context
        if self._raw is None:
            self._raw = _room(like, length, dtype=self._dtype)
            self._kv = [_room(like, 0, dtype=self._dtype) for _ in "kv"]
            if like.dtype != self._dtype:
                self._apart = [_room(like, length) for _ in "kv"]
        capacity = self._kv[0].shape[2]
        if self._size + length <= capacity:
            return self._raw
        room = max(self._size, capacity + capacity // 8 - length, self.expected)
        for n in range(len(self._kv)):  # one after the other: the old one is freed in between
            larger = _room(self._kv[n], self._limited(room) + length)
            larger[:, :, : self._size] = self._kv[n][:, :, : self._size]
            self._kv[n] = larger
        return self._raw

    def _limited(self, tokens: int) -> int:
        limit = self._settings.mem_limit
        return tokens if limit is None else min(tokens, limit)

    def _window(self) -> list[Tensor]:
        """Keys and values [B, K, L, D] of the running window, to be read and written."""
        if self._apart:
            return self._apart
        end = self._size + self._settings.local_context
        return [x[:, :, self._size : end] for x in self._kv]

    def _seen(self, heads: slice) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, N, D] of memory and of the running window."""
        if not self._apart:
            k, v = (x[:, heads, : self._size + self._used] for x in self._kv)
            return k, v
        both = zip(self._kv, self._apart, strict=True)
        k, v = (
            torch.cat([x[:, heads, : self._size].to(y.dtype), y[:, heads, : self._used]], dim=2)
            for x, y in both
        )
        return k, v

    @staticmethod
    def _width(size: int) -> int:
        # Flash attention takes multiples of 8, and torch would copy all of memory to pad it.
        return -(-size // 8) * 8


class MemoryCache(Cache):
    """Memory of a batch of texts of one length each, for `past_key_values`.

    Takes its place on the first tokens it is given. Grows with the text by
    2 * K * D numbers of `mem_dtype` a token and memory layer, D as a multiple of 8.
    """

    def __init__(self, layers: int, settings: MemorySettings) -> None:
        super().__init__(layers=[])
        self._count = layers
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        settings = self.settings
        self._memory = {n: MemoryLayer(settings) for n in settings.mem_layers}
        others = set(range(self._count)) - set(settings.mem_layers)
        self._local = {n: LocalWindow(settings.local_context) for n in others}
        self.texts: int | None = None
        """B, once something has been read."""
        self.read = 0
        """Tokens of each text that have been read."""
        self.running = 0
        """Those of them that the running window has."""

    def __len__(self) -> int:
        return self._count

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of each text that have been read."""
        del layer_idx
        return self.read

    def expect(self, tokens: int) -> None:
        """Make room for so many more tokens as soon as some are read."""
        for layer in self._memory.values():
            layer.expected = self.read + tokens

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **_kw: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rotated keys and values [B, K, T, D] of a layer without memory.

        Returns those of the running window so far.
        """
        return self._local[layer_idx].add(key_states, value_states, self.running)

    def attend(
        self, layer: int, q: Tensor, local_k: Tensor, raw_k: Tensor, v: Tensor, scale: float
    ) -> Tensor:
        """As `Lookup.attend`; keeps the keys and values."""
        # Not where the layer's last tokens end: an interrupted forward pass left some there.
        return self._memory[layer].attend(q, local_k, raw_k, v, scale, self.running)

    def advance(self, texts: int, tokens: int) -> None:
        """Count tokens that all layers have read."""
        self.texts, self.read, self.running = texts, self.read + tokens, self.running + tokens

    def close_window(self) -> None:
        """Move the running window to memory; the next one begins at position 0."""
        for layer in self._memory.values():
            layer.close()
        self.running = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let text i go on from what was text `beam_idx[i]`; memory is copied."""
        for layer in (*self._memory.values(), *self._local.values()):
            layer.reorder(beam_idx)
        self.texts = len(beam_idx) if self.texts is not None else None

    def batch_select_indices(self, indices: Tensor) -> None:
        """As `reorder_cache`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let several texts go on from each, for instance the answers to one prompt."""
        if self.texts is not None:
            self.reorder_cache(torch.arange(self.texts).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: the keys of moved windows are no longer rotated.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"memory cannot forget its last {abs(tokens_to_remove):,} tokens, so generation with "
            "an assistant or prompt look-up does not work; leave that out"
        )


def _room(like: Tensor, length: int, *, dtype: torch.dtype | None = None) -> Tensor:
    b, k, _, d = like.shape
    return like.new_zeros(b, k, length, d, dtype=dtype)


def _padded(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1]))


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows.to(x.device))
