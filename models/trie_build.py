"""Builds and extends prefix tries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from models.sid import SidLayout, format_codes
from models.trie import Trie, token_dtype
from models.trie_join import closed_offsets, join_tries

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


def merge_sids(
    trie: Trie, sids: np.ndarray, allow_shared: bool = False, removed: np.ndarray | None = None
) -> Trie:
    """Adds SIDs to a trie and takes others out, keeping leaf i the i-th SID in order.

    Args:
      trie: stays as it is.
      sids: (M,) packed SIDs in any order; each is one more row.
      allow_shared: see `build_trie`.
      removed: packed SIDs in any order; each is one row less.

    Raises:
      ValueError: see `build_trie`, or a removed SID has no row left to remove.
    """
    dtype = trie.layout.dtype
    gone = np.empty(0, dtype) if removed is None else np.sort(np.asarray(removed, dtype))
    chunks = _merged(trie, np.sort(np.asarray(sids, dtype)), gone)
    return build_trie(chunks, trie.layout, allow_shared)


def _merged(trie: Trie, added: np.ndarray, removed: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the SIDs of all rows, old and new, ascending, in chunks of about `CHUNK_SIDS`."""
    for first in range(0, trie.num_leaves, CHUNK_SIDS):
        stop = min(trie.num_leaves, first + CHUNK_SIDS)
        begin, end = trie.leaf_rows(np.arange(first, stop))
        old = np.repeat(trie.leaf_sids(first, stop), end - begin)
        inside = np.searchsorted(removed, old[-1], "right")
        kept = _without(old, removed[:inside], trie.layout)
        removed = removed[inside:]
        take = len(added) if stop == trie.num_leaves else np.searchsorted(added, old[-1], "right")
        yield np.sort(np.concatenate([kept, added[:take]]), kind="stable")
        added = added[take:]
    _without(np.empty(0, trie.layout.dtype), removed, trie.layout)
    yield added


def _without(ascending: np.ndarray, removed: np.ndarray, layout: SidLayout) -> np.ndarray:
    """Takes one occurrence of each of some ascending SIDs out of others."""
    if not len(removed):
        return ascending
    number = np.arange(len(removed)) - np.searchsorted(removed, removed)
    position = np.searchsorted(ascending, removed) + number
    there = position < len(ascending)
    there[there] = ascending[position[there]] == removed[there]
    if not there.all():
        sid = removed[~there][0]
        codes, suffix = layout.unpack(np.array([sid]))
        raise ValueError(
            f"SID {sid} ({format_codes(codes[0], int(suffix[0]))}) cannot be removed: the trie has "
            f"no such row left"
        )
    return np.delete(ascending, position)


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
        tokens.append(((packed[first] >> np.uint64(shift)) & mask).astype(token_dtype(size)))
        above = shift
    starts = tuple(
        closed_offsets(np.flatnonzero(opens[level][firsts[level + 1]]), len(firsts[level + 1]))
        for level in range(len(shifts) - 1)
    )
    rows = None if len(firsts[-1]) == len(packed) else closed_offsets(firsts[-1], len(packed))
    return Trie(layout, tuple(tokens), starts, rows)


def _repeated(row: int, sid: np.ndarray, layout: SidLayout) -> ValueError:
    codes, suffix = layout.unpack(sid)
    return ValueError(
        f"row {row} repeats SID {sid[0]} ({format_codes(codes[0], int(suffix[0]))}); only "
        f"collision policy none may share IDs"
    )
