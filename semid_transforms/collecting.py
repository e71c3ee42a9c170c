"""Collecting the embeddings a catalog brings, by reference, for the items that changed.

Where such columns are fused with the text, the texts were encoded before, each distinct one once,
into parts of their own; here the two meet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrays import list_from_matrix, matrix_from_list
from schemas.tables import changed_schema
from semid_transforms import files
from semid_transforms.embedding import (
    EmbeddingParts,
    by_content,
    find_embeddings,
    pending_schema,
    read_embeddings,
    write_origin,
    write_part,
)
from semid_transforms.embedding_columns import fuse_texts, read_vectors
from semid_transforms.metering import Meter
from semid_transforms.reading import CatalogReader
from semid_transforms.routing import Router, gather
from semid_transforms.validation import hash_texts


def pending_vectors(rows: pa.RecordBatch, vectors: np.ndarray, part: str) -> pa.RecordBatch:
    """Joins changed rows with their embeddings.

    Args:
      rows: `changed_schema`, N rows in the order of `by_content`.
      vectors: (N, D) float32.
      part: file name of the part.

    Returns:
      `pending_schema`, N rows.
    """
    columns = {
        "part": pa.repeat(pa.scalar(part), rows.num_rows),
        "text": pa.nulls(rows.num_rows, pa.string()),
        "embedding": list_from_matrix(vectors, pa.float32()),
    }
    schema = pending_schema(rows.schema.field("sid").type)
    return pa.RecordBatch.from_arrays(
        [columns[name] if name in columns else rows[name] for name in schema.names], schema=schema
    )


def key_by_text(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Replaces the content hash of `changed_schema` rows by that of their text alone."""
    place = rows.schema.get_field_index("content_hash")
    return rows.set_column(place, rows.schema.field(place), hash_texts(rows["text"]))


def text_embeddings(texts: pa.Array, parts: Sequence[str]) -> np.ndarray:
    """Looks up the embeddings of N texts.

    Args:
      texts: N strings.
      parts: paths of embedding parts whose content hashes are those of texts (`key_by_text`).

    Returns:
      (N, T) float32.

    Raises:
      ValueError: a text was not embedded.
    """
    hashes = hash_texts(texts)
    distinct = hashes.unique()
    found = find_embeddings(parts, distinct)
    if found.null_count:
        raise ValueError(
            f"{found.null_count} of {len(distinct)} texts have no embedding in {len(parts)} parts; "
            f"remove the run's folder and start again"
        )
    return matrix_from_list(found)[pc.index_in(hashes, value_set=distinct).to_numpy()]


class _RouteBySplit(Router):
    """Cuts changed rows by the catalog split they were read from."""

    def __init__(self, reader: CatalogReader):
        self._first = reader.first_splits

    def route(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        sources = pc.dictionary_encode(batch["source"])
        starts = np.array([self._first[source] for source in sources.dictionary.to_pylist()])
        return batch, starts[sources.indices.to_numpy()] + batch["split"].to_numpy()


class _CollectPart(beam.DoFn):
    """Writes the embeddings of a split's changed rows as one part.

    They are read again from the split, unless its part is there: see `split_embeddings`.
    """

    def __init__(
        self,
        reader: CatalogReader,
        parts: EmbeddingParts,
        sid_type: pa.DataType,
        text_parts: Sequence[str],
    ):
        self._reader = reader
        self._parts = parts
        self._sid_type = sid_type
        self._text_parts = text_parts
        self._meter = Meter("embed", "collect")

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[str]:
        number, batches = element
        if self._parts.done(number):
            return
        started = self._meter.start()
        reader = self._reader
        assert reader.embedding is not None
        rows = by_content(gather(list(batches), changed_schema(self._sid_type)))
        wanted = rows["row"].to_numpy()
        beam.metrics.Metrics.counter("embed", "rows-in").inc(rows.num_rows)
        part = self._parts.name(number)
        stored = files.join(self._parts.embeddings, part)
        if files.exists(stored):
            self._settle(rows, stored)
            self._meter.done(started, rows.num_rows, rows.nbytes)
            yield part
            return
        split = reader.splits[number]
        vectors = read_vectors(split, wanted, reader.input, reader.shards, reader.embedding)
        bounds = np.cumsum([0, *reader.embedding.widths])
        columns = list(zip(reader.embedding.columns, bounds, bounds[1:], strict=False))
        for column, start, stop in columns[len(columns) - reader.embedding.optional :]:
            absent = int((~vectors[:, start:stop].any(axis=1)).sum())
            beam.metrics.Metrics.counter("embed", f"rows-without-{column}").inc(absent)
        if reader.embedding.text:
            texts = text_embeddings(rows["text"], self._text_parts)
            vectors = fuse_texts(texts, vectors, reader.embedding)
        pending = pending_vectors(rows, vectors, part)
        write_part(pending, self._parts.embeddings, self._parts.origin)
        self._meter.done(started, pending.num_rows, pending.nbytes)
        yield part

    def _settle(self, rows: pa.RecordBatch, stored: str) -> None:
        """Makes a part that was written while its split was read one of the kept rows alone."""
        names = ["item_id", "content_hash"]
        written = files.read_table(stored, names).combine_chunks().to_batches()
        if written and written[0].equals(rows.select(names)):
            write_origin(rows, self._parts.origin, files.base_name(stored))
            return
        assert self._reader.embedding is not None
        vectors = read_embeddings(
            [stored], rows["content_hash"], self._reader.embedding.embedding_dim
        )
        pending = pending_vectors(rows, vectors, files.base_name(stored))
        write_part(pending, self._parts.embeddings, self._parts.origin)


@dataclasses.dataclass
class CollectVectors(beam.PTransform):
    """Writes the embeddings of changed rows, one part per catalog split; returns part names.

    Attributes:
      reader: of the catalog that brings embeddings.
      parts: where they go.
      sid_type: Arrow type of a packed SID.
      text_parts: embedding parts of the changed rows' texts, where columns are fused with text.
    """

    reader: CatalogReader
    parts: EmbeddingParts
    sid_type: pa.DataType
    text_parts: tuple[str, ...] = ()

    def expand(self, changed: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[str]:
        collect = _CollectPart(self.reader, self.parts, self.sid_type, self.text_parts)
        return (
            changed
            | "RouteBySplit"
            >> beam.ParDo(_RouteBySplit(self.reader)).with_output_types(tuple[int, pa.RecordBatch])
            | "GroupBySplit" >> beam.GroupByKey()
            | "CollectPart" >> beam.ParDo(collect).with_output_types(str)
        )
