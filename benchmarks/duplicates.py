"""Repeats a catalog under new item ids and publishes it: hot prefixes and many identical contents.

  python -m benchmarks.duplicates ITEMS.parquet [--repeat 20] [--config FILE]

With `--repeat 20`, 95 % of the items have the content of another. ITEMS may bring an `embedding`
column, which leaves the encoder out of the measurement. Prints wall time, the peak of resident
memory of all processes together, and how many items share an ID, which must be none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.commands import run_measured
from pipelines.published_tables import PublishedTables
from pipelines.root import Root

_BATCH_ROWS = 10_000


def repeated(items: Path, repeat: int) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a catalog `repeat` times; from the second time on ids get a number."""
    for number in range(repeat):
        with pq.ParquetFile(items) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                if number:
                    names = pc.cast(batch["item_id"], pa.string())
                    column = batch.schema.get_field_index("item_id")
                    batch = batch.set_column(
                        column, "item_id", pc.binary_join_element_wise(names, f"{number}", "#")
                    )
                yield batch


def measure(items: Path, repeat: int, config: str | None) -> None:
    """Runs and checks; exits with 1 when two items share an ID."""
    with tempfile.TemporaryDirectory() as folder:
        root, catalog = str(Path(folder) / "root"), str(Path(folder) / "catalog.parquet")
        batches = repeated(items, repeat)
        first = next(batches)
        with pq.ParquetWriter(catalog, first.schema, compression="zstd") as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
        job = ["tokenize", "--catalog", catalog, "--root", root]
        measured = run_measured(*job, *(["--config", config] if config else []))
        at = Root(root)
        tables = PublishedTables(at, *at.require_published())
        sids = tables.read("items", ["sid"])["sid"].to_numpy()
    said = measured.output
    shared = len(sids) - len(np.unique(sids))
    links = "  ".join(f"{name} {link['seconds']:.1f}" for name, link in said["links"].items())
    placements = "  ".join(f"{n} {c:,}" for n, c in said["metrics"]["placements"].items())
    distinct = said["metrics"]["distinct_contents"]
    print(f"{items.name} x {repeat}: {len(sids):,} items, {distinct:,} distinct contents")
    print(f"  wall         {measured.wall:.1f} s   ({links})")
    print(f"  peak memory  {measured.peak_bytes / 2**30:.2f} GiB resident")
    print(f"  placement    {placements}")
    print(f"  sharing an ID  {shared}")
    if shared:
        sys.exit(1)


def main() -> None:
    """Measures the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", type=Path)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--config")
    options = parser.parse_args()
    measure(options.items, options.repeat, options.config)


if __name__ == "__main__":
    main()
