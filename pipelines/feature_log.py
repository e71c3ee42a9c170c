"""The history a feature store reads: what every run changed, and tombstones of what went.

A training set made from it holds the features that an item had at the time of each event, and none
after the item was retired. It is one Parquet file with one row group: of a folder, or of a file
that Dask cuts at row groups, Feast 0.67 cannot make a training set in which an item is unknown.
"""

from __future__ import annotations

import dataclasses
import datetime

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.published_tables import PublishedTables
from semid_transforms import files
from semid_transforms.feature_rows import (
    changed_rows,
    feature_rows,
    gone_rows,
    is_gone,
    latest_rows,
)

_STARTED = b"semid.started"


@dataclasses.dataclass(frozen=True)
class LogUpdate:
    """What one generation added to the log.

    Attributes:
      changed: rows of items that are new or differ.
      gone: tombstones.
      restarted: why history was dropped and every item written again; "" when it was not.
    """

    changed: int
    gone: int
    restarted: str = ""


@dataclasses.dataclass(frozen=True)
class FeatureLog:
    """The log: a local Parquet file.

    Attributes:
      path: of the file.
    """

    path: str

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Reads the log in the order it was written; a table without columns when there is none."""
        return files.read_table(self.path, columns) if files.exists(self.path) else pa.table({})

    def started(self) -> str:
        """Returns the generation with which the log was started."""
        with files.parquet_file(self.path) as file:
            return (file.schema_arrow.metadata or {}).get(_STARTED, b"").decode()

    def update(self, tables: PublishedTables, sid_bits: int) -> LogUpdate:
        """Adds what a generation changed; the file stays as it is when the log knows it all.

        Everything is written anew when the columns are others than before, or when a change is not
        later than what it replaces: of two rows a store keeps the one with the later time.
        """
        rows = feature_rows(tables.read("items"), sid_bits)
        log = self.read()
        if not log.num_rows:
            return self._write_all(tables, rows, log)
        if not log.schema.equals(rows.schema):
            return self._write_all(tables, rows, log, "the columns are others than before")
        known = latest_rows(log)
        changed, replaced = changed_rows(rows, known)
        live = known.filter(pc.invert(is_gone(known)))
        retired = live.filter(pc.invert(_is_in(live["item_id"], rows)))
        gone = _tombstones(tables, retired["item_id"], rows.schema)
        times = pa.concat_tables([replaced, retired])["event_timestamp"]
        added = pa.concat_tables([changed, gone])
        if pc.any(pc.less_equal(added["event_timestamp"], times)).as_py():
            reason = "a change is not later than what it replaces"
            return self._write_all(tables, rows, log, reason)
        if added.num_rows:
            self._write(self.started(), [log, added])
        return LogUpdate(changed.num_rows, gone.num_rows)

    def _write_all(
        self, tables: PublishedTables, rows: pa.Table, log: pa.Table, restarted: str = ""
    ) -> LogUpdate:
        """Starts the log with every live item, and a tombstone for every other one."""
        known = [tables.read("reserved", ["item_id"]), log]
        columns = [table["item_id"].chunks for table in known if table.num_columns]
        ids = pa.chunked_array([chunk for chunks in columns for chunk in chunks], pa.string())
        others = pc.unique(ids.filter(pc.invert(_is_in(ids, rows))))
        gone = _tombstones(tables, others, rows.schema)
        self._write(tables.generation, [rows, gone])
        return LogUpdate(rows.num_rows, gone.num_rows, restarted)

    def _write(self, started: str, rows: list[pa.Table]) -> None:
        whole = pa.concat_tables(rows)
        schema = whole.schema.with_metadata({_STARTED: started})
        batches = whole.replace_schema_metadata(schema.metadata).to_batches()
        files.write_table(self.path, schema, batches, row_group_rows=max(1, whole.num_rows))


def _is_in(item_ids: pa.ChunkedArray, rows: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(item_ids, value_set=rows["item_id"].combine_chunks())


def _tombstones(
    tables: PublishedTables, item_ids: pa.Array | pa.ChunkedArray, schema: pa.Schema
) -> pa.Table:
    """Returns tombstones with the time of retirement, or of the generation where none is known."""
    if isinstance(item_ids, pa.ChunkedArray):
        item_ids = item_ids.combine_chunks()
    created = datetime.datetime.fromisoformat(tables.manifest.created)
    times = pa.array([created] * len(item_ids), schema.field("event_timestamp").type)
    reserved = tables.read("reserved", ["item_id", "retired_timestamp"])
    if reserved.num_rows:
        # An item that moved and went has two rows; both were reserved no later than it went.
        latest = reserved.group_by("item_id").aggregate([("retired_timestamp", "max")])
        row = pc.index_in(item_ids, value_set=latest["item_id"].combine_chunks())
        known = latest["retired_timestamp_max"].combine_chunks().take(row)
        times = pc.coalesce(known, times)
    return gone_rows(item_ids, times, schema)
