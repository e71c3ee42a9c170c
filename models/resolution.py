"""One item, one ID: collision resolution inside one shard of the SID space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from models.packed_tuples import codes_below, free_codes, is_in
from models.placement import (
    BLOCK_ENTRIES,
    UNPLACED,
    assign_apart,
    assign_codes,
    equal_rows,
    fill_rounds,
)
from models.residuals import ResidualCodebooks
from models.runs import runs
from models.sid import SidLayout, format_codes

CollisionPolicy = Literal["reassign", "suffix", "none"]
NEAREST, REASSIGNED, SPILLED, SUFFIXED = "nearest", "reassigned", "spilled", "suffixed"
PLACEMENTS = (NEAREST, REASSIGNED, SPILLED, SUFFIXED)

_NEAREST, _REASSIGNED, _SPILLED, _SUFFIXED = range(len(PLACEMENTS))

# The assignment problem is cubic in the rows of a group.
ASSIGNMENT_LIMIT = 512
# Rows whose latents are held in float64 at once: 4096 x 384 are 12 MB.
BLOCK_ROWS = 4096


class SuffixOverflowError(ValueError):
    """A row needs a suffix that does not fit.

    Attributes:
      row: its number among the rows given.
      reason: the message without the row's number, for callers that know its name.
    """

    def __init__(self, row: int, reason: str):
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Where the contested rows of one shard ended up, in the order they were given.

    Attributes:
      codes: (M, L) int32 final codes.
      suffix: (M,) int32, 0 unless suffixed.
      placement: (M,) object array of `PLACEMENTS` strings.
      added_distance: (M,) float32, squared latent distance to the final codes minus that to the
        base codes; 0 where the codes did not change.
      num_shared: rows whose SID another row has too, always 0 except under policy `none`.
    """

    codes: np.ndarray
    suffix: np.ndarray
    placement: np.ndarray
    added_distance: np.ndarray
    num_shared: int

    def counts(self) -> dict[str, int]:
        """Returns the number of rows per placement."""
        return {name: int((self.placement == name).sum()) for name in PLACEMENTS}


def settle(base_codes: np.ndarray, occupied_prefixes: np.ndarray, layout: SidLayout) -> np.ndarray:
    """Finds the rows that keep their base codes whatever else happens.

    A row is uncontested when no published or reserved item has its code tuple and no other new
    row wants it. Only the other rows need their latents for `resolve`.

    Args:
      base_codes: (N, L) codes of the new rows.
      occupied_prefixes: sorted packed code tuples without suffix, `layout.prefixes(sids, L)`, of
        every pinned or reserved item in the shard; duplicates are allowed.
      layout: of the SIDs.

    Returns:
      (N,) bool, True where the row is settled.
    """
    tuples = layout.prefixes(layout.pack(base_codes), layout.num_levels)
    _, inverse, counts = np.unique(tuples, return_inverse=True, return_counts=True)
    return (counts[inverse] == 1) & ~is_in(tuples, np.asarray(occupied_prefixes, np.uint64))


