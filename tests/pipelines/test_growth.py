"""Night after night: what is new gets an ID, what was published keeps its own."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semid_transforms import files
from tests.pipelines import jobs


def night(root, rows, config=None, **options):
    """Runs one night on rows; returns the outcome after checking that it is sound."""
    catalog = jobs.write_rows(root.parent / "tonight.jsonl", rows)
    outcome = jobs.run(catalog, root, config, **options)
    jobs.assert_sound(root)
    return outcome


def item_files(root):
    """Returns the parts of the newest generation's items, as files on disk."""
    newest = max((root / "generations").iterdir())
    return {path.name: path.stat().st_ino for path in (newest / "items").iterdir()}


def test_the_same_catalog_again_changes_nothing_and_copies_nothing(copied, text_root, text_config):
    root = copied(text_root)
    before = jobs.fingerprints(root, skip=("changes",))
    first = next((root / "generations").iterdir())
    outcome = jobs.run(str(root.parent / "catalog.jsonl"), root, text_config)
    jobs.assert_sound(root)
    counts = outcome.manifest.counts
    changed = ("new", "updated", "moved", "retired")
    assert counts == {"items": 300, "reserved": 0, **dict.fromkeys(changed, 0)}
    assert outcome.results["embed"]["counters"].get("embed/texts-encoded", 0) == 0
    assert jobs.changes(root) == {}
    second = root / "generations" / outcome.manifest.generation
    assert second != first
    carried = [file for file in outcome.manifest.files if not file.path.startswith("catalog/")]
    assert len(carried) > 7
    for file in carried:
        assert files.is_same_file(str(first / file.path), str(second / file.path)), file.path
    after = jobs.fingerprints(root, skip=("changes",))
    assert {**after, "generation": before["generation"]} == before


def test_text_items_come_change_leave_and_return(copied, text_root, text_config):
    root = copied(text_root)
    rows = jobs.products(300)
    before = jobs.sids(root)

    edited = {**rows[5], "title": f"{rows[5]['title']} second edition"}
    newcomers = [{**row, "item_id": f"N{n}"} for n, row in enumerate(jobs.products(20, seed=8))]
    twin = {**rows[9], "item_id": "TWIN"}  # its content is already embedded
    gone = rows[7]["item_id"]
    tonight = [*rows[:5], edited, rows[6], *rows[8:], *newcomers, twin]
    outcome = night(root, jobs.shuffled(tonight), text_config)
    assert outcome.results["embed"]["counters"]["embed/texts-encoded"] <= 21
    after = jobs.sids(root)
    assert {name: after[name] for name in before if name != gone} == {
        name: sid for name, sid in before.items() if name != gone
    }
    assert jobs.reserved(root) == {before[gone]: gone}
    expected = {name: ("new", None, after[name]) for name in after if name not in before}
    own = before[edited["item_id"]]
    expected |= {edited["item_id"]: ("updated", own, own), gone: ("retired", before[gone], None)}
    assert jobs.changes(root) == expected
    assert outcome.manifest.counts["items"] == 300 - 1 + 21
    items = {row["item_id"]: row for row in jobs.table(root, "items").to_pylist()}
    generations = {row["first_generation"] for row in items.values()}
    assert generations == {outcome.manifest.parent, outcome.manifest.generation}
    assert items[edited["item_id"]]["first_generation"] == outcome.manifest.parent

    outcome = night(root, [*tonight, rows[7]], text_config)
    assert outcome.results["embed"]["counters"]["embed/texts-encoded"] == 0
    assert jobs.sids(root) == {**after, gone: before[gone]}
    assert jobs.reserved(root) == {}
    assert jobs.changes(root) == {gone: ("new", before[gone], before[gone])}


@pytest.fixture
def vectors(copied, vector_root, vector_catalog):
    """A root to change and the rows it was made from."""
    return copied(vector_root), list(vector_catalog)


def replace(rows, **contents):
    """Gives items other contents; None removes the item."""
    kept = [row for row in rows if row["item_id"].replace("-", "_") not in contents]
    there = {name.replace("_", "-"): c for name, c in contents.items() if c is not None}
    return [*kept, *jobs.vector_rows(there)]


