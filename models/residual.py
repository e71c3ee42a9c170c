"""Residual quantizers: codes coarse to fine, each level quantizing what the last left over."""

from __future__ import annotations

import abc
import functools
from typing import ClassVar

import numpy as np

from models.arithmetic import Array, Codewords, default_arithmetic
from models.nearest import EXACT_ROWS, exact_beam_codes, exact_residual_codes, search_codes
from models.quantizer import Quantizer
from models.rounded_latents import RoundedLatents


class ResidualQuantizer(Quantizer):
    """Codes by nearest codewords of the residual; subclasses say what the latent is.

    Args:
      beam: code tuples kept per level when encoding; 1 is greedy.
    """

    hierarchical: ClassVar[bool] = True

    def __init__(self, beam: int = 1) -> None:
        self._beam = beam

    @abc.abstractmethod
    def _fast_latents(self, rows: Array) -> Array:
        """Maps (N, D) float32 to (N, d) latents within float32 accuracy."""

    @functools.cached_property
    def _codewords(self) -> Codewords:
        return default_arithmetic().codewords(self.codebooks)

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to (N, L) int32 codes; see `Quantizer.encode`."""
        return self._search(embeddings, None)

    def _search(self, embeddings: np.ndarray, rounded: RoundedLatents | None) -> np.ndarray:
        """Encodes; keeps the latents of all rows in `rounded`, where it is given."""
        embeddings = checked_embeddings(embeddings, self.embedding_dim)
        arithmetic = default_arithmetic()

        def fast(block: slice) -> tuple[np.ndarray, np.ndarray]:
            latents = self._fast_latents(arithmetic.put(embeddings[block]))
            codes, near_tie = (
                self._codewords.residual_codes(latents)
                if self._beam == 1
                else self._codewords.beam_codes(latents, self._beam)
            )
            if rounded is not None:
                rounded.settle(block.start, arithmetic.get(latents))
            return arithmetic.get(codes), arithmetic.get(near_tie)

        def exact(chosen: np.ndarray) -> np.ndarray:
            vectors = self.latents(embeddings[chosen])
            if self._beam == 1:
                return exact_residual_codes(vectors, self.codebooks)
            return exact_beam_codes(vectors, self.codebooks, self._beam)

        shape = (len(embeddings), self.num_levels)
        codes = search_codes(shape, fast, exact, self._beam)
        if rounded is not None:
            for chosen in rounded.unsettled(EXACT_ROWS):
                rounded.set(chosen, self.latents(embeddings[chosen]))
        return codes

    def quantized(self, codes: np.ndarray) -> np.ndarray:
        """Returns the (N, d) float32 sum of the chosen codewords, added coarse to fine."""
        return self.prefix_sums(codes)[-1]

    def prefix_sums(self, codes: np.ndarray) -> list[np.ndarray]:
        """Returns L arrays (N, d) float32: the sums of the first 1..L chosen codewords."""
        codes = checked_codes(codes, self.codebook_sizes)
        total = np.zeros((len(codes), self.codebooks[0].shape[1]))
        sums = []
        for level, book in enumerate(self.codebooks):
            total += book[codes[:, level]]
            sums.append(total.astype(np.float32))
        return sums


def checked_embeddings(embeddings: np.ndarray, dim: int) -> np.ndarray:
    """Returns C-ordered float32 embeddings of shape (N, dim).

    Raises:
      ValueError: another shape, or a value that is not finite; the message names the row.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.shape[1] != dim:
        raise ValueError(f"embeddings must have shape (N, {dim}), got {embeddings.shape}")
    embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
    # The sum is finite only if every value is, and costs no (N, D) mask.
    if not np.isfinite(embeddings.sum(dtype=np.float64)):
        rows = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(rows):
            raise ValueError(f"embedding of row {rows[0]} has a value that is not finite")
    return embeddings


def checked_codes(codes: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Returns codes of shape (N, L) in range.

    Raises:
      ValueError: another shape, or a code outside its codebook; the message names the row.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise ValueError(f"codes must have shape (N, {len(sizes)}), got {codes.shape}")
    bad = np.argwhere((codes < 0) | (codes >= np.array(sizes)))
    if len(bad):
        row, level = bad[0]
        raise ValueError(
            f"row {row}: code {codes[row, level]} at level {level + 1} is outside "
            f"0..{sizes[level] - 1}"
        )
    return codes
