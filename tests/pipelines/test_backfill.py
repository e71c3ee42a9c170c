"""A few rows at a time: what is given gets IDs, everything else stays as it is, byte for byte."""

import json
import os

import pytest

from pipelines.backfill import NothingToDo
from pipelines.errors import MismatchError
from pipelines.generation import Outcome
from pipelines.root import Root
from pipelines.runs import Run
from semid_transforms import files
from tests.pipelines import jobs

GROWN = {f"item-{n:03d}": f"content {n % 240}" for n in range(300)}


def given(root, contents, name="given.parquet"):
    return jobs.write_rows(root.parent / name, jobs.vector_rows(contents))


def add(root, contents, config=None, **options):
    """Backfills items and checks that the result is sound."""
    outcome = jobs.add(given(root, contents), root, config, **options)
    jobs.assert_sound(root)
    return outcome


def night(root, contents, config=None):
    jobs.run(given(root, contents, "tonight.parquet"), root, config)
    jobs.assert_sound(root)


def folder(root):
    return root / "generations" / Root(str(root)).published().generation


def part_names(root, table):
    manifest = Root(str(root)).require_published()[1]
    return sorted(part.path for part in manifest.table(table))


@pytest.fixture
def root(copied, vector_root):
    return copied(vector_root)


def test_new_items_are_appended_and_nothing_else_is_written(root):
    before, first = jobs.sids(root), folder(root)
    outcome = add(root, {f"new-{n}": f"content {n}" for n in range(20)})
    after = jobs.sids(root)
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 320
    assert set(jobs.changes(root)) == set(after) - set(before)
    manifest = outcome.manifest
    assert (manifest.command, manifest.counts["items"], manifest.counts["new"]) == (
        "backfill",
        320,
        20,
    )
    assert manifest.total.live == 20
    for table in ("items", "catalog", "nodes", "ngrams", "embeddings"):
        carried = [p for p in part_names(root, table) if (first / p).exists()]
        assert carried and len(part_names(root, table)) == len(carried) + 1
        for path in carried:
            assert os.path.samefile(first / path, folder(root) / path)
    metrics = json.loads((folder(root) / "metrics.json").read_text())
    assert metrics["items"] == sum(metrics["placements"].values()) == 320
    assert metrics["measured_generation"] == first.name


def test_a_backfill_gives_the_ids_that_a_full_run_gives(copied, vector_root, tmp_path):
    """Whatever is new or changed: the same occupancy, the same contest, the same answer."""
    config = {"collisions": {"on_change": "reassign"}}
    grown = {f"new-{n}": f"content {n}" for n in range(30)}
    grown |= {"item-003": "content 200", "item-007": "quite another"}
    left = copied(vector_root)
    outcome = add(left, grown, config)
    changed = jobs.changes(left)
    assert outcome.manifest.counts["moved"] == 2
    right = tmp_path / "full" / "root"
    jobs.run(str(jobs.write_rows(right.parent / "c.parquet", jobs.vector_rows(GROWN))), right)
    night(right, GROWN | grown, config)
    assert jobs.sids(left) == jobs.sids(right)
    assert jobs.reserved(left) == jobs.reserved(right)
    assert changed == jobs.changes(right)
    # The night after, everything is in whole parts again, and equal to never having backfilled.
    night(left, GROWN | grown, config)
    assert not [path for path in part_names(left, "items") if "delta" in path]
    ours, theirs = (jobs.fingerprints(root, skip=("changes",)) for root in (left, right))
    for table in ("nodes", "ngrams", "trie", "catalog"):
        assert ours[table] == theirs[table], table


def test_a_changed_item_keeps_its_id_and_has_one_row(root):
    before = jobs.sids(root)
    add(root, {"item-010": "rewritten", "item-011": "content 11"})
    assert jobs.sids(root) == before
    sid = before["item-010"]
    assert jobs.changes(root) == {"item-010": ("updated", sid, sid)}
    catalog = {row["item_id"]: row["title"] for row in jobs.table(root, "catalog").to_pylist()}
    assert len(catalog) == 300 and catalog["item-010"] == "rewritten"
    items = {row["item_id"]: row for row in jobs.table(root, "items").to_pylist()}
    assert items["item-010"]["first_generation"].startswith("000001-")


