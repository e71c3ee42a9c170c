"""Which embeddings are nearest to which, by exhaustive search (numpy)."""

from __future__ import annotations

import dataclasses

import numpy as np

_TILE_ROWS = 1024
"""Rows compared at once with all rows asked: 20 MB of cosines for 5,000 of them."""

_GROUPS = 64
"""Groups of a tile whose largest cosines bound what can still be near."""

_BLOCK_ROWS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """Which items are nearest to some of them.

    Attributes:
      asked: (n,) rows of the items asked.
      nearest: (n, k) rows of the others nearest to each by cosine; n is 0 for fewer than two items.
    """

    asked: np.ndarray
    nearest: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """What the embeddings of N items say of each other, whatever codes the items have.

    Attributes:
      unit: (N, D) float64 rows of unit length.
      neighbours: among the items.
    """

    unit: np.ndarray
    neighbours: Neighbours

    @classmethod
    def of(cls, embeddings: np.ndarray, sample: int = 5_000) -> Geometry:
        """Scales (N, D) non-zero rows and finds neighbours of a sample of them."""
        unit = unit_rows(embeddings, np.float64)
        return cls(unit, _nearest(unit.astype(np.float32), 10, sample))


def find_neighbours(
    embeddings: np.ndarray, neighbours: int = 10, sample: int = 5_000
) -> Neighbours:
    """Finds nearest neighbours by exhaustive search.

    Float32 products tell what can be among the nearest, float64 sums of each pair decide, ties go
    to the first row. So the result depends on no thread and no library, but for rows with more than
    8 k others within the rounding error of the k-th.

    Args:
      embeddings: (N, D), non-zero rows.
      neighbours: k, lowered to N - 1.
      sample: items asked, evenly spaced over the rows; all when there are fewer.
    """
    return _nearest(unit_rows(embeddings), neighbours, sample)


def _nearest(unit: np.ndarray, neighbours: int, sample: int) -> Neighbours:
    """Returns the same as `find_neighbours` for (N, D) float32 rows of unit length."""
    count = len(unit)
    k = min(neighbours, count - 1)
    if k < 1:
        return Neighbours(np.empty(0, np.int64), np.empty((0, 0), np.int64))
    asked = np.unique(np.linspace(0, count - 1, min(sample, count)).astype(np.int64))
    query, near = _near_pairs(unit, asked, k + 1)
    other = near != asked[query]
    query, near = query[other], near[other]
    cosine = np.empty(len(query))
    for start in range(0, len(query), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        left, right = unit[asked[query[block]]], unit[near[block]]
        cosine[block] = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    order = np.lexsort((near, -cosine, query))
    first = np.searchsorted(query[order], np.arange(len(asked)))
    return Neighbours(asked, near[order[first[:, None] + np.arange(k)]])


def unit_rows(embeddings: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Returns (N, D) rows of a type scaled to unit length in float64, a block at a time."""
    unit = np.empty(embeddings.shape, dtype)
    for start in range(0, len(embeddings), _BLOCK_ROWS):
        wide = embeddings[start : start + _BLOCK_ROWS].astype(np.float64)
        length = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        unit[start : start + _BLOCK_ROWS] = wide / length[:, None]
    return unit


def _near_pairs(unit: np.ndarray, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs of a query and a row among which are the k nearest of every query.

    Where more than 8 k rows are too near to the k-th to tell, the first of those with the largest
    products are taken.

    Args:
      unit: (N, D) float32 rows of unit length, N at least k.
      asked: (n,) rows that are the queries.
      k: rows wanted of each.

    Returns:
      Positions in `asked`, ascending, and rows, at least k a query.
    """
    # A sum of D products of unit rows is off by at most D 2^-24; two sums are compared.
    margin = np.float32(2 * (unit.shape[1] + 2) * 2.0**-24)
    most = 8 * k
    queries = unit[asked]
    cosines = np.empty((len(asked), _TILE_ROWS), np.float32)
    best = np.full((len(asked), k), -np.inf, np.float32)
    floor = np.full(len(asked), np.finfo(np.float32).min)
    found = []
    for start in range(0, len(unit), _TILE_ROWS):
        tile = unit[start : start + _TILE_ROWS]
        np.matmul(queries, tile.T, out=cosines[:, : len(tile)])
        cosines[:, len(tile) :] = -np.inf
        # k groups whose largest cosine is x or more hold k rows of cosine x or more.
        largest = cosines.reshape(len(asked), -1, _GROUPS).max(axis=1)
        best = np.partition(np.hstack([best, largest]), -k, axis=1)[:, -k:]
        least = np.maximum(best[:, 0] - margin, floor)
        query, row = np.divmod(np.flatnonzero(cosines >= least[:, None]), _TILE_ROWS)
        value = cosines[query, row]
        crowded = np.bincount(query, minlength=len(asked)) > most
        if crowded.any():
            query, row, value = _first_of_each(query, row, value, most)
            last = np.flatnonzero(np.append(query[1:] != query[:-1], True))
            last = last[crowded[query[last]]]
            # Of equal cosines the first rows count, and they have been seen.
            floor[query[last]] = np.nextafter(value[last], np.float32(np.inf))
        found.append((query, row + start, value))
    query, row, value = (np.concatenate(column) for column in zip(*found, strict=True))
    near = value >= best[query, 0] - margin
    query, row, _ = _first_of_each(query[near], row[near], value[near], most)
    return query, row


def _first_of_each(
    query: np.ndarray, row: np.ndarray, value: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pairs of each query that have the largest values, ties to the first rows."""
    order = np.lexsort((row, -value, query))
    query = query[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    order = order[rank < limit]
    return query[rank < limit], row[order], value[order]
