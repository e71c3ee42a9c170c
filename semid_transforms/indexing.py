"""What is built over the finished `items` table: trie, nodes and n-gram vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.node_labels import node_labels, row_terms
from models.sid import SidLayout
from models.trie import Trie
from models.trie_build import build_trie
from models.trie_file import write_trie
from schemas.arrays import list_from_matrix, matrix_from_list
from schemas.tables import NGRAMS, nodes_schema
from semid_transforms import files
from semid_transforms.catalog import read_categories, read_column
from semid_transforms.features import FeatureSet
from semid_transforms.measuring import measure, measure_kept, metrics_bytes
from semid_transforms.quantizing import load_tokenizer

_NODE_ROWS = 1 << 17


def write_trie_file(items: Sequence[str], path: str, layout: SidLayout, shared: bool) -> Trie:
    """Builds the trie over `items` parts, in their order, and writes it.

    Args:
      items: paths of `items` parts in SID order.
      path: of the safetensors file.
      layout: of the SIDs.
      shared: True under policy `none`, where items may have one SID.

    Raises:
      ValueError: SIDs are not sorted, or repeat although they must not.
    """
    chunks = (files.read_table(part, ["sid"])["sid"].to_numpy() for part in items)
    trie = build_trie((chunk for chunk in chunks if len(chunk)), layout, allow_shared=shared)
    with files.atomic_writer(path) as file:
        write_trie(trie, file)
    return trie


def describe_nodes(
    trie: Trie, items: pa.Table, categories: pa.Array | None, titles: pa.Array
) -> Iterator[pa.RecordBatch]:
    """Describes every trie node of depth 1 to L.

    A node's label is the category most of its items have: their path's first `depth` names decide,
    the last of them is the label. In a catalog without categories it is the most distinctive words
    of the titles. A node's exemplar is its item with the smallest quantization error.

    Args:
      trie: over the items.
      items: item_id and quantization_error of every row, in row order.
      categories: list<string> of every row, or None.
      titles: string of every row.

    Yields:
      `nodes_schema` batches in trie order, depth by depth.
    """
    schema = nodes_schema(pa.from_numpy_dtype(trie.layout.dtype))
    errors = items["quantization_error"].to_numpy()
    item_ids = items["item_id"].combine_chunks()
    words = node_labels(trie, row_terms(titles.to_pylist())) if categories is None else []
    for depth in range(1, trie.layout.num_levels + 1):
        named = None if categories is None else _category_numbers(categories, depth)
        for start in range(0, trie.num_nodes[depth - 1], _NODE_ROWS):
            stop = min(start + _NODE_ROWS, trie.num_nodes[depth - 1])
            nodes = trie.node_table(depth, start, stop)
            first, last = int(nodes.first_rows[0]), int(nodes.stop_rows[-1])
            node = np.repeat(np.arange(stop - start), nodes.item_counts)
            best = np.lexsort((errors[first:last], node))[nodes.first_rows - first] + first
            if named is not None:
                labels = _majority(named[0][first:last], node, stop - start, named[1])
            else:
                names = [name or None for name in words[depth - 1][start:stop]]
                labels = pa.array(names, pa.string())
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(np.full(stop - start, depth, np.int32)),
                    list_from_matrix(nodes.codes, pa.int32()),
                    pa.array(nodes.prefixes.astype(trie.layout.dtype)),
                    pa.array(nodes.item_counts),
                    labels,
                    item_ids.take(pa.array(best)),
                ],
                schema=schema,
            )


def _category_numbers(categories: pa.Array, depth: int) -> tuple[np.ndarray, pa.Array]:
    """Numbers every row's path, cut to `depth` names, in sorted order; -1 without a path.

    Returns:
      (N,) int64 numbers, and the last name of each numbered path.
    """
    cut = pc.list_slice(categories, 0, depth)
    joined = pc.binary_join(cut, "\x1f")
    joined = pc.if_else(pc.equal(joined, ""), None, joined)
    names = pc.unique(joined).drop_null()
    names = names.take(pc.sort_indices(names))
    numbers = pc.fill_null(pc.index_in(joined, value_set=names), -1).to_numpy().astype(np.int64)
    return numbers, pa.array([name.split("\x1f")[-1] for name in names.to_pylist()], pa.string())


def _majority(numbers: np.ndarray, node: np.ndarray, nodes: int, names: pa.Array) -> pa.Array:
    """Returns the most frequent name of each node, ties to the first in sorted order."""
    known = numbers >= 0
    pairs, counts = np.unique(
        node[known] * np.int64(len(names)) + numbers[known], return_counts=True
    )
    owner, number = np.divmod(pairs, max(len(names), 1))
    order = np.lexsort((number, -counts, owner))
    first = order[np.flatnonzero(np.r_[True, owner[order][1:] != owner[order][:-1]])[: len(order)]]
    winner = np.full(nodes, -1)
    winner[owner[first]] = number[first]
    return names.take(pa.array(winner, mask=winner < 0))


def write_nodes(trie: Trie, items: Sequence[str], catalog: Sequence[str], path: str) -> int:
    """Writes the `nodes` table and returns its rows."""
    table = pa.concat_tables(
        files.read_table(part, ["item_id", "quantization_error"]) for part in items
    )
    categories = read_categories(table["item_id"], catalog)
    titles = read_column(table["item_id"], catalog, "title")
    schema = nodes_schema(pa.from_numpy_dtype(trie.layout.dtype))
    return files.write_table(path, schema, describe_nodes(trie, table, categories, titles))


def write_vocabulary(
    items: Sequence[str], path: str, layout: SidLayout, features: FeatureSet
) -> int:
    """Writes the `ngrams` table over all items and returns its rows."""

    def chunks() -> Iterator[np.ndarray]:
        for part in items:
            yield matrix_from_list(files.read_table(part, ["codes"])["codes"], layout.num_levels)

    columns = features.load(layout.codebook_sizes)
    return files.write_table(path, NGRAMS, columns.vocabulary(chunks))


@dataclasses.dataclass(frozen=True)
class IndexPaths:
    """Where indexing reads and writes.

    Attributes:
      items: `items` parts in SID order.
      catalog: `catalog` parts.
      embeddings: `embeddings` parts.
      tokenizer_folder: of the tokenizer.
      generation_folder: of the generation.
      changes: `changes` parts.
    """

    items: tuple[str, ...]
    catalog: tuple[str, ...]
    embeddings: tuple[str, ...]
    tokenizer_folder: str
    generation_folder: str
    changes: tuple[str, ...] = ()

    def output(self, *names: str) -> str:
        """A path inside the generation."""
        return files.join(self.generation_folder, *names)


class _Index(beam.DoFn):
    """Does one of the tasks of `IndexItems`."""

    def __init__(self, index: IndexItems):
        self._paths = index.paths
        self._layout = index.layout
        self._features = index.features
        self._shared = index.shared
        self._leaves = index.leaves

    def process(self, task: str) -> Iterator[str]:
        paths = self._paths
        if task == "trie":
            trie_path = paths.output("trie", "trie.safetensors")
            trie = write_trie_file(paths.items, trie_path, self._layout, self._shared)
            nodes = paths.output("nodes", "part-00000.parquet")
            write_nodes(trie, paths.items, paths.catalog, nodes)
        elif task == "ngrams":
            vocabulary = paths.output("ngrams", "part-00000.parquet")
            write_vocabulary(paths.items, vocabulary, self._layout, self._features)
        else:
            quantizer = load_tokenizer(paths.tokenizer_folder)
            document = measure(paths.items, paths.embeddings, paths.catalog, quantizer)
            if self._leaves is not None:
                document["kept"] = measure_kept(paths.changes, self._leaves, self._layout)
            files.write_bytes(paths.output("metrics.json"), metrics_bytes(document))
        yield task


@dataclasses.dataclass
class IndexItems(beam.PTransform):
    """Builds trie and nodes, the n-gram vocabulary, and the quality table, side by side.

    Codes of parallel codebooks have no prefixes, so there is no trie and no node of them.

    Attributes:
      paths: where it reads and writes.
      layout: of the SIDs.
      features: n-gram columns.
      shared: True under policy `none`, where items may have one SID.
      leaves: layout of the parent's SIDs when items come from another ID space; then the quality
        table says which codes they kept.
    """

    paths: IndexPaths
    layout: SidLayout
    features: FeatureSet
    shared: bool
    leaves: SidLayout | None = None

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[str]:
        tasks = ["trie", "ngrams", "metrics"] if self.layout.hierarchical else ["ngrams", "metrics"]
        return (
            root
            | "Tasks" >> beam.Create(tasks)
            | "SpreadTasks" >> beam.Reshuffle()
            | "Index" >> beam.ParDo(_Index(self)).with_output_types(str)
        )
