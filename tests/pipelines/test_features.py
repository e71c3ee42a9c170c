"""N-gram columns through whole runs: every feature, and the learned pieces of `spm`."""

import json
import math

import numpy as np
import pyarrow.compute as pc
import pytest

from models.spm_ngrams import SpmNgrams
from pipelines.errors import UsageError
from pipelines.root import Root
from pipelines.settings import load_settings
from pipelines.verify import verify
from schemas.manifest import Current
from tests.pipelines import jobs

SIZES = (16, 16, 16, 16)
FEATURES = [
    {"name": "unigram"},
    {"name": "bigram", "table_size": 100},
    {"name": "bigram_disjoint"},
    {"name": "trigram", "table_size": 5000},
    {"name": "fourgram"},
    {"name": "prefix_ngram", "max_length": 3},
    {"name": "spm", "table_size": 90},
]
WINDOWS = {
    "unigram": [(0, 1), (1, 2), (2, 3), (3, 4)],
    "bigram": [(0, 2), (1, 3), (2, 4)],
    "bigram_disjoint": [(0, 2), (2, 4)],
    "trigram": [(0, 3), (1, 4)],
    "fourgram": [(0, 4)],
    "prefix_ngram": [(0, 1), (0, 2), (0, 3)],
}
CONFIG = {
    "quantizer": {"kind": "rqkmeans", "iterations": 5, "codebook_sizes": list(SIZES)},
    "ngrams": FEATURES,
}


def catalog_rows(numbers):
    rows = jobs.vector_rows({f"item-{n:03d}": f"content {n % 200}" for n in numbers})
    return [{**row, "popularity": 1000.0 if n < 20 else 1.5} for n, row in enumerate(rows)]


def by_hand(codes, name, table_size):
    """The formula of the module's docstring, in Python integers."""
    shift, ids = 0, []
    for start, stop in WINDOWS[name]:
        packed = 0
        for code in codes[start:stop]:
            packed = packed * 16 + code
        ids.append(shift + packed)
        shift += math.prod(SIZES[start:stop])
    return [number % table_size for number in ids] if table_size else ids


def pieces_of(root):
    generation = Root(str(root)).published().generation
    return (root / "generations" / generation / "ngrams" / "spm.model").read_bytes()


@pytest.fixture(scope="module")
def featured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    jobs.run(
        jobs.write_rows(folder / "c.parquet", catalog_rows(range(260))), folder / "root", CONFIG
    )
    return folder / "root"


def test_every_column_and_its_vocabulary_is_what_the_formula_gives(featured):
    jobs.assert_sound(featured)
    items, ngrams = jobs.table(featured, "items"), jobs.table(featured, "ngrams").to_pylist()
    codes = items["codes"].to_pylist()
    for feature in FEATURES[:-1]:
        name, table_size = feature["name"], feature.get("table_size")
        assert items[name].to_pylist() == [by_hand(code, name, table_size) for code in codes]
        counted = [row for row in ngrams if row["feature"] == name]
        for row in counted:
            start, stop = WINDOWS[name][row["position"]]
            having = [code for code in codes if code[start:stop] == row["codes"]]
            assert row["item_count"] == len(having)
            assert row["id"] == by_hand(having[0], name, table_size)[row["position"]]
        keys = [(row["position"], row["codes"]) for row in counted]
        assert keys == sorted(keys) and len(keys) == len(set(map(repr, keys)))
        assert sum(row["item_count"] for row in counted) == len(codes) * len(WINDOWS[name])


def test_pieces_spell_the_codes_of_every_item(featured):
    items, ngrams = jobs.table(featured, "items"), jobs.table(featured, "ngrams").to_pylist()
    pieces = {row["id"]: row for row in ngrams if row["feature"] == "spm"}
    used = [number for ids in items["spm"].to_pylist() for number in ids]
    assert {number: row["item_count"] for number, row in pieces.items()} == {
        number: used.count(number) for number in set(used)
    }
    for codes, ids in zip(items["codes"].to_pylist(), items["spm"].to_pylist(), strict=True):
        spelled: list[int] = []
        for number in ids:
            assert pieces[number]["position"] == len(spelled)
            spelled += pieces[number]["codes"]
        assert spelled == codes
    assert max(len(row["codes"]) for row in pieces.values()) > 1, "no piece joins two codes"


