"""The `nodes` table and the labels that items read along their path.

A node keeps the label it got in the generation in which it appeared, so an ID reads the same night
after night and a part of `items` in which nothing happened never has to be written again. Parts of
`items` are walked one after another, depth by depth: memory is that of one part, of the names of
the catalog, and of the words under one node that spans parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.node_labels import Votes, distinctive_terms, majority
from models.sid import SidLayout
from models.trie import Trie
from schemas.arrays import list_from_matrix
from schemas.tables import nodes_schema
from semid_transforms import files
from semid_transforms.naming import PATH_SEPARATOR, without_labels
from semid_transforms.shard_plan import items_name

_GROUP_ROWS = 1 << 16
"""Rows of a row group of `nodes`: what is read to look one label up."""


@dataclasses.dataclass(frozen=True)
class NodeInputs:
    """What nodes are described from.

    Attributes:
      items: `items` parts in SID order.
      names_path: of the `NAMES` table.
      named_folder: of the `NAMED` files.
      by_category: names are category paths, else words of titles.
      parent_nodes: `nodes` parts whose labels are kept, the first that has a node counts; none
        labels every node anew.
    """

    items: tuple[str, ...]
    names_path: str
    named_folder: str
    by_category: bool
    parent_nodes: tuple[str, ...]


def nodes_name(depth: int) -> str:
    """File name of the nodes of a depth."""
    return f"part-{depth - 1:05d}.parquet"


def write_nodes(trie: Trie, inputs: NodeInputs, folder: str) -> None:
    """Writes the `nodes` table, one part a depth, each in trie order."""
    schema = nodes_schema(pa.from_numpy_dtype(trie.layout.dtype))
    labeller = _Labeller(trie, inputs, folder)
    for depth in range(1, trie.layout.num_levels + 1):
        rows = _describe_depth(trie, depth, inputs.items, labeller)
        files.write_table(files.join(folder, nodes_name(depth)), schema, rows, _GROUP_ROWS)


@dataclasses.dataclass(frozen=True, eq=False)
class _Open:
    """A node that goes on in the next part: its best item so far, and its votes as node 0."""

    error: float
    item_id: str
    votes: Votes


def _describe_depth(
    trie: Trie, depth: int, items: Sequence[str], labeller: _Labeller
) -> Iterator[pa.RecordBatch]:
    """Yields the nodes of a depth; an exemplar has the smallest error, ties to the first row."""
    schema = nodes_schema(pa.from_numpy_dtype(trie.layout.dtype))
    begun: _Open | None = None
    stop = 0
    labeller.start(depth)
    for number, path in enumerate(items):
        part = files.read_table(path, ["item_id", "quantization_error"]).combine_chunks()
        start, stop = stop, stop + part.num_rows
        if start == stop:
            continue
        low, high = trie.node_range(depth, start, stop)
        nodes = trie.node_table(depth, low, high)
        begin = np.maximum(nodes.first_rows, start) - start
        node = np.repeat(np.arange(high - low), np.minimum(nodes.stop_rows, stop) - start - begin)
        errors = part["quantization_error"].to_numpy()
        least = np.flatnonzero(~(errors > np.minimum.reduceat(errors, begin)[node]))
        best = least[np.searchsorted(node[least], np.arange(high - low))]
        exemplars = part["item_id"].combine_chunks().take(pa.array(best))
        votes = labeller.votes(number, node)
        if begun is not None:
            votes = begun.votes.join(votes)
            if begun.error <= errors[best[0]]:
                errors = errors.copy()
                errors[best[0]] = begun.error
                exemplars = pa.concat_arrays([pa.array([begun.item_id]), exemplars[1:]])
        begun = None
        closed = high - low
        if nodes.stop_rows[-1] > stop:
            closed -= 1
            last = votes.where(votes.node == closed)
            rest = Votes(np.zeros_like(last.node), last.name, last.count)
            begun = _Open(float(errors[best[closed]]), exemplars[closed].as_py(), rest)
        if closed:
            prefixes = nodes.prefixes[:closed]
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(np.full(closed, depth, np.int32)),
                    list_from_matrix(nodes.codes[:closed], pa.int32()),
                    pa.array(prefixes.astype(trie.layout.dtype)),
                    pa.array(nodes.item_counts[:closed]),
                    labeller.label(low, prefixes, votes.where(votes.node < closed)),
                    exemplars[:closed],
                ],
                schema=schema,
            )


class _Labeller:
    """Labels the nodes of one depth after the other."""

    def __init__(self, trie: Trie, inputs: NodeInputs, folder: str):
        self._trie = trie
        self._inputs = inputs
        self._folder = folder
        names = files.read_table(inputs.names_path).combine_chunks()
        self._names = pa.concat_arrays([pa.array([], pa.string()), *names["name"].chunks])
        self._frequency = names["rows"].to_numpy()
        self._depth = 0

    def start(self, depth: int) -> None:
        """Turns to a depth."""
        self._depth = depth
        if self._inputs.by_category:
            split = pc.split_pattern(self._names, PATH_SEPARATOR)
            cut = pc.binary_join(pc.list_slice(split, 0, depth), PATH_SEPARATOR)
            distinct = pc.unique(cut)
            distinct = distinct.take(pc.sort_indices(distinct))
            self._cut = pc.index_in(cut, value_set=distinct).to_numpy().astype(np.int64)
            self._labels = _last_names(distinct)

    def votes(self, part: int, node: np.ndarray) -> Votes:
        """Counts the names under each node of a part; `node` maps its rows to nodes."""
        path = files.join(self._inputs.named_folder, f"{part:05d}.parquet")
        if not files.exists(path):
            none = np.empty(0, np.int64)
            return Votes(none, none, none)
        named = files.read_table(path).combine_chunks()
        names = pc.list_flatten(named["names"]).to_numpy()
        rows = np.repeat(named["row"].to_numpy(), pc.list_value_length(named["names"]).to_numpy())
        return Votes.of(node[rows], self._cut[names] if self._inputs.by_category else names)

    def label(self, low: int, prefixes: np.ndarray, votes: Votes) -> pa.Array:
        """Returns the labels of the nodes from `low`, null where there is nothing to go by."""
        kept, known = find_labels(
            self._inputs.parent_nodes, self._depth, prefixes, self._trie.layout
        )
        votes = votes.where(~known[votes.node])
        if self._inputs.by_category:
            node, name = majority(votes)
            labels = self._labels.take(pa.array(name))
        else:
            nodes = self._trie.num_nodes[self._depth - 1]
            mean_words = float(self._frequency.sum()) / nodes
            used = self._used(low, low + len(prefixes))
            pairs = distinctive_terms(votes, self._frequency, mean_words, used)
            node, labels = self._joined(*pairs)
        fresh = np.full(len(prefixes), -1)
        fresh[node] = np.arange(len(node)) + len(prefixes)
        choice = np.where(known, np.arange(len(prefixes)), fresh)
        return pa.concat_arrays([kept, labels]).take(pa.array(choice, mask=choice < 0))

    def _joined(self, node: np.ndarray, term: np.ndarray) -> tuple[np.ndarray, pa.Array]:
        """Joins the words of each node by a space."""
        named, offsets = np.unique(node, return_index=True)
        words = pa.ListArray.from_arrays(
            pa.array(np.append(offsets, len(node)), pa.int32()), self._names.take(pa.array(term))
        )
        return named, pc.binary_join(words, " ")

    def _used(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns pairs of node, from `low` as 0, and a word that names an ancestor of it."""
        nodes, terms = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        ancestor = np.arange(low, high)
        for depth in range(self._depth - 1, 0, -1):
            start = self._trie.child_start[depth - 1]
            ancestor = np.searchsorted(start, ancestor, side="right") - 1
            first, stop = int(ancestor[0]), int(ancestor[-1]) + 1
            labels = _read_rows(
                files.join(self._folder, nodes_name(depth)), first, stop, "label"
            ).take(pa.array(ancestor - first))
            words = pc.split_pattern(pc.fill_null(labels, ""), " ")
            number = pc.index_in(pc.list_flatten(words), value_set=self._names)
            known = number.is_valid()
            nodes.append(pc.list_parent_indices(words).filter(known).to_numpy())
            terms.append(number.filter(known).to_numpy())
        return np.concatenate(nodes), np.concatenate(terms)


