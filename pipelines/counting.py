"""What the links counted, read back from the files they wrote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.runs import Run
from schemas.rejects import SourceCounts
from semid_transforms import files
from semid_transforms.reading import CatalogReader


def source_counts(reader: CatalogReader, run: Run) -> dict[str, SourceCounts]:
    """Sums the rows of every source file over the stages of the read link."""
    counts = {source.path: SourceCounts(0, 0, 0, 0) for source in reader.sources}
    for part in files.list_files(run.scratch("read", "counts")):
        for row in files.read_table(part).to_pylist():
            counts[row.pop("source")] += SourceCounts(**row)
    return counts


def reject_counts(parts: Sequence[str]) -> dict[str, int]:
    """Counts rejected rows by reason."""
    if not parts:
        return {}
    reasons = pa.concat_tables(files.read_table(part, ["reason"]) for part in parts)["reason"]
    values, counts = np.unique(np.array(reasons.to_pylist(), object), return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def count_rows(parts: Sequence[str]) -> int:
    """Returns the rows of Parquet files."""
    total = 0
    for part in parts:
        with files.parquet_file(part) as file:
            total += file.metadata.num_rows
    return total