def test_pieces_are_weighted_by_popularity(featured, tmp_path):
    rows = [{**row, "popularity": 1.0} for row in catalog_rows(range(260))]
    jobs.run(jobs.write_rows(tmp_path / "c.parquet", rows), tmp_path / "root", CONFIG)
    assert pieces_of(tmp_path / "root") != pieces_of(featured)

    def length(root):
        """Mean number of pieces of the 20 popular items."""
        table = jobs.table(root, "items")
        popular = pc.less(table["item_id"], "item-020")
        return np.mean(pc.list_value_length(table.filter(popular)["spm"]).to_numpy())

    assert length(featured) < length(tmp_path / "root")


def test_pieces_do_not_depend_on_order_or_sharding(featured, tmp_path):
    rows = jobs.shuffled(catalog_rows(range(260)))
    paths = [jobs.write_rows(tmp_path / f"{n}.parquet", rows[n::2]) for n in range(2)]
    other = {**CONFIG, "shards": {"rows_per_shard": 50, "batch_rows": 7}}
    jobs.run(paths, tmp_path / "root", other)
    assert pieces_of(tmp_path / "root") == pieces_of(featured)
    assert jobs.table(tmp_path / "root", "items").drop(["first_generation"]) == jobs.table(
        featured, "items"
    ).drop(["first_generation"])


def test_pieces_are_frozen_with_the_id_space(featured, copied):
    root = copied(featured)
    before = {row["item_id"]: row["spm"] for row in jobs.table(root, "items").to_pylist()}
    model = pieces_of(root)
    rows = catalog_rows(range(300))
    jobs.run(jobs.write_rows(root.parent / "c.parquet", rows), root, CONFIG)
    jobs.assert_sound(root)
    assert pieces_of(root) == model
    items = jobs.table(root, "items")
    after = {row["item_id"]: row["spm"] for row in items.to_pylist()}
    assert {name: after[name] for name in before} == before and len(after) == 300
    ragged = SpmNgrams(model, SIZES).ids(np.array(items["codes"].to_pylist()))
    assert pc.list_flatten(items["spm"]).to_pylist() == ragged.values.tolist()
    # Another vocabulary is another feature: it is learned anew and every row is written again.
    other = {**CONFIG, "ngrams": [{"name": "unigram"}, {"name": "spm", "table_size": 75}]}
    jobs.run(str(root.parent / "c.parquet"), root, other)
    jobs.assert_sound(root)
    assert pieces_of(root) != model
    jobs.run(str(root.parent / "c.parquet"), root, {**CONFIG, "ngrams": FEATURES[:-1]})
    jobs.assert_sound(root)
    assert Root(str(root)).published().manifest.fingerprints.spm is None


def test_verify_finds_altered_pieces_and_columns(featured, copied):
    root = copied(featured)
    generation = Root(str(root)).published().generation
    path = root / "generations" / generation / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fingerprints"]["spm"] = "0" * 64
    path.write_text(json.dumps(manifest))
    (root / "CURRENT").write_bytes(Current.of(generation, path.read_bytes()).to_json())
    found = verify(Root(str(root))).problems
    assert [problem.invariant for problem in found] == [2]
    assert "ngrams/spm.model has sha256" in found[0].detail


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"name": "spm"}, "ngrams.0.table_size"),
        ({"name": "spm", "table_size": 65}, "table_size 65 must exceed 65, one piece per code"),
        ({"name": "spm", "table_size": 90, "max_length": 2}, "ngrams.0.max_length: unknown key"),
        ({"name": "pieces"}, "'pieces' is not one of .*'spm'"),
    ],
)
def test_bad_features_are_refused_before_anything_starts(tmp_path, feature, message):
    path = tmp_path / "semid.json"
    path.write_text(json.dumps({**CONFIG, "ngrams": [feature]}))
    with pytest.raises(UsageError, match=message):
        load_settings(str(path))
