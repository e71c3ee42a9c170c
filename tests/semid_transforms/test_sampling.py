import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest

from schemas.arrays import list_from_matrix, matrix_from_list
from schemas.tables import embedding_schema
from semid_transforms import files
from semid_transforms.sampling import choose_sample, sample_embeddings


def row(content):
    digest = hashlib.blake2b(str(content).encode(), digest_size=16).digest()
    return digest, np.random.default_rng(content).normal(size=4).astype(np.float32)


def write_parts(folder, contents, parts):
    paths = []
    for number in range(parts):
        rows = [row(content) for content in contents[number::parts]]
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array([f"{number}-{n}" for n in range(len(rows))], pa.string()),
                pa.array([digest for digest, _ in rows], pa.binary(16)),
                list_from_matrix(np.array([v for _, v in rows]).reshape(-1, 4), pa.float32()),
            ],
            schema=embedding_schema(),
        )
        paths.append(str(folder / f"part-{number}.parquet"))
        files.write_table(paths[-1], embedding_schema(), [batch], row_group_rows=7)
    return paths


@pytest.mark.parametrize("rows", [1, 20, 1000])
def test_the_sample_is_the_smallest_hashes_whatever_the_order_and_the_parts(tmp_path, rows):
    contents = [n % 60 for n in range(150)]
    expected = sorted((row(content) for content in set(contents)), key=lambda pair: pair[0])[:rows]
    for seed, parts in ((1, 1), (2, 3), (3, 40)):
        folder = tmp_path / str(parts)
        folder.mkdir()
        mixed = random.Random(seed).sample(contents, len(contents))
        vectors, hashes = sample_embeddings(write_parts(folder, mixed, parts), rows)
        assert vectors.shape == (min(rows, 60), 4)
        assert [h.tobytes() for h in hashes] == [digest for digest, _ in expected]
        assert np.array_equal(vectors, [vector for _, vector in expected])


@pytest.mark.parametrize("parts", [1, 9])
def test_what_exceeds_memory_is_spilled_in_hash_order(tmp_path, parts):
    written = write_parts(tmp_path, range(60), parts)
    sample = choose_sample(written, 50)
    whole = sample.read(0, 50)
    spilled = sample.spill(str(tmp_path), 20, 16)
    tables = [files.read_table(path) for path in spilled]
    assert [table.num_rows for table in tables] == [16, 14]
    vectors = np.concatenate([matrix_from_list(table["embedding"]) for table in tables])
    assert np.array_equal(np.concatenate([sample.read(0, 20), vectors]), whole)
    assert sample.spill(str(tmp_path), 50, 16) == []


def test_hashes_that_end_in_zero_bytes_are_kept_whole(tmp_path):
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(["a", "b"]),
            pa.array([b"same" + bytes(12), b"same" + bytes(11) + b"\x01"], pa.binary(16)),
            list_from_matrix(np.eye(2, 4, dtype=np.float32), pa.float32()),
        ],
        schema=embedding_schema(),
    )
    path = str(tmp_path / "part.parquet")
    files.write_table(path, embedding_schema(), [batch])
    vectors, hashes = sample_embeddings([path], 10)
    assert np.array_equal(vectors, np.eye(2, 4))
    assert hashes[0].tobytes() == b"same" + bytes(12)


def test_nothing_to_fit_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no embeddings in 0 parts"):
        sample_embeddings([], 10)
