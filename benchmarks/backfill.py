"""Publishes all items but some, adds those by backfill, and compares the cost of the two.

  python -m benchmarks.backfill ITEMS.parquet [--rows 1000] [--config FILE]

The first run takes everything but the last rows of the file, encoding, fitting and measuring as a
first night does; the backfill takes those rows. Both are commands in processes of their own, so
start-up counts on both sides. Both generations are verified, and the items of the first are
compared one by one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.commands import run_measured
from pipelines.published_tables import PublishedTables
from pipelines.root import Root


def published_items(root: str) -> dict[str, int]:
    """Returns the SID of every live item."""
    at = Root(root)
    items = PublishedTables(at, *at.require_published()).read_items(["item_id", "sid"])
    return dict(zip(items["item_id"].to_pylist(), items["sid"].to_pylist(), strict=True))


def measure(items: Path, rows: int, config: str | None) -> None:
    """Runs and compares; exits with 1 when an item moved or two share an ID."""
    with tempfile.TemporaryDirectory() as folder:
        root = str(Path(folder) / "root")
        table = pq.read_table(items)
        if not 0 < rows < table.num_rows:
            sys.exit(f"--rows must be from 1 to {table.num_rows - 1}, got {rows}")
        base, added = (Path(folder) / name for name in ("base.parquet", "added.parquet"))
        pq.write_table(table.slice(0, table.num_rows - rows), base)
        pq.write_table(table.slice(table.num_rows - rows), added)
        extra = ["--root", root, *(["--config", config] if config else [])]
        full = run_measured("tokenize", "--catalog", str(base), *extra)
        before = published_items(root)
        backfill = run_measured("backfill", "--catalog", str(added), *extra)
        verified = run_measured("verify", "--root", root)
        after = published_items(root)
    moved = sum(after[name] != sid for name, sid in before.items())
    shared = len(after) - len(set(after.values()))
    print(f"{items.name}: {len(before):,} items, then {len(after) - len(before):,} by backfill")
    for name, measured in (("full run", full), ("backfill", backfill)):
        said = measured.output
        links = "  ".join(f"{link} {v['seconds']:.1f}" for link, v in said["links"].items())
        encoded = said["links"]["embed"]["counters"].get("embed/texts-encoded", 0)
        print(f"  {name:<9} {measured.wall:7.1f} s   {encoded:,} texts encoded   ({links})")
    print(f"  backfill / full run  {backfill.wall / full.wall:.1%}")
    print(f"  moved                {moved} of {len(before):,}")
    print(f"  sharing an ID        {shared} of {len(after):,}")
    print(f"  verify               {verified.wall:.1f} s, sound")
    if moved or shared:
        sys.exit(1)


def main() -> None:
    """Measures the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--config")
    options = parser.parse_args()
    measure(options.items, options.rows, options.config)


if __name__ == "__main__":
    main()
