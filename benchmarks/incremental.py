"""Publishes a generated catalog, changes one item in a hundred, and runs the night after.

  python -m benchmarks.incremental FOLDER --rows 1000000 [--share 0.01] [--config FILE]
      [--tokenizer ROOT]

Catalogs bring embeddings and are generated under FOLDER once. Of the changed items eight tenths
have new vectors, one tenth is new and one tenth gone; they are spread over every file, so that the
night reads the whole catalog again. Both nights are verified.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.commands import run_measured
from benchmarks.pipeline import describe, fit, with_tokenizer
from benchmarks.scaled_catalog import EMBEDDING_DIM, write_catalog, write_part


def change_part(source: Path, target: Path, share: float) -> None:
    """Writes a part with some of its items changed, new and gone; see the module."""
    table = pq.read_table(source).combine_chunks()
    rng = np.random.default_rng(int(source.stem.split("-")[1]))
    touched = rng.permutation(table.num_rows)[: round(share * table.num_rows)]
    updated, added, gone = np.split(touched, [len(touched) * 8 // 10, len(touched) * 9 // 10])
    vectors = table["embedding"].chunk(0).flatten().to_numpy().reshape(-1, EMBEDDING_DIM).copy()
    for rows in (updated, added):
        vectors[rows] += 0.5 * np.roll(vectors[rows], 1, axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    offsets = pa.array(np.arange(0, vectors.size + 1, EMBEDDING_DIM, dtype=np.int32))
    column = pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
    # Only the changed rows take new vectors: scaling may move the last bit of the others.
    changed = table.take(pa.array(np.r_[updated, added])).set_column(
        table.schema.get_field_index("embedding"),
        "embedding",
        column.take(pa.array(np.r_[updated, added])),
    )
    renamed = pc.binary_join_element_wise("NEW", changed["item_id"][len(updated) :], "")
    ids = pa.chunked_array([*changed["item_id"][: len(updated)].chunks, *renamed.chunks])
    changed = changed.set_column(table.schema.get_field_index("item_id"), "item_id", ids)
    kept = table.take(pa.array(np.setdiff1d(np.arange(table.num_rows), np.r_[updated, gone])))
    write_part(target, pa.concat_tables([kept, changed.cast(kept.schema)]))


def measure(folder: Path, rows: int, share: float, tokenizers: Path, config: Sequence[str]) -> None:
    """Runs and compares both nights."""
    parts = write_catalog(folder / str(rows), rows)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        catalog = Path(scratch) / "catalog"
        catalog.mkdir()
        for part in parts:
            change_part(part, catalog / part.name, share)
        root = with_tokenizer(tokenizers, Path(scratch) / "root")
        where = ("--root", str(root), *config)
        first = run_measured("tokenize", "--catalog", f"{folder / str(rows)}/*.parquet", *where)
        verified = run_measured("verify", "--root", str(root))
        night = run_measured("tokenize", "--catalog", f"{catalog}/*.parquet", *where)
        again = run_measured("verify", "--root", str(root))
    if first.output["links"]["fit"]["fitted"]:
        sys.exit("the first night fitted a tokenizer: fit one before, with the same --config")
    embedded = [run.output["links"]["read"]["changed"] for run in (first, night)]
    counts = night.output["counts"]
    print(
        f"{rows:,} items, then new {counts['new']:,}, updated {counts['updated']:,}, retired "
        f"{counts['retired']:,}"
    )
    print(describe("first", first))
    print(describe("night", night))
    print(f"  embedded  {embedded[0]:,} then {embedded[1]:,}: {embedded[1] / embedded[0]:.2%}")
    print(f"  night / first {night.wall / first.wall:.1%} of the time")
    print(f"  verify    {verified.wall:.1f} s and {again.wall:.1f} s, both sound")


def main() -> None:
    """Measures the size named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--config")
    parser.add_argument("--tokenizer", type=Path, help="root with one fitted tokenizer")
    options = parser.parse_args()
    config = ("--config", options.config) if options.config else ()
    with tempfile.TemporaryDirectory() as folder:
        tokenizers = options.tokenizer
        if tokenizers is None:
            write_catalog(options.folder / str(options.rows), options.rows)
            tokenizers = Path(folder) / "fitted"
            pattern = f"{options.folder / str(options.rows)}/*.parquet"
            print(f"fit: {fit(pattern, str(tokenizers), config).wall:.1f} s")
        measure(options.folder, options.rows, options.share, tokenizers, config)


if __name__ == "__main__":
    main()
