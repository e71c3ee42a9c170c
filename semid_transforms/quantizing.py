"""Base codes: every new embedding through the tokenizer, and how many rows each prefix gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, RunInference

from models.quantization_error import quantization_errors
from models.quantizer import Quantizer
from models.shards import balanced_ranges
from models.sid import SidLayout
from models.tokenizers import from_files
from schemas.arrays import list_from_matrix, matrix_from_list
from schemas.tables import Change, coded_schema
from semid_transforms import files
from semid_transforms.coders import RecordBatchCoder
from semid_transforms.metering import Meter
from semid_transforms.routing import empty_batch
from semid_transforms.spreading import Spread

HISTOGRAM = pa.schema(
    [pa.field("prefix", pa.uint64(), nullable=False), pa.field("rows", pa.int64(), nullable=False)]
)
"""Rows per packed prefix of `histogram_length` codes."""

_HISTOGRAM_BITS = 20

TOKENIZER_FILES = ("config.json", "model.safetensors", "metrics.json")


def load_tokenizer(folder: str) -> Quantizer:
    """Loads a published tokenizer.

    Raises:
      ValueError: a file is damaged.
    """
    return from_files(
        {name: files.read_bytes(files.join(folder, name)) for name in TOKENIZER_FILES}
    )


def histogram_length(layout: SidLayout) -> int:
    """Returns the longest prefix that is at most L-2 codes and 20 bits.

    Shards are cut between whole prefixes of this length: items spill under one prefix of L-2 codes,
    and a histogram of a million prefixes is small everywhere. Codes of parallel codebooks never
    spill: only items of equal codes must meet, so all L codes may count.
    """
    longest = layout.num_levels - 2 if layout.hierarchical else layout.num_levels
    length = 0
    while length < longest and sum(layout.level_bits[: length + 1]) <= _HISTOGRAM_BITS:
        length += 1
    return length


def plan_shards(histogram_path: str, layout: SidLayout, num_shards: int) -> list[int]:
    """Cuts the SID space into ranges of about equal size; returns each range's first SID."""
    histogram = files.read_table(histogram_path)
    ranges = balanced_ranges(
        histogram["prefix"].to_numpy(), histogram["rows"].to_numpy(), num_shards
    )
    shift = layout.shift(histogram_length(layout))
    return [int(start) << shift for start in ranges.starts]


def assign_codes(batch: pa.RecordBatch, quantizer: Quantizer) -> pa.RecordBatch:
    """Quantizes the embeddings of one part.

    Args:
      batch: item_id, content_hash, embedding (D values), change, sid, base_sid and part; N rows,
        row i is row i of the part.
      quantizer: fitted; `encode` maps (N, D) float32 to (N, L) int32.

    Returns:
      `coded_schema`, N rows. The quantization error is the squared distance between the embedding
      and its reconstruction from the base codes, to 8 significant bits. Where collisions are
      resolved on something else than the embedding there is one column more, `latent`.

    Raises:
      ValueError: D differs from the quantizer's.
    """
    embeddings = matrix_from_list(batch["embedding"], quantizer.embedding_dim)
    latents = None
    if quantizer.hierarchical and not quantizer.quantizes_embeddings:
        codes, latents = quantizer.encode_with_latents(embeddings)
    else:
        codes = quantizer.encode(embeddings)
    error = quantization_errors(quantizer, embeddings, codes)
    coded = pa.RecordBatch.from_arrays(
        [
            batch["item_id"],
            batch["content_hash"],
            batch["change"],
            batch["sid"],
            batch["base_sid"],
            list_from_matrix(codes, pa.int32()),
            pa.array(error),
            batch["part"],
            pa.array(np.arange(batch.num_rows)),
        ],
        schema=coded_schema(batch.schema.field("sid").type),
    )
    if latents is None:
        return coded
    return coded.append_column("latent", list_from_matrix(latents, pa.float32()))


