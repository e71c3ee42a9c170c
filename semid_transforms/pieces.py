"""Learning the pieces of the `spm` feature from the catalog's codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.sid import SidLayout
from models.spm_ngrams import SpmFeature, fit_spm
from schemas.arrays import matrix_from_list
from semid_transforms import files

MAX_WEIGHT = float(1 << 31)
"""Largest popularity told apart; sums over any catalog stay inside int64."""


@dataclasses.dataclass(frozen=True)
class PieceInputs:
    """What pieces are learned from.

    Attributes:
      catalog: `catalog` parts, every live item.
      codes: tables of `item_id` and `base_codes`; for an item in several the first counts.
      sample_rows: most items taken, those with the smallest content hashes.
    """

    catalog: tuple[str, ...]
    codes: tuple[str, ...]
    sample_rows: int


def learn_pieces(inputs: PieceInputs, feature: SpmFeature, layout: SidLayout) -> bytes:
    """Learns pieces on the base codes of a sample of items, each as often as it is popular.

    Base codes, because pieces must be known before collisions are resolved: the columns of the
    rows written then already use them. Memory is that of the sample and one part.

    Args:
      inputs: see `PieceInputs`.
      feature: size of the vocabulary.
      layout: of the SIDs.

    Returns:
      A SentencePiece model; the same whatever the order of rows and parts.

    Raises:
      ValueError: an item of the catalog has no codes.
    """
    sample = _sample(inputs.catalog, inputs.sample_rows)
    codes = np.full((sample.num_rows, layout.num_levels), -1, np.int32)
    for path in inputs.codes:
        table = files.read_table(path, ["item_id", "base_codes"])
        found = pc.index_in(sample["item_id"], value_set=table["item_id"].combine_chunks())
        wanted = np.flatnonzero(pc.is_valid(found).to_numpy() & (codes[:, 0] < 0))
        rows = found.take(pa.array(wanted))
        codes[wanted] = matrix_from_list(table["base_codes"].take(rows), layout.num_levels)
    if (codes < 0).any():
        row = int(np.argmax(codes[:, 0] < 0))
        raise ValueError(
            f"item {sample['item_id'][row].as_py()!r} has no codes to learn spm pieces from"
        )
    weights = None
    if sample["popularity"].null_count < sample.num_rows:
        popularity = pc.fill_null(sample["popularity"], 0.0).to_numpy()
        weights = np.clip(np.nan_to_num(popularity), 0.0, MAX_WEIGHT)
    return fit_spm(codes, layout.codebook_sizes, feature, weights)


def _sample(catalog: Sequence[str], rows: int) -> pa.Table:
    """Returns item id and popularity of the items with the smallest content hashes."""
    columns = ["item_id", "content_hash", "popularity"]
    keys = [("content_hash", "ascending"), ("item_id", "ascending")]
    sample: pa.Table | None = None
    for path in catalog:
        table = files.read_table(path, columns)
        table = table.set_column(1, "content_hash", table["content_hash"].cast(pa.binary()))
        table = table if sample is None else pa.concat_tables([sample, table])
        sample = table.take(pc.sort_indices(table, sort_keys=keys)[:rows]).combine_chunks()
    assert sample is not None, "a catalog has parts"
    return sample


class _Learn(beam.DoFn):
    """Runs `learn_pieces` and writes the model."""

    def __init__(self, feature: SpmFeature, layout: SidLayout, path: str):
        self._feature = feature
        self._layout = layout
        self._path = path

    def process(self, inputs: PieceInputs) -> list[str]:
        files.write_bytes(self._path, learn_pieces(inputs, self._feature, self._layout))
        return [self._path]


@dataclasses.dataclass
class LearnPieces(beam.PTransform):
    """Learns the pieces of `PieceInputs` and writes them to `path`, which it returns."""

    feature: SpmFeature
    layout: SidLayout
    path: str

    def expand(self, inputs: beam.PCollection[PieceInputs]) -> beam.PCollection[str]:
        return inputs | "Learn" >> beam.ParDo(
            _Learn(self.feature, self.layout, self.path)
        ).with_output_types(str)
