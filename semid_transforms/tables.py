"""Moving whole tables between Parquet and a pipeline."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from semid_transforms import files
from semid_transforms.routing import gather

_BATCH_ROWS = 1 << 14


def read_batches(path: str, batch_rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Reads one Parquet file in batches of one schema."""
    with files.parquet_file(path) as file:
        yield from file.iter_batches(batch_rows)


@dataclasses.dataclass
class ReadTables(beam.PTransform):
    """Reads Parquet files, given by path, as RecordBatches."""

    batch_rows: int = _BATCH_ROWS

    def expand(self, paths: beam.PCollection[str]) -> beam.PCollection[pa.RecordBatch]:
        return paths | "ReadParquet" >> beam.FlatMap(
            read_batches, self.batch_rows
        ).with_output_types(pa.RecordBatch)


class _ScatterBatches(beam.DoFn):
    """Sends every batch to one of a few writers, by a hash of its first row."""

    def __init__(self, num_parts: int):
        self._num_parts = num_parts

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        if batch.num_rows:
            first = repr(batch.slice(0, 1).to_pylist()).encode()
            digest = hashlib.blake2b(first, digest_size=8).digest()
            yield int.from_bytes(digest) % self._num_parts, batch


class _WriteTable(beam.DoFn):
    """Writes the batches of one part, sorted."""

    def __init__(self, folder: str, prefix: str, schema: pa.Schema, sort_by: tuple[str, ...]):
        self._folder = folder
        self._prefix = prefix
        self._schema = schema
        self._sort_by = sort_by

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[str]:
        part, batches = element
        rows = gather(list(batches), self._schema)
        keys = [(name, "ascending") for name in self._sort_by]
        rows = rows.take(pc.sort_indices(rows, sort_keys=keys))
        path = files.join(self._folder, f"{self._prefix}-{part:05d}.parquet")
        files.write_table(path, self._schema, [rows])
        yield path


@dataclasses.dataclass
class WriteTable(beam.PTransform):
    """Writes batches of one schema as at most `num_parts` sorted parts; returns their paths."""

    folder: str
    prefix: str
    schema: pa.Schema
    sort_by: tuple[str, ...]
    num_parts: int = 1

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[str]:
        return (
            batches
            | "Scatter"
            >> beam.ParDo(_ScatterBatches(self.num_parts)).with_output_types(
                tuple[int, pa.RecordBatch]
            )
            | "Group" >> beam.GroupByKey()
            | "Write"
            >> beam.ParDo(
                _WriteTable(self.folder, self.prefix, self.schema, self.sort_by)
            ).with_output_types(str)
        )
