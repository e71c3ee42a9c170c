import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import InputConfig, ShardConfig, TextConfig
from schemas.tables import REJECTED_PAYLOAD_BYTES
from semid_transforms.coercion import Kind
from semid_transforms.json_rows import read_json_rows
from semid_transforms.rows import Field
from semid_transforms.sources import Format, SourceSplit
from tests.semid_transforms.catalogs import Read, json_lines, write

GOOD = b'{"item_id": "ok", "title": "fine"}'


def read(tmp_path, *lines: bytes, **options) -> Read:
    return Read(write(tmp_path, "items.jsonl", b"\n".join(lines) + b"\n"), **options)


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"item_id": "a", "title":', "unparsable", "not JSON"),
        (b"not json", "unparsable", "not JSON"),
        (b'["a", "b"]', "unparsable", "a JSON array, expected an object"),
        (b"[]", "unparsable", "a JSON array"),
        (b'"text"', "unparsable", "a JSON string"),
        (b"17", "unparsable", "a JSON number"),
        (b"null", "unparsable", "a JSON null"),
        (b"true", "unparsable", "a JSON true or false"),
        (b'{"item_id": "a", "title": "t"} {"item_id": "b", "title": "t"}', "unparsable", "Extra"),
        (b'{"item_id": "a", "title": "\x00"}', "unparsable", "control character"),
        (b'{"item_id": "a", "title": "t", "other": Inf}', "unparsable", "not JSON"),
        (b'{"item_id": "a", "title": "caf\xe9"}', "invalid_utf8", "byte 30 of the line"),
        (b'{"item_id": "a", "title": "t", "other": "\xff"}', "invalid_utf8", "not UTF-8"),
        (b'{"item_id": "a", "title": "\\ud800"}', "invalid_utf8", "column title"),
        (b'{"item_id": "\\udc00", "title": "t"}', "invalid_utf8", "surrogates"),
        (b'{"item_id": "a", "title": true}', "bad_field", "column title: True is true or false"),
        (b'{"item_id": "a", "title": {"en": "t"}}', "bad_field", "is an object, expected text"),
        (b'{"item_id": "a", "title": [["t"]]}', "bad_field", "nested list"),
        (b'{"item_id": ["a", {}], "title": "t"}', "bad_field", "column item_id"),
        (b'{"item_id": "a", "title": "t", "category_path": {}}', "bad_field", "category_path"),
        (b'{"item_id": "a", "title": "t", "category_path": [["x"]]}', "bad_field", "is a list"),
        (b'{"item_id": "a", "title": "t", "popularity": "many"}', "bad_field", "not a number"),
        (b'{"item_id": "a", "title": "t", "popularity": 1e999}', "bad_field", "finite"),
        (b'{"item_id": "a", "title": "t", "updated_at": "soon"}', "bad_field", "ISO 8601"),
        (b'{"title": "t"}', "missing_id", "item_id"),
        (b'{"item_id": null, "title": "t"}', "missing_id", "item_id"),
        (b'{"item_id": "", "title": "t"}', "missing_id", "item_id"),
        (b'{"item_id": " \\t\\u00a0", "title": "t"}', "missing_id", "item_id"),
        (b'{"item_id": "a"}', "no_text", "title, brand, category_path, description"),
        (b'{"item_id": "a", "title": "<br> &nbsp;", "category_path": [" "]}', "no_text", "empty"),
    ],
)
def test_a_bad_line_is_refused_and_its_neighbours_are_not(tmp_path, line, reason, detail):
    result = read(tmp_path, GOOD, b"", line, GOOD)
    assert result.ids == ["ok", "ok"]
    assert result.rows == 3
    [reject] = result.rejects
    assert reject["reason"] == reason
    assert reject["stage"] == "read"
    assert reject["source"] == str(tmp_path / "items.jsonl")
    assert reject["detail"].startswith("line 3: ")
    assert detail in reject["detail"]
    assert reject["payload"] == line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", "0"),
        ("-17", "-17"),
        ("-0", "0"),
        ("9223372036854775807", "9223372036854775807"),
        ("9223372036854775808", "9223372036854775808"),
        ("1" * 5000, "1" * 5000),
        ("1.0", "1"),
        ("1.50", "1.5"),
        ("1e3", "1000"),
        ("1e300", "1e+300"),
        ('"a/b\\n\\u0000c"', "a/b\n\x00c"),
        ('" x "', " x "),
    ],
)
def test_ids_keep_what_they_say(tmp_path, value, expected):
    line = b'{"item_id": %s, "title": "t"}' % value.encode()
    assert read(tmp_path, GOOD, line, line).ids == ["ok", expected, expected]
    assert read(tmp_path, line).ids == [expected]


