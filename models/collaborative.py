"""Item vectors from behaviour, and how they join content embeddings before quantization."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse
import scipy.sparse.linalg


@dataclasses.dataclass(frozen=True, eq=False)
class ItemVectors:
    """Vectors of the items that somebody interacted with.

    Attributes:
      item_ids: (M,) item ids, ascending.
      vectors: (M, d) float32, squared length 1 on average.
    """

    item_ids: np.ndarray
    vectors: np.ndarray


def interaction_vectors(
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    *,
    dim: int = 64,
    smoothing: float = 0.75,
    max_items_per_user: int = 200,
    seed: int = 0,
) -> ItemVectors:
    """Factorises the positive pointwise mutual information of items that share users.

    Counts `c(i, j)` users that had both items, `PPMI = max(0, log(c(i,j) C / (c(i) c(j)^a)))`
    with `C` the sum of `c(j)^a` (Levy, Goldberg, Dagan 2015, sections 2.1 and 3.2), and takes
    `U sqrt(S)` of its truncated SVD (section 3.3).

    Args:
      user_ids: (E,) users of E interactions.
      item_ids: (E,) their items.
      dim: length d, lowered to M - 1 for few items.
      smoothing: exponent a of the context counts.
      max_items_per_user: items of one user that count, drawn at random;
        without a limit one robot with 100,000 items makes 10^10 pairs.
      seed: of the SVD's first vector and of that choice.

    Returns:
      Vectors of all items with interactions; items that share users with none get zeros.

    Raises:
      ValueError: lengths differ, or fewer than 2 items.
    """
    if len(user_ids) != len(item_ids):
        raise ValueError(f"{len(user_ids)} users for {len(item_ids)} items")
    items, column = np.unique(item_ids, return_inverse=True)
    users, row = np.unique(user_ids, return_inverse=True)
    if len(items) < 2:
        raise ValueError(f"interactions name {len(items)} item, at least 2 are needed")
    random = np.random.default_rng(seed)
    pairs = np.unique(row.astype(np.int64) * len(items) + column)
    pairs = pairs[np.lexsort((random.random(len(pairs)), pairs // len(items)))]
    starts = np.searchsorted(pairs // len(items), np.arange(len(users)))
    rank = np.arange(len(pairs)) - starts[pairs // len(items)]
    pairs = pairs[rank < max_items_per_user]
    seen = scipy.sparse.csr_matrix(
        (np.ones(len(pairs)), (pairs // len(items), pairs % len(items))),
        shape=(len(users), len(items)),
    )
    together = (seen.T @ seen).tocoo()
    apart = together.row != together.col
    first, second, count = together.row[apart], together.col[apart], together.data[apart]
    totals = np.bincount(first, weights=count, minlength=len(items))
    context = totals**smoothing
    information = np.log(count * context.sum() / (totals[first] * context[second]))
    matrix = scipy.sparse.csr_matrix(
        (np.maximum(information, 0.0), (first, second)), shape=(len(items), len(items))
    )
    vectors = np.zeros((len(items), min(dim, len(items) - 1)))
    if matrix.nnz:
        left, values, _ = scipy.sparse.linalg.svds(
            matrix, k=vectors.shape[1], v0=random.standard_normal(len(items))
        )
        order = np.argsort(-values)
        left, values = left[:, order], values[order]
        # An SVD leaves the signs open: the largest entry of each vector is made positive.
        left *= np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
        vectors = left * np.sqrt(values)
        vectors /= np.sqrt((vectors**2).sum(axis=1).mean())
    return ItemVectors(items, vectors.astype(np.float32))


def fuse(
    embeddings: np.ndarray, item_ids: np.ndarray, behaviour: ItemVectors, weight: float
) -> np.ndarray:
    """Puts content and behaviour side by side, as one embedding to quantize.

    Both parts have squared length 1 on average before weighting. An item without interactions
    gets the mean behaviour vector, so that nothing is claimed about it.

    Args:
      embeddings: (N, D) float32 content embeddings, unit length.
      item_ids: (N,) their items.
      behaviour: of any items.
      weight: share w of behaviour in the squared distance, 0 to 1; content has 1 - w.

    Returns:
      (N, D + d) float32.

    Raises:
      ValueError: weight is outside 0..1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie in 0..1, got {weight}")
    position = np.searchsorted(behaviour.item_ids, item_ids)
    position = np.minimum(position, len(behaviour.item_ids) - 1)
    known = behaviour.item_ids[position] == item_ids
    part = np.where(known[:, None], behaviour.vectors[position], behaviour.vectors.mean(axis=0))
    return np.concatenate(
        [embeddings * np.float32(np.sqrt(1 - weight)), part * np.float32(np.sqrt(weight))], axis=1
    ).astype(np.float32)
