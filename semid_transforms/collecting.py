"""Collecting the embeddings a catalog brings, by reference, for the items that changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrays import list_from_matrix
from schemas.tables import changed_schema
from semid_transforms.embedding import EmbeddingParts, pending_schema, write_part
from semid_transforms.embedding_columns import read_vectors
from semid_transforms.reading import CatalogReader
from semid_transforms.routing import gather, split_by_shard


def pending_vectors(rows: pa.RecordBatch, vectors: np.ndarray, part: str) -> pa.RecordBatch:
    """Joins changed rows with their embeddings.

    Args:
      rows: `changed_schema`, N rows.
      vectors: (N, D) float32.
      part: file name of the part.

    Returns:
      `pending_schema`, N rows sorted by content hash, then item id.
    """
    columns = {
        "part": pa.array([part] * rows.num_rows, pa.string()),
        "text": pa.nulls(rows.num_rows, pa.string()),
        "embedding": list_from_matrix(vectors, pa.float32()),
    }
    schema = pending_schema(rows.schema.field("sid").type)
    batch = pa.RecordBatch.from_arrays(
        [columns[name] if name in columns else rows[name] for name in schema.names], schema=schema
    )
    keys = [("content_hash", "ascending"), ("item_id", "ascending")]
    return batch.take(pc.sort_indices(batch, sort_keys=keys))


class _RouteBySplit(beam.DoFn):
    """Cuts changed rows by the catalog split they were read from."""

    def __init__(self, reader: CatalogReader):
        self._number = {
            (split.path, split.number): number for number, split in enumerate(reader.splits)
        }

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        places = zip(batch["source"].to_pylist(), batch["split"].to_pylist(), strict=True)
        return split_by_shard(batch, np.array([self._number[place] for place in places]))


class _CollectPart(beam.DoFn):
    """Reads a split again, picks the wanted embeddings and writes them as one part."""

    def __init__(self, reader: CatalogReader, parts: EmbeddingParts, sid_type: pa.DataType):
        self._reader = reader
        self._parts = parts
        self._sid_type = sid_type

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[str]:
        number, batches = element
        if self._parts.done(number):
            return
        reader = self._reader
        assert reader.embedding is not None
        rows = gather(list(batches), changed_schema(self._sid_type))
        wanted = rows["row"].to_numpy()
        split = reader.splits[number]
        vectors = read_vectors(split, wanted, reader.input, reader.shards, reader.embedding)
        beam.metrics.Metrics.counter("embed", "rows-in").inc(rows.num_rows)
        pending = pending_vectors(rows, vectors, self._parts.name(number))
        yield write_part(pending, self._parts.embeddings, self._parts.origin)


@dataclasses.dataclass
class CollectVectors(beam.PTransform):
    """Writes the embeddings of changed rows, one part per catalog split; returns part names."""

    reader: CatalogReader
    parts: EmbeddingParts
    sid_type: pa.DataType

    def expand(self, changed: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[str]:
        collect = _CollectPart(self.reader, self.parts, self.sid_type)
        return (
            changed
            | "RouteBySplit"
            >> beam.ParDo(_RouteBySplit(self.reader)).with_output_types(tuple[int, pa.RecordBatch])
            | "GroupBySplit" >> beam.GroupByKey()
            | "CollectPart" >> beam.ParDo(collect).with_output_types(str)
        )
