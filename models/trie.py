"""The prefix trie over published SIDs: every valid ID, what may follow a prefix, and which rows.

The trie is implicit. Level t holds its nodes in SID order: `tokens[t]` is the code that leads to
each node, and `child_start[t]` the position in level t + 1 of each node's first child, with one
closing entry, so the children of node p are positions `child_start[t][p]` to
`child_start[t][p + 1]`. A child's position is its state; there is no next-state table.

Levels are the L code levels and, when some item has a suffix, one more whose tokens are suffix
numbers. A leaf is a node of the last level. Leaf i is row i of the items table in SID order.
Only where items may share an ID (policy `none`) one leaf covers several rows, those from
`row_start[i]` to `row_start[i + 1]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from models.sid import SidLayout, format_codes


@dataclasses.dataclass(frozen=True)
class Trie:
    """An immutable prefix trie; arrays may be memory-mapped.

    Attributes:
      layout: of the SIDs.
      tokens: T arrays, (nodes of level t,) uint8, uint16 or uint32; T is L, or L + 1 with a
        suffix level.
      child_start: T - 1 arrays, (nodes of level t + 1,) uint32 or uint64.
      row_start: (leaves + 1,) uint32 or uint64 first row of each leaf, or None when leaf i is
        row i.
    """

    layout: SidLayout
    tokens: tuple[np.ndarray, ...]
    child_start: tuple[np.ndarray, ...]
    row_start: np.ndarray | None = None

    @property
    def depth(self) -> int:
        """Tokens of a whole ID: L, or L + 1 with a suffix level."""
        return len(self.tokens)

    @property
    def token_sizes(self) -> tuple[int, ...]:
        """Number of possible tokens per level: the codebook sizes, then the suffix numbers."""
        suffix = (self.layout.max_suffix + 1,) if self.depth > self.layout.num_levels else ()
        return self.layout.codebook_sizes + suffix

    @property
    def num_nodes(self) -> tuple[int, ...]:
        """Nodes per level, the root left out."""
        return tuple(len(tokens) for tokens in self.tokens)

    @property
    def num_leaves(self) -> int:
        """Number of distinct SIDs."""
        return len(self.tokens[-1])

    @property
    def num_rows(self) -> int:
        """Number of items."""
        return self.num_leaves if self.row_start is None else int(self.row_start[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        rows = 0 if self.row_start is None else self.row_start.nbytes
        return rows + sum(array.nbytes for array in (*self.tokens, *self.child_start))

    def find(self, sids: np.ndarray) -> np.ndarray:
        """Looks up packed SIDs.

        Args:
          sids: (N,) packed SIDs; any integers are allowed.

        Returns:
          (N,) int64 leaf numbers, -1 where the SID is not in the trie.
        """
        packed = np.asarray(sids).astype(np.uint64)
        # Ascending queries walk the arrays front to back, about twice as fast at 10M IDs.
        order = np.argsort(packed)
        packed = packed[order]
        known = np.ones(len(packed), bool)
        if self.layout.bits < 64:
            known &= packed >> np.uint64(self.layout.bits) == 0
        if self.depth == self.layout.num_levels:
            known &= packed & np.uint64(self.layout.max_suffix) == 0
        alive = np.flatnonzero(known)
        node = np.zeros(len(alive), np.int64)
        for level in range(self.depth):
            shift = self._shift(level + 1)
            size = np.uint64((1 << (self._shift(level) - shift)) - 1)
            wanted = (packed[alive] >> np.uint64(shift)) & size
            begin, end = self._children(level, node)
            node = _lower_bound(self.tokens[level], begin, end, wanted)
            hit = node < end
            hit[hit] = self.tokens[level][node[hit]] == wanted[hit]
            alive, node = alive[hit], node[hit]
        leaves = np.full(len(packed), -1, np.int64)
        leaves[order[alive]] = node
        return leaves

    def contains(self, sids: np.ndarray) -> np.ndarray:
        """Returns (N,) bool, which packed SIDs are in the trie."""
        return self.find(sids) >= 0

    def leaf_rows(self, leaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns first row and one past the last row, (N,) int64 each, of valid leaf numbers."""
        leaves = np.asarray(leaves, np.int64)
        if self.row_start is None:
            return leaves, leaves + 1
        return self.row_start[leaves].astype(np.int64), self.row_start[leaves + 1].astype(np.int64)

    def children(self, prefix: Sequence[int]) -> np.ndarray:
        """Returns the ascending int64 tokens that may follow a prefix; empty if it is unknown."""
        node = self._node(prefix)
        if node is None or len(prefix) == self.depth:
            return np.empty(0, np.int64)
        begin, end = self._children(len(prefix), np.array([node]))
        return self.tokens[len(prefix)][begin[0] : end[0]].astype(np.int64)

    def prefix_range(self, prefix: Sequence[int]) -> tuple[int, int]:
        """Returns the first row and one past the last row under a prefix; equal if unknown.

        Args:
          prefix: up to L codes, coarse to fine, followed by the suffix number if wanted.
        """
        node = self._node(prefix)
        if node is None:
            return 0, 0
        if not prefix:
            return 0, self.num_rows
        first = self._first_rows(len(prefix) - 1, np.array([node, node + 1]))
        return int(first[0]), int(first[1])

    def leaf_sids(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the packed SIDs of leaves `first` to `stop`, of the layout's dtype."""
        stop = self.num_leaves if stop is None else stop
        return self._prefixes(self.depth, first, stop).astype(self.layout.dtype)

    def node_table(self, depth: int, first: int = 0, stop: int | None = None) -> NodeTable:
        """Describes the nodes `first` to `stop` of one depth.

        Args:
          depth: 0, the root, to L.
          first: first node of the slice, so that large levels can be written in pieces.
          stop: one past its last node; all nodes when None.
        """
        if not 0 <= depth <= self.layout.num_levels:
            raise ValueError(f"depth must lie in 0..{self.layout.num_levels}, got {depth}")
        if depth == 0:
            none = np.zeros((1, 0), np.int32)
            return NodeTable(
                none, np.zeros(1, np.uint64), np.zeros(1, np.int64), np.array([self.num_rows])
            )
        stop = self.num_nodes[depth - 1] if stop is None else stop
        whole = self._prefixes(depth, first, stop)
        codes, _ = self.layout.unpack(whole)
        bounds = self._first_rows(depth - 1, np.arange(first, stop + 1))
        return NodeTable(
            codes[:, :depth], self.layout.prefixes(whole, depth), bounds[:-1], bounds[1:]
        )

    def node_range(self, depth: int, first: int, stop: int) -> tuple[int, int]:
        """Returns which nodes have rows `first` to `stop`, at least one row, below them.

        Returns:
          The first such node of the depth, 1 to L, and one past the last.
        """
        nodes = np.array([first, stop - 1])
        if self.row_start is not None:
            nodes = np.searchsorted(self.row_start, nodes, side="right") - 1
        for start in reversed(self.child_start[depth - 1 :]):
            nodes = np.searchsorted(start, nodes, side="right") - 1
        return int(nodes[0]), int(nodes[1]) + 1

    def _shift(self, length: int) -> int:
        return 0 if length > self.layout.num_levels else self.layout.shift(length)

    def _children(self, level: int, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the children, in 0-based `level`, of nodes one level above lie."""
        if level == 0:
            return np.zeros_like(nodes), np.full_like(nodes, len(self.tokens[0]))
        start = self.child_start[level - 1]
        return start[nodes].astype(np.int64), start[nodes + 1].astype(np.int64)

    def _node(self, prefix: Sequence[int]) -> int | None:
        """Returns the position of a prefix in its level, 0 for the root, None if unknown."""
        if len(prefix) > self.depth:
            raise ValueError(
                f"prefix {format_codes(prefix)} has {len(prefix)} tokens, the trie has "
                f"{self.depth} levels"
            )
        node = 0
        for level, token in enumerate(prefix):
            begin, end = self._children(level, np.array([node]))
            tokens = self.tokens[level][begin[0] : end[0]]
            found = int(np.searchsorted(tokens, token)) if token >= 0 else len(tokens)
            if found == len(tokens) or tokens[found] != token:
                return None
            node = int(begin[0]) + found
        return node

    def _first_rows(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """Returns the first row under nodes of 0-based `level`, or one past the last node."""
        for start in self.child_start[level:]:
            nodes = start[nodes]
        return (nodes if self.row_start is None else self.row_start[nodes]).astype(np.int64)

    def _prefixes(self, length: int, first: int, stop: int) -> np.ndarray:
        """Returns the uint64 lowest SIDs of nodes `first` to `stop` of a prefix length."""
        token = self.tokens[length - 1][first:stop].astype(np.uint64)
        packed = token << np.uint64(self._shift(length))
        if length == 1 or first >= stop:
            return packed
        start = self.child_start[length - 2]
        low = int(np.searchsorted(start, first, side="right")) - 1
        high = int(np.searchsorted(start, stop))
        bounds = np.clip(start[low : high + 1].astype(np.int64), first, stop)
        return packed | np.repeat(self._prefixes(length - 1, low, high), bounds[1:] - bounds[:-1])


@dataclasses.dataclass(frozen=True)
class NodeTable:
    """Trie nodes of one depth, in SID order.

    Attributes:
      codes: (n, depth) int32 prefix codes.
      prefixes: (n,) uint64 packed prefixes, as `SidLayout.prefixes` gives them.
      first_rows: (n,) int64 first row of the items table under the node.
      stop_rows: (n,) int64 one past the last row.
    """

    codes: np.ndarray
    prefixes: np.ndarray
    first_rows: np.ndarray
    stop_rows: np.ndarray

    @property
    def item_counts(self) -> np.ndarray:
        """(n,) int64 items under each node."""
        return self.stop_rows - self.first_rows


def token_dtype(size: int) -> np.dtype:
    """Returns the smallest type that holds the tokens 0 to size - 1."""
    return np.dtype(np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.uint32)


def _lower_bound(
    tokens: np.ndarray, begin: np.ndarray, end: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Returns the first position in each ascending slice whose token is not below the wanted."""
    low, width = begin.copy(), end - begin
    for _ in range(int(width.max(initial=0)).bit_length()):
        half = width >> 1
        middle = low + half
        right = (width > 0) & (tokens[np.minimum(middle, len(tokens) - 1)] < wanted)
        low = np.where(right, middle + 1, low)
        width = np.where(right, width - half - 1, half)
    return low
