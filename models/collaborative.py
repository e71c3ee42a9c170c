"""Item vectors from behaviour: items that the same users had are near each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse
import scipy.sparse.linalg


@dataclasses.dataclass(frozen=True)
class InteractionConfig:
    """How interactions become vectors.

    Attributes:
      dimension: length d, lowered to M - 1 for few items.
      min_users: an item with fewer users gets no vector: two users say little.
      smoothing: exponent a of the context counts.
      max_items_per_user: items of one user that count, drawn at random; without a limit one
        robot with 100,000 items makes 10^10 pairs.
      seed: of the SVD's first vector and of that choice.
    """

    dimension: int = 64
    min_users: int = 3
    smoothing: float = 0.75
    max_items_per_user: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("dimension", 1, 4096),
            ("min_users", 1, 1 << 31),
            ("smoothing", 0, 1),
            ("max_items_per_user", 2, 1 << 20),
            ("seed", 0, (1 << 31) - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in {low}..{high}, got {value}")


@dataclasses.dataclass(frozen=True, eq=False)
class ItemVectors:
    """Vectors of the items that enough users interacted with.

    Attributes:
      item_ids: (M,) item ids, ascending.
      vectors: (M, d) float32, mean zero, squared length 1 on average.
    """

    item_ids: np.ndarray
    vectors: np.ndarray


def interaction_vectors(
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    config: InteractionConfig = InteractionConfig(),
    weights: np.ndarray | None = None,
) -> ItemVectors:
    """Factorises the positive pointwise mutual information of items that share users.

    Sums `c(i, j) = sum over users u of w(u,i) w(u,j)`, with w = 1 the number of users that had
    both items, `PPMI = max(0, log(c(i,j) C / (c(i) c(j)^a)))` with `C` the sum of `c(j)^a` (Levy,
    Goldberg, Dagan 2015, sections 2.1 and 3.2), and takes `U sqrt(S)` of its truncated SVD
    (section 3.3). The vectors are centred, so that zeros say nothing about an item.

    Args:
      user_ids: (E,) users of E interactions.
      item_ids: (E,) their items.
      config: size, limits, seed.
      weights: (E,) positive weights, which add up over interactions of one user with one item;
        None counts each such pair once.

    Returns:
      Vectors of the items with `min_users` users or more that share one with another such item.

    Raises:
      ValueError: lengths differ, a weight is not positive and finite, or fewer than 2 items have
        enough users.
    """
    if len(user_ids) != len(item_ids):
        raise ValueError(f"{len(user_ids)} users for {len(item_ids)} items")
    items, column = np.unique(item_ids, return_inverse=True)
    users, row = np.unique(user_ids, return_inverse=True)
    pairs, strength = _pairs(row.astype(np.int64) * len(items) + column, weights)
    enough = np.bincount(pairs % len(items), minlength=len(items)) >= config.min_users
    if enough.sum() < 2:
        raise ValueError(
            f"interactions name {len(items)} items, {enough.sum()} of them with at least "
            f"{config.min_users} users: at least 2 such items are needed"
        )
    kept = enough[pairs % len(items)]
    pairs, strength = pairs[kept], strength[kept]
    random = np.random.default_rng(config.seed)
    order = np.lexsort((random.random(len(pairs)), pairs // len(items)))
    pairs, strength = pairs[order], strength[order]
    starts = np.searchsorted(pairs // len(items), np.arange(len(users)))
    rank = np.arange(len(pairs)) - starts[pairs // len(items)]
    counted = rank < config.max_items_per_user
    pairs, strength = pairs[counted], strength[counted]
    seen = scipy.sparse.csr_matrix(
        (strength, (pairs // len(items), pairs % len(items))), shape=(len(users), len(items))
    )
    matrix = _information(seen, config.smoothing)
    # An item that is informative of nothing has no place among the others.
    linked = np.diff(matrix.indptr) > 0
    matrix = matrix[linked][:, linked]
    vectors = np.zeros((matrix.shape[0], max(0, min(config.dimension, matrix.shape[0] - 1))))
    if vectors.size:
        left, values, _ = scipy.sparse.linalg.svds(
            matrix, k=vectors.shape[1], v0=random.standard_normal(len(vectors))
        )
        order = np.argsort(-values)
        left, values = left[:, order], values[order]
        # An SVD leaves the signs open: the largest entry of each vector is made positive.
        left *= np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
        vectors = left * np.sqrt(values)
        vectors -= vectors.mean(axis=0)
        vectors /= np.sqrt((vectors**2).sum(axis=1).mean())
    return ItemVectors(items[linked], vectors.astype(np.float32))


def _pairs(keys: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys, ascending, and the sum of their weights."""
    if weights is None:
        distinct = np.unique(keys)
        return distinct, np.ones(len(distinct))
    if len(weights) != len(keys):
        raise ValueError(f"{len(weights)} weights for {len(keys)} interactions")
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("weights must be positive and finite")
    # Sorted by weight too, so that sums do not depend on the order of interactions.
    order = np.lexsort((weights, keys))
    distinct, first = np.unique(keys[order], return_index=True)
    sums = np.add.reduceat(weights[order], first) if len(first) else np.zeros(0)
    return distinct, sums


def _information(seen: scipy.sparse.csr_matrix, smoothing: float) -> scipy.sparse.csr_matrix:
    """Returns the (M, M) PPMI of the columns of a (users, M) matrix, without zeros."""
    together = (seen.T @ seen).tocoo()
    apart = together.row != together.col
    first, second, count = together.row[apart], together.col[apart], together.data[apart]
    totals = np.bincount(first, weights=count, minlength=seen.shape[1])
    context = totals**smoothing
    information = np.log(count * context.sum() / (totals[first] * context[second]))
    positive = information > 0
    return scipy.sparse.csr_matrix(
        (information[positive], (first[positive], second[positive])),
        shape=(seen.shape[1], seen.shape[1]),
    )
