"""What single values mean; read through `coerce`, which turns errors into problems."""

import datetime
import decimal

import pytest

from schemas.rejects import RejectReason
from semid_transforms.coercion import Kind, coerce

NAN, INF = float("nan"), float("inf")


def one(value, kind: Kind):
    """Returns what a single Python value is coerced to, or its problem's reason."""
    array, problems = coerce([value], kind, "|")
    assert array.type == kind.value
    assert len(array) == 1
    return problems[0].reason if problems else array[0].as_py()


BAD = RejectReason.BAD_FIELD
NOT_UTF8 = RejectReason.INVALID_UTF8


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", ""),
        ("é", "é"),
        ("\ud800", NOT_UTF8),
        (b"caf\xc3\xa9", "café"),
        (b"\xff", NOT_UTF8),
        (7, "7"),
        (10**30, "1" + "0" * 30),
        (7.0, "7"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e22, "1e+22"),
        (NAN, None),
        (INF, BAD),
        (decimal.Decimal("1.50"), "1.50"),
        (True, BAD),
        ({"a": 1}, BAD),
        (["a", 1, None, 2.0], "a 1 2"),
        ([["a"]], BAD),
        ([], ""),
    ],
)
def test_text(value, expected):
    assert one(value, Kind.TEXT) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("a|b", ["a", "b"]),
        (["a", 7, None], ["a", "7", None]),
        (7, ["7"]),
        (NAN, None),
        (["a", ["b"]], BAD),
        (["\udfff"], NOT_UTF8),
        (False, BAD),
        ({}, BAD),
    ],
)
def test_path(value, expected):
    assert one(value, Kind.PATH) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (" 1.5 ", 1.5),
        ("", None),
        (" ", None),
        ("nan", None),
        ("inf", BAD),
        ("1_000", BAD),
        ("1,5", BAD),
        (7, 7.0),
        (10**400, BAD),
        (NAN, None),
        (-INF, BAD),
        (decimal.Decimal("0.5"), 0.5),
        (True, BAD),
        ([1], BAD),
    ],
)
def test_number(value, expected):
    assert one(value, Kind.NUMBER) == expected


def utc(*parts: int) -> datetime.datetime:
    return datetime.datetime(*parts, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("2024-01-02", utc(2024, 1, 2)),
        ("20240102", utc(2024, 1, 2)),
        ("2024-01-02 03:04", utc(2024, 1, 2, 3, 4)),
        ("2024-01-02T03:04:05.123456Z", utc(2024, 1, 2, 3, 4, 5, 123456)),
        ("2024-01-02T03:04:05+02:00", utc(2024, 1, 2, 1, 4, 5)),
        ("1712121530", utc(2024, 4, 3, 5, 18, 50)),
        ("1712121530123", utc(2024, 4, 3, 5, 18, 50, 123000)),
        (1712121530, utc(2024, 4, 3, 5, 18, 50)),
        (1712121530.5, utc(2024, 4, 3, 5, 18, 50, 500000)),
        (1712121530123456, utc(2024, 4, 3, 5, 18, 50, 123456)),
        (1712121530123456768, utc(2024, 4, 3, 5, 18, 50, 123457)),
        (-1, utc(1969, 12, 31, 23, 59, 59)),
        (datetime.date(2024, 1, 2), utc(2024, 1, 2)),
        (datetime.datetime(2024, 1, 2), utc(2024, 1, 2)),
        ("yesterday", BAD),
        ("0001-01-01T00:00:00+14:00", BAD),
        (1e30, BAD),
        (INF, BAD),
        (NAN, None),
        (True, BAD),
        ([], BAD),
    ],
)
def test_time(value, expected):
    assert one(value, Kind.TIME) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ([1, 2.5], [1.0, 2.5]),
        ([1, None], [1.0, None]),
        ([10**400], [INF]),
        ("[1, 2e0]", [1.0, 2.0]),
        ("", None),
        ("1 2", RejectReason.BAD_EMBEDDING),
        ("[" * 100_000, RejectReason.BAD_EMBEDDING),
        (["1"], RejectReason.BAD_EMBEDDING),
        ([True], RejectReason.BAD_EMBEDDING),
        ([[1]], RejectReason.BAD_EMBEDDING),
        (3, RejectReason.BAD_EMBEDDING),
        ({}, RejectReason.BAD_EMBEDDING),
    ],
)
def test_vector(value, expected):
    assert one(value, Kind.VECTOR) == expected


def test_values_are_quoted_briefly():
    problem = coerce([{"key": "x" * 1000}], Kind.TEXT)[1][0]
    assert problem.detail == "{'key': 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... " + (
        "is an object, expected text"
    )
