"""Deduplicating a catalog by item id and comparing it with the parent generation."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.rejects import RejectReason
from schemas.tables import (
    CATALOG,
    PARSED,
    REJECTED_PAYLOAD_BYTES,
    REJECTS,
    SOURCE_COUNTS,
    Change,
    changed_schema,
    parent_schema,
)
from semid_transforms import files
from semid_transforms.hashing import hash_shards, item_hashes
from semid_transforms.metering import Meter
from semid_transforms.routing import Router, gather

_CHANGES = pa.array([Change.NEW.value, Change.UPDATED.value, Change.MOVED.value])


@dataclasses.dataclass(frozen=True)
class Leaving:
    """What a catalog can be compared with when its items leave an ID space.

    Attributes:
      same_hashes: True when content hashes are made in the same way as before; otherwise nobody
        can tell which contents changed, and no item is called updated.
    """

    same_hashes: bool


@dataclasses.dataclass(frozen=True)
class Diff:
    """What one shard of item ids came to.

    Attributes:
      catalog: `CATALOG`, one row per live item, sorted by item id.
      changed: `changed_schema`, the live items that need an embedding and codes.
      retired: `parent_schema`, the parent's live items that are gone.
      rejects: `REJECTS`, rows that lost against another row with the same id.
      counts: `SOURCE_COUNTS`, live, rejected and duplicate rows per source file.
    """

    catalog: pa.RecordBatch
    changed: pa.RecordBatch
    retired: pa.RecordBatch
    rejects: pa.RecordBatch
    counts: pa.RecordBatch


def diff_items(
    parsed: pa.RecordBatch,
    parent: pa.RecordBatch,
    sources: Sequence[str],
    leaving: Leaving | None = None,
) -> Diff:
    """Deduplicates the rows of one shard and joins them with the parent generation.

    Of several rows with one id the newest `updated_at` is kept, then the one with the smallest
    content hash, so the choice does not depend on the order of rows or files. Rows whose content
    equals the kept one are duplicates; the others are rejected.

    Args:
      parsed: `PARSED`, every row whose item id belongs to the shard.
      parent: `parent_schema`, every item of the parent generation in the shard.
      sources: paths of the catalog's files, in the order of their numbers.
      leaving: set when a new ID space begins: then every live item needs an embedding and codes.
    """
    order = _preference(parsed)
    rows = parsed.take(order)
    paths = pa.array(sources, pa.string())
    item_ids = rows["item_id"]
    first = _run_starts(item_ids)
    kept = rows if first.all() else rows.filter(pa.array(first))
    again = np.flatnonzero(~first)
    keeper = np.flatnonzero(first)[np.cumsum(first)[again] - 1]
    kept = _set_source(kept, paths.take(kept["source"]))
    hashes = rows["content_hash"]
    same = _equal(hashes.take(pa.array(again)), hashes.take(pa.array(keeper)))

    parent = one_row_per_item(parent)
    previous = pc.index_in(kept["item_id"], value_set=parent["item_id"])
    gone = parent["retired_generation"].is_null().to_numpy(zero_copy_only=False)
    gone[previous.drop_null().to_numpy()] = False
    return Diff(
        catalog=kept.select(CATALOG.names).cast(CATALOG),
        changed=_changed(kept, parent, previous, leaving),
        retired=parent.filter(pa.array(gone)).sort_by("item_id"),
        rejects=_reject_losers(rows, again[~same], keeper[~same], paths),
        counts=_count(rows, first, again[same], paths),
    )


def _set_source(rows: pa.RecordBatch, source: pa.Array) -> pa.RecordBatch:
    place = rows.schema.get_field_index("source")
    return rows.set_column(place, pa.field("source", source.type, nullable=False), source)


def find_changed(kept: pa.RecordBatch, parent: pa.RecordBatch) -> pa.RecordBatch:
    """Compares catalog rows with who has which ID.

    Args:
      kept: the columns that `changed_schema` takes from the catalog, one row per item.
      parent: `parent_schema`, one row per item: see `one_row_per_item`.

    Returns:
      `changed_schema`: new items, those that return, and those with other content.
    """
    previous = pc.index_in(kept["item_id"], value_set=parent["item_id"])
    return _changed(kept, parent, previous, None)


def _changed(
    kept: pa.RecordBatch, parent: pa.RecordBatch, previous: pa.Array, leaving: Leaving | None
) -> pa.RecordBatch:
    """Returns the same as `find_changed`, given the parent's row of each row kept."""
    known = previous.is_valid().to_numpy(zero_copy_only=False)
    before = parent.take(previous)
    reserved = before["retired_generation"].is_valid().to_numpy(zero_copy_only=False)
    equal = _equal(kept["content_hash"], before["content_hash"])
    live = known & ~reserved
    updated = live & ~equal
    moved = np.zeros(len(live), bool)
    if leaving is not None:
        updated &= leaving.same_hashes
        moved = live & ~updated

    changing = ~live | updated | moved
    change = np.select([updated, moved], [1, 2], 0)[changing]
    moving = pa.array(changing)
    now, then = kept.filter(moving), before.filter(moving)
    schema = changed_schema(parent.schema.field("sid").type)
    return pa.RecordBatch.from_arrays(
        [
            *(now[name] for name in ("item_id", "content_hash", "text", "source", "split", "row")),
            _CHANGES.take(pa.array(change)),
            then["sid"],
            then["base_sid"],
        ],
        schema=schema,
    )


