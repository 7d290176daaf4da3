"""XXH3 (64 bits, seed 0) of the rows of an array, in numpy alone where `xxhash` is missing.

A GPU machine that reads shards needs no hashing package this way. The algorithm is the long-input
branch of XXH3 (Yann Collet, xxHash specification 0.2.0, "XXH3 algorithm for long inputs"); it
holds for messages of more than 240 bytes: sequences of at least 121 tokens. Shorter ones, which
only tests make, need `xxhash`.
"""

from typing import Any, cast

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

SHORTEST = 241
"""Bytes of the shortest message that this branch of the algorithm is defined for."""

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5)  # fmt: skip
_MASK = (1 << 64) - 1
_STRIPE, _BLOCK = 64, 1024
_PART_BYTES = 1 << 21  # temporaries stay in the processor's cache


def _secret(offset: int) -> UInt64:
    return np.frombuffer(_SECRET, "<u8", 8, offset)


def hash_rows(messages: npt.NDArray[Any]) -> UInt64:
    """XXH3 of each row's bytes, by the package `xxhash` (20 GB/s) or else by `xxh3_64`."""
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError:
        return xxh3_64(messages)
    return np.array([xxh3_64_intdigest(row) for row in np.ascontiguousarray(messages)], np.uint64)


def xxh3_64(messages: npt.NDArray[Any]) -> UInt64:
    """Hash each row with numpy alone (0.3 GB/s).

    Args:
        messages: [N, M] of any integer type, contiguous; rows of more than 240 bytes.

    Returns:
        [N] uint64, equal to `xxhash.xxh3_64_intdigest` of each row's bytes.

    Raises:
        ValueError: rows are too short.
    """
    data = np.ascontiguousarray(messages).view(np.uint8)
    n, size = data.shape
    if size < SHORTEST:
        raise ValueError(
            f"sequences of {size} bytes: without the package `xxhash` only those of at least "
            f"{SHORTEST} can be hashed; install it"
        )
    per_part = max(1, _PART_BYTES // size)
    parts = [_lanes(data[i : i + per_part]) for i in range(0, n, per_part)]
    return np.array([_merge(lane, size) for part in parts for lane in part.tolist()], np.uint64)


def _lanes(data: npt.NDArray[np.uint8]) -> UInt64:
    """The eight accumulators of each row after all input: [N, 8]."""
    n, size = data.shape
    start = np.array([_P32[2], *_P64[:4], _P32[1], _P64[4], _P32[0]], np.uint64)
    n_blocks = (size - 1) // _BLOCK
    body, rest = data[:, : n_blocks * _BLOCK], data[:, n_blocks * _BLOCK :]
    acc = np.tile(start, (n, 1))
    added = _mix(body.reshape(n, n_blocks, _BLOCK)) if n_blocks else None
    for block in range(n_blocks):
        acc = _scramble(acc + cast(UInt64, added)[:, block])
    if n_stripes := (rest.shape[1] - 1) // _STRIPE:
        acc = acc + _mix(rest[:, None, : n_stripes * _STRIPE])[:, 0]
    last = np.ascontiguousarray(data[:, size - _STRIPE :]).view("<u8")
    return acc + _accumulate(last, _secret(len(_SECRET) - _STRIPE - 7))


def _mix(blocks: npt.NDArray[np.uint8]) -> UInt64:
    """What the stripes of each block [N, B, 64 * S] add to its accumulators [N, B, 8]."""
    n_stripes = blocks.shape[2] // _STRIPE
    stripes = np.ascontiguousarray(blocks).view("<u8").reshape(*blocks.shape[:2], n_stripes, 8)
    secrets = np.stack([_secret(8 * i) for i in range(n_stripes)])
    return cast(UInt64, _accumulate(stripes, secrets).sum(axis=2, dtype=np.uint64))


def _accumulate(value: UInt64, secret: UInt64) -> UInt64:
    keyed = value ^ secret
    product = keyed & np.uint64(0xFFFFFFFF)
    keyed >>= np.uint64(32)
    product *= keyed
    pairs = product.reshape(*product.shape[:-1], 4, 2)
    pairs += value.reshape(pairs.shape)[..., ::-1]  # each lane gets its neighbour's input
    return product


def _scramble(acc: UInt64) -> UInt64:
    return (acc ^ (acc >> np.uint64(47)) ^ _secret(len(_SECRET) - _STRIPE)) * np.uint64(_P32[0])


def _merge(lanes: list[int], size: int) -> int:
    secret = np.frombuffer(_SECRET, "<u8", 8, 11).tolist()
    total = (size * _P64[0]) & _MASK
    for i in range(0, 8, 2):
        product = (lanes[i] ^ secret[i]) * (lanes[i + 1] ^ secret[i + 1])
        total += (product & _MASK) ^ (product >> 64)
    total &= _MASK
    total ^= total >> 37
    total = (total * 0x165667919E3779F9) & _MASK
    return total ^ (total >> 32)
