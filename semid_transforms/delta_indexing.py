"""Bringing what is built over `items` up to date with a few rows more and a few rows less.

The trie is merged. Nodes and n-grams get delta parts with the difference: `item_count` is what is
added, below zero where items left. Whoever reads them sums per node, per n-gram.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.sid import SidLayout
from models.trie_build import build_trie, merge_sids
from models.trie_file import read_trie, write_trie
from schemas.arrays import list_from_matrix, matrix_from_list
from schemas.tables import NGRAMS, Change, nodes_schema
from semid_transforms import files
from semid_transforms.catalog import read_column
from semid_transforms.features import FeatureColumns, FeatureSet
from semid_transforms.naming import NAMED, NAMES, count_names, row_names
from semid_transforms.nodes import NodeInputs, nodes_name, write_items, write_nodes
from semid_transforms.spreading import Spread

_COLUMNS = ["item_id", "sid", "codes", "quantization_error"]


def changed_sids(
    changes: pa.Table, written: pa.Table, dropped: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """Finds out whose SIDs came and whose went; an update keeps its own.

    Args:
      changes: the backfill's `changes`.
      written: its `items` rows.
      dropped: the `items` rows they replace.

    Returns:
      The rows that were added and those that were removed, sorted by SID, then item id.
    """
    moved = pc.equal(changes["change"], Change.MOVED.value)
    arrived = pc.or_(moved, pc.equal(changes["change"], Change.NEW.value))
    added = _rows_of(written, changes["item_id"].filter(arrived))
    return added, _rows_of(dropped, changes["item_id"].filter(moved))


def _rows_of(items: pa.Table, item_ids: pa.ChunkedArray) -> pa.Table:
    rows = items.filter(pc.is_in(items["item_id"], item_ids.combine_chunks()))
    return rows.sort_by([("sid", "ascending"), ("item_id", "ascending")]).combine_chunks()


def added_nodes(
    rows: pa.Table,
    catalog: Sequence[str],
    scratch: str,
    layout: SidLayout,
    parent: ParentNodes,
) -> pa.Table:
    """Describes the nodes above items that came, as if there were no others.

    Nodes that the parent has keep its labels; new ones are named after these items.

    Args:
      rows: item_id, sid and quantization_error of the items, sorted by SID, at least one.
      catalog: parts that hold them.
      scratch: folder for what is counted on the way.
      layout: of the SIDs.
      parent: nodes of the parent generation.

    Returns:
      `nodes_schema`, in trie order.
    """
    items = files.join(scratch, "added.parquet")
    files.write_table(items, rows.schema, rows.to_batches())
    column = "category_path" if parent.by_category else "title"
    named = row_names(
        pa.table({column: read_column(rows["item_id"], catalog, column)}), parent.by_category
    )
    ones = pa.array(np.ones(len(named.name), np.int64))
    names = count_names([pa.RecordBatch.from_arrays([named.name, ones], schema=NAMES)])
    names_path, folder = files.join(scratch, "names.parquet"), files.join(scratch, "named")
    files.write_table(names_path, NAMES, [names])
    numbers = pc.cast(pc.index_in(named.name, value_set=names["name"]), pa.int64())
    offsets = np.searchsorted(named.row, np.arange(rows.num_rows + 1))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), numbers)
    numbered = pa.RecordBatch.from_arrays([pa.array(np.arange(rows.num_rows)), lists], schema=NAMED)
    files.write_table(files.join(folder, "00000.parquet"), NAMED, [numbered])
    inputs = NodeInputs((items,), names_path, folder, parent.by_category, parent.parts)
    trie = build_trie([rows["sid"].to_numpy()], layout, allow_shared=True)
    described = files.join(scratch, "nodes")
    write_nodes(trie, inputs, described)
    depths = range(1, layout.num_levels + 1)
    return pa.concat_tables(
        files.read_table(files.join(described, nodes_name(depth))) for depth in depths
    )


def removed_nodes(rows: pa.Table, layout: SidLayout) -> pa.Table:
    """Describes the nodes above items that went, with counts below zero and without labels.

    Args:
      rows: item_id and sid of the items, sorted by SID.
      layout: of the SIDs.

    Returns:
      `nodes_schema`, in trie order.
    """
    schema = nodes_schema(pa.from_numpy_dtype(layout.dtype))
    trie = build_trie([rows["sid"].to_numpy()], layout, allow_shared=True)
    tables = [schema.empty_table()]
    for depth in range(1, layout.num_levels + 1) if rows.num_rows else ():
        nodes = trie.node_table(depth)
        count = len(nodes.prefixes)
        columns = [
            pa.array(np.full(count, depth, np.int32)),
            list_from_matrix(nodes.codes, pa.int32()),
            pa.array(nodes.prefixes.astype(layout.dtype)),
            pa.array(-nodes.item_counts),
            pa.nulls(count, pa.string()),
            rows["item_id"].combine_chunks().take(pa.array(nodes.first_rows)),
        ]
        tables.append(pa.Table.from_arrays(columns, schema=schema))
    return pa.concat_tables(tables)


def vocabulary_differences(
    rows: pa.Table, features: FeatureColumns, sign: int
) -> Iterator[pa.RecordBatch]:
    """Counts the n-grams of some items, by their `codes`, as differences; yields `NGRAMS`."""
    if not rows.num_rows:
        return
    codes = matrix_from_list(rows["codes"], len(features.codebook_sizes))
    column = NGRAMS.get_field_index("item_count")
    for batch in features.vocabulary(lambda: [codes]):
        counts = pc.multiply(batch["item_count"], sign)
        yield batch.set_column(column, NGRAMS.field(column), counts)


@dataclasses.dataclass(frozen=True)
class ParentNodes:
    """What labels go on from.

    Attributes:
      parts: `nodes` parts of the parent generation; of several that have a node the first counts.
      by_category: nodes are named after category paths, else after words of titles.
    """

    parts: tuple[str, ...]
    by_category: bool


@dataclasses.dataclass(frozen=True)
class DeltaPaths:
    """Where indexing a backfill reads and writes.

    Attributes:
      items: the `items` rows it placed, by part, without labels.
      changes: its `changes` parts.
      dropped: parts with the `items` rows it replaced.
      catalog: the `catalog` parts it wrote.
      parent_folder: of the generation it grew.
      generation_folder: of the generation it makes.
      scratch_folder: of the run.
    """

    items: tuple[str, ...]
    changes: tuple[str, ...]
    dropped: tuple[str, ...]
    catalog: tuple[str, ...]
    parent_folder: str
    generation_folder: str
    scratch_folder: str


class _IndexDelta(beam.DoFn):
    """Does one of the tasks of `IndexDelta`."""

    def __init__(self, index: IndexDelta):
        self._paths = index.paths
        self._name = index.name
        self._layout = index.layout
        self._features = index.features
        self._shared = index.shared
        self._parent = index.parent

    def process(self, task: str) -> Iterator[str]:
        if task == "items":
            self._write_items([])
        else:
            self._write_difference(task)
        yield task

    def _write_difference(self, task: str) -> None:
        """Writes what came and went in the trie, the nodes or the n-grams."""
        paths = self._paths
        written = pa.concat_tables(files.read_table(path, _COLUMNS) for path in paths.items)
        tables = [files.read_table(path, _COLUMNS) for path in paths.dropped]
        dropped = pa.concat_tables([written.schema.empty_table(), *tables])
        changes = pa.concat_tables(files.read_table(path) for path in paths.changes)
        added, removed = changed_sids(changes, written, dropped)
        if task == "trie":
            self._merge_trie(added["sid"].to_numpy(), removed["sid"].to_numpy())
        elif task == "nodes":
            self._write_nodes(added, removed)
        else:
            features = self._features.load(self._layout.codebook_sizes)
            batches = (
                *vocabulary_differences(added, features, 1),
                *vocabulary_differences(removed, features, -1),
            )
            self._write("ngrams", NGRAMS, batches)

    def _write_nodes(self, added: pa.Table, removed: pa.Table) -> None:
        """Writes what nodes gained and lost, and the given items with the labels on their path."""
        paths, layout, parent = self._paths, self._layout, self._parent
        tables = [removed_nodes(removed, layout)]
        if added.num_rows:
            scratch = paths.scratch_folder
            tables.insert(0, added_nodes(added, paths.catalog, scratch, layout, parent))
        table = pa.concat_tables(tables).combine_chunks()
        self._write("nodes", table.schema, table.to_batches())
        own = files.join(paths.generation_folder, "nodes", self._name)
        nodes = [*parent.parts, *([own] if table.num_rows else [])]
        self._write_items(nodes)

    def _write_items(self, nodes: Sequence[str]) -> None:
        """Writes the given items, with the labels of the nodes on their path."""
        folder = files.join(self._paths.generation_folder, "items")
        for path in self._paths.items:
            write_items(path, folder, nodes, self._layout, every_row=False)

    def _merge_trie(self, added: np.ndarray, removed: np.ndarray) -> None:
        before, after = (
            files.join(folder, "trie", "trie.safetensors")
            for folder in (self._paths.parent_folder, self._paths.generation_folder)
        )
        if not len(added) and not len(removed):
            files.copy(before, after)
            return
        with files.local_copy(before) as path:
            trie = merge_sids(read_trie(path), added, self._shared, removed)
            with files.atomic_writer(after) as file:
                write_trie(trie, file)

    def _write(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        path = files.join(self._paths.generation_folder, table, self._name)
        rows = [batch for batch in batches if batch.num_rows]
        if rows:
            files.write_table(path, schema, rows)


@dataclasses.dataclass
class IndexDelta(beam.PTransform):
    """Merges the trie and writes delta parts of items, nodes and n-grams, side by side.

    Attributes:
      paths: where to read and write.
      name: file name of the delta parts.
      layout: of the SIDs.
      features: n-gram columns.
      shared: True under policy `none`, where items may have one SID.
      parent: nodes of the parent generation.
    """

    paths: DeltaPaths
    name: str
    layout: SidLayout
    features: FeatureSet
    shared: bool
    parent: ParentNodes

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[str]:
        # Without nodes there are no labels, so that items can be written as they are.
        tasks = ["trie", "nodes"] if self.layout.hierarchical else ["items"]
        return (
            root
            | "Tasks" >> Spread([*tasks, "ngrams"], str)
            | "IndexDelta" >> beam.ParDo(_IndexDelta(self)).with_output_types(str)
        )