def test_retired_items_return_and_moved_ones_own_both_ids(root):
    config = {"collisions": {"on_change": "reassign"}}
    before = jobs.sids(root)
    night(root, {n: c for n, c in GROWN.items() if n not in ("item-001", "item-002")}, config)
    add(root, {"item-001": "content 1", "item-020": "quite another"}, config)
    after = jobs.sids(root)
    moved = before["item-020"]
    assert after["item-001"] == before["item-001"]
    assert after["item-020"] != moved
    assert jobs.reserved(root) == {before["item-002"]: "item-002", moved: "item-020"}
    assert jobs.changes(root) == {
        "item-001": ("new", before["item-001"], before["item-001"]),
        "item-020": ("moved", moved, after["item-020"]),
    }
    # On top of that: the row that moved lies in a delta part, and moves again.
    add(root, {"item-020": "another still", "item-002": "content 2"}, config)
    again = jobs.sids(root)
    assert again["item-002"] == before["item-002"]
    assert {s for s, n in jobs.reserved(root).items() if n == "item-020"} == {
        moved,
        after["item-020"],
    } - {again["item-020"]}


def test_backfills_stack_and_the_next_night_merges_them(root):
    contents = dict(GROWN)
    for number in range(3):
        grown = {f"b{number}-{n}": f"content {n + number}" for n in range(5)}
        grown["item-030"] = f"version {number}"
        contents |= grown
        add(root, grown)
        assert len(jobs.table(root, "items")) == len(contents)
    assert len([p for p in part_names(root, "items") if "delta" in p]) == 3
    merged = jobs.sids(root)
    night(root, contents)
    assert jobs.sids(root) == merged
    assert jobs.changes(root) == {}
    for table in ("items", "catalog", "nodes", "ngrams"):
        assert not [path for path in part_names(root, table) if "delta" in path]


def test_the_same_rows_again_publish_nothing(root, tmp_path, capsys):
    catalog = given(root, {"a": "new", "item-000": "content 0"})
    arguments = ["backfill", "--catalog", catalog, "--root", str(root)]
    assert jobs.command(tmp_path, *arguments) == 0
    assert "published generation 000002-" in capsys.readouterr().out
    current = jobs.current(root)
    assert jobs.command(tmp_path, *arguments) == 0
    assert "nothing to do: generation 000002-" in capsys.readouterr().out
    assert jobs.command(tmp_path, *arguments, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["published"], said["rows"]["live"]) == (False, 2)
    assert jobs.current(root) == current
    assert len(list((root / "generations").iterdir())) == 2
    assert not list((root / "runs").glob("*"))


