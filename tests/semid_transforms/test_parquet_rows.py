import datetime
import decimal
import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.config import InputConfig, ShardConfig, TextConfig
from semid_transforms.sources import open_parquet
from tests.semid_transforms.catalogs import Read, parquet, write


def read(tmp_path, table, name: str = "items.parquet", write_options=None, **options) -> Read:
    return Read(write(tmp_path, name, parquet(table, **(write_options or {}))), **options)


def texts_of(tmp_path, column: pa.Array) -> list:
    """Reads a column as text and as an id; a row that has no id is left out."""
    table = pa.table({"item_id": pa.array(map(str, range(len(column)))), "title": column})
    result = read(tmp_path, table)
    return result.texts


BERLIN = pa.timestamp("us", "Europe/Berlin")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", "b"], pa.string()), ["a", "b"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array([b"a", b"b"], pa.binary()), ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([1, -2], pa.int8()), ["1", "-2"]),
        (pa.array([2**63, 1], pa.uint64()), [str(2**63), "1"]),
        (pa.array([1.0, 2.5]), ["1", "2.5"]),
        (pa.array([0.1, 2], pa.float32()), ["0.1", "2"]),
        (pa.array([np.float16(0.5), np.float16(2)], pa.float16()), ["0.5", "2"]),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]), ["1.50", "2.00"]),
        (pa.array([datetime.date(2024, 1, 2)] * 2), ["2024-01-02"] * 2),
        (pa.array([["a", None, "b"], ["c"]]), ["a b", "c"]),
        (pa.array([[1, 2], [3]]), ["1 2", "3"]),
        (
            pa.array([u.bytes for u in [uuid.UUID(int=7)] * 2], pa.uuid()),
            [str(uuid.UUID(int=7))] * 2,
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_columns_of_many_types_are_text(tmp_path, column, expected):
    assert texts_of(tmp_path, column) == expected
    named = pa.table({"item_id": column, "title": ["x"] * len(column)})
    assert read(tmp_path, named).ids == expected


@pytest.mark.parametrize(
    "column", [pa.array([True, None]), pa.array([{"en": "a"}, None]), pa.array([[["a"]], None])]
)
def test_columns_that_are_no_text_refuse_their_rows(tmp_path, column):
    result = read(tmp_path, pa.table({"item_id": ["1", "2"], "title": column, "brand": ["b", "b"]}))
    assert result.ids == ["2"]
    assert result.reasons == ["bad_field"]
    assert "row 0: column title: " in result.rejects[0]["detail"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a", "b"], None, []], pa.list_(pa.string())),
        pa.array([["a", "b"], None, []], pa.large_list(pa.large_string())),
        pa.array([["a", "b"], None, []], pa.list_(pa.string_view())),
        pa.array(
            [["a", "b"], None, [None, None]], pa.list_(pa.string(), 2)
        ),  # needs a plain schema
        pa.array([["a", "b"], None, []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array(["a|b", None, " "], pa.large_string()),
        pa.array(["a|b", None, ""]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_category_paths_of_many_types(tmp_path, column):
    table = pa.table({"item_id": ["1", "2", "3"], "title": ["t"] * 3, "category_path": column})
    paths = read(tmp_path, table).parsed["category_path"].to_pylist()
    assert paths == [["a", "b"], None, None]


def test_numbers_and_times(tmp_path):
    when = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "item_id": ["1", "2", "3"],
            "title": ["t"] * 3,
            "popularity": pa.array([7, None, float("nan")], from_pandas=False),
            "updated_at": pa.array([when, None, when], BERLIN),
        }
    )
    result = read(tmp_path, table)
    assert result.parsed["popularity"].to_pylist() == [7.0, None, None]
    assert result.parsed["updated_at"].to_pylist() == [when, None, when]
    infinite = table.set_column(2, "popularity", pa.array([float("inf"), 1, 2]))
    assert read(tmp_path, infinite).reasons == ["bad_field"]
    ancient = table.set_column(3, "updated_at", pa.array([2**52, 0, None], pa.timestamp("ms")))
    assert read(tmp_path, ancient).reasons == ["bad_field"]


def invalid(values: list[bytes | None], type_: pa.DataType = pa.string()) -> pa.Array:  # noqa: B008
    return pa.array(values, pa.binary()).view(type_)


def test_strings_that_are_not_utf8_are_found(tmp_path):
    paths = pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 2, 3], pa.int32()), invalid([b"p", b"\xfe", b"q"])
    )
    table = pa.table(
        {
            "item_id": invalid([b"1", b"2", b"\xff", b"4"]),
            "title": invalid([b"caf\xe9", b"t", b"t", b"t"]),
            "category_path": paths,
        }
    )
    result = read(tmp_path, table)
    assert result.ids == ["4"]
    assert result.reasons == ["invalid_utf8"] * 3
    details = [reject["detail"] for reject in result.rejects]
    assert details[0] == ("row 0: column title: byte 3 is not UTF-8: unexpected end of data")
    assert "row 1: column category_path" in details[1]
    assert "row 2: column item_id" in details[2]
    payloads = [json.loads(reject["payload"]) for reject in result.rejects]
    assert payloads[0]["title"] == "caf\\xe9"
    assert payloads[1]["category_path"] == ["\\xfe"]
    assert payloads[2]["item_id"] == "\\xff"
    assert result.rejects[0]["item_id"] == "1"


