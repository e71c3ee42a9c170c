import pyarrow as pa
import pytest

from semid_transforms import files

SCHEMA = pa.schema([("name", pa.string()), ("codes", pa.list_(pa.int32())), ("n", pa.int64())])


def written(path, rows=1000):
    columns = [[f"item {n}" for n in range(rows)], [[n, 7] for n in range(rows)], [*range(rows)]]
    batch = pa.record_batch(columns, schema=SCHEMA)
    assert files.write_table(path, SCHEMA, [batch.slice(0, 10), batch.slice(10)]) == rows
    return pa.Table.from_batches([batch])


@pytest.mark.parametrize("rows", [0, 10, 1000])
def test_what_was_written_is_read(tmp_path, rows):
    path = str(tmp_path / "rows.arrow")
    table = written(path, rows)
    assert files.read_table(path).equals(table)
    assert files.read_table(path, ["n", "name"]).equals(table.select(["name", "n"]))
    assert files.read_table(path, []).num_columns == 0
    with pytest.raises(ValueError, match="nope"):
        files.read_table(path, ["nope"])


def test_a_file_cut_short_is_no_table(tmp_path):
    path = tmp_path / "rows.arrow"
    written(str(path))
    content = path.read_bytes()
    for size in (0, 5, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"rows\.arrow"):
            files.read_table(str(path))
