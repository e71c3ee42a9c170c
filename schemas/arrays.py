"""The one place where Arrow columns become numpy arrays and back.

`FixedSizeListArray.flatten()` drops null rows and `.values` ignores slice offsets, so every
conversion goes through here and is checked.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ListLike = pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray


def matrix_from_list(column: pa.Array | pa.ChunkedArray, width: int | None = None) -> np.ndarray:
    """Converts a list column without nulls into an (N, width) matrix of its value type.

    Args:
      column: list, large_list or fixed_size_list of a primitive type, N rows.
      width: required list length; None takes the length of the first row.

    Returns:
      (N, width) array; a view of the column's memory where the layout allows it.

    Raises:
      ValueError: a row is null, holds a null, or has another length; the first such row is named.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"row {row} of a {array.type} column is null")
    if len(array) == 0:
        empty = pa.array([], array.type.value_type).to_numpy(zero_copy_only=False)
        return empty.reshape(0, width or 0)
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    expected = int(lengths[0]) if width is None else width
    if (wrong := np.flatnonzero(lengths != expected)).size:
        row = int(wrong[0])
        raise ValueError(f"row {row} has {int(lengths[row])} values, expected {expected}")
    values = pc.list_flatten(array)  # honours slice offsets, unlike `.values`
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // expected
        raise ValueError(f"row {row} holds a null value")
    return values.to_numpy(zero_copy_only=False).reshape(len(array), expected)


def list_from_matrix(matrix: np.ndarray, value_type: pa.DataType) -> pa.ListArray:
    """Converts an (N, width) matrix into a list column of N rows.

    Raises:
      ValueError: the matrix is not two-dimensional.
    """
    if matrix.ndim != 2:
        raise ValueError(f"expected an (N, width) matrix, got shape {matrix.shape}")
    rows, width = matrix.shape
    offsets = np.arange(rows + 1, dtype=np.int64) * width
    if rows and offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{rows} x {width} values exceed one Arrow list column: write in batches")
    values = pa.array(np.ascontiguousarray(matrix).reshape(-1), value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def fixed_binary(values: np.ndarray, width: int) -> pa.Array:
    """Converts (N, width) uint8 bytes into a `binary(width)` column.

    Raises:
      ValueError: the values have another shape.
    """
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(f"expected (N, {width}) bytes, got shape {values.shape}")
    buffer = pa.py_buffer(np.ascontiguousarray(values, np.uint8))
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, buffer])


def bytes_from_fixed_binary(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Converts a `binary(width)` column without nulls into (N, width) uint8.

    Raises:
      ValueError: a row is null.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count:
        raise ValueError(f"{array.null_count} rows of a {array.type} column are null")
    width = array.type.byte_width
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.empty((0, width), np.uint8)
    flat = np.frombuffer(buffer, np.uint8, count=(array.offset + len(array)) * width)
    return flat[array.offset * width :].reshape(len(array), width)


def utf8_bytes(column: pa.Array) -> np.ndarray:
    """Returns the bytes of all values of a string column, one after the other, as (n,) uint8.

    What a null row hides is among them.

    Raises:
      ValueError: the column is of another type.
    """
    if column.type != pa.string():
        raise ValueError(f"expected a string column, got {column.type}")
    _, offsets, data = column.buffers()
    if data is None or len(column) == 0:
        return np.empty(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int32)[[column.offset, column.offset + len(column)]]
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[1]]


def keys_from_fixed_binary(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Views a `binary(width)` column as (N,) byte strings, which numpy can sort and compare.

    Raises:
      ValueError: a row is null.
    """
    rows = np.ascontiguousarray(bytes_from_fixed_binary(column))
    return rows.view(f"S{rows.shape[1]}").reshape(-1)


def unsigned_from_integers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns an integer column without nulls or negatives, such as packed SIDs, as (N,) uint64."""
    return column.to_numpy(zero_copy_only=False).astype(np.uint64)


def mask_from_bool(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Converts a boolean column into (N,) bool; null is False."""
    filled = pc.fill_null(column, False)
    if isinstance(filled, pa.ChunkedArray):
        return filled.to_numpy()
    return filled.to_numpy(zero_copy_only=False)
