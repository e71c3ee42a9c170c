"""Placing items on IDs at shuffle scale: which shard, who competes, who gets what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa

from schemas.arrays import list_from_matrix, matrix_from_list
from schemas.tables import (
    changes_schema,
    items_schema,
    reserved_schema,
)
from semid_transforms import files
from semid_transforms.features import FeatureSet
from semid_transforms.identity import Identity, Stamp
from semid_transforms.metering import Meter
from semid_transforms.quantizing import load_tokenizer, retired_rows
from semid_transforms.routing import Router, empty_batch, gather, split_by_shard
from semid_transforms.shard_placement import ParentShard, place_rows, settle_rows
from semid_transforms.shard_plan import ShardPlan, part_name, placed_name
from semid_transforms.shard_roles import (
    assign_roles,
    routed_schema,
    settled_schema,
    touched_range,
)
from semid_transforms.tables import read_batches

CODED, RETIRED, REWRITE = "coded", "retired", "rewrite"
"""What shards are made from, each with a value: the path of a part of coded rows, that of a part of
retired items, and a shard, by number, that is written even when nothing in it changed. They are one
input: a runner on one machine shuffles twice what it flattens."""

PlaceInput = tuple[str, str]

_EVERY_SHARD = ""
"""Stands in the place of a part for rows that compete for nothing, one of every shard."""

CONTESTED = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("part_row", pa.int64(), nullable=False),
    ]
)
"""A row that competes for its codes: its shard, its place among the shard's contested rows, and the
row of its embedding part."""

LATENTS = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("latent", pa.list_(pa.float32()), nullable=False),
    ]
)
"""The vector a contested row is quantized from. Only contested rows (a tenth to a third of a
catalog) send theirs through a shuffle; embeddings never do."""


@dataclasses.dataclass(frozen=True)
class PlaceFolders:
    """Where placing reads and writes.

    Attributes:
      settled: scratch, rows of each shard.
      placed: scratch, `items` rows whose labels are missing.
      generation: the new generation.
      embeddings: its embedding parts.
      latents: of `AssignCodes`, aligned with the embedding parts; empty where the tokenizer
        quantizes embeddings themselves.
    """

    settled: str
    placed: str
    generation: str
    embeddings: str
    latents: str

    def part(self, table: str, name: str) -> str:
        """Where a part of a table is written: rows of `items` first wait for their labels."""
        if table == "items":
            return files.join(self.placed, placed_name(name))
        return files.join(self.generation, table, name)


class _RouteBySid(Router):
    """Reads coded rows and retired items and cuts them by the SID range they belong to."""

    def __init__(self, plan: ShardPlan, identity: Identity):
        self._plan = plan
        self._identity = identity

    def process(self, element: PlaceInput) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Takes something that shards are made from."""
        kind, value = element
        if kind == REWRITE:
            yield int(value), empty_batch(routed_schema(self._identity.old_type))
            return
        for batch in read_batches(value):
            yield from self.add(retired_rows(batch) if kind == RETIRED else batch)

    def route(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        routed, sids = assign_roles(batch, self._identity)
        return routed, self._plan.shard_of(sids)


class _SettleShard(beam.DoFn):
    """Writes a shard's rows to disk and sends out what must compete, by embedding part.

    A row under `_EVERY_SHARD` announces the shard, so that one without contests is written too.
    """

    def __init__(self, plan: ShardPlan, identity: Identity, folder: str):
        self._plan = plan
        self._identity = identity
        self._folder = folder
        self._meter = Meter("place", "settle")

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        shard, batches = element
        started = self._meter.start()
        identity = self._identity
        routed = gather(list(batches), routed_schema(identity.old_type))
        occupied = np.empty(0, np.uint64)
        touched = touched_range(routed, identity)
        if touched is not None and self._plan.parent is not None:
            occupied = self._plan.parent.read_occupied(touched, identity.sid_type)
        rows = settle_rows(routed, occupied, identity)
        path = files.join(self._folder, part_name(shard))
        files.write_table(path, settled_schema(identity.old_type), [rows])
        contested = rows.filter(rows["contested"])
        self._meter.done(started, rows.num_rows, rows.nbytes)
        beam.metrics.Metrics.counter("place", "rows-in").inc(rows.num_rows)
        beam.metrics.Metrics.counter("place", "rows-contested").inc(contested.num_rows)
        announced = [pa.array([number]) for number in (shard, -1, -1)]
        yield _EVERY_SHARD, pa.RecordBatch.from_arrays(announced, schema=CONTESTED)
        references = pa.RecordBatch.from_arrays(
            [
                pa.array(np.full(contested.num_rows, shard)),
                pa.array(np.arange(contested.num_rows)),
                contested["part_row"],
            ],
            schema=CONTESTED,
        )
        encoded = contested["part"].dictionary_encode()
        names = encoded.dictionary.to_pylist()
        for number, rows_of_part in split_by_shard(references, encoded.indices.to_numpy()):
            yield names[number], rows_of_part


class _FetchLatents(beam.DoFn):
    """Reads the latents of contested rows back: those of a part, or its embeddings themselves."""

    def __init__(self, folders: PlaceFolders, tokenizer_folder: str):
        self._folders = folders
        self._tokenizer_folder = tokenizer_folder
        self._meter = Meter("place", "latents")

    def setup(self) -> None:
        quantizer = load_tokenizer(self._tokenizer_folder)
        self._folder, self._column = self._folders.latents, "latent"
        if quantizer.quantizes_embeddings:
            self._folder, self._column = self._folders.embeddings, "embedding"

    def process(
        self, element: tuple[str, Iterable[pa.RecordBatch]]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        part, batches = element
        started = self._meter.start()
        wanted = gather(list(batches), CONTESTED)
        if part == _EVERY_SHARD:
            return iter([(n, empty_batch(LATENTS)) for n in wanted["shard"].to_pylist()])
        table = files.read_table(files.join(self._folder, part), [self._column])
        vectors = matrix_from_list(table[self._column])[wanted["part_row"].to_numpy()]
        latents = pa.RecordBatch.from_arrays(
            [wanted["index"], list_from_matrix(vectors, pa.float32())], schema=LATENTS
        )
        self._meter.done(started, latents.num_rows, latents.nbytes)
        return split_by_shard(latents, wanted["shard"].to_numpy())


def read_settled(
    folder: str, shard: int, latents: Sequence[pa.RecordBatch], old_type: pa.DataType
) -> tuple[pa.RecordBatch, np.ndarray]:
    """Returns a shard's `settled_schema` rows and the latents of the contested ones, in order."""
    settled = files.read_table(files.join(folder, part_name(shard))).combine_chunks()
    fetched = gather(latents, LATENTS)
    order = np.argsort(fetched["index"].to_numpy())
    rows = gather(settled.to_batches(), settled_schema(old_type))
    return rows, matrix_from_list(fetched["latent"])[order]


class _PlaceShard(beam.DoFn):
    """Runs `place_rows` on a shard and writes its parts."""

    def __init__(
        self,
        plan: ShardPlan,
        identity: Identity,
        stamp: Stamp,
        features: FeatureSet,
        folders: PlaceFolders,
        tokenizer_folder: str,
    ):
        self._plan = plan
        self._identity = identity
        self._stamp = stamp
        self._features = features
        self._folders = folders
        self._tokenizer_folder = tokenizer_folder

    def setup(self) -> None:
        self._codebooks = load_tokenizer(self._tokenizer_folder).codebooks
        self._columns = self._features.load(self._identity.layout.codebook_sizes)
        self._meter = Meter("place", "resolve")

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[int]:
        shard, batches = element
        started = self._meter.start()
        sid_type, old_type = self._identity.sid_type, self._identity.old_type
        schemas = {
            "items": items_schema(sid_type, self._features.names),
            "reserved": reserved_schema(sid_type),
            "changes": changes_schema(sid_type, old_type),
        }
        parent = ParentShard(
            empty_batch(items_schema(sid_type, ())), empty_batch(schemas["reserved"])
        )
        if (index := self._plan.parent) is not None:
            bounds = self._plan.bounds(shard)
            parent = ParentShard(
                index.read_items(bounds, items_schema(sid_type, ())),
                index.read_reserved(bounds, schemas["reserved"]),
            )
        rows, latents = read_settled(self._folders.settled, shard, list(batches), old_type)
        placed = place_rows(
            rows,
            latents,
            parent,
            self._codebooks,
            self._identity,
            self._stamp,
            self._columns,
        )
        for table, schema in schemas.items():
            batch: pa.RecordBatch = getattr(placed, table)
            if batch.num_rows or table == "items":
                path = self._folders.part(table, part_name(shard))
                files.write_table(path, schema, [batch])
        beam.metrics.Metrics.counter("place", "rows-out").inc(placed.items.num_rows)
        self._meter.done(started, placed.items.num_rows, placed.items.nbytes)
        yield shard


@dataclasses.dataclass
class SettleRows(beam.PTransform):
    """Sends coded rows to their shards and gathers what the contested ones compete with.

    Takes what shards are made from, see `CODED`; returns per shard its `LATENTS` batches, an empty
    one at least. The rows themselves are left in `folders.settled`.

    Attributes:
      plan: how the SID space is cut.
      identity: layout and policies.
      folders: where it reads and writes.
      tokenizer_folder: of the tokenizer.
    """

    plan: ShardPlan
    identity: Identity
    folders: PlaceFolders
    tokenizer_folder: str

    def expand(
        self, inputs: beam.PCollection[PlaceInput]
    ) -> beam.PCollection[tuple[int, Iterable[pa.RecordBatch]]]:
        route = _RouteBySid(self.plan, self.identity)
        settle = _SettleShard(self.plan, self.identity, self.folders.settled)
        fetch = _FetchLatents(self.folders, self.tokenizer_folder)
        return (
            inputs
            | "RouteBySid" >> beam.ParDo(route).with_output_types(tuple[int, pa.RecordBatch])
            | "GroupBySidShard" >> beam.GroupByKey()
            | "Settle" >> beam.ParDo(settle).with_output_types(tuple[str, pa.RecordBatch])
            | "GroupByPart" >> beam.GroupByKey()
            | "FetchLatents" >> beam.ParDo(fetch).with_output_types(tuple[int, pa.RecordBatch])
            | "GroupLatents" >> beam.GroupByKey()
        )


@dataclasses.dataclass
class PlaceItems(beam.PTransform):
    """Gives coded rows their IDs and writes `items`, `reserved` and `changes`, by shard.

    Rows of `items` wait in `folders.placed` for their labels.

    Attributes:
      plan: how the SID space is cut.
      identity: layout and policies.
      stamp: of the run.
      features: n-gram columns.
      folders: where it reads and writes.
      tokenizer_folder: of the tokenizer.
    """

    plan: ShardPlan
    identity: Identity
    stamp: Stamp
    features: FeatureSet
    folders: PlaceFolders
    tokenizer_folder: str

    def expand(self, inputs: beam.PCollection[PlaceInput]) -> beam.PCollection[int]:
        """Takes what shards are made from, see `CODED`."""
        settle = SettleRows(self.plan, self.identity, self.folders, self.tokenizer_folder)
        return (
            inputs
            | "SettleRows" >> settle
            | "Place"
            >> beam.ParDo(
                _PlaceShard(
                    self.plan,
                    self.identity,
                    self.stamp,
                    self.features,
                    self.folders,
                    self.tokenizer_folder,
                )
            ).with_output_types(int)
        )
