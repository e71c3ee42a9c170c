"""Rewriting stored embeddings without the rows that no live item needs any more.

Embedding parts are carried from night to night as they are, so rows of items that changed or went
stay in them. Nothing is wrong with that until they outweigh the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.manifest import FileEntry
from schemas.tables import CONTENT_HASH, embedding_schema
from semid_transforms import files
from semid_transforms.embedding import GROUP_ROWS
from semid_transforms.hashing import hash_shards, item_hashes
from semid_transforms.routing import gather, split_by_shard
from semid_transforms.spreading import Spread

MANY_SMALL_PARTS = 16
"""Small parts, such as backfills leave behind, that are carried before they are merged."""

STORED = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("content_hash", CONTENT_HASH, nullable=False),
        pa.field("bucket", pa.int64(), nullable=False),
        pa.field("part", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
"""Where a stored embedding stands: its bucket, the part in it, the row in the part."""

WANTED = pa.schema([STORED.field("item_id"), STORED.field("content_hash")])


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Parts that become one.

    Attributes:
      name: file name of the result, that of the first part.
      paths: of the parts.
    """

    name: str
    paths: tuple[str, ...]


def plan_buckets(
    parts: Sequence[FileEntry], folder: str, rows_per_part: int, needed: int, max_stale: float
) -> list[Bucket] | None:
    """Decides whether stored embeddings are worth rewriting, and what is put together.

    Args:
      parts: `embeddings` parts of the parent generation, as in its manifest.
      folder: of that generation.
      rows_per_part: rows of a whole part; parts below a quarter of it are small.
      needed: rows that live items need.
      max_stale: share of rows that may be stale.

    Returns:
      Buckets of every part, small ones together; None when they are better carried as they are.
    """
    stored = sum(part.rows or 0 for part in parts)
    small = [part for part in parts if (part.rows or 0) < rows_per_part // 4]
    if stored - needed <= max_stale * stored and len(small) <= MANY_SMALL_PARTS:
        return None
    buckets: list[list[FileEntry]] = []
    gathering: list[FileEntry] = []
    room = 0
    for part in sorted(parts, key=lambda part: part.path):
        rows = part.rows or 0
        if part not in small:
            buckets.append([part])
        elif gathering and room >= rows:
            gathering.append(part)
            room -= rows
        else:
            gathering = [part]
            buckets.append(gathering)
            room = rows_per_part - rows
    return [
        Bucket(
            files.base_name(bucket[0].path),
            tuple(files.join(folder, *part.path.split("/")) for part in bucket),
        )
        for bucket in buckets
    ]


def rows_to_keep(
    stored: pa.RecordBatch, wanted: pa.RecordBatch, renewed: pa.RecordBatch
) -> pa.RecordBatch:
    """Finds the embeddings that live items need, each once.

    Args:
      stored: `STORED`, rows of one shard of item ids.
      wanted: `WANTED`, the live items of the shard.
      renewed: `WANTED`, those of them that are embedded in this run and need no older row.

    Returns:
      The stored rows to keep, sorted by bucket, part and row.
    """
    live = wanted.filter(pc.invert(pc.is_in(wanted["item_id"], value_set=renewed["item_id"])))
    at = pc.index_in(stored["item_id"], value_set=live["item_id"])
    same = pc.equal(live["content_hash"].take(at), stored["content_hash"])
    kept = stored.filter(pc.fill_null(same, False))
    keys = [(name, "ascending") for name in ("item_id", "bucket", "part", "row")]
    kept = kept.take(pc.sort_indices(kept, sort_keys=keys))
    ids = kept["item_id"]
    first = np.append(True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False))
    kept = kept.filter(pa.array(first[: len(ids)]))
    return kept.take(pc.sort_indices(kept, sort_keys=keys[1:]))


def write_bucket(bucket: Bucket, keep: Sequence[np.ndarray], folder: str) -> str | None:
    """Writes the kept rows of a bucket as one part; a part that is kept whole is linked.

    Args:
      bucket: of P parts.
      keep: P arrays of ascending row numbers.
      folder: of the new generation's embeddings.

    Returns:
      The path written, None when no row is kept.
    """
    if not sum(map(len, keep)):
        return None
    target = files.join(folder, bucket.name)
    if len(bucket.paths) == 1:
        with files.parquet_file(bucket.paths[0]) as file:
            whole = file.metadata.num_rows == len(keep[0])
        if whole:
            files.copy(bucket.paths[0], target)
            return target
    tables = [
        files.read_table(path).take(pa.array(rows))
        for path, rows in zip(bucket.paths, keep, strict=True)
        if len(rows)
    ]
    table = pa.concat_tables(tables).sort_by(
        [("content_hash", "ascending"), ("item_id", "ascending")]
    )
    files.write_table(target, embedding_schema(), table.to_batches(), GROUP_ROWS)
    return target


