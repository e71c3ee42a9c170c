"""Reading back who has which ID in the parent generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from models.sid import SidLayout
from schemas.arrays import matrix_from_list
from schemas.tables import parent_schema
from semid_transforms import files

_BATCH_ROWS = 1 << 16


def parent_rows(
    batch: pa.RecordBatch, layout: SidLayout, release_before: str = ""
) -> pa.RecordBatch:
    """Turns rows of `items` (with `base_codes`) or of `reserved` (without) into `parent_schema`.

    IDs reserved in generations that sort before `release_before` are nobody's any more.
    """
    if "base_codes" not in batch.schema.names and release_before:
        batch = batch.filter(pc.greater_equal(batch["retired_generation"], release_before))
    sid_type = pa.from_numpy_dtype(layout.dtype)
    if "base_codes" in batch.schema.names:
        codes = matrix_from_list(batch["base_codes"], layout.num_levels)
        base = pa.array(layout.pack(codes), sid_type)
        retired = pa.nulls(batch.num_rows, pa.string())
    else:
        base, retired = batch["base_sid"], batch["retired_generation"]
    return pa.RecordBatch.from_arrays(
        [
            batch["item_id"],
            batch["content_hash"],
            batch["sid"],
            base,
            retired,
        ],
        schema=parent_schema(sid_type),
    )


class _ReadParent(beam.DoFn):
    """Reads one part of `items` or `reserved`."""

    def __init__(self, layout: SidLayout, release_before: str):
        self._layout = layout
        self._release_before = release_before

    def process(self, path: str) -> Iterator[pa.RecordBatch]:
        with files.parquet_file(path) as file:
            wanted = set(parent_schema(pa.int64()).names) | {"base_codes"}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                yield parent_rows(batch, self._layout, self._release_before)


@dataclasses.dataclass
class ReadParent(beam.PTransform):
    """Reads `items` and `reserved` parts, given by path, as `parent_schema` batches."""

    layout: SidLayout
    release_before: str = ""

    def expand(self, paths: beam.PCollection[str]) -> beam.PCollection[pa.RecordBatch]:
        read = _ReadParent(self.layout, self.release_before)
        return paths | "ReadParentParts" >> beam.ParDo(read).with_output_types(pa.RecordBatch)
