import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import InputConfig, ShardConfig
from schemas.tables import REJECTED_PAYLOAD_BYTES
from tests.semid_transforms.catalogs import Read, csv_text, write

HEADER = b"item_id,title,brand\n"


def read(tmp_path, data: bytes, name: str = "items.csv", **options) -> Read:
    return Read(write(tmp_path, name, data), **options)


def test_quotes_line_ends_and_separators_inside_fields(tmp_path):
    data = HEADER + b'1,"a, ""b""\r\nc","x\n\ny"\r\n"2\n/",d "e" f,\n3,19" screen,"t"u\n'
    result = read(tmp_path, data)
    assert result.ids == ["1", "2\n/", "3"]
    assert result.texts == ['a, "b" c. x y', 'd "e" f', '19" screen. tu']
    assert result.rejects == []


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path):
    data = b"\xef\xbb\xbf" + HEADER.replace(b"\n", b"\r\n") + b"1,a,b\r\n\r\n   \r\n2,c,d"
    result = read(tmp_path, data)
    assert result.ids == ["1", "2"]
    assert result.texts == ["a. b", "c. d"]
    assert result.parsed["row"].to_pylist() == [0, 1]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"2,b", "unparsable", "2 fields, the header has 3"),
        (b"2,b,c,d", "unparsable", "4 fields, the header has 3"),
        (b"2,b\rc,d", "unparsable", "not CSV"),
        (b"2,caf\xe9,d", "invalid_utf8", "not UTF-8: "),
        (b'2,b,"\xff"', "invalid_utf8", "not UTF-8: "),
        (b",b,c", "missing_id", "item_id"),
        (b" ,b,c", "missing_id", "item_id"),
        (b"2,,<br>", "no_text", "empty"),
        (b'2,"b,c', "unparsable", "2 fields, the header has 3"),
    ],
)
def test_a_bad_record_is_refused_and_its_neighbours_are_not(tmp_path, line, reason, detail):
    result = read(tmp_path, HEADER + b"1,a,b\n" + line + b'\n3,c,"d"\n4,e,f\n')
    assert result.ids == ["1", "3", "4"]
    assert result.reasons == [reason]
    [reject] = result.rejects
    assert reject["detail"].startswith("line 3: ")
    assert detail in reject["detail"]
    assert reject["payload"] == line + b"\n"


def test_a_quote_that_never_closes_costs_one_row(tmp_path):
    result = read(tmp_path, HEADER + b'1,"a,b\n2,b,c\n3,c,d\n')
    assert result.ids == ["2", "3"]
    assert "a quoted field does not end in the file" in result.rejects[0]["detail"]
    assert result.rejects[0]["payload"] == b'1,"a,b\n'


def test_stray_quotes_do_not_make_one_row_of_two(tmp_path):
    result = read(tmp_path, b'item_id,title\n1,"a\n2,"b\n3,c\n4,"d\n"\n')
    assert result.ids == ["3", "4"]
    assert [reject["payload"] for reject in result.rejects] == [b'1,"a\n', b'2,"b\n']
    assert "text follows the quote" in result.rejects[0]["detail"]


def test_a_quote_that_never_closes_is_not_followed_beyond_the_limit(tmp_path):
    data = HEADER + b'1,"a,b\n' + b"2,b,c\n" * 1000
    result = read(tmp_path, data, input_config=InputConfig(max_row_bytes=1024))
    assert (len(result.ids), result.reasons) == (1000, ["unparsable"])


def test_long_lines_are_refused_without_being_held(tmp_path):
    data = HEADER + b"1," + b"x" * 3_000_000 + b",b\n2,c,d\n"
    limit, shards = InputConfig(max_row_bytes=1024), ShardConfig(batch_bytes=1 << 16)
    for shard_config in (shards, ShardConfig()):
        result = read(tmp_path, data, input_config=limit, shards=shard_config)
        assert result.ids == ["2"]
        assert "3000004 bytes long, more than input.max_row_bytes" in result.rejects[0]["detail"]
        assert len(result.rejects[0]["payload"]) == REJECTED_PAYLOAD_BYTES


