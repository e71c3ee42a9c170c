"""A Feast repository over the published items: written, applied, materialized and read back."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import runpy
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from models.sid import SidLayout
from pipelines.errors import CommandError, ConflictError, UsageError
from pipelines.feature_log import FeatureLog, LogUpdate
from pipelines.published_tables import PublishedTables
from pipelines.root import Root
from semid_transforms import files
from semid_transforms.feature_rows import is_gone, latest_rows

if TYPE_CHECKING:
    from feast import FeatureStore

_log = logging.getLogger(__name__)

VIEW = "semantic_ids"
"""Name of the feature view, of the feature service and of the file that defines them."""

_STORE = {
    "project": "semid",
    "provider": "local",
    "registry": "data/registry.db",
    "online_store": {"type": "sqlite", "path": "data/online.db"},
    "offline_store": {"type": "dask"},
    "entity_key_serialization_version": 3,
    # Without it a whole history passes through memory as Python objects, about 5 KB an item.
    "materialization": {"online_write_batch_size": 10_000},
}
_DEFINITIONS = '''"""Semantic IDs of items, written by `semid feast`; changes made here are lost.

Put definitions of your own in another file of this folder.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import {types}

item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)

semantic_ids_source = FileSource(
    name="semantic_ids_source",
    path="data/items.parquet",
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",
)

semantic_ids_view = FeatureView(
    name="{view}",
    entities=[item],
    ttl=timedelta(0),  # an ID never expires; a retired item's row is overwritten with nulls
    schema=[
        Field(name="item_id", dtype=String),
{fields}
    ],
    source=semantic_ids_source,
)

