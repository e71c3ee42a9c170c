"""How far embeddings are from what their codes decode to, the same in every batch."""

from __future__ import annotations

import numpy as np

from models.quantizer import Quantizer

ERROR_BITS = 8
"""Significant bits of a quantization error: it is off by a two-hundred-and-fiftieth, at most."""

# `nearly_decode` differs from `decode` by at most this share of the lengths of embedding and
# reconstruction. Decoders of width 768 were measured within 4e-7.
DECODED_WITHIN = 4e-6
_BLOCK_ROWS = 2048


def quantization_errors(
    quantizer: Quantizer, embeddings: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """Measures squared distances between embeddings and their reconstructions.

    Reconstructions that depend on nothing but the codes take float64 products, three times the work
    of encoding. So the distance is computed in float32 and rounded to `ERROR_BITS` significant
    bits; only where what float32 leaves open would round either way, for one row in a hundred,
    is it computed from `quantizer.decode`.

    Args:
      quantizer: fitted.
      embeddings: (N, D) float32.
      codes: (N, L) of them.

    Returns:
      (N,) float32.
    """
    errors = np.empty(len(codes))
    open_rows = np.zeros(len(codes), bool)
    for start in range(0, len(codes), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        errors[block], open_rows[block] = _block_errors(quantizer, embeddings[block], codes[block])
    undecided = np.flatnonzero(open_rows)
    for start in range(0, len(undecided), _BLOCK_ROWS):
        rows = undecided[start : start + _BLOCK_ROWS]
        exact = quantizer.decode(codes[rows]).astype(np.float64) - embeddings[rows]
        errors[rows] = _round(np.square(exact).sum(axis=1))
    return errors.astype(np.float32)


def _block_errors(
    quantizer: Quantizer, rows: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n,) rounded errors from float32, and (n,) whether it leaves them open."""
    decoded = quantizer.nearly_decode(codes)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    lengths += np.sqrt(np.einsum("nd,nd->n", decoded, decoded))
    decoded -= rows
    square = np.einsum("nd,nd->n", decoded, decoded).astype(np.float64)
    shift = DECODED_WITHIN * lengths.astype(np.float64)
    within = 2 * np.sqrt(square) * shift + shift**2
    rounded = _round(np.maximum(square - within, 0))
    return rounded, rounded != _round(square + within)


def _round(values: np.ndarray) -> np.ndarray:
    """Rounds (N,) float64 to `ERROR_BITS` significant bits."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(fraction, ERROR_BITS)), exponent - ERROR_BITS)