def _last_names(paths: pa.Array) -> pa.Array:
    """Returns the last name of each joined path."""
    return pc.replace_substring_regex(paths, f"(?s)^.*{PATH_SEPARATOR}", "")


def find_labels(
    nodes: Sequence[str], depth: int, prefixes: np.ndarray, layout: SidLayout
) -> tuple[pa.Array, np.ndarray]:
    """Looks the labels of nodes up, reading the row groups that can hold them.

    Args:
      nodes: `nodes` parts; of several that have a node the first counts.
      depth: of the nodes.
      prefixes: (N,) uint64 packed prefixes, ascending, N at least 1.
      layout: of the SIDs.

    Returns:
      (N,) labels, and (N,) bool, which nodes were found; a node can be there without a label.
    """
    sid_type = pa.from_numpy_dtype(layout.dtype)
    wanted = prefixes.astype(layout.dtype)
    low, high = int(wanted[0]), int(wanted[-1])
    found = [nodes_schema(sid_type).empty_table().select(["depth", "prefix", "label"])]
    for path in nodes:
        with files.parquet_file(path) as file:
            groups = [
                group
                for group in range(file.num_row_groups)
                if _may_hold(file.metadata.row_group(group), depth, low, high)
            ]
            table = file.read_row_groups(groups, columns=["depth", "prefix", "label"])
        found.append(table.filter(pc.equal(table["depth"], depth)))
    rows = pa.concat_tables(found).combine_chunks()
    stored = rows["prefix"].to_numpy()
    order = np.argsort(stored, kind="stable")  # takes no time where one part has all
    at = np.searchsorted(stored, wanted, sorter=order)
    known = at < len(stored)
    at[known] = order[at[known]]
    known[known] = stored[at[known]] == wanted[known]
    labels = pa.concat_arrays([pa.array([], pa.string()), *rows["label"].chunks])
    return labels.take(pa.array(at, mask=~known)), known


