import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from semid_transforms.coercion import Kind, coerce
from semid_transforms.values import time_of

NAN, INF = float("nan"), float("inf")
RAW = pa.array([b"\xff", b"ok", None], pa.binary())
OFFSETS = pa.array([0, 1, 2, 2], pa.int32())
LAST = pa.array([False, False, True])
UNITS = ("s", "ms", "us", "ns")
ZONES = (None, "UTC", "Mars/Base", "+02:00")
COLUMNS = [
    *(pa.array([2**62, 0, None], pa.timestamp(u, z)) for u in UNITS for z in ZONES),
    pa.array([2**30, 0, None], pa.date32()),
    pa.array([2**62, 0, None], pa.date64()),
    pa.array([1, 0, None], pa.time32("s")),
    pa.array([2**61, 0, None], pa.time64("ns")),
    pa.array([2**61, 0, None], pa.duration("s")),
    pa.array([2**61, 0, None], pa.duration("ns")),
    pa.array([True, False, None]),
    pa.array([{"a": 1}, {}, None]),
    pa.array([[("k", "v")], [], None], pa.map_(pa.string(), pa.string())),
    pa.nulls(3),
    pa.array([b"ab", b"\xff\xfe", None], pa.binary(2)),
    RAW,
    RAW.cast(pa.large_binary()),
    RAW.cast(pa.binary_view()),
    RAW.view(pa.string()),
    RAW.cast(pa.large_binary()).view(pa.large_string()),
    pa.StructArray.from_arrays([RAW.view(pa.string())], ["x"]),
    pa.ListArray.from_arrays(OFFSETS, RAW.view(pa.string()), mask=LAST),
    pa.ListArray.from_arrays(OFFSETS, RAW, mask=LAST),
    pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), RAW.view(pa.string())),
    pa.array([decimal.Decimal("1.5"), decimal.Decimal(2), None]),
    pa.array([[1.0], [None], None]),
    pa.array([[1, 2], [3, 4], None], pa.list_(pa.int64(), 2)),
    pa.array([["a"], ["b"], None], pa.list_view(pa.string())),
    pa.array([[[1]], [], None]),
    pa.array([[True], [], None]),
    pa.array([NAN, INF, None], pa.float16()),
    pa.array([-(2**63), 2**63 - 1, None]),
    pa.array([2**64 - 1, 0, None], pa.uint64()),
    pa.array(["{}", "1", None], pa.json_()),
    pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["x", None])),
]  # fmt: skip


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))
def test_no_column_type_stops_a_run(column, kind):
    array, problems = coerce(column, kind, "|")
    array.validate(full=True)
    assert array.type == kind.value
    assert len(array) == 3
    array.to_pylist()  # also no time that Python cannot hold
    assert array.is_null()[2].as_py()
    assert all(array.is_null()[row].as_py() for row in problems)
    sliced, shifted = coerce(column.slice(1), kind, "|")
    assert sliced.equals(array.slice(1))
    assert {row + 1 for row in shifted} == {row for row in problems if row}


def test_columns_mean_the_same_as_their_values():
    text = ["1.5", "a|b", "", "2024-01-02", "[1, 2]", None, "é", " 7 "]
    for kind in Kind:
        by_value = coerce(text, kind, "|")
        for type_ in (pa.string(), pa.large_string(), pa.string_view()):
            by_column = coerce(pa.array(text, type_), kind, "|")
            assert by_column[0].equals(by_value[0])
            assert by_column[1] == by_value[1]
    for numbers in ([1, -2, None], [1.0, 2.5, None]):
        for kind in (Kind.TEXT, Kind.NUMBER, Kind.TIME, Kind.PATH):
            assert coerce(pa.array(numbers), kind)[0].equals(coerce(numbers, kind)[0])
    thin = np.array([0.1, 2, 1e10], np.float32)
    assert coerce(pa.array(thin), Kind.TEXT)[0].to_pylist() == ["0.1", "2", "10000000000"]


def test_a_path_without_delimiter_is_one_part():
    assert coerce(["a|b"], Kind.PATH)[0].to_pylist() == [["a|b"]]
    assert coerce(pa.array(["a|b", None, ""]), Kind.PATH)[0].to_pylist() == [["a|b"], None, [""]]


def test_the_whole_calendar_is_readable():
    for parts in ((1, 1, 1), (9999, 12, 31, 23, 59, 59, 999999)):
        moment = datetime.datetime(*parts, tzinfo=datetime.UTC)
        assert coerce([moment], Kind.TIME)[0].to_pylist() == [moment]
        assert coerce(pa.array([time_of(moment)], pa.timestamp("us")), Kind.TIME)[1] == {}
