"""Giving a few new or changed items their IDs beside a published generation that stays as it is.

A shard reads which SIDs are taken under the prefixes the given items ask for, one column of a few
row groups, and the rows of the given items that already have an ID. What it writes are delta parts:
every row of a given item, and no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.tables import changes_schema, items_schema, reserved_schema
from semid_transforms import files
from semid_transforms.identity import Identity
from semid_transforms.lookup import find_rows
from semid_transforms.placing import PlaceInput, PlaceItems, SettleRows, read_settled
from semid_transforms.quantizing import load_tokenizer
from semid_transforms.routing import empty_batch, gather
from semid_transforms.shard_placement import ParentShard, PlacedShard, place_rows
from semid_transforms.shard_plan import DELTA_PREFIX, PartIndex
from semid_transforms.shard_roles import PLACE, touched_range

TABLES = ("items", "reserved", "changes")


def delta_name(generation: str, number: int) -> str:
    """File name of a part that a backfill appends; unique among those carried along."""
    return f"{DELTA_PREFIX}{generation.split('-')[0]}-{number:05d}.parquet"


def parent_of(rows: pa.RecordBatch, index: PartIndex, identity: Identity) -> ParentShard:
    """Reads what placing a few rows needs of the parent generation.

    Args:
      rows: `routed_schema` rows of one shard.
      index: of the parent generation.
      identity: layout and policies.

    Returns:
      Their own rows, and the SIDs taken where they may be placed.
    """
    sid_type = identity.sid_type
    schemas = {"items": items_schema(sid_type, ()), "reserved": reserved_schema(sid_type)}
    own = {table: empty_batch(schema) for table, schema in schemas.items()}
    # An item that moves is sent to two shards; the one it leaves has its row.
    known = rows.filter(pc.and_(rows["sid"].is_valid(), pc.not_equal(rows["role"], PLACE)))
    if known.num_rows:
        keys = known.select(["item_id", "sid"])
        span = pc.min_max(keys["sid"]).as_py()
        for table, schema in schemas.items():
            found = [
                find_rows(path, keys, schema.names, "sid").cast(schema).combine_chunks()
                for path in index.files(table, (span["min"], span["max"]))
            ]
            own[table] = gather([b for rows in found for b in rows.to_batches()], schema)
    others = np.empty(0, np.uint64)
    if (touched := touched_range(rows, identity)) is not None:
        others = index.read_occupied(touched, sid_type)
    return ParentShard(own["items"], own["reserved"], others)


class _PlaceDelta(beam.DoFn):
    """Runs `place_rows` on the given rows of a shard and sends the tables to their delta part."""

    def __init__(self, place: PlaceItems, num_parts: int):
        self._place = place
        self._num_parts = num_parts

    def setup(self) -> None:
        self._codebooks = load_tokenizer(self._place.tokenizer_folder).codebooks
        self._features = self._place.features.load(self._place.identity.layout.codebook_sizes)

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[tuple[tuple[str, int], pa.RecordBatch]]:
        shard, batches = element
        place, identity = self._place, self._place.identity
        assert place.plan.parent is not None
        rows, latents = read_settled(place.folders.settled, shard, list(batches), identity.sid_type)
        placed: PlacedShard = place_rows(
            rows,
            latents,
            parent_of(rows, place.plan.parent, identity),
            self._codebooks,
            identity,
            place.stamp,
            self._features,
        )
        beam.metrics.Metrics.counter("place", "rows-out").inc(placed.items.num_rows)
        # Neighbouring shards share a part, so that the parts stay in SID order.
        part = shard * self._num_parts // len(place.plan.starts)
        for table in TABLES:
            batch: pa.RecordBatch = getattr(placed, table)
            if batch.num_rows:
                yield (table, part), batch


class _WriteDelta(beam.DoFn):
    """Writes the rows of one delta part, in the order of its table."""

    def __init__(self, place: PlaceItems):
        self._generation = place.stamp.generation
        self._folders = place.folders
        self._schemas = {
            "items": items_schema(place.identity.sid_type, place.features.names),
            "reserved": reserved_schema(place.identity.sid_type),
            "changes": changes_schema(place.identity.sid_type),
        }

    def process(self, element: tuple[tuple[str, int], Iterable[pa.RecordBatch]]) -> Iterator[str]:
        (table, part), batches = element
        rows = gather(list(batches), self._schemas[table])
        keys = [("item_id", "ascending")]
        if table != "changes":
            keys.insert(0, ("sid", "ascending"))
        rows = rows.take(pc.sort_indices(rows, sort_keys=keys))
        path = self._folders.part(table, delta_name(self._generation, part))
        files.write_table(path, self._schemas[table], [rows])
        yield path


@dataclasses.dataclass
class PlaceDelta(beam.PTransform):
    """Gives coded rows their IDs and writes delta parts of `items`, `reserved` and `changes`.

    Takes what shards are made from, see `placing.CODED`; returns the paths written. Rows of `items`
    wait in `place.folders.placed` for their labels.

    Attributes:
      place: the same settings as for placing a whole generation.
      num_parts: most delta parts per table.
    """

    place: PlaceItems
    num_parts: int

    def expand(self, inputs: beam.PCollection[PlaceInput]) -> beam.PCollection[str]:
        place = self.place
        settle = SettleRows(place.plan, place.identity, place.folders, place.tokenizer_folder)
        return (
            inputs
            | "SettleRows" >> settle
            | "PlaceDelta"
            >> beam.ParDo(_PlaceDelta(place, self.num_parts)).with_output_types(
                tuple[tuple[str, int], pa.RecordBatch]
            )
            | "GroupByDelta" >> beam.GroupByKey()
            | "WriteDelta" >> beam.ParDo(_WriteDelta(place)).with_output_types(str)
        )
