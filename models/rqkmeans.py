"""Residual k-means: the plain baseline, and hard to beat on reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from models.arithmetic import Array, default_arithmetic
from models.config import RqkmeansConfig
from models.kmeans import kmeans
from models.nearest import nearest_codes
from models.residual import ResidualQuantizer, checked_embeddings


class Rqkmeans(ResidualQuantizer):
    """Residual codebooks in embedding space; the latent is the embedding itself.

    Args:
      codebooks: L float32 arrays of shape (K_l, D).
      beam: code tuples kept per level when encoding; 1 is greedy.
    """

    kind: ClassVar[str] = "rqkmeans"
    quantizes_embeddings: ClassVar[bool] = True

    def __init__(self, codebooks: tuple[np.ndarray, ...], beam: int = 1) -> None:
        super().__init__(beam)
        self._codebooks = codebooks

    @property
    def embedding_dim(self) -> int:
        """Length D of the embeddings it was fitted on."""
        return int(self._codebooks[0].shape[1])

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """L float32 codebooks of shape (K_l, D), coarse to fine."""
        return self._codebooks

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns the (N, D) embeddings as they are."""
        return checked_embeddings(embeddings, self.embedding_dim)

    def _fast_latents(self, rows: Array) -> Array:
        return rows

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32: the sum of their codewords."""
        return self.quantized(codes)

    def nearly_decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32, added in float32; see `Quantizer`."""
        arithmetic = default_arithmetic()
        return arithmetic.get(self._codewords.sums(arithmetic.put(codes)))

    def state(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """Returns the JSON configuration and the codebooks."""
        arrays = {f"codebooks.{level}": book for level, book in enumerate(self._codebooks)}
        return {"beam": self._beam}, arrays

    @classmethod
    def from_state(cls, config: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuilds the quantizer from what `state` returned."""
        beam = config["beam"]
        if not isinstance(beam, int):
            raise ValueError(f"not the configuration of an rqkmeans: {dict(config)}")
        return cls(tuple(arrays[f"codebooks.{level}"] for level in range(len(arrays))), beam)


def fit_rqkmeans(
    config: RqkmeansConfig, embeddings: np.ndarray, start: Sequence[np.ndarray] = ()
) -> Rqkmeans:
    """Fits one full-batch k-means a level on what the levels before left over.

    Args:
      config: sizes, iterations, seed.
      embeddings: (N, D) float32, N at least 1, in canonical order: the result depends on it.
      start: (K_l, D) codebooks that were fitted before; a level of the same size starts from its
        own.

    Returns:
      The fitted quantizer.
    """
    residual = embeddings
    codebooks: list[np.ndarray] = []
    for level, size in enumerate(config.codebook_sizes):
        before = start[level] if level < len(start) and len(start[level]) == size else None
        book = kmeans(residual, size, config.iterations, config.seed + level, before)
        codebooks.append(book)
        residual = residual - book[nearest_codes(residual, book)]
    return Rqkmeans(tuple(codebooks), config.beam)
