"""Embedding parts that are written while a catalog is read for the first time.

Nearly every row is a new item then, so its embedding is stored while it is at hand, not read again
once it is known which rows are kept: one part per split, of all its valid rows. `collecting` takes
those that no item keeps out again.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from schemas.arrays import list_from_matrix
from schemas.tables import embedding_schema
from semid_transforms import files
from semid_transforms.embedding import GROUP_ROWS, EmbeddingParts, by_content
from semid_transforms.embedding_columns import EmbeddingSpec, combine, vector_columns
from semid_transforms.rows import Rows


def stores_early(spec: EmbeddingSpec | None) -> bool:
    """True when embeddings are complete as soon as a row is read: nothing is fused to them."""
    return spec is not None and not spec.text and not spec.optional


class SplitEmbeddings:
    """Gathers the embeddings of one split, which are as large as what was read of it.

    Args:
      parts: where they go.
      spec: how they are combined.
    """

    def __init__(self, parts: EmbeddingParts, spec: EmbeddingSpec):
        self._parts = parts
        self._spec = spec
        self._items: list[pa.RecordBatch] = []
        self._vectors: list[np.ndarray] = []

    def add(self, rows: Rows, parsed: pa.RecordBatch) -> None:
        """Makes the embeddings of the rows that `validate` let pass.

        Args:
          rows: as read.
          parsed: `PARSED`, some of them in their order.
        """
        columns = vector_columns(rows.fields, self._spec)
        if parsed.num_rows < len(rows.numbers):
            kept = np.searchsorted(rows.numbers, parsed["row"].to_numpy())
            columns = [column.take(pa.array(kept)) for column in columns]
        vectors, _ = combine(columns, self._spec)
        self._items.append(parsed.select(["item_id", "content_hash"]))
        self._vectors.append(vectors)

    def write(self, number: int) -> None:
        """Writes part `number`, sorted as all are; nothing when no row was valid."""
        if not self._items:
            return
        items = pa.concat_batches(self._items)
        place = pa.array(np.arange(items.num_rows))
        items = by_content(items.append_column("place", place))
        target = np.empty(items.num_rows, np.int64)
        target[items["place"].to_numpy()] = np.arange(items.num_rows)
        values = np.empty((items.num_rows, self._spec.embedding_dim), np.float32)
        start = 0
        while self._vectors:
            vectors = self._vectors.pop(0)  # freed once copied: one copy is enough
            values[target[start : start + len(vectors)]] = vectors
            start += len(vectors)
        part = pa.RecordBatch.from_arrays(
            [items["item_id"], items["content_hash"], list_from_matrix(values, pa.float32())],
            schema=embedding_schema(),
        )
        path = files.join(self._parts.embeddings, self._parts.name(number))
        files.write_table(path, part.schema, [part], GROUP_ROWS)
