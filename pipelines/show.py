"""Looking at one item, one ID, one prefix, or a whole generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.sid import SidLayout, format_codes, parse_codes
from pipelines.errors import UsageError
from pipelines.prefix_tree import count_text, empty_tree, listed, read_tree, tree_lines
from pipelines.published_tables import NO_TRIE, PublishedTables, index_parts
from pipelines.root import Root
from pipelines.tag_prediction import predict_tags
from schemas.arrays import matrix_from_list
from semid_transforms import files

_COLUMNS = pa.schema(
    [("item_id", pa.string()), ("placement", pa.string()), ("quantization_error", pa.float32())]
)


@dataclasses.dataclass(frozen=True)
class View(PublishedTables):
    """A published generation, opened for looking things up."""

    def items_in(self, first: int, last: int) -> pa.RecordBatch:
        """Returns the items with SIDs in an inclusive range, in SID order."""
        sid = pa.field("sid", pa.from_numpy_dtype(self.layout.dtype))
        index = index_parts(self.root, self.generation, self.manifest)
        rows = index.read_items((first, last), pa.schema([sid, *_COLUMNS]))
        return rows.take(pc.sort_indices(rows, [("sid", "ascending"), ("item_id", "ascending")]))

    def reserved_where(self, column: str, value: str | int) -> Iterator[dict[str, Any]]:
        """Yields the reserved rows that have a value in a column."""
        for path in self.paths("reserved"):
            table = files.read_table(path)
            yield from table.filter(pc.equal(table[column], value)).to_pylist()

    def titles(self, item_ids: Sequence[str]) -> dict[str, tuple[str | None, list[str] | None]]:
        """Returns title and category path of items."""
        wanted = pa.array(list(item_ids), pa.string())
        found = {}
        for path in self.paths("catalog"):
            table = files.read_table(path, ["item_id", "title", "category_path"])
            for row in table.filter(pc.is_in(table["item_id"], value_set=wanted)).to_pylist():
                found[row["item_id"]] = (row["title"], row["category_path"])
        return found


def open_view(root: Root) -> View:
    """Opens the published generation.

    Raises:
      UsageError: nothing is published.
    """
    return View(root, *root.require_published())


def show_item(view: View, item_id: str, limit: int = 10) -> dict[str, Any]:
    """Shows an item and the items that share its longest prefixes.

    Neighbours are found by widening the prefix: first the items that share L-1 codes, then L-2,
    until `limit` are found. Codes of parallel codebooks have no prefixes: there the items with the
    most equal codes are shown.

    Raises:
      UsageError: the item is not in the generation.
    """
    for path in view.paths("items"):
        table = files.read_table(path, ["item_id"])
        row = pc.index(table["item_id"], item_id).as_py()
        if row >= 0:
            found = files.read_table(path).slice(row, 1).to_pylist()[0]
            return _describe_item(view, found, limit)
    for old in view.reserved_where("item_id", item_id):
        raise UsageError(
            f"item {item_id!r} was retired in generation {old['retired_generation']}; its SID "
            f"{_text(view.layout, old['sid'])} stays reserved for it"
        )
    raise UsageError(f"item {item_id!r} is not in generation {view.generation}")


def show_sid(view: View, text: str, limit: int = 10) -> dict[str, Any]:
    """Shows the item that has a SID, given packed or as codes such as `17-203-5`.

    Raises:
      UsageError: the text is not a SID, or no item has it.
    """
    layout = view.layout
    try:
        if text.isdecimal() and layout.num_levels > 1:
            packed = int(text)
            if packed >> layout.bits:
                raise ValueError(f"{text} is above {(1 << layout.bits) - 1}, the layout's last SID")
        else:
            codes, suffix = parse_codes(text)
            if len(codes) != layout.num_levels:
                raise ValueError(
                    f"{text} has {len(codes)} codes, a SID has {layout.num_levels}; use --prefix "
                    f"for shorter ones"
                )
            packed = int(layout.pack(np.array([codes]), np.array([suffix]))[0])
    except ValueError as error:
        raise UsageError(f"--sid: {error}") from error
    rows = view.items_in(packed, packed)
    if not rows.num_rows:
        for old in view.reserved_where("sid", packed):
            raise UsageError(
                f"SID {text} stays reserved for item {old['item_id']!r}, which left it in "
                f"generation {old['retired_generation']}"
            )
        raise UsageError(f"no item of generation {view.generation} has SID {text}")
    return show_item(view, rows["item_id"][0].as_py(), limit)


def show_prefix(view: View, text: str, limit: int = 10) -> dict[str, Any]:
    """Shows what a prefix such as `17-203` holds; the empty text is the whole generation.

    Below it are the nodes of two levels, the fullest first; where there are none, items.

    Raises:
      UsageError: the text is not a prefix, or no item has it.
    """
    layout = view.layout
    try:
        codes, suffix = parse_codes(text)
        if suffix:
            raise ValueError("a prefix has no suffix")
        first, last = layout.prefix_range(codes)
    except ValueError as error:
        raise UsageError(f"--prefix: {error}") from error
    tree = read_tree(view, codes, limit) if layout.hierarchical else empty_tree()
    titles = view.titles([node["exemplar"] for node in listed(tree)])
    for node in listed(tree):
        node["exemplar"] = titles.get(node["exemplar"], (None, None))[0] or node["exemplar"]
    items = sum(child["items"] for child in tree["children"]) + tree["more"]["items"]
    sample = []
    if not tree["children"]:
        rows = view.items_in(first, last)
        items, sample = rows.num_rows, _sample(view, rows, limit)
    if not items:
        raise UsageError(f"no item of generation {view.generation} has the prefix {text}")
    return {
        "generation": view.generation,
        "prefix": format_codes(codes),
        "items": items,
        "label": _labels(view, [codes]).get(tuple(codes)),
        **tree,
        "sample": sample,
        "absent": None if layout.hierarchical else NO_TRIE,
    }


def show_text(shown: dict[str, Any]) -> str:
    """Lays out what `show_item`, `show_sid` or `show_prefix` returned."""
    lines = []
    if "item_id" in shown:
        lines.append(f"{shown['item_id']}  {shown['sid_text']}  (sid {shown['sid']})")
        for name in ("title", "category_path", "path_labels", "placement", "quantization_error"):
            if shown[name] is not None:
                value = shown[name]
                text = " > ".join(map(str, value)) if isinstance(value, list) else value
                lines.append(f"  {name:<20} {text}")
        for number, found in enumerate(shown["predicted_tags"] or [], start=1):
            name = f"predicted, depth {number}"
            lines.append(f"  {name:<20} {found['tag']}  ({found['confidence']:.0%} sure)")
        for name, value in shown["features"].items():
            lines.append(f"  {name:<20} {value}")
        absent = shown["absent"]
        lines.append("  items sharing most codes" if absent else "  items sharing its prefix")
        lines += [
            f"    {row['shared']} codes  {row['sid_text']:<16} {row['title'] or row['item_id']}"
            for row in shown["neighbours"]
        ]
    else:
        name = shown["prefix"] or "all prefixes"
        label = f"  {shown['label']}" if shown["label"] else ""
        lines.append(f"{name}{label}  ({count_text(shown['items'])})")
        if shown["absent"]:
            lines.append(f"  {shown['absent']}")
        lines += tree_lines(shown)
        lines += [
            f"  {row['sid_text']:<16} {row['title'] or row['item_id']}" for row in shown["sample"]
        ]
    return "\n".join(lines)


def _describe_item(view: View, row: dict[str, Any], limit: int) -> dict[str, Any]:
    layout, codes = view.layout, row["codes"]
    if layout.hierarchical:
        neighbours = _sharing_prefixes(view, row, limit)
    else:
        neighbours = _sharing_codes(view, row, limit)
    title, path = view.titles([row["item_id"]]).get(row["item_id"], (None, None))
    lengths = range(1, len(codes) + 1) if layout.hierarchical else ()
    prefixes = [codes[:length] for length in lengths]
    labels = _labels(view, prefixes)
    known = [labels.get(tuple(prefix)) for prefix in prefixes]
    features = [feature["name"] for feature in view.manifest.config["ngrams"]]
    return {
        "generation": view.generation,
        "item_id": row["item_id"],
        "sid": row["sid"],
        "sid_text": format_codes(codes, row["suffix"]),
        "title": title,
        "category_path": path,
        "predicted_tags": predict_tags(view, row["base_codes"]),
        "path_labels": [label or "?" for label in known] if any(known) else None,
        "placement": row["placement"],
        "base_codes": format_codes(row["base_codes"]),
        "quantization_error": round(row["quantization_error"], 4),
        "first_generation": row["first_generation"],
        "features": {name: row[name] for name in features},
        "neighbours": neighbours,
        "absent": None if layout.hierarchical else NO_TRIE,
    }


def _sharing_prefixes(view: View, row: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    """Returns other items, those with the longest common prefixes first."""
    neighbours: list[dict[str, Any]] = []
    seen = {row["item_id"]}
    for length in range(view.layout.num_levels, -1, -1):
        if len(neighbours) >= limit:
            break
        near = view.items_in(*view.layout.prefix_range(row["codes"][:length]))
        for other in _sample(view, near, limit + len(seen)):
            if other["item_id"] not in seen and len(neighbours) < limit:
                seen.add(other["item_id"])
                neighbours.append({**other, "shared": length})
    return neighbours


def _sharing_codes(view: View, row: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    """Returns other items, those with the most equal codes first; reads the codes of every item."""
    best: list[pa.Table] = []
    for path in view.paths("items"):
        table = files.read_table(path, ["item_id", "sid", "codes"])
        table = table.filter(pc.not_equal(table["item_id"], row["item_id"]))
        codes = matrix_from_list(table["codes"], view.layout.num_levels)
        shared = pa.array((codes == np.array(row["codes"])).sum(axis=1))
        table = table.drop(["codes"]).append_column("shared", shared)
        keys = [("shared", "descending"), ("sid", "ascending"), ("item_id", "ascending")]
        best = [pa.concat_tables([*best, table]).sort_by(keys).slice(0, limit)]
    samples = _sample(view, best[0], limit)
    counts = best[0]["shared"].to_pylist()
    return [{**other, "shared": n} for other, n in zip(samples, counts, strict=True)]


def _sample(view: View, rows: pa.RecordBatch | pa.Table, limit: int) -> list[dict[str, Any]]:
    some = rows.slice(0, limit).to_pylist()
    titles = view.titles([row["item_id"] for row in some])
    return [
        {
            "item_id": row["item_id"],
            "sid_text": _text(view.layout, row["sid"]),
            "title": titles.get(row["item_id"], (None, None))[0],
        }
        for row in some
    ]


def _labels(view: View, prefixes: Sequence[Sequence[int]]) -> dict[tuple[int, ...], str | None]:
    layout = view.layout
    if not prefixes:
        return {}
    wanted = {}
    for codes in prefixes:
        if codes:
            first, _ = layout.prefix_range(codes)
            packed = int(layout.prefixes(np.array([first], np.uint64), len(codes))[0])
            wanted[len(codes), packed] = tuple(codes)
    found: dict[tuple[int, ...], str | None] = {}
    for path in view.paths("nodes"):
        nodes = files.read_table(path, ["depth", "prefix", "label"])
        keep = pc.is_in(nodes["prefix"], pa.array([p for _, p in wanted], nodes["prefix"].type))
        for row in nodes.filter(keep).to_pylist():
            if (row["depth"], row["prefix"]) in wanted:
                codes = wanted[row["depth"], row["prefix"]]
                found.setdefault(codes, row["label"])  # of several parts the first counts
    return found


def _text(layout: SidLayout, sid: int) -> str:
    codes, suffix = layout.unpack(np.array([sid], np.uint64))
    return format_codes(codes[0], int(suffix[0]))