def one_row_per_item(parent: pa.RecordBatch) -> pa.RecordBatch:
    """Keeps an item's live row, else the reserved ID it had last.

    An item that moved owns the ID it left as well as the one it has.
    """
    if parent["retired_generation"].null_count == parent.num_rows:
        return parent  # every item has one live row
    live = parent["retired_generation"].is_null()
    order = pa.record_batch(
        {
            "item_id": parent["item_id"],
            "live": live,
            "retired_generation": parent["retired_generation"],
            "sid": parent["sid"],
        }
    )
    keys = [("item_id", "ascending"), *((name, "descending") for name in order.schema.names[1:])]
    ordered = parent.take(pc.sort_indices(order, sort_keys=keys))
    return ordered.filter(pa.array(_run_starts(ordered["item_id"])))


def _preference(parsed: pa.RecordBatch) -> pa.Array:
    """Orders rows by id, the row to keep first inside each id."""
    keys = [
        ("item_id", "ascending"),
        ("updated_at", "descending"),
        ("content_hash", "ascending"),
        ("popularity", "descending"),
        ("title", "ascending"),
        ("source", "ascending"),
        ("split", "ascending"),
        ("row", "ascending"),
    ]
    return pc.sort_indices(parsed.drop_columns(["category_path", "text"]), sort_keys=keys)


def _run_starts(sorted_values: pa.Array) -> np.ndarray:
    """Marks the first row of each run of equal values in a sorted column without nulls."""
    if len(sorted_values) == 0:
        return np.empty(0, bool)
    differs = pc.not_equal(sorted_values[1:], sorted_values[:-1]).to_numpy(zero_copy_only=False)
    return np.r_[True, differs]


def _equal(left: pa.Array, right: pa.Array) -> np.ndarray:
    """Compares two columns row by row; null equals nothing."""
    return pc.fill_null(pc.equal(left, right), False).to_numpy(zero_copy_only=False)


def _reject_losers(
    rows: pa.RecordBatch, lost: np.ndarray, kept: np.ndarray, paths: pa.Array
) -> pa.RecordBatch:
    losers, winners = (
        _set_source(some, paths.take(some["source"])).to_pylist()
        for some in (rows.take(pa.array(lost)), rows.take(pa.array(kept)))
    )
    details, payloads = [], []
    for loser, winner in zip(losers, winners, strict=True):
        details.append(
            f"split {loser['split']}, row {loser['row']}: kept the row of {winner['source']}, "
            f"split {winner['split']}, row {winner['row']}"
        )
        fields = ("item_id", "title", "text", "category_path", "popularity", "updated_at")
        payload = json.dumps({f: loser[f] for f in fields}, ensure_ascii=False, default=str)
        payloads.append(payload.encode()[:REJECTED_PAYLOAD_BYTES])
    return pa.RecordBatch.from_arrays(
        [
            pa.array([row["source"] for row in losers], pa.string()),
            pa.array([row["item_id"] for row in losers], pa.string()),
            pa.array(["deduplicate"] * len(losers), pa.string()),
            pa.array([RejectReason.DUPLICATE_ID.value] * len(losers), pa.string()),
            pa.array(details, pa.string()),
            pa.array(payloads, pa.binary()),
        ],
        schema=REJECTS,
    )


def _count(
    rows: pa.RecordBatch, first: np.ndarray, duplicates: np.ndarray, paths: pa.Array
) -> pa.RecordBatch:
    duplicate = np.zeros(len(first), np.int64)
    duplicate[duplicates] = 1
    columns = {
        "source": rows["source"],
        "live": pa.array(first.astype(np.int64)),
        "rejected": pa.array(1 - first - duplicate),
        "duplicate": pa.array(duplicate),
    }
    names = ("live", "rejected", "duplicate")
    sums = pa.table(columns).group_by("source").aggregate([(name, "sum") for name in names])
    sums = sums.sort_by("source").combine_chunks()
    return pa.RecordBatch.from_arrays(
        [
            paths.take(sums["source"].combine_chunks()),
            pa.array([0] * sums.num_rows, pa.int64()),
            *(sums[f"{name}_sum"].combine_chunks() for name in names),
        ],
        schema=SOURCE_COUNTS,
    )


