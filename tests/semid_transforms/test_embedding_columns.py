import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import InputConfig, ShardConfig
from semid_transforms import files
from semid_transforms.embedding_columns import (
    EmbeddingSpec,
    check,
    combine,
    find_embedding,
    fuse_texts,
    read_vectors,
)
from semid_transforms.sources import list_splits
from tests.semid_transforms.catalogs import INPUT, WRITERS, Read, json_lines, parquet, spec, write

ONE = EmbeddingSpec(("embedding",), (3,), (1.0,))
TWO = InputConfig(columns={"embedding": ["image", "words"]}, embedding_weights=[3, 4])


def lists(*rows) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float64()))


def test_vectors_get_unit_length():
    matrix, problems = combine([lists([3, 0, 4], [0, -2e-300, 0], [1e300, 1e300, 0])], ONE)
    assert problems == {}
    assert matrix.dtype == np.float32
    expected = [[0.6, 0, 0.8], [0, -1, 0], [0.5**0.5, 0.5**0.5, 0]]
    np.testing.assert_allclose(matrix, expected, atol=1e-7)
    assert not np.signbit(combine([lists([-0.0, 0, 1])], ONE)[0]).any()


def test_several_columns_are_weighted_and_concatenated():
    both = EmbeddingSpec(("image", "words"), (2, 1), (3.0, 4.0))
    matrix, problems = combine([lists([0, 9], None), lists([-7], [1])], both)
    np.testing.assert_allclose(matrix[0], [0, 0.6, -0.8], atol=1e-7)
    assert problems == {1: "column image: no embedding"}
    assert both.embedding_dim == 3


def test_optional_columns_may_be_null_but_not_wrong():
    both = EmbeddingSpec(("image", "clicks"), (2, 1), (3.0, 4.0), optional=1)
    images = lists([0, 9], [0, 9], [0, 9], None)
    matrix, problems = combine([images, lists([5], None, [0], [1])], both)
    np.testing.assert_allclose(matrix[:2], [[0, 0.6, 0.8], [0, 0.6, 0]], atol=1e-7)
    assert problems == {
        2: "column clicks: all its values are zero",
        3: "column image: no embedding",
    }


def test_texts_stand_before_the_columns():
    fused = EmbeddingSpec(("clicks",), (2,), (0.75,), optional=1, text=True)
    columns, problems = combine([lists([0, 5], None)], fused)
    assert problems == {}
    matrix = fuse_texts(np.array([[3, 4], [0, 2]], "f4"), columns, fused)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, [[0.48, 0.64, 0, 0.6], [0, 0.8, 0, 0]], atol=1e-7)
    # The item without the column is equally far, in that part, from all that have it.
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), [1, 0.8], atol=1e-7)


@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        (None, "no embedding"),
        ([], "0 values, expected 3"),
        ([1, 2], "2 values, expected 3"),
        ([1, 2, 3, 4], "4 values, expected 3"),
        ([1, float("nan"), 2], "value 1 is missing, NaN or infinite"),
        ([1, 2, float("inf")], "value 2 is missing, NaN or infinite"),
        ([None, 1, 2], "value 0 is missing, NaN or infinite"),
        ([0, -0.0, 0], "all its values are zero"),
    ],
)
def test_bad_vectors_are_named_and_their_neighbours_kept(vector, problem):
    for judge in (combine, check):
        matrix, problems = judge([lists([1, 0, 0], vector, [0, 1, 0])], ONE)
        assert problems == {1: f"column embedding: {problem}"}
        np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_contents_are_values_where_float32_can_hold_them():
    rows = lists([3, -0.0, 4], [0, -2e-300, 0], [1e300, 1e300, 0], [1e-25, 0, 0])
    contents, problems = check([rows], ONE)
    assert (contents.dtype, problems) == (np.float32, {})
    np.testing.assert_array_equal(contents[0], [3, 0, 4])
    np.testing.assert_array_equal(contents[1:], combine([rows], ONE)[0][1:])
    given = rows.cast(pa.list_(pa.float32()))[:1]
    assert np.shares_memory(check([given], ONE)[0], given.flatten().to_numpy())


def test_contents_of_several_columns_stand_side_by_side():
    both = EmbeddingSpec(("image", "clicks"), (2, 1), (3.0, 4.0), optional=1)
    columns = [lists([0, 9], [0, 9], [0, 9], None), lists([5], None, [0], [1])]
    contents, problems = check(columns, both)
    np.testing.assert_array_equal(contents[0], [0, 9, 5])
    made, wrong = combine(columns, both)
    np.testing.assert_array_equal(contents[1:], made[1:])
    assert problems == wrong


finite = st.floats(-1e10, 1e10, allow_subnormal=False)


@settings(deadline=None)
@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=9))
def test_a_row_does_not_depend_on_its_neighbours(rows):
    together, problems = combine([lists(*rows)], ONE)
    for i, row in enumerate(rows):
        alone, alone_problems = combine([lists(row)], ONE)
        assert together[i].tobytes() == alone[0].tobytes()
        assert (i in problems) == (0 in alone_problems)
        if not alone_problems:
            assert abs(np.linalg.norm(alone[0].astype(float)) - 1) < 1e-6


def test_text_catalogs_have_no_embedding(tmp_path):
    rows = [{"item_id": "1", "title": "t"}]
    for ending, writer in WRITERS.items():
        assert spec([write(tmp_path, f"text{ending}", writer(rows))]) is None
    assert spec([write(tmp_path, "empty.jsonl", b""), write(tmp_path, "empty.csv", b"")]) is None


