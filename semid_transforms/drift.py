"""Measuring the drift of a run's new items against the sample its tokenizer was fitted on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from models.drift import DriftBounds, advice_on, drift_of
from models.tokenizers import METRICS_FILE
from schemas.arrays import matrix_from_list
from schemas.config import DriftConfig
from schemas.tables import Change
from semid_transforms import files


def measure_drift(
    coded: Sequence[str], tokenizer_folder: str, config: DriftConfig
) -> dict[str, Any] | None:
    """Compares the new items of a run with the fitting sample.

    Args:
      coded: paths of `coded_schema` parts: everything that was quantized in the run.
      tokenizer_folder: of the tokenizer.
      config: bounds.

    Returns:
      A document ready for JSON with `advice`, a list of what is out of bounds; None when no item
      is new, or the tokenizer was fitted by a version that kept no statistics.
    """
    metrics = json.loads(files.read_bytes(files.join(tokenizer_folder, METRICS_FILE)))
    reference = metrics.get("reference")
    if reference is None:
        return None
    counts = [np.zeros(len(level), np.int64) for level in reference["code_counts"]]
    errors = [np.empty(0, np.float32)]
    for path in coded:
        table = files.read_table(path, ["change", "base_codes", "quantization_error"])
        table = table.filter(pc.equal(table["change"], Change.NEW.value))
        codes = matrix_from_list(table["base_codes"], len(counts))
        for level, column in zip(counts, codes.T, strict=True):
            level += np.bincount(column, minlength=len(level))
        errors.append(table["quantization_error"].to_numpy())
    every = np.concatenate(errors)
    if not len(every):
        return None
    bounds = DriftBounds(config.min_items, config.max_error_ratio, config.max_code_divergence)
    drift = drift_of(counts, every, reference)
    return {**drift, "advice": advice_on(drift, bounds)}
