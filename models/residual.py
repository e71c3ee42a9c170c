"""Residual quantizers: codes coarse to fine, each level quantizing what the last left over."""

from __future__ import annotations

import abc
import functools
from typing import ClassVar

import numpy as np
import torch

from models.nearest import SEARCH_ROWS, CodewordTensors, exact_residual_codes
from models.quantizer import Quantizer

# Rows a block of the exact path holds: 512 x 8192 float64 distances are 34 MB.
EXACT_ROWS = 512


class ResidualQuantizer(Quantizer):
    """Codes by greedy nearest codewords of the residual; subclasses say what the latent is."""

    hierarchical: ClassVar[bool] = True

    @abc.abstractmethod
    def _fast_latents(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps (N, D) float32 on `_device` to (N, d) latents within float32 accuracy."""

    @functools.cached_property
    def _device(self) -> torch.device:
        """Where the fast path runs."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @functools.cached_property
    def _codewords(self) -> CodewordTensors:
        return CodewordTensors(self.codebooks, self._device)

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to (N, L) int32 codes; see `Quantizer.encode`."""
        embeddings = checked_embeddings(embeddings, self.embedding_dim)
        codes = np.empty((len(embeddings), self.num_levels), np.int32)
        open_rows = np.zeros(len(embeddings), bool)
        with torch.inference_mode():
            for start in range(0, len(embeddings), SEARCH_ROWS):
                block = slice(start, start + SEARCH_ROWS)
                rows = torch.from_numpy(embeddings[block]).to(self._device)
                fast, near_tie = self._codewords.residual_codes(self._fast_latents(rows))
                codes[block] = fast.cpu().numpy()
                open_rows[block] = near_tie.cpu().numpy()
        undecided = np.flatnonzero(open_rows)
        for start in range(0, len(undecided), EXACT_ROWS):
            chosen = undecided[start : start + EXACT_ROWS]
            codes[chosen] = exact_residual_codes(self.latents(embeddings[chosen]), self.codebooks)
        return codes

    def quantized(self, codes: np.ndarray) -> np.ndarray:
        """Returns the (N, d) float32 sum of the chosen codewords, added coarse to fine."""
        codes = checked_codes(codes, self.codebook_sizes)
        total = np.zeros((len(codes), self.codebooks[0].shape[1]))
        for level, book in enumerate(self.codebooks):
            total += book[codes[:, level]]
        return total.astype(np.float32)


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
    if not embeddings.flags.writeable:  # torch refuses to alias read-only memory silently
        embeddings = embeddings.copy()
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
