"""Embedding changed items, each distinct content once, straight into Parquet.

Embeddings never cross a stage boundary: the stage that makes them writes them, and the stage that
quantizes reads them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.ml.inference.base import ModelHandler, RunInference

from schemas.arrays import bytes_from_fixed_binary, list_from_matrix, matrix_from_list
from schemas.config import EncoderConfig
from schemas.tables import changed_schema, conform, embedding_schema, origin_schema
from semid_transforms import files
from semid_transforms.encoder import SentenceEncoder
from semid_transforms.hashing import content_shards
from semid_transforms.lookup import holds_any, row_groups
from semid_transforms.metering import Meter
from semid_transforms.routing import Router, gather

GROUP_ROWS = 1 << 12
"""Rows per row group of `embeddings`, small because few are looked up by content hash."""


def pending_schema(sid_type: pa.DataType) -> pa.Schema:
    """Rows of one embedding part before encoding, sorted by content hash, then item id.

    `text` is set on the first row of each content that must be encoded; `embedding` on the first
    row of each content the parent generation already has an embedding of.
    """
    return pa.schema(
        [
            pa.field("part", pa.string(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("content_hash", pa.binary(16), nullable=False),
            pa.field("text", pa.string()),
            pa.field("embedding", pa.list_(pa.float32())),
            *origin_schema(sid_type),
        ]
    )


def by_content(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Sorts rows as they stand in an embedding part: by content hash, then item id."""
    keys = [("content_hash", "ascending"), ("item_id", "ascending")]
    return rows.take(pc.sort_indices(rows, sort_keys=keys))


def prepare_part(rows: pa.RecordBatch, part: str, known: Sequence[str] = ()) -> pa.RecordBatch:
    """Sorts the rows of a part and finds what really has to be encoded.

    Args:
      rows: `changed_schema`, N rows.
      part: file name of the part.
      known: paths of embedding parts to reuse embeddings from, by content hash.

    Returns:
      `pending_schema`, N rows.
    """
    sid_type = rows.schema.field("sid").type
    rows = by_content(rows)
    hashes = rows["content_hash"]
    first = np.r_[True, pc.not_equal(hashes[1:], hashes[:-1]).to_numpy(zero_copy_only=False)]
    embedding = find_embeddings(known, hashes.filter(pa.array(first)))
    per_row = embedding.take(
        pa.array(np.where(first, np.cumsum(first) - 1, 0), mask=~first, type=pa.int64())
    )
    encode = pc.and_(pa.array(first), per_row.is_null())
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(pa.scalar(part), rows.num_rows),
            rows["item_id"],
            hashes,
            pc.if_else(encode, rows["text"], None),
            per_row,
            rows["change"],
            rows["sid"],
            rows["base_sid"],
        ],
        schema=pending_schema(sid_type),
    )


def find_embeddings(parts: Sequence[str], hashes: pa.Array) -> pa.Array:
    """Looks up embeddings by content hash.

    Args:
      parts: paths of `embedding_schema` files.
      hashes: N content hashes.

    Returns:
      (N,) list<float32>; null where no part has the content.
    """
    found: list[pa.Array] = []
    wanted: list[np.ndarray] = []
    for rows, embeddings, places in _stored_embeddings(parts, hashes):
        found.append(embeddings.take(pa.array(places)))
        wanted.append(rows)
    list_type = pa.list_(pa.float32())
    if not found:
        return pa.nulls(len(hashes), list_type)
    position = np.full(len(hashes), -1)
    position[np.concatenate(wanted)] = np.arange(sum(map(len, wanted)))
    return pa.concat_arrays([array.cast(list_type) for array in found]).take(
        pa.array(position, mask=position < 0)
    )


def read_embeddings(parts: Sequence[str], hashes: pa.Array, dim: int) -> np.ndarray:
    """Looks up embeddings that are known to be there; takes the memory of what it returns.

    Args:
      parts: paths of `embedding_schema` files.
      hashes: N content hashes.
      dim: D.

    Returns:
      (N, D) float32.

    Raises:
      ValueError: no part has the content of a row, or its embedding has another length.
    """
    out = np.empty((len(hashes), dim), np.float32)
    missing = np.ones(len(hashes), bool)
    for rows, embeddings, places in _stored_embeddings(parts, hashes):
        out[rows] = matrix_from_list(embeddings, dim)[places]
        missing[rows] = False
    if missing.any():
        raise ValueError(
            f"{missing.sum()} of {len(hashes)} rows have no embedding in {len(parts)} parts, "
            f"row {int(missing.argmax())} first"
        )
    return out


