"""Lloyd's k-means that ends whatever the rows look like."""

from __future__ import annotations

import faiss
import numpy as np


def kmeans(
    rows: np.ndarray, size: int, iterations: int, seed: int, start: np.ndarray | None = None
) -> np.ndarray:
    """Clusters all rows.

    With fewer distinct rows than centroids no clustering is needed and an implementation that
    waits for `size` non-empty clusters never returns: the distinct rows are then the centroids,
    in ascending order, and the codes left over repeat them.

    Args:
      rows: (N, d) float32, N at least 1.
      size: number of centroids K.
      iterations: Lloyd iterations.
      seed: seeds the choice of first centroids, and how an empty cluster is filled.
      start: (K, d) float32 first centroids, instead of drawn ones; of no use, and ignored, where
        the distinct rows are the centroids.

    Returns:
      (K, d) float32 centroids.

    Raises:
      ValueError: there is no row.
    """
    if not len(rows):
        raise ValueError("k-means needs at least 1 row, got 0")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    distinct = _distinct_up_to(rows, size)
    if len(distinct) <= size:
        return distinct[np.arange(size) % len(distinct)]
    clustering = faiss.Kmeans(
        rows.shape[1],
        size,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    clustering.train(rows, init_centroids=start)
    return np.array(clustering.centroids, dtype=np.float32).reshape(size, rows.shape[1])


def _distinct_up_to(rows: np.ndarray, limit: int) -> np.ndarray:
    """Returns all distinct rows sorted, or more than `limit` of them once that many are seen."""
    distinct = rows[:0]
    for start in range(0, len(rows), 4 * limit):
        block = rows[start : start + 4 * limit]
        distinct = np.unique(np.concatenate([distinct, block]), axis=0)
        if len(distinct) > limit:
            break
    return distinct
