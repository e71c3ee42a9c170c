"""Which row gets which free code of one codebook, given the distances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

UNPLACED = -1
# Distances held at once; 4M float64 are 32 MB.
BLOCK_ENTRIES = 1 << 22
# Odd, so that multiplying by them loses nothing modulo 2**64.
_MIX = np.uint64(0x9E3779B97F4A7C15)


def equal_rows(vectors: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Numbers groups of rows that are equal bit for bit.

    Args:
      vectors: (m, d) float32.
      wanted: (m,) integers that equal rows must share as well.

    Returns:
      (m,) int64 group numbers. Equal rows share one unless their 64-bit digest meets that of
      other rows, when every row is its own group; rows that differ never share one.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    words = vectors.view(np.uint32)
    place = _MIX * np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64)
    digest = np.asarray(wanted).astype(np.uint64) * _MIX
    for start in range(0, len(words), 8192):
        block = slice(start, start + 8192)
        # Words of rounded vectors differ in few bits: a sum of multiples of them would often meet
        # another. Folding the high half down between two products leaves chance alone.
        mixed = (words[block] + place) * _MIX
        mixed ^= mixed >> np.uint64(32)
        mixed *= _MIX
        digest[block] += mixed.sum(axis=1, dtype=np.uint64)
    _, first, groups = np.unique(digest, return_index=True, return_inverse=True)
    representative = first[groups]
    for start in range(0, len(words), 8192):
        block = slice(start, start + 8192)
        same = (words[block] == words[representative[block]]).all(axis=1)
        if not (same & (wanted[block] == wanted[representative[block]])).all():
            return np.arange(len(words))
    return groups


def assign_codes(
    costs: np.ndarray, wanted: np.ndarray, free: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Places rows on distinct free codes: fewest moves, then least total cost.

    Every wanted free code is kept by one of the rows that want it; this is forced by a bonus above
    anything that distances can add up to. With more rows than free codes, as many rows as there
    are free codes are placed.

    Args:
      costs: (m, K) float64, the cost of moving row i to code j; 0 at `wanted`.
      wanted: (m,) the code row i has now, or `UNPLACED`.
      free: (K,) bool.
      groups: (m,) group numbers of equal rows (`equal_rows`): inside a group the first row gets
        the cheapest of the group's codes, so that a tie is decided by the order of rows given.

    Returns:
      (m,) int64 codes, `UNPLACED` where there was no room.
    """
    chosen = np.full(len(costs), UNPLACED, np.int64)
    columns = np.flatnonzero(free)
    if not len(columns):
        return chosen
    offered = costs[:, columns]
    lowest, highest = offered.min(), offered.max()
    bonus = ((highest - lowest) or 1.0) * (min(offered.shape) + 1)
    offered = np.where(wanted[:, None] == columns, lowest - bonus, offered)
    if (groups == groups[0]).all():
        # Equal rows: the cheapest codes in order solve the problem, without cubic work.
        cheapest = np.argsort(offered[0], kind="stable")[: len(costs)]
        chosen[: len(cheapest)] = columns[cheapest]
        return chosen
    from scipy.optimize import linear_sum_assignment  # 0.2 s, and few shards come here

    rows, picks = linear_sum_assignment(offered)
    chosen[rows] = columns[picks]
    if len(np.unique(groups)) < len(groups):
        price = np.full(len(costs), np.inf)
        price[rows] = offered[rows, picks]
        given = np.lexsort((chosen, price, groups))
        chosen[np.argsort(groups, kind="stable")] = chosen[given]
    return chosen


def assign_apart(
    costs: np.ndarray, wanted: np.ndarray, free: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solves many small assignment problems at once, those in which nobody gets in another's way.

    Of the rows that want one free code the one that would pay most for another keeps it, and the
    others move to their cheapest codes. Where all these codes differ nothing can cost less, and
    `assign_codes` would find the same.

    Args:
      costs: (m, K) float64, as for `assign_codes`.
      wanted: (m,) the code row i has now.
      free: (G, K) bool, of each group.
      group: (m,) ascending group numbers.

    Returns:
      (m,) int64 codes, and (G,) bool, True for the groups that are solved; the codes of the others
      mean nothing.
    """
    rows, size = np.arange(len(costs)), costs.shape[1]
    room = free.copy()
    room[group, wanted] = False
    offered = np.where(room[group], costs, np.inf)
    chosen = offered.argmin(axis=1)
    price = offered[rows, chosen]
    asked = group * size + wanted
    # Of equal rows the first keeps, as in `assign_codes`.
    dearest = np.lexsort((rows, -price, asked))
    first = np.diff(asked[dearest], prepend=-1) != 0
    keeping = np.zeros(len(costs), bool)
    keeping[dearest[first]] = True
    keeping &= free[group, wanted]
    chosen[keeping] = wanted[keeping]
    moving = np.flatnonzero(~keeping)
    taken = np.sort(group[moving] * size + chosen[moving])
    solved = np.ones(len(free), bool)
    solved[taken[1:][taken[1:] == taken[:-1]] // size] = False
    solved[group[moving[np.isinf(price[moving])]]] = False
    return chosen, solved


def fill_rounds(
    costs_of: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    num_rows: int,
    room: np.ndarray,
) -> np.ndarray:
    """Places many rows on the nearest code with room, in vectorised rounds.

    In a round every unplaced row asks for its cheapest code that has room, and each code takes
    its cheapest askers, ties in the order of rows given. Rows are taken in blocks whose size
    depends on K alone, which bounds memory by `BLOCK_ENTRIES` whatever the number of rows.

    Args:
      costs_of: maps row numbers (n,) to distances of distinct rows (u, K) and, per row, which of
        the u it has (n,).
      num_rows: rows to place, numbered 0 to num_rows - 1.
      room: (K,) integers, how many rows each code may still take; lowered in place.

    Returns:
      (num_rows,) int64 codes, `UNPLACED` where there was no room.
    """
    chosen = np.full(num_rows, UNPLACED, np.int64)
    block = max(1, BLOCK_ENTRIES // len(room))
    for start in range(0, num_rows, block):
        if not room.any():
            break
        rows = np.arange(start, min(num_rows, start + block))
        costs, kind = costs_of(rows)
        chosen[rows] = _fill_block(np.where(room > 0, costs, np.inf), kind, room)
    return chosen


def _fill_block(costs: np.ndarray, kind: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Runs the rounds of `fill_rounds` for one block."""
    chosen = np.full(len(kind), UNPLACED, np.int64)
    preference = np.argsort(costs, axis=1, kind="stable")
    position = np.zeros(len(kind), np.int64)
    active = np.arange(len(kind))
    while len(active) and room.any():
        asked = preference[kind[active], position[active]]
        while (full := room[asked] == 0).any():
            position[active[full]] += 1
            asked[full] = preference[kind[active[full]], position[active[full]]]
        # Two stable sorts give (code, cost, order of rows) and cost one pass on equal rows.
        by_cost = np.argsort(costs[kind[active], asked], kind="stable")
        by_code = by_cost[np.argsort(asked[by_cost], kind="stable")]
        sorted_codes = asked[by_code]
        begins = np.flatnonzero(np.diff(sorted_codes, prepend=-1))
        sizes = np.diff(np.append(begins, len(by_code)))
        rank = np.arange(len(by_code)) - np.repeat(begins, sizes)
        accepted = rank < room[sorted_codes]
        chosen[active[by_code[accepted]]] = sorted_codes[accepted]
        room -= np.bincount(sorted_codes[accepted], minlength=len(room))
        active = np.sort(active[by_code[~accepted]])
    return chosen