def retired_rows(retired: pa.RecordBatch) -> pa.RecordBatch:
    """Turns retired items (`parent_schema`) into `coded_schema` rows without codes."""
    schema = coded_schema(retired.schema.field("sid").type)
    rows = retired.num_rows
    columns = {
        "item_id": retired["item_id"],
        "content_hash": retired["content_hash"],
        "change": pa.repeat(pa.scalar(Change.RETIRED.value), rows),
        "sid": retired["sid"],
        "base_sid": retired["base_sid"],
    }
    return pa.RecordBatch.from_arrays(
        [columns.get(field.name, pa.nulls(rows, field.type)) for field in schema], schema=schema
    )


def count_prefixes(batch: pa.RecordBatch, layout: SidLayout) -> pa.RecordBatch:
    """Counts the base codes of a `coded_schema` batch by prefix; returns `HISTOGRAM`, ascending."""
    codes = matrix_from_list(batch["base_codes"], layout.num_levels)
    return count_sids(layout.pack(codes), layout)


def count_sids(sids: np.ndarray, layout: SidLayout) -> pa.RecordBatch:
    """Counts (N,) SIDs by prefix; returns `HISTOGRAM`, ascending."""
    prefixes, counts = np.unique(
        layout.prefixes(sids, histogram_length(layout)), return_counts=True
    )
    return pa.RecordBatch.from_arrays([pa.array(prefixes), pa.array(counts)], schema=HISTOGRAM)


@beam.typehints.with_input_types(pa.RecordBatch)
@beam.typehints.with_output_types(pa.RecordBatch)
class SumHistograms(beam.CombineFn):
    """Adds `HISTOGRAM` batches up."""

    def create_accumulator(self) -> pa.RecordBatch:
        return empty_batch(HISTOGRAM)

    def add_input(self, accumulator: pa.RecordBatch, batch: pa.RecordBatch) -> pa.RecordBatch:
        return self.merge_accumulators([accumulator, batch])

    def merge_accumulators(self, accumulators: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
        table = pa.Table.from_batches(list(accumulators), HISTOGRAM)
        total = table.group_by("prefix").aggregate([("rows", "sum")]).sort_by("prefix")
        columns = [total["prefix"].combine_chunks(), total["rows_sum"].combine_chunks()]
        return pa.RecordBatch.from_arrays(columns, schema=HISTOGRAM)

    def extract_output(self, accumulator: pa.RecordBatch) -> pa.RecordBatch:
        return accumulator

    def get_accumulator_coder(self) -> RecordBatchCoder:
        return RecordBatchCoder()


class QuantizerHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, Quantizer]):
    """Runs a tokenizer on whole parts; use `.with_no_batching()`."""

    def __init__(self, tokenizer_folder: str):
        super().__init__()
        self._tokenizer_folder = tokenizer_folder
        self._meter = Meter("assign", "quantize")

    def load_model(self) -> Quantizer:
        """Loads the tokenizer, once per process."""
        return load_tokenizer(self._tokenizer_folder)

    def run_inference(
        self,
        batch: pa.RecordBatch,
        model: Quantizer,
        inference_args: dict | None = None,
    ) -> Iterable[pa.RecordBatch]:
        """Returns the part's coded rows; without batching a batch is one element."""
        started = self._meter.start()
        coded = assign_codes(batch, model)
        self._meter.done(started, coded.num_rows, coded.nbytes)
        return [coded]

    def get_num_bytes(self, batch: pa.RecordBatch) -> int:
        """Bytes of the embeddings and columns, as Arrow counts them."""
        return int(batch.nbytes)

    def get_metrics_namespace(self) -> str:
        """Prefix of the inference metrics."""
        return "semid-quantizer"


