import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ngrams import NgramFeature, ngram_ids
from models.sid import SidLayout
from models.trie_file import read_trie
from schemas.tables import CATALOG
from semid_transforms import files
from semid_transforms.catalog import read_categories
from semid_transforms.features import FeatureColumns
from semid_transforms.indexing import written_trie
from tests.pipelines import jobs

LAYOUT = SidLayout.fitting((4, 4, 4))
CODES = st.sets(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=20).map(sorted)


@given(CODES, st.sampled_from(["unigram", "bigram", "prefix_ngram"]))
def test_the_vocabulary_counts_what_the_columns_hold(codes, name):
    feature = NgramFeature(name)
    matrix = np.array(codes, np.int32)
    ids = ngram_ids(matrix, LAYOUT.codebook_sizes, feature)
    columns = FeatureColumns((feature,), LAYOUT.codebook_sizes)
    batches = columns.vocabulary(lambda: [matrix[:2], matrix[2:]])
    counted = [row for batch in batches for row in batch.to_pylist()]
    for row in counted:
        assert row["item_count"] == int((ids[:, row["position"]] == row["id"]).sum()) > 0
    assert len(counted) == sum(len(np.unique(column)) for column in ids.T)
    assert sum(row["item_count"] for row in counted) == ids.size


def item_part(path, sids):
    schema = pa.schema([("sid", pa.int64())])
    files.write_table(str(path), schema, [pa.record_batch([pa.array(sids)], schema=schema)])
    return str(path)


def test_a_trie_over_parts_is_the_trie_over_all_rows(tmp_path):
    sids = LAYOUT.pack(np.array([[0, 1, 2], [0, 1, 3], [2, 0, 0], [3, 3, 3]]))
    parts = [
        item_part(tmp_path / f"{n}.parquet", s) for n, s in enumerate((sids[:2], [], sids[2:]))
    ]
    path = str(tmp_path / "trie.safetensors")
    with written_trie(parts, path, LAYOUT, shared=False) as trie:
        assert trie.leaf_sids().tolist() == sids.tolist()
    assert read_trie(path).leaf_sids().tolist() == sids.tolist()
    again = [item_part(tmp_path / "again.parquet", sids[1:2]), parts[2]]
    for wrong in (parts[::-1], [parts[0], *again]):
        with pytest.raises(ValueError), written_trie(wrong, path, LAYOUT, shared=False):
            pass
        assert read_trie(path).leaf_sids().tolist() == sids.tolist(), "a failed build replaced it"
    with written_trie([parts[0], *again], path, LAYOUT, shared=True) as trie:
        assert trie.row_start.tolist() == [0, 1, 3, 4, 5]


def test_categories_come_in_the_order_of_the_items(tmp_path):
    rows = [
        {"item_id": name, "content_hash": b"." * 16, "category_path": path, "source": "s"}
        for name, path in (("a", ["A"]), ("b", None), ("c", ["C", "d"]))
    ]
    path = str(tmp_path / "catalog.parquet")
    files.write_table(path, CATALOG, [pa.RecordBatch.from_pylist(rows, CATALOG)])
    wanted = pa.chunked_array([["c", "a"], ["b"]])
    assert read_categories(wanted, [path]).to_pylist() == [["C", "d"], ["A"], None]
    bare = pa.RecordBatch.from_pylist([{**row, "category_path": None} for row in rows], CATALOG)
    files.write_table(path, CATALOG, [bare])
    assert read_categories(wanted, [path]) is None


def test_the_quality_table_counts_every_item(measured):
    metrics, items = measured
    base = [tuple(codes) for codes in items["base_codes"].to_pylist()]
    shared = sum(base.count(codes) > 1 for codes in base) / len(base)
    assert metrics["before"]["collisions"]["b"] == pytest.approx(shared)
    assert metrics["before"]["collisions"]["a"] == pytest.approx(1 - len(set(base)) / len(base))
    assert metrics["after"]["collisions"]["b"] == 0
    placements = items["placement"].to_pylist()
    assert metrics["placements"] == {
        name: placements.count(name) for name in ("nearest", "reassigned", "spilled", "suffixed")
    }
    contents = items["content_hash"].to_pylist()
    assert metrics["distinct_contents"] == len(set(contents))
    cosine = metrics["before"]["prefix_cosine"]
    assert cosine == sorted(cosine)
    assert [level["used_codes"] for level in metrics["before"]["levels"]] == [
        len({codes[level] for codes in base}) for level in range(3)
    ]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    rows = jobs.vector_rows({f"i{n}": n % 150 for n in range(200)})
    outcome = jobs.run(jobs.write_rows(folder / "c.parquet", rows), folder / "root")
    generation = folder / "root" / "generations" / outcome.manifest.generation
    metrics = json.loads((generation / "metrics.json").read_text())
    return metrics, jobs.table(folder / "root", "items")