def resolve(
    base_codes: np.ndarray,
    latents: np.ndarray | None,
    tie_breakers: np.ndarray,
    codebooks: Sequence[np.ndarray],
    occupied: np.ndarray,
    layout: SidLayout,
    policy: CollisionPolicy = "reassign",
) -> Resolution:
    """Gives every contested row of one shard an ID of its own.

    `reassign`, in this order:
      1. Inside each prefix of L-1 codes, rows are placed on free last codes: as many rows as
         possible keep their base code, and among those solutions the total added distance is
         least (an assignment problem up to `ASSIGNMENT_LIMIT` rows; beyond, the row nearest to
         its base code keeps it and the others take the nearest free code in rounds).
      2. Rows of a full prefix spill to the nearest level L-1 code with room under the same
         prefix of L-2 codes, and there to the nearest free last codes.
      3. Rows that find no room keep their base codes and get the next suffix number.
    `suffix` keeps base codes and numbers the rows of one tuple by `tie_breakers`; `none` lets rows
    share IDs and counts them.

    The result does not depend on the order of the rows, nor on what else is in the shard: exact
    ties go to the lowest code, then to the lowest tie breaker, and distances come from
    `exact_dot`. Codewords must add up to the reconstruction in latent space; added distances may
    be negative where base codes were not the nearest.

    Args:
      base_codes: (M, L) codes, contested rows only (settled rows given here just keep theirs).
      latents: (M, d) float32; None is enough for `suffix` and `none`.
      tie_breakers: (M,) uint64, distinct: a hash of the item id.
      codebooks: L float32 arrays of shape (K_l, d).
      occupied: sorted packed SIDs of the shard that may not be touched: pinned, reserved and
        settled. The shard must hold whole prefixes of L-2 codes.
      layout: of the SIDs.
      policy: see above.

    Returns:
      The resolution, row i for row i.

    Raises:
      ValueError: unknown policy, shapes that differ, or a suffix number that does not fit; the
        message names the row.
    """
    base = np.asarray(base_codes, np.int32).reshape(-1, layout.num_levels)
    ties = np.asarray(tie_breakers, np.uint64)
    if policy not in get_args(CollisionPolicy):
        raise ValueError(
            f"collision policy {policy!r} is not one of {', '.join(get_args(CollisionPolicy))}"
        )
    if len(ties) != len(base):
        raise ValueError(f"{len(base)} base codes but {len(ties)} tie breakers")
    taken = np.asarray(occupied).astype(np.uint64)
    if policy == "none":
        return _share(base, taken, layout)
    # From here on rows are ordered by prefix, then tie breaker: order of arrival is forgotten.
    order = np.lexsort((ties, layout.prefixes(layout.pack(base), layout.num_levels - 1)))
    codes, added = base[order], np.zeros(len(base))
    stage = np.full(len(base), _SUFFIXED, np.int8)
    if policy == "reassign":
        if latents is None or len(latents) != len(base):
            raise ValueError(f"policy reassign needs latents for all {len(base)} rows")
        books = ResidualCodebooks(codebooks, layout)
        rows = _Contested(base[order], np.asarray(latents), order, ties[order])
        codes, stage = _reassign(rows, books, taken, layout)
        added = _added_distance(rows, codes, books)
    numbered = np.flatnonzero(stage == _SUFFIXED)
    suffix = np.zeros(len(base), np.int32)
    numbers = _suffixes(
        codes[numbered], ties[order[numbered]], taken, layout, int(policy == "reassign")
    )
    if (numbers > layout.max_suffix).any():
        worst = numbered[np.argmax(numbers > layout.max_suffix)]
        raise SuffixOverflowError(
            int(order[worst]),
            f"{format_codes(codes[worst])} is full and needs a suffix above {layout.max_suffix}, "
            f"the most {layout.suffix_bits} bits hold: use more codes a level, or remove items of "
            f"identical content",
        )
    suffix[numbered] = numbers
    stage[numbered[suffix[numbered] == 0]] = _NEAREST
    back = np.argsort(order)
    return Resolution(
        codes=codes[back],
        suffix=suffix[back],
        placement=np.array(PLACEMENTS, object)[stage[back]],
        added_distance=added[back].astype(np.float32),
        num_shared=0,
    )


