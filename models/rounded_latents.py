"""Latents rounded so coarsely that float32 settles most of them, the same in every batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# In units of the grid of `DenseNetwork.exact`, 2^-18 of a typical value: float32 latents were
# measured within 1, and points 8192 apart are a thirty-second of it. So a row of 32 values is
# settled with a chance of 97 %, and squared distances change by 8e-5 of a squared latent.
_WITHIN = 4
_STEP = 8192


class RoundedLatents:
    """Collects the latents of N rows, from float32 where that is enough.

    Args:
      shape: (N, d).
      grid: of the network that makes them; see `DenseNetwork`.
    """

    def __init__(self, shape: tuple[int, int], grid: float) -> None:
        self.values = np.empty(shape, np.float32)
        self._open = np.zeros(shape[0], bool)
        self._step, self._within = _STEP * grid, _WITHIN / _STEP

    def settle(self, start: int, latents: np.ndarray) -> None:
        """Takes (n, d) float32 latents of the rows from `start`, within float32 accuracy."""
        scaled = latents / self._step
        nearest = np.rint(scaled)
        block = slice(start, start + len(latents))
        # Farther than `within` from the middle between two points, nothing can change the point.
        self._open[block] = (np.abs(scaled - nearest) > 0.5 - self._within).any(axis=1)
        self.values[block] = nearest * self._step + 0.0  # -0.0 becomes 0.0

    def unsettled(self, rows: int) -> Iterator[np.ndarray]:
        """Yields the numbers of rows whose exact latents are needed, a few at a time."""
        left = np.flatnonzero(self._open)
        for start in range(0, len(left), rows):
            yield left[start : start + rows]

    def set(self, chosen: np.ndarray, latents: np.ndarray) -> None:
        """Takes the exact (n, d) float32 latents of some rows."""
        self.values[chosen] = np.rint(latents / self._step) * self._step + 0.0
