"""Numbering the codes of a new tokenizer so that they mean what they meant before.

The order of a codebook's rows is arbitrary: renumbering them changes no distance and no
reconstruction. It decides whether `17-203-5` still holds the same kind of items after a re-fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.quantizer import Quantizer
from models.residual import checked_codes

MAX_ROWS = 1_000_000
"""Rows up to which float64 holds every score exactly, at 8192 codes a level too."""


def align_codes(
    codes: np.ndarray,
    previous: np.ndarray,
    codebook_sizes: Sequence[int],
    hierarchical: bool = True,
) -> tuple[np.ndarray, ...]:
    """Finds the numbering of new codes under which most items keep theirs, coarse to fine.

    Level by level an assignment problem over the contingency table of new and previous codes
    (Kuhn 1955): first as many items as possible keep their prefix down to the level, then, among
    those numberings, as many as possible keep the level's code whatever their prefix, then as
    many codes as possible keep their number. A coarser level is never traded for a finer one.

    Codebooks may differ in size: previous codes beyond the new size cannot be kept, and new codes
    beyond the previous size get the numbers left over. Levels that only one side has are left as
    they are.

    Args:
      codes: (N, L) codes of the new tokenizer.
      previous: (N, L') codes the same items had.
      codebook_sizes: the new tokenizer's L sizes.
      hierarchical: False for parallel codebooks, each of which is then aligned by itself.

    Returns:
      L int64 permutations: code c of level l gets the number `numbering[l][c]`.

    Raises:
      ValueError: row counts differ or exceed `MAX_ROWS`, or a code is out of range.
    """
    from scipy.optimize import linear_sum_assignment  # 0.2 s that only a refit should take

    codes = checked_codes(codes, tuple(codebook_sizes))
    previous = np.asarray(previous)
    if previous.ndim != 2 or len(previous) != len(codes):
        raise ValueError(f"{len(codes)} rows of new codes, previous codes are {previous.shape}")
    if len(codes) > MAX_ROWS:
        raise ValueError(f"codes can be aligned over at most {MAX_ROWS:,} rows, got {len(codes):,}")
    numbering = [np.arange(size) for size in codebook_sizes]
    kept = np.ones(len(codes), bool)
    for level in range(min(codes.shape[1], previous.shape[1])):
        size, new, old = codebook_sizes[level], codes[:, level], previous[:, level]
        reachable = old < size
        everyone = _contingency(new[reachable], old[reachable], size)
        in_prefix = _contingency(new[reachable & kept], old[reachable & kept], size)
        # Each term outweighs all that the terms after it can add up to.
        score = (in_prefix * (len(codes) + 1) + everyone) * (size + 1) + np.eye(size)
        rows, numbers = linear_sum_assignment(score, maximize=True)
        numbering[level][rows] = numbers
        if hierarchical:
            kept &= numbering[level][new] == old
    return tuple(numbering)


def renumber_codes(codes: np.ndarray, numbering: Sequence[np.ndarray]) -> np.ndarray:
    """Maps (N, L) codes to (N, L) int32 codes of the renumbered tokenizer."""
    columns = [numbers[codes[:, level]] for level, numbers in enumerate(numbering)]
    return np.stack(columns, axis=1).astype(np.int32)


def renumber(quantizer: Quantizer, numbering: Sequence[np.ndarray]) -> Quantizer:
    """Returns the same tokenizer with its codebook rows in another order.

    Among codewords that are equal bit for bit the lowest number is chosen, so only there can a
    row's new code differ from the number its old one was given.

    Args:
      quantizer: with L codebooks.
      numbering: L permutations, as `align_codes` gives them.
    """
    config, arrays = quantizer.state()
    for level, numbers in enumerate(numbering):
        name = next(n for n in (f"codebooks.{level}", f"slices.{level}") if n in arrays)
        book = np.empty_like(arrays[name])
        book[numbers] = arrays[name]
        arrays[name] = book
    return quantizer.from_state(config, arrays)


def _contingency(new: np.ndarray, old: np.ndarray, size: int) -> np.ndarray:
    """Counts rows by (new code, previous code) as (size, size) float64."""
    counts = np.bincount(new.astype(np.int64) * size + old, minlength=size * size)
    return counts.reshape(size, size).astype(np.float64)
