import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ngrams import NgramFeature, ngram_ids
from models.sid import SidLayout
from models.trie_build import build_trie
from models.trie_file import read_trie
from schemas.tables import CATALOG, nodes_schema
from semid_transforms import files
from semid_transforms.catalog import read_categories
from semid_transforms.features import FeatureColumns
from semid_transforms.indexing import describe_nodes, write_trie_file
from tests.pipelines import jobs

LAYOUT = SidLayout.fitting((4, 4, 4))
CODES = st.sets(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=20).map(sorted)
PATHS = st.sampled_from([None, ["A"], ["A", "x"], ["A", "y"], ["B", "x"], ["B", "x", "deep"]])


def majority(paths, depth):
    """The most frequent path of at most `depth` names, ties to the first in sorted order."""
    cut = ["\x1f".join(path[:depth]) for path in paths if path]
    best = sorted(set(cut), key=lambda name: (-cut.count(name), name))
    return best[0].split("\x1f")[-1] if best else None


@given(CODES, st.data())
def test_nodes_are_described_as_counting_by_hand_would(codes, data):
    paths = [data.draw(PATHS) for _ in codes]
    errors = [data.draw(st.integers(0, 3)) for _ in codes]
    items = pa.table(
        {
            "item_id": [f"i{n}" for n in range(len(codes))],
            "quantization_error": pa.array(errors, pa.float32()),
        }
    )
    trie = build_trie([LAYOUT.pack(np.array(codes))], LAYOUT)
    batches = list(
        describe_nodes(
            trie, items, pa.array(paths, pa.list_(pa.string())), pa.array(["t"] * len(codes))
        )
    )
    table = pa.Table.from_batches(batches, nodes_schema(pa.int64()))
    expected = []
    for depth in (1, 2, 3):
        for prefix in sorted({code[:depth] for code in codes}):
            rows = [n for n, code in enumerate(codes) if code[:depth] == prefix]
            packed = 0
            for code in prefix:
                packed = packed << 2 | code
            expected.append(
                {
                    "depth": depth,
                    "codes": list(prefix),
                    "prefix": packed,
                    "item_count": len(rows),
                    "label": majority([paths[n] for n in rows], depth),
                    "exemplar_item_id": f"i{min(rows, key=lambda n: (errors[n], n))}",
                }
            )
    assert table.to_pylist() == expected


def test_nodes_without_categories_are_named_by_the_words_of_their_titles():
    codes = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [2, 0, 0], [2, 0, 1], [2, 1, 0]]
    titles = ["wok pan", "wok lid", "wok", "tent red", "tent", "tent blue"]
    items = pa.table({"item_id": titles, "quantization_error": pa.array([0.5] * 6, pa.float32())})
    trie = build_trie([LAYOUT.pack(np.array(codes))], LAYOUT)
    first = next(describe_nodes(trie, items, None, pa.array(titles)))
    names = first["label"].to_pylist()
    assert ["wok" in names[0], "tent" in names[1]] == [True, True]
    assert "tent" not in names[0] and "wok" not in names[1]


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
    write_trie_file(parts, path, LAYOUT, False)
    assert read_trie(path).leaf_sids().tolist() == sids.tolist()
    with pytest.raises(ValueError):
        write_trie_file(parts[::-1], path, LAYOUT, False)
    assert read_trie(path).leaf_sids().tolist() == sids.tolist(), "a failed build replaced the trie"


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
