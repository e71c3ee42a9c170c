"""The nodes below a prefix, as a tree for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.sid import format_codes
from pipelines.published_tables import PublishedTables, sum_nodes
from schemas.tables import nodes_schema
from semid_transforms import files
from semid_transforms.lookup import overlaps, row_groups

LEVELS = 2
"""Levels of nodes below a prefix. With three, what is shown of a level no longer fits a screen."""

_NARROWING = 3
"""Each level lists a third as many nodes under one parent as the level above it."""


def empty_tree() -> dict[str, Any]:
    """Returns a tree without nodes."""
    return {"children": [], "more": {"nodes": 0, "items": 0}}


def read_tree(
    tables: PublishedTables, codes: Sequence[int], limit: int, levels: int = LEVELS
) -> dict[str, Any]:
    """Returns the fullest nodes below a prefix.

    Args:
      tables: a generation whose codes have prefixes.
      codes: 0 to L codes; none is the root.
      limit: nodes to list directly under the prefix; a third as many, at least one, under each of
        those, and so on.
      levels: how many levels below the prefix to list.

    Returns:
      `children`: the nodes with the most items first, ties in trie order, each with `prefix`,
      `items`, `label`, `exemplar` (an item id) and again `children` and `more`; `more`: `nodes` and
      `items` of the children that were left out. Only row groups of these levels that can hold such
      nodes are read.
    """
    layout = tables.layout
    top = empty_tree()
    start = np.array([layout.prefix_range(codes)[0]], np.uint64)
    parents = {int(layout.prefixes(start, len(codes))[0]): top}
    for depth in range(len(codes) + 1, min(len(codes) + levels, layout.num_levels) + 1):
        bits = layout.level_bits[depth - 1]
        nodes = _read_below(tables, codes, depth)
        above = nodes["prefix"].to_numpy().astype(np.uint64) >> np.uint64(bits)
        rows = nodes.filter(pa.array(np.isin(above, np.array(list(parents), np.uint64))))
        shown = {}
        for row in sorted(rows.to_pylist(), key=lambda row: (-row["item_count"], row["prefix"])):
            parent = parents[row["prefix"] >> bits]
            if len(parent["children"]) < limit:
                shown[row["prefix"]] = node = {
                    "prefix": format_codes(row["codes"]),
                    "items": row["item_count"],
                    "label": row["label"],
                    "exemplar": row["exemplar_item_id"],
                    **empty_tree(),
                }
                parent["children"].append(node)
            else:
                parent["more"]["nodes"] += 1
                parent["more"]["items"] += row["item_count"]
        parents, limit = shown, max(1, limit // _NARROWING)
    return top


def listed(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields every node listed in a tree, parents first."""
    for child in tree["children"]:
        yield child
        yield from listed(child)


def tree_lines(tree: dict[str, Any], indent: str = "") -> list[str]:
    """Lays a tree out, one line a node: its prefix, label, number of items, and an example."""
    more = tree["more"]
    rows = [(_node_text(child), child) for child in tree["children"]]
    lines = []
    for number, (text, child) in enumerate(rows, start=1):
        last = number == len(rows) and not more["nodes"]
        lines.append(f"{indent}{'└─' if last else '├─'} {text}")
        lines += tree_lines(child, indent + ("   " if last else "│  "))
    if more["nodes"]:
        lines.append(f"{indent}└─ {more['nodes']:,} more, {count_text(more['items'])}")
    return lines


def count_text(items: int) -> str:
    """Returns a number of items in words."""
    return f"{items:,} item{'' if items == 1 else 's'}"


def _node_text(node: dict[str, Any]) -> str:
    label = f"  {node['label']}" if node["label"] else ""
    several = f"{count_text(node['items'])}, such as " if node["items"] > 1 else ""
    return f"{node['prefix']}{label}  ({several}{node['exemplar']})"


def _read_below(tables: PublishedTables, codes: Sequence[int], depth: int) -> pa.Table:
    """Reads the nodes of a depth that begin with a prefix, in trie order."""
    bounds = np.array(tables.layout.prefix_range(codes), np.uint64)
    first, last = tables.layout.prefixes(bounds, depth).tolist()
    found = []
    for path in tables.paths("nodes"):
        with files.parquet_file(path) as file:
            groups = set(row_groups(file, "depth", overlaps(depth, depth)))
            groups &= set(row_groups(file, "prefix", overlaps(first, last)))
            nodes = file.read_row_groups(sorted(groups))
        prefix = nodes["prefix"].to_numpy().astype(np.uint64)
        inside = (nodes["depth"].to_numpy() == depth) & (first <= prefix) & (prefix <= last)
        found.append(nodes.filter(pa.array(inside)))
    if not found:
        return nodes_schema(pa.from_numpy_dtype(tables.layout.dtype)).empty_table()
    return sum_nodes(pa.concat_tables(found))
