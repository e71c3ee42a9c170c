"""Generated catalogs of any size that bring embeddings, skewed as catalogs are; for benchmarks.

  python -m benchmarks.scaled_catalog FOLDER --rows 1000000

Items belong to clusters of a two-level taxonomy; clusters and brands have Zipf frequencies. An
embedding is the sum of directions of everything, department, category and cluster plus noise, of
unit length: residual k-means of 3 x 256 codes leaves 13 % of 100,000 items colliding and 30 % of
their variance, much as on real catalogs. One item in twenty nearly repeats an earlier one, and a
fifth of those repeat it exactly under another id, as feeds do. Files are written part by part, so
memory does not grow with the rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

EMBEDDING_DIM = 384
PART_ROWS = 100_000
_GROUP_ROWS = 20_000  # 30 MB of embeddings
_DEPARTMENTS, _CATEGORIES, _BRANDS, _WORDS = 40, 600, 5_000, 20_000
_ITEMS_PER_CLUSTER, _MOST_CLUSTERS = 12, 100_000
_COMMON, _SHARES = 0.5, (0.5, 0.5, 0.5)  # of department, category and cluster
_NOISE, _NEAR = 0.8, 0.02
_REPEATS, _EXACT = 0.05, 0.01
_SYLLABLES = ("ba", "cor", "del", "fin", "gra", "hul", "jo", "ka", "lim", "mer", "no", "pra", "qui",
              "ros", "sta", "tu", "vel", "wen", "xi", "zo")  # fmt: skip


def write_catalog(folder: str | Path, rows: int, seed: int = 0) -> list[Path]:
    """Writes a catalog as Parquet parts, unless the folder holds it already.

    Args:
      folder: local; made where missing.
      rows: N.
      seed: the same seed and rows give the same files.

    Returns:
      The parts: item_id, title, brand, category_path (2 names), description, popularity,
      updated_at, embedding (384 float32).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    said, marker = {"rows": rows, "seed": seed}, folder / "catalog.json"
    paths = [folder / f"part-{n:05d}.parquet" for n in range(-(-rows // PART_ROWS))]
    if marker.exists() and json.loads(marker.read_text()) == said:
        return paths
    marker.unlink(missing_ok=True)
    world = _World(rows, seed)
    for number, path in enumerate(paths):
        first = number * PART_ROWS
        table = world.items(
            first, min(PART_ROWS, rows - first), np.random.default_rng([seed, number])
        )
        write_part(path, table)
    marker.write_text(json.dumps(said))
    return paths


def write_part(path: str | Path, table: pa.Table) -> None:
    """Writes items as one Parquet file of row groups of 20,000."""
    words = [name for name in table.schema.names if name not in ("embedding", "item_id")]
    pq.write_table(
        table,
        path,
        row_group_size=_GROUP_ROWS,
        compression={**dict.fromkeys(table.schema.names, "zstd"), "embedding": "none"},
        use_dictionary=words,
    )


class _World:
    """What all parts of one catalog share: the taxonomy, its directions, words and brands."""

    def __init__(self, rows: int, seed: int):
        # Every part has random numbers of its own, so that a smaller catalog has the first of a
        # larger one's clusters, and one tokenizer can serve both.
        named, placed, clustered = (np.random.default_rng([seed, n, 0]) for n in range(3))
        clusters = int(np.clip(rows // _ITEMS_PER_CLUSTER, _CATEGORIES, _MOST_CLUSTERS))
        self._words = _names(_WORDS, named)
        self._brands = _names(_BRANDS, named)
        self._department = named.permutation(_CATEGORIES) % _DEPARTMENTS
        self._category = np.arange(clusters) % _CATEGORIES
        self._frequency = _zipf(clusters, 0.5)
        self._spread = np.arange(1, EMBEDDING_DIM + 1, dtype=np.float32) ** -0.75
        centres = _COMMON * self._directions(1, placed)
        centres = centres + _SHARES[0] * self._directions(_DEPARTMENTS, placed)[self._department]
        centres = centres + _SHARES[1] * self._directions(_CATEGORIES, placed)
        self._centres = centres[self._category]
        self._centres += _SHARES[2] * self._directions(clusters, clustered)

    def items(self, first: int, rows: int, rng: np.random.Generator) -> pa.Table:
        """Returns items `first` to `first + rows` of the catalog."""
        cluster = np.searchsorted(self._frequency, rng.random(rows))
        vectors = self._centres[cluster] + _NOISE * self._directions(rows, rng)
        words = np.searchsorted(_zipf(_WORDS, 1.0), rng.random((rows, 12)))
        words[:, 0] = cluster % _WORDS
        brand = np.searchsorted(_zipf(_BRANDS, 1.0), rng.random(rows))
        source = np.arange(rows)
        copies = np.flatnonzero(rng.random(rows) < _REPEATS)
        source[copies] = (rng.random(len(copies)) * copies).astype(np.int64)
        source = source[source]  # what was copied may be a copy
        vectors, words, brand, cluster = (
            vectors[source],
            words[source],
            brand[source],
            cluster[source],
        )
        near = copies[rng.random(len(copies)) >= _EXACT / _REPEATS]
        vectors[near] += _NEAR * self._directions(len(near), rng)
        words[near, 4] = np.searchsorted(_zipf(_WORDS, 1.0), rng.random(len(near)))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        category = self._category[cluster]
        names = [pc.take(self._words, pa.array(column)) for column in words.T]
        numbers = pa.array(np.arange(first, first + rows)).cast(pa.string())
        path = np.stack([self._department[category], _DEPARTMENTS + category], axis=1)
        paths = pc.take(self._words, pa.array(path.ravel()))
        offsets = pa.array(np.arange(0, 2 * rows + 1, 2, dtype=np.int32))
        flat = pa.array(vectors.ravel())
        ends = pa.array(np.arange(0, vectors.size + 1, EMBEDDING_DIM, dtype=np.int32))
        day = 1_767_225_600_000_000 + 86_400_000_000 * rng.integers(0, 300, rows)
        return pa.table(
            {
                "item_id": pc.binary_join_element_wise("SKU", pc.utf8_lpad(numbers, 9, "0"), ""),
                "title": pc.binary_join_element_wise(*names[:5], " "),
                "brand": pc.take(self._brands, pa.array(brand)),
                "category_path": pa.ListArray.from_arrays(offsets, paths),
                "description": pc.binary_join_element_wise(*names[5:], " "),
                "popularity": np.round(rng.pareto(1.2, rows) + 1, 3),
                "updated_at": pa.array(day, pa.timestamp("us", "UTC")),
                "embedding": pa.ListArray.from_arrays(ends, flat),
            }
        )

    def _directions(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Returns (count, D) float32 of unit length, longer in the first axes."""
        vectors = rng.standard_normal((count, EMBEDDING_DIM), np.float32) * self._spread
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _zipf(count: int, exponent: float) -> np.ndarray:
    """Returns the cumulative shares of `count` ranks whose frequency falls as rank^-exponent."""
    shares = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.cumsum(shares) / shares.sum() * (1 + 1e-12)


def _names(count: int, rng: np.random.Generator) -> pa.Array:
    """Returns invented words of two to four syllables, some of them alike."""
    lengths = rng.integers(2, 5, count)
    picks = rng.integers(0, len(_SYLLABLES), (count, 4))
    return pa.array(
        [
            "".join(_SYLLABLES[p] for p in row[:n]).title()
            for row, n in zip(picks, lengths, strict=True)
        ]
    )


def main() -> None:
    """Writes the catalog named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = write_catalog(options.folder, options.rows, options.seed)
    size = sum(path.stat().st_size for path in paths)
    print(f"{options.rows:,} items in {len(paths)} parts, {size / 1e9:.2f} GB: {options.folder}")


if __name__ == "__main__":
    main()
