import gzip
import os

import pyarrow as pa
import pytest

from schemas.config import InputConfig, TextConfig
from semid_transforms import files
from semid_transforms.files import SourceFile
from semid_transforms.sources import (
    Format,
    SourceSplit,
    check_columns,
    file_columns,
    format_of,
    list_splits,
    open_parquet,
    open_stream,
)
from tests.semid_transforms.catalogs import csv_text, json_lines, parquet, write

ROWS = [{"item_id": "1", "title": "t", "colour": "red"}]


@pytest.mark.parametrize(
    ("name", "format_", "compressed"),
    [
        ("a.parquet", Format.PARQUET, False),
        ("gs://bucket/a.snappy.parquet", Format.PARQUET, False),
        ("a.parquet.gz", Format.PARQUET, True),
        ("a.jsonl", Format.JSON_LINES, False),
        ("A.NDJSON.GZ", Format.JSON_LINES, True),
        ("a.json", Format.JSON_LINES, False),
        ("a.csv.gz", Format.CSV, True),
    ],
)
def test_formats_go_by_name(name, format_, compressed):
    assert format_of(name) == (format_, compressed)


@pytest.mark.parametrize("name", ["items", "items.gz", "items.tsv", "parquet", "a.parquet.zst"])
def test_other_names_are_refused(name):
    with pytest.raises(
        ValueError, match=rf"format of {name}: its name must end in one of .parquet"
    ):
        list_splits([SourceFile(name, 1, "1")], 1 << 20)


def test_plain_json_lines_are_cut_at_bytes_and_others_are_not():
    sizes = [SourceFile(name, 2500, "1") for name in ("a.csv", "a.jsonl", "a.jsonl.gz")]
    assert list_splits(sizes, 1000) == [
        SourceSplit("a.csv", Format.CSV),
        SourceSplit("a.jsonl", Format.JSON_LINES, False, 1, 0, 0, 1000),
        SourceSplit("a.jsonl", Format.JSON_LINES, False, 1, 1, 1000, 2000),
        SourceSplit("a.jsonl", Format.JSON_LINES, False, 1, 2, 2000, 2500),
        SourceSplit("a.jsonl.gz", Format.JSON_LINES, True, 2),
    ]


def test_parquet_is_cut_between_row_groups(tmp_path):
    table = pa.table({"item_id": [os.urandom(50).hex() for _ in range(1000)]})
    path = write(tmp_path, "a.parquet", parquet(table, row_group_size=100, use_dictionary=False))
    [source] = files.match([path])
    splits = list_splits([source], source.bytes // 4)
    assert [split.number for split in splits] == list(range(len(splits)))
    assert [split.start for split in splits] == [0, 2, 4, 6, 8]
    assert [split.stop for split in splits] == [2, 4, 6, 8, 10]
    assert len(list_splits([source], 1)) == 10
    assert list_splits([source], source.bytes) == [SourceSplit(path, Format.PARQUET)]


def test_damaged_parquet_is_one_split(tmp_path):
    path = write(tmp_path, "a.parquet", b"PAR1" * 1000)
    assert len(list_splits(files.match([path]), 1024)) == 1


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_headers(tmp_path, ending):
    names = ["item_id", "title", "colour"]
    assert file_columns(write(tmp_path, f"a.parquet{ending}", parquet(ROWS))) == names
    assert file_columns(write(tmp_path, f"a.csv{ending}", csv_text(ROWS))) == names
    with_mark = b'\xef\xbb\xbfitem_id,"the\ntitle"\r\n'
    assert file_columns(write(tmp_path, f"b.csv{ending}", with_mark)) == ["item_id", "the\ntitle"]
    assert file_columns(write(tmp_path, f"a.jsonl{ending}", json_lines(ROWS))) is None
    assert file_columns(write(tmp_path, f"c.csv{ending}", b"")) is None


def test_damaged_files_have_no_header(tmp_path):
    cut = gzip.compress(csv_text(ROWS))[:12]
    (tmp_path / "a.csv.gz").write_bytes(cut)
    assert file_columns(str(tmp_path / "a.csv.gz")) is None
    assert file_columns(write(tmp_path, "a.parquet", b"")) is None


def check(paths: list[str], columns: dict | None = None, parts: tuple = ("{title}",)) -> None:
    check_columns(files.match(paths), InputConfig(columns=columns or {}), TextConfig(parts=parts))


@pytest.mark.parametrize(("name", "writer"), [("a.parquet", parquet), ("a.csv.gz", csv_text)])
def test_columns_are_checked_before_anything_starts(tmp_path, name, writer):
    path = write(tmp_path, name, writer(ROWS))
    check([path])
    check([path], {"title": "colour"})
    message = (
        f"{path} has no column 'sku' for the item's id: its columns are item_id, title, colour. "
        "Set input.columns.item_id to the one that holds it"
    )
    with pytest.raises(ValueError) as error:
        check([path], {"item_id": "sku"})
    assert str(error.value) == message
    with pytest.raises(ValueError, match=r"no column 'name', which input.columns.title names"):
        check([path], {"title": "name"})
    with pytest.raises(ValueError, match=r"no column 'v2', which input.columns.embedding names"):
        check([path], {"embedding": ["colour", "v2"]})
    with pytest.raises(ValueError, match=r"none of the columns brand, description to make a text"):
        check([path], parts=("{brand} {description}",))


def test_an_embedding_is_content_enough(tmp_path):
    path = write(tmp_path, "a.parquet", parquet([{"item_id": "1", "embedding": [1.0]}]))
    check([path])
    with pytest.raises(ValueError, match="none of the columns title"):
        check([path], {"embedding": []})


def test_repeated_columns_are_refused(tmp_path):
    path = write(tmp_path, "a.csv", b"item_id,title,item_id\n1,t,2\n")
    with pytest.raises(ValueError, match="several columns named 'item_id'"):
        check([path])


def test_the_first_file_of_each_format_that_has_a_header_is_checked(tmp_path):
    write(tmp_path, "a.csv", b"")
    write(tmp_path, "b.csv", csv_text(ROWS))
    write(tmp_path, "c.jsonl", b"{}")
    write(tmp_path, "d.csv", b"other\n")
    check([str(tmp_path / "*")])
    bad = write(tmp_path, "e.parquet", parquet([{"other": 1}]))
    with pytest.raises(ValueError, match=bad):
        check([str(tmp_path / "*")])


def test_storage_errors_name_the_file(tmp_path):
    missing = str(tmp_path / "gone.jsonl")
    with (
        pytest.raises(FileNotFoundError, match=missing),
        open_stream(SourceSplit(missing, Format.JSON_LINES)),
    ):
        pass
    for name in ("gone.parquet", "gone.parquet.gz"):
        gone = str(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=gone), open_parquet(gone, name.endswith("gz")):
            pass
    with (
        pytest.raises(OSError, match=str(tmp_path)),
        open_stream(SourceSplit(str(tmp_path), Format.CSV)) as stream,
    ):
        stream.read()


def test_one_json_array_is_refused(tmp_path):
    check([write(tmp_path, "a.jsonl", b'["a"]\n{"item_id": "1"}\n')])
    for name, data in [("b.json", b"\xef\xbb\xbf [\n {\n"), ("b.json.gz", b'[{"item_id": "1"}]')]:
        path = write(tmp_path, name, data)
        with pytest.raises(ValueError, match=f"{path} is one JSON array, semid reads one object"):
            check([path])
