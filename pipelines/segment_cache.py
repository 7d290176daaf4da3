"""Text -> ids for SentencePiece BPE models with byte fallback, exact and fast.

BPE joins neighbours only into a piece of the vocabulary. So where no piece holds the two
characters around a place in the text, a cut there changes no id. The text is cut at all such
places. The short segments that come out repeat so often that a table of those already encoded
answers almost all; the others are merged here, and the rare long ones by sentencepiece.

This module alone imports numba. Its kernels share these names: data = UTF-8 of all texts;
cuts = where the segments of one text start; group = keys and home slots of the next segments;
table, values = the same memory as 64-bit and as 32-bit numbers.
"""
# pyright: basic, reportCallIssue=false

import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from pipelines.sentencepiece_model import (
    NO_DUMMY_PREFIX,
    SPACE,
    Pieces,
    longest_match,
    supported_vocabulary,
)

LONGEST_MERGED = 256  # bytes; merging here costs the square of the length
GROUP = 32  # segments whose slots are fetched from memory together

# A slot is one cache line: a key of 32 bytes (the segment and its length), the number of ids,
# and the ids. Keys are compared whole, so no segment is ever taken for another.
KEY_BYTES = 31
MAX_IDS = 7
WAYS = 4  # neighbouring slots in which a segment may lie

