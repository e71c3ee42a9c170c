"""Few rows of large parts: the right ones, whatever the statistics say, and no others."""

import os

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_transforms import files
from semid_transforms.lookup import (
    column_range,
    drop_rows,
    find_rows,
    holds_any,
    overlaps,
    read_groups,
    row_groups,
)

SCHEMA = pa.schema([("item_id", pa.string()), ("sid", pa.int64()), ("codes", pa.list_(pa.int32()))])


def rows(numbers):
    return pa.table(
        {
            "item_id": [f"i{n:03d}" for n in numbers],
            "sid": [10 * n for n in numbers],
            "codes": [[n, n] for n in numbers],
        },
        SCHEMA,
    )


@pytest.fixture
def part(tmp_path):
    path = str(tmp_path / "part.parquet")
    files.write_table(path, SCHEMA, rows(range(100)).to_batches(), row_group_rows=10)
    return path


@given(st.lists(st.integers(0, 50)), st.integers(0, 50), st.integers(0, 50))
def test_a_range_holds_what_lies_in_it(values, low, high):
    low, high = min(low, high), max(low, high)
    assert holds_any(sorted(values))(low, high) == any(low <= v <= high for v in values)
    assert overlaps(10, 20)(low, high) == bool({*range(low, high + 1)} & {*range(10, 21)})


def test_only_row_groups_that_can_hold_a_key_are_read(part):
    with files.parquet_file(part) as file:
        assert row_groups(file, "sid", holds_any([55, 310, 2000])) == [0, 3]
        assert row_groups(file, "item_id", holds_any(["i009", "i01"])) == [0]
    found = read_groups(part, "sid", overlaps(95, 205), ["codes", "sid"])
    assert found.schema.names == ["codes", "sid"]
    assert found["sid"].to_pylist() == list(range(100, 300, 10))
    assert column_range(part, "sid") == (0, 990)


def test_rows_are_found_by_id_and_by_id_and_sid(part):
    keys = pa.table({"item_id": ["i031", "i077", "absent"]})
    found = find_rows(part, keys, ["codes", "item_id"])
    assert found.to_pylist() == [
        {"codes": [31, 31], "item_id": "i031"},
        {"codes": [77, 77], "item_id": "i077"},
    ]
    pairs = pa.table({"item_id": ["i031", "i077"], "sid": pa.array([310, 0], pa.int64())})
    assert find_rows(part, pairs, ["sid"], by="sid")["sid"].to_pylist() == [310]
    assert find_rows(part, keys.slice(2), ["sid"]).num_rows == 0


def test_a_part_without_dropped_rows_is_linked_and_one_with_them_is_rewritten(part, tmp_path):
    target = str(tmp_path / "out" / "part.parquet")
    keys = pa.table({"item_id": ["i031"], "sid": pa.array([0], pa.int64())})
    assert drop_rows(part, target, keys, "sid", empty=False) is None
    assert os.path.samefile(part, target)
    keys = pa.table({"item_id": ["i031", "i099"], "sid": pa.array([310, 990], pa.int64())})
    dropped = drop_rows(part, target, keys, "sid", empty=False)
    assert dropped["codes"].to_pylist() == [[31, 31], [99, 99]]
    left = files.read_table(target)
    assert left.schema == SCHEMA
    assert left["item_id"].to_pylist() == [f"i{n:03d}" for n in range(99) if n != 31]
    assert files.read_table(part).num_rows == 100


def test_a_part_that_loses_every_row_is_left_out_unless_it_must_be_there(part, tmp_path):
    keys = rows(range(100)).select(["item_id"])
    for empty in (False, True):
        target = str(tmp_path / f"{empty}.parquet")
        assert drop_rows(part, target, keys, "item_id", empty).num_rows == 100
        assert os.path.exists(target) == empty
    assert files.read_table(target).schema == SCHEMA
    assert column_range(target, "sid") is None
