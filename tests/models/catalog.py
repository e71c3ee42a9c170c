"""Embeddings that look like a catalog's: clusters in clusters, unit length, a few duplicates."""

import numpy as np


def clustered_embeddings(count: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    """Returns (count, dim) float32 unit rows around 8 x 6 centres."""
    random = np.random.default_rng(seed)
    top = random.normal(size=(8, dim))
    below = top[:, None] + 0.5 * random.normal(size=(8, 6, dim))
    chosen = below[random.integers(8, size=count), random.integers(6, size=count)]
    rows = 1.5 + chosen + 0.2 * random.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
