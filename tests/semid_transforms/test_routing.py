import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from semid_transforms.routing import empty_batch, gather, split_by_shard


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
