"""Nearest codewords, level by level, with answers that do not depend on the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.products import product

# A float32 code is trusted when the runner-up is farther by more than this share of the squared
# length of latent plus codeword. Float32 carries 6e-8; the sums of an encoder of width 768 and
# a search over 64 dimensions were measured within 1e-6 of float64 on the same scale, so 1e-4
# leaves two orders of magnitude and sends fewer than 1 % of items to the float64 path.
NEAR_TIE = 1e-4
# Rows searched at once: their scores against 256 codewords (1 MB) stay within the cache.
SEARCH_ROWS = 1024
_UNIT_ROUNDOFF = 2.0**-53


class CodewordTensors:
    """Codebooks on a device, ready for the float32 search.

    Args:
      codebooks: L float32 arrays of shape (K_l, d).
      device: where the search runs.
    """

    def __init__(self, codebooks: Sequence[np.ndarray], device: torch.device) -> None:
        self.codewords = [torch.from_numpy(np.array(book)).to(device) for book in codebooks]
        self.transposed = [words.t().contiguous() for words in self.codewords]
        self.half_norms = []
        self.scale = 0.0
        for book in codebooks:
            wide = book.astype(np.float64)
            half = (wide**2).sum(axis=1) / 2
            self.scale = max(self.scale, float(half.max()))
            half[repeated_rows(book)] = np.inf
            self.half_norms.append(torch.from_numpy(half.astype(np.float32)).to(device))

    def residual_codes(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Picks the nearest codeword of each level in turn.

        Args:
          latents: (N, d) float32.

        Returns:
          (N, L) int64 codes, and (N,) bool: True where a level was too close to call.
        """
        residual = latents
        tolerance = NEAR_TIE * ((latents * latents).sum(dim=1) / 2 + self.scale)
        near_tie = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        codes = []
        for level, words in enumerate(self.codewords):
            code, near = self._nearest(residual, level, tolerance)
            codes.append(code)
            near_tie |= near
            if level < len(self.codewords) - 1:
                residual = residual - words[code]
        return torch.stack(codes, dim=1), near_tie

    def beam_codes(self, latents: torch.Tensor, beam: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the `beam` best code tuples of each level and returns the best of the last.

        Args:
          latents: (N, d) float32.
          beam: tuples kept, at least 2.

        Returns:
          (N, L) int64 codes, and (N,) bool: True where what was kept or chosen was too close to
          call.
        """
        count, width = latents.shape
        tolerance = NEAR_TIE * ((latents * latents).sum(dim=1) / 2 + self.scale)
        near_tie = torch.zeros(count, dtype=torch.bool, device=latents.device)
        residuals = latents[:, None]
        scores = torch.zeros(count, 1, device=latents.device)
        tuples = torch.zeros(count, 1, 0, dtype=torch.int64, device=latents.device)
        for level, words in enumerate(self.codewords):
            # Half the squared distance of the tuple, less the latent's own |latent|^2 / 2.
            step = self._scores(residuals.reshape(-1, width), level).view(count, -1, len(words))
            candidates = (scores[:, :, None] + step).flatten(1)
            last = level == len(self.codewords) - 1
            keep = min(1 if last else beam, candidates.shape[1])
            ahead = min(keep + 1, candidates.shape[1])
            values, positions = candidates.topk(ahead, dim=1, largest=False)
            if ahead > keep:
                near_tie |= values[:, keep] - values[:, keep - 1] <= tolerance
            scores, positions = values[:, :keep], positions[:, :keep]
            parent = torch.div(positions, len(words), rounding_mode="floor")
            code = positions % len(words)
            tuples = torch.cat(
                [tuples.gather(1, parent[:, :, None].expand(-1, -1, level)), code[:, :, None]], 2
            )
            residuals = residuals.gather(1, parent[:, :, None].expand(-1, -1, width)) - words[code]
        return tuples[:, 0], near_tie

    def parallel_codes(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Picks the nearest codeword of each codebook independently; shapes as above."""
        tolerance = NEAR_TIE * ((latents * latents).sum(dim=1) / 2 + self.scale)
        near_tie = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        codes = []
        for level in range(len(self.codewords)):
            code, near = self._nearest(latents, level, tolerance)
            codes.append(code)
            near_tie |= near
        return torch.stack(codes, dim=1), near_tie

    def sums(self, codes: torch.Tensor) -> torch.Tensor:
        """Maps (N, L) codes to the (N, d) float32 sums of their codewords."""
        total = self.codewords[0][codes[:, 0]]
        for words, column in zip(self.codewords[1:], codes.T[1:], strict=True):
            total += words[column]
        return total

    def _nearest(
        self, rows: torch.Tensor, level: int, tolerance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (N,) nearest codes and (N,) whether another codeword is within tolerance."""
        scores = self._scores(rows, level)
        if scores.device.type == "cpu":
            return _nearest_on_cpu(scores.numpy(), tolerance)
        best, code = scores.min(dim=1)
        near = (scores <= (best + tolerance)[:, None]).sum(dim=1) > 1
        return code, near

    def _scores(self, rows: torch.Tensor, level: int) -> torch.Tensor:
        """Returns (N, K) half squared distances without the |row|^2 / 2 that all of a row share."""
        return torch.sub(self.half_norms[level], product(rows, self.transposed[level]))


def _nearest_on_cpu(
    scores: np.ndarray, tolerance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Does what `CodewordTensors._nearest` does; numpy finds minima of rows faster than torch.

    Args:
      scores: (N, K), overwritten.
      tolerance: (N,).
    """
    rows, code = np.arange(len(scores)), scores.argmin(axis=1)
    best = scores[rows, code]
    scores[rows, code] = np.inf
    near = scores.min(axis=1) <= best + tolerance.numpy()
    return torch.from_numpy(code), torch.from_numpy(near)


def nearest_codes(rows: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Returns (N,) nearest codes in float32, for fitting, where a near-tie may go either way."""
    words = CodewordTensors([book], torch.device("cpu"))
    codes = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), SEARCH_ROWS):
        block = torch.from_numpy(np.array(rows[start : start + SEARCH_ROWS], dtype=np.float32))
        codes[start : start + len(block)] = words.residual_codes(block)[0][:, 0].numpy()
    return codes


def repeated_rows(book: np.ndarray) -> np.ndarray:
    """Returns (K,) bool, True where a row repeats an earlier one and so is never nearest."""
    repeated = np.ones(len(book), bool)
    repeated[np.unique(book, axis=0, return_index=True)[1]] = False
    return repeated


def exact_residual_codes(latents: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Picks codes in float64, level by level; see `_exactly_nearest`.

    Args:
      latents: (N, d) float32.
      codebooks: L float32 arrays of shape (K_l, d).

    Returns:
      (N, L) int32 codes; of equally near codewords the lowest.
    """
    residual = latents.astype(np.float64)
    codes = np.empty((len(latents), len(codebooks)), np.int32)
    for level, book in enumerate(codebooks):
        wide = book.astype(np.float64)
        codes[:, level] = _exactly_nearest(residual, wide)
        residual = residual - wide[codes[:, level]]
    return codes


def exact_beam_codes(latents: np.ndarray, codebooks: Sequence[np.ndarray], beam: int) -> np.ndarray:
    """As `CodewordTensors.beam_codes` in float64; of equally near tuples the lowest."""
    codes = np.empty((len(latents), len(codebooks)), np.int32)
    for row, latent in enumerate(latents.astype(np.float64)):
        residuals, tuples = latent[None], np.zeros((1, 0), np.int32)
        for level, book in enumerate(codebooks):
            wide = book.astype(np.float64)
            distances = _distances_in_index_order(residuals, wide)
            distances[:, repeated_rows(book)] = np.inf
            parents, words = np.divmod(np.arange(distances.size), len(book))
            last = level == len(codebooks) - 1
            grown = np.concatenate([tuples[parents], words[:, None].astype(np.int32)], axis=1)
            order = np.lexsort((*grown.T[::-1], distances.ravel()))[: 1 if last else beam]
            tuples = grown[order]
            residuals = residuals[parents[order]] - wide[words[order]]
        codes[row] = tuples[0]
    return codes


def exact_parallel_codes(latents: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """As `exact_residual_codes`, each codebook against the whole latent."""
    rows = latents.astype(np.float64)
    codes = np.empty((len(latents), len(codebooks)), np.int32)
    for level, book in enumerate(codebooks):
        codes[:, level] = _exactly_nearest(rows, book.astype(np.float64))
    return codes


def _exactly_nearest(rows: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Picks the least squared distance, summed in float64 from dimension 0 upwards.

    A matrix product finds it wherever no other codeword comes within what rounding can move: both
    ways of summing d terms err by at most `(d + 4) u` of `(|row| + |word|)^2` (Higham, Accuracy and
    Stability, eq. 3.5, u = 2^-53). Only rows with such a rival are summed in that order, which
    costs a hundred times as much.

    Args:
      rows: (N, d) float64.
      words: (K, d) float64.

    Returns:
      (N,) codes, of equally near codewords the lowest.
    """
    half_norms = np.square(words).sum(axis=1) / 2
    largest = np.sqrt(2 * half_norms.max())
    half_norms[repeated_rows(words)] = np.inf
    scores = half_norms - rows @ words.T
    codes = scores.argmin(axis=1)
    reach = (np.sqrt(np.square(rows).sum(axis=1)) + largest) ** 2
    reach *= 4 * (rows.shape[1] + 4) * _UNIT_ROUNDOFF
    limit = np.take_along_axis(scores, codes[:, None], axis=1) + reach[:, None]
    rivals = np.flatnonzero((scores <= limit).sum(axis=1) > 1)
    if len(rivals):
        codes[rivals] = _distances_in_index_order(rows[rivals], words).argmin(axis=1)
    return codes


def _distances_in_index_order(rows: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Returns (N, K) squared distances, independent of N and of the number of threads."""
    total = np.zeros((len(rows), len(words)))
    for column in range(rows.shape[1]):
        total += (rows[:, column, None] - words[:, column]) ** 2
    return total