def test_columns_of_integers_are_read_by_arrow_and_by_python_alike(tmp_path):
    rows = [{"item_id": i, "title": i * 7, "updated_at": 1_700_000_000 + i} for i in range(300)]
    plain = read(tmp_path, *json_lines(rows).splitlines())
    mixed = read(tmp_path, *json_lines(rows).splitlines(), b'{"item_id": true}')
    assert plain.ids == [str(i) for i in range(300)]
    assert plain.texts[5] == "35"
    assert plain.content == mixed.content


def test_mixed_types_in_one_field_are_all_read(tmp_path):
    values = ["a", 1, 2.5, None, ["x", 3, None], "z"]
    rows = [{"item_id": str(i), "title": "t", "brand": v} for i, v in enumerate(values)] * 20
    texts = read(tmp_path, *json_lines(rows).splitlines()).texts
    assert texts == ["t. a", "t. 1", "t. 2.5", "t", "t. x 3", "t. z"] * 20


def test_paths_may_be_lists_or_delimited_strings(tmp_path):
    paths = [["a", " b "], "a| b |", ["a", 1, None, ""], [], "", None, "a", 7]
    rows = [{"item_id": "i", "title": "t", "category_path": path} for path in paths]
    result = read(tmp_path, *json_lines(rows).splitlines())
    expected = [["a", "b"], ["a", "b"], ["a", "1"], None, None, None, ["a"], ["7"]]
    assert result.parsed["category_path"].to_pylist() == expected


def test_the_last_of_repeated_keys_counts(tmp_path):
    repeated = b'{"item_id": "first", "item_id": "last", "title": "t"}'
    after_null = b'{"item_id": null, "item_id": "last", "title": "t"}'
    to_null = b'{"item_id": "first", "title": "t", "item_id": null}'
    result = read(tmp_path, GOOD, repeated, after_null, to_null, GOOD)
    assert result.ids == ["ok", "last", "last", "ok"]
    assert result.reasons == ["missing_id"]


def test_deep_nesting_is_no_obstacle_in_a_field_nobody_reads(tmp_path):
    deep = b'{"item_id": "deep", "other": %s1%s, "title": "t"}' % (b"[" * 50_000, b"]" * 50_000)
    odd = b'{"item_id": 5, "other": %s"]}"%s, "title": "t"}' % (b'{"a":' * 50_000, b"}" * 50_000)
    cut = b'{"item_id": "x", "other": %s' % (b"[" * 50_000)
    result = read(tmp_path, deep, odd, cut, GOOD)
    assert result.ids == ["deep", "5", "ok"]
    assert result.reasons == ["unparsable"]
    title = b'{"item_id": "x", "title": %s%s}' % (b"[" * 50_000, b"]" * 50_000)
    assert read(tmp_path, title).reasons == ["bad_field"]


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path):
    data = b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n \t\n  " + GOOD + b"  \r\n" + GOOD
    result = Read(write(tmp_path, "items.json", data))
    assert result.ids == ["ok"] * 3
    bad = Read(write(tmp_path, "items.json", data + b"\r\n\n\xef\xbb\xbf" + GOOD))
    assert bad.rejects[0]["detail"].startswith("line 7: not JSON")


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b"\r\n \n"])
def test_a_file_without_lines_has_no_rows(tmp_path, data):
    result = Read(write(tmp_path, "items.ndjson", data))
    assert (result.rows, result.parsed.num_rows, result.rejects) == (0, 0, [])


