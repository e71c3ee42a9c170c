"""Finding few rows in large Parquet files: by row-group statistics first, then by key.

A backfill of a thousand rows must not read a catalog of a billion. Published parts are sorted
(`items` and `reserved` by SID, `catalog` by item id, `embeddings` by content hash), so the smallest
and largest value that Parquet keeps per row group tell most of them apart without reading them.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.arrays import mask_from_bool
from semid_transforms import files

MayHold = Callable[[Any, Any], bool]
"""Says of the smallest and largest value of a row group whether to read it."""


def holds_any(ascending: Sequence[Any]) -> MayHold:
    """Accepts row groups whose range has one of some ascending values."""

    def may_hold(low: Any, high: Any) -> bool:
        position = bisect.bisect_left(ascending, low)
        return position < len(ascending) and bool(ascending[position] <= high)

    return may_hold


def overlaps(first: int, last: int) -> MayHold:
    """Accepts row groups that have a value in an inclusive range."""
    return lambda low, high: low <= last and high >= first


def row_groups(file: pq.ParquetFile, column: str, may_hold: MayHold) -> list[int]:
    """Returns the numbers of the row groups that may hold wanted values of a flat column.

    Without statistics a row group is taken; one without rows is not.
    """
    kept = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if not group.num_rows:
            continue
        span = _span(group, column)
        if span is None or may_hold(*span):
            kept.append(number)
    return kept


def _span(group: pq.RowGroupMetaData, column: str) -> tuple[Any, Any] | None:
    """Returns the smallest and largest value of a flat column, None without statistics."""
    columns = (group.column(number) for number in range(group.num_columns))
    statistics = next(found for found in columns if found.path_in_schema == column).statistics
    known = statistics is not None and statistics.has_min_max
    return (statistics.min, statistics.max) if known else None


def read_groups(path: str, column: str, may_hold: MayHold, columns: Sequence[str]) -> pa.Table:
    """Reads some columns of the row groups that may hold wanted values of a flat column."""
    with files.parquet_file(path) as file:
        groups = row_groups(file, column, may_hold)
        return file.read_row_groups(groups, columns=list(columns)).select(list(columns))


def column_range(path: str, column: str) -> tuple[Any, Any] | None:
    """Returns the smallest and largest value of a flat column; None in a file without rows."""
    with files.parquet_file(path) as file:
        if not file.metadata.num_rows:
            return None
        spans = [_span(file.metadata.row_group(n), column) for n in range(file.num_row_groups)]
        known = [span for span in spans if span is not None]
        if len(known) == len(spans):
            return min(low for low, _ in known), max(high for _, high in known)
        values = pc.min_max(file.read(columns=[column])[column]).as_py()
        return values["min"], values["max"]


def matching(table: pa.Table | pa.RecordBatch, keys: pa.Table | pa.RecordBatch) -> np.ndarray:
    """Returns which rows have the item id, and the SID where `keys` has one, of a key.

    Args:
      table: N rows with an `item_id` column, and `sid` if the keys have one.
      keys: distinct `item_id`, and optionally `sid`.

    Returns:
      (N,) bool.
    """
    at = pc.index_in(table["item_id"], value_set=_plain(keys["item_id"]))
    if "sid" not in keys.schema.names:
        return mask_from_bool(at.is_valid())
    return mask_from_bool(pc.equal(_plain(keys["sid"]).take(at), table["sid"]))


def find_rows(
    path: str, keys: pa.Table | pa.RecordBatch, columns: Sequence[str], by: str = "item_id"
) -> pa.Table:
    """Reads the rows of a part that have one of some keys.

    Args:
      path: of a part with an `item_id` column.
      keys: see `matching`.
      columns: to return.
      by: the key column whose statistics rule row groups out: the one the part is sorted by.

    Returns:
      `columns` of the matching rows, in file order. The other columns of a row group are read only
      where a key matched.
    """
    wanted = sorted(keys[by].to_pylist())
    names = [name for name in ("item_id", "sid") if name in keys.schema.names]
    found = []
    with files.parquet_file(path) as file:
        empty = file.schema_arrow.empty_table().select(list(columns))
        for group in row_groups(file, by, holds_any(wanted)):
            hit = matching(file.read_row_group(group, columns=names), keys)
            if hit.any():
                rows = file.read_row_group(group, columns=list(columns)).select(list(columns))
                found.append(rows.filter(pa.array(hit)))
    return pa.concat_tables([empty, *found])


def drop_rows(
    source: str, destination: str, keys: pa.Table | pa.RecordBatch, by: str, empty: bool
) -> pa.Table | None:
    """Carries a part over without the rows that have one of some keys.

    Args:
      source: path of a part.
      destination: where it goes: a hard link or server-side copy when no row is dropped.
      keys: see `matching`.
      by: see `find_rows`.
      empty: write the part even when no row is left.

    Returns:
      The rows dropped, None when there are none.
    """
    wanted = sorted(keys[by].to_pylist())
    names = [name for name in ("item_id", "sid") if name in keys.schema.names]
    with files.parquet_file(source) as file:
        groups = row_groups(file, by, holds_any(wanted))
        if not any(matching(file.read_row_group(g, columns=names), keys).any() for g in groups):
            files.copy(source, destination)
            return None
        table = file.read()
    hit = matching(table, keys)
    left = table.filter(pa.array(~hit)).combine_chunks()
    if left.num_rows or empty:
        files.write_table(destination, left.schema, left.to_batches())
    return table.filter(pa.array(hit)).combine_chunks()


class _FindRows(beam.DoFn):
    """Runs `find_rows` on a part, with keys from a file."""

    def __init__(self, keys_path: str, columns: Sequence[str], by: str):
        self._keys_path = keys_path
        self._columns = tuple(columns)
        self._by = by

    def setup(self) -> None:
        self._keys = files.read_table(self._keys_path)

    def process(self, path: str) -> Iterator[pa.RecordBatch]:
        yield from (
            find_rows(path, self._keys, self._columns, self._by).combine_chunks().to_batches()
        )


@dataclasses.dataclass
class FindRows(beam.PTransform):
    """Finds the rows of many parts, given by path, that have one of the keys in a file.

    Attributes:
      keys_path: Parquet file of distinct `item_id`, and optionally `sid`.
      columns: to return.
      by: key column that the parts are sorted by.
    """

    keys_path: str
    columns: tuple[str, ...]
    by: str = "item_id"

    def expand(self, paths: beam.PCollection[str]) -> beam.PCollection[pa.RecordBatch]:
        find = _FindRows(self.keys_path, self.columns, self.by)
        return paths | "FindRows" >> beam.ParDo(find).with_output_types(pa.RecordBatch)


class _DropRows(beam.DoFn):
    """Runs `drop_rows` on a part, with keys from a file."""

    def __init__(self, keys_path: str, by: str, empty: Collection[str]):
        self._keys_path = keys_path
        self._by = by
        self._empty = frozenset(empty)

    def setup(self) -> None:
        self._keys = files.read_table(self._keys_path)

    def process(self, paths: tuple[str, str]) -> Iterator[pa.RecordBatch]:
        source, destination = paths
        empty = files.base_name(destination) in self._empty
        dropped = drop_rows(source, destination, self._keys, self._by, empty)
        if dropped is not None:
            yield from dropped.to_batches()


@dataclasses.dataclass
class DropRows(beam.PTransform):
    """Carries parts over, given as (source, destination), without the rows of the keys in a file.

    Returns the rows dropped.

    Attributes:
      keys_path: Parquet file of distinct `item_id`, and optionally `sid`.
      by: key column that the parts are sorted by.
      keep_empty: names of parts that are written even when no row is left.
    """

    keys_path: str
    by: str
    keep_empty: frozenset[str] = frozenset()

    def expand(self, parts: beam.PCollection[tuple[str, str]]) -> beam.PCollection[pa.RecordBatch]:
        drop = _DropRows(self.keys_path, self.by, self.keep_empty)
        return parts | "DropRows" >> beam.ParDo(drop).with_output_types(pa.RecordBatch)


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
