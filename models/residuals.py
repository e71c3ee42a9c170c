"""Residuals of latents under codebooks that add up, and their distances to codewords."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.exact_products import SplitRows, exact_dot, split_rows
from models.sid import SidLayout


class ResidualCodebooks:
    """Codebooks in float64, prepared for reproducible distances.

    Shapes: n rows, d latent dimension, L levels, K_l codes of level l.
    """

    def __init__(self, codebooks: Sequence[np.ndarray], layout: SidLayout) -> None:
        sizes = tuple(len(book) for book in codebooks)
        if sizes != layout.codebook_sizes:
            raise ValueError(
                f"codebooks of {list(sizes)} codes do not fit the layout's "
                f"{list(layout.codebook_sizes)}"
            )
        self.books = [np.asarray(book, np.float64) for book in codebooks]
        self._split: dict[int, tuple[SplitRows, np.ndarray]] = {}

    def residual(self, vectors: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        """Returns (n, d) float64, what is left of vectors before 0-based `level`."""
        rest = vectors.astype(np.float64)
        for earlier in range(level):
            rest -= self.books[earlier][codes[:, earlier]]
        return rest

    def costs(self, vectors: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        """Returns (n, K_level) squared distances of residuals to codewords, less |residual|^2."""
        if level not in self._split:
            book = self.books[level]
            self._split[level] = split_rows(book), np.square(book).sum(axis=1)
        split, norms = self._split[level]
        return norms - 2.0 * exact_dot(split_rows(self.residual(vectors, codes, level)), split)

    def distance(self, vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Returns (n,) squared distances of vectors to the sum of their codewords."""
        return np.square(self.residual(vectors, codes, len(self.books))).sum(axis=1)
