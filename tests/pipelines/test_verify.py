"""Every invariant, broken one at a time in a published generation, is found and named."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from pipelines.beam_options import build_options
from pipelines.fit import fit
from pipelines.job import Job
from pipelines.root import Root
from pipelines.settings import parse_settings
from pipelines.tokenize import tokenize
from pipelines.verify import verify
from schemas.manifest import Current, FileEntry
from schemas.tables import reserved_schema
from tests.pipelines import jobs


@pytest.fixture(scope="module")
def grown(tmp_path_factory, vector_catalog):
    """A second generation with new, changed, moved and retired items, and some rejects."""
    folder = tmp_path_factory.mktemp("verify")
    config = {"collisions": {"on_change": "reassign"}, "input": {"max_reject_share": 0.2}}
    first = jobs.write_rows(folder / "first.jsonl", vector_catalog[:120])
    jobs.run(first, folder / "root", config)
    second = [*vector_catalog[2:130], *jobs.vector_rows({"item-001": "changed"}), {"item_id": "r"}]
    jobs.run(jobs.write_rows(folder / "second.jsonl", second), folder / "root", config)
    return folder / "root"


@pytest.fixture
def damaged(copied, grown):
    return Damaged(copied(grown))


@pytest.fixture(scope="module")
def migrated(tmp_path_factory, vector_catalog):
    """A generation under another tokenizer than its parent's; one item is gone, one is new."""
    folder = tmp_path_factory.mktemp("verify-migration")
    catalog = jobs.write_rows(folder / "first.jsonl", vector_catalog[:60])
    jobs.run(catalog, folder / "root")
    other = {"quantizer": {**jobs.SETTINGS["quantizer"], "seed": 5}}
    options = Root(str(folder / "root")), parse_settings(jobs.merged(jobs.SETTINGS, other))
    catalog = jobs.write_rows(folder / "second.jsonl", vector_catalog[1:61])
    job = Job((catalog,), *options, build_options([]), jobs.AS_OF)
    tokenizer = fit(job).tokenizer_id
    tokenize(dataclasses.replace(job, tokenizer=tokenizer))
    return folder / "root"


class Damaged:
    """A root whose published files are changed behind a manifest that says they are as written."""

    def __init__(self, path):
        self.path = path
        self.root = Root(str(path))
        self.generation = self.root.published().generation
        self.folder = path / "generations" / self.generation

    def part(self, table):
        return self.folder / self.root.manifest(self.generation).table(table)[0].path

    def set(self, table, column, row, value):
        """Changes one value of a table."""
        path = self.part(table)
        rows = pq.read_table(path)
        values = rows[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        index = rows.schema.get_field_index(column)
        field = rows.schema.field(column)
        self.write(path, rows.set_column(index, field, pa.array(values, field.type)))

    def keep(self, table, choose):
        """Takes other rows of a table."""
        path = self.part(table)
        rows = pq.read_table(path)
        self.write(path, rows.take(pa.array(choose(list(range(rows.num_rows))), pa.int64())))

    def write(self, path, rows):
        pq.write_table(rows, path, compression="zstd", store_schema=True)
        self.admit(path)

    def admit(self, path):
        """Makes the manifest describe a file as it is now."""
        name = str(path.relative_to(self.folder))
        manifest = self.root.manifest(self.generation)
        data = path.read_bytes()
        rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
        entry = {"rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.rewrite(
            files=[
                dataclasses.replace(file, **entry) if file.path == name else file
                for file in manifest.files
            ]
        )

    def rewrite(self, **values):
        """Changes the manifest and the pointer to it."""
        manifest = dataclasses.replace(self.root.manifest(self.generation), **values)
        data = manifest.to_json()
        (self.folder / "manifest.json").write_bytes(data)
        (self.path / "CURRENT").write_bytes(Current.of(self.generation, data).to_json())

    def problems(self):
        return [(p.invariant, p.detail) for p in verify(self.root).problems]


def assert_found(damaged, invariant, *words):
    problems = damaged.problems()
    assert problems, "nothing was found"
    assert any(
        number == invariant and all(str(word) in detail for word in words)
        for number, detail in problems
    ), problems


def item(damaged, row):
    return pq.read_table(damaged.part("items")).slice(row, 1).to_pylist()[0]


def test_a_generation_as_published_is_sound(grown):
    verdict = verify(Root(str(grown)))
    assert verdict.problems == []
    assert verdict.checks["rejects"] == 1
    assert verdict.checks["reserved"] == 2
    assert verdict.checks["parent"] == 120
    assert min(verdict.checks.values()) > 0
    assert verdict.checks["lineage"] == 2


def test_an_older_generation_is_checked_against_what_its_child_says(damaged):
    """CURRENT vouches for the newest manifest alone; each manifest vouches for its parent's."""
    first = damaged.root.manifest(damaged.generation).parent
    assert verify(damaged.root, first).problems == []
    path = damaged.path / "generations" / first / "manifest.json"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b'"created": "2026', b'"created": "2025'))
    for generation in (first, damaged.generation):
        problems = [problem.detail for problem in verify(damaged.root, generation).problems]
        assert len(problems) == 1
        assert f"the manifest of generation {first} was altered" in problems[0]
        assert f"generation {damaged.generation} says" in problems[0]
    path.write_bytes(kept)
    damaged.rewrite(parent_manifest_sha256=None)
    assert_found(damaged, 6, first, "generation")


