"""What other engines see: the files alone, read without any of this code."""

import json

import duckdb
import numpy as np
import pytest
import safetensors.numpy

from pipelines.root import Root
from tests.pipelines import jobs


@pytest.fixture(scope="module")
def folder(text_root):
    return text_root / "generations" / str(Root(str(text_root)).published().generation)


def test_duckdb_joins_the_tables_by_glob(folder, text_root):
    rows = duckdb.sql(
        f"""
        with vocabulary as (
            select id, codes, item_count from '{folder}/ngrams/*.parquet'
            where feature = 'prefix_ngram' and position = 1
        )
        select i.item_id, i.sid, i.codes, c.title, v.codes, v.item_count, i.event_timestamp
        from '{folder}/items/*.parquet' i
        join '{folder}/catalog/*.parquet' c using (item_id, content_hash)
        join vocabulary v on v.id = i.prefix_ngram[2]
        order by i.sid
        """
    ).fetchall()
    assert len(rows) == 300
    assert [row[0] for row in rows] == jobs.table(text_root, "items")["item_id"].to_pylist()
    pairs = [tuple(row[2][:2]) for row in rows]
    for _, _, codes, title, prefix, count, time in rows:
        assert prefix == codes[:2]
        assert count == pairs.count(tuple(codes[:2]))
        assert title
        assert time == jobs.AS_OF


def test_duckdb_sees_plain_types(folder):
    types = dict(
        duckdb.sql(
            f"select column_name, column_type from (describe from '{folder}/items/*.parquet')"
        ).fetchall()
    )
    assert types["sid"] == "BIGINT"
    assert types["codes"] == "INTEGER[]"
    assert types["unigram"] == "BIGINT[]"
    assert types["event_timestamp"] == "TIMESTAMP WITH TIME ZONE"
    assert types["item_id"] == "VARCHAR"


def test_safetensors_alone_reproduces_every_sid(folder, text_root):
    path = str(folder / "trie/trie.safetensors")
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load_file(path)
    layout = json.loads(metadata["layout"])
    assert layout == {"codebook_sizes": [16, 16, 16], "suffix_bits": 16, "hierarchical": True}
    depth = int(metadata["depth"])
    codes = tensors["tokens.1"].astype(np.int64)[:, None]
    for level in range(1, depth):
        children = np.diff(tensors[f"child_start.{level}"].astype(np.int64))
        below = tensors[f"tokens.{level + 1}"].astype(np.int64)
        codes = np.column_stack([np.repeat(codes, children, axis=0), below])
    suffix = codes[:, 3] if depth == 4 else np.zeros(len(codes), np.int64)
    sids = ((codes[:, 0] << 8 | codes[:, 1] << 4 | codes[:, 2]) << 16) | suffix
    items = jobs.table(text_root, "items")
    assert sids.tolist() == items["sid"].to_pylist()
    assert codes[:, :3].tolist() == items["codes"].to_pylist()


def test_the_manifest_describes_every_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        "manifest.json"
    }
    assert {file["path"] for file in manifest["files"]} == there
    assert manifest["config"]["quantizer"]["codebook_sizes"] == [16, 16, 16]
    assert manifest["counts"]["items"] == 300
    assert manifest["parent"] is None
