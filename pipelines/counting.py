"""What the links counted, read back from the files they wrote."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

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
    counts = pc.value_counts(reasons).to_pylist()
    return dict(sorted((row["values"], row["counts"]) for row in counts))


def count_rows(parts: Sequence[str]) -> int:
    """Returns the rows of Parquet files."""
    total = 0
    for part in parts:
        with files.parquet_file(part) as file:
            total += file.metadata.num_rows
    return total
