import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from schemas.arrays import (
    bytes_from_fixed_binary,
    fixed_binary,
    keys_from_fixed_binary,
    list_from_matrix,
    mask_from_bool,
    matrix_from_list,
    utf8_bytes,
)

ROWS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
LIST_TYPES = [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)]
matrices = npst.arrays(
    np.float32, npst.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6)
)


@given(matrices, st.integers(0, 6), st.integers(0, 6))
def test_a_matrix_survives_the_round_trip_also_through_slices(matrix, start, length):
    column = list_from_matrix(matrix, pa.float32())
    assert len(column) == len(matrix)
    np.testing.assert_array_equal(matrix_from_list(column, matrix.shape[1]), matrix)
    part = column.slice(start, length)
    expected = matrix[start : start + length]
    np.testing.assert_array_equal(matrix_from_list(part, matrix.shape[1]), expected)


@pytest.mark.parametrize("type_", LIST_TYPES, ids=str)
def test_every_list_layout_gives_the_same_matrix(type_):
    column = pa.array([None, *ROWS, None], type_)
    np.testing.assert_array_equal(matrix_from_list(column.slice(1, 4)), ROWS)
    np.testing.assert_array_equal(matrix_from_list(column.slice(2, 2)), ROWS[1:3])
    np.testing.assert_array_equal(matrix_from_list(column.drop_null()), ROWS)
    chunks = pa.chunked_array([column.slice(1, 2), column.slice(3, 2)])
    np.testing.assert_array_equal(matrix_from_list(chunks, 2), ROWS)
    assert matrix_from_list(column.slice(0, 0), 2).shape == (0, 2)
    assert matrix_from_list(pa.chunked_array([], type_), 2).shape == (0, 2)
    assert matrix_from_list(column.slice(1, 4)).dtype == np.float32


@pytest.mark.parametrize("type_", LIST_TYPES, ids=str)
@pytest.mark.parametrize(
    ("row", "message"), [(None, "row 2 of a .* column is null"), ([1, None], "row 2 holds a null")]
)
def test_nulls_are_refused_by_row(type_, row, message):
    column = pa.array([[0, 0], *ROWS[:2], row, ROWS[2]], type_).slice(1)
    with pytest.raises(ValueError, match=message):
        matrix_from_list(column)


def test_ragged_rows_are_refused_by_row():
    column = pa.array([[1.0, 2.0], [3.0, 4.0], [5.0]])
    with pytest.raises(ValueError, match="row 2 has 1 values, expected 2"):
        matrix_from_list(column)
    with pytest.raises(ValueError, match="row 0 has 2 values, expected 3"):
        matrix_from_list(column, 3)


def test_only_matrices_become_lists():
    with pytest.raises(ValueError, match=r"expected an \(N, width\) matrix, got shape \(3,\)"):
        list_from_matrix(np.zeros(3), pa.float32())
    rows = np.broadcast_to(np.zeros((), np.int8), (1 << 20, 1 << 12))
    with pytest.raises(ValueError, match="exceed one Arrow list column"):
        list_from_matrix(rows, pa.int8())


def test_transposed_matrices_keep_their_rows():
    matrix = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert list_from_matrix(matrix, pa.int32()).to_pylist() == [[0, 3], [1, 4], [2, 5]]


@given(npst.arrays(np.uint8, st.tuples(st.integers(0, 6), st.just(16))), st.integers(0, 6))
def test_bytes_survive_the_round_trip_also_through_slices(values, start):
    column = fixed_binary(values, 16)
    assert column.type == pa.binary(16)
    assert column.to_pylist() == [row.tobytes() for row in values]
    np.testing.assert_array_equal(bytes_from_fixed_binary(column.slice(start)), values[start:])
    chunks = pa.chunked_array([column.slice(0, start), column.slice(start)])
    np.testing.assert_array_equal(bytes_from_fixed_binary(chunks), values)


def test_bytes_of_another_shape_and_nulls_are_refused():
    with pytest.raises(ValueError, match=r"expected \(N, 16\) bytes, got shape \(2, 8\)"):
        fixed_binary(np.zeros((2, 8), np.uint8), 16)
    with pytest.raises(ValueError, match="1 rows of a fixed_size_binary"):
        bytes_from_fixed_binary(pa.array([b"ab", None], pa.binary(2)))


def test_hash_keys_sort_like_their_bytes_and_keep_trailing_zeros_apart():
    hashes = [bytes([1] * 15 + [0]), bytes([1] * 14 + [0, 0]), bytes(16)]
    column = pa.array([bytes(16), *hashes], pa.binary(16)).slice(1)
    keys = keys_from_fixed_binary(pa.chunked_array([column]))
    assert [hashes[row] for row in np.argsort(keys)] == sorted(hashes)
    assert len(np.unique(keys)) == 3


def test_a_null_in_a_mask_is_false():
    column = pa.array([None, True, None, False, True])
    assert mask_from_bool(column.slice(1)).tolist() == [True, False, False, True]
    assert mask_from_bool(pa.chunked_array([column, column[:1]])).tolist() == [
        *(False, True, False, False, True),
        False,
    ]


@given(st.lists(st.none() | st.text(max_size=3), max_size=6), st.integers(0, 6), st.integers(0, 6))
def test_the_bytes_of_strings_are_those_that_show(texts, start, length):
    column = pa.array(texts, pa.string()).slice(start, length)
    shown = "".join(text for text in column.to_pylist() if text)
    assert utf8_bytes(column).tobytes() == shown.encode()


def test_only_strings_have_utf8_bytes():
    with pytest.raises(ValueError, match="expected a string column, got large_string"):
        utf8_bytes(pa.array(["a"], pa.large_string()))
