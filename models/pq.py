"""Product quantization: each codebook quantizes its own slice of the embedding (faiss)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np

from models.arithmetic import Codewords, default_arithmetic
from models.config import PqConfig
from models.kmeans import kmeans
from models.nearest import exact_parallel_codes, search_codes
from models.quantizer import Quantizer
from models.residual import checked_codes, checked_embeddings


class Pq(Quantizer):
    """Codes of the slices of an embedding, in no order; the latent is the embedding itself.

    Args:
      slices: L float32 arrays (K_l, D_l) whose widths add up to D.
    """

    kind: ClassVar[str] = "pq"
    hierarchical: ClassVar[bool] = PqConfig.hierarchical

    def __init__(self, slices: tuple[np.ndarray, ...]) -> None:
        self._slices = slices
        self._bounds = np.concatenate([[0], np.cumsum([book.shape[1] for book in slices])])

    @property
    def embedding_dim(self) -> int:
        """Length D of the embeddings it was fitted on."""
        return int(self._bounds[-1])

    @functools.cached_property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """L float32 codebooks (K_l, D): each slice's centroids, zero outside the slice."""
        books = []
        for level, book in enumerate(self._slices):
            wide = np.zeros((len(book), self.embedding_dim), np.float32)
            wide[:, self._bounds[level] : self._bounds[level + 1]] = book
            books.append(wide)
        return tuple(books)

    @functools.cached_property
    def _codewords(self) -> list[Codewords]:
        return [default_arithmetic().codewords([book]) for book in self._slices]

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns the (N, D) embeddings as they are."""
        return checked_embeddings(embeddings, self.embedding_dim)

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to (N, L) int32 codes; see `Quantizer.encode`."""
        embeddings = checked_embeddings(embeddings, self.embedding_dim)
        codes = np.empty((len(embeddings), len(self._slices)), np.int32)
        for level, codewords in enumerate(self._codewords):
            part = np.ascontiguousarray(
                embeddings[:, self._bounds[level] : self._bounds[level + 1]]
            )
            codes[:, level] = _slice_codes(part, self._slices[level], codewords)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32: the slices' centroids side by side."""
        codes = checked_codes(codes, self.codebook_sizes)
        parts = [book[codes[:, level]] for level, book in enumerate(self._slices)]
        return np.concatenate(parts, axis=1)

    def state(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """Returns the JSON configuration and the slices' centroids."""
        return {}, {f"slices.{level}": book for level, book in enumerate(self._slices)}

    @classmethod
    def from_state(cls, config: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuilds the quantizer from what `state` returned."""
        return cls(tuple(arrays[f"slices.{level}"] for level in range(len(arrays))))


def fit_pq(config: PqConfig, embeddings: np.ndarray) -> Pq:
    """Fits one full-batch k-means a slice; widths differ by at most 1.

    Args:
      config: sizes, iterations, seed.
      embeddings: (N, D) float32, N at least 1, in canonical order: the result depends on it.

    Raises:
      ValueError: there are more slices than dimensions.
    """
    count, dim = len(config.codebook_sizes), embeddings.shape[1]
    if count > dim:
        raise ValueError(f"codebook_sizes names {count} slices, embeddings have {dim} values")
    parts = np.array_split(np.arange(dim), count)
    return Pq(
        tuple(
            kmeans(embeddings[:, part], size, config.iterations, config.seed + level)
            for level, (part, size) in enumerate(zip(parts, config.codebook_sizes, strict=True))
        )
    )


def _slice_codes(rows: np.ndarray, book: np.ndarray, codewords: Codewords) -> np.ndarray:
    """Returns (N,) int32 nearest codes, near-ties decided in float64."""
    arithmetic = default_arithmetic()

    def fast(block: slice) -> tuple[np.ndarray, np.ndarray]:
        codes, near_tie = codewords.parallel_codes(arithmetic.put(rows[block]))
        return arithmetic.get(codes), arithmetic.get(near_tie)

    def exact(chosen: np.ndarray) -> np.ndarray:
        return exact_parallel_codes(rows[chosen], [book])

    return search_codes((len(rows), 1), fast, exact)[:, 0]