def test_a_generation_that_was_not_published_is_found(damaged):
    left = damaged.path / "generations" / "000002-unlucky0"
    shutil.copytree(damaged.folder, left)
    assert [p.detail.split(":")[:2] for p in verify(damaged.root, left.name).problems] == [
        ["lineage", f" neither CURRENT nor a generation it grew from names generation {left.name}"]
    ]


def test_a_parent_that_was_removed_is_not_missed_by_lineage(damaged):
    first = damaged.root.manifest(damaged.generation).parent
    shutil.rmtree(damaged.path / "generations" / first)
    assert verify(damaged.root).checks["lineage"] == 1


@pytest.mark.parametrize("table", ["items", "nodes", "ngrams", "catalog", "embeddings", "changes"])
def test_an_altered_file_is_found(damaged, table):
    path = damaged.part(table)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert_found(damaged, 6, path.name, "sha256")
    path.write_bytes(bytes(data[:-1]))
    assert_found(damaged, 6, path.name, f"{len(data) - 1} bytes")
    path.unlink()
    assert_found(damaged, 6, path.name, "missing")


def test_a_missing_trie_or_metrics_file_is_found(damaged):
    for name in ("trie/trie.safetensors", "metrics.json"):
        (damaged.folder / name).unlink()
        assert_found(damaged, 6, name, "missing")


def test_a_wrong_row_count_is_found(damaged):
    manifest = damaged.root.manifest(damaged.generation)
    entries = [
        dataclasses.replace(f, rows=f.rows + 1) if f.path.startswith("items/") else f
        for f in manifest.files
    ]
    damaged.rewrite(files=entries)
    assert_found(damaged, 6, "items/part-00000.parquet", "rows")


def test_rows_that_do_not_balance_are_found(damaged):
    manifest = damaged.root.manifest(damaged.generation)
    ((source, counts),) = manifest.sources.items()
    damaged.rewrite(sources={source: dataclasses.replace(counts, read=counts.read + 1)})
    assert_found(damaged, 1, source, counts.read + 1)
    damaged.rewrite(sources={source: dataclasses.replace(counts, live=counts.live - 1, read=1)})
    assert_found(damaged, 1, "live")


