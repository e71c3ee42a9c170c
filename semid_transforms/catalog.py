"""Reading the published catalog snapshot back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from semid_transforms import files


def has_categories(catalog: Sequence[str]) -> bool:
    """True when some item has a category path; reads no further than the first that has."""
    for path in catalog:
        with files.parquet_file(path) as file:
            for batch in file.iter_batches(columns=["category_path"]):
                lengths = pc.fill_null(pc.list_value_length(batch["category_path"]), 0)
                if pc.any(pc.greater(lengths, 0)).as_py():
                    return True
    return False


def same_categories(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """True when two catalogs, cut alike, have the same items in the same categories.

    A category path can change without the content that is embedded.
    """
    columns = ["item_id", "category_path"]
    return len(ours) == len(theirs) and all(
        files.read_table(left, columns).equals(files.read_table(right, columns))
        for left, right in zip(ours, theirs, strict=True)
    )


def read_categories(items: pa.ChunkedArray, catalog: Sequence[str]) -> pa.Array | None:
    """Returns the category path of every item id, in order; None when no item has one."""
    paths = read_column(items, catalog, "category_path")
    if not pc.any(pc.greater(pc.fill_null(pc.list_value_length(paths), 0), 0)).as_py():
        return None
    return paths


def read_column(items: pa.ChunkedArray, catalog: Sequence[str], column: str) -> pa.Array:
    """Returns a catalog column for every item id, in order; null where the catalog lacks it.

    Args:
      items: N item ids.
      catalog: paths of `catalog` parts, at least one.
      column: of `schemas.tables.CATALOG`.
    """
    wanted = items.combine_chunks().dictionary_encode()
    found, position = [], np.full(len(wanted.dictionary), -1)
    seen = 0
    for part in catalog:
        table = files.read_table(part, ["item_id", column])
        # A small set is asked for many ids: the set of all ids would take ten times as long.
        number = pc.index_in(table["item_id"].combine_chunks(), value_set=wanted.dictionary)
        rows = np.flatnonzero(number.is_valid().to_numpy(zero_copy_only=False))
        position[number.drop_null().to_numpy()] = seen + np.arange(len(rows))
        found.append(table[column].combine_chunks().take(pa.array(rows)))
        seen += len(rows)
    places = position[wanted.indices.to_numpy()]
    return pa.concat_arrays(found).take(pa.array(places, mask=places < 0))
