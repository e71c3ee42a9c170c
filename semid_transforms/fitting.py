"""Fitting a tokenizer inside the job, on a bounded sample of distinct embeddings."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.autoencoder_training import Progress, TrainingInputs
from models.config import RqvaeConfig
from models.metrics import quality
from models.tags import TagTable
from models.tokenizers import QuantizerConfig, fit_quantizer, to_files, tokenizer_id
from schemas.arrays import fixed_binary
from schemas.config import FitConfig
from semid_transforms import files
from semid_transforms.sampling import sample_embeddings

_log = logging.getLogger(__name__)

_METRICS_ROWS = 50_000
_SECONDS_BETWEEN_LINES = 5.0


def fit_tokenizer(
    config: QuantizerConfig,
    embeddings: np.ndarray,
    origin: Mapping[str, Any],
    paths: Sequence[Sequence[str] | None] | None = None,
    progress: Progress | None = None,
) -> dict[str, bytes]:
    """Fits a tokenizer and measures it on what it was fitted on.

    Args:
      config: of the tokenizer.
      embeddings: (N, D) float32 distinct embeddings in canonical order.
      origin: what the embeddings are (encoder, template), stored with the metrics.
      paths: N category paths to supervise the levels with; None fits without.
      progress: called as (step, steps, scalars) while a neural tokenizer trains.

    Returns:
      The tokenizer's files by name.

    Raises:
      ValueError: paths for a tokenizer that takes no tags, or no item has one.
    """
    inputs = None
    if paths is not None:
        if not isinstance(config, RqvaeConfig):
            raise ValueError("fit.supervise: only quantizer.kind rqvae takes category paths")
        levels = len(config.codebook_sizes)
        inputs = TrainingInputs(tags=TagTable.from_paths(paths, levels, config.tags.rare))
    quantizer, report = fit_quantizer(config, embeddings, progress, inputs)
    rows = embeddings[:_METRICS_ROWS]
    codes = quantizer.encode(rows)
    measured = quality(
        codes,
        quantizer.codebook_sizes,
        rows,
        decoded=quantizer.decode(codes),
        category_paths=None if paths is None else paths[:_METRICS_ROWS],
        hierarchical=quantizer.hierarchical,
    )
    return to_files(quantizer, {"origin": dict(origin), "fit": report, "quality": measured})


def paths_of_contents(catalog: Sequence[str], hashes: np.ndarray) -> list[list[str] | None]:
    """Returns a category path for each content.

    Items of equal content may have different paths; the first by item id counts.

    Args:
      catalog: paths of `catalog` parts.
      hashes: (N, 16) uint8 content hashes.
    """
    columns = ["item_id", "content_hash", "category_path"]
    wanted = fixed_binary(hashes, hashes.shape[1])
    tables = []
    for part in catalog:
        table = files.read_table(part, columns)
        tables.append(table.filter(pc.is_in(table["content_hash"], value_set=wanted)))
    rows = pa.concat_tables(tables).sort_by("item_id").combine_chunks()
    first = pc.index_in(wanted, value_set=rows["content_hash"].combine_chunks())
    return rows["category_path"].take(first).to_pylist()


@contextlib.contextmanager
def report_progress(tensorboard: str | None, run: str) -> Iterator[Progress]:
    """Gives a progress function that logs a line every few seconds and writes scalars.

    Args:
      tensorboard: folder for TensorBoard, None for log lines only.
      run: subfolder of this fit.
    """
    with contextlib.ExitStack() as stack:
        writer = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            writer = stack.enter_context(SummaryWriter(os.path.join(tensorboard, run)))
        last = time.monotonic()

        def progress(step: int, steps: int, scalars: Mapping[str, float]) -> None:
            nonlocal last
            if writer is not None:
                for name, value in scalars.items():
                    writer.add_scalar(name, value, step)
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES or step == steps:
                last = time.monotonic()
                values = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
                _log.info("fit      step %d of %d  %s", step, steps, values)

        yield progress


class _Fit(beam.DoFn):
    """Samples, fits, writes the tokenizer to its folder and its id to a file."""

    def __init__(self, fit: FitTokenizer):
        self._config = fit.config
        self._sampling = fit.sampling
        self._origin = dict(fit.origin)
        self._tokenizers_folder, self._result_path = fit.outputs
        self._catalog = fit.catalog

    def process(self, parts: Sequence[str]) -> Iterator[str]:
        sample, hashes = sample_embeddings(parts, self._sampling.sample_rows)
        _log.info("fit      on %s distinct embeddings", f"{len(sample):,}")
        paths = paths_of_contents(self._catalog, hashes) if self._sampling.supervise else None
        with report_progress(self._sampling.tensorboard, self._origin["fitted_at"]) as progress:
            contents = fit_tokenizer(self._config, sample, self._origin, paths, progress)
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

    Attributes:
      config: of the tokenizer.
      sampling: how many embeddings to fit on, and whether categories supervise.
      origin: what the embeddings are, stored with the tokenizer.
      outputs: folder of tokenizers, and path of the result (JSON).
      catalog: `catalog` parts, for their category paths.
    """

    config: QuantizerConfig
    sampling: FitConfig
    origin: Mapping[str, Any]
    outputs: tuple[str, str]
    catalog: tuple[str, ...]

    def expand(self, parts: beam.PCollection[list[str]]) -> beam.PCollection[str]:
        return parts | "Fit" >> beam.ParDo(_Fit(self)).with_output_types(str)
