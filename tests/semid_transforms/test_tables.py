import apache_beam as beam
import pyarrow as pa
import pytest

from pipelines.beam_options import build_options
from semid_transforms import files
from semid_transforms.tables import ReadTables, WriteTable

SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("s", pa.string())])


def batch(numbers):
    return pa.record_batch([numbers, [f"s{n}" for n in numbers]], schema=SCHEMA)


@pytest.mark.parametrize("parts", [1, 4])
def test_tables_survive_a_pipeline(tmp_path, parts):
    batches = [batch(range(start, start + 10)) for start in range(0, 100, 10)] + [batch([])]
    for folder, order in (("one", batches), ("two", batches[::-1])):
        with beam.Pipeline(options=build_options([])) as root:
            (
                root
                | "Batches" >> beam.Create(order).with_output_types(pa.RecordBatch)
                | "Write" >> WriteTable(str(tmp_path / folder), "t", SCHEMA, ("n",), parts)
            )
    one, two = (files.list_files(str(tmp_path / folder)) for folder in ("one", "two"))
    assert 1 <= len(one) == len(two) <= parts
    assert [files.read_bytes(path) for path in one] == [files.read_bytes(path) for path in two]
    rows = [n for path in one for n in files.read_table(path)["n"].to_pylist()]
    assert sorted(rows) == list(range(100))

    copy = str(tmp_path / "copy")
    with beam.Pipeline(options=build_options([])) as root:
        (
            root
            | "Paths" >> beam.Create(one)
            | "Read" >> ReadTables(batch_rows=7)
            | "Write" >> WriteTable(copy, "t", SCHEMA, ("n",))
        )
    (path,) = files.list_files(copy)
    assert files.read_table(path)["n"].to_pylist() == list(range(100))
