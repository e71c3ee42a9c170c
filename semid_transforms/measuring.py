"""The quality table of a generation: exact counts over all items, geometry over a sample."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from models.metrics import (
    DEFINITIONS,
    agreement,
    kept,
    number_categories,
    quality,
    use_of_counts,
)
from models.neighbours import Geometry
from models.quantizer import Quantizer
from models.sid import SidLayout
from schemas.arrays import bytes_from_fixed_binary, matrix_from_list
from schemas.tables import Placement
from semid_transforms import files
from semid_transforms.catalog import read_categories
from semid_transforms.embedding import read_embeddings
from semid_transforms.item_counts import count_items

_BLOCK_ROWS = 4096

SAMPLE_ROWS = 50_000
"""Items whose embeddings are compared pairwise. Pairs of a uniform sample are a uniform sample of
pairs, so the mean cosines are unbiased; every count is over all items."""

ASKED_ROWS = 2_000
"""Items of the sample whose nearest neighbours are looked for among all of it: 2 s for 5,000 of
them. Shares have a standard error of half a point to two thirds of one on measured catalogs (a
third to two fifths with 5,000)."""


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

    @functools.cached_property
    def geometry(self) -> Geometry:
        """What the embeddings say of each other; 5,000 items are asked for their neighbours."""
        return Geometry.of(self.embeddings)

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
    rows = _sample_rows(items, sample_rows)
    hashes = rows["content_hash"].combine_chunks()
    vectors = read_embeddings(embeddings, hashes, quantizer.embedding_dim)
    categories = read_categories(rows["item_id"], catalog)
    return Sample(
        item_ids=rows["item_id"].combine_chunks(),
        embeddings=vectors,
        base_codes=matrix_from_list(rows["base_codes"], quantizer.num_levels),
        codes=matrix_from_list(rows["codes"], quantizer.num_levels),
        category_paths=None if categories is None else categories.to_pylist(),
    )


def _sample_rows(items: Sequence[str], sample_rows: int) -> pa.Table:
    """Reads the rows of `items` parts with the smallest content hashes."""
    columns = ["item_id", "codes", "base_codes", "content_hash"]
    rows = pa.table({})
    for part in items:
        few = _smallest(files.read_table(part, columns), sample_rows)
        rows = _smallest(pa.concat_tables([rows, few]), sample_rows) if rows.num_rows else few
    return rows


def measure_counts(items: Sequence[str], codebook_sizes: Sequence[int]) -> dict[str, Any]:
    """Measures what is counted over all items; arguments as for `count_items`.

    Returns:
      A part of the quality table, see `quality_table`.
    """
    counts = count_items(items, codebook_sizes)
    before, after = (
        {
            "items": counts.items,
            "levels": [use_of_counts(used) for used in counted.use],
            "collisions": counted.collisions,
        }
        for counted in (counts.before, counts.after)
    )
    return {
        "items": counts.items,
        "before": before,
        "after": after | {"shared_sids": counts.shared_sids},
        "collisions_floor": counts.contents,
        "placements": {name.value: counts.placements[name.value] for name in Placement},
        "distinct_contents": counts.distinct_contents,
    }


def measure_sample(sample: Sample, quantizer: Quantizer) -> dict[str, Any]:
    """Measures a sample of the items.

    Args:
      sample: from `sample_items`.
      quantizer: the generation's tokenizer.

    Returns:
      A part of the quality table, see `quality_table`.
    """
    decoded = np.empty((len(sample.base_codes), quantizer.embedding_dim), np.float32)
    with ThreadPoolExecutor(1) as aside:  # products of matrices, mostly, at the same time
        looking = aside.submit(Geometry.of, sample.embeddings, ASKED_ROWS)
        _decode_rows(quantizer, sample.base_codes, np.arange(len(decoded)), decoded)
        geometry = looking.result()

    def measure(codes: np.ndarray) -> dict[str, Any]:
        document = quality(
            codes,
            quantizer.codebook_sizes,
            sample.embeddings,
            decoded=decoded,
            category_paths=sample.category_paths,
            hierarchical=quantizer.hierarchical,
            geometry=geometry,
        )
        document.pop("definitions")
        return document

    before = measure(sample.base_codes)
    moved = np.flatnonzero((sample.base_codes != sample.codes).any(axis=1))
    _decode_rows(quantizer, sample.codes, moved, decoded)
    after = measure(sample.codes)
    return {"sampled_items": len(sample.item_ids), "before": before, "after": after}


def measure_agreement(
    items: Sequence[str], catalog: Sequence[str], layout: SidLayout
) -> dict[str, Any]:
    """Measures category agreement on the same sample, the only figure that needs no embedding.

    Args:
      items: paths of `items` parts.
      catalog: paths of `catalog` parts.
      layout: of the SIDs.

    Returns:
      A part of the quality table, see `quality_table`.
    """
    rows = _sample_rows(items, SAMPLE_ROWS)
    categories = read_categories(rows["item_id"], catalog)
    numbered = number_categories([] if categories is None else categories.to_pylist())
    before, after = (
        agreement(matrix_from_list(rows[name], layout.num_levels), numbered, layout.hierarchical)
        for name in ("base_codes", "codes")
    )
    return {"sampled_items": rows.num_rows, "before": before, "after": after}


def quality_table(
    carried: dict[str, Any], sampled: dict[str, Any], counted: dict[str, Any]
) -> dict[str, Any]:
    """Joins what was measured before, what was measured on a sample, and counts of all items.

    Args:
      carried: see `carried_quality`.
      sampled: from `measure_sample` or `measure_agreement`.
      counted: from `measure_counts`.

    Returns:
      A document ready for JSON: `before` and `after` collision resolution, `placements`,
      `definitions` and whatever else any of them says. The last that says something counts.
    """
    parts = (carried, sampled, counted)
    both = {
        when: functools.reduce(operator.or_, (part.get(when, {}) for part in parts))
        for when in ("before", "after")
    }
    return carried | sampled | counted | both | {"definitions": DEFINITIONS}


def _decode_rows(
    quantizer: Quantizer, codes: np.ndarray, rows: np.ndarray, decoded: np.ndarray
) -> None:
    """Reconstructs some rows of (n, L) codes in (n, D): float32 accuracy is plenty for a mean."""
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        decoded[block] = quantizer.nearly_decode(codes[block])


def _smallest(rows: pa.Table, limit: int) -> pa.Table:
    """Returns the rows with the smallest content hashes, in their order."""
    rows = rows.combine_chunks()
    first = smallest_keys(bytes_from_fixed_binary(rows["content_hash"]), limit)
    return rows if len(first) == rows.num_rows else rows.take(pa.array(first))


def smallest_keys(keys: np.ndarray, limit: int) -> np.ndarray:
    """Returns the rows of the `limit` smallest keys, by row; of equal keys the first rows.

    Args:
      keys: (N, 16) uint8 content hashes.
      limit: most rows to return.
    """
    if len(keys) <= limit:
        return np.arange(len(keys))
    leading = np.ascontiguousarray(keys[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
    few = np.flatnonzero(leading <= np.partition(leading, limit - 1)[limit - 1])
    order = np.argsort(np.ascontiguousarray(keys[few]).view("S16").reshape(-1), kind="stable")
    return np.sort(few[order[:limit]])


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
