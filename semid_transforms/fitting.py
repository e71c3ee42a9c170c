"""Fitting a tokenizer inside the job, on a bounded sample of distinct embeddings."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.alignment import MAX_ROWS, align_codes, renumber
from models.autoencoder_training import Progress, TrainingInputs
from models.config import RqvaeConfig
from models.drift import reference_of
from models.embedding_stream import EmbeddingStream
from models.metrics import kept, quality
from models.quantization_error import quantization_errors
from models.quantizer import Quantizer
from models.tags import TagTable
from models.tokenizers import QuantizerConfig, fit_quantizer, to_files, tokenizer_id
from schemas.arrays import fixed_binary, matrix_from_list
from schemas.config import FitConfig
from semid_transforms import files
from semid_transforms.fit_checkpoints import FitCheckpoint
from semid_transforms.fit_progress import report_progress
from semid_transforms.quantizing import load_tokenizer
from semid_transforms.sampling import choose_sample

_log = logging.getLogger(__name__)

RESULT = "result.json"

_METRICS_ROWS = 50_000

SUPERVISING_SHARE = 0.5
"""Share of the sample that must have a category path for `fit.supervise: auto` to use them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Previous:
    """What a tokenizer that is to be fitted follows on.

    Attributes:
      tokenizer_id: of the published tokenizer.
      rows: (M,) which row of the sample a published item has the content of.
      codes: (M, L) int32, the base codes it is published with.
      start: the published tokenizer, when the fit goes on from it.
    """

    tokenizer_id: str
    rows: np.ndarray
    codes: np.ndarray
    start: Quantizer | None = None


@dataclasses.dataclass(frozen=True)
class FollowedTokenizer:
    """The published tokenizer, where it is.

    Attributes:
      folder: of its files.
      items: paths of the `items` parts published with it.
      warm_start: whether the fit goes on from it.
    """

    folder: str
    items: tuple[str, ...]
    warm_start: bool

    def read(self, catalog: Sequence[str], hashes: np.ndarray) -> Previous:
        """Reads what `fit_tokenizer` needs, for (N, 16) uint8 hashes of the sampled contents."""
        rows, codes = codes_of_contents(catalog, self.items, hashes)
        start = load_tokenizer(self.folder) if self.warm_start else None
        return Previous(files.base_name(self.folder), rows, codes, start)


def fit_tokenizer(
    config: QuantizerConfig,
    embeddings: np.ndarray,
    origin: Mapping[str, Any],
    paths: Sequence[Sequence[str] | None] | None = None,
    progress: Progress | None = None,
    previous: Previous | None = None,
    inputs: TrainingInputs | None = None,
) -> dict[str, bytes]:
    """Fits a tokenizer and measures it on what it was fitted on.

    Args:
      config: of the tokenizer.
      embeddings: (N, D) float32 distinct embeddings in canonical order.
      origin: what the embeddings are (encoder, template), stored with the metrics.
      paths: N category paths to supervise the levels with; None fits without.
      progress: called as (step, steps, scalars) while a neural tokenizer trains.
      previous: what items of the same contents are published with: codes are numbered after it.
      inputs: a stream of more rows, and checkpoints, for neural tokenizers.

    Returns:
      The tokenizer's files by name.

    Raises:
      ValueError: paths for a tokenizer that takes no tags, or no item has one; a start of another
        kind or shape.
    """
    inputs = inputs or TrainingInputs()
    if paths is not None:
        if not isinstance(config, RqvaeConfig):
            raise ValueError("fit.supervise: only quantizer.kind rqvae takes category paths")
        levels = len(config.codebook_sizes)
        tags = TagTable.from_paths(paths, levels, config.tags.rare)
        inputs = dataclasses.replace(inputs, tags=tags)
    start = None if previous is None else previous.start
    quantizer, report = fit_quantizer(config, embeddings, progress, inputs, start)
    document: dict[str, Any] = {"origin": dict(origin), "fit": report}
    if previous is not None:
        quantizer, document["previous"] = follow(quantizer, embeddings, previous)
    every = quantizer.encode(embeddings)
    errors = quantization_errors(quantizer, embeddings, every)
    rows, codes = embeddings[:_METRICS_ROWS], every[:_METRICS_ROWS]
    measured = quality(
        codes,
        quantizer.codebook_sizes,
        rows,
        decoded=quantizer.decode(codes),
        category_paths=None if paths is None else paths[:_METRICS_ROWS],
        hierarchical=quantizer.hierarchical,
    )
    reference = reference_of(every, errors, quantizer.codebook_sizes)
    return to_files(quantizer, {**document, "quality": measured, "reference": reference})


def follow(
    quantizer: Quantizer, embeddings: np.ndarray, previous: Previous
) -> tuple[Quantizer, dict[str, Any]]:
    """Numbers a tokenizer's codes so that as many published items as possible keep theirs.

    Args:
      quantizer: fitted.
      embeddings: (N, D), what it was fitted on.
      previous: published codes of items with these contents.

    Returns:
      The renumbered tokenizer, and which share of the items' base codes is kept by it, per length
      of prefix, and would have been without renumbering.
    """
    found: dict[str, Any] = {
        "tokenizer": previous.tokenizer_id,
        "warm_start": previous.start is not None,
        "items": len(previous.rows),
    }
    if not len(previous.rows):
        return quantizer, found
    levels = min(quantizer.num_levels, previous.codes.shape[1])
    before = previous.codes[:, :levels]
    for name in ("kept_unaligned", "kept"):
        codes = quantizer.encode(embeddings)[previous.rows]
        found[name] = kept(codes[:, :levels], before)
        if name == "kept_unaligned":
            sizes = quantizer.codebook_sizes
            numbering = align_codes(codes, before, sizes, quantizer.hierarchical)
            quantizer = renumber(quantizer, numbering)
    return quantizer, found


