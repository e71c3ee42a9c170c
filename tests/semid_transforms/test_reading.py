import collections
import gzip

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline as Pipeline
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import InputConfig, ShardConfig, TextConfig
from schemas.rejects import RejectReason
from schemas.tables import PARSED, REJECTS, SOURCE_COUNTS
from semid_transforms import files
from semid_transforms.embedding_columns import EmbeddingSpec
from semid_transforms.reading import CatalogReader, ReadCatalog, open_catalog
from tests.semid_transforms.catalogs import (
    CONTENT,
    DELIMITER,
    INPUT,
    WRITERS,
    Read,
    json_lines,
    spec,
    write,
)

MESSY = [
    "plain",
    "emoji 👩‍👩‍👧 🇩🇪",
    "עברית \u200fوعربي",
    "nul \x00 byte",
    "<p>Fish &amp; <b>Chips</b></p>",
    "a < b and c > d",
    'quotes "and" commas, and\nlines\r\n',
    "e\u0301",
    "",
]


def messy_rows(number: int) -> list[dict]:
    return [
        {
            "item_id": f"{i}/é\n{i % 7}",
            "title": MESSY[i % len(MESSY)],
            "description": MESSY[(i * 5 + 4) % len(MESSY)] * (i % 3),
            "category_path": [["Home", "Bed & Bath", f"c{i % 4}"], [], ["  "]][i % 3],
            "popularity": [1.5, None, 3][i % 3],
            "updated_at": ["2024-01-02T03:04:05+01:00", None][i % 2],
        }
        for i in range(number)
    ]


def test_every_format_gives_the_same_rows(tmp_path):
    rows = messy_rows(500)
    reference = None
    for ending, writer in WRITERS.items():
        for suffix in ("", ".gz"):
            result = Read(write(tmp_path, f"items{ending}{suffix}", writer(rows)))
            reference = reference or result
            assert result.content == reference.content
            assert [r["item_id"] for r in result.rejects] == [
                r["item_id"] for r in reference.rejects
            ]
            assert result.rows == 500
    assert 400 < len(reference.content) < 500
    assert set(reference.reasons) == {"no_text"}


@pytest.mark.parametrize("ending", [e + z for e in WRITERS for z in ("", ".gz")])
def test_files_are_read_through_beam_where_they_are_not_local(tmp_path, monkeypatch, ending):
    rows = messy_rows(100)
    path = write(tmp_path, f"items{ending}", WRITERS[ending.removesuffix(".gz")](rows))
    shards = ShardConfig(split_bytes=1 << 10)
    local = Read(path, shards=shards)
    monkeypatch.setattr(files, "is_local", lambda _: False)
    remote = Read(path, shards=shards)
    assert remote.content == local.content
    assert remote.rejects == local.rejects


BAD_LINES = [
    b"{",
    b"[]",
    b'{"item_id": "x", "title": "\xff"}',
    b'{"title": "t"}',
    b"",
    b'{"item_id": 5}',
]


@settings(deadline=None, max_examples=20)
@given(
    bad=st.lists(st.tuples(st.integers(0, 150), st.sampled_from(BAD_LINES)), max_size=10),
    shards=st.builds(
        ShardConfig,
        batch_rows=st.integers(1, 300),
        batch_bytes=st.integers(1 << 16, 1 << 20),
        split_bytes=st.integers(1 << 10, 1 << 16),
    ),
)
def test_rows_do_not_depend_on_batches_or_splits(tmp_path_factory, bad, shards):
    folder = tmp_path_factory.mktemp("sizes")
    lines = json_lines(messy_rows(150)).splitlines()
    for position, line in bad:
        lines.insert(position, line)
    path = write(folder, "items.jsonl", b"\n".join(lines))
    whole, cut = Read(path), Read(path, shards=shards)
    assert cut.content == whole.content
    assert cut.rows == whole.rows
    reasons = [(r["reason"], r["item_id"], r["payload"]) for r in whole.rejects]
    found = [(r["reason"], r["item_id"], r["payload"]) for r in cut.rejects]
    assert collections.Counter(found) == collections.Counter(reasons)
    positions = list(zip(*(cut.parsed[name].to_pylist() for name in ("split", "row")), strict=True))
    assert positions == sorted(set(positions))


