"""Stored embeddings are rewritten when it pays, and every live item keeps exactly one."""

import os

import numpy as np
import pyarrow as pa

from schemas.arrays import list_from_matrix
from schemas.manifest import FileEntry
from schemas.tables import embedding_schema
from semid_transforms import files
from semid_transforms.compaction import (
    MANY_SMALL_PARTS,
    STORED,
    WANTED,
    Bucket,
    plan_buckets,
    rows_to_keep,
    write_bucket,
)


def entry(name, rows):
    return FileEntry(f"embeddings/{name}", rows, 1, "")


def content(text):
    return text.encode().ljust(16, b".")


def wanted(**contents):
    return pa.RecordBatch.from_arrays(
        [
            pa.array(list(contents), pa.string()),
            pa.array([content(text) for text in contents.values()], pa.binary(16)),
        ],
        schema=WANTED,
    )


def test_parts_are_carried_until_too_many_rows_are_stale_or_too_many_parts_small():
    parts = [entry("a", 800), entry("b", 200)]
    assert plan_buckets(parts, "gen", 400, needed=750, max_stale=0.25) is None
    buckets = plan_buckets(parts, "gen", 400, needed=749, max_stale=0.25)
    assert [(bucket.name, len(bucket.paths)) for bucket in buckets] == [("a", 1), ("b", 1)]
    small = [entry(f"d{n:02d}", 30) for n in range(MANY_SMALL_PARTS)]
    assert plan_buckets([*parts, *small], "gen", 400, 1480, 0.25) is None
    small.append(entry("d99", 30))
    buckets = plan_buckets([*parts, *small], "gen", 400, 1510, 0.25)
    assert [(bucket.name, len(bucket.paths)) for bucket in buckets] == [
        ("a", 1),
        ("b", 1),
        ("d00", 13),
        ("d13", 4),
    ]
    assert plan_buckets([], "gen", 400, 0, 0.25) is None


def test_rows_of_changed_gone_renewed_and_repeated_items_go():
    places = [("a", "x", 0, 0), ("b", "old", 0, 1), ("gone", "x", 0, 2), ("c", "z", 1, 0)]
    places += [("a", "x", 1, 1), ("d", "w", 1, 2), ("b", "new", 1, 3)]
    names, texts, parts, rows = zip(*places, strict=True)
    stored = pa.RecordBatch.from_arrays(
        [
            pa.array(names),
            pa.array([content(text) for text in texts], pa.binary(16)),
            pa.array([0] * len(names), pa.int64()),
            pa.array(parts, pa.int64()),
            pa.array(rows, pa.int64()),
        ],
        schema=STORED,
    )
    live = wanted(a="x", b="new", c="z", d="w", e="v")
    kept = rows_to_keep(stored, live, wanted(d="w", e="v"))
    assert list(zip(*(kept[n].to_pylist() for n in ("item_id", "part", "row")), strict=True)) == [
        ("a", 0, 0),
        ("c", 1, 0),
        ("b", 1, 3),
    ]
    assert rows_to_keep(stored, live.slice(0, 0), live).num_rows == 0


def test_a_bucket_is_linked_merged_or_left_out(tmp_path):
    schema = embedding_schema()
    paths = []
    for number, names in enumerate((["b", "a"], ["c"])):
        vectors = np.arange(len(names) * 2, dtype=np.float32).reshape(-1, 2) + 10 * number
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array(names),
                pa.array([content(name) for name in names], pa.binary(16)),
                list_from_matrix(vectors, pa.float32()),
            ],
            schema=schema,
        )
        paths.append(str(tmp_path / f"{number}.parquet"))
        files.write_table(paths[-1], schema, [batch])
    out = str(tmp_path / "out")
    whole = write_bucket(Bucket("one", (paths[0],)), [np.arange(2)], out)
    assert os.path.samefile(whole, paths[0])
    merged = write_bucket(Bucket("all", tuple(paths)), [np.array([1]), np.array([0])], out)
    assert files.read_table(merged).select(["item_id", "embedding"]).to_pylist() == [
        {"item_id": "a", "embedding": [2.0, 3.0]},
        {"item_id": "c", "embedding": [10.0, 11.0]},
    ]
    assert write_bucket(Bucket("none", (paths[0],)), [np.empty(0, np.int64)], out) is None
