"""Which figures of the quality table a night measures anew, and which it carries over."""

import json

import pytest

from pipelines.root import Root
from pipelines.summary import metrics_text
from tests.pipelines import jobs

CONTENTS = {f"item-{n:03d}": f"content {n % 240}" for n in range(300)}
DISTANCES = ("prefix_cosine", "neighbourhood", "one_minus_r2")


def night(root, contents, category="A", config=None):
    """Runs a full catalog and returns the quality table; items named `o...` are of category B."""
    rows = jobs.vector_rows(contents)
    for row in rows:
        row["category_path"] = ["B" if row["item_id"].startswith("o") else category]
    jobs.run(jobs.write_rows(root.parent / "tonight.parquet", rows), root, config)
    jobs.assert_sound(root)
    return metrics(root)


def metrics(root):
    generation = Root(str(root)).published().generation
    return json.loads((root / "generations" / generation / "metrics.json").read_text())


def distances(table):
    return [table[when][name] for when in ("before", "after") for name in DISTANCES]


@pytest.fixture
def root(tmp_path):
    night(tmp_path / "root", CONTENTS)
    return tmp_path / "root"


def changed(number, content):
    return CONTENTS | {f"item-{n:03d}": f"{content} {n}" for n in range(number)}


def test_a_few_changes_leave_distances_as_they_were_and_count_everything(root):
    first = metrics(root)
    assert first["changed_since_measured"] == 0
    assert "measured " not in metrics_text(first)
    few = changed(8, "other") | {f"o-{n}": f"new {n}" for n in range(2)}
    del few["item-299"]
    second = night(root, few)
    assert distances(second) == distances(first)
    assert second["measured_generation"] == first["measured_generation"]
    assert second["changed_since_measured"] == 11
    assert second["counted_generation"] != first["counted_generation"]
    assert second["items"] == sum(second["placements"].values()) == 301
    assert second["before"]["levels"] != first["before"]["levels"]
    assert "kept" not in second
    assert f"{second['measured_generation']}, 11 changes ago" in metrics_text(second)
    anew = night(root, few | {"item-000": "again"}, config={"quality": {"max_stale_share": 0.0}})
    assert distances(anew) != distances(first)
    assert anew["measured_generation"] == anew["counted_generation"]


def test_category_agreement_is_always_of_this_catalog(root):
    """Categories change without any content, so nothing else says that they did."""
    assert metrics(root)["before"]["category_agreement"][0]["chance"] == 1
    mixed = night(root, CONTENTS | {f"o-{n}": f"new {n}" for n in range(10)})
    assert mixed["changed_since_measured"] == 10
    chance = mixed["before"]["category_agreement"][0]["chance"]
    assert chance == pytest.approx((300 * 299 + 10 * 9) / (310 * 309))
    none = night(root, CONTENTS, category="", config={"quality": {"max_stale_share": 1.0}})
    assert none["changed_since_measured"] == 20
    assert "category_agreement" not in none["before"] | none["after"]


def test_changes_add_up_over_nights_and_backfills_until_distances_are_measured(root):
    first = metrics(root)
    counted = night(root, changed(6, "one"))
    rows = jobs.vector_rows({f"new-{n}": f"fresh {n}" for n in range(6)})
    jobs.add(jobs.write_rows(root.parent / "few.parquet", rows), root)
    added = metrics(root)
    assert added["changed_since_measured"] == 12
    assert added["measured_generation"] == first["measured_generation"]
    assert added["counted_generation"] == counted["counted_generation"]
    grown = changed(6, "one") | {row["item_id"]: row["title"] for row in rows}
    last = night(root, grown | {f"item-{n:03d}": f"two {n}" for n in range(6)})
    assert last["changed_since_measured"] == 0
    assert last["measured_generation"] == last["counted_generation"]
    assert distances(last) != distances(first)
