"""Brings a Feast repository up to a root and compares every item's features with what is published.

  python -m benchmarks.feast_round_trip ROOT [--repo FOLDER]

Needs the extra `feast`. Compares each value of each live item as the online store returns it, and
as a point-in-time join returns it, with the row of `items/`; exits with 1 on a mismatch.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from pipelines.feature_store import VIEW, open_store, read_online, sync_feature_store
from pipelines.published_tables import PublishedTables
from pipelines.root import Root
from schemas.config import fingerprint

BATCH = 1000


def mismatches(published: pa.Table, found: dict[str, list]) -> int:
    """Counts values that differ, null included."""
    wrong = 0
    for name, values in found.items():
        expected = published[name].to_pylist()
        wrong += sum(a != b for a, b in zip(expected, values, strict=True))
    return wrong


def main() -> int:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--repo", help="default: a temporary folder")
    options = parser.parse_args()
    root = Root(options.root)
    items = PublishedTables(root, *root.require_published()).read("items")
    items = items.append_column("sid_text", items["sid"].cast(pa.string()))
    with tempfile.TemporaryDirectory() as temporary:
        repo = options.repo or temporary
        started = time.perf_counter()
        outcome = sync_feature_store(root, repo)
        seconds = time.perf_counter() - started
        print(f"{outcome.materialized:,} rows written to the online store in {seconds:.1f} s")
        store = open_store(repo)
        names = items["item_id"].to_pylist()
        wrong = 0
        for first in range(0, len(names), BATCH):
            chosen = names[first : first + BATCH]
            found = read_online(store, chosen, outcome.features)
            assert found.pop("item_id") == chosen
            wrong += mismatches(items.slice(first, BATCH), found)
        compared = len(names) * len(outcome.features)
        print(
            f"online:     {compared:,} values of {len(names):,} items compared, {wrong} mismatches"
        )
        joined, missing = point_in_time(store, items, outcome.features)
        print(
            f"historical: {compared:,} values beside an unknown item, {joined} mismatches, "
            f"{missing} features of the unknown item not null"
        )
    return 1 if wrong or joined or missing else 0


def point_in_time(store: FeatureStore, items: pa.Table, features: list[str]) -> tuple[int, int]:
    """Joins every item, and one that does not exist, at one time; counts what is wrong."""
    import pandas as pd

    unknown = fingerprint({"an item": "that does not exist"})
    names = [*items["item_id"].to_pylist(), unknown]
    when = pc.max(items["event_timestamp"]).as_py() + datetime.timedelta(days=1)
    asked = pd.DataFrame({"item_id": names, "event_timestamp": when})
    frame = store.get_historical_features(asked, features=[f"{VIEW}:{name}" for name in features])
    frame = frame.to_df().set_index("item_id").loc[names]  # Feast keeps no order
    wrong = missing = 0
    for name in features:
        values = [_plain(value) for value in frame[name]]
        missing += values.pop() is not None
        wrong += mismatches(items, {name: values})
    return wrong, missing


def _plain(value: object) -> object:
    """Turns what pandas holds into what Arrow gives: lists, and None for a missing value."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if value is None or value != value else value


if __name__ == "__main__":
    sys.exit(main())
