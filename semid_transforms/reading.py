"""From splits of catalog files to validated rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from schemas.config import InputConfig, ShardConfig, TextConfig
from schemas.tables import SOURCE_COUNTS
from semid_transforms.embedding import EmbeddingParts
from semid_transforms.embedding_columns import EmbeddingSpec, find_embedding
from semid_transforms.files import SourceFile
from semid_transforms.formats import read_rows
from semid_transforms.metering import Meter
from semid_transforms.parent import ParentParts
from semid_transforms.rows import Rows
from semid_transforms.sources import SourceSplit, check_columns, list_splits
from semid_transforms.split_embeddings import SplitEmbeddings
from semid_transforms.spreading import Spread
from semid_transforms.validation import plan_fields, validate

PARSED_TAG = "parsed"
REJECTED = "rejected"
COUNTS = "counts"


def read_split(
    split: SourceSplit,
    input_config: InputConfig,
    text_config: TextConfig,
    shard_config: ShardConfig,
    embedding: EmbeddingSpec | None = None,
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch, Rows]]:
    """Reads and validates a split.

    Args:
      split: from `list_splits`.
      input_config: field mapping and limits.
      text_config: how text is made, unless embeddings of the catalog replace it.
      shard_config: for the size of batches; it changes no row.
      embedding: from `find_embedding`; None renders text alone.

    Yields:
      A `PARSED` batch, a `REJECTS` batch and the rows read for them; `Rows.read` of them are the
      sum of theirs.

    Raises:
      OSError: the file cannot be opened or read; the message names it.
    """
    fields = plan_fields(input_config, text_config, embedding)
    for rows in read_rows(split, fields, input_config, shard_config):
        parsed, rejects = validate(rows, split, text_config, embedding)
        yield parsed, rejects, rows


@dataclasses.dataclass(frozen=True)
class CatalogReader:
    """A catalog and how to read it.

    Attributes:
      sources: the files, from `files.match`.
      splits: the parts they are read in, from `list_splits`.
      input: field mapping and limits.
      text: the template.
      shards: sizes of batches and splits.
      embedding: from `find_embedding`; None renders text alone.
    """

    sources: tuple[SourceFile, ...]
    splits: tuple[SourceSplit, ...]
    input: InputConfig
    text: TextConfig
    shards: ShardConfig
    embedding: EmbeddingSpec | None = None

    @property
    def total_bytes(self) -> int:
        """Size of the files."""
        return sum(source.bytes for source in self.sources)

    @property
    def embedding_dim(self) -> int | None:
        """Length D of the embeddings the catalog brings, None when text is to be embedded."""
        return None if self.embedding is None or self.embeds_text else self.embedding.embedding_dim

    @property
    def first_splits(self) -> dict[str, int]:
        """Where in `splits` those of each file begin; they follow each other."""
        return {split.path: place for place, split in enumerate(self.splits) if split.number == 0}

    @property
    def embeds_text(self) -> bool:
        """True when text is embedded, alone or with columns fused to it."""
        return self.embedding is None or self.embedding.text

    @property
    def embedding_columns(self) -> tuple[str, ...]:
        """Columns that hold embeddings, none when text is to be embedded."""
        return () if self.embedding is None else self.embedding.columns


def open_catalog(
    sources: Sequence[SourceFile],
    input_config: InputConfig,
    text_config: TextConfig,
    shard_config: ShardConfig,
) -> CatalogReader:
    """Looks at a catalog's files and settles how to read them, before anything starts.

    Raises:
      ValueError: a file's ending is unknown, a column is missing, or embeddings are mapped and not
        there; the message names the file and the key to set.
      OSError: a file cannot be opened or read; the message names it.
    """
    splits = list_splits(sources, shard_config.split_bytes)
    check_columns(sources, input_config, text_config)
    embedding = find_embedding(sources, input_config, shard_config)
    return CatalogReader(
        tuple(sources), tuple(splits), input_config, text_config, shard_config, embedding
    )


def has_rows(reader: CatalogReader) -> bool:
    """True when a catalog holds at least one row, good or bad; stops at the first.

    Raises:
      OSError: a file cannot be opened or read; the message names it.
    """
    return any(
        rows.read
        for split in reader.splits
        for _, _, rows in read_split(
            split, reader.input, reader.text, reader.shards, reader.embedding
        )
    )


@beam.typehints.with_output_types(
    pa.RecordBatch, **{REJECTED: pa.RecordBatch, COUNTS: pa.RecordBatch}
)
class _ReadSplit(beam.DoFn):
    """Reads a split of the catalog, or a part of the parent by its path."""

    def __init__(
        self, reader: CatalogReader, early: EmbeddingParts | None, parent: ParentParts | None
    ) -> None:
        self._parent = parent and dataclasses.replace(parent, paths=())
        self._reader = dataclasses.replace(reader, sources=(), splits=())  # shipped to every worker
        self._first_splits = reader.first_splits
        self._early = early
        self._rows_in = Metrics.counter("read", "rows-in")
        self._rows_out = Metrics.counter("read", "rows-out")
        self._meter = Meter("read", "validate")

    def process(self, split: SourceSplit | str) -> Iterator[object]:
        if isinstance(split, str):
            assert self._parent is not None
            yield from self._parent.read(split)
            return
        reader = self._reader
        total = refused = 0
        embeddings = None
        if self._early is not None:
            assert reader.embedding is not None
            embeddings = SplitEmbeddings(self._early, reader.embedding)
        started = self._meter.start()
        for parsed, rejects, rows in read_split(
            split, reader.input, reader.text, reader.shards, reader.embedding
        ):
            if embeddings is not None and parsed.num_rows:
                embeddings.add(rows, parsed)
            self._meter.done(started, parsed.num_rows, parsed.nbytes)
            total += rows.read
            refused += rejects.num_rows
            self._rows_in.inc(rows.read)
            self._rows_out.inc(parsed.num_rows)
            for reason, count in Counter(rejects.column("reason").to_pylist()).items():
                Metrics.counter("read", f"rows-rejected-{reason}").inc(count)
            if parsed.num_rows:
                yield parsed
            if rejects.num_rows:
                yield beam.pvalue.TaggedOutput(REJECTED, rejects)
            started = self._meter.start()  # what follows this stage is not its time
        if embeddings is not None:
            embeddings.write(self._first_splits[split.path] + split.number)
            self._meter.done(started, 0, 0)
        row = {"source": split.path, "read": total, "live": 0, "rejected": refused, "duplicate": 0}
        counts = pa.RecordBatch.from_pylist([row], SOURCE_COUNTS)
        yield beam.pvalue.TaggedOutput(COUNTS, counts)


@dataclasses.dataclass
class ReadCatalog(beam.PTransform):
    """Reads and validates a catalog; applied to a pipeline.

    Outputs: `parsed`, `PARSED` batches, and `parent_schema` batches of the parent; `rejected`,
    `REJECTS` batches; `counts`, one `SOURCE_COUNTS` batch per split.

    Attributes:
      reader: of the catalog.
      early: where the embeddings of all valid rows are stored meanwhile, see `split_embeddings`.
      parent: what the catalog is to be compared with; read here, because batches of both go
        through one shuffle.
    """

    reader: CatalogReader
    early: EmbeddingParts | None = None
    parent: ParentParts | None = None

    def expand(self, root: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        """Wires the stage."""
        splits = [*self.reader.splits, *(self.parent.paths if self.parent else ())]
        return (
            root
            | "ListSplits" >> Spread(splits, SourceSplit | str)
            | "ReadSplit"
            >> beam.ParDo(_ReadSplit(self.reader, self.early, self.parent)).with_outputs(
                REJECTED, COUNTS, main=PARSED_TAG
            )
        )
