"""Interactions of users with items of a catalog, and the column of vectors made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.collaborative import ItemVectors
from schemas.arrays import list_from_matrix, mask_from_bool
from schemas.config import InputConfig, ShardConfig
from semid_transforms import files
from semid_transforms.coercion import Kind, coerce
from semid_transforms.files import SourceFile
from semid_transforms.formats import read_rows
from semid_transforms.hashing import item_hashes
from semid_transforms.rows import Field
from semid_transforms.sources import file_columns, format_of, list_splits, open_parquet

VECTOR_TYPE = pa.list_(pa.float32())


@dataclasses.dataclass(frozen=True)
class InteractionColumns:
    """Names of the columns of an interactions table.

    Attributes:
      user: who.
      item: what, by the catalog's item id.
      weight: how much, a positive number; None counts every user of an item once.
    """

    user: str = "user_id"
    item: str = "item_id"
    weight: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions with items of a catalog.

    Attributes:
      users: (E,) uint64 hashes of users.
      items: (E,) int64 positions among the catalog's item ids.
      weights: (E,) float64, or None.
      unknown: rows whose item is not in the catalog; they are left out.
      unusable: rows without user, item or positive weight, or that cannot be read; left out too.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray | None
    unknown: int
    unusable: int


def read_interactions(
    sources: Sequence[SourceFile], columns: InteractionColumns, item_ids: pa.Array
) -> Interactions:
    """Reads interactions, 16 bytes each, 24 with a weight.

    Args:
      sources: Parquet, JSON Lines or CSV files.
      columns: their columns; others are not read.
      item_ids: distinct item ids of the catalog.

    Raises:
      ValueError: a file lacks a column; the message names both.
      OSError: a file cannot be opened or read; the message names it.
    """
    named = {"user": (columns.user, Kind.TEXT), "item": (columns.item, Kind.TEXT)}
    if columns.weight is not None:
        named["weight"] = (columns.weight, Kind.NUMBER)
    fields = [Field(name, column, kind) for name, (column, kind) in named.items()]
    _check_columns(sources, [field.column for field in fields])
    shards = ShardConfig()
    users, items, weights = [], [], []
    unknown = unusable = 0
    for split in list_splits(sources, shards.split_bytes):
        for rows in read_rows(split, fields, InputConfig(), shards):
            usable = ~mask_from_bool(rows.fields["user"].is_null())
            usable &= ~mask_from_bool(rows.fields["item"].is_null())
            if columns.weight is not None:
                weight = rows.fields["weight"].to_numpy(zero_copy_only=False)  # null becomes NaN
                usable &= np.isfinite(weight) & (weight > 0)
            item = pc.index_in(rows.fields["item"], value_set=item_ids)
            known = usable & ~mask_from_bool(item.is_null())
            unusable += rows.read - int(usable.sum())
            unknown += int((usable & ~known).sum())
            users.append(_hashed(rows.fields["user"].filter(pa.array(known))))
            items.append(item.filter(pa.array(known)).to_numpy().astype(np.int64))
            if columns.weight is not None:
                weights.append(weight[known])
    return Interactions(
        np.concatenate([np.zeros(0, np.uint64), *users]),
        np.concatenate([np.zeros(0, np.int64), *items]),
        np.concatenate([np.zeros(0), *weights]) if columns.weight is not None else None,
        unknown,
        unusable,
    )


def _check_columns(sources: Sequence[SourceFile], wanted: Sequence[str]) -> None:
    """Refuses a table, Parquet or CSV, without one of the columns."""
    for source in sources:
        there = file_columns(source.path)
        missing = [] if there is None else [name for name in wanted if name not in there]
        if there is not None and missing:
            raise ValueError(
                f"{source.path} has no column {missing[0]!r}: its columns are {', '.join(there)}"
            )


def _hashed(users: pa.Array) -> np.ndarray:
    """Hashes users, each distinct one of the stretch once."""
    distinct = users.dictionary_encode()
    return item_hashes(distinct.dictionary)[distinct.indices.to_numpy()]


def read_item_ids(sources: Sequence[SourceFile], column: str) -> pa.Array:
    """Returns the distinct item ids of Parquet catalogs, as semid reads them.

    Raises:
      ValueError: a file is not Parquet or lacks the column; the message names it.
    """
    _check_columns(sources, [column])
    distinct: pa.Array = pa.array([], pa.string())
    for source in sources:
        for table in _row_groups(source, [column]):
            ids = _texts(table[column])
            distinct = pa.concat_arrays([distinct, ids]).unique().drop_null()
    return distinct


def append_vectors(
    source: SourceFile, output: str, item_column: str, column: str, vectors: ItemVectors
) -> int:
    """Copies a Parquet catalog, row group by row group, with one more column.

    Args:
      source: the catalog file.
      output: where the copy goes, as plain Parquet.
      item_column: its item id.
      column: name of the new column, list<float32>; one that is there is replaced.
      vectors: by item id; items without get null.

    Returns:
      Rows that got a vector.
    """
    known = pa.array(vectors.item_ids.tolist(), pa.string())
    lists = list_from_matrix(vectors.vectors, pa.float32())
    filled = 0
    with files.atomic_writer(output) as file:
        writer: pq.ParquetWriter | None = None
        try:
            for table in _row_groups(source):
                values = lists.take(pc.index_in(_texts(table[item_column]), value_set=known))
                filled += len(values) - values.null_count
                if column in table.schema.names:
                    table = table.drop([column])
                table = table.append_column(pa.field(column, VECTOR_TYPE), values)
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=max(1, table.num_rows))
        finally:
            if writer is not None:
                writer.close()
    return filled


def _row_groups(source: SourceFile, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yields the row groups of a Parquet file; one empty table for a file without any."""
    with open_parquet(source.path, format_of(source.path)[1]) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)
        if not file.num_row_groups:
            yield file.read(columns=columns)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return coerce(column.combine_chunks(), Kind.TEXT)[0]