@pytest.mark.parametrize("ending", [*WRITERS, ".jsonl.gz"])
def test_a_column_called_embedding_is_taken(tmp_path, ending):
    rows = [{"item_id": "0", "embedding": None}, {"item_id": "1", "embedding": [3, 0, 4.0]}]
    if ending == ".csv":
        rows[1]["embedding"] = json.dumps(rows[1]["embedding"])
    path = write(tmp_path, f"items{ending}", WRITERS[ending.removesuffix(".gz")](rows))
    found = spec([write(tmp_path, "a-empty.jsonl", b""), path])
    assert found == ONE
    result = Read(path, embedding=found)
    assert (result.ids, result.texts) == (["1"], [None])
    assert result.reasons == ["bad_embedding"]
    assert "column embedding: no embedding" in result.rejects[0]["detail"]
    assert spec([path], InputConfig(columns={"embedding": []})) is None


def test_embeddings_that_are_mapped_must_be_there(tmp_path):
    path = write(tmp_path, "items.jsonl", json_lines([{"item_id": "1", "words": [1.0]}] * 3))
    with pytest.raises(
        ValueError, match="no row among the first 3 has an embedding in image, words"
    ):
        spec([path], TWO)
    assert spec([write(tmp_path, "b.jsonl", b""), write(tmp_path, "b.parquet", b"")], TWO) is None
    text = write(tmp_path, "text.jsonl", json_lines([{"item_id": "1", "embedding": "red"}]))
    with pytest.raises(ValueError, match="to \\[\\] to embed text"):
        spec([text])


@pytest.mark.parametrize(
    "type_", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.list_(pa.int8())]
)
def test_every_format_gives_the_same_embeddings(tmp_path, type_):
    generator = np.random.default_rng(0)
    rows = [
        {"item_id": str(i), "title": "t", "embedding": generator.integers(-9, 9, 2).tolist()}
        for i in range(50)
    ]
    rows[7]["embedding"] = None
    rows[8]["embedding"] = [0, 0]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(2, "embedding", table["embedding"].cast(type_))
    cells = [r | {"embedding": json.dumps(r["embedding"])} for r in rows if r["embedding"]]
    results = []
    for name, data in [
        ("items.parquet", parquet(table)),
        ("items.jsonl", json_lines(rows)),
        ("items.csv", WRITERS[".csv"](cells)),
    ]:
        path = write(tmp_path, name, data)
        results.append(Read(path, embedding=spec([path])).content)
        assert len(results[0]) == 48
    assert results[0] == results[1] == results[2]


def catalog(tmp_path, name: str) -> tuple[str, np.ndarray]:
    """Writes 200 items; every ninth line of text formats is damaged, every tenth vector missing."""
    vectors = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)
    rows = [
        {"item_id": str(i), "image": None if i % 10 == 3 else v.tolist(), "words": [float(i + 1)]}
        for i, v in enumerate(vectors)
    ]
    if "parquet" in name:
        data = parquet(rows, row_group_size=30)
    elif "csv" in name:
        data = WRITERS[".csv"](
            [r | {"image": str(r["image"]), "words": str(r["words"])} for r in rows]
        )
        data = b"\n".join(line + b",x" * (i % 9 == 8) for i, line in enumerate(data.split(b"\n")))
    else:
        lines = json_lines(rows).split(b"\n")
        data = b"\n".join(line[: len(line) - (i % 9 == 8)] for i, line in enumerate(lines))
    return write(tmp_path, name, data), vectors


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz", "a.jsonl", "a.jsonl.gz", "a.csv"])
@pytest.mark.parametrize("shards", [ShardConfig(), ShardConfig(batch_rows=7, split_bytes=1500)])
def test_vectors_are_read_again_by_split_and_row(tmp_path, name, shards):
    path, vectors = catalog(tmp_path, name)
    embedding = spec([path], TWO)
    assert embedding == EmbeddingSpec(("image", "words"), (2, 1), (3.0, 4.0))
    result = Read(path, TWO, shards=shards, embedding=embedding)
    assert 150 < len(result.ids) <= 180
    table = result.parsed
    seen = 0
    for split in result.splits:
        here = table.filter(pa.compute.equal(table["split"], split.number))
        order = np.random.default_rng(split.number).permutation(here.num_rows)
        some = here.take(pa.array(np.concatenate([order, order[:1]])))
        read = read_vectors(split, some["row"].to_numpy(), TWO, shards, embedding)
        items = np.array(some["item_id"].to_pylist(), np.int64)
        unit = vectors[items] / np.linalg.norm(vectors[items], axis=1, keepdims=True)
        np.testing.assert_allclose(read[:, :2], 0.6 * unit, atol=1e-6)
        np.testing.assert_allclose(read[:, 2], 0.8, atol=1e-6)
        seen += here.num_rows
    assert seen == table.num_rows


def test_a_changed_file_is_noticed(tmp_path):
    path, _ = catalog(tmp_path, "a.jsonl")
    embedding = spec([path], TWO)
    [split] = list_splits(files.match([path]), 1 << 20)
    with pytest.raises(ValueError, match="has changed while it was read: row 3 of split 0"):
        read_vectors(split, np.array([1, 3]), TWO, ShardConfig(), embedding)
    with pytest.raises(ValueError, match="row 999 of split 0"):
        read_vectors(split, np.array([999]), TWO, ShardConfig(), embedding)


def test_only_a_hundred_thousand_rows_are_searched(tmp_path):
    rows = [{"item_id": "1"}] * 110_000 + [{"item_id": "2", "image": [1.0], "words": [1.0]}]
    path = write(tmp_path, "items.jsonl", json_lines(rows))
    with pytest.raises(ValueError, match="among the first 10"):
        find_embedding(files.match([path]), TWO, ShardConfig())
    assert find_embedding(files.match([path]), INPUT, ShardConfig()) is None
