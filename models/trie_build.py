"""Builds, joins and extends prefix tries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from models.sid import SidLayout, format_codes
from models.trie import Trie

# SIDs handled at once while merging; 4M uint64 are 32 MB.
CHUNK_SIDS = 1 << 22


def build_trie(chunks: Iterable[np.ndarray], layout: SidLayout, allow_shared: bool = False) -> Trie:
    """Builds a trie from sorted packed SIDs.

    Args:
      chunks: arrays of packed SIDs, ascending within and across chunks, row order of the items
        table. Memory is that of one chunk and twice the trie.
      layout: of the SIDs.
      allow_shared: accept repeated SIDs (collision policy `none`).

    Raises:
      ValueError: SIDs are not ascending, or repeat without `allow_shared`; the message names the
        row and the SID.
    """
    trie = join_tries((_build_one(chunk, layout, allow_shared) for chunk in chunks), layout)
    if not allow_shared and trie.row_start is not None:
        leaf = int(np.argmax(np.diff(trie.row_start.astype(np.int64)) > 1))
        raise _repeated(int(trie.row_start[leaf]) + 1, trie.leaf_sids(leaf, leaf + 1), layout)
    return trie


def join_tries(tries: Iterable[Trie], layout: SidLayout) -> Trie:
    """Joins tries over adjoining SID ranges, such as those that shards built alone.

    Neighbours may share prefixes. If they share a whole SID the result has `row_start`.

    Raises:
      ValueError: a trie starts before the previous one ends.
    """
    parts = [trie for trie in tries if trie.num_rows]
    if len(parts) <= 1:
        return parts[0] if parts else _build_one(np.empty(0, layout.dtype), layout, False)
    depth = max(trie.depth for trie in parts)
    parts = [trie if trie.depth == depth else _with_suffix_level(trie) for trie in parts]
    common = _common_lengths(parts, layout)
    tokens = tuple(
        np.concatenate(
            [
                trie.tokens[level][int(same > level) :]
                for trie, same in zip(parts, common, strict=True)
            ]
        )
        for level in range(depth)
    )
    starts = [
        _join_starts([trie.child_start[level] for trie in parts], common, level)
        for level in range(depth - 1)
    ]
    row_start = None
    if max(common) == depth or any(trie.row_start is not None for trie in parts):
        rows = [np.arange(t.num_leaves + 1) if t.row_start is None else t.row_start for t in parts]
        row_start = _join_starts(rows, common, depth - 1)
    return Trie(layout, tokens, tuple(starts), row_start)


def merge_sids(trie: Trie, sids: np.ndarray, allow_shared: bool = False) -> Trie:
    """Adds new SIDs to a trie, keeping leaf i the i-th SID in order.

    Args:
      trie: stays as it is.
      sids: (M,) packed SIDs in any order; each is one more row.
      allow_shared: see `build_trie`.
    """
    return build_trie(
        _merged(trie, np.sort(np.asarray(sids, trie.layout.dtype))), trie.layout, allow_shared
    )


def _merged(trie: Trie, added: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the SIDs of all rows, old and new, ascending, in chunks of about `CHUNK_SIDS`."""
    for first in range(0, trie.num_leaves, CHUNK_SIDS):
        stop = min(trie.num_leaves, first + CHUNK_SIDS)
        begin, end = trie.leaf_rows(np.arange(first, stop))
        old = np.repeat(trie.leaf_sids(first, stop), end - begin)
        take = len(added) if stop == trie.num_leaves else np.searchsorted(added, old[-1], "right")
        yield np.sort(np.concatenate([old, added[:take]]), kind="stable")
        added = added[take:]
    yield added