def test_long_lines_are_refused_whether_or_not_a_block_holds_them(tmp_path):
    limit = InputConfig(max_row_bytes=1024)
    longest = b'{"item_id": "fits", "title": "%s"}' % (b"x" * (1024 - 32))
    assert len(longest) == 1024
    huge = b'{"item_id": "huge", "title": "%s"}' % (b"x" * 3_000_000)
    shards = ShardConfig(batch_bytes=1 << 16)
    result = read(
        tmp_path, longest, longest + b" x", huge, longest + b"\r", input_config=limit, shards=shards
    )
    assert result.ids == ["fits", "fits"]
    assert result.reasons == ["unparsable", "unparsable"]
    assert [r["detail"].split(":")[0] for r in result.rejects] == ["line 2", "line 3"]
    assert "1026 bytes long, more than input.max_row_bytes = 1024" in result.rejects[0]["detail"]
    assert str(len(huge)) in result.rejects[1]["detail"]
    assert result.rejects[1]["payload"] == huge[:REJECTED_PAYLOAD_BYTES]


def test_a_huge_description_passes_through(tmp_path):
    row = {"item_id": "big", "title": "t", "description": "word " * 2_000_000}
    result = read(tmp_path, GOOD, *json_lines([row]).splitlines())
    assert len(result.texts[1]) == len("t. ") + 5 * 2_000_000 - 1


# The parser in use for a line depends on its neighbours; what the line gives must not.

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["2024-01-02", "2024-01-02T03:04:05+02:00", "12.5", "1e9", "\ud800"])
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=2), scalars)
names = ["item_id", "title", "brand", "category_path", "popularity", "updated_at", "vector", "x"]
lines = (
    st.dictionaries(st.sampled_from(names), values).map(lambda row: json.dumps(row).encode())
    | st.builds(lambda i: b'{"item_id": "%d", "title": "usual"}' % i, st.integers(0, 99))
    | st.builds(lambda i: b'{"item_id": %d, "popularity": 2}' % i, st.integers(0, 99))
    | st.sampled_from([b"", b"{", b"[1]", b"\xff", b'{"x": Inf}', b'{"popularity": -NaN}', b"{}{}"])
)
FIELDS = [
    Field("item_id", "item_id", Kind.TEXT),
    Field("title", "title", Kind.TEXT),
    Field("brand", "brand", Kind.TEXT),
    Field("category_path", "category_path", Kind.PATH),
    Field("popularity", "popularity", Kind.NUMBER),
    Field("updated_at", "updated_at", Kind.TIME),
    Field("embedding 0", "vector", Kind.VECTOR),
]


def facts(data: bytes, shards: ShardConfig) -> list:
    """Every row as (number, fields, problem), every refused line as its problem."""
    found = []
    split = SourceSplit("x.jsonl", Format.JSON_LINES)
    stream = pa.PythonFile(pa.BufferReader(data), mode="r")
    for rows in read_json_rows(stream, split, FIELDS, InputConfig(category_delimiter="|"), shards):
        for i, (number, row) in enumerate(zip(rows.numbers, rows.fields.to_pylist(), strict=True)):
            found.append((int(number), repr(row), rows.problems.get(i), rows.payload(i)))
        found += [(r.place, r.problem, r.payload) for r in rows.refused]
    return sorted(found, key=repr)


@settings(deadline=None, max_examples=150)
@given(st.lists(lines, max_size=40), st.integers(1, 9))
def test_a_line_gives_the_same_beside_any_other_lines(some, batch_rows):
    data = b"\n".join(some)
    whole = facts(data, ShardConfig())
    assert facts(data, ShardConfig(batch_rows=batch_rows)) == whole
    assert facts(data, ShardConfig(batch_rows=1)) == whole


def test_rows_and_refused_lines_share_one_count(tmp_path):
    result = read(
        tmp_path, b"{", GOOD, b"", b"[]", GOOD, text_config=TextConfig(parts=("{title}",))
    )
    assert result.parsed["row"].to_pylist() == [1, 3]
