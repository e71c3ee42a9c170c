"""The feature store, with the real Feast: exact features, nothing of retired items, restarts."""

from __future__ import annotations

import datetime
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.feature_log import FeatureLog
from pipelines.feature_store import (
    VIEW,
    FeastOutcome,
    feature_names,
    open_store,
    read_online,
    sync_feature_store,
)
from pipelines.published_tables import PublishedTables
from pipelines.root import Root
from tests.pipelines.jobs import (
    AS_OF,
    add,
    command,
    current,
    run,
    sids,
    table,
    vector_rows,
    write_rows,
)

pytest.importorskip("feast", reason="2026-11: needs the extra `feast`, which CI installs")

DAY = datetime.timedelta(days=1)
FEATURES = {"ngrams": [{"name": "unigram"}, {"name": "prefix_ngram"}]}
WIDE = {
    "quantizer": {"kind": "rqkmeans", "iterations": 2, "codebook_sizes": [256] * 8},
    "ngrams": [{"name": "unigram"}],
}
CONTENTS = {f"item-{number:03d}": f"content {number % 50}" for number in range(60)}


def publish(folder: Path, contents: dict[str, Any], day: float = 0, config: Any = None) -> Path:
    catalog = write_rows(folder / "catalog.parquet", vector_rows(contents))
    run(catalog, folder / "root", config or FEATURES, as_of=AS_OF + day * DAY)
    return folder / "root"


def sync(root: Path, **options: Any) -> FeastOutcome:
    return sync_feature_store(Root(str(root)), str(root.parent / "repo"), **options)


def online(root: Path, names: list[str], features: list[str]) -> list[dict[str, Any]]:
    """Reads items from the online store, as rows."""
    found = read_online(open_store(str(root.parent / "repo")), names, features)
    return [{name: found[name][row] for name in features} for row in range(len(names))]


def assert_store_is_published(root: Path, gone: tuple[str, ...] = ("never-seen",)) -> None:
    """Asserts that the online store gives exactly the live items, and nothing else it knows."""
    items = table(root, "items")
    left_out = ("item_id", "path_labels", "event_timestamp", "created_timestamp")
    features = [name for name in items.schema.names if name not in left_out]
    assert {"sid", "codes", "unigram", "prefix_ngram", "quantization_error"} <= set(features)
    rows = items.to_pylist()
    expected = [{name: row[name] for name in features} for row in rows]
    assert online(root, [row["item_id"] for row in rows], features) == expected
    assert online(root, list(gone), features) == [dict.fromkeys(features)] * len(gone)


def training_set(root: Path, events: list[tuple[str, float]], feature: str) -> dict[Any, Any]:
    """Returns {(item, day): feature} from Feast's point-in-time join."""
    import pandas as pd

    names, days = zip(*events, strict=True)
    frame = pd.DataFrame(
        {"item_id": names, "event_timestamp": [AS_OF + day * DAY for day in days], "day": days}
    )
    store = open_store(str(root.parent / "repo"))
    joined = store.get_historical_features(frame, features=[f"{VIEW}:{feature}"]).to_df()
    # Feast gives back another order than it was given.
    return {(row["item_id"], row["day"]): row[feature] for row in joined.to_dict("records")}


def test_every_feature_of_every_item_comes_back_exactly(tmp_path: Path) -> None:
    root = publish(tmp_path, CONTENTS)
    outcome = sync(root)
    assert (outcome.log.changed, outcome.log.gone, outcome.materialized) == (60, 0, 60)
    assert_store_is_published(root)
    first = table(root, "items").slice(0, 1).to_pylist()[0]
    assert outcome.item["item_id"] == first["item_id"]
    assert outcome.item["prefix_ngram"] == first["prefix_ngram"]
    assert int(outcome.item["sid_text"]) == first["sid"]


def test_a_night_writes_what_changed_and_removes_what_went(tmp_path: Path) -> None:
    root = publish(tmp_path, CONTENTS)
    sync(root)
    before = sids(root)
    tonight = {**CONTENTS, "item-005": "another content", "item-900": "new"}
    del tonight["item-001"], tonight["item-002"]
    publish(tmp_path, tonight, day=1)
    outcome = sync(root)
    assert (outcome.log.changed, outcome.log.gone, outcome.materialized) == (2, 2, 4)
    assert_store_is_published(root, gone=("item-001", "item-002", "never-seen"))
    after = sids(root)
    assert training_set(
        root,
        [("item-001", 0.5), ("item-001", 1.5), ("item-900", 0.5), ("item-900", 1.5), ("no", 1)],
        "sid_text",
    ) == {
        ("item-001", 0.5): str(before["item-001"]),
        ("item-001", 1.5): None,
        # Of an event before all that is known of its item, Feast gives no row.
        ("item-900", 1.5): str(after["item-900"]),
        ("no", 1): None,
    }

    again = sync(root, item_id="item-900")
    assert (again.log.changed, again.log.gone, again.materialized) == (0, 0, 0)
    assert again.item["sid"] == after["item-900"]

    publish(tmp_path, {**tonight, "item-001": CONTENTS["item-001"]}, day=2)
    outcome = sync(root)
    assert (outcome.log.changed, outcome.log.gone) == (1, 0)
    assert_store_is_published(root, gone=("item-002",))
    assert sids(root)["item-001"] == before["item-001"]


