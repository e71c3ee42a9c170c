import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.shards import balanced_ranges


@given(
    st.dictionaries(st.integers(0, 2**64 - 1), st.integers(0, 50), max_size=40),
    st.integers(1, 12),
)
def test_ranges_are_balanced_and_whole(histogram, num_shards):
    prefixes = np.array(sorted(histogram), np.uint64)
    counts = np.array([histogram[int(prefix)] for prefix in prefixes], np.int64)
    ranges = balanced_ranges(prefixes, counts, num_shards)
    shard = ranges.shard_of(prefixes)
    assert len(ranges.starts) == len(ranges.counts) <= num_shards
    assert ranges.starts[0] == 0 and (np.diff(shard) >= 0).all()
    np.testing.assert_array_equal(
        np.bincount(shard, counts, minlength=len(ranges.counts)), ranges.counts
    )
    if counts.sum():
        assert ranges.counts.min() > 0
        assert ranges.counts.max() <= counts.sum() / num_shards + counts.max()


def test_equal_counts_are_cut_evenly():
    ranges = balanced_ranges(np.arange(12), np.full(12, 5), 4)
    assert ranges.counts.tolist() == [15, 15, 15, 15]
    assert ranges.starts.tolist() == [0, 3, 6, 9]


def test_one_hot_prefix_is_never_cut():
    ranges = balanced_ranges(np.array([3, 9, 12]), np.array([1, 100, 1]), 8)
    assert ranges.counts.max() == 100 and len(ranges.starts) == 3
    assert ranges.shard_of(np.array([0, 3, 8, 9, 11, 12, 999])).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_shards must be at least 1, got 0"):
        balanced_ranges(np.arange(2), np.ones(2, int), 0)
    with pytest.raises(ValueError, match="must ascend"):
        balanced_ranges(np.array([2, 1]), np.ones(2, int), 2)
