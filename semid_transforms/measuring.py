"""The quality table of a generation: exact counts over all items, geometry over a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.metrics import DEFINITIONS, code_use, collisions, quality
from models.quantizer import Quantizer
from schemas.arrays import bytes_from_fixed_binary, matrix_from_list
from schemas.tables import Placement
from semid_transforms import files
from semid_transforms.catalog import read_categories
from semid_transforms.embedding import find_embeddings

SAMPLE_ROWS = 50_000
"""Items whose embeddings are compared pairwise. Pairs of a uniform sample are a uniform sample of
pairs, so the mean cosines are unbiased; every count is over all items."""


def measure(
    items: Sequence[str],
    embeddings: Sequence[str],
    catalog: Sequence[str],
    quantizer: Quantizer,
    sample_rows: int = SAMPLE_ROWS,
) -> dict[str, Any]:
    """Measures a generation.

    Args:
      items: paths of `items` parts.
      embeddings: paths of `embeddings` parts.
      catalog: paths of `catalog` parts.
      quantizer: the generation's tokenizer.
      sample_rows: most items to compare embeddings of, those with the smallest content hashes.

    Returns:
      A document ready for JSON: `before` and `after` collision resolution, `placements`, and
      `definitions`.
    """
    columns = ["item_id", "sid", "codes", "base_codes", "placement", "content_hash"]
    table = pa.concat_tables(files.read_table(part, columns) for part in items)
    levels = quantizer.num_levels
    base = matrix_from_list(table["base_codes"], levels)
    final = matrix_from_list(table["codes"], levels)
    hashes = np.ascontiguousarray(bytes_from_fixed_binary(table["content_hash"]))
    keys = hashes.view("S16").reshape(-1)
    floor = collisions(keys)

    chosen = np.sort(np.argsort(keys, kind="stable")[:sample_rows])
    distinct, position = np.unique(keys[chosen], return_inverse=True)
    wanted = pa.array([key.ljust(16, b"\0") for key in distinct.tolist()], pa.binary(16))
    vectors = matrix_from_list(find_embeddings(embeddings, wanted), quantizer.embedding_dim)
    vectors = vectors[position.reshape(-1)]
    categories = read_categories(table["item_id"], catalog)
    paths = None if categories is None else categories.take(pa.array(chosen)).to_pylist()

    document: dict[str, Any] = {"items": table.num_rows, "sampled_items": len(chosen)}
    for name, codes in (("before", base), ("after", final)):
        measured = quality(
            codes[chosen],
            quantizer.codebook_sizes,
            vectors,
            decoded=quantizer.decode(codes[chosen]),
            category_paths=paths,
        )
        measured["items"] = table.num_rows
        measured["levels"] = code_use(codes, quantizer.codebook_sizes)
        measured["collisions"] = collisions(codes)
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
