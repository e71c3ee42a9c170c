"""Rows of Parquet, a few at a time and only the columns that are used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import InputConfig, ShardConfig
from schemas.rejects import RejectReason
from semid_transforms.coercion import Kind, Problem
from semid_transforms.rows import Field, Reject, Rows, coerce_fields, no_rows
from semid_transforms.sources import SourceSplit, open_parquet


def read_parquet_rows(
    split: SourceSplit,
    fields: Sequence[Field],
    input_config: InputConfig,
    shard_config: ShardConfig,
) -> Iterator[Rows]:
    """Reads the row groups of a split.

    A row's number is its place in the split as the file's footer counts, also after damage. Every
    row group that cannot be decoded to its end gives its rows up to there and one refused row.

    Args:
      split: which row groups to read.
      fields: what to read of every row.
      input_config: for the category delimiter.
      shard_config: for the size of batches.

    Raises:
      OSError: the file cannot be opened or read; the message names it.
    """
    try:
        with open_parquet(split.path, split.compressed) as file:
            yield from _read_groups(file, split, fields, input_config, shard_config)
    except ValueError as error:
        if isinstance(error, pa.ArrowInvalid):
            raise
        yield _damaged(fields, "the whole file", str(error))


def _read_groups(
    file: pq.ParquetFile,
    split: SourceSplit,
    fields: Sequence[Field],
    input_config: InputConfig,
    shard_config: ShardConfig,
) -> Iterator[Rows]:
    metadata = file.metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    stop = len(sizes) if split.stop is None else min(split.stop, len(sizes))
    base = sum(sizes[: split.start])
    for group in range(split.start, stop):
        first = sum(sizes[:group])
        for batch, row in _read_group(file, group, fields, shard_config):
            if isinstance(batch, str):
                yield _damaged(fields, f"row {first + row}", batch)
            else:
                yield _to_rows(batch, first + row, base, fields, input_config)


def _read_group(
    file: pq.ParquetFile, group: int, fields: Sequence[Field], shard_config: ShardConfig
) -> Iterator[tuple[pa.RecordBatch | str, int]]:
    """Yields batches, or what is wrong with the group, each with the row in the group."""
    wanted = {field.column for field in fields}
    columns = [name for name in file.schema_arrow.names if name in wanted]
    metadata = file.metadata.row_group(group)
    if not columns:  # every field is null then, but the rows are there
        for first in range(0, metadata.num_rows, shard_config.batch_rows):
            rows = min(shard_config.batch_rows, metadata.num_rows - first)
            yield pa.RecordBatch.from_arrays([pa.nulls(rows)], [""]), first
        return
    row_bytes = max(1, _uncompressed_bytes(metadata, wanted) // max(1, metadata.num_rows))
    batch_rows = max(1, min(shard_config.batch_rows, shard_config.batch_bytes // row_bytes))
    row = 0
    try:
        for batch in file.iter_batches(batch_rows, [group], columns, use_threads=False):
            yield batch, row
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the storage failed, not the content
        rest = _readable_rows(file, group, columns, row)
        if rest:
            yield pa.concat_batches(rest), row
        yield str(error), row + len(rest)


def _readable_rows(
    file: pq.ParquetFile, group: int, columns: list[str], start: int
) -> list[pa.RecordBatch]:
    """Reads a damaged row group one row at a time from `start` to the damage.

    Where the damage begins is only seen row by row; so what is read does not depend on the size of
    batches.
    """
    rows: list[pa.RecordBatch] = []
    position = 0
    try:
        for batch in file.iter_batches(1, [group], columns, use_threads=False):
            if position >= start:
                rows.append(batch)
            position += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
    return rows


def _uncompressed_bytes(metadata: pq.RowGroupMetaData, columns: set[str]) -> int:
    chunks = [metadata.column(i) for i in range(metadata.num_columns)]
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] in columns or chunk.path_in_schema in columns
    )


def _to_rows(
    batch: pa.RecordBatch,
    file_row: int,
    base: int,
    fields: Sequence[Field],
    input_config: InputConfig,
) -> Rows:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    coerced, problems = coerce_fields(
        columns, batch.num_rows, fields, input_config.category_delimiter
    )
    shown = list(dict.fromkeys(f.column for f in fields if f.kind is not Kind.VECTOR))
    return Rows(
        np.arange(batch.num_rows, dtype=np.int64) + (file_row - base),
        coerced,
        problems,
        lambda row: f"row {file_row + row}",
        lambda row: _to_json({c: columns[c].slice(row, 1) for c in shown if c in columns}),
    )


def _damaged(fields: Sequence[Field], place: str, error: str) -> Rows:
    """Returns a stretch that is one refused row."""
    problem = Problem(RejectReason.DAMAGED_FILE, f"the file cannot be read from here: {error}")
    return no_rows(fields, [Reject(problem, place, b"")])


def _to_json(cells: dict[str, pa.Array]) -> bytes:
    """Returns a row as UTF-8 JSON; what JSON cannot hold is written as text."""
    values = {column: _json_value(_cell(array)) for column, array in cells.items()}
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _cell(array: pa.Array) -> Any:
    """Returns the value of an array of one row, as text when Python has no such value."""
    try:
        return array[0].as_py()
    except UnicodeDecodeError:
        type_ = array.type.value_type if pa.types.is_list(array.type) else array.type
        if pa.types.is_string(type_):
            listed = pa.types.is_list(array.type)
            return array.cast(pa.list_(pa.binary()) if listed else pa.binary())[0].as_py()
    except (ValueError, OverflowError, LookupError):
        return array.to_string()
    return f"not UTF-8, in a {array.type}"


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)