class _ReadPart(beam.DoFn):
    """Reads an embedding part together with its aligned origin part."""

    def __init__(self, embeddings_folder: str, origin_folder: str):
        self._embeddings_folder = embeddings_folder
        self._origin_folder = origin_folder

    def process(self, part: str) -> Iterator[pa.RecordBatch]:
        table = files.read_table(files.join(self._embeddings_folder, part))
        origin = files.read_table(files.join(self._origin_folder, part))
        if table.num_rows != origin.num_rows:
            raise ValueError(
                f"{part}: {table.num_rows} embeddings but {origin.num_rows} origin rows; remove "
                f"the run's folder and start again"
            )
        for name in origin.schema.names:
            table = table.append_column(origin.schema.field(name), origin[name])
        table = table.append_column("part", pa.repeat(pa.scalar(part), table.num_rows))
        yield from table.combine_chunks().to_batches()


class _WriteCodes(beam.DoFn):
    """Writes the coded rows of a part, beside them their latents, and counts their prefixes."""

    def __init__(self, codes_folder: str, latents_folder: str, layout: SidLayout):
        self._codes_folder = codes_folder
        self._latents_folder = latents_folder
        self._layout = layout

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        part = batch["part"][0].as_py()
        if "latent" in batch.schema.names:
            latents = batch.select(["latent"])
            files.write_table(files.join(self._latents_folder, part), latents.schema, [latents])
            batch = batch.drop_columns(["latent"])
        path = files.join(self._codes_folder, part)
        files.write_table(path, batch.schema, [batch])
        beam.metrics.Metrics.counter("assign", "rows-out").inc(batch.num_rows)
        yield count_prefixes(batch, self._layout)


class _WriteSum(beam.DoFn):
    """Writes the histogram of all parts."""

    def __init__(self, path: str):
        self._path = path

    def process(self, batch: pa.RecordBatch) -> Iterator[str]:
        files.write_table(self._path, HISTOGRAM, [batch])
        yield self._path


class _CountItems(beam.DoFn):
    """Counts the SIDs of an `items` part by prefix."""

    def __init__(self, layout: SidLayout):
        self._layout = layout

    def process(self, path: str) -> Iterator[pa.RecordBatch]:
        yield count_sids(files.read_table(path, ["sid"])["sid"].to_numpy(), self._layout)


@dataclasses.dataclass
class AssignCodes(beam.PTransform):
    """Quantizes embedding parts, given by name, and writes coded parts.

    Returns a `HISTOGRAM` of each part: how many of its rows lie under which prefix.
    """

    embeddings_folder: str
    origin_folder: str
    codes_folder: str
    latents_folder: str
    tokenizer_folder: str
    layout: SidLayout

    def expand(self, parts: beam.PCollection[str]) -> beam.PCollection[pa.RecordBatch]:
        quantize = RunInference(QuantizerHandler(self.tokenizer_folder).with_no_batching())
        return (
            parts
            | "ReadEmbeddings"
            >> beam.ParDo(_ReadPart(self.embeddings_folder, self.origin_folder)).with_output_types(
                pa.RecordBatch
            )
            | "Quantize" >> quantize.with_output_types(pa.RecordBatch)
            | "WriteCodes"
            >> beam.ParDo(
                _WriteCodes(self.codes_folder, self.latents_folder, self.layout)
            ).with_output_types(pa.RecordBatch)
        )


@dataclasses.dataclass
class WriteHistogram(beam.PTransform):
    """Sums `HISTOGRAM` batches and writes the sum; returns its path.

    Attributes:
      path: where to.
      items: `items` parts whose SIDs are counted along.
      layout: of the SIDs.
    """

    path: str
    items: tuple[str, ...]
    layout: SidLayout

    def expand(self, counts: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[str]:
        if self.items:
            items = counts.pipeline | "Items" >> Spread(self.items, str)
            counted = items | "CountItems" >> beam.ParDo(
                _CountItems(self.layout)
            ).with_output_types(pa.RecordBatch)
            counts = (counts, counted) | "FlattenCounts" >> beam.Flatten()
        return (
            counts
            | "SumHistograms"
            # The default of an empty input would go through a side input, pickled.
            >> beam.CombineGlobally(SumHistograms())
            .without_defaults()
            .with_output_types(pa.RecordBatch)
            | "WriteSum" >> beam.ParDo(_WriteSum(self.path)).with_output_types(str)
        )
