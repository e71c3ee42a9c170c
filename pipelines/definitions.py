"""The job's pipelines, one function each: objects in, one labelled line per stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import apache_beam as beam
import pyarrow as pa

from models.sid import SidLayout
from pipelines.runs import Run
from schemas.tables import REJECTS, SOURCE_COUNTS
from semid_transforms.collecting import CollectVectors, key_by_text
from semid_transforms.compaction import CompactEmbeddings
from semid_transforms.delta_indexing import IndexDelta
from semid_transforms.delta_placing import PlaceDelta
from semid_transforms.diffing import DiffItems, Leaving
from semid_transforms.embedding import EmbeddingParts, EmbedTexts
from semid_transforms.indexing import IndexItems
from semid_transforms.lookup import DropRows, FindRows
from semid_transforms.parent import ParentParts
from semid_transforms.pieces import LearnPieces, PieceInputs
from semid_transforms.placing import CODED, RETIRED, REWRITE, PlaceInput, PlaceItems
from semid_transforms.quantizing import AssignCodes, WriteHistogram
from semid_transforms.reading import CatalogReader, ReadCatalog
from semid_transforms.spreading import Spread
from semid_transforms.tables import ReadTables, WriteTable

if TYPE_CHECKING:
    from semid_transforms.fitting import FitTokenizer


def define_read(
    root: beam.Pipeline,
    reader: CatalogReader,
    parent_paths: Sequence[str],
    layout: SidLayout,
    num_shards: int,
    run: Run,
    leaving: Leaving | None = None,
    release_before: str = "",
    catalog_folder: str | None = None,
    early: EmbeddingParts | None = None,
) -> None:
    """Reads, validates and deduplicates the catalog and compares it with the parent generation.

    The catalog goes into the generation, or into `catalog_folder`; the embeddings of all valid rows
    are stored in `early`, where that is given.
    """
    parent = ParentParts(tuple(parent_paths), layout, release_before)
    catalog = root | "ReadCatalog" >> ReadCatalog(reader, early, parent)
    (
        catalog.parsed
        | "DiffItems"
        >> DiffItems(
            folder=run.scratch("read"),
            catalog_folder=catalog_folder or run.output("catalog"),
            num_shards=num_shards,
            sid_type=pa.from_numpy_dtype(layout.dtype),
            sources=tuple(source.path for source in reader.sources),
            leaving=leaving,
        )
    )
    (
        catalog.rejected
        | "WriteRejects"
        >> WriteTable(
            run.scratch("read", "rejects"), "read", REJECTS, ("source", "detail"), num_shards
        )
    )
    (
        catalog.counts
        | "WriteCounts"
        >> WriteTable(run.scratch("read", "counts"), "read", SOURCE_COUNTS, ("source",))
    )


def define_embed(
    root: beam.Pipeline, changed_paths: Sequence[str], embed: EmbedTexts, fused: bool
) -> None:
    """Encodes the text of every changed item, each distinct text once.

    Where columns are fused with the text, contents of one text may differ: then the text is the
    key.
    """
    changed = _each(root, "Changed", changed_paths) | "ReadChanged" >> ReadTables()
    if fused:
        changed = changed | "KeyByText" >> beam.Map(key_by_text).with_output_types(pa.RecordBatch)
    changed | "EmbedTexts" >> embed


def define_collect(
    root: beam.Pipeline, changed_paths: Sequence[str], collect: CollectVectors
) -> None:
    """Copies the embeddings of changed items from the catalog that brings them."""
    (
        _each(root, "Changed", changed_paths)
        | "ReadChanged" >> ReadTables()
        | "CollectVectors" >> collect
    )


def define_compact(
    root: beam.Pipeline,
    catalog_paths: Sequence[str],
    changed_paths: Sequence[str],
    compact: CompactEmbeddings,
) -> None:
    """Rewrites the parent's embeddings without those that no live item needs."""
    (
        (_each(root, "Catalog", catalog_paths), _each(root, "Renewed", changed_paths))
        | "CompactEmbeddings" >> compact
    )


def define_fit(root: beam.Pipeline, embedding_paths: Sequence[str], fit: FitTokenizer) -> None:
    """Fits a tokenizer on a sample of the embeddings."""
    root | "Sample" >> beam.Create([list(embedding_paths)]) | "FitTokenizer" >> fit


def define_assign(
    root: beam.Pipeline,
    parts: Sequence[str],
    assign: AssignCodes,
    histogram: WriteHistogram | None = None,
) -> None:
    """Gives every changed item its base codes; counts where they lie, to cut the SID space."""
    counts = _each(root, "Embedded", parts) | "AssignCodes" >> assign
    if histogram is not None:
        counts | "Histogram" >> histogram


def define_pieces(root: beam.Pipeline, inputs: PieceInputs, learn: LearnPieces) -> None:
    """Learns the pieces of the `spm` feature."""
    root | "PieceInputs" >> beam.Create([inputs]) | "LearnPieces" >> learn


def define_place(
    root: beam.Pipeline,
    coded_paths: Sequence[str],
    retired_paths: Sequence[str],
    rewrite: Sequence[int],
    place: PlaceItems,
) -> None:
    """Gives every changed item its ID beside the ones that stay."""
    inputs = [
        *((CODED, path) for path in coded_paths),
        *((RETIRED, path) for path in retired_paths),
        *((REWRITE, str(shard)) for shard in rewrite),
    ]
    _place_inputs(root, inputs) | "PlaceItems" >> place


def define_find(
    root: beam.Pipeline, parts: Sequence[str], find: FindRows, found: WriteTable
) -> None:
    """Finds what a published table has of a few items."""
    _each(root, "Parts", parts) | "FindRows" >> find | "WriteFound" >> found


def define_place_delta(root: beam.Pipeline, coded_paths: Sequence[str], place: PlaceDelta) -> None:
    """Gives a few changed items their IDs beside a generation that stays."""
    _place_inputs(root, [(CODED, path) for path in coded_paths]) | "PlaceDelta" >> place


def define_carry(
    root: beam.Pipeline, parts: Sequence[tuple[str, str]], drop: DropRows, dropped: WriteTable
) -> None:
    """Carries the parts of one table over without the rows that a delta part replaces."""
    (
        root
        | "Parts" >> Spread(parts, tuple[str, str])
        | "DropRows" >> drop
        | "WriteDropped" >> dropped
    )


def define_index_delta(root: beam.Pipeline, index: IndexDelta) -> None:
    """Brings trie, nodes and n-gram vocabulary up to a few more and fewer items."""
    root | "IndexDelta" >> index


def define_index(root: beam.Pipeline, index: IndexItems) -> None:
    """Builds what is read beside the items: trie, nodes, n-gram vocabulary, quality table."""
    root | "IndexItems" >> index


def _place_inputs(
    root: beam.Pipeline, inputs: Sequence[PlaceInput]
) -> beam.PCollection[PlaceInput]:
    return root | "Inputs" >> Spread(inputs, tuple[str, str])


def _each(root: beam.Pipeline, label: str, values: Sequence[str]) -> beam.PCollection[str]:
    return root | f"{label}Paths" >> Spread(values, str)
