"""Reading the tables of one generation through its manifest."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

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
        """Paths of a table's parts, in order."""
        return [self.path(part.path) for part in self.manifest.table(table)]

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

    def read_trie(self) -> Trie:
        """Opens the trie, memory-mapped; a remote one is copied first.

        Raises:
          UsageError: the generation has none.
        """
        if not self.layout.hierarchical:
            raise UsageError(f"generation {self.generation} has {NO_TRIE}")
        path = self.path(TRIE)
        if files.is_local(path):
            return read_trie(path)
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as local:
            local.write(files.read_bytes(path))
            local.flush()
            return read_trie(local.name)


def repeated(values: pa.ChunkedArray) -> list[Any]:
    """Returns the values that occur more than once."""
    counts = pc.value_counts(values.combine_chunks())
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()


def lookup(table: pa.Table, item_ids: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    """Returns a column's value for each item id, null where the table lacks the item."""
    rows = pc.index_in(item_ids, value_set=table["item_id"].combine_chunks())
    return table[column].take(rows)