def test_a_lost_or_unexplained_reject_is_found(damaged):
    damaged.set("rejects", "reason", 0, "just because")
    assert_found(damaged, 1, "'r'", "just because")
    damaged.keep("rejects", lambda rows: [])
    assert_found(damaged, 1, "0 rejected rows are kept, 1 were counted")


BROKEN_ITEMS = {
    "codes": (lambda codes: [codes[0], codes[1], (codes[2] + 1) % 16], 2, "is not the packing of"),
    "sid": (lambda sid: sid + 1, 2, "is not the packing of"),
    "base_codes": (
        lambda codes: [(codes[0] + 1) % 16, *codes[1:]],
        5,
        "are not what the tokenizer",
    ),
    "suffix": (lambda suffix: suffix + 1, 2, "is not the packing of"),
    "placement": ("elsewhere", 2, "has placement 'elsewhere'"),
    "content_hash": (b"0123456789abcdef", 2, "different content hashes"),
    "tokenizer_id": ("0" * 64, 2, "comes from tokenizer 0000"),
    "unigram": (lambda ids: [ids[0] + 1, *ids[1:]], 2, "its codes give"),
    "prefix_ngram": (lambda ids: ids[::-1], 2, "its codes give"),
}


@pytest.mark.parametrize("column", BROKEN_ITEMS)
def test_one_wrong_value_of_one_item_is_found_and_named(damaged, column):
    value, invariant, words = BROKEN_ITEMS[column]
    name = item(damaged, 40)["item_id"]
    damaged.set("items", column, 40, value)
    assert_found(damaged, invariant, repr(name), words)


def test_codes_out_of_range_are_found(damaged):
    name = item(damaged, 3)["item_id"]
    damaged.set("items", "codes", 3, [1, 2, 16])
    assert_found(damaged, 2, repr(name), "out of range")


def test_an_id_that_occurs_twice_is_found(damaged):
    first, second = item(damaged, 10), item(damaged, 11)
    damaged.set("items", "item_id", 11, first["item_id"])
    assert_found(damaged, 2, repr(first["item_id"]), "occurs twice")
    assert_found(damaged, 2, repr(second["item_id"]), "of catalog is not in items")


def test_rows_out_of_order_and_shared_sids_are_found(damaged):
    low, high = item(damaged, 20), item(damaged, 21)
    damaged.keep("items", lambda rows: [*rows[:20], 21, 20, *rows[22:]])
    assert_found(damaged, 2, repr(low["item_id"]), repr(high["item_id"]), "strict SID order")
    assert_found(damaged, 3, "leaf 20")


def test_a_missing_or_foreign_item_is_found(damaged):
    name = item(damaged, 5)["item_id"]
    damaged.keep("items", lambda rows: [row for row in rows if row != 5])
    assert_found(damaged, 2, repr(name), "of catalog is not in items")
    assert_found(damaged, 3, "rows, items has")


def test_another_schema_is_found(damaged):
    path = damaged.part("items")
    damaged.write(path, pq.read_table(path).drop_columns(["bigram"]))
    assert damaged.problems()[0][0] == 2
    assert "items/part-00000.parquet: schema is" in damaged.problems()[0][1]


def test_a_trie_of_other_ids_is_found(damaged):
    path = damaged.folder / "trie/trie.safetensors"
    with safetensors.safe_open(str(path), "np") as file:
        metadata = file.metadata()
    arrays = safetensors.numpy.load(path.read_bytes())
    leaves = arrays["tokens.3"].copy()
    siblings = np.flatnonzero(np.diff(arrays["child_start.2"].astype(np.int64)) == 1)
    row = int(arrays["child_start.2"][siblings[0]])
    leaves[row] = (leaves[row] + 1) % 16
    arrays["tokens.3"] = leaves
    path.write_bytes(safetensors.numpy.save(arrays, metadata=metadata))
    damaged.admit(path)
    assert_found(damaged, 3, f"leaf {row} is", repr(item(damaged, row)["item_id"]))


