"""Inner products whose bits depend on nothing but the two vectors."""

from __future__ import annotations

import dataclasses

import numpy as np

FLOAT64_BITS = 53


@dataclasses.dataclass(frozen=True)
class SplitRows:
    """Rows cut into two integer slices: `row = scale * (high + low * 2**-bits) * 2**-bits`.

    Attributes:
      high: (N, d) float64 holding integers of at most `bits` bits.
      low: (N, d) float64 holding integers of at most `bits` bits.
      scale: (N, 1) float64 powers of two.
      bits: integer bits of a slice, such that d products of two slices add up below 2**53.
    """

    high: np.ndarray
    low: np.ndarray
    scale: np.ndarray
    bits: int


def split_rows(rows: np.ndarray) -> SplitRows:
    """Cuts (N, d) finite vectors for `exact_dot`, each row scaled by its own largest value."""
    rows = np.asarray(rows, np.float64)
    bits = (FLOAT64_BITS - max(1, int(rows.shape[1] - 1).bit_length())) // 2
    largest = np.abs(rows).max(axis=1, initial=0.0)
    # frexp gives largest < 2**exponent, and dividing by a power of two loses nothing.
    scale = np.ldexp(1.0, np.frexp(largest)[1])[:, None]
    scaled = np.ldexp(rows / scale, bits)
    high = np.rint(scaled)
    return SplitRows(high, np.rint(np.ldexp(scaled - high, bits)), scale, bits)


def exact_dot(rows: SplitRows, others: SplitRows) -> np.ndarray:
    """Computes all inner products between two sets of vectors, reproducibly.

    A plain float64 matrix product of the same two vectors may differ in its last bit with the
    number of rows beside them, the thread count and the processor, which is enough to turn a tie
    between two identical items. Here every partial sum inside a matrix product is an integer below
    2**53, so no order of summation can round it (the slicing of Ozaki et al., "Error-free
    transformations of matrix multiplication by using fast routines of matrix multiplication",
    2012). The dropped low x low product is below 2**(-2 * bits) of the largest, 2**-44 at d = 384.

    Args:
      rows: N split vectors of length d.
      others: M split vectors of length d.

    Returns:
      (N, M) float64.
    """
    # Multiplying by a power of two rounds nothing, and ldexp takes ten times as long.
    total = rows.high @ others.low.T
    total += rows.low @ others.high.T
    total *= 2.0**-rows.bits
    total += rows.high @ others.high.T
    total *= 2.0 ** (-2 * rows.bits) * rows.scale
    total *= others.scale.T
    return total
