"""The same catalog gives the same IDs, however it is cut, ordered or worked on."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import yaml

from models.resolution import resolve, settle
from models.rqkmeans import fit_rqkmeans
from models.sid import SidLayout
from pipelines.settings import parse_settings
from schemas.arrays import bytes_from_fixed_binary, matrix_from_list
from schemas.config import ShardConfig, TextConfig
from semid_transforms import files
from semid_transforms.encoder import SentenceEncoder
from semid_transforms.hashing import item_hashes
from semid_transforms.reading import read_split
from semid_transforms.sources import list_splits
from tests.pipelines import jobs

CUTS = {
    "one row at a time": ({"batch_rows": 1, "rows_per_shard": 16}, 1),
    "small splits": ({"batch_rows": 7, "split_bytes": 1024, "rows_per_shard": 40}, 3),
    "whole files": ({"batch_rows": 4096}, 2),
}
"""Shard settings, and the number of files the shuffled rows are dealt to."""

PATHS = ("first_generation",)


def published(root):
    """What may not depend on the cut: items without the run's name, and the trie's bytes."""
    items = jobs.table(root, "items").drop_columns(list(PATHS))
    generation = next((root / "generations").iterdir())
    return items, (generation / "trie/trie.safetensors").read_bytes()


def deal(folder, rows, count, ending):
    mixed = jobs.shuffled(rows, seed=count)
    for number in range(count):
        jobs.write_rows(folder / f"part-{number}{ending}", mixed[number::count])
    return str(folder / f"part-*{ending}")


@pytest.mark.parametrize("cut", CUTS)
def test_vectors_get_the_same_ids_however_they_are_cut(tmp_path, cut, vector_catalog, vector_root):
    shards, count = CUTS[cut]
    pattern = deal(tmp_path, vector_catalog, count, ".jsonl" if count == 3 else ".parquet")
    outcome = jobs.run(pattern, tmp_path / "root", {"shards": shards})
    expected, got = published(vector_root), published(tmp_path / "root")
    assert got[0].equals(expected[0])
    assert got[1] == expected[1]
    assert (len(outcome.manifest.shards) > 4) == ("rows_per_shard" in shards)
    jobs.assert_sound(tmp_path / "root")


@pytest.mark.parametrize("cut", CUTS)
def test_texts_get_the_same_ids_however_they_are_cut(tmp_path, cut, text_config, text_root):
    shards, count = CUTS[cut]
    pattern = deal(tmp_path, jobs.products(300), count, ".jsonl")
    jobs.run(pattern, tmp_path / "root", {**text_config, "shards": shards})
    expected, got = published(text_root), published(tmp_path / "root")
    assert got[0].equals(expected[0])
    assert got[1] == expected[1]
    ours = {table: jobs.table(tmp_path / "root", table) for table in ("nodes", "ngrams", "catalog")}
    theirs = {table: jobs.table(text_root, table) for table in ours}
    assert ours["nodes"].equals(theirs["nodes"])
    assert ours["ngrams"].equals(theirs["ngrams"])
    columns = ["item_id", "content_hash", "title", "category_path", "popularity", "updated_at"]
    for side in (ours, theirs):
        side["catalog"] = side["catalog"].select(columns).sort_by("item_id")
    assert ours["catalog"].equals(theirs["catalog"])


def test_growth_does_not_depend_on_sharding(tmp_path):
    """The same three nights in one shard and in sixteen, with edits, losses and returns."""
    contents = {f"i{n}": n % 150 for n in range(200)}
    nights = [
        dict(list(contents.items())[:160]),
        {**contents, "i3": "edited", "i4": "edited too"},
        {name: content for name, content in contents.items() if name not in ("i7", "i8", "i9")},
    ]
    config = {"collisions": {"on_change": "reassign"}}
    for number, contents_of_night in enumerate(nights):
        rows = jobs.vector_rows(contents_of_night)
        one = jobs.write_rows(tmp_path / "one.parquet", rows)
        many = jobs.write_rows(tmp_path / "many.jsonl", jobs.shuffled(rows, seed=number))
        jobs.run(one, tmp_path / "one", config)
        jobs.run(many, tmp_path / "many", {**config, "shards": {"rows_per_shard": 16}})
        assert jobs.sids(tmp_path / "one") == jobs.sids(tmp_path / "many")
        assert jobs.reserved(tmp_path / "one") == jobs.reserved(tmp_path / "many")
        assert jobs.changes(tmp_path / "one") == jobs.changes(tmp_path / "many")
    jobs.assert_sound(tmp_path / "many")


def test_two_worker_processes_give_the_same_tables(tmp_path, text_config, text_root):
    """In a process of its own with a time limit: a worker that dies hangs Beam's local runner."""
    catalog = jobs.write_rows(tmp_path / "catalog.jsonl", jobs.products(300))
    (tmp_path / "semid.yaml").write_text(
        yaml.safe_dump(jobs.merged(jobs.SETTINGS, text_config)), "utf-8"
    )
    arguments = ["--catalog", catalog, "--root", str(tmp_path / "root"), "--config"]
    arguments += [str(tmp_path / "semid.yaml"), "--as-of", jobs.AS_OF.isoformat()]
    workers = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    subprocess.run(
        [sys.executable, "-m", "pipelines", "tokenize", *arguments, *workers],
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
    )
    expected, got = published(text_root), published(tmp_path / "root")
    assert got[0].equals(expected[0])
    assert got[1] == expected[1]