def test_a_huge_field_passes_through(tmp_path):
    result = read(tmp_path, HEADER + b'1,t,"' + b"word\n" * 2_000_000 + b'"\n2,t,b\n')
    assert result.ids == ["1", "2"]
    assert len(result.texts[0]) == 3 + 5 * 2_000_000 - 1


def test_null_bytes_are_blanks(tmp_path):
    result = read(tmp_path, HEADER + b"1,a\x00b,c\n")
    assert result.texts == ["a b. c"]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", HEADER, HEADER.strip()])
def test_a_file_without_records_has_no_rows(tmp_path, data):
    assert read(tmp_path, data).rows == 0


@pytest.mark.parametrize("header", [b"item_id,caf\xe9\n", b'item_id,"title\n', b"item_id,a\rb\n"])
def test_without_a_header_the_file_is_damaged(tmp_path, header):
    result = read(tmp_path, header + b"1,a\n")
    assert result.rows == 1
    assert result.reasons == ["damaged_file"]
    assert "the header cannot be read" in result.rejects[0]["detail"]


def test_every_kind_of_field(tmp_path):
    data = (
        b"item_id,title,category_path,popularity,updated_at\n"
        b"007,t,a|b, 1.5 ,2024-01-02T03:04:05Z\n"
        b"2,t,,,1704164645\n"
        b"3,t,a,lots,\n"
        b"4,t,a,,yesterday\n"
    )
    result = read(tmp_path, data)
    assert result.ids == ["007", "2"]
    assert result.parsed["category_path"].to_pylist() == [["a", "b"], None]
    assert result.parsed["popularity"].to_pylist() == [1.5, None]
    assert len(set(result.parsed["updated_at"].to_pylist())) == 1
    assert result.reasons == ["bad_field", "bad_field"]
    assert "column popularity: 'lots' is not a number" in result.rejects[0]["detail"]
    assert result.rejects[0]["item_id"] == "3"


def test_a_cut_gzip_gives_the_whole_lines_before_the_cut(tmp_path):
    rows = [{"item_id": str(i), "title": f"title {i * i}", "brand": "b"} for i in range(5000)]
    whole = gzip.compress(csv_text(rows))
    path = tmp_path / "items.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    for shards in (ShardConfig(), ShardConfig(batch_rows=7)):
        result = Read(str(path), shards=shards)
        assert result.ids == [str(i) for i in range(len(result.ids))]
        assert 1000 < len(result.ids) < 4000
        assert result.reasons == ["damaged_file"]
        assert result.rejects[0]["detail"].startswith(f"line {len(result.ids) + 2}: ")
        assert "EOFError" in result.rejects[0]["detail"]


cells = st.text(st.sampled_from('ab ,"\n\r\x00é'), max_size=4)
raw_lines = st.lists(st.sampled_from([b'"', b",", b"a", b"\n", b"\r\n", b"\xe9", b'""', b"1,"]))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=20), st.integers(1, 5))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, pairs, batch_rows):
    rows = [{"item_id": f"{i}{a}", "title": f"t{b}"} for i, (a, b) in enumerate(pairs)]
    folder = tmp_path_factory.mktemp("csv")
    result = read(folder, csv_text(rows), shards=ShardConfig(batch_rows=batch_rows))
    assert result.ids == [row["item_id"] for row in rows]


@settings(deadline=None, max_examples=100)
@given(st.lists(raw_lines.map(b"".join), max_size=20), st.integers(1, 5))
def test_any_bytes_give_the_same_rows_whatever_the_batch(tmp_path_factory, lines, batch_rows):
    data = b"item_id,title\n" + b"\n".join(lines)
    folder = tmp_path_factory.mktemp("csv")
    whole = read(folder, data)
    small = read(folder, data, shards=ShardConfig(batch_rows=batch_rows, batch_bytes=1 << 16))
    assert small.parsed.equals(whole.parsed)
    assert sorted(small.rejects, key=repr) == sorted(whole.rejects, key=repr)