CATALOG_GROUP_ROWS = 1 << 13
"""Rows per row group of `catalog`, small because they are looked up by item id."""

_CATALOG_PART = re.compile(r"part-(\d+)-of-(\d+)\.parquet")


def catalog_part(shard: int, num_shards: int) -> str:
    """File name of a `catalog` part: it says which range of item-id hashes the part holds."""
    return f"part-{shard:05d}-of-{num_shards:05d}.parquet"


def parts_with_items(paths: Sequence[str], hashes: np.ndarray) -> list[str]:
    """Returns the `catalog` parts that, by their names, can hold item ids with some hashes.

    Args:
      paths: of parts.
      hashes: (N,) uint64, `item_hashes` of the ids.
    """
    shards: dict[int, set[int]] = {}
    kept = []
    for path in paths:
        named = _CATALOG_PART.fullmatch(files.base_name(path))
        if named is not None:
            shard, num_shards = map(int, named.groups())
            if num_shards not in shards:
                shards[num_shards] = set(hash_shards(hashes, num_shards).tolist())
            if shard not in shards[num_shards]:
                continue
        kept.append(path)
    return kept


class _RouteByItem(Router):
    """Cuts a batch with an `item_id` column by ranges of the id's hash."""

    def __init__(self, num_shards: int):
        self._num_shards = num_shards

    def route(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        return batch, hash_shards(item_hashes(batch["item_id"]), self._num_shards)


class _DiffShard(beam.DoFn):
    """Runs `diff_items` on a shard and writes its five tables as one part each."""

    def __init__(
        self,
        folder: str,
        catalog_folder: str,
        num_shards: int,
        sid_type: pa.DataType,
        sources: Sequence[str],
        leaving: Leaving | None,
    ):
        self._folder = folder
        self._catalog_folder = catalog_folder
        self._num_shards = num_shards
        self._sid_type = sid_type
        self._sources = sources
        self._leaving = leaving
        self._meter = Meter("diff", "shard")

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterable[int]:
        shard, batches = element
        started = self._meter.start()
        schema = parent_schema(self._sid_type)
        parsed: list[pa.RecordBatch] = []
        parent: list[pa.RecordBatch] = []
        for rows in batches:
            (parent if rows.schema.names == schema.names else parsed).append(rows)
        diff = diff_items(
            gather(parsed, PARSED), gather(parent, schema), self._sources, self._leaving
        )
        part = catalog_part(shard, self._num_shards)
        path = files.join(self._catalog_folder, part)
        files.write_table(path, CATALOG, [diff.catalog], CATALOG_GROUP_ROWS)
        for name in ("changed", "retired", "rejects", "counts"):
            batch: pa.RecordBatch = getattr(diff, name)
            if batch.num_rows:
                files.write_table(files.join(self._folder, name, part), batch.schema, [batch])
        for column, counter in (("live", "rows-out"), ("duplicate", "rows-duplicate")):
            rows = pc.sum(diff.counts[column]).as_py() or 0
            beam.metrics.Metrics.counter("diff", counter).inc(rows)
        self._meter.done(started, diff.changed.num_rows, diff.changed.nbytes)
        yield shard


@dataclasses.dataclass
class DiffItems(beam.PTransform):
    """Deduplicates parsed rows and compares them with the parent, shard by shard of item ids.

    Writes `changed/`, `retired/`, `rejects/` and `counts/` under `folder` and the validated catalog
    to `catalog_folder`; returns the shards written. Takes `PARSED` and, unless there is no parent,
    `parent_schema` batches together: they tell by themselves what they are.
    """

    folder: str
    catalog_folder: str
    num_shards: int
    sid_type: pa.DataType
    sources: tuple[str, ...]
    leaving: Leaving | None = None

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[int]:
        return (
            rows
            | "RouteByItem"
            >> beam.ParDo(_RouteByItem(self.num_shards)).with_output_types(
                tuple[int, pa.RecordBatch]
            )
            | "GroupByItemShard" >> beam.GroupByKey()
            | "Diff"
            >> beam.ParDo(
                _DiffShard(
                    self.folder,
                    self.catalog_folder,
                    self.num_shards,
                    self.sid_type,
                    self.sources,
                    self.leaving,
                )
            ).with_output_types(int)
        )