semantic_ids_service = FeatureService(name="{view}", features=[semantic_ids_view])
'''
_TYPES = {
    pa.string(): "String",
    pa.int32(): "Int32",
    pa.int64(): "Int64",
    pa.float32(): "Float32",
}


@dataclasses.dataclass(frozen=True)
class FeastOutcome:
    """What a synchronisation did.

    Attributes:
      generation: the published generation.
      log: what it added to the history.
      materialized: rows written to the online store, tombstones included.
      features: names, in order.
      item: an item as read back from the online store; empty when there is no live item.
    """

    generation: str
    log: LogUpdate
    materialized: int
    features: list[str]
    item: dict[str, Any]


def sync_feature_store(
    root: Root, folder: str, item_id: str | None = None, everything: bool = False
) -> FeastOutcome:
    """Brings a Feast repository up to the published generation.

    Only what changed since the last run goes to the online store; items that were retired get a row
    of nulls there, because Feast has no call that deletes one. An interrupted run is finished by
    the next one.

    Args:
      root: where IDs are published.
      folder: the repository, local; made when it is not there. A `feature_store.yaml` that is there
        already decides on the online store and the registry.
      item_id: item to read back; the first one when None.
      everything: write every item to the online store again, as after it was emptied.

    Raises:
      UsageError: Feast is not installed, nothing is published, or the item is not.
      ConflictError: another process works on the repository.
      CommandError: the online store gives back something else than what is published.
    """
    _require_feast()
    tables = PublishedTables(root, *root.require_published())
    layout = SidLayout.from_json(tables.manifest.fingerprints.layout)
    data = os.path.join(folder, "data")
    files.make_folder(data)
    with _exclusive(data):
        log = FeatureLog(os.path.join(data, "items.parquet"))
        update = log.update(tables, layout.bits)
        rows = latest_rows(log.read())
        wanted = _row_to_show(rows, item_id, tables.generation)
        store = _apply(folder, rows.schema)
        materialized = _materialize(store, log, os.path.join(data, "materialized.json"), everything)
        features = feature_names(rows.schema)
        item = _read_back(store, wanted, features) if wanted else {}
    return FeastOutcome(tables.generation, update, materialized, features, item)


def read_online(store: FeatureStore, item_ids: list[str], features: list[str]) -> dict[str, Any]:
    """Returns {feature: values} of items from the online store, in the order of the ids."""
    return store.get_online_features(
        features=[f"{VIEW}:{name}" for name in features],
        entity_rows=[{"item_id": name} for name in item_ids],
    ).to_dict()


def open_store(folder: str) -> FeatureStore:
    """Opens a repository that was applied."""
    _require_feast()
    from feast import FeatureStore

    return FeatureStore(repo_path=folder)


def definitions(schema: pa.Schema) -> str:
    """Returns the Python file that defines entity, source, feature view and feature service."""
    names = feature_names(schema)
    types = {name: _feast_type(schema.field(name).type) for name in names}
    used = {part for text in types.values() for part in text.rstrip(")").split("(")} | {"String"}
    fields = "\n".join(f'        Field(name="{name}", dtype={types[name]}),' for name in names)
    return _DEFINITIONS.format(types=", ".join(sorted(used)), view=VIEW, fields=fields)


def feature_names(schema: pa.Schema) -> list[str]:
    """Returns the features of the log: every column but the item and the timestamps."""
    keys = ("item_id", "event_timestamp", "created_timestamp")
    return [name for name in schema.names if name not in keys]


def _feast_type(column: pa.DataType) -> str:
    if pa.types.is_list(column):
        return f"Array({_feast_type(column.value_type)})"
    return "Bytes" if pa.types.is_fixed_size_binary(column) else _TYPES[column]


def _apply(folder: str, schema: pa.Schema) -> FeatureStore:
    """Writes the repository's files and registers what they define."""
    from feast import Entity, FeatureService, FeatureView, FileSource

    settings = os.path.join(folder, "feature_store.yaml")
    if not os.path.exists(settings):
        files.write_bytes(settings, yaml.safe_dump(_STORE, sort_keys=False).encode())
    path = os.path.join(folder, f"{VIEW}.py")
    files.write_bytes(path, definitions(schema).encode())
    found = runpy.run_path(path).values()
    store = open_store(folder)
    kinds = (Entity, FileSource, FeatureView, FeatureService)
    # Feast prints its progress; standard output is the summary's alone.
    with contextlib.redirect_stdout(sys.stderr):
        store.apply([value for value in found if isinstance(value, kinds)])
    return store


def _materialize(store: FeatureStore, log: FeatureLog, marker: str, everything: bool) -> int:
    """Writes what is not online yet and returns the number of rows; remembers how far it came."""
    rows = log.read(["item_id", "event_timestamp"])
    done = json.loads(files.read_bytes(marker)) if files.exists(marker) else {}
    # A log that was started anew may differ from what is online in any row.
    known = not everything and done.get("started") == log.started()
    first = done["rows"] if known else 0
    if first == rows.num_rows:
        return 0
    times = rows["event_timestamp"]
    # Feast takes a window of time. It ends with the log: one that ends earlier could bring a row
    # back that was replaced after it.
    start, end = pc.min(times[first:]).as_py(), pc.max(times).as_py()
    _log.info("writing %d changed rows to the online store", rows.num_rows - first)
    with contextlib.redirect_stdout(sys.stderr):
        store.materialize(start, end + datetime.timedelta(seconds=1), feature_views=[VIEW])
    said = {"started": log.started(), "rows": rows.num_rows}
    files.write_bytes(marker, json.dumps(said).encode())
    in_window = rows.filter(pc.greater_equal(times, start))
    return int(pc.count_distinct(in_window["item_id"]).as_py())


def _row_to_show(rows: pa.Table, item_id: str | None, generation: str) -> dict[str, Any]:
    """Returns the row to read back as proof."""
    live = rows.filter(pc.invert(is_gone(rows)))
    chosen = live if item_id is None else live.filter(pc.equal(live["item_id"], item_id))
    if item_id is not None and not chosen.num_rows:
        raise UsageError(f"--item {item_id}: generation {generation} has no such item")
    return chosen.slice(0, 1).to_pylist()[0] if chosen.num_rows else {}


def _read_back(store: FeatureStore, row: dict[str, Any], features: list[str]) -> dict[str, Any]:
    """Reads an item from the online store.

    Raises:
      CommandError: it is not what was published.
    """
    found = read_online(store, [row["item_id"]], features)
    for name in features:
        if found[name][0] != row[name]:
            raise CommandError(
                f"the online store gives {name} = {found[name][0]} for item {row['item_id']}, "
                f"published is {row[name]}: run again with --all to write every item again"
            )
    return {"item_id": row["item_id"], **{name: found[name][0] for name in features}}


@contextlib.contextmanager
def _exclusive(folder: str) -> Iterator[None]:
    with open(os.path.join(folder, ".semid.lock"), "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"another process works on the repository of {folder}: wait for it"
            ) from None
        yield


def _require_feast() -> None:
    try:
        import feast  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "semid feast needs Feast: pip install -c constraints.txt -e '.[feast]'"
        ) from error