def test_payload_is_the_row_as_json(tmp_path):
    when = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    row = {"item_id": " ", "title": "é", "category_path": ["a", None], "updated_at": when}
    table = pa.Table.from_pylist([row | {"popularity": float("nan"), "unused": 1}])
    payload = read(tmp_path, table).rejects[0]["payload"]
    assert json.loads(payload) == {
        "item_id": " ",
        "title": "é",
        "category_path": ["a", None],
        "popularity": "nan",
        "updated_at": "2024-01-02 00:00:00+00:00",
    }


def test_all_null_columns_and_absent_columns(tmp_path):
    table = pa.table({"item_id": ["1", "2"], "title": pa.nulls(2), "brand": ["b", None]})
    result = read(tmp_path, table)
    assert (result.ids, result.reasons) == (["1"], ["no_text"])
    assert result.parsed["title"].to_pylist() == [None]
    unnamed = read(tmp_path, pa.table({"other": [1, 2, 3]}), shards=ShardConfig(batch_rows=2))
    assert unnamed.reasons == ["missing_id"] * 3
    assert [r["detail"].split(":")[0] for r in unnamed.rejects] == ["row 0", "row 1", "row 2"]


def test_a_file_without_rows(tmp_path):
    empty = pa.table({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())})
    assert read(tmp_path, empty).rows == 0
    assert read(tmp_path, empty, "items.parquet.gz").rows == 0


def test_column_names_with_dots_and_nested_neighbours(tmp_path):
    table = pa.table(
        {"a.id": ["1"], "a": [{"id": "no", "x": 1}], "title": ["t"], "a.title": ["no"]}
    )
    config = InputConfig(columns={"item_id": "a.id"})
    assert read(tmp_path, table, input_config=config).ids == ["1"]


@pytest.mark.parametrize("size", [0, 3, 100, 1000])
@pytest.mark.parametrize("name", ["items.parquet", "items.parquet.gz"])
def test_a_cut_file_is_one_refused_row(tmp_path, name, size):
    table = pa.table({"item_id": [str(i) for i in range(1000)], "title": ["t"] * 1000})
    whole = (tmp_path / "x").with_name(name)
    write(tmp_path, name, parquet(table))
    whole.write_bytes(whole.read_bytes()[:size])
    result = Read(str(whole))
    assert result.rows == 1
    assert result.reasons == ["damaged_file"]
    assert str(whole) in result.rejects[0]["detail"]


def corrupt(tmp_path, column: int, group: int, rows: int = 4000) -> str:
    """Writes four row groups of many pages and destroys one page in the middle of a column."""
    values = [f"{i}-{i * 7919 % 10007}" for i in range(rows)]
    table = pa.table(
        {"item_id": values, "title": values, "vector": [[1.0, i] for i in range(rows)]}
    )
    data = bytearray(
        parquet(
            table,
            row_group_size=rows // 4,
            data_page_size=512,
            write_batch_size=50,
            use_dictionary=False,
            compression="snappy",
        )
    )
    chunk = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(group).column(column)
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + 700] = b"\xff" * 700
    return write(tmp_path, "items.parquet", bytes(data))


@pytest.mark.parametrize("batch_rows", [7, 64, 8192])
def test_a_corrupt_page_gives_the_rows_before_it(tmp_path, batch_rows):
    path = corrupt(tmp_path, column=1, group=1)
    reference = Read(path)
    result = Read(path, shards=ShardConfig(batch_rows=batch_rows))
    assert result.reasons == ["damaged_file"]
    assert result.content == reference.content
    assert result.rejects == reference.rejects
    rows = result.parsed["row"].to_pylist()
    lost = sorted(set(range(4000)) - set(rows))
    assert 1000 < lost[0] < 2000
    assert lost == list(range(lost[0], 2000))
    assert result.rejects[0]["detail"].startswith(f"row {lost[0]}: ")


def test_a_corrupt_page_in_a_column_nobody_reads_costs_nothing(tmp_path):
    assert len(Read(corrupt(tmp_path, column=2, group=1)).ids) == 4000


@pytest.mark.parametrize("split_bytes", [1 << 10, 20_000, 1 << 20])
def test_rows_do_not_depend_on_splits(tmp_path, split_bytes):
    path = corrupt(tmp_path, column=1, group=2)
    result = Read(path, shards=ShardConfig(split_bytes=split_bytes))
    reference = Read(path)
    assert result.content == reference.content
    assert result.rejects == reference.rejects
    assert len(result.splits) == {1 << 10: 4, 20_000: 4, 1 << 20: 1}[split_bytes]


def test_batches_are_bounded_by_bytes(tmp_path):
    rows = [{"item_id": str(i), "title": "x" * 10_000} for i in range(100)]
    path = write(tmp_path, "items.parquet", parquet(rows, use_dictionary=False))
    with open_parquet(path) as file:
        assert file.metadata.num_row_groups == 1
    result = Read(path, shards=ShardConfig(batch_bytes=1 << 16))
    sizes = [len(chunk) for chunk in result.parsed["item_id"].chunks]
    assert max(sizes) <= 7
    assert sum(sizes) == 100


def test_only_the_text_that_is_asked_for(tmp_path):
    rows = [{"item_id": "1", "title": "t", "brand": "b", "colour": "red"}]
    config = TextConfig(parts=("{colour}", "by {brand}"))
    assert read(tmp_path, rows, text_config=config).texts == ["red. by b"]
