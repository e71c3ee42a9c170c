"""Contiguous SID ranges of about equal size, cut only between whole prefixes."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ShardRanges:
    """Contiguous ranges of packed prefixes.

    Attributes:
      starts: (S,) uint64 ascending, the lowest prefix of each range. The first is 0, so that every
        prefix, seen before or not, falls into exactly one range.
      counts: (S,) int64 rows the histogram puts into each range.
    """

    starts: np.ndarray
    counts: np.ndarray

    def shard_of(self, prefixes: np.ndarray) -> np.ndarray:
        """Returns the (N,) int64 range number of each packed prefix."""
        return np.searchsorted(self.starts, np.asarray(prefixes, np.uint64), side="right") - 1


def balanced_ranges(prefixes: np.ndarray, counts: np.ndarray, num_shards: int) -> ShardRanges:
    """Cuts a histogram of packed prefixes into ranges of about equal row counts.

    A prefix is never divided, so items that spill between the codes of one prefix stay together.
    The largest range holds at most `total / num_shards` rows plus those of one prefix.

    Args:
      prefixes: (P,) ascending distinct packed prefixes (`SidLayout.prefixes`), of length L-2 or
        shorter when shards feed `resolution.resolve`.
      counts: (P,) rows of each prefix.
      num_shards: upper bound on the number of ranges, at least 1.

    Returns:
      At most `num_shards` ranges, none of them empty unless the histogram is.

    Raises:
      ValueError: `num_shards` is below 1, or prefixes are not ascending.
    """
    prefixes, counts = np.asarray(prefixes, np.uint64), np.asarray(counts, np.int64)
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, got {num_shards}")
    if len(prefixes) != len(counts) or (prefixes[1:] <= prefixes[:-1]).any():
        raise ValueError(
            f"prefixes must ascend and match counts, got {len(prefixes)} prefixes and "
            f"{len(counts)} counts"
        )
    if not counts.sum():
        return ShardRanges(np.zeros(1, np.uint64), np.zeros(1, np.int64))
    prefixes, counts = prefixes[counts > 0], counts[counts > 0]
    ends = np.cumsum(counts)
    targets = ends[-1] * np.arange(1, num_shards) / num_shards
    # The cut before prefix i leaves ends[i - 1] rows on its left: take the nearer of two cuts.
    after = np.searchsorted(ends, targets)
    before_rows = np.where(after > 0, ends[after - 1], 0)
    cuts = np.where(targets - before_rows <= ends[after] - targets, after, after + 1)
    cuts = np.unique(cuts[(cuts > 0) & (cuts < len(prefixes))])
    first = np.concatenate([[0], cuts])
    starts = prefixes[first].copy()
    starts[0] = 0
    return ShardRanges(starts, np.add.reduceat(counts, first))
