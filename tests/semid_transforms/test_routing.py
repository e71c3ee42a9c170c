import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from semid_transforms import routing
from semid_transforms.routing import Router, empty_batch, gather, split_by_shard


@given(st.lists(st.integers(0, 5), max_size=40))
def test_every_row_goes_to_its_shard_once_and_in_order(shards):
    batch = pa.record_batch({"n": pa.array(range(len(shards)), pa.int64())})
    pieces = list(split_by_shard(batch, np.array(shards, np.int64)))
    assert [shard for shard, _ in pieces] == sorted(set(shards))
    for shard, piece in pieces:
        assert piece["n"].to_pylist() == [n for n, other in enumerate(shards) if other == shard]
        assert piece.nbytes <= 8 * piece.num_rows + 8, "a piece must not drag its batch along"
    assert gather([piece for _, piece in pieces], batch.schema).num_rows == len(shards)


def test_gathering_nothing_gives_the_schema():
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False)])
    assert gather([], schema).equals(empty_batch(schema))
    assert gather([], schema).schema.equals(schema)


def test_a_router_gathers_small_batches_and_loses_no_row():
    class ByParity(Router):
        def route(self, batch):
            return batch, batch["n"].to_numpy() % 2

    batches = [pa.record_batch({"n": [n, n + 1, n + 1]}) for n in range(0, 40, 2)]

    def check(pieces):
        assert len(pieces) == 2  # one per shard, not one per batch
        found = {shard: batch["n"].to_pylist() for shard, batch in pieces}
        assert found == {0: list(range(0, 40, 2)), 1: [n for n in range(1, 41, 2) for _ in "ab"]}

    with beam.Pipeline("FnApiRunner") as root:
        routed = (
            root
            | beam.Create([batches])
            | beam.FlatMap(lambda some: some).with_output_types(pa.RecordBatch)
            | beam.ParDo(ByParity()).with_output_types(tuple[int, pa.RecordBatch])
        )
        assert_that(routed, check)


def test_a_router_does_not_gather_without_end(monkeypatch):
    class ToOne(Router):
        def route(self, batch):
            return batch, np.zeros(batch.num_rows, np.int64)

    monkeypatch.setattr(routing, "_GATHERED_BYTES", 64)
    router = ToOne()
    router.start_bundle()
    sent = [len(list(router.process(pa.record_batch({"n": [1, 2, 3]})))) for _ in range(6)]
    assert sent == [0, 0, 1, 0, 0, 1]
    assert list(router.finish_bundle()) == []
