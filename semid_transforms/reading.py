"""From splits of catalog files to validated rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from schemas.config import InputConfig, ShardConfig, TextConfig
from schemas.tables import SOURCE_COUNTS
from semid_transforms.csv_rows import read_csv_rows
from semid_transforms.embedding_columns import (
    DEFAULT_COLUMN,
    EmbeddingSpec,
    combine,
    embedding_weights,
    vector_fields,
    vector_name,
)
from semid_transforms.files import SourceFile
from semid_transforms.json_rows import read_json_rows
from semid_transforms.parquet_rows import read_parquet_rows
from semid_transforms.rows import Field, Rows
from semid_transforms.sources import Format, SourceSplit, file_columns, list_splits, open_stream
from semid_transforms.validation import plan_fields, validate

PARSED_TAG = "parsed"
REJECTED = "rejected"
COUNTS = "counts"

_SEARCHED_ROWS = 100_000


def read_rows(
    split: SourceSplit,
    fields: Sequence[Field],
    input_config: InputConfig,
    shard_config: ShardConfig,
) -> Iterator[Rows]:
    """Reads fields of a split's rows, in order, in stretches of bounded size.

    Raises:
      OSError: the file cannot be opened or read; the message names it.
    """
    if split.format is Format.PARQUET:
        yield from read_parquet_rows(split, fields, input_config, shard_config)
        return
    with open_stream(split) as stream:
        if split.format is Format.JSON_LINES:
            yield from read_json_rows(stream, split, fields, input_config, shard_config)
        else:
            yield from read_csv_rows(stream, fields, input_config, shard_config)


def read_split(
    split: SourceSplit,
    input_config: InputConfig,
    text_config: TextConfig,
    shard_config: ShardConfig,
    embedding: EmbeddingSpec | None = None,
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch, int]]:
    """Reads and validates a split.

    Args:
      split: from `list_splits`.
      input_config: field mapping and limits.
      text_config: how text is made, unless the catalog brings embeddings.
      shard_config: for the size of batches; it changes no row.
      embedding: from `find_embedding`; None renders text.

    Yields:
      A `PARSED` batch, a `REJECTS` batch and the rows read for them, which is the sum of theirs.

    Raises:
      OSError: the file cannot be opened or read; the message names it.
    """
    fields = plan_fields(input_config, text_config, embedding)
    for rows in read_rows(split, fields, input_config, shard_config):
        parsed, rejects = validate(rows, split, text_config, embedding)
        yield parsed, rejects, rows.read


def find_embedding(
    sources: Sequence[SourceFile], input_config: InputConfig, shard_config: ShardConfig
) -> EmbeddingSpec | None:
    """Finds out whether the catalog brings embeddings, and how long they are.

    The first row that has a vector in every column decides; at most 100,000 rows are looked at.
    Without a mapping a column called `embedding` is taken where the first file with rows has one.

    Returns:
      The columns with their lengths, or None when text is to be embedded.

    Raises:
      ValueError: embedding columns are mapped or found, and no row has a vector in all of them.
      OSError: a file cannot be opened or read; the message names it.
    """
    mapped = input_config.embedding_columns
    if mapped == []:
        return None
    columns = mapped or [DEFAULT_COLUMN]
    fields = vector_fields(columns)
    seen = 0
    present = mapped is not None
    for split in list_splits(sources, shard_config.split_bytes):
        if not present:
            names = file_columns(split.path)
            if names is not None and DEFAULT_COLUMN not in names:
                return None
            present = names is not None
        for rows in read_rows(split, fields, input_config, shard_config):
            lengths = [rows.fields.column(i).value_lengths() for i in range(len(fields))]
            present = present or bool(rows.problems) or lengths[0].null_count < len(lengths[0])
            widths = np.array([array.fill_null(0).to_numpy() for array in lengths])
            if (full := np.flatnonzero((widths > 0).all(axis=0))).size:
                first = tuple(int(width) for width in widths[:, full[0]])
                weights = embedding_weights(input_config, len(columns))
                return EmbeddingSpec(tuple(columns), first, weights)
            seen += rows.read
            if seen >= _SEARCHED_ROWS:
                break
        if seen >= _SEARCHED_ROWS or (seen and not present):
            break
    if not present:
        return None
    raise ValueError(
        f"no row among the first {seen} has an embedding in {', '.join(columns)}: set "
        "input.columns.embedding to the columns that hold lists of numbers, or to [] to embed text"
    )


def read_vectors(
    split: SourceSplit,
    rows: np.ndarray,
    input_config: InputConfig,
    shard_config: ShardConfig,
    embedding: EmbeddingSpec,
) -> np.ndarray:
    """Reads embeddings again by where they stand.

    Args:
      split: the split that `PARSED.split` numbers in the file `PARSED.source`.
      rows: (n,) values of `PARSED.row`, in any order, repeats allowed.
      input_config: field mapping and limits.
      shard_config: the same `split_bytes` as when the splits were listed.
      embedding: the same as when the rows were read.

    Returns:
      (n, D) float32 of unit length, in the order of `rows`.

    Raises:
      ValueError: a row is not there or has no valid embedding: the file has changed.
      OSError: the file cannot be opened or read; the message names it.
    """
    wanted, places = np.unique(np.asarray(rows, np.int64), return_inverse=True)
    found = np.zeros(len(wanted), bool)
    vectors = np.empty((len(wanted), embedding.embedding_dim), np.float32)
    for some in read_rows(split, vector_fields(embedding.columns), input_config, shard_config):
        if found.all():
            break
        position = np.searchsorted(wanted, some.numbers)
        position[position == len(wanted)] = 0
        hits = np.flatnonzero(wanted[position] == some.numbers)
        if len(hits) == 0:
            continue
        taken = some.fields.take(pa.array(hits))
        columns = [taken.column(vector_name(i)) for i in range(len(embedding.columns))]
        matrix, bad = combine(columns, embedding)
        good = np.array([i for i in range(len(hits)) if i not in bad], np.int64)
        vectors[position[hits[good]]] = matrix[good]
        found[position[hits[good]]] = True
    if not found.all():
        raise ValueError(
            f"{split.path} has changed while it was read: row {wanted[~found][0]} of split "
            f"{split.number} has no valid embedding any more. Start the run again"
        )
    return vectors[places]


@dataclasses.dataclass(frozen=True)
class CatalogReader:
    """A catalog and how to read it.

    Attributes:
      splits: from `list_splits`.
      input: field mapping and limits.
      text: the template.
      shards: sizes of batches and splits.
      embedding: from `find_embedding`; None renders text.
    """

    splits: tuple[SourceSplit, ...]
    input: InputConfig
    text: TextConfig
    shards: ShardConfig
    embedding: EmbeddingSpec | None = None


@beam.typehints.with_output_types(
    pa.RecordBatch, **{REJECTED: pa.RecordBatch, COUNTS: pa.RecordBatch}
)
class _ReadSplit(beam.DoFn):
    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader
        self._rows_in = Metrics.counter("semid", "rows-in")
        self._rows_out = Metrics.counter("semid", "rows-out")

    def process(self, split: SourceSplit) -> Iterator[object]:
        reader = self._reader
        total = refused = 0
        for parsed, rejects, read in read_split(
            split, reader.input, reader.text, reader.shards, reader.embedding
        ):
            total += read
            refused += rejects.num_rows
            self._rows_in.inc(read)
            self._rows_out.inc(parsed.num_rows)
            for reason, count in Counter(rejects.column("reason").to_pylist()).items():
                Metrics.counter("semid", f"rows-rejected-{reason}").inc(count)
            if parsed.num_rows:
                yield parsed
            if rejects.num_rows:
                yield beam.pvalue.TaggedOutput(REJECTED, rejects)
        row = {"source": split.path, "read": total, "live": 0, "rejected": refused, "duplicate": 0}
        counts = pa.RecordBatch.from_pylist([row], SOURCE_COUNTS)
        yield beam.pvalue.TaggedOutput(COUNTS, counts)


@dataclasses.dataclass
class ReadCatalog(beam.PTransform):
    """Reads and validates a catalog; applied to a pipeline.

    Outputs: `parsed`, `PARSED` batches; `rejected`, `REJECTS` batches; `counts`, one
    `SOURCE_COUNTS` batch per split.
    """

    reader: CatalogReader

    def expand(self, root: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        """Wires the stage."""
        return (
            root
            | "ListSplits" >> beam.Create(self.reader.splits).with_output_types(SourceSplit)
            | "SpreadSplits" >> beam.Reshuffle()
            | "ReadSplit"
            >> beam.ParDo(_ReadSplit(self.reader)).with_outputs(REJECTED, COUNTS, main=PARSED_TAG)
        )
