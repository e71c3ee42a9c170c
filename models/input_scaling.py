"""Centre, scale and optional whitening of embeddings before an encoder sees them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

# Variances below this share of the largest are treated as noise: whitening may not blow them up.
VARIANCE_FLOOR = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class InputScaling:
    """Makes rows zero-mean with squared length 1 on average.

    Raw unit-norm embeddings share most of their mean direction, and an RQ-VAE on them ends up
    with a few codes.

    Attributes:
      mean: (D,) float64.
      scale: root mean square length of the centred rows.
      matrix: (D, D) float64; `(x - mean) @ matrix` is what the encoder takes.
    """

    mean: np.ndarray
    scale: float
    matrix: np.ndarray

    @classmethod
    def of(cls, embeddings: np.ndarray, whitening: float) -> InputScaling:
        """Measures (N, D) rows; rows that are all equal get scale 1.

        Args:
          embeddings: float32 rows.
          whitening: exponent w; principal axes are scaled by variance^(-w/2).
        """
        mean = embeddings.mean(axis=0, dtype=np.float64)
        dim = len(mean)
        covariance = np.zeros((dim, dim))
        for start in range(0, len(embeddings), 4096):
            centred = embeddings[start : start + 4096] - mean
            covariance += centred.T @ centred
        covariance /= len(embeddings)
        scale = math.sqrt(max(float(np.trace(covariance)), 0.0))
        if scale < 1e-6:
            return cls(mean, 1.0, np.eye(dim))
        if whitening == 0:
            return cls(mean, scale, np.eye(dim) / scale)
        variance, axes = np.linalg.eigh(covariance)
        variance = np.maximum(variance, VARIANCE_FLOOR * variance[-1])
        matrix = (axes * variance ** (-whitening / 2)) @ axes.T
        return cls(mean, scale, matrix / math.sqrt(float(np.trace(matrix @ covariance @ matrix))))

    def encoder_rows(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns (N, D) float32 rows as the encoder takes them."""
        centred = embeddings - self.mean.astype(np.float32)
        return np.asarray(centred @ self.matrix.astype(np.float32), dtype=np.float32)

    def target_rows(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns (N, D) float32 rows as the decoder gives them: centred and scaled only."""
        return ((embeddings - self.mean) / self.scale).astype(np.float32)