class _ReadStored(beam.DoFn):
    """Reads where the embeddings of a bucket stand, by shard of item ids."""

    def __init__(self, num_shards: int):
        self._num_shards = num_shards

    def process(self, element: tuple[int, Bucket]) -> Iterator[tuple[int, pa.RecordBatch]]:
        number, bucket = element
        for part, path in enumerate(bucket.paths):
            rows = gather(
                files.read_table(path, WANTED.names).combine_chunks().to_batches(), WANTED
            )
            places = [np.full(rows.num_rows, number), np.full(rows.num_rows, part)]
            batch = pa.RecordBatch.from_arrays(
                [*rows.columns, *map(pa.array, places), pa.array(np.arange(rows.num_rows))],
                schema=STORED,
            )
            yield from split_by_shard(
                batch, hash_shards(item_hashes(batch["item_id"]), self._num_shards)
            )


class _ReadWanted(beam.DoFn):
    """Reads item ids and content hashes of a part, by shard of item ids."""

    def __init__(self, num_shards: int):
        self._num_shards = num_shards

    def process(self, path: str) -> Iterator[tuple[int, pa.RecordBatch]]:
        rows = gather(files.read_table(path, WANTED.names).combine_chunks().to_batches(), WANTED)
        yield from split_by_shard(rows, hash_shards(item_hashes(rows["item_id"]), self._num_shards))


class _ChooseRows(beam.DoFn):
    """Runs `rows_to_keep` on a shard and sends the rows to their buckets."""

    def process(
        self, element: tuple[int, dict[str, Iterable[pa.RecordBatch]]]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        _, sides = element
        kept = rows_to_keep(
            gather(list(sides["stored"]), STORED),
            gather(list(sides["wanted"]), WANTED),
            gather(list(sides["renewed"]), WANTED),
        )
        places = kept.select(["bucket", "part", "row"])
        yield from split_by_shard(places, kept["bucket"].to_numpy())


class _WriteBucket(beam.DoFn):
    """Runs `write_bucket` with what the shards keep of it."""

    def __init__(self, buckets: Sequence[Bucket], folder: str):
        self._buckets = tuple(buckets)
        self._folder = folder

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[str]:
        number, batches = element
        bucket = self._buckets[number]
        rows = pa.concat_batches(list(batches))
        part, row = rows["part"].to_numpy(), rows["row"].to_numpy()
        keep = [np.sort(row[part == which]) for which in range(len(bucket.paths))]
        path = write_bucket(bucket, keep, self._folder)
        if path is not None:
            yield path


@dataclasses.dataclass
class CompactEmbeddings(beam.PTransform):
    """Writes stored embeddings anew without stale rows; references are shuffled, never vectors.

    Takes (paths of `catalog` parts, paths of `changed_schema` parts of this run); returns the
    paths written.

    Attributes:
      buckets: from `plan_buckets`.
      folder: of the new generation's embeddings.
      num_shards: shards of item ids.
    """

    buckets: tuple[Bucket, ...]
    folder: str
    num_shards: int

    def expand(
        self, inputs: tuple[beam.PCollection[str], beam.PCollection[str]]
    ) -> beam.PCollection[str]:
        catalog, changed = inputs
        routed = tuple[int, pa.RecordBatch]
        read = _ReadWanted(self.num_shards)
        sides = {
            "stored": catalog.pipeline
            | "Buckets" >> Spread(list(enumerate(self.buckets)), tuple[int, Bucket])
            | "ReadStored" >> beam.ParDo(_ReadStored(self.num_shards)).with_output_types(routed),
            "wanted": catalog | "ReadWanted" >> beam.ParDo(read).with_output_types(routed),
            "renewed": changed | "ReadRenewed" >> beam.ParDo(read).with_output_types(routed),
        }
        return (
            sides
            | "GroupByItemShard" >> beam.CoGroupByKey()
            | "ChooseRows" >> beam.ParDo(_ChooseRows()).with_output_types(routed)
            | "GroupByBucket" >> beam.GroupByKey()
            | "WriteBucket"
            >> beam.ParDo(_WriteBucket(self.buckets, self.folder)).with_output_types(str)
        )
