import itertools
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semid_transforms import files

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("s", pa.string())])


def batch(start, stop):
    numbers = range(start, stop)
    return pa.record_batch([list(numbers), [f"s{n}" for n in numbers]], schema=SCHEMA)


def everything(folder):
    return sorted(
        os.path.relpath(os.path.join(at, f), folder)
        for at, _, names in os.walk(folder)
        for f in names
    )


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = str(tmp_path / "folder" / "file")
    with pytest.raises(RuntimeError, match="in the middle"), files.atomic_writer(path) as file:
        file.write(b"half")
        assert not os.path.exists(path)
        raise RuntimeError("in the middle")
    assert everything(tmp_path) == []
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.atomic_writer(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert files.read_bytes(path) == b"old"
    assert everything(tmp_path) == ["folder/file"]


def test_a_table_that_does_not_fit_its_schema_leaves_nothing(tmp_path):
    path = str(tmp_path / "part.parquet")
    wrong = pa.record_batch({"n": [1], "s": [2]})
    with pytest.raises(TypeError, match="expected: n: int64 not null, s: string"):
        files.write_table(path, SCHEMA, [batch(0, 3), wrong])
    assert everything(tmp_path) == []


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.sampled_from([7, 32, 1000]))
def test_a_table_does_not_show_how_it_was_cut(tmp_path_factory, cuts, row_group_rows):
    folder = tmp_path_factory.mktemp("tables")
    bounds = [0, *[sum(cuts[: n + 1]) for n in range(len(cuts))]]
    total = bounds[-1]
    pieces = [batch(a, b) for a, b in itertools.pairwise(bounds)]
    whole, cut = str(folder / "whole"), str(folder / "cut")
    assert files.write_table(whole, SCHEMA, [batch(0, total)], row_group_rows) == total
    assert files.write_table(cut, SCHEMA, iter(pieces), row_group_rows) == total
    assert files.read_bytes(whole) == files.read_bytes(cut)
    metadata = pq.read_metadata(cut)
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert sum(sizes) == total
    assert all(size == row_group_rows for size in sizes[:-1])
    assert files.read_table(cut).equals(pa.table(batch(0, total)))


def test_a_table_without_rows_is_a_table(tmp_path):
    path = str(tmp_path / "empty.parquet")
    assert files.write_table(path, SCHEMA, []) == 0
    assert files.read_table(path).schema.equals(SCHEMA)


def test_patterns_find_every_file_once_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.jsonl").mkdir()
    found = files.match([str(tmp_path / "*.jsonl"), str(tmp_path / "a.*"), str(tmp_path / "c.csv")])
    assert [os.path.basename(file.path) for file in found] == ["a.jsonl", "b.jsonl", "c.csv"]
    assert [file.bytes for file in found] == [7, 7, 5]
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*.parquet"):
        files.match([str(tmp_path / "*.jsonl"), str(tmp_path / "*.parquet")])
    before = found[0].version
    (tmp_path / "a.jsonl").write_text("something longer")
    assert files.match([str(tmp_path / "a.jsonl")])[0].version != before


def test_listing_hides_what_a_dead_writer_left(tmp_path):
    for name in ("part-1.parquet", ".part-2.parquet.0123.tmp", "part-0.parquet", "notes.txt"):
        (tmp_path / name).write_text("")
    names = [os.path.basename(path) for path in files.list_files(str(tmp_path), ".parquet")]
    assert names == ["part-0.parquet", "part-1.parquet"]
    assert files.list_files(str(tmp_path / "nowhere")) == []


def test_a_copy_is_a_link_and_replaces_what_was_there(tmp_path):
    source, target = str(tmp_path / "source"), str(tmp_path / "new" / "target")
    files.write_bytes(source, b"content")
    files.copy(source, target)
    assert files.is_same_file(source, target)
    files.write_bytes(target, b"other")
    assert files.read_bytes(source) == b"content", "writing a copy must not reach the original"
    files.copy(source, target)
    assert files.read_bytes(target) == b"content"


def test_a_copy_without_links_has_the_bytes(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    files.write_bytes(source, os.urandom(100_000))
    monkeypatch.setattr(os, "link", refuse)
    files.copy(source, target)
    assert not files.is_same_file(source, target)
    assert files.sha256(source) == files.sha256(target)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all, but long enough to look"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, data):
    path = tmp_path / "part.parquet"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"part.parquet is not a readable Parquet file"):
        files.read_table(str(path))


def test_removing_a_tree_that_is_not_there_is_nothing(tmp_path):
    files.remove_tree(str(tmp_path / "nowhere"))
    files.write_bytes(str(tmp_path / "a" / "b"), b"")
    files.remove_tree(str(tmp_path / "a"))
    assert everything(tmp_path) == []


def test_vectors_are_stored_as_they_are_and_all_else_is_compressed(tmp_path):
    schema = pa.schema(
        [("item_id", pa.string()), ("codes", pa.list_(pa.int32())), ("v", pa.list_(pa.float32()))]
    )
    batch = pa.RecordBatch.from_pylist([{"item_id": "a", "codes": [1], "v": [0.5]}], schema)
    path = str(tmp_path / "t.parquet")
    files.write_table(path, schema, [batch])
    group = pq.read_metadata(path).row_group(0)
    found = {
        (column := group.column(number)).path_in_schema: (column.compression, column.encodings)
        for number in range(group.num_columns)
    }
    assert [compression for compression, _ in found.values()] == ["ZSTD", "ZSTD", "UNCOMPRESSED"]
    assert "RLE_DICTIONARY" in found["codes.list.element"][1]
    assert "RLE_DICTIONARY" not in found["v.list.element"][1]
    assert files.read_table(path).equals(pa.Table.from_batches([batch]))
