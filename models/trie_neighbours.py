"""Items that share the longest prefix with a given item."""

from __future__ import annotations

import dataclasses

import numpy as np

from models.trie import Trie


@dataclasses.dataclass(frozen=True)
class PrefixNeighbours:
    """Rows near one SID, nearest first.

    Attributes:
      rows: (n,) int64 rows of the items table, the given row left out.
      shared: (n,) int64 leading tokens (codes, then suffix) each has in common with the SID.
    """

    rows: np.ndarray
    shared: np.ndarray


def prefix_neighbours(trie: Trie, row: int, limit: int, min_shared: int = 1) -> PrefixNeighbours:
    """Collects neighbours of an item by widening its prefix level by level.

    First come the items that share all codes (they differ in the suffix, or share the ID), then
    those of the next shorter prefix, and so on. Of a prefix with more items than places are left,
    those nearest in SID order are taken, the lower row first.

    Args:
      trie: the trie.
      row: of the items table.
      limit: most rows to return.
      min_shared: shortest prefix to widen to; 0 ends with the whole catalog.

    Raises:
      ValueError: there is no such row.
    """
    if not 0 <= row < trie.num_rows:
        raise ValueError(f"row must lie in 0..{trie.num_rows - 1}, got {row}")
    leaf = row
    if trie.row_start is not None:
        leaf = int(np.searchsorted(trie.row_start, row, side="right")) - 1
    codes, suffix = trie.layout.unpack(trie.leaf_sids(leaf, leaf + 1))
    tokens = [*codes[0].tolist(), int(suffix[0])][: trie.depth]
    rows, shared = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    begin, end = row, row + 1
    for length in range(trie.depth, min_shared - 1, -1):
        first, stop = trie.prefix_range(tokens[:length])
        # Beyond `limit` rows on either side nothing can be near enough.
        before = np.arange(max(first, begin - limit), begin)
        after = np.arange(end, min(stop, end + limit))
        found = np.concatenate([before, after])
        room = limit - sum(map(len, rows))
        found = found[np.lexsort((found, np.abs(found - row)))][:room]
        rows.append(found)
        shared.append(np.full(len(found), length))
        begin, end = first, stop
    return PrefixNeighbours(np.concatenate(rows), np.concatenate(shared))
