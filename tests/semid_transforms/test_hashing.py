import numpy as np
import pyarrow as pa
import pytest

from semid_transforms.hashing import content_shards, hash_shards, item_hashes


def test_an_item_hash_is_the_same_on_every_machine():
    assert item_hashes(pa.array(["é/\n", "item-1", ""])).tolist() == [
        0xC062B76DB24FE0A1,
        0xA8ED576B406035B2,
        0x2D06800538D394C2,
    ]
    many = pa.array([f"item-{n}" for n in range(20_000)])
    assert item_hashes(many)[[1, 19_999]].tolist() == item_hashes(many.take([1, 19_999])).tolist()
    assert (
        item_hashes(pa.chunked_array([["a"], ["b"]])).tolist()
        == item_hashes(pa.array(["a", "b"])).tolist()
    )
    assert item_hashes(pa.array([], pa.string())).shape == (0,)


@pytest.mark.parametrize("shards", [1, 2, 7, 1000])
def test_shards_are_equal_ranges_in_hash_order(shards):
    hashes = np.sort(np.random.default_rng(0).integers(0, 1 << 64, 20_000, np.uint64))
    found = hash_shards(hashes, shards)
    assert (np.diff(found) >= 0).all()
    assert (found.min(), found.max()) == (0, shards - 1)
    counts = np.bincount(found, minlength=shards)
    assert counts.min() > 0 if shards < 1000 else counts.max() < 60
    ends = np.array([0, (1 << 64) - 1], np.uint64)
    assert hash_shards(ends, shards).tolist() == [0, shards - 1]


def test_equal_contents_meet_in_order_of_their_hash():
    contents = np.random.default_rng(1).integers(0, 256, (500, 16)).astype(np.uint8)
    contents = contents[np.lexsort(contents.T[::-1])]
    found = content_shards(contents, 5)
    assert (np.diff(found) >= 0).all() and set(found) == set(range(5))
    assert content_shards(np.repeat(contents[:1], 3, axis=0), 5).tolist() == [found[0]] * 3


def test_no_shards_are_refused():
    with pytest.raises(ValueError, match="num_shards must be at least 1, got 0"):
        hash_shards(np.zeros(1, np.uint64), 0)
