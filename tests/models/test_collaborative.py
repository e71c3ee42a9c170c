import dataclasses

import numpy as np
import pytest

from models.collaborative import InteractionConfig, interaction_vectors

SMALL = InteractionConfig(dimension=4)


def two_tastes():
    """Users of one half like items 0..9, of the other items 10..19."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 5)
    taste = (users % 2) * 10
    items = np.array([f"i{n:02}" for n in range(20)])[taste + random.integers(10, size=1000)]
    return users, items


def cosines(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def test_items_with_common_users_are_near():
    users, items = two_tastes()
    found = interaction_vectors(users, items, SMALL)
    assert found.item_ids.tolist() == sorted(set(items))
    cosine = cosines(found.vectors)
    assert cosine[:10, :10].min() > cosine[:10, 10:].max()
    assert (found.vectors**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(found.vectors.mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_order_of_interactions_does_not_matter(weighted):
    users, items = two_tastes()
    weights = np.random.default_rng(2).random(len(users)) + 0.1 if weighted else None
    order = np.random.default_rng(1).permutation(len(users))
    first = interaction_vectors(users, items, SMALL, weights)
    shuffled = None if weights is None else weights[order]
    second = interaction_vectors(users[order], items[order], SMALL, shuffled)
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_weights_of_a_pair_add_up_and_count():
    users, items = two_tastes()
    ones = np.ones(len(users))
    twice = interaction_vectors(
        np.r_[users, users], np.r_[items, items], SMALL, np.r_[0.25 * ones, 0.75 * ones]
    )
    np.testing.assert_array_equal(
        twice.vectors, interaction_vectors(users, items, SMALL, ones).vectors
    )
    heavy = np.where(users < 20, 50.0, 1.0)
    assert not np.allclose(
        interaction_vectors(users, items, SMALL, heavy).vectors,
        interaction_vectors(users, items, SMALL, ones).vectors,
    )


def test_one_robot_does_not_count_beyond_the_limit():
    users, items = two_tastes()
    robot = np.full(20, 999)
    config = dataclasses.replace(SMALL, max_items_per_user=6)
    limited = interaction_vectors(
        np.append(users, robot), np.append(items, np.unique(items)), config
    )
    cosine = cosines(limited.vectors)
    assert cosine[:10, :10].mean() > cosine[:10, 10:].mean() + 0.5


def test_items_of_few_users_or_alone_with_theirs_get_no_vector():
    users, items = two_tastes()
    users = np.r_[users, [0, 1], [900, 901, 902]]
    items = np.r_[items, ["rare"] * 2, ["alone"] * 3]
    found = interaction_vectors(users, items, SMALL)
    assert not {"rare", "alone"} & set(found.item_ids)
    assert len(found.item_ids) == 20
    curious = interaction_vectors(users, items, dataclasses.replace(SMALL, min_users=2))
    assert "rare" in curious.item_ids and "alone" not in curious.item_ids
    nobody = interaction_vectors(
        np.array([1, 2]), np.array(["a", "b"]), dataclasses.replace(SMALL, min_users=1)
    )
    assert len(nobody.item_ids) == len(nobody.vectors) == 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="1 items, 0 of them with at least 3 users"):
        interaction_vectors(np.array([1, 2]), np.array(["a", "a"]))
    with pytest.raises(ValueError, match="2 users for 1 items"):
        interaction_vectors(np.array([1, 2]), np.array(["a"]))
    with pytest.raises(ValueError, match="positive and finite"):
        interaction_vectors(*two_tastes(), SMALL, np.zeros(1000))
    with pytest.raises(ValueError, match=r"dimension must lie in 1\.\.4096, got 0"):
        InteractionConfig(dimension=0)
