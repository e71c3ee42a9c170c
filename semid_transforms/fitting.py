"""Fitting a tokenizer inside the job, on a bounded sample of distinct embeddings."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from models.metrics import quality
from models.tokenizers import QuantizerConfig, fit_quantizer, to_files, tokenizer_id
from semid_transforms import files
from semid_transforms.sampling import sample_embeddings

_log = logging.getLogger(__name__)

_METRICS_ROWS = 50_000
_SECONDS_BETWEEN_LINES = 5.0


def fit_tokenizer(
    config: QuantizerConfig, embeddings: np.ndarray, origin: Mapping[str, Any]
) -> dict[str, bytes]:
    """Fits a tokenizer and measures it on what it was fitted on.

    Args:
      config: of the tokenizer.
      embeddings: (N, D) float32 distinct embeddings in canonical order.
      origin: what the embeddings are (encoder, template), stored with the metrics.

    Returns:
      The tokenizer's files by name.
    """
    quantizer, report = fit_quantizer(config, embeddings, _log_progress())
    rows = embeddings[:_METRICS_ROWS]
    codes = quantizer.encode(rows)
    measured = quality(codes, quantizer.codebook_sizes, rows, decoded=quantizer.decode(codes))
    return to_files(quantizer, {"origin": dict(origin), "fit": report, "quality": measured})


def _log_progress() -> Any:
    last = time.monotonic()

    def progress(step: int, steps: int, scalars: Mapping[str, float]) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            values = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            _log.info("fit      step %d of %d  %s", step, steps, values)

    return progress


class _Fit(beam.DoFn):
    """Samples, fits, writes the tokenizer to its folder and its id to a file."""

    def __init__(
        self,
        config: QuantizerConfig,
        sample_rows: int,
        origin: Mapping[str, Any],
        tokenizers_folder: str,
        result_path: str,
    ):
        self._config = config
        self._sample_rows = sample_rows
        self._origin = dict(origin)
        self._tokenizers_folder = tokenizers_folder
        self._result_path = result_path

    def process(self, parts: Sequence[str]) -> Iterator[str]:
        sample, _ = sample_embeddings(parts, self._sample_rows)
        _log.info("fit      on %s distinct embeddings", f"{len(sample):,}")
        contents = fit_tokenizer(self._config, sample, self._origin)
        identity = tokenizer_id(contents)
        for name, data in contents.items():
            files.write_bytes(files.join(self._tokenizers_folder, identity, name), data)
        result = {"tokenizer_id": identity, "sample_rows": len(sample)}
        files.write_bytes(self._result_path, json.dumps(result).encode())
        yield identity


@dataclasses.dataclass
class FitTokenizer(beam.PTransform):
    """Fits on embedding parts (one element: all their paths) and writes the tokenizer.

    Fitting is one element on one worker: give that worker the GPU.
    """

    config: QuantizerConfig
    sample_rows: int
    origin: Mapping[str, Any]
    tokenizers_folder: str
    result_path: str

    def expand(self, parts: beam.PCollection[list[str]]) -> beam.PCollection[str]:
        return parts | "Fit" >> beam.ParDo(
            _Fit(
                self.config,
                self.sample_rows,
                self.origin,
                self.tokenizers_folder,
                self.result_path,
            )
        ).with_output_types(str)
