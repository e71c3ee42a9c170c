import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.config import RqkmeansConfig
from models.rqkmeans import fit_rqkmeans
from models.sid import SidLayout
from schemas.arrays import fixed_binary, list_from_matrix, matrix_from_list
from schemas.tables import coded_schema, parent_schema
from semid_transforms.quantizing import (
    HISTOGRAM,
    SumHistograms,
    assign_codes,
    count_prefixes,
    count_sids,
    histogram_length,
    retired_rows,
)

LAYOUT = SidLayout.fitting((16, 16, 16))
CODES = st.lists(st.tuples(*[st.integers(0, 15)] * 3), max_size=30)


def histogram(codes):
    return count_sids(LAYOUT.pack(np.array(codes, np.int32).reshape(-1, 3)), LAYOUT)


@given(st.lists(CODES, max_size=5), st.randoms())
def test_adding_histograms_up_obeys_the_laws_of_a_combine_function(parts, random):
    """Any grouping and order of the parts gives the histogram of all rows together."""
    combine = SumHistograms()
    expected = histogram([row for part in parts for row in part])
    batches = [histogram(part) for part in parts]

    one = combine.create_accumulator()
    for batch in batches:
        one = combine.add_input(one, batch)
    assert combine.extract_output(one).equals(expected)

    random.shuffle(batches)
    accumulators = [combine.add_input(combine.create_accumulator(), b) for b in batches]
    cut = random.randint(0, len(accumulators))
    halves = [
        combine.merge_accumulators([combine.create_accumulator(), *half])
        for half in (accumulators[:cut], accumulators[cut:])
    ]
    merged = combine.extract_output(combine.merge_accumulators(halves))
    assert merged.equals(expected)
    assert merged.schema.equals(HISTOGRAM)
    assert sum(merged["rows"].to_pylist()) == sum(map(len, parts))


def test_a_histogram_counts_prefixes_that_shards_may_be_cut_between():
    assert histogram_length(LAYOUT) == 1
    assert histogram_length(SidLayout.fitting((256,) * 2)) == 0
    assert histogram_length(SidLayout.fitting((256,) * 8)) == 2
    assert histogram_length(SidLayout.fitting((8192,) * 4)) == 1
    counted = histogram([(3, 1, 1), (3, 9, 0), (0, 0, 0)])
    assert counted.to_pylist() == [{"prefix": 0, "rows": 1}, {"prefix": 3, "rows": 2}]


def embedded(count, dimensions=6):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, dimensions)).astype(np.float32)
    return vectors, pa.record_batch(
        {
            "item_id": [f"i{n}" for n in range(count)],
            "content_hash": fixed_binary(rng.integers(0, 255, (count, 16)), 16),
            "embedding": list_from_matrix(vectors, pa.float32()),
            "change": ["new"] * count,
            "sid": pa.nulls(count, pa.int64()),
            "base_sid": pa.nulls(count, pa.int64()),
            "part": ["part-000001-00000.parquet"] * count,
        }
    )


@pytest.fixture(scope="module")
def quantizer():
    config = RqkmeansConfig(codebook_sizes=(16, 16, 16), iterations=5)
    return fit_rqkmeans(config, embedded(200)[0])


def test_codes_come_with_their_error_and_their_place(quantizer):
    vectors, batch = embedded(50)
    coded = assign_codes(batch, quantizer)
    assert coded.schema.equals(coded_schema(pa.int64()))
    codes = quantizer.encode(vectors)
    assert matrix_from_list(coded["base_codes"], 3).tolist() == codes.tolist()
    error = np.square(vectors - quantizer.decode(codes)).sum(axis=1)
    np.testing.assert_allclose(coded["quantization_error"].to_numpy(), error, rtol=2**-8)
    assert coded["part_row"].to_pylist() == list(range(50))
    counted = count_prefixes(coded, LAYOUT)
    assert dict(zip(*counted.to_pydict().values(), strict=True)) == {
        int(code): int((codes[:, 0] == code).sum()) for code in np.unique(codes[:, 0])
    }


def test_other_dimensions_are_refused(quantizer):
    with pytest.raises(ValueError, match="row 0 has 5 values, expected 6"):
        assign_codes(embedded(3, 5)[1], quantizer)


def test_a_retired_item_keeps_what_its_reservation_needs():
    parent = pa.record_batch(
        [["gone"], pa.array([b"h" * 16], pa.binary(16)), [77], [64], [None]],
        schema=parent_schema(pa.int64()),
    )
    (row,) = retired_rows(parent).to_pylist()
    assert (row["change"], row["sid"], row["base_sid"]) == ("retired", 77, 64)
    assert row["base_codes"] is None and row["part"] is None