def _build_one(sids: np.ndarray, layout: SidLayout, allow_shared: bool) -> Trie:
    """Builds the trie of one chunk."""
    packed = np.asarray(sids).astype(np.uint64, copy=False)
    step = packed[1:] ^ packed[:-1]
    if (packed[1:] < packed[:-1]).any():
        row = int(np.argmax(packed[1:] < packed[:-1])) + 1
        raise ValueError(f"SIDs must ascend: row {row} has {packed[row]} after {packed[row - 1]}")
    if not allow_shared and not step.all():
        row = int(np.argmin(step != 0)) + 1
        raise _repeated(row, packed[row : row + 1], layout)
    shifts = [layout.shift(length) for length in range(1, layout.num_levels + 1)]
    sizes = list(layout.codebook_sizes)
    if layout.suffix_bits and (packed & np.uint64(layout.max_suffix)).any():
        shifts.append(0)
        sizes.append(layout.max_suffix + 1)
    # A node begins where anything at or above its level changes: the difference in any of its
    # bits makes the exclusive or at least 2**shift.
    opens = [np.append(True, step >= np.uint64(1 << shift))[: len(packed)] for shift in shifts]
    firsts = [np.flatnonzero(begin) for begin in opens]
    tokens, above = [], layout.bits
    for first, shift, size in zip(firsts, shifts, sizes, strict=True):
        mask = np.uint64((1 << (above - shift)) - 1)
        tokens.append(((packed[first] >> np.uint64(shift)) & mask).astype(_token_dtype(size)))
        above = shift
    starts = tuple(
        _offsets(np.flatnonzero(opens[level][firsts[level + 1]]), len(firsts[level + 1]))
        for level in range(len(shifts) - 1)
    )
    rows = None if len(firsts[-1]) == len(packed) else _offsets(firsts[-1], len(packed))
    return Trie(layout, tuple(tokens), starts, rows)


def _repeated(row: int, sid: np.ndarray, layout: SidLayout) -> ValueError:
    codes, suffix = layout.unpack(sid)
    return ValueError(
        f"row {row} repeats SID {sid[0]} ({format_codes(codes[0], int(suffix[0]))}); only "
        f"collision policy none may share IDs"
    )


def _with_suffix_level(trie: Trie) -> Trie:
    """Adds a suffix level that holds one 0 below every leaf."""
    zeros = np.zeros(trie.num_leaves, _token_dtype(trie.layout.max_suffix + 1))
    below = _offsets(np.arange(trie.num_leaves), trie.num_leaves)
    return Trie(trie.layout, (*trie.tokens, zeros), (*trie.child_start, below), trie.row_start)


def _common_lengths(parts: Sequence[Trie], layout: SidLayout) -> list[int]:
    """Returns how many leading tokens each part's first SID shares with the SID before it."""
    common = [0]
    for number in range(1, len(parts)):
        before = tuple(int(tokens[-1]) for tokens in parts[number - 1].tokens)
        after = tuple(int(tokens[0]) for tokens in parts[number].tokens)
        if after < before:
            raise ValueError(
                f"chunk {number} starts at {format_codes(after[: layout.num_levels])}, before the "
                f"end of the previous one, {format_codes(before[: layout.num_levels])}"
            )
        same = [old == new for old, new in zip(before, after, strict=True)]
        common.append(same.index(False) if False in same else len(same))
    return common


def _join_starts(starts: Sequence[np.ndarray], common: Sequence[int], level: int) -> np.ndarray:
    """Joins the offsets of one level; a node continued from the part before is dropped."""
    pieces, total = [], 0
    for start, same in zip(starts, common, strict=True):
        begin = total - int(same > level + 1)
        pieces.append(start[int(same > level) : -1].astype(np.int64) + begin)
        total = begin + int(start[-1])
    return _offsets(np.concatenate(pieces), total)


def _offsets(starts: np.ndarray, end: int) -> np.ndarray:
    """Appends the closing entry and picks the smaller type that holds it."""
    dtype = np.uint32 if end < 1 << 32 else np.uint64
    closed = np.empty(len(starts) + 1, dtype)
    closed[:-1] = starts
    closed[-1] = end
    return closed


def _token_dtype(size: int) -> np.dtype:
    return np.dtype(np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.uint32)
