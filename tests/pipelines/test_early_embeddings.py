"""Embeddings that a catalog brings are stored while it is read for the first time."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import embed
from semid_transforms import collecting, files
from tests.pipelines import jobs

SPLITS = {"shards": {"split_bytes": 1 << 14, "batch_rows": 70}, "input": {"max_reject_share": 0.5}}


def refuse(*_, **__):
    raise AssertionError("the split was read a second time")


@pytest.fixture
def two_ways(tmp_path, monkeypatch):
    """Runs a catalog with embeddings stored early and with them read again; returns both roots."""

    def run(catalog):
        late, early = tmp_path / "late", tmp_path / "early"
        with monkeypatch.context() as patch:
            patch.setattr(embed, "stores_early", lambda _: False)
            jobs.run(catalog, late, SPLITS)
        monkeypatch.setattr(collecting, "read_vectors", refuse)
        jobs.run(catalog, early, SPLITS)
        return late, early

    return run


def same(late, early):
    """True when two roots hold the same bytes, also of the embeddings."""
    jobs.assert_sound(early)
    return jobs.fingerprints(late) == jobs.fingerprints(early)


def test_nothing_is_read_twice_and_the_bytes_are_the_same(two_ways, tmp_path):
    rows = jobs.vector_rows({f"i{n:03}": n // 2 for n in range(400)})
    rows[7]["embedding"] = [0.0] * jobs.DIMENSIONS
    rows[8]["embedding"] = None
    rows[9]["item_id"] = None
    late, early = two_ways(jobs.write_rows(tmp_path / "c" / "a.parquet", rows))
    assert same(late, early)
    assert jobs.table(early, "embeddings").num_rows == 397


def test_rows_that_lose_leave_no_embedding(two_ways, tmp_path):
    rows = jobs.vector_rows({f"i{n:03}": n for n in range(300)})
    other = jobs.vector_rows({f"i{n:03}": -n for n in range(0, 300, 7)})
    twice = [rows[5], rows[5], rows[120]]
    for row in rows:
        row["updated_at"] = "2026-02-01T00:00:00Z"
    for row in other:
        row["updated_at"] = "2026-01-01T00:00:00Z"
    # The second file loses every row, the first some.
    jobs.write_rows(tmp_path / "c" / "a.parquet", [*rows, *twice, *other[:20]])
    jobs.write_rows(tmp_path / "c" / "b.parquet", other)
    late, early = two_ways(str(tmp_path / "c" / "*.parquet"))
    assert same(late, early)
    stored = jobs.table(early, "embeddings")
    assert sorted(stored["item_id"].to_pylist()) == [f"i{n:03}" for n in range(300)]
    # The embedding of an item is that of the row it kept.
    kept = {row["item_id"]: row["embedding"] for row in rows}
    for row in stored.to_pylist():
        vector = np.array(kept[row["item_id"]])
        np.testing.assert_allclose(row["embedding"], vector / np.linalg.norm(vector), atol=1e-6)


def test_parts_of_a_broken_first_attempt_are_made_anew(tmp_path, monkeypatch):
    rows = jobs.vector_rows({f"i{n:03}": n for n in range(300)})
    catalog = jobs.write_rows(tmp_path / "c.parquet", rows)
    write = files.write_table

    def break_late(path, schema, *others):
        if "/catalog/" in path:
            raise OSError(28, "no space left on device")
        return write(path, schema, *others)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_table", break_late)
        with pytest.raises(Exception, match="no space left"):
            jobs.run(catalog, tmp_path / "root", SPLITS)
    left = list((tmp_path / "root").rglob("embeddings/*.parquet"))
    assert left
    left[0].write_bytes(b"half")
    jobs.run(catalog, tmp_path / "root", SPLITS)
    jobs.assert_sound(tmp_path / "root")
    jobs.run(catalog, tmp_path / "other", SPLITS)
    assert jobs.fingerprints(tmp_path / "root") == jobs.fingerprints(tmp_path / "other")


def test_a_second_night_reads_again_only_what_is_new(tmp_path, monkeypatch):
    rows = jobs.vector_rows({f"i{n:03}": n for n in range(300)})
    root = tmp_path / "root"
    jobs.run(jobs.write_rows(tmp_path / "c.parquet", rows[:-1]), root, SPLITS)
    asked = []
    read = collecting.read_vectors
    monkeypatch.setattr(
        collecting, "read_vectors", lambda *given: asked.append(len(given[1])) or read(*given)
    )
    outcome = jobs.run(jobs.write_rows(tmp_path / "c.parquet", rows), root, SPLITS)
    jobs.assert_sound(root)
    assert asked == [1]
    folder = root / "generations" / outcome.manifest.generation
    parts = outcome.manifest.table("embeddings")
    assert min(pq.read_metadata(folder / part.path).num_rows for part in parts) == 1