def test_what_a_backfill_added_is_written(tmp_path: Path) -> None:
    """With labels that items gain while their features stay, and with learned pieces."""

    def catalog(name: str, contents: dict[str, Any]) -> str:
        rows = vector_rows(contents)
        labelled = [{**row, "category_path": ["all", row["title"][-1:]]} for row in rows]
        return write_rows(tmp_path / name, labelled)

    root = tmp_path / "root"
    pieces = {"ngrams": [*FEATURES["ngrams"], {"name": "spm", "table_size": 60}]}
    run(catalog("all.parquet", CONTENTS), root, pieces)
    assert sync(root).materialized == 60
    more = {"item-005": "another content", "item-900": "new"}
    add(catalog("more.parquet", more), root, as_of=AS_OF + DAY)
    outcome = sync(root)
    assert (outcome.log.changed, outcome.log.gone, outcome.materialized) == (2, 0, 2)
    assert "spm" in outcome.features
    assert_store_is_published(root)


def test_ids_of_64_bits_survive(tmp_path: Path) -> None:
    contents = {f"item-{number}": number for number in range(200)}
    root = publish(tmp_path, contents, config=WIDE)
    outcome = sync(root)
    published = sids(root)
    assert max(published.values()) > 2**63
    assert "sid" not in outcome.features
    names = list(published)
    assert [int(row["sid_text"]) for row in online(root, names, ["sid_text"])] == [
        published[name] for name in names
    ]
    events = [(name, 1.0) for name in (*names, "unknown")]
    joined = training_set(root, events, "sid_text")
    assert joined.pop(("unknown", 1.0)) is None
    assert {name: int(text) for (name, _), text in joined.items()} == published


def test_an_interrupted_run_is_finished_by_the_next(tmp_path: Path) -> None:
    root = publish(tmp_path, CONTENTS)
    sync(root)
    publish(tmp_path, {**CONTENTS, "item-900": "new"}, day=1)
    tables = PublishedTables(Root(str(root)), *Root(str(root)).require_published())
    # What a process that was killed before it came to the online store leaves behind.
    log = FeatureLog(str(tmp_path / "repo" / "data" / "items.parquet"))
    assert log.update(tables, sid_bits=28).changed == 1
    assert online(root, ["item-900"], ["sid"]) == [{"sid": None}]
    outcome = sync(root)
    assert (outcome.log.changed, outcome.materialized) == (0, 1)
    assert_store_is_published(root)


def test_a_time_that_runs_backwards_starts_the_history_anew(tmp_path: Path) -> None:
    root = publish(tmp_path, CONTENTS, day=5)
    sync(root)
    tonight = {**CONTENTS, "item-005": "another content"}
    del tonight["item-001"]
    publish(tmp_path, tonight, day=4)
    outcome = sync(root)
    assert "not later" in outcome.log.restarted
    assert (outcome.log.changed, outcome.log.gone, outcome.materialized) == (59, 1, 60)
    assert_store_is_published(root, gone=("item-001",))


def test_an_emptied_online_store_is_filled_again(tmp_path: Path) -> None:
    root = publish(tmp_path, CONTENTS)
    sync(root)
    (tmp_path / "repo" / "data" / "online.db").unlink()
    assert command(tmp_path, "feast", "--root", str(root), "--repo", str(tmp_path / "repo")) == 1
    assert sync(root, everything=True).materialized == 60
    assert_store_is_published(root)


def test_the_repository_is_one_that_feast_reads(tmp_path: Path) -> None:
    root = publish(tmp_path, CONTENTS)
    repo = tmp_path / "repo"
    repo.mkdir()
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": "elsewhere.db",
        "online_store": {"type": "sqlite", "path": "mine.db"},
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    outcome = sync(root)
    assert (repo / "elsewhere.db").exists()
    assert (repo / "mine.db").exists()
    assert yaml.safe_load((repo / "feature_store.yaml").read_text("utf-8")) == settings
    # Feast's own command finds every definition in the folder.
    feast = [sys.executable, "-c", "from feast.cli.cli import cli; cli()", "-c", str(repo)]
    subprocess.run([*feast, "apply"], check=True, capture_output=True)
    assert_store_is_published(root)
    view = open_store(str(repo)).get_feature_view(VIEW)
    assert sorted(field.name for field in view.features) == sorted(outcome.features)
    assert view.entities == ["item"]
    stored = FeatureLog(str(repo / "data" / "items.parquet")).read()
    assert outcome.features == feature_names(stored.schema)


def test_the_command_refuses_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--root", str(tmp_path / "root"), "--repo", str(tmp_path / "repo")]
    assert command(tmp_path, "feast", *where) == 2
    assert "nothing is published" in capsys.readouterr().err
    assert not (tmp_path / "repo").exists()
    root = publish(tmp_path, CONTENTS)
    pointer = current(root)
    assert command(tmp_path, "feast", *where, "--item", "absent") == 2
    assert "has no such item" in capsys.readouterr().err
    with open(tmp_path / "repo" / "data" / ".semid.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command(tmp_path, "feast", *where) == 1
    assert "another process" in capsys.readouterr().err
    assert command(tmp_path, "feast", *where, "--item", "item-007", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["item"]["item_id"], said["item"]["sid"]) == ("item-007", sids(root)["item-007"])
    assert len(said["item"]["content_hash"]) == 32
    assert command(tmp_path, "feast", *where) == 0
    assert "0 rows written" in capsys.readouterr().out
    assert current(root) == pointer