def test_a_changed_item_moves_when_asked_and_owns_both_ids(vectors):
    root, rows = vectors
    config = {"collisions": {"on_change": "reassign"}}
    before = jobs.sids(root)
    night(root, replace(rows, item_001="quite another"), config)
    moved = jobs.sids(root)["item-001"]
    old = before["item-001"]
    assert moved != old
    assert jobs.changes(root) == {"item-001": ("moved", old, moved)}
    assert jobs.reserved(root) == {old: "item-001"}
    assert {**jobs.sids(root), "item-001": old} == before

    # Gone: both stay reserved. Back: it gets the one it had last, the other stays reserved.
    night(root, replace(rows, item_001=None), config)
    assert jobs.reserved(root) == {old: "item-001", moved: "item-001"}
    night(root, replace(rows, item_001="quite another"), config)
    assert jobs.sids(root)["item-001"] == moved
    assert jobs.reserved(root) == {old: "item-001"}

    # Nobody else ever gets the old one, though its codes are what they ask for.
    night(root, [*replace(rows, item_001="quite another"), *jobs.vector_rows({"x": "content 1"})])
    assert old not in jobs.sids(root).values()


def test_an_item_that_returns_unchanged_gets_its_id_back_though_it_was_reassigned(vectors):
    root, rows = vectors
    config = {"collisions": {"on_change": "reassign"}}
    items = jobs.table(root, "items").to_pylist()
    name = next(row["item_id"] for row in items if row["placement"] == "reassigned")
    before = jobs.sids(root)
    night(root, replace(rows, **{name.replace("-", "_"): None}), config)
    night(root, rows, config)
    assert jobs.sids(root) == before
    assert jobs.reserved(root) == {}


def test_an_edit_that_keeps_its_codes_moves_nothing(vectors):
    """Under `reassign` only other base codes move an item."""
    root, rows = vectors
    before = jobs.sids(root)
    nudged = {**rows[1], "embedding": [rows[1]["embedding"][0] + 1e-4, *rows[1]["embedding"][1:]]}
    night(root, [rows[0], nudged, *rows[2:]], {"collisions": {"on_change": "reassign"}})
    sid = before["item-001"]
    assert jobs.changes(root) == {"item-001": ("updated", sid, sid)}
    assert jobs.sids(root) == before


def test_labels_follow_the_catalog_though_no_id_changes(copied, vector_root, vector_catalog):
    root = copied(vector_root)
    rows = [
        {**row, "category_path": ["Home", f"Room {n % 3}"]} for n, row in enumerate(vector_catalog)
    ]
    night(root, rows)
    labels = {row["label"] for row in jobs.table(root, "nodes").to_pylist()}
    assert labels == {"Home", "Room 0", "Room 1", "Room 2"}
    assert jobs.changes(root) == {}
    night(root, vector_catalog)
    # Without categories the words of the titles name the nodes; every title here is "content ...".
    assert {row["label"] for row in jobs.table(root, "nodes").to_pylist()} == {None, "content"}
    # A node keeps the label it has: titles that change write no part of items again.
    before = item_files(root)
    night(root, [{**row, "title": "sofa"} for row in vector_catalog])
    assert {row["label"] for row in jobs.table(root, "nodes").to_pylist()} == {None, "content"}
    assert item_files(root) == before


def test_other_ngram_features_rewrite_the_columns_and_keep_the_ids(vectors):
    root, rows = vectors
    before = jobs.sids(root)
    outcome = night(root, rows, {"ngrams": [{"name": "trigram"}]})
    assert jobs.sids(root) == before
    assert jobs.table(root, "items").schema.names[-1] == "trigram"
    assert set(jobs.table(root, "ngrams")["feature"].to_pylist()) == {"trigram"}
    assert outcome.manifest.counts["updated"] == 0


@pytest.mark.parametrize("policy", ["suffix", "none"])
def test_other_policies_grow_too(tmp_path, policy):
    config = {"collisions": {"policy": policy}, "shards": {"rows_per_shard": 16}}
    contents = {f"i{n}": n % 40 for n in range(60)}
    root = tmp_path / "root"
    night(root, jobs.vector_rows(contents), config)
    before = jobs.sids(root)
    assert len(set(before.values())) == (60 if policy == "suffix" else 40)
    night(root, jobs.vector_rows(contents | {"new": 3, "i5": 6}), config)
    after = jobs.sids(root)
    assert {name: after[name] for name in before} == before
    assert (after["new"] in before.values()) == (policy == "none")
    items = {row["item_id"]: row for row in jobs.table(root, "items").to_pylist()}
    assert items["new"]["codes"] == items["i3"]["codes"]