def _may_hold(group: pq.RowGroupMetaData, depth: int, low: int, high: int) -> bool:
    """True when a row group of `nodes` can hold prefixes of a depth in an inclusive range."""
    spans = {}
    for number in range(group.num_columns):
        column = group.column(number)
        statistics = column.statistics
        if statistics is not None and statistics.has_min_max:
            spans[column.path_in_schema] = (statistics.min, statistics.max)
    first, last = spans.get("depth", (depth, depth))
    smallest, largest = spans.get("prefix", (low, high))
    return bool(first <= depth <= last and smallest <= high and largest >= low)


def _read_rows(path: str, first: int, stop: int, column: str) -> pa.Array:
    """Reads the rows `first` to `stop` of a column, by the row groups they are in."""
    groups: list[int] = []
    skipped = begin = 0
    with files.parquet_file(path) as file:
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if end > first and begin < stop:
                skipped = begin if not groups else skipped
                groups.append(group)
            begin = end
        values = file.read_row_groups(groups, columns=[column])[column]
    return pa.concat_arrays(values.chunks)[first - skipped : stop - skipped]


def path_labels(sids: np.ndarray, nodes: Sequence[str], layout: SidLayout) -> pa.ListArray:
    """Returns what every SID reads, coarse to fine: L labels, null where a node has none.

    Args:
      sids: (N,) ascending SIDs.
      nodes: `nodes` parts, see `find_labels`.
      layout: of the SIDs.

    Raises:
      ValueError: a SID has a node that no part has.
    """
    columns = []
    for depth in range(1, layout.num_levels + 1):
        prefixes, inverse = np.unique(layout.prefixes(sids, depth), return_inverse=True)
        labels, found = find_labels(nodes, depth, prefixes, layout)
        if not found.all():
            missing = int(prefixes[int(np.argmin(found))])
            raise ValueError(f"no node of depth {depth} has prefix {missing}")
        columns.append(labels.take(pa.array(inverse)))
    order = np.arange(len(columns) * len(sids)).reshape(len(columns), len(sids)).T.reshape(-1)
    values = pa.concat_arrays(columns).take(pa.array(order))
    offsets = np.arange(0, len(order) + 1, len(columns))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def label_items(
    items: pa.Table, nodes: Sequence[str], layout: SidLayout, every_row: bool
) -> pa.Table | None:
    """Fills the labels of `items` rows that have none.

    Args:
      items: one part, in SID order.
      nodes: `nodes` parts, see `find_labels`.
      layout: of the SIDs.
      every_row: label rows that have labels too.

    Returns:
      The part with labels, None when no label changed.
    """
    needed = without_labels(items["path_labels"], every_row)
    if not needed.any():
        return None
    rows = np.flatnonzero(needed)
    labels = path_labels(items["sid"].to_numpy()[rows], nodes, layout)
    place = items.schema.get_field_index("path_labels")
    choice = np.arange(items.num_rows)
    choice[rows] = np.arange(len(rows)) + items.num_rows
    column = pa.concat_arrays([*items["path_labels"].chunks, labels]).take(pa.array(choice))
    if column.equals(pa.concat_arrays(items["path_labels"].chunks)):
        return None
    return items.set_column(place, items.schema.field(place), column)


def write_items(
    path: str, folder: str, nodes: Sequence[str], layout: SidLayout, every_row: bool
) -> pa.Table | None:
    """Writes rows of `items` as their part, with labels where they had none.

    Codes of parallel codebooks have no nodes, so their rows stay as they are.

    Args:
      path: of a part, or of rows that wait for their labels.
      folder: of the generation's `items`.
      nodes: `nodes` parts, see `find_labels`.
      layout: of the SIDs.
      every_row: label rows that have labels too.

    Returns:
      The rows, None when the part is there as it should be.
    """
    items = files.read_table(path)
    labelled = label_items(items, nodes, layout, every_row) if layout.hierarchical else None
    target = files.join(folder, items_name(path))
    if labelled is not None:
        items = labelled
    elif path == target:
        return None
    files.write_table(target, items.schema, items.combine_chunks().to_batches())
    return items