@pytest.mark.parametrize("column", ["prefix", "item_count", "depth"])
def test_wrong_nodes_are_found(damaged, column):
    damaged.set("nodes", column, 3, lambda value: value + 1)
    assert_found(damaged, 3, "nodes")


def test_missing_or_surplus_nodes_are_found(damaged):
    damaged.keep("nodes", lambda rows: rows[:-1])
    assert_found(damaged, 3, "nodes")


def test_a_wrong_vocabulary_is_found(damaged):
    damaged.set("ngrams", "item_count", 0, lambda count: count + 1)
    assert_found(damaged, 3, "unigram")


def test_a_reserved_id_that_was_given_away_is_found(damaged):
    sid = item(damaged, 7)["sid"]
    owner = pq.read_table(damaged.part("reserved"))["item_id"][0].as_py()
    damaged.set("reserved", "sid", 0, sid)
    assert_found(damaged, 4, f"SID {sid}", repr(owner))


def test_an_unannounced_move_is_found(damaged):
    changes = pq.read_table(damaged.part("changes")).to_pylist()
    moved = next(n for n, row in enumerate(changes) if row["change"] == "moved")
    name = changes[moved]["item_id"]
    damaged.set("changes", "old_sid", moved, lambda sid: sid + 1)
    assert_found(damaged, 4, repr(name), "changes/ does not say so")
    damaged.keep("changes", lambda rows: [row for row in rows if row != moved])
    assert_found(damaged, 4, repr(name), "changes/ does not say so")


def test_an_unannounced_retirement_is_found(damaged):
    changes = pq.read_table(damaged.part("changes")).to_pylist()
    gone = next(n for n, row in enumerate(changes) if row["change"] == "retired")
    damaged.keep("changes", lambda rows: [row for row in rows if row != gone])
    assert_found(damaged, 4, repr(changes[gone]["item_id"]), "has None")


def test_a_retired_id_that_is_not_reserved_is_found(damaged):
    owner = pq.read_table(damaged.part("reserved"))["item_id"][0].as_py()
    damaged.keep("reserved", lambda rows: rows[1:])
    assert_found(damaged, 4, repr(owner), "not reserved")


def test_a_change_nobody_made_is_found(damaged):
    """changes/ announces a new ID that the item does not have."""
    changes = pq.read_table(damaged.part("changes")).to_pylist()
    new = next(n for n, row in enumerate(changes) if row["change"] == "new")
    damaged.set("changes", "new_sid", new, lambda sid: sid + 1)
    assert_found(damaged, 4, repr(changes[new]["item_id"]))


def test_a_wrong_or_missing_embedding_is_found(damaged):
    names = {row["item_id"] for row in pq.read_table(damaged.part("items")).to_pylist()}
    stored = pq.read_table(damaged.part("embeddings"))["item_id"].to_pylist()
    row = next(n for n, name in enumerate(stored) if name in names and name != "item-001")
    damaged.set("embeddings", "embedding", row, lambda vector: [-value for value in vector])
    assert_found(damaged, 5, repr(stored[row]), "are not what the tokenizer gives")
    damaged.set("embeddings", "content_hash", row, b"0123456789abcdef")
    assert_found(damaged, 5, repr(stored[row]), "has no embedding of its content")


def test_an_altered_or_missing_tokenizer_is_found(damaged):
    folder = next((damaged.path / "tokenizers").iterdir())
    model = folder / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-5] ^= 64
    model.write_bytes(bytes(data))
    assert_found(damaged, 7, folder.name, "was altered")
    model.unlink()
    assert_found(damaged, 7, folder.name, "model.safetensors")


def test_other_settings_than_the_layout_are_found(damaged):
    manifest = damaged.root.manifest(damaged.generation)
    layout = {"codebook_sizes": [16, 16, 32], "suffix_bits": 16}
    damaged.rewrite(fingerprints=dataclasses.replace(manifest.fingerprints, layout=layout))
    numbers = {number for number, _ in damaged.problems()}
    assert {2, 3, 7} <= numbers


