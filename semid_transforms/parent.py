"""Reading back who has which ID in the parent generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

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


@dataclasses.dataclass(frozen=True)
class ParentParts:
    """Where the parent generation says who has which ID.

    Attributes:
      paths: of `items` and `reserved` parts.
      layout: of its SIDs.
      release_before: IDs reserved in generations before are nobody's any more.
    """

    paths: tuple[str, ...]
    layout: SidLayout
    release_before: str = ""

    def read(self, path: str) -> Iterator[pa.RecordBatch]:
        """Yields the rows of one of the parts, `parent_schema`."""
        with files.parquet_file(path) as file:
            wanted = set(parent_schema(pa.int64()).names) | {"base_codes"}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                yield parent_rows(batch, self.layout, self.release_before)