NO_MERGE = np.int64(1 << 62)
MIX = np.uint64(0x9E3779B97F4A7C15)
MIXES = np.array([MIX, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64)
_FIRST_BYTES = [(1 << 8 * n) - 1 for n in range(9)]
MASKS = np.array(
    [[_FIRST_BYTES[min(max(n - at, 0), 8)] for at in (0, 8, 16, 24)] for n in range(KEY_BYTES + 1)],
    np.uint64,
)


class SegmentCacheEngine:
    """Encodes as sentencepiece does, without BOS and EOS; no string in a text is special.

    Memory is bounded: 64 bytes per slot, some MB for the model, and per call about five bytes
    per byte of text (at worst 14). Threads may share an engine, but take turns.

    Args:
        model: a serialized sentencepiece model (the bytes of `tokenizer.model`).
        slots: segments that the table holds, rounded up to a power of two. Changes no id.

    Raises:
        UnsupportedModel: what it is about the model.
    """

    def __init__(self, model: bytes, *, slots: int = 1 << 19) -> None:
        self._reference = sentencepiece.SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX)
        byte_ids = [self._reference.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        scratch = np.zeros((2, LONGEST_MERGED), np.int64)
        self._cuttable, merges, user_defined, self._prefix = _model_tables(model)
        self._own = {piece: id for piece, (id, _) in user_defined.items()}
        self._own_pattern = longest_match(user_defined) if user_defined else None
        self._merging = (merges, np.array(byte_ids), scratch)
        self._table = np.zeros(((1 << (slots - 1).bit_length()) + WAYS, 8), np.uint64)
        self._group = np.zeros((GROUP, 6), np.uint64)
        self._lock = threading.Lock()

    def encode(
        self, texts: Sequence[str], *, inside: bool = False
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Return the ids of all texts in one array, and where each text's ids start and end.

        Text i became `ids[offsets[i] : offsets[i + 1]]`. Pass megabytes of text at a time:
        a call costs some 30 microseconds before the first byte. Texts that stand `inside` a
        document have other text before them, and so no dummy prefix.

        Raises:
            UnicodeEncodeError: a text holds half a surrogate pair, which has no UTF-8.
        """
        prefix = " " if self._prefix and not inside else ""
        plain = (prefix + text.replace(SPACE, " ") if text else "" for text in texts)
        if self._own_pattern is None:
            return self._encode_plain([text.encode() for text in plain])
        return self._encode_between([*plain], self._own_pattern)

    def _encode_between(
        self, texts: Sequence[str], pattern: re.Pattern[str]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Encode what lies between user-defined pieces, and put their ids in.

        sentencepiece takes the longest that begins at a place before it merges anything, and
        merges nothing with it.
        """
        divided = [pattern.split(text) for text in texts]  # between, piece, between, …
        between = [part.encode() for parts in divided for part in parts[::2]]
        ids, offsets = self._encode_plain(between)
        firsts = np.cumsum([0, *(len(parts) // 2 + 1 for parts in divided)])
        followed = np.ones(len(between), np.bool_)
        followed[firsts[1:] - 1] = False
        own = [self._own[piece] for parts in divided for piece in parts[1::2]]
        found = np.insert(ids, offsets[1:][followed], np.array(own, np.uint32))
        return found, offsets[firsts] + firsts - np.arange(len(firsts))

    def _encode_plain(
        self, encoded: Sequence[bytes]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        ends = np.cumsum([0, *map(len, encoded)])
        # The zeros let _load8 read on.
        data = np.frombuffer(b"".join([*encoded, bytes(33)]), np.uint8)
        with self._lock:
            return self._encode(data, ends)

    def _encode(
        self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        ids = np.empty(len(data), np.uint32)  # no byte gives more than one id
        offsets = np.zeros(len(ends), np.int64)
        cuts = np.empty(np.diff(ends).max(initial=0) + 1, np.int64)
        state = np.zeros(4, np.int64)  # text, its next segment, its segments, ids so far
        model = (self._cuttable, self._merging)
        tables = (self._table, self._table.view(np.uint32), self._group)
        while _encode_texts(data, ends, *model, tables, cuts, ids, offsets, state):
            _, segment, _, count = state
            text = data[cuts[segment - 1] : cuts[segment]].tobytes().decode()
            long_ids = self._reference.encode(text, return_type="numpy")
            ids[count : count + len(long_ids)] = long_ids
            state[3] += len(long_ids)
        ids.resize(state[3], refcheck=False)
        return ids, offsets


@lru_cache(maxsize=2)
def _model_tables(
    model: bytes,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], Pieces, bool]:
    """What engines of one model share, and only read: where to cut, what merges, and the rest."""
    normal, user_defined, dummy_prefix = supported_vocabulary(model)
    return _cuttable_bytes(normal), _merge_table(normal), user_defined, dummy_prefix


def _cuttable_bytes(normal: Pieces) -> npt.NDArray[np.uint8]:
    """Return 1 at 256 * x + y where a cut between byte x and byte y changes no id.

    Seeing of two characters the last byte of the first and the first of the second, it
    allows fewer cuts than the characters themselves would, never more.
    """
    cuttable = np.ones((256, 256), np.uint8)
    cuttable[:, 0x80:0xC0] = 0  # inside a character
    for x, y in {piece[i : i + 2] for piece in normal for i in range(len(piece) - 1)}:
        cuttable[x.encode()[-1], y.encode()[0]] = 0
    return cuttable.ravel()


def _merge_table(normal: Pieces) -> npt.NDArray[np.int64]:
    """Return an open-addressing table of keys and values, [size, 2]; no key is -1.

    A character's UTF-8 as a number -> its id. (left id + 1) << 32 | right id -> rank << 32
    | id of the two merged; the lowest rank merges first, equal scores have equal ranks.
    """
    scores = sorted({score for _, score in normal.values()}, reverse=True)
    ranks = {score: rank for rank, score in enumerate(scores)}
    entries: dict[int, int] = {}
    for piece, (id, score) in normal.items():
        if len(piece) == 1:
            entries[int.from_bytes(piece.encode(), "little")] = id
        for i in range(1, len(piece)):
            if (left := normal.get(piece[:i])) and (right := normal.get(piece[i:])):
                entries[left[0] + 1 << 32 | right[0]] = ranks[score] << 32 | id
    table = [(-1, 0)] * (1 << (2 * len(entries)).bit_length())
    for key, value in entries.items():
        slot = (key * int(MIX) >> 20) % len(table)
        while table[slot][0] != -1:
            slot = (slot + 1) % len(table)
        table[slot] = (key, value)
    return np.array(table, np.int64)


@intrinsic
def _load8(_context: Any, data: Any, index: Any) -> Any:
    """Read eight bytes, at any index, as one little-endian number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.gep(array.data, [args[1]])
        return builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, index), codegen


@njit(cache=True, nogil=True)
def _find(merges, key):
    """Return the value of `key`, or NO_MERGE."""
    last = len(merges) - 1
    slot = np.int64(np.uint64(key) * MIX >> np.uint64(20)) & last
    while merges[slot, 0] != key:
        if merges[slot, 0] == -1:
            return NO_MERGE
        slot = (slot + 1) & last
    return merges[slot, 1]


@njit(cache=True, nogil=True)
def _split(data, start, stop, merges, byte_ids, symbols):
    """Write the id of each character, or of its bytes where it is no piece; return how many."""
    n = 0
    while start < stop:
        lead = data[start]
        size = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
        id = _find(merges, np.int64(_load8(data, start)) & ((1 << 8 * size) - 1))
        if id != NO_MERGE:
            symbols[n] = id
            n += 1
        else:
            for i in range(start, start + size):
                symbols[n] = byte_ids[data[i]]
                n += 1
        start += size
    return n


@njit(cache=True, nogil=True)
def _merge(data, start, stop, merging, ids, count):
    """Append the ids of a segment: merge the best pair, the leftmost of equals, and again."""
    merges, byte_ids, (symbols, found) = merging
    n = _split(data, start, stop, merges, byte_ids, symbols)
    for i in range(n - 1):
        found[i] = _find(merges, (symbols[i] + 1) << 32 | symbols[i + 1])
    while n > 1:
        best = 0
        for i in range(1, n - 1):
            if found[i] >> 32 < found[best] >> 32:
                best = i
        if found[best] == NO_MERGE:
            break
        symbols[best] = found[best] & 0xFFFFFFFF
        n -= 1
        for i in range(best + 1, n):
            symbols[i], found[i - 1] = symbols[i + 1], found[i]
        for i in range(max(best - 1, 0), min(best + 1, n - 1)):
            found[i] = _find(merges, (symbols[i] + 1) << 32 | symbols[i + 1])
    for i in range(n):
        ids[count + i] = symbols[i]
    return count + n


@njit(cache=True, nogil=True)
def _cut(data, start, end, cuttable, cuts):
    """Write where the segments of a text start, then where it ends; return how many there are."""
    cuts[0], n = start, np.uint64(1)
    pair = np.uint64(data[start])
    for i in range(np.uint64(start + 1), np.uint64(end)):
        pair = (pair << np.uint64(8) | np.uint64(data[i])) & np.uint64(0xFFFF)
        cuts[n] = i  # no branch: where segments end is too irregular to predict
        n += np.uint64(cuttable[pair])
    cuts[n] = end
    return np.int64(n)


@njit(cache=True, nogil=True)
def _hash_group(data, cuts, first, n, table, group):
    """Write key and home slot of up to n segments; return how many come before a long one."""
    touched = np.uint64(0)
    for j in range(n):
        start, stop = cuts[first + j], cuts[first + j + 1]
        if stop - start > LONGEST_MERGED:
            return j
        size = np.uint64(min(stop - start, KEY_BYTES))
        k0 = _load8(data, start) & MASKS[size, 0]
        k1 = _load8(data, start + 8) & MASKS[size, 1]
        k2 = _load8(data, start + 16) & MASKS[size, 2]
        k3 = _load8(data, start + 24) & MASKS[size, 3] | size << np.uint64(56)
        group[j, 0], group[j, 1], group[j, 2], group[j, 3] = k0, k1, k2, k3
        home = k0 * MIXES[0] + k1 * MIXES[1] + k2 * MIXES[2] + k3 * MIXES[3]
        group[j, 4] = (home >> np.uint64(24)) & np.uint64(len(table) - WAYS - 1)
        touched |= table[group[j, 4], 3]
    group[0, 5] = touched  # so that the compiler keeps the reads, which overlap here
    return n


@njit(cache=True, nogil=True, forceinline=True)
def _slot_of(group, j, table):
    """Return the slot that holds segment j and True, or one that may hold it and False."""
    home = group[j, 4]
    for slot in range(home, home + np.uint64(WAYS)):
        differs = table[slot, 0] ^ group[j, 0] | table[slot, 1] ^ group[j, 1]
        differs |= table[slot, 2] ^ group[j, 2] | table[slot, 3] ^ group[j, 3]
        if differs == 0:  # one branch for all four
            return slot, True
        if table[slot, 3] == 0:
            return slot, False
    return home + (group[j, 0] * MIX >> np.uint64(62)), False


@njit(cache=True, nogil=True)
def _remember(group, j, table, values, slot, ids, start, end):
    if end - start <= MAX_IDS:
        for k in range(4):
            table[slot, k] = group[j, k]
        values[slot, 8] = end - start
        for i in range(end - start):
            values[slot, 9 + i] = ids[start + i]


@njit(cache=True, nogil=True)
def _emit_group(data, cuts, first, n, merging, tables, ids, count):
    """Append the ids of n segments, from the table or merged now; return how many ids there are."""
    table, values, group = tables
    for j in range(n):
        start, stop = cuts[first + j], cuts[first + j + 1]
        if stop - start > KEY_BYTES:
            count = _merge(data, start, stop, merging, ids, count)
            continue
        slot, held = _slot_of(group, j, table)
        if not held:
            end = _merge(data, start, stop, merging, ids, count)
            _remember(group, j, table, values, slot, ids, count, end)
            count = end
            continue
        ids[count] = values[slot, 9]
        for i in range(1, values[slot, 8]):
            ids[count + i] = values[slot, 9 + i]
        count += values[slot, 8]
    return count


@njit(cache=True, nogil=True)
def _encode_segments(data, cuts, segment, segments, merging, tables, ids, count):
    """Append the ids of segments up to a long one; return which that is, and the count."""
    while segment < segments:
        n = min(GROUP, segments - segment)
        n = _hash_group(data, cuts, segment, n, tables[0], tables[2])
        if n == 0:
            break
        count = _emit_group(data, cuts, segment, n, merging, tables, ids, count)
        segment += n
    return segment, count


@njit(cache=True, nogil=True)
def _encode_texts(data, ends, cuttable, merging, tables, cuts, ids, offsets, state):
    """Encode from `state` on; return True in front of a long segment, False when all is done."""
    text, segment, segments, count = state
    while True:
        segment, count = _encode_segments(
            data, cuts, segment, segments, merging, tables, ids, count
        )
        if segment < segments:
            state[0], state[1], state[2], state[3] = text, segment + 1, segments, count
            return True
        offsets[text] = count
        if text == len(ends) - 1:
            state[3] = count
            return False
        if ends[text + 1] > ends[text]:
            segments = _cut(data, ends[text], ends[text + 1], cuttable, cuts)
            segment = 0
        text += 1
