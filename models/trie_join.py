"""Joins tries over adjoining SID ranges, such as those that shards built alone.

The joined arrays are described piece by piece first, so that they can be concatenated in memory or
written straight to a file: a catalog larger than one worker's memory is joined from mapped files
with no more than one array of one part at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from models.sid import SidLayout, format_codes
from models.trie import Trie, token_dtype


@dataclasses.dataclass(frozen=True)
class PiecewiseArray:
    """One array of a joined trie.

    Attributes:
      dtype: of all pieces.
      length: of all pieces together.
      pieces: makes them, in order.
    """

    dtype: np.dtype
    length: int
    pieces: Callable[[], Iterator[np.ndarray]]

    def whole(self) -> np.ndarray:
        """Returns the array in memory."""
        return np.concatenate(list(self.pieces()))


@dataclasses.dataclass(frozen=True)
class JoinPlan:
    """The arrays of a joined trie, see `Trie`."""

    layout: SidLayout
    tokens: tuple[PiecewiseArray, ...]
    child_start: tuple[PiecewiseArray, ...]
    row_start: PiecewiseArray | None
    num_rows: int


def plan_join(tries: Iterable[Trie], layout: SidLayout) -> JoinPlan:
    """Describes the join of tries in SID order.

    Neighbours may share prefixes; the shared nodes become one. If they share a whole SID the result
    has `row_start`. Tries without a suffix level get one where another has it.

    Raises:
      ValueError: a trie starts before the previous one ends.
    """
    given = list(tries)
    parts = [trie for trie in given if trie.num_rows] or given[:1] or [_empty(layout)]
    depth = max(trie.depth for trie in parts)
    common = _common_lengths(parts, depth, layout)
    shared = max(common) == depth or any(trie.row_start is not None for trie in parts)
    starts = [_joined_starts(parts, common, depth, level) for level in range(depth - 1)]
    return JoinPlan(
        layout,
        tuple(_joined_tokens(parts, common, level) for level in range(depth)),
        tuple(starts),
        _joined_starts(parts, common, depth, depth - 1) if shared else None,
        sum(trie.num_rows for trie in parts),
    )


def join_tries(tries: Iterable[Trie], layout: SidLayout) -> Trie:
    """Joins tries in memory; see `plan_join`."""
    parts = [trie for trie in tries if trie.num_rows]
    if len(parts) == 1:
        return parts[0]
    plan = plan_join(parts, layout)
    return Trie(
        layout,
        tuple(array.whole() for array in plan.tokens),
        tuple(array.whole() for array in plan.child_start),
        None if plan.row_start is None else plan.row_start.whole(),
    )


def closed_offsets(starts: np.ndarray, end: int) -> np.ndarray:
    """Appends the closing entry and picks the smaller type that holds it."""
    closed = np.empty(len(starts) + 1, _offset_dtype(end))
    closed[:-1] = starts
    closed[-1] = end
    return closed


def _offset_dtype(end: int) -> np.dtype:
    return np.dtype(np.uint32 if end < 1 << 32 else np.uint64)


def _empty(layout: SidLayout) -> Trie:
    tokens = tuple(np.empty(0, token_dtype(size)) for size in layout.codebook_sizes)
    return Trie(layout, tokens, (np.zeros(1, np.uint32),) * (len(tokens) - 1))


def _part_tokens(trie: Trie, level: int) -> np.ndarray:
    """Returns a part's tokens; of a suffix level that it lacks, one 0 below every leaf."""
    if level < trie.depth:
        return trie.tokens[level]
    return np.zeros(trie.num_leaves, token_dtype(trie.layout.max_suffix + 1))


def _part_starts(trie: Trie, depth: int, level: int) -> np.ndarray:
    """Returns where the children of a level's nodes start; those of leaves are rows."""
    if level < trie.depth - 1:
        return trie.child_start[level]
    if level == depth - 1 and trie.row_start is not None:
        return trie.row_start
    return np.arange(trie.num_leaves + 1)


def _joined_tokens(parts: Sequence[Trie], common: Sequence[int], level: int) -> PiecewiseArray:
    def pieces() -> Iterator[np.ndarray]:
        for trie, same in zip(parts, common, strict=True):
            yield _part_tokens(trie, level)[int(same > level) :]

    lengths = [trie.num_nodes[min(level, trie.depth - 1)] for trie in parts]
    merged = sum(same > level for same in common)
    return PiecewiseArray(_part_tokens(parts[-1], level).dtype, sum(lengths) - merged, pieces)


def _joined_starts(
    parts: Sequence[Trie], common: Sequence[int], depth: int, level: int
) -> PiecewiseArray:
    """Shifts the offsets of each part by what came before; a continued node is dropped."""
    begins, total, length = [], 0, 1
    for trie, same in zip(parts, common, strict=True):
        begins.append(total - int(same > level + 1))
        nodes = trie.num_nodes[min(level, trie.depth - 1)]
        below = (
            trie.num_rows if level == depth - 1 else trie.num_nodes[min(level + 1, trie.depth - 1)]
        )
        total = begins[-1] + below
        length += nodes - int(same > level)
    dtype = _offset_dtype(total)

    def pieces() -> Iterator[np.ndarray]:
        for trie, same, begin in zip(parts, common, begins, strict=True):
            starts = _part_starts(trie, depth, level)[int(same > level) : -1]
            yield (starts.astype(np.int64) + begin).astype(dtype)
        yield np.array([total], dtype)

    return PiecewiseArray(dtype, length, pieces)


def _common_lengths(parts: Sequence[Trie], depth: int, layout: SidLayout) -> list[int]:
    """Returns how many leading tokens each part's first SID shares with the SID before it."""
    common = [0]
    for number in range(1, len(parts)):
        before, after = (
            tuple(int(_part_tokens(parts[part], level)[end]) for level in range(depth))
            for part, end in ((number - 1, -1), (number, 0))
        )
        if after < before:
            raise ValueError(
                f"chunk {number} starts at {format_codes(after[: layout.num_levels])}, before the "
                f"end of the previous one, {format_codes(before[: layout.num_levels])}"
            )
        same = [old == new for old, new in zip(before, after, strict=True)]
        common.append(same.index(False) if False in same else len(same))
    return common
