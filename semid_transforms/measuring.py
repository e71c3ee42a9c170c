"""The quality table of a generation: exact counts over all items, geometry over a sample."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.metrics import DEFINITIONS, code_use, collisions, find_neighbours, kept, quality
from models.quantizer import Quantizer
from models.sid import SidLayout
from schemas.arrays import keys_from_fixed_binary, matrix_from_list
from schemas.tables import Placement
from semid_transforms import files
from semid_transforms.catalog import read_categories
from semid_transforms.embedding import find_embeddings

SAMPLE_ROWS = 50_000
"""Items whose embeddings are compared pairwise. Pairs of a uniform sample are a uniform sample of
pairs, so the mean cosines are unbiased; every count is over all items."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Items whose embeddings are at hand, those with the smallest content hashes.

    Attributes:
      item_ids: n strings.
      embeddings: (n, D) float32.
      base_codes: (n, L) int32, before collision resolution.
      codes: (n, L) int32, as published.
      category_paths: n lists of names or None, or None when no item has any.
    """

    item_ids: pa.Array
    embeddings: np.ndarray
    base_codes: np.ndarray
    codes: np.ndarray
    category_paths: list[list[str] | None] | None

    def take(self, rows: np.ndarray) -> Sample:
        """Returns some of the items."""
        paths = self.category_paths
        return Sample(
            self.item_ids.take(pa.array(rows)),
            self.embeddings[rows],
            self.base_codes[rows],
            self.codes[rows],
            None if paths is None else [paths[row] for row in rows],
        )


def sample_items(
    items: Sequence[str],
    embeddings: Sequence[str],
    catalog: Sequence[str],
    quantizer: Quantizer,
    sample_rows: int = SAMPLE_ROWS,
) -> Sample:
    """Reads the sample of a generation.

    Args:
      items: paths of `items` parts.
      embeddings: paths of `embeddings` parts.
      catalog: paths of `catalog` parts.
      quantizer: the generation's tokenizer.
      sample_rows: most items to take.

    Raises:
      ValueError: an item has no embedding.
    """
    columns = ["item_id", "codes", "base_codes", "content_hash"]
    table = pa.concat_tables(files.read_table(part, columns) for part in items)
    keys = keys_from_fixed_binary(table["content_hash"])
    chosen = np.sort(np.argsort(keys, kind="stable")[:sample_rows])
    rows = table.take(pa.array(chosen)).combine_chunks()
    distinct, position = np.unique(keys[chosen], return_inverse=True)
    wanted = pa.array([key.ljust(16, b"\0") for key in distinct.tolist()], pa.binary(16))
    vectors = matrix_from_list(find_embeddings(embeddings, wanted), quantizer.embedding_dim)
    categories = read_categories(rows["item_id"], catalog)
    return Sample(
        item_ids=rows["item_id"].combine_chunks(),
        embeddings=vectors[position.reshape(-1)],
        base_codes=matrix_from_list(rows["base_codes"], quantizer.num_levels),
        codes=matrix_from_list(rows["codes"], quantizer.num_levels),
        category_paths=None if categories is None else categories.to_pylist(),
    )


def measure(
    items: Sequence[str],
    embeddings: Sequence[str],
    catalog: Sequence[str],
    quantizer: Quantizer,
    sample_rows: int = SAMPLE_ROWS,
) -> dict[str, Any]:
    """Measures a generation; arguments as for `sample_items`.

    Returns:
      A document ready for JSON: `before` and `after` collision resolution, `placements`, and
      `definitions`.
    """
    columns = ["sid", "codes", "base_codes", "placement", "content_hash"]
    table = pa.concat_tables(files.read_table(part, columns) for part in items)
    sample = sample_items(items, embeddings, catalog, quantizer, sample_rows)
    floor = collisions(keys_from_fixed_binary(table["content_hash"]))
    neighbours = find_neighbours(sample.embeddings)
    document: dict[str, Any] = {"items": table.num_rows, "sampled_items": len(sample.item_ids)}
    for name, column, codes in (
        ("before", "base_codes", sample.base_codes),
        ("after", "codes", sample.codes),
    ):
        measured = quality(
            codes,
            quantizer.codebook_sizes,
            sample.embeddings,
            decoded=quantizer.decode(codes),
            category_paths=sample.category_paths,
            hierarchical=quantizer.hierarchical,
            neighbours=neighbours,
        )
        every = matrix_from_list(table[column], quantizer.num_levels)
        measured["items"] = table.num_rows
        measured["levels"] = code_use(every, quantizer.codebook_sizes)
        measured["collisions"] = collisions(every)
        measured.pop("definitions")
        document[name] = measured
    document["after"]["shared_sids"] = collisions(table["sid"].to_numpy())
    document["collisions_floor"] = floor
    counts = {
        row["values"]: row["counts"] for row in pc.value_counts(table["placement"]).to_pylist()
    }
    document["placements"] = {name.value: counts.get(name.value, 0) for name in Placement}
    document["distinct_contents"] = round((1 - floor["a"]) * table.num_rows)
    document["definitions"] = DEFINITIONS
    return document


def measure_kept(changes: Sequence[str], before: SidLayout, after: SidLayout) -> dict[str, Any]:
    """Counts the codes that items kept on the way to another ID space.

    Args:
      changes: paths of `changes` parts, which list every live item.
      before: layout of `old_sid`.
      after: layout of `new_sid`.

    Returns:
      `items`, those live in both generations, and `share` of them whose first 1..L codes, as
      published, are unchanged; L of the shorter one.
    """
    levels = min(before.num_levels, after.num_levels)
    same, items = np.zeros(levels), 0
    for part in changes:
        sids = files.read_table(part, ["old_sid", "new_sid"]).drop_null()
        old, new = (
            layout.unpack(sids[name].to_numpy())[0][:, :levels]
            for layout, name in ((before, "old_sid"), (after, "new_sid"))
        )
        same += len(old) * np.array(kept(new, old))
        items += len(old)
    return {"items": items, "share": [float(share) for share in same / max(1, items)]}


def metrics_bytes(document: dict[str, Any]) -> bytes:
    """Returns a quality table as the bytes of `metrics.json`."""
    return (json.dumps(document, indent=1) + "\n").encode()
