"""Rows of a feature store: exact numbers, exact differences, tombstones."""

from __future__ import annotations

import datetime

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from schemas.tables import TIMESTAMP, items_schema
from semid_transforms.feature_rows import (
    changed_rows,
    feature_rows,
    gone_rows,
    is_gone,
    latest_rows,
)

NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)


def items(sid_type: pa.DataType, sids: list[int]) -> pa.Table:
    count = len(sids)
    values = {
        "item_id": [f"i{number}" for number in range(count)],
        "sid": sids,
        "codes": [[1, number] for number in range(count)],
        "base_codes": [[1, 0]] * count,
        "path_labels": [["a"]] * count,
        "suffix": [0] * count,
        "placement": ["nearest"] * count,
        "quantization_error": [0.1] * count,
        "content_hash": [bytes(16)] * count,
        "tokenizer_id": ["t"] * count,
        "first_generation": ["g"] * count,
        "event_timestamp": [NOON] * count,
        "created_timestamp": [NOON] * count,
        "spm": [list(range(number)) for number in range(count)],
    }
    return pa.table(values, schema=items_schema(sid_type, ["spm"]))


def test_numbers_that_a_float_rounds_are_offered_as_text_alone():
    largest = 2**53 - 1
    exact = feature_rows(items(pa.int64(), [largest]), 53)
    assert exact["sid"].to_pylist() == [largest] == [int(float(largest))]
    assert exact["sid_text"].to_pylist() == [str(largest)]
    for sid_type, bits, sid in ((pa.int64(), 54, 2**54 - 1), (pa.uint64(), 64, 2**64 - 1)):
        rows = feature_rows(items(sid_type, [sid]), bits)
        assert "sid" not in rows.schema.names
        assert rows["sid_text"].to_pylist() == [str(sid)]


def test_features_keep_every_other_column():
    published = items(pa.int64(), [5, 6, 7])
    rows = feature_rows(published, 40)
    published = published.drop_columns(["path_labels"])
    assert rows.schema.names[-2:] == ["event_timestamp", "created_timestamp"]
    assert rows.select(published.schema.names).to_pylist() == published.to_pylist()
    assert set(rows.schema.names) == {*published.schema.names, "sid_text"}


def test_a_tombstone_has_a_name_and_times_only():
    schema = feature_rows(items(pa.int64(), [5]), 40).schema
    rows = gone_rows(pa.array(["x"]), pa.array([NOON], TIMESTAMP), schema)
    assert is_gone(rows).to_pylist() == [True]
    row = rows.to_pylist()[0]
    assert {name for name, value in row.items() if value is not None} == {
        "item_id",
        "event_timestamp",
        "created_timestamp",
    }


def test_the_latest_row_is_the_one_written_last():
    log = pa.table({"item_id": ["a", "b", "a", "c", "b"], "value": [1, 2, 3, 4, 5]})
    chunked = pa.concat_tables([log.slice(0, 2), log.slice(2)])
    assert latest_rows(chunked).to_pylist() == [
        {"item_id": "a", "value": 3},
        {"item_id": "c", "value": 4},
        {"item_id": "b", "value": 5},
    ]
    assert latest_rows(log.slice(0, 0)).num_rows == 0


SCHEMA = pa.schema([("item_id", pa.string()), ("n", pa.int64()), ("ids", pa.list_(pa.int64()))])
ROWS = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.integers(0, 2), st.lists(st.integers(0, 1), max_size=3)),
)


@given(ROWS, ROWS)
def test_changed_rows_are_those_that_differ(new: dict, old: dict):
    def table(rows: dict) -> pa.Table:
        values = [{"item_id": name, "n": n, "ids": ids} for name, (n, ids) in rows.items()]
        return pa.Table.from_pylist(values, schema=SCHEMA)

    changed, replaced = changed_rows(table(new), table(old))
    expected = [name for name in new if new[name] != old.get(name)]
    assert changed["item_id"].to_pylist() == expected
    assert replaced["item_id"].to_pylist() == [name if name in old else None for name in expected]


def test_an_item_that_returns_differs_from_its_tombstone():
    rows = feature_rows(items(pa.int64(), [5, 6]), 40)
    gone = gone_rows(pa.array(["i1"]), pa.array([NOON], TIMESTAMP), rows.schema)
    known = pa.concat_tables([rows.slice(0, 1), gone])
    changed, _ = changed_rows(rows, known)
    assert changed["item_id"].to_pylist() == ["i1"]
