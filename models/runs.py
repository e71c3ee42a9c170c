"""Runs of equal values in ordered arrays."""

from __future__ import annotations

import numpy as np


def runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and one past the last position of each run of equal values, or rows.

    Args:
      ordered: (N,) or (N, k), equal ones side by side.

    Returns:
      Two (R,) int64 arrays, ascending.
    """
    differs = ordered[1:] != ordered[:-1]
    if ordered.ndim > 1:
        differs = differs.any(axis=1)
    starts = np.flatnonzero(np.append(True, differs)[: len(ordered)])
    return starts, np.append(starts[1:], len(ordered))[: len(starts)]
