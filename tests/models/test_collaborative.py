import numpy as np
import pytest

from models.collaborative import ItemVectors, fuse, interaction_vectors


def two_tastes():
    """Users of one half like items 0..9, of the other items 10..19."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 5)
    taste = (users % 2) * 10
    items = np.array([f"i{n:02}" for n in range(20)])[taste + random.integers(10, size=1000)]
    return users, items


def test_items_with_common_users_are_near():
    users, items = two_tastes()
    found = interaction_vectors(users, items, dim=4)
    assert found.item_ids.tolist() == sorted(set(items))
    cosine = found.vectors @ found.vectors.T
    assert cosine[:10, :10].min() > cosine[:10, 10:].max()
    assert (found.vectors**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)


def test_the_order_of_interactions_does_not_matter():
    users, items = two_tastes()
    order = np.random.default_rng(1).permutation(len(users))
    first = interaction_vectors(users, items, dim=4)
    second = interaction_vectors(users[order], items[order], dim=4)
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_one_robot_does_not_count_beyond_the_limit():
    users, items = two_tastes()
    robot = np.full(20, 999)
    everything = np.unique(items)
    limited = interaction_vectors(
        np.append(users, robot), np.append(items, everything), dim=4, max_items_per_user=6
    )
    cosine = limited.vectors @ limited.vectors.T
    assert cosine[:10, :10].mean() > cosine[:10, 10:].mean() + 0.5


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="1 item, at least 2"):
        interaction_vectors(np.array([1, 2]), np.array(["a", "a"]))
    with pytest.raises(ValueError, match="2 users for 1 items"):
        interaction_vectors(np.array([1, 2]), np.array(["a"]))
    with pytest.raises(ValueError, match="weight must lie in"):
        fuse(np.ones((1, 2), "f4"), np.array(["a"]), ItemVectors(np.array(["a"]), np.eye(1)), 2.0)


def test_lonely_items_get_zeros():
    found = interaction_vectors(np.array([1, 2, 3]), np.array(["a", "b", "c"]))
    assert found.vectors.tolist() == [[0, 0]] * 3


def test_fusing_weighs_squared_distances_and_fills_gaps_with_the_mean():
    behaviour = ItemVectors(np.array(["a", "c"]), np.array([[1, 0], [0, 1]], "f4"))
    content = np.array([[1, 0], [0, 1], [1, 0]], "f4")
    fused = fuse(content, np.array(["a", "b", "c"]), behaviour, 0.25)
    assert fused.shape == (3, 4)
    np.testing.assert_allclose(fused[:, :2], content * np.sqrt(0.75), rtol=1e-6)
    np.testing.assert_allclose(fused[1, 2:], [0.25, 0.25])
    np.testing.assert_allclose(fused[0, 2:], [0.5, 0])
    # Items 0 and 2 have equal content: their distance is all behaviour.
    assert ((fused[0] - fused[2]) ** 2).sum() == pytest.approx(0.25 * 2)
    assert np.array_equal(fuse(content, np.array(["a", "b", "c"]), behaviour, 0)[:, :2], content)
