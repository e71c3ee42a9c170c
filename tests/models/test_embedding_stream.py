import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.embedding_stream import EmbeddingStream, embedding_matrix


def write(path, rows, group_rows):
    column = pa.array(list(rows), pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": column}), path, row_group_size=group_rows)
    return str(path)


def test_every_row_comes_once_a_round(tmp_path):
    rows = np.arange(60, dtype="f4").reshape(30, 2)
    paths = (write(tmp_path / "a", rows[:20], 7), write(tmp_path / "b", rows[20:], 4))
    stream = EmbeddingStream(paths, buffer_rows=8)
    batches = list(itertools.islice(stream(5, 0), 12))
    assert all(batch.shape == (5, 2) and batch.dtype == np.float32 for batch in batches)
    drawn, times = np.unique(np.concatenate(batches)[:, 0], return_counts=True)
    # Two rounds of 30 rows in 60 draws; up to a buffer may be left waiting at the end.
    assert len(drawn) == 30
    assert times.min() >= 1 and times.max() <= 3
    again = list(itertools.islice(stream(5, 0), 12))
    other = list(itertools.islice(stream(5, 1), 12))
    assert np.array_equal(np.concatenate(batches), np.concatenate(again))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_fewer_rows_than_a_batch_repeat(tmp_path):
    stream = EmbeddingStream((write(tmp_path / "a", np.ones((3, 2), "f4"), 2),))
    assert next(stream(8, 0)).shape == (8, 2)


def test_bad_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="here: an embedding is null"):
        embedding_matrix([pa.array([[1.0], None], pa.list_(pa.float32()))], "here")
    with pytest.raises(ValueError, match="an embedding is null"):
        embedding_matrix([pa.array([[1.0, None]], pa.list_(pa.float32()))], "here")
    with pytest.raises(ValueError, match="1 to 2 values"):
        embedding_matrix([pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))], "here")
    with pytest.raises(ValueError, match="no rows to train on"):
        next(EmbeddingStream((write(tmp_path / "e", np.ones((0, 2), "f4"), 2),))(4, 0))
    with pytest.raises(ValueError, match="at least 1 Parquet file"):
        EmbeddingStream(())


def test_slices_and_fixed_size_lists():
    fixed = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2))
    assert embedding_matrix([fixed.slice(1)], "here").tolist() == [[3, 4], [5, 6]]
    lists = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float64()))
    assert embedding_matrix([lists.slice(2)], "here").tolist() == [[5, 6]]
