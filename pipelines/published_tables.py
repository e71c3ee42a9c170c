"""Reading the tables of one generation through its manifest."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.sid import SidLayout
from models.trie import Trie
from models.trie_file import read_trie
from pipelines.errors import UsageError
from pipelines.generation import SPM_FILE
from pipelines.root import Root
from pipelines.settings import parse_feature
from schemas.manifest import Manifest
from semid_transforms import files
from semid_transforms.features import FeatureSet
from semid_transforms.shard_plan import PartIndex, is_delta

TRIE = "trie/trie.safetensors"
NO_TRIE = "no trie and no nodes: the codes come from parallel codebooks, which have no prefixes"


@dataclasses.dataclass(frozen=True)
class PublishedTables:
    """A complete generation.

    Attributes:
      root: where it is.
      generation: its id.
      manifest: its manifest.
    """

    root: Root
    generation: str
    manifest: Manifest

    @property
    def layout(self) -> SidLayout:
        """Layout of its SIDs."""
        return SidLayout.from_json(self.manifest.fingerprints.layout)

    def path(self, name: str) -> str:
        """Path of a file of the generation, named as in the manifest."""
        return files.join(self.root.folder(self.generation), *name.split("/"))

    def paths(self, table: str) -> list[str]:
        """Paths of a table's parts, in order; those that backfills appended last."""
        parts = sorted(self.manifest.table(table), key=lambda part: is_delta(part.path))
        return [self.path(part.path) for part in parts]

    def read(self, table: str, columns: list[str] | None = None) -> pa.Table:
        """Reads a whole table; one without columns when it has no part."""
        tables = [files.read_table(path, columns) for path in self.paths(table)]
        return pa.concat_tables(tables).combine_chunks() if tables else pa.table({})

    @property
    def features(self) -> FeatureSet:
        """The n-gram columns of `items`."""
        features = tuple(parse_feature(value) for value in self.manifest.config["ngrams"])
        learned = self.manifest.fingerprints.spm is not None
        return FeatureSet(features, self.path(SPM_FILE) if learned else None)

    def read_items(self, columns: list[str] | None = None) -> pa.Table:
        """Reads `items` in row order: row i is leaf i of the trie.

        Every part is in that order by itself; parts that backfills appended are merged in.
        """
        items, order = self.read("items", columns), self._row_order
        return items if order is None else items.take(order)

    @functools.cached_property
    def _row_order(self) -> pa.Array | None:
        """Rows of the `items` parts, one after the other, in row order; None where they are."""
        if not any(is_delta(part.path) for part in self.manifest.table("items")):
            return None
        keys = [("sid", "ascending"), ("item_id", "ascending")]
        return pc.sort_indices(self.read("items", [name for name, _ in keys]), sort_keys=keys)

    def read_nodes(self) -> pa.Table:
        """Reads `nodes` in trie order, with what backfills added to each node summed up."""
        nodes = self.read("nodes")
        if not any(is_delta(part.path) for part in self.manifest.table("nodes")):
            return nodes
        return sum_nodes(nodes)

    def read_trie(self) -> Trie:
        """Opens the trie, memory-mapped; a remote one is copied first.

        Raises:
          UsageError: the generation has none.
        """
        if not self.layout.hierarchical:
            raise UsageError(f"generation {self.generation} has {NO_TRIE}")
        path = self.path(TRIE)
        with files.local_copy(path) as local:
            return read_trie(local)  # mapped by now: it outlives the name


def sum_nodes(nodes: pa.Table) -> pa.Table:
    """Sums `nodes` rows of one node up; parts that backfills appended come last.

    Returns:
      One row per node that has items, in trie order; label and exemplar are those of its first row.
    """
    depth, prefix = nodes["depth"].to_numpy(), nodes["prefix"].to_numpy()
    order = np.lexsort((prefix, depth))
    depth, prefix = depth[order], prefix[order]
    begins = np.append(True, (depth[1:] != depth[:-1]) | (prefix[1:] != prefix[:-1]))
    starts = np.flatnonzero(begins[: len(order)])
    counts = pa.array(np.add.reduceat(nodes["item_count"].to_numpy()[order], starts))
    column = nodes.schema.get_field_index("item_count")
    summed = nodes.take(pa.array(order[starts])).set_column(
        column, nodes.schema.field(column), counts
    )
    return summed.filter(pc.greater(summed["item_count"], 0)).combine_chunks()


def index_parts(
    root: Root, generation: str, manifest: Manifest, release_before: str = ""
) -> PartIndex:
    """Finds out which parts of a generation's `items` and `reserved` hold which SIDs.

    Args:
      root: where it is.
      generation: its id.
      manifest: its manifest.
      release_before: IDs reserved in generations that sort before it count as free.
    """
    paths = [part.path for table in ("items", "reserved") for part in manifest.table(table)]
    return PartIndex.of(root.folder(generation), manifest.shards, paths, release_before)


def repeated(values: pa.ChunkedArray) -> list[Any]:
    """Returns the values that occur more than once."""
    counts = pc.value_counts(values.combine_chunks())
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()


def lookup(table: pa.Table, item_ids: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    """Returns a column's value for each item id, null where the table lacks the item."""
    rows = pc.index_in(item_ids, value_set=table["item_id"].combine_chunks())
    return table[column].take(rows)
