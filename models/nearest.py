"""Nearest codewords, level by level, with answers that do not depend on the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# A float32 code is trusted when the runner-up is farther by more than this share of the squared
# length of latent plus codeword. Float32 carries 6e-8; the sums of an encoder of width 768 and
# a search over 64 dimensions were measured within 1e-6 of float64 on the same scale, so 1e-4
# leaves two orders of magnitude and sends fewer than 1 % of items to the float64 path.
NEAR_TIE = 1e-4
# Rows searched at once: their scores against 256 codewords (1 MB) stay within the cache.
SEARCH_ROWS = 1024
# Rows a block of the exact path holds: 512 x 8192 float64 distances are 34 MB.
EXACT_ROWS = 512
_UNIT_ROUNDOFF = 2.0**-53


class CodewordArrays:
    """Codebooks ready for the float32 search on the processor.

    Codes come with (N,) bool, True where what was kept or chosen was too close to call.

    Args:
      codebooks: L float32 arrays of shape (K_l, d).
    """

    def __init__(self, codebooks: Sequence[np.ndarray]) -> None:
        self._codewords = [np.ascontiguousarray(book) for book in codebooks]
        self._transposed = [np.ascontiguousarray(book.T) for book in codebooks]
        self._half_norms, self._scale = half_norms(codebooks)

    def residual_codes(self, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Picks the nearest codeword of each level in turn: (N, d) to (N, L) int64."""
        tolerance = self._tolerance(latents)
        codes = np.empty((len(latents), len(self._codewords)), np.int64)
        near_tie = np.zeros(len(latents), bool)
        residual = latents
        for level, words in enumerate(self._codewords):
            near_tie |= self._nearest(residual, level, tolerance, codes[:, level])
            if level < len(self._codewords) - 1:
                residual = residual - words[codes[:, level]]
        return codes, near_tie

    def beam_codes(self, latents: np.ndarray, beam: int) -> tuple[np.ndarray, np.ndarray]:
        """Keeps the `beam` best code tuples a level, at least 2; returns the best: (N, L) int64."""
        count, width = latents.shape
        tolerance = self._tolerance(latents)
        near_tie = np.zeros(count, bool)
        residuals = latents[:, None]
        scores = np.zeros((count, 1), np.float32)
        tuples = np.zeros((count, 1, 0), np.int64)
        for level, words in enumerate(self._codewords):
            # Half the squared distance of the tuple, less the latent's own |latent|^2 / 2.
            step = self._scores(residuals.reshape(-1, width), level).reshape(count, -1, len(words))
            candidates = (scores[:, :, None] + step).reshape(count, -1)
            last = level == len(self._codewords) - 1
            keep = min(1 if last else beam, candidates.shape[1])
            positions = _smallest(candidates, min(keep + 1, candidates.shape[1]))
            values = np.take_along_axis(candidates, positions, axis=1)
            if positions.shape[1] > keep:
                with np.errstate(invalid="ignore"):  # two repetitions are infinitely far both
                    near_tie |= values[:, keep] - values[:, keep - 1] <= tolerance
            scores = values[:, :keep]
            parent, code = np.divmod(positions[:, :keep], len(words))
            kept = np.take_along_axis(tuples, parent[:, :, None], axis=1)
            tuples = np.concatenate([kept, code[:, :, None]], axis=2)
            left = np.take_along_axis(residuals, parent[:, :, None], axis=1)
            residuals = left - words[code]
        return tuples[:, 0], near_tie

    def parallel_codes(self, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Picks the nearest codeword of each codebook independently: (N, d) to (N, L) int64."""
        tolerance = self._tolerance(latents)
        codes = np.empty((len(latents), len(self._codewords)), np.int64)
        near_tie = np.zeros(len(latents), bool)
        for level in range(len(self._codewords)):
            near_tie |= self._nearest(latents, level, tolerance, codes[:, level])
        return codes, near_tie

    def sums(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to the (N, d) float32 sums of their codewords."""
        total = self._codewords[0][codes[:, 0]]
        for words, column in zip(self._codewords[1:], codes.T[1:], strict=True):
            total += words[column]
        return total

    def _tolerance(self, latents: np.ndarray) -> np.ndarray:
        return NEAR_TIE * (np.einsum("nd,nd->n", latents, latents) / 2 + self._scale)

    def _nearest(
        self, rows: np.ndarray, level: int, tolerance: np.ndarray, code: np.ndarray
    ) -> np.ndarray:
        """Sets (N,) nearest codes and returns whether another codeword is within tolerance."""
        scores = self._scores(rows, level)
        scores.argmin(axis=1, out=code)
        row = np.arange(len(scores))
        best = scores[row, code]
        scores[row, code] = np.inf
        near: np.ndarray = scores.min(axis=1) <= best + tolerance
        return near

    def _scores(self, rows: np.ndarray, level: int) -> np.ndarray:
        """Returns (N, K) half squared distances without the |row|^2 / 2 that all of a row share."""
        scores = rows @ self._transposed[level]
        return np.subtract(self._half_norms[level], scores, out=scores)


def search_codes(
    shape: tuple[int, int],
    fast: Callable[[slice], tuple[np.ndarray, np.ndarray]],
    exact: Callable[[np.ndarray], np.ndarray],
    beam: int = 1,
) -> np.ndarray:
    """Searches blocks of rows in float32, and again in float64 what that cannot decide.

    Args:
      shape: (N, L).
      fast: maps some rows to their codes and (n,) bool, True where they are too close to call.
      exact: maps the numbers of some rows to their codes.
      beam: code tuples kept per level, by which blocks get smaller.

    Returns:
      (N, L) int32 codes.
    """
    codes = np.empty(shape, np.int32)
    open_rows = np.zeros(len(codes), bool)
    block_rows, exact_rows = (max(1, rows // beam) for rows in (SEARCH_ROWS, EXACT_ROWS))
    for start in range(0, len(codes), block_rows):
        block = slice(start, start + block_rows)
        codes[block], open_rows[block] = fast(block)
    undecided = np.flatnonzero(open_rows)
    for start in range(0, len(undecided), exact_rows):
        chosen = undecided[start : start + exact_rows]
        codes[chosen] = exact(chosen)
    return codes


def nearest_codes(rows: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Returns (N,) nearest codes in float32, for fitting, where a near-tie may go either way."""
    words = CodewordArrays([book])
    codes = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), SEARCH_ROWS):
        block = np.asarray(rows[start : start + SEARCH_ROWS], dtype=np.float32)
        codes[start : start + len(block)] = words.residual_codes(block)[0][:, 0]
    return codes


def half_norms(codebooks: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Returns half the squared norms of codewords, (K,) float32 a codebook, and the largest.

    Those of codewords that repeat an earlier one are infinite.
    """
    halves, largest = [], 0.0
    for book in codebooks:
        half = (book.astype(np.float64) ** 2).sum(axis=1) / 2
        largest = max(largest, float(half.max()))
        half[repeated_rows(book)] = np.inf
        halves.append(half.astype(np.float32))
    return halves, largest


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


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the (N, count) positions of the smallest values of rows, ascending by value."""
    few = np.argpartition(values, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(values, few, axis=1), axis=1, kind="stable")
    return np.take_along_axis(few, order, axis=1)
