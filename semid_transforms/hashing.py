"""Stable hashes of item ids: shard keys and tie-breakers that never depend on order of arrival."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash


def item_hashes(item_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hashes a string column without nulls.

    BLAKE2b cut to 8 bytes: the same on every machine and Python version, unlike `hash()`.

    Returns:
      (N,) uint64.
    """
    contents = item_ids.cast(pa.binary()).to_numpy(zero_copy_only=False).tolist()
    return blake2b_digests(contents, 8).view(">u8").reshape(-1).astype(np.uint64)


def blake2b_digests(
    contents: Iterable[bytes | memoryview], size: int, person: bytes = b""
) -> np.ndarray:
    """Returns the (N, size) uint8 BLAKE2b digests of N contents, personalised."""
    # A copy of a fresh state takes half as long as a new one.
    fresh = hashlib.blake2b(digest_size=size, person=person).copy
    digests = []
    for content in contents:
        digest = fresh()
        digest.update(content)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, size)


def xxh3_digests(rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns the (N, 16) uint8 XXH3-128 digests of the little-endian bytes of (N, D) numbers."""
    rows = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    digests = [xxhash.xxh3_128_digest(row, seed) for row in rows]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def hash_shards(hashes: np.ndarray, num_shards: int) -> np.ndarray:
    """Maps (N,) uint64 hashes to (N,) int64 shards of equal hash ranges, in hash order."""
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, got {num_shards}")
    high = hashes >> np.uint64(32)  # 32 bits times a shard count stays inside 64 bits
    return ((high * np.uint64(num_shards)) >> np.uint64(32)).astype(np.int64)


def content_shards(content_hashes: np.ndarray, num_shards: int) -> np.ndarray:
    """Maps (N, 16) content-hash bytes to (N,) int64 shards of equal ranges, in hash order."""
    leading = np.ascontiguousarray(content_hashes[:, :8]).view(">u8").reshape(-1)
    return hash_shards(leading.astype(np.uint64), num_shards)