def test_shards_are_cut_anew_when_the_catalog_has_grown(tmp_path):
    config = {"shards": {"rows_per_shard": 16}}
    root = tmp_path / "root"
    contents = {f"i{n}": n for n in range(20)}
    first = night(root, jobs.vector_rows(contents), config)
    before = jobs.sids(root)
    night(root, jobs.vector_rows({**contents, "i3": "retired soon"} | {"z": 1}), config)
    contents |= {f"j{n}": f"j{n}" for n in range(120)}
    contents.pop("i4")
    second = night(root, jobs.vector_rows(contents), config)
    assert len(second.manifest.shards) > 2 * len(first.manifest.shards)
    after = jobs.sids(root)
    assert {n: s for n, s in after.items() if n in before} == {
        n: s for n, s in before.items() if n != "i4"
    }
    assert jobs.reserved(root)[before["i4"]] == "i4"


def test_reserved_ids_are_released_after_some_generations(tmp_path):
    """Then, and only then, another item may get them; the old owner comes back as new."""
    root = tmp_path / "root"
    config = {"collisions": {"release_after": 2}, "shards": {"rows_per_shard": 16}}
    contents = {f"i{n}": n for n in range(40)}
    night(root, jobs.vector_rows(contents), config)
    sid = jobs.sids(root)["i3"]
    contents.pop("i3")
    night(root, jobs.vector_rows(contents), config)
    night(root, jobs.vector_rows(contents), config)
    assert jobs.reserved(root) == {sid: "i3"}
    contents["twin"] = 3
    night(root, jobs.vector_rows(contents), config)
    assert jobs.reserved(root) == {}
    assert jobs.sids(root)["twin"] == sid
    night(root, jobs.vector_rows(contents | {"i3": 3}), config)
    assert jobs.changes(root)["i3"][:2] == ("new", None)
    assert jobs.sids(root)["i3"] != sid


def test_stale_embeddings_are_rewritten(vectors):
    root, rows = vectors
    night(root, rows[50:])
    assert jobs.table(root, "embeddings").num_rows == 300
    night(root, rows[100:])
    assert jobs.table(root, "embeddings").num_rows == 200
    night(root, rows)  # those that return bring theirs again, and each item has one
    assert jobs.table(root, "embeddings").num_rows == 300


NAMES = [f"n{n}" for n in range(24)]
STEP = st.fixed_dictionaries(
    {
        "change": st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9), max_size=8),
        "remove": st.sets(st.sampled_from(NAMES), max_size=6),
        "order": st.integers(0, 1000),
        "shards": st.sampled_from([{"rows_per_shard": 16}, {"rows_per_shard": 1000}]),
        "batch_rows": st.sampled_from([1, 7, 4096]),
        "on_change": st.sampled_from(["keep", "reassign"]),
    }
)


@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, min_size=3, max_size=3))
def test_any_sequence_of_nights_keeps_every_promise(tmp_path_factory, steps):
    """Adds, edits, removals, returns, other orders and shards: the invariants hold each night.

    Contents are few, so that items share them and compete, and codebooks small, so that prefixes
    fill up and items spill.
    """
    root = tmp_path_factory.mktemp("nights") / "root"
    twin = tmp_path_factory.mktemp("twins") / "root"
    live = {name: number % 10 for number, name in enumerate(NAMES[:16])}
    owner: dict[int, str] = {}
    for step in steps:
        before = jobs.sids(root) if (root / "CURRENT").exists() else {}
        held = jobs.reserved(root) if before else {}
        was = dict(live)
        live |= step["change"]
        for name in step["remove"]:
            if len(live) > 4:
                live.pop(name, None)
        config = {
            "quantizer": {"kind": "rqkmeans", "iterations": 3, "codebook_sizes": [4, 2, 2]},
            "collisions": {"on_change": step["on_change"]},
            "shards": {**step["shards"], "batch_rows": step["batch_rows"]},
        }
        rows = jobs.vector_rows(live)
        outcome = night(root, jobs.shuffled(rows, step["order"]), config)
        catalog = jobs.write_rows(twin.parent / "tonight.parquet", rows)
        jobs.run(catalog, twin, {**config, "shards": {}})
        after, said = jobs.sids(root), jobs.changes(root)
        assert after == jobs.sids(twin)
        assert jobs.reserved(root) == jobs.reserved(twin)
        assert set(after) == set(live)
        assert len(set(after.values())) == len(after)
        for name, sid in after.items():
            assert owner.setdefault(sid, name) == name, "an ID was given to another item"
        for name, sid in before.items():
            if name not in live:
                assert said[name] == ("retired", sid, None)
            elif after[name] != sid:
                assert step["on_change"] == "reassign" and was[name] != live[name]
                assert said[name] == ("moved", sid, after[name])
        for sid, name in held.items():
            assert after.get(name) == sid or jobs.reserved(root).get(sid) == name
        assert outcome.manifest.counts["new"] == len(set(live) - set(before))
