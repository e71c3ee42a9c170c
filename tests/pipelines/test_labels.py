"""What IDs read: labels of nodes and items, night after night."""

import json

import pytest

from tests.pipelines import jobs

SMALL = {"shards": {"rows_per_shard": 40}}
WORDS = ["wok", "pan", "lid", "tent", "rope", "lamp", "sofa", "vase"]


def rows_of(numbers, shelf=None):
    rows = jobs.vector_rows({f"item-{n:03d}": f"content {n}" for n in numbers})
    for n, row in zip(numbers, rows, strict=True):
        row["title"] = f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} {n}"
        if shelf is not None:
            row["category_path"] = [f"{shelf} {n % 2}", f"{WORDS[n % 8]}"]
    return rows


def night(root, rows):
    jobs.run(jobs.write_rows(root.parent / "tonight.parquet", rows), root, SMALL)
    jobs.assert_sound(root)
    return {tuple(r["codes"]): r["label"] for r in jobs.table(root, "nodes").to_pylist()}


def read(root):
    return {r["item_id"]: r["path_labels"] for r in jobs.table(root, "items").to_pylist()}


def item_parts(root, generation):
    folder = next(path for path in (root / "generations").iterdir() if path.name == generation)
    return {path.name: path.stat().st_ino for path in (folder / "items").iterdir()}


@pytest.mark.parametrize("shelf", ["shelf", None])
def test_labels_stay_while_the_catalog_grows(tmp_path, shelf):
    root = tmp_path / "root"
    first = night(root, rows_of(range(200), shelf))
    before = read(root)
    assert set(before["item-000"]) - {None}
    for row in jobs.table(root, "items").to_pylist():
        assert row["path_labels"] == [first[tuple(row["codes"][:depth])] for depth in (1, 2, 3)]
    # Every category is renamed, and every title; two items come and one goes.
    later = [{**row, "title": "other words"} for row in rows_of(range(1, 202), shelf and "rack")]
    second = night(root, later)
    assert {codes: label for codes, label in second.items() if codes in first} == {
        codes: first[codes] for codes in second if codes in first
    }
    new = [label for codes, label in second.items() if codes not in first]
    after = read(root)
    assert new and {name: after[name] for name in before if name in after} == {
        name: labels for name, labels in before.items() if name in after
    }
    generations = sorted(path.name for path in (root / "generations").iterdir())
    parts = [item_parts(root, generation) for generation in generations]
    assert set(parts[0].values()) & set(parts[1].values()), "a part without changes was rewritten"


def test_everything_is_labelled_anew_when_every_part_is_written(tmp_path):
    root = tmp_path / "root"
    night(root, rows_of(range(60), "shelf"))
    labels = night(root, rows_of(range(300), "rack"))
    assert {label for codes, label in labels.items() if len(codes) == 1} == {"rack 0", "rack 1"}


def test_a_killed_index_link_labels_as_an_undisturbed_one(tmp_path, monkeypatch):
    from semid_transforms import nodes

    catalog = jobs.write_rows(tmp_path / "c.parquet", rows_of(range(200)))
    jobs.run(catalog, tmp_path / "calm", SMALL)
    whole, calls = nodes.label_items, []

    def dies_after_some(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("the power went out")
        return whole(*arguments)

    monkeypatch.setattr(nodes, "label_items", dies_after_some)
    with pytest.raises(Exception, match="power went out"):
        jobs.run(catalog, tmp_path / "killed", SMALL)
    jobs.run(catalog, tmp_path / "killed", SMALL)
    jobs.assert_sound(tmp_path / "killed")
    assert jobs.fingerprints(tmp_path / "killed") == jobs.fingerprints(tmp_path / "calm")


def test_show_and_tables_say_the_same(tmp_path, capsys):
    root = tmp_path / "root"
    night(root, rows_of(range(60), "shelf"))
    capsys.readouterr()
    assert jobs.command(tmp_path, "show", "--root", str(root), "--item", "item-007", "--json") == 0
    assert json.loads(capsys.readouterr().out)["path_labels"] == read(root)["item-007"]
