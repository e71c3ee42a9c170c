"""A single k-means codebook, the simplest baseline."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from models.config import VqConfig
from models.kmeans import kmeans
from models.rqkmeans import Rqkmeans


class Vq(Rqkmeans):
    """One codebook in embedding space: residual k-means of one level."""

    kind: ClassVar[str] = "vq"
    hierarchical: ClassVar[bool] = VqConfig.hierarchical


def fit_vq(config: VqConfig, embeddings: np.ndarray) -> Vq:
    """Fits one full-batch k-means.

    Args:
      config: size, iterations, seed.
      embeddings: (N, D) float32, N at least 1, in canonical order: the result depends on it.
    """
    return Vq((kmeans(embeddings, config.codebook_sizes[0], config.iterations, config.seed),))