def codes_of_contents(
    catalog: Sequence[str], items: Sequence[str], hashes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the base codes of published items whose present content is among those given.

    Args:
      catalog: paths of `catalog` parts: what the items are now.
      items: paths of published `items` parts.
      hashes: (N, 16) uint8 content hashes.

    Returns:
      (M,) numbers of contents and (M, L) int32 codes, a row per item in order of item id, at most
      `MAX_ROWS`.
    """
    wanted = fixed_binary(hashes, hashes.shape[1])
    contents = []
    for part in catalog:
        table = files.read_table(part, ["item_id", "content_hash"])
        contents.append(table.filter(pc.is_in(table["content_hash"], value_set=wanted)))
    now = pa.concat_tables(contents).sort_by("item_id").combine_chunks()
    published = []
    for part in items:
        table = files.read_table(part, ["item_id", "base_codes"])
        published.append(table.filter(pc.is_in(table["item_id"], value_set=_only(now["item_id"]))))
    before = pa.concat_tables(published).sort_by("item_id").combine_chunks()[:MAX_ROWS]
    here = pc.index_in(before["item_id"], value_set=_only(now["item_id"]))
    rows = pc.index_in(now["content_hash"].take(here), value_set=wanted)
    return rows.to_numpy().astype(np.int64), matrix_from_list(before["base_codes"])


def _only(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


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


class _Fit(beam.DoFn):
    """Samples, fits, writes the tokenizer to its folder and its id to a file."""

    def __init__(self, fit: FitTokenizer):
        self._config = fit.config
        self._sampling = fit.sampling
        self._origin = dict(fit.origin)
        self._tokenizers_folder, self._scratch = fit.outputs
        self._catalog = fit.catalog
        self._followed = fit.followed

    def process(self, parts: Sequence[str]) -> Iterator[str]:
        sampling = self._sampling
        sample = choose_sample(parts, sampling.sample_rows)
        resident = min(len(sample.hashes), sampling.memory_rows)
        rows, hashes = sample.read(0, resident), sample.hash_bytes(resident)
        _log.info("fit      on %s distinct embeddings", f"{len(sample.hashes):,}")
        paths = self._supervising_paths(hashes, streamed=resident < len(sample.hashes))
        previous = None
        if self._followed is not None:
            previous = self._followed.read(self._catalog, hashes)
        start = previous.tokenizer_id if previous is not None and previous.start else ""
        checkpoint = FitCheckpoint.of(
            files.join(self._scratch, "checkpoint"),
            self._config,
            sample.hashes,
            json.dumps([resident, paths, start]),
        )
        with (
            report_progress(sampling.tensorboard, self._origin["fitted_at"]) as progress,
            tempfile.TemporaryDirectory(prefix="semid-fit-") as folder,
        ):
            more = sample.spill(folder, resident, sampling.memory_rows)
            inputs = TrainingInputs(
                stream=EmbeddingStream(tuple(more)) if more else None,
                checkpoint=checkpoint.save,
                resume=checkpoint.load(),
            )
            contents = fit_tokenizer(
                self._config, rows, self._origin, paths, progress, previous, inputs
            )
        identity = tokenizer_id(contents)
        for name, data in contents.items():
            files.write_bytes(files.join(self._tokenizers_folder, identity, name), data)
        result = {"tokenizer_id": identity, "sample_rows": len(sample.hashes)}
        files.write_bytes(files.join(self._scratch, RESULT), json.dumps(result).encode())
        checkpoint.discard()
        yield identity

    def _supervising_paths(
        self, hashes: np.ndarray, *, streamed: bool
    ) -> list[list[str] | None] | None:
        """Returns the category path of each content, None where they do not supervise the fit."""
        wanted = self._sampling.supervise
        if not wanted:
            return None
        if wanted == "auto" and (streamed or not isinstance(self._config, RqvaeConfig)):
            return None
        paths = paths_of_contents(self._catalog, hashes)
        known = sum(bool(path) for path in paths)
        if wanted == "auto" and known < SUPERVISING_SHARE * len(paths):
            return None
        _log.info("fit      supervised by the category paths of %s of them", f"{known:,}")
        return paths


@dataclasses.dataclass
class FitTokenizer(beam.PTransform):
    """Fits on embedding parts (one element: all their paths) and writes the tokenizer.

    Fitting is one element on one worker: give that worker the GPU.

    Attributes:
      config: of the tokenizer.
      sampling: how many embeddings to fit on, and whether categories supervise.
      origin: what the embeddings are, stored with the tokenizer.
      outputs: folder of tokenizers, and a folder for the result (`RESULT`) and the checkpoint.
      catalog: `catalog` parts, for their category paths.
      followed: the published tokenizer, after whose codes the new ones are numbered.
    """

    config: QuantizerConfig
    sampling: FitConfig
    origin: Mapping[str, Any]
    outputs: tuple[str, str]
    catalog: tuple[str, ...]
    followed: FollowedTokenizer | None = None

    def expand(self, parts: beam.PCollection[list[str]]) -> beam.PCollection[str]:
        return parts | "Fit" >> beam.ParDo(_Fit(self)).with_output_types(str)