@dataclasses.dataclass(frozen=True)
class _Contested:
    """Contested rows sorted by prefix of L-1 codes, then tie breaker.

    Attributes:
      base: (M, L) int32 base codes, sorted.
      latents: (M, d) in the caller's order, never copied whole.
      order: (M,) sorted row i is `latents[order[i]]`.
      ties: (M,) uint64 tie breakers, sorted like `base`.
    """

    base: np.ndarray
    latents: np.ndarray
    order: np.ndarray
    ties: np.ndarray

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Returns the (n, d) latents of sorted row numbers."""
        return self.latents[self.order[rows]]


def _reassign(
    rows: _Contested, books: ResidualCodebooks, occupied: np.ndarray, layout: SidLayout
) -> tuple[np.ndarray, np.ndarray]:
    """Places sorted rows; returns (M, L) codes and (M,) stages, rows left over as `_SUFFIXED`."""
    base, last, size = rows.base, layout.num_levels - 1, layout.codebook_sizes[-1]
    bits = layout.level_bits[-1]
    codes, tuples = base.copy(), layout.prefixes(occupied, layout.num_levels)
    tuples = tuples[runs(tuples)[0]]
    parents = layout.prefixes(layout.pack(base), last)
    starts, ends = runs(parents)
    limit = max(ASSIGNMENT_LIMIT, BLOCK_ENTRIES // max(size, rows.latents.shape[1]))
    for first, stop in _blocks(ends, limit):
        low, high = starts[first], ends[stop - 1]
        free = free_codes(tuples, parents[starts[first:stop]], bits, size)
        if ends[first] - low > ASSIGNMENT_LIMIT:
            codes[low:high, last] = _place_many(rows, np.arange(low, high), books, free[0])
            continue
        vectors = rows.vectors(np.arange(low, high))
        # Distances once per distinct row: catalogs repeat texts.
        kind = equal_rows(vectors, layout.pack(base[low:high]))
        _, sample, kind = np.unique(kind, return_index=True, return_inverse=True)
        costs = books.costs(vectors[sample], base[low + sample], last)
        costs -= np.take_along_axis(costs, base[low + sample, last:].astype(np.int64), axis=1)
        wanted = base[low:high, last].astype(np.int64)
        run = np.repeat(np.arange(stop - first), ends[first:stop] - starts[first:stop])
        chosen, solved = assign_apart(costs[kind], wanted, free, run)
        for number in np.flatnonzero(~solved):
            here = slice(starts[first + number] - low, ends[first + number] - low)
            chosen[here] = assign_codes(costs[kind[here]], wanted[here], free[number], kind[here])
        codes[low:high, last] = chosen
    stage = np.where(codes[:, last] == base[:, last], _NEAREST, _REASSIGNED).astype(np.int8)
    stage[codes[:, last] == UNPLACED] = _SUFFIXED
    if last > 0:
        _spill(rows, codes, stage, books, tuples, layout)
    codes[stage == _SUFFIXED] = base[stage == _SUFFIXED]
    return codes, stage


def _place_many(
    rows: _Contested, members: np.ndarray, books: ResidualCodebooks, free: np.ndarray
) -> np.ndarray:
    """Places the rows of one prefix when they are too many for the assignment problem."""
    last = rows.base.shape[1] - 1
    wanted = rows.base[members, last].astype(np.int64)
    distance = np.concatenate(
        [books.distance(rows.vectors(some), rows.base[some]) for some in _slices(members)]
    )
    nearest = np.lexsort((distance, wanted))
    keepers = nearest[runs(wanted[nearest])[0]]
    keepers = keepers[free[wanted[keepers]]]
    chosen = np.full(len(members), UNPLACED, np.int64)
    chosen[keepers] = wanted[keepers]
    movers = np.flatnonzero(chosen == UNPLACED)
    room = free.astype(np.int64)
    room[wanted[keepers]] = 0
    costs_of = _costs_of(rows, members[movers], books, rows.base, last)
    chosen[movers] = fill_rounds(costs_of, len(movers), room)
    return chosen


def _spill(
    rows: _Contested,
    codes: np.ndarray,
    stage: np.ndarray,
    books: ResidualCodebooks,
    tuples: np.ndarray,
    layout: SidLayout,
) -> None:
    """Moves rows without a code to a level L-1 code with room, nearest first; in place."""
    last = layout.num_levels - 1
    bits = layout.level_bits[last]
    grandparents = layout.prefixes(layout.pack(rows.base), last - 1)
    for start, end in zip(*runs(grandparents), strict=True):
        left = start + np.flatnonzero(stage[start:end] == _SUFFIXED)
        if not len(left):
            continue
        used = np.zeros(layout.codebook_sizes[last - 1 :], bool)
        below = codes_below(tuples, grandparents[start], layout.level_bits[last - 1] + bits)
        used[below >> bits, below & ((1 << bits) - 1)] = True
        placed = start + np.flatnonzero(stage[start:end] != _SUFFIXED)
        used[codes[placed, last - 1], codes[placed, last]] = True
        left = left[np.argsort(rows.ties[left])]
        costs_of = _costs_of(rows, left, books, rows.base, last - 1)
        chosen = fill_rounds(costs_of, len(left), (~used).sum(axis=1))
        found = np.flatnonzero(chosen != UNPLACED)
        left, chosen = left[found], chosen[found]
        codes[left, last - 1] = chosen
        stage[left] = _SPILLED
        by_code = np.argsort(chosen, kind="stable")
        for low, high in zip(*runs(chosen[by_code]), strict=True):
            guests = left[by_code[low:high]]
            free = ~used[chosen[by_code[low]]]
            costs_of = _costs_of(rows, guests, books, codes, last)
            if len(guests) > ASSIGNMENT_LIMIT:
                codes[guests, last] = fill_rounds(costs_of, len(guests), free.astype(np.int64))
                continue
            costs, kind = costs_of(np.arange(len(guests)))
            nowhere = np.full(len(guests), UNPLACED)
            codes[guests, last] = assign_codes(costs[kind], nowhere, free, kind)


def _costs_of(
    rows: _Contested, members: np.ndarray, books: ResidualCodebooks, codes: np.ndarray, level: int
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns what `fill_rounds` asks for: distances of distinct rows, and which row has which."""

    def costs_of(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        some = members[numbers]
        vectors = rows.vectors(some)
        # Members of one call share their prefix, so equal vectors mean equal distances.
        kind = equal_rows(vectors, np.zeros(len(some), np.int64))
        _, first, kind = np.unique(kind, return_index=True, return_inverse=True)
        return books.costs(vectors[first], codes[some[first]], level), kind

    return costs_of


def _added_distance(rows: _Contested, codes: np.ndarray, books: ResidualCodebooks) -> np.ndarray:
    """Returns (M,) float64 squared distance to the final codes minus that to the base codes."""
    added = np.zeros(len(codes))
    for some in _slices(np.flatnonzero((codes != rows.base).any(axis=1))):
        vectors = rows.vectors(some)
        added[some] = books.distance(vectors, codes[some]) - books.distance(
            vectors, rows.base[some]
        )
    return added


def _suffixes(
    codes: np.ndarray, ties: np.ndarray, occupied: np.ndarray, layout: SidLayout, start: int
) -> np.ndarray:
    """Numbers rows that keep a tuple, by tie breaker, after its highest occupied number.

    Args:
      codes: (n, L) tuples.
      ties: (n,) uint64.
      occupied: sorted uint64 SIDs.
      layout: of the SIDs.
      start: first number of a tuple that is not occupied: 0, the bare codes, under `suffix`; 1
        under `reassign`, where the tuple of every row that comes here is full by now.
    """
    sids = layout.pack(codes).astype(np.uint64)
    order = np.lexsort((ties, sids))
    starts, ends = runs(sids[order])
    highest = sids[order[starts]] | np.uint64(layout.max_suffix)
    above = np.searchsorted(occupied, highest, side="right")
    begin = np.full(len(starts), start)
    known = np.flatnonzero(above > np.searchsorted(occupied, sids[order[starts]]))
    begin[known] = (occupied[above[known] - 1] & np.uint64(layout.max_suffix)).astype(np.int64) + 1
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = np.arange(len(codes)) - np.repeat(starts - begin, ends - starts)
    return numbers


def _share(base: np.ndarray, occupied: np.ndarray, layout: SidLayout) -> Resolution:
    """Policy `none`: everybody keeps the base codes."""
    sids = layout.pack(base).astype(np.uint64)
    _, inverse, counts = np.unique(sids, return_inverse=True, return_counts=True)
    return Resolution(
        codes=base.copy(),
        suffix=np.zeros(len(base), np.int32),
        placement=np.full(len(base), NEAREST, object),
        added_distance=np.zeros(len(base), np.float32),
        num_shared=int(((counts[inverse] > 1) | is_in(sids, occupied)).sum()),
    )


def _blocks(ends: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Cuts adjoining runs into blocks of at most `limit` rows.

    A run beyond `ASSIGNMENT_LIMIT` is a block of its own.
    """
    first, begin = 0, 0
    for run, end in enumerate(ends):
        previous = int(ends[run - 1]) if run else 0
        large = end - previous > ASSIGNMENT_LIMIT
        if run > first and (large or end - begin > limit):
            yield first, run
            first, begin = run, previous
        if large:
            yield run, run + 1
            first, begin = run + 1, int(end)
    if first < len(ends):
        yield first, len(ends)


def _slices(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts row numbers into pieces of at most `BLOCK_ROWS`."""
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]