def test_the_job_is_its_functions_called_one_by_one(text_root, text_config):
    """Reading, encoding, fitting, quantizing and resolving by hand give the published codes."""
    settings = parse_settings(jobs.merged(jobs.SETTINGS, text_config))
    splits = list_splits(files.match([str(text_root.parent / "catalog.jsonl")]), 1 << 20)
    (parsed, rejects, rows), *others = read_split(
        splits[0], settings.job.input, TextConfig(), ShardConfig()
    )
    assert (rejects.num_rows, rows.read, others) == (0, 300, [])

    table = pa.Table.from_batches([parsed]).sort_by(
        [("content_hash", "ascending"), ("item_id", "ascending")]
    )
    hashes = bytes_from_fixed_binary(table["content_hash"].combine_chunks())
    keys, first, position = np.unique(
        [row.tobytes().hex() for row in hashes], return_index=True, return_inverse=True
    )
    texts = table["text"].take(pa.array(first)).to_pylist()
    encoder = SentenceEncoder(settings.job.encoder)
    parts = (np.array([int(key[:8], 16) for key in keys]) * 5) >> 32  # five ranges of the hash
    distinct = np.concatenate(
        [encoder.encode([t for t, p in zip(texts, parts, strict=True) if p == n]) for n in range(5)]
    )
    quantizer = fit_rqkmeans(settings.quantizer, distinct)
    embeddings = distinct[position]
    codes = quantizer.encode(embeddings)

    layout = SidLayout.fitting(quantizer.codebook_sizes)
    settled = settle(codes, np.empty(0, np.uint64), layout)
    placed = resolve(
        codes[~settled],
        quantizer.latents(embeddings[~settled]),
        item_hashes(table["item_id"].filter(pa.array(~settled))),
        quantizer.codebooks,
        np.sort(layout.pack(codes[settled])),
        layout,
    )
    final, suffix = codes.copy(), np.zeros(len(codes), np.int32)
    final[~settled], suffix[~settled] = placed.codes, placed.suffix
    assert (~settled).sum() > 5

    by_hand = dict(
        zip(table["item_id"].to_pylist(), layout.pack(final, suffix).tolist(), strict=True)
    )
    assert jobs.sids(text_root) == by_hand
    items = jobs.table(text_root, "items")
    base = dict(zip(table["item_id"].to_pylist(), codes.tolist(), strict=True))
    names = items["item_id"].to_pylist()
    assert dict(zip(names, items["base_codes"].to_pylist(), strict=True)) == base
    assert (
        matrix_from_list(items["codes"], 3).tolist()
        == layout.unpack(items["sid"].to_numpy())[0].tolist()
    )