def _stored_embeddings(
    parts: Sequence[str], hashes: pa.Array
) -> Iterator[tuple[np.ndarray, pa.Array, np.ndarray]]:
    """Finds content hashes in embedding parts, each in the first that has it.

    Parts are sorted by content hash: row groups whose range holds no wanted hash are not read. Of
    the others the hashes are (16 bytes a row), and embeddings only where a wanted one is.

    Yields:
      Rows of `hashes`, the embeddings of a row group, and where in them those of the rows are.
    """
    missing = np.ones(len(hashes), bool)
    may_hold = holds_any(sorted(hashes.to_pylist()))
    for path in parts:
        if not missing.any():
            break
        with files.parquet_file(path) as file:
            for group in row_groups(file, "content_hash", may_hold):
                stored = file.read_row_group(group, columns=["content_hash"])["content_hash"]
                where = pc.index_in(hashes, value_set=stored.combine_chunks())
                hit = where.is_valid().to_numpy(zero_copy_only=False) & missing
                if not hit.any():
                    continue
                missing &= ~hit
                embeddings = file.read_row_group(group, columns=["embedding"])["embedding"]
                places = where.filter(pa.array(hit)).to_numpy()
                yield np.flatnonzero(hit), embeddings.combine_chunks(), places


def embed_batch(batch: pa.RecordBatch, encoder: SentenceEncoder) -> pa.RecordBatch:
    """Fills in the embedding of every row.

    Args:
      batch: `pending_schema`, N rows.
      encoder: maps n texts to (n, D) float32.

    Returns:
      The batch with N embeddings; items of equal content share theirs.
    """
    to_encode = batch["text"].is_valid().to_numpy(zero_copy_only=False)
    reused = batch["embedding"].is_valid().to_numpy(zero_copy_only=False)
    encoded = encoder.encode(batch["text"].drop_null().to_pylist())
    first = to_encode | reused
    values = np.empty((int(first.sum()), encoder.embedding_dim), np.float32)
    values[to_encode[first]] = encoded
    if reused.any():
        values[reused[first]] = matrix_from_list(
            batch["embedding"].drop_null(), encoder.embedding_dim
        )
    column = list_from_matrix(values[np.cumsum(first) - 1], pa.float32())
    return batch.set_column(
        batch.schema.get_field_index("embedding"), batch.schema.field("embedding"), column
    )


def write_part(batch: pa.RecordBatch, embeddings_folder: str, origin_folder: str) -> str:
    """Writes an embedded part and, last, the aligned origin part; returns the part's name.

    A part counts as done when its origin file is there.
    """
    part: str = batch["part"][0].as_py()
    embeddings = embedding_schema()
    rows = batch.select(embeddings.names).cast(embeddings)
    files.write_table(files.join(embeddings_folder, part), embeddings, [rows], GROUP_ROWS)
    write_origin(batch, origin_folder, part)
    return part


def write_origin(rows: pa.RecordBatch, folder: str, part: str) -> None:
    """Writes the origin part of an embedding part, whose rows it takes in the same order."""
    origin = origin_schema(rows.schema.field("sid").type)
    files.write_table(
        files.join(folder, part), origin, [conform(rows.select(origin.names), origin)]
    )


class EncoderHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, SentenceEncoder]):
    """Runs the sentence encoder on whole parts; use `.with_no_batching()`."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self._config = config
        self._meter = Meter("embed", "encode")

    def load_model(self) -> SentenceEncoder:
        """Loads the model, once per process."""
        return SentenceEncoder(self._config)

    def run_inference(
        self,
        batch: pa.RecordBatch,
        model: SentenceEncoder,
        inference_args: dict | None = None,
    ) -> Iterable[pa.RecordBatch]:
        """Returns the part with its embeddings; without batching a batch is one element."""
        started = self._meter.start()
        embedded = embed_batch(batch, model)
        self._meter.done(started, embedded.num_rows, embedded.nbytes)
        return [embedded]

    def get_num_bytes(self, batch: pa.RecordBatch) -> int:
        """Bytes of text and columns, as Arrow counts them."""
        return int(batch.nbytes)

    def get_metrics_namespace(self) -> str:
        """Prefix of the inference metrics."""
        return "semid-encoder"


class _RouteByContent(Router):
    """Cuts changed rows by ranges of their content hash, so equal contents meet."""

    def __init__(self, num_parts: int):
        self._num_parts = num_parts

    def route(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
        hashes = bytes_from_fixed_binary(batch["content_hash"])
        return batch, content_shards(hashes, self._num_parts)


@dataclasses.dataclass(frozen=True)
class EmbeddingParts:
    """Where embedding parts go and come from.

    Attributes:
      embeddings: folder of the new generation's embedding parts.
      origin: folder of the aligned `origin_schema` parts.
      prefix: start of every part's file name, unique to the generation.
      known: embedding parts of the parent generation.
    """

    embeddings: str
    origin: str
    prefix: str
    known: tuple[str, ...] = ()

    def name(self, shard: int) -> str:
        """File name of a part."""
        return f"{self.prefix}-{shard:05d}.parquet"

    def done(self, shard: int) -> bool:
        """True when an earlier attempt finished the part."""
        return files.exists(files.join(self.origin, self.name(shard)))


class _PreparePart(beam.DoFn):
    """Builds the pending rows of a part, unless an earlier attempt finished it."""

    def __init__(self, parts: EmbeddingParts, sid_type: pa.DataType):
        self._parts = parts
        self._sid_type = sid_type

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
        shard, batches = element
        if self._parts.done(shard):
            return
        rows = gather(list(batches), changed_schema(self._sid_type))
        pending = prepare_part(rows, self._parts.name(shard), self._parts.known)
        encode = pending.num_rows - pending["text"].null_count
        beam.metrics.Metrics.counter("embed", "texts-encoded").inc(encode)
        beam.metrics.Metrics.counter("embed", "rows-in").inc(pending.num_rows)
        yield pending


class _WritePart(beam.DoFn):
    """Writes embedded parts."""

    def __init__(self, parts: EmbeddingParts):
        self._parts = parts
        self._meter = Meter("embed", "write")

    def process(self, batch: pa.RecordBatch) -> Iterator[str]:
        started = self._meter.start()
        part = write_part(batch, self._parts.embeddings, self._parts.origin)
        self._meter.done(started, batch.num_rows, batch.nbytes)
        yield part


@dataclasses.dataclass
class EmbedTexts(beam.PTransform):
    """Encodes changed rows and writes their embeddings; returns the names of the parts written.

    A part holds a range of content hashes, so what shares a batch depends on the set of contents
    alone, never on row order, sharding or workers.

    Attributes:
      config: of the encoder.
      parts: where embeddings go and come from.
      num_parts: how many parts to make.
      sid_type: Arrow type of a packed SID.
      hints: Beam resource hints of the encoding worker. All three stages that see embeddings have
        them: a runner moves data from one machine to another where hints differ.
    """

    config: EncoderConfig
    parts: EmbeddingParts
    num_parts: int
    sid_type: pa.DataType
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def expand(self, changed: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[str]:
        prepare = beam.ParDo(_PreparePart(self.parts, self.sid_type))
        encode = RunInference(EncoderHandler(self.config).with_no_batching())
        write = beam.ParDo(_WritePart(self.parts))
        return (
            changed
            | "RouteByContent"
            >> beam.ParDo(_RouteByContent(self.num_parts)).with_output_types(
                tuple[int, pa.RecordBatch]
            )
            | "GroupByContentShard" >> beam.GroupByKey()
            | "PreparePart"
            >> prepare.with_output_types(pa.RecordBatch).with_resource_hints(**self.hints)
            | "Encode" >> encode.with_output_types(pa.RecordBatch).with_resource_hints(**self.hints)
            | "WriteEmbeddings" >> write.with_output_types(str).with_resource_hints(**self.hints)
        )
