import apache_beam as beam
import pyarrow as pa
import pytest

from semid_transforms.coders import RecordBatchCoder, handing_on
from tests.pipelines import jobs

CODER = RecordBatchCoder()


def wide(rows):
    return pa.record_batch(
        {
            "item_id": [f"i{n}" for n in range(rows)],
            "path": [[f"a{n % 3}", None] if n % 4 else None for n in range(rows)],
            "embedding": pa.array([[float(n)] * 384 for n in range(rows)], pa.list_(pa.float32())),
        }
    )


def test_a_batch_comes_back_with_rows_schema_and_metadata():
    batch = wide(10)
    schema = batch.schema.with_metadata({"of": "meta"})
    batch = pa.RecordBatch.from_arrays(batch.columns, schema=schema)
    again = CODER.decode(CODER.encode(batch))
    assert again.equals(batch)
    assert again.schema.equals(schema, check_metadata=True)


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches_come_back(rows):
    batch = wide(3).slice(0, rows)
    assert CODER.decode(CODER.encode(batch)).equals(batch)


def test_a_slice_does_not_drag_its_parent_along():
    batch = wide(5000)
    few = batch.slice(100, 10)
    assert len(CODER.encode(few)) < 2 * few.take(pa.array(range(10))).nbytes + 4096
    assert len(CODER.encode(few)) < len(CODER.encode(batch)) / 100
    assert CODER.decode(CODER.encode(few)).equals(few)


def test_equal_batches_built_equally_have_equal_bytes():
    rows = pa.array([3, 1, 2])
    assert CODER.encode(wide(9).take(rows)) == CODER.encode(wide(20).take(rows))


def test_who_only_hands_batches_on_does_not_decode_them():
    encoded = CODER.encode(wide(9))
    with handing_on():
        kept = CODER.decode(encoded)
        assert kept is encoded
        assert CODER.encode(kept) is encoded
    assert CODER.decode(encoded).equals(wide(9))


def test_it_is_the_registered_coder_and_never_a_key():
    assert isinstance(beam.coders.registry.get_coder(pa.RecordBatch), RecordBatchCoder)
    assert not CODER.is_deterministic()


class _Inputs(beam.pipeline.PipelineVisitor):
    """Collects the coder of the values every GroupByKey of a pipeline groups."""

    def __init__(self):
        self.coders = {}

    def enter_composite_transform(self, node):
        self.visit_transform(node)

    def visit_transform(self, node):
        if isinstance(node.transform, beam.GroupByKey):
            (values,) = node.inputs
            coder = beam.coders.registry.get_coder(values.element_type)
            self.coders[node.full_label] = coder.value_coder()


def test_every_shuffle_of_the_job_moves_arrow(tmp_path, monkeypatch):
    """Only lists of paths and one histogram of counts go any other way."""
    found = {}
    build = beam.Pipeline.run

    def run(self, *arguments, **options):
        visitor = _Inputs()
        self.visit(visitor)
        found.update(visitor.coders)
        return build(self, *arguments, **options)

    monkeypatch.setattr(beam.Pipeline, "run", run)
    rows = jobs.vector_rows({f"i{n}": n % 20 for n in range(40)})
    jobs.run(jobs.write_rows(tmp_path / "c.parquet", rows), tmp_path / "root")
    tables = {label for label, coder in found.items() if "RecordBatchCoder" in repr(coder)}
    stages = ("GroupByItemShard", "GroupBySplit", "GroupBySidShard", "GroupByPart", "GroupLatents")
    for stage in (*stages, "WriteRejects/Group", "WriteCounts/Group"):
        assert any(stage in label for label in tables), (stage, found)
    others = {label for label in found if label not in tables}
    assert all(label.endswith("/Spread") or "SumHistograms" in label for label in others), others
