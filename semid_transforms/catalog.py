"""Reading the published catalog snapshot back."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from semid_transforms import files


def read_categories(items: pa.ChunkedArray, catalog: Sequence[str]) -> pa.Array | None:
    """Returns the category path of every item id, in order; None when no item has one."""
    if not catalog:
        return None
    table = pa.concat_tables(
        files.read_table(part, ["item_id", "category_path"]) for part in catalog
    )
    paths = table["category_path"].combine_chunks()
    if not pc.any(pc.greater(pc.fill_null(pc.list_value_length(paths), 0), 0)).as_py():
        return None
    rows = pc.index_in(items.combine_chunks(), value_set=table["item_id"].combine_chunks())
    return paths.take(rows)
