"""Invariants of what is built over the items: trie, nodes and n-gram vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from models.sid import SidLayout
from pipelines.published_tables import TRIE, PublishedTables
from semid_transforms.nodes import path_labels


def check_trie(tables: PublishedTables, layout: SidLayout) -> Iterator[str | int]:
    """Leaf i of the trie is row i of the items."""
    if not any(entry.path == TRIE for entry in tables.manifest.files):
        yield f"{TRIE} is not in the manifest"
        return
    trie = tables.read_trie()
    items = tables.read_items(["item_id", "sid"])
    sids = items["sid"].to_numpy()
    if trie.layout != layout:
        yield f"its layout is {trie.layout}, the manifest's is {layout}"
        return
    if trie.num_rows != len(sids):
        yield f"{trie.num_rows} rows, items has {len(sids)}"
        return
    leaves = trie.leaf_sids()
    if trie.row_start is not None:
        starts = trie.row_start.astype(np.int64)
        leaves = np.repeat(leaves, starts[1:] - starts[:-1])
    for row in np.flatnonzero(leaves != sids):
        yield (
            f"leaf {row} is {leaves[row]}, item {items['item_id'][row].as_py()!r} in that row "
            f"has {sids[row]}"
        )
    yield len(sids)


def check_no_trie(tables: PublishedTables) -> Iterator[str | int]:
    """A generation of codes without levels pretends to no trie and no nodes."""
    for entry in tables.manifest.files:
        if entry.path.split("/")[0] in ("trie", "nodes"):
            yield f"{entry.path} is there, but the codes come from parallel codebooks"
    yield len(tables.manifest.files)


def check_labels(tables: PublishedTables, layout: SidLayout) -> Iterator[str | int]:
    """Every item reads the labels of the nodes on its path; without levels it reads none."""
    items = tables.read_items(["item_id", "sid", "path_labels"])
    stored = items["path_labels"].combine_chunks()
    if not layout.hierarchical:
        for row in np.flatnonzero(pc.greater(pc.list_value_length(stored), 0).to_numpy(False)):
            yield f"item {items['item_id'][row].as_py()!r} has labels, its codes have no levels"
        yield items.num_rows
        return
    try:
        expected = path_labels(items["sid"].to_numpy(), tables.paths("nodes"), layout)
    except ValueError as error:
        yield str(error)
        return
    if not stored.equals(expected):
        pairs = zip(stored.to_pylist(), expected.to_pylist(), strict=True)
        for number, (old, new) in enumerate(pairs):
            if old != new:
                yield (
                    f"item {items['item_id'][number].as_py()!r} reads {old}, the nodes on its path "
                    f"{new}"
                )
    yield items.num_rows


def check_nodes(tables: PublishedTables, layout: SidLayout) -> Iterator[str | int]:
    """The node table is that of the trie."""
    nodes = tables.read_nodes()
    if not nodes.num_columns:
        yield "there are none"
        return
    trie = tables.read_trie()
    start = 0
    for depth in range(1, layout.num_levels + 1):
        expected = trie.node_table(depth)
        stop = start + len(expected.prefixes)
        rows = nodes.slice(start, stop - start)
        wrong = (
            rows.num_rows != stop - start
            or (
                (rows["depth"].to_numpy() != depth)
                | (rows["prefix"].to_numpy() != expected.prefixes.astype(layout.dtype))
                | (rows["item_count"].to_numpy() != expected.item_counts)
            ).any()
        )
        if wrong:
            yield f"the nodes of depth {depth} are not those of the trie"
            return
        start = stop
    if start != nodes.num_rows:
        yield f"{nodes.num_rows} nodes, the trie has {start}"
    yield nodes.num_rows


def check_vocabulary(tables: PublishedTables) -> Iterator[str | int]:
    """The n-gram vocabulary counts what the items have."""
    ngrams = tables.read("ngrams")
    for value in tables.manifest.config["ngrams"]:
        name = value["name"]
        rows = ngrams.filter(pc.equal(ngrams["feature"], name))
        stored = rows.group_by("id").aggregate([("item_count", "sum")]).sort_by("id")
        stored = stored.filter(pc.not_equal(stored["item_count_sum"], 0))
        column = tables.read_items([name])[name]
        ids, counts = np.unique(pc.list_flatten(column).to_numpy(), return_counts=True)
        if not (
            np.array_equal(stored["id"].to_numpy(), ids)
            and np.array_equal(stored["item_count_sum"].to_numpy(), counts)
        ):
            yield f"{name}: ids or item counts are not those of the items"
    yield ngrams.num_rows