def test_no_rows_are_nothing_to_do_and_no_file_is_refused(root, tmp_path, capsys):
    current = jobs.current(root)
    (tmp_path / "none.jsonl").write_text("")
    arguments = ["backfill", "--root", str(root), "--catalog"]
    assert jobs.command(tmp_path, *arguments, str(tmp_path / "none.jsonl")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert jobs.command(tmp_path, *arguments, str(tmp_path / "absent.jsonl")) == 3
    (tmp_path / "bad.jsonl").write_text('{"item_id": "x"}\n{"title": "y"}\n')
    assert jobs.command(tmp_path, *arguments, str(tmp_path / "bad.jsonl")) in (2, 5)
    bad = jobs.write_rows(tmp_path / "worse.parquet", [*jobs.vector_rows({"x": 1}), {"title": "t"}])
    assert jobs.command(tmp_path, *arguments, bad) == 3
    assert "more than input.max_reject_share" in capsys.readouterr().err
    assert jobs.current(root) == current
    assert jobs.command(tmp_path, "backfill", "--catalog", bad, "--root", str(tmp_path / "r")) == 2
    assert "run `semid tokenize` first" in capsys.readouterr().err


def test_rejects_are_kept_though_nothing_is_published(root, tmp_path, capsys):
    rows = [*jobs.vector_rows({"item-000": "content 0"}), {"title": "t"}]
    catalog = jobs.write_rows(root.parent / "some.jsonl", rows)
    config = {"input": {"max_reject_share": 0.6}}
    arguments = ["backfill", "--catalog", catalog, "--root", str(root)]
    assert jobs.command(tmp_path, *arguments, "--json", config=config) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rejects"] == {"missing_id": 1}
    assert len(files.list_files(said["rejects_folder"], ".parquet")) == 1


def test_only_safe_settings_can_be_changed(root):
    catalog = given(root, {"a": "new"})
    frozen = [
        {"quantizer": {"kind": "rqkmeans", "iterations": 6}},
        {"ngrams": [{"name": "trigram"}]},
        {"text": {"parts": ["{title}"]}},
        {"collisions": {"policy": "suffix"}},
    ]
    for config in frozen:
        with pytest.raises(MismatchError, match=next(iter(config))):
            jobs.add(catalog, root, config)
    published = Root(str(root)).require_published()[1].config
    nightly = {name: published[name] for name in ("quantizer", "ngrams", "text")}
    outcome = jobs.add(catalog, root, {**nightly, "gates": {"max_suffixed_share": 0.5}})
    assert isinstance(outcome, Outcome)
    config = Root(str(root)).require_published()[1].config
    assert config == {**published, "gates": {**published["gates"], "max_suffixed_share": 0.5}}


def test_an_edit_that_embeds_the_same_changes_nothing(root):
    rows = [{**row, "title": "other words"} for row in jobs.vector_rows({"item-000": "content 0"})]
    outcome = jobs.add(jobs.write_rows(root.parent / "same.parquet", rows), root)
    assert isinstance(outcome, NothingToDo)


@pytest.mark.parametrize("last", ["read", "assign", "place", "index"])
def test_a_backfill_killed_after_a_link_resumes_there(copied, vector_root, monkeypatch, last):
    config = {"collisions": {"on_change": "reassign"}}
    contents = {"a": "content 5", "item-009": "moves", "b": "new"}
    root = copied(vector_root)
    catalog = given(root, contents)
    link, done = Run.link, []

    def dying(self, name, work):
        result = link(self, name, lambda: done.append(name) or work())
        if name == last:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Run, "link", dying)
    with pytest.raises(KeyboardInterrupt):
        jobs.add(catalog, root, config)
    first = list(done)
    jobs.assert_sound(root)
    last = ""
    jobs.add(catalog, root, config)
    assert len(done) == len(set(done)) and first[-1] in (
        "read",
        "embed",
        "assign",
        "place",
        "index",
    )
    jobs.assert_sound(root)
    assert len(jobs.sids(root)) == 302


def test_text_is_embedded_only_where_it_is_new(copied, text_root, text_config):
    root = copied(text_root)
    rows = jobs.products(300)
    before = jobs.sids(root)
    fresh = [{**row, "item_id": f"N{n}"} for n, row in enumerate(jobs.products(5, seed=8))]
    twin = {**rows[9], "item_id": "TWIN"}
    catalog = jobs.write_rows(root.parent / "few.jsonl", [*fresh, twin, rows[3]])
    outcome = jobs.add(catalog, root)
    jobs.assert_sound(root)
    assert outcome.results["embed"]["counters"]["embed/texts-encoded"] <= 5
    assert outcome.results["read"]["unchanged"] == 1
    after = jobs.sids(root)
    assert len(after) == 306
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("policy", ["suffix", "none"])
def test_other_policies_backfill_too(tmp_path, policy):
    config = {"collisions": {"policy": policy, "on_change": "reassign"}}
    root = tmp_path / "root"
    night(root, {f"i{n}": n % 40 for n in range(60)}, config)
    before = jobs.sids(root)
    add(root, {"new": 3, "other": 3, "i5": 6})
    after = jobs.sids(root)
    assert {n: after[n] for n in before if n != "i5"} == {
        n: s for n, s in before.items() if n != "i5"
    }
    items = {row["item_id"]: row for row in jobs.table(root, "items").to_pylist()}
    assert items["new"]["codes"] == items["i3"]["codes"] == items["other"]["codes"]
    assert (after["new"] == after["other"]) == (policy == "none")


def test_many_shards_are_found_and_merged(tmp_path):
    """Rows land in several shards and several delta parts; a night touches only those."""
    config = {"shards": {"rows_per_shard": 16}}
    root = tmp_path / "root"
    contents = {f"i{n}": n for n in range(200)}
    night(root, contents, config)
    before = jobs.sids(root)
    grown = {f"j{n}": f"j{n}" for n in range(40)} | {"i7": "changed", "i8": 8}
    add(root, grown, config)
    assert len([p for p in part_names(root, "items") if "delta" in p]) > 1
    after = jobs.sids(root)
    assert {name: after[name] for name in before} == before
    assert jobs.changes(root)["i7"][0] == "updated"
    night(root, contents | grown, config)
    assert jobs.sids(root) == after