def test_many_problems_are_counted_not_listed(damaged):
    path = damaged.part("items")
    rows = pq.read_table(path)
    index = rows.schema.get_field_index("placement")
    lost = pa.array(["lost"] * rows.num_rows)
    damaged.write(path, rows.set_column(index, rows.schema.field(index), lost))
    problems = [detail for number, detail in damaged.problems() if "items:" in detail]
    assert len(problems) == 6
    assert problems[-1] == f"items: and {rows.num_rows - 5} more problems"


def test_the_command_says_so_and_exits_with_1(damaged, tmp_path, capsys):
    arguments = ["verify", "--root", str(damaged.path)]
    assert jobs.command(tmp_path, *arguments) == 0
    assert f"generation {damaged.generation} is sound" in capsys.readouterr().out
    name = item(damaged, 0)["item_id"]
    damaged.set("items", "placement", 0, "elsewhere")
    assert jobs.command(tmp_path, *arguments) == 1
    out = capsys.readouterr().out
    assert "NOT sound" in out and f"[2] items: item {name!r}" in out
    assert jobs.command(tmp_path, *arguments, "--json") == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["ok"] is False
    assert verdict["problems"][0]["invariant"] == 2


def test_an_older_generation_can_be_verified(grown, tmp_path, capsys):
    first = sorted(path.name for path in (grown / "generations").iterdir())[0]
    assert jobs.command(tmp_path, "verify", "--root", str(grown), "--generation", first) == 0
    assert first in capsys.readouterr().out
    assert jobs.command(tmp_path, "verify", "--root", str(grown), "--generation", "000042-x") == 2
    assert "000042-x" in capsys.readouterr().err


def row_of(damaged, change):
    """Number of the first row of `changes/` that says so."""
    return pq.read_table(damaged.part("changes"))["change"].to_pylist().index(change)


BROKEN_MAPS = {
    "a row is missing": (
        lambda d: d.keep("changes", lambda rows: [r for r in rows if r != row_of(d, "moved")]),
        "does not map one to the other",
    ),
    "another old SID": (
        lambda d: d.set("changes", "old_sid", row_of(d, "moved"), lambda sid: sid + 1),
        "does not map one to the other",
    ),
    "another change": (
        lambda d: d.set("changes", "change", row_of(d, "retired"), "updated"),
        "does not map one to the other",
    ),
    "an old SID of a new item": (
        lambda d: d.set("changes", "old_sid", row_of(d, "new"), 1),
        "an old SID, the parent does not have it",
    ),
}


@pytest.mark.parametrize("broken", BROKEN_MAPS)
def test_a_broken_migration_map_is_found(copied, migrated, broken):
    damaged = Damaged(copied(migrated))
    assert damaged.problems() == []
    breaking, message = BROKEN_MAPS[broken]
    breaking(damaged)
    assert_found(damaged, 4, message)


def test_an_id_of_the_space_before_cannot_be_reserved(copied, migrated):
    damaged = Damaged(copied(migrated))
    schema = reserved_schema(pa.int64())
    ghost = {"item_id": "ghost", "sid": 1, "base_sid": 1, "content_hash": b"0" * 16}
    ghost |= {"retired_generation": "000001-00000000", "retired_timestamp": jobs.AS_OF}
    path = damaged.folder / "reserved" / "part-00000.parquet"
    path.parent.mkdir()
    manifest = damaged.root.manifest(damaged.generation)
    entry = FileEntry("reserved/part-00000.parquet", 1, 0, "")
    damaged.rewrite(files=[*manifest.files, entry], counts={**manifest.counts, "reserved": 1})
    damaged.write(path, pa.Table.from_pylist([ghost], schema))
    assert_found(damaged, 4, "of the ID space before is reserved for item 'ghost'")