def hostile_catalog(folder) -> list[str]:
    """Every way a row can be refused by reading, in every format."""
    good = [{"item_id": f"g{i}", "title": "t", "embedding": [1.0, float(i)]} for i in range(30)]
    lines = json_lines(good).splitlines()
    bad = [
        b"{",
        b'{"item_id": "u", "title": "\xff"}',
        b'{"item_id": "f", "title": {}}',
        b'{"title": "t", "embedding": [1, 2]}',
        b'{"item_id": "n"}',
        b'{"item_id": "e", "title": "t", "embedding": [1, 2, 3]}',
        b"x" * 5000,
    ]
    cut = gzip.compress(b"\n".join(lines * 50))
    (folder / "cut.jsonl.gz").write_bytes(cut[: len(cut) // 2])
    (folder / "tail.csv.gz").write_bytes(gzip.compress(b"item_id,title\n1,t\n") + b"tail")
    return [
        write(folder, "bad.jsonl", b"\n".join(lines + bad)),
        write(folder, "bad.csv", b'item_id,title\n1,t\n2\n3,"t\n,t\n4,\xff\n5,\n'),
        write(folder, "bad.parquet", b"PAR1"),
        write(folder, "empty.jsonl", b""),
        write(folder, "empty.csv", b""),
        str(folder / "cut.jsonl.gz"),
        str(folder / "tail.csv.gz"),
    ]


LIMITED = InputConfig(category_delimiter=DELIMITER, max_row_bytes=4096)


def test_all_reasons_and_no_row_lost(tmp_path):
    paths = hostile_catalog(tmp_path)
    result = Read(paths, LIMITED)
    assert set(result.reasons) == {
        *map(str, RejectReason),
    } - {"duplicate_id", "bad_embedding"}
    assert result.reasons.count("damaged_file") == 3
    embedding = spec([paths[0]], LIMITED)
    assert embedding.embedding_dim == 2
    with_vectors = Read(paths, LIMITED, embedding=embedding)
    assert "bad_embedding" in with_vectors.reasons
    assert with_vectors.rows == result.rows


SCHEMAS = {"parsed": PARSED, "rejected": REJECTS, "counts": SOURCE_COUNTS}


def collect(reader: CatalogReader, folder) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """Runs the transform; returns its three tables, by way of Parquet, and the counters."""
    root = Pipeline(runner="FnApiRunner")
    outputs = root | "ReadCatalog" >> ReadCatalog(reader)
    for name, schema in SCHEMAS.items():
        assert outputs[name].element_type is pa.RecordBatch
        path = str(folder / f"{name}.parquet")
        batches = outputs[name] | f"List{name}" >> beam.combiners.ToList()
        _ = batches | f"Write{name}" >> beam.Map(
            lambda batches, path=path, schema=schema: files.write_table(path, schema, batches)
        )
    result = root.run()
    result.wait_until_finish()
    counters = result.metrics().query()["counters"]
    tables = {name: files.read_table(str(folder / f"{name}.parquet")) for name in SCHEMAS}
    return tables, {
        c.key.metric.name: c.committed for c in counters if c.key.metric.namespace == "read"
    }


@pytest.mark.parametrize("batch_rows", [7, 8192])
def test_the_pipeline_gives_what_the_function_gives(tmp_path, batch_rows):
    paths = hostile_catalog(tmp_path)
    shards = ShardConfig(batch_rows=batch_rows, split_bytes=1024)
    reader = open_catalog(files.match(paths), LIMITED, TextConfig(), shards)
    assert (reader.embedding_dim, reader.embedding_columns) == (None, ())
    found, counters = collect(reader, tmp_path)
    direct = Read(paths, LIMITED, shards=ShardConfig(split_bytes=1024))
    keys = [("source", "ascending"), ("split", "ascending"), ("row", "ascending")]
    assert found["parsed"].sort_by(keys).equals(direct.parsed.sort_by(keys))
    order = [(name, "ascending") for name in ("source", "detail")]
    expected = pa.Table.from_pylist(direct.rejects, REJECTS).sort_by(order)
    assert found["rejected"].sort_by(order).equals(expected)
    counts = found["counts"].group_by("source").aggregate([("read", "sum"), ("rejected", "sum")])
    by_source = {c["source"]: c for c in counts.to_pylist()}
    assert set(by_source) == set(paths)
    assert sum(c["read_sum"] for c in by_source.values()) == direct.rows == counters["rows-in"]
    assert sum(c["rejected_sum"] for c in by_source.values()) == len(direct.rejects)
    assert counters["rows-out"] == len(direct.ids)
    for reason, count in collections.Counter(direct.reasons).items():
        assert counters[f"rows-rejected-{reason}"] == count


def test_a_catalog_that_brings_embeddings(tmp_path):
    rows = [{"item_id": str(i), "embedding": [1.0, i]} for i in range(20)]
    path = write(tmp_path, "items.parquet", WRITERS[".parquet"](rows))
    reader = open_catalog(files.match([path]), INPUT, TextConfig(), ShardConfig())
    assert reader.embedding == EmbeddingSpec(("embedding",), (2,), (1.0,))
    assert (reader.embedding_dim, reader.embedding_columns) == (2, ("embedding",))
    found, counters = collect(reader, tmp_path)
    direct = Read(path, embedding=reader.embedding)
    assert found["parsed"].select(CONTENT).to_pylist() == direct.content
    assert counters.pop("validate-bytes") > 20 * 4
    assert counters == {"rows-in": 20, "rows-out": 20, "validate-rows": 20}


def test_a_catalog_that_cannot_be_read_is_refused_before_the_pipeline(tmp_path):
    path = write(tmp_path, "items.csv", b"sku,title\n1,t\n")
    with pytest.raises(ValueError, match=r"input\.columns\.item_id"):
        open_catalog(files.match([path]), INPUT, TextConfig(), ShardConfig())


def test_a_file_that_is_gone_stops_the_pipeline_by_name(tmp_path):
    path = write(tmp_path, "items.jsonl", b'{"item_id": "1", "title": "t"}')
    reader = open_catalog(files.match([path]), INPUT, TextConfig(), ShardConfig())
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(Exception, match=path), Pipeline(runner="FnApiRunner") as root:
        _ = root | ReadCatalog(reader)


def test_batches_reach_the_next_stage_whole(tmp_path):
    rows = [{"item_id": str(i), "title": "t" * 100} for i in range(100)]
    path = write(tmp_path, "items.jsonl", json_lines(rows))
    reader = open_catalog(files.match([path]), INPUT, TextConfig(), ShardConfig(batch_rows=10))
    with Pipeline(runner="FnApiRunner") as root:
        outputs = root | ReadCatalog(reader)
        sizes = (
            outputs.parsed | beam.Reshuffle() | beam.Map(lambda b: (b.num_rows, b.nbytes > 1000))
        )
        assert_that(sizes, lambda found: sorted(found) == [(10, True)] * 10 or pytest.fail(found))
