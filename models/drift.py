"""How far new items are from those a tokenizer was fitted on.

Two things go wrong when a catalog moves on under a frozen tokenizer: new items lie far from every
codeword, and they crowd into few codes. The first shows in the quantization error, the second in
how the use of codes differs from that of the fitting sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = (0.5, 0.9, 0.95, 0.99)

DEFINITIONS = {
    "error_ratio": "mean quantization error (squared distance between an embedding and its "
    "reconstruction from base codes) of new items / of the fitting sample",
    "far_share": "share of new items whose error is above the 95 % quantile of the fitting "
    "sample's; 5 % without drift",
    "divergence": "per level, Kullback-Leibler divergence in nats of the new items' use of codes "
    "from the fitting sample's, half an item added to every code of the sample, less what chance "
    "alone gives: (codes used by the sample - 1) / (2 new items); not below 0",
    "perplexity": "per level, exp(entropy in nats) of the codes of new items, and of the sample",
}


@dataclasses.dataclass(frozen=True)
class DriftBounds:
    """When a re-fit is advised; see `schemas.config.DriftConfig`."""

    min_items: int
    max_error_ratio: float
    max_code_divergence: float


def reference_of(
    codes: np.ndarray, errors: np.ndarray, codebook_sizes: Sequence[int]
) -> dict[str, Any]:
    """Describes the fitting sample, to be kept with the tokenizer.

    Args:
      codes: (N, L) base codes.
      errors: (N,) squared distances to the reconstructions.
      codebook_sizes: L sizes.

    Returns:
      A document ready for JSON: `items`, `error` (mean and quantiles) and `code_counts`, L lists.
    """
    return {
        "items": len(codes),
        "error": {
            "mean": float(np.mean(errors, dtype=np.float64)),
            "quantiles": {str(q): float(np.quantile(errors, q)) for q in QUANTILES},
        },
        "code_counts": [
            np.bincount(column, minlength=size).tolist()
            for column, size in zip(codes.T, codebook_sizes, strict=True)
        ],
    }


def drift_of(
    code_counts: Sequence[np.ndarray], errors: np.ndarray, reference: Mapping[str, Any]
) -> dict[str, Any]:
    """Compares new items with the fitting sample.

    Args:
      code_counts: L arrays (K_l,) of new items per base code.
      errors: (n,) squared distances of the new items, n at least 1.
      reference: from `reference_of`.

    Returns:
      A document ready for JSON; see `DEFINITIONS`.
    """
    items = len(errors)
    mean = float(np.mean(errors, dtype=np.float64))
    expected = reference["error"]["mean"]
    levels = []
    for counts, before in zip(code_counts, reference["code_counts"], strict=True):
        sample = np.asarray(before, np.float64)
        share = np.asarray(counts, np.float64) / items
        smoothed = (sample + 0.5) / (sample + 0.5).sum()
        used = share > 0
        divergence = float((share[used] * np.log(share[used] / smoothed[used])).sum())
        by_chance = (int((sample > 0).sum()) - 1) / (2 * items)
        levels.append(
            {
                "divergence": max(0.0, divergence - by_chance),
                "perplexity": _perplexity(share),
                "sample_perplexity": _perplexity(sample / max(1.0, sample.sum())),
            }
        )
    return {
        "items": items,
        "sample_items": reference["items"],
        "error": mean,
        "sample_error": expected,
        "error_ratio": mean / expected if expected > 0 else None,
        "far_share": float(np.mean(errors > reference["error"]["quantiles"]["0.95"])),
        "levels": levels,
        "definitions": DEFINITIONS,
    }


def advice_on(drift: Mapping[str, Any], bounds: DriftBounds) -> list[str]:
    """Says what is out of bounds; empty when nothing is, or too few items were seen to tell."""
    if drift["items"] < bounds.min_items:
        return []
    found = []
    ratio = drift["error_ratio"]
    if ratio is not None and ratio > bounds.max_error_ratio:
        found.append(
            f"new items are {ratio:.2f} times as far from their codewords as the fitting sample, "
            f"above drift.max_error_ratio ({bounds.max_error_ratio:g})"
        )
    for number, level in enumerate(drift["levels"], start=1):
        if level["divergence"] > bounds.max_code_divergence:
            found.append(
                f"new items use the codes of level {number} otherwise than the fitting sample: "
                f"they diverge by {level['divergence']:.2f} nats, above drift.max_code_divergence "
                f"({bounds.max_code_divergence:g})"
            )
    return found


def _perplexity(share: np.ndarray) -> float:
    used = share[share > 0]
    return float(np.exp(-(used * np.log(used)).sum()))
