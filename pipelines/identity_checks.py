"""Invariants of identity: what was published stays, and what changed is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UsageError
from pipelines.generation import release_before
from pipelines.published_tables import PublishedTables, lookup, repeated
from pipelines.root import MANIFEST
from schemas.arrays import mask_from_bool
from schemas.tables import Change, items_schema, reserved_schema
from semid_transforms import files


def check_lineage(tables: PublishedTables) -> Iterator[str | int]:
    """The manifest is the one that was published: CURRENT, or a descendant's manifest, names it.

    The parent's is checked too where the parent is still there, because later checks compare with
    its tables.
    """
    root, checked, reached = tables.root, 0, False
    published = root.published()
    generation, wanted, witness = published.generation, published.manifest_sha256, "CURRENT"
    while generation and files.exists(files.join(root.folder(generation), MANIFEST)):
        digest = root.manifest_sha256(generation)
        if digest != wanted:
            yield (
                f"the manifest of generation {generation} was altered after it was published: "
                f"sha256 {digest[:16]}..., {witness} says {str(wanted)[:16]}..."
            )
            break
        checked += 1
        if reached:
            break
        reached = generation == tables.generation
        manifest = root.manifest(generation)
        witness = f"generation {generation}"
        generation, wanted = manifest.parent, manifest.parent_manifest_sha256
    else:
        if not reached:
            yield (
                f"neither CURRENT nor a generation it grew from names generation "
                f"{tables.generation}: it was not published, or a generation between was removed"
            )
    yield checked


def check_reserved(tables: PublishedTables) -> Iterator[str | int]:
    """No reserved SID is in use, and none is reserved twice."""
    items = tables.read_items(["sid"])
    reserved = tables.read("reserved", ["item_id", "sid"])
    if reserved.num_rows and tables.manifest.config["collisions"]["policy"] != "none":
        taken = reserved.filter(pc.is_in(reserved["sid"], items["sid"].combine_chunks()))
        for row in taken.to_pylist():
            yield f"SID {row['sid']} is reserved for {row['item_id']!r} but another item has it"
        yield from (f"SID {sid} is reserved twice" for sid in repeated(reserved["sid"]))
    yield reserved.num_rows


def check_changes(tables: PublishedTables) -> Iterator[str | int]:
    """What changes/ announces is what items/ has, and every new item is announced."""
    items = tables.read_items(["item_id", "sid", "first_generation"])
    changes = tables.read("changes")
    counts = dict.fromkeys((change.value for change in Change), 0)
    announced = pa.array([], pa.string())
    if changes.num_rows:
        for row in pc.value_counts(changes["change"]).to_pylist():
            counts[row["values"]] = row["counts"]
        now, new = lookup(items, changes["item_id"], "sid"), changes["new_sid"]
        same = pc.or_(mask_from_bool(pc.equal(now, new)), pc.and_(now.is_null(), new.is_null()))
        for row in changes.filter(pc.invert(same)).to_pylist():
            yield f"changes/ says item {row['item_id']!r} has SID {row['new_sid']}"
        announced = changes["item_id"].combine_chunks()
    for change, count in counts.items():
        if count != tables.manifest.counts.get(change, 0):
            yield f"{count} items are {change}, the manifest counts {tables.manifest.counts}"
    first = pc.equal(items["first_generation"], tables.manifest.generation)
    here = items["item_id"].filter(first)
    for name in here.filter(pc.invert(pc.is_in(here, announced))).to_pylist():
        yield f"item {name!r} is live since this generation, and changes/ does not say so"
    yield changes.num_rows


def check_parent(tables: PublishedTables) -> Iterator[str | int]:
    """Every ID of the parent generation is still its owner's."""
    parent = tables.manifest.parent
    if parent is None:
        return
    try:
        before = tables.root.manifest(parent)
    except UsageError:
        yield 0  # removed since: there is nothing to compare with
        return
    columns = ["item_id", "sid"]
    items = tables.read_items(columns)
    older = PublishedTables(tables.root, parent, before)
    old_type = pa.from_numpy_dtype(older.layout.dtype)
    old, kept_back = (
        pa.concat_tables(
            [
                schema.empty_table().select(names),
                *(files.read_table(path, names) for path in older.paths(table)),
            ]
        ).combine_chunks()
        for table, schema, names in (
            ("items", items_schema(old_type, ()), columns),
            ("reserved", reserved_schema(old_type), [*columns, "retired_generation"]),
        )
    )
    if before.fingerprints.tokenizer != tables.manifest.fingerprints.tokenizer:
        yield from _check_new_space(tables, items, old)
        yield old.num_rows
        return
    now = lookup(items, old["item_id"], "sid")
    kept = mask_from_bool(pc.equal(now, old["sid"]))
    changes = tables.read("changes")
    said: dict[str, tuple[Any, ...]] = {}
    if changes.num_rows:
        leaving = pa.array([Change.MOVED.value, Change.RETIRED.value])
        said = {
            row["item_id"]: (row["change"], row["old_sid"], row["new_sid"])
            for row in changes.filter(pc.is_in(changes["change"], value_set=leaving)).to_pylist()
        }
    for row in np.flatnonzero(~kept):
        name, sid, new = old["item_id"][row].as_py(), old["sid"][row].as_py(), now[row].as_py()
        change = Change.RETIRED.value if new is None else Change.MOVED.value
        if said.get(name) != (change, sid, new):
            yield f"item {name!r} had SID {sid}, has {new}, and changes/ does not say so"
    owned = [items, tables.read("reserved", columns)]
    owned_now = pa.concat_tables([table for table in owned if table.num_rows])
    if released := _released_before(tables):
        kept_back = kept_back.filter(pc.greater_equal(kept_back["retired_generation"], released))
    owned_before = pa.concat_tables([old, kept_back.select(columns)])
    lost = owned_before.join(owned_now, columns, join_type="left anti")
    for row in lost.sort_by("item_id").to_pylist():
        yield f"SID {row['sid']} belonged to item {row['item_id']!r} and is not reserved for it"
    yield old.num_rows


def _released_before(tables: PublishedTables) -> str:
    """Returns from where the generations of reserved IDs sort that had to be kept."""
    if tables.manifest.command == "backfill":
        return ""
    release_after = tables.manifest.config["collisions"].get("release_after")
    return release_before(tables.manifest.generation, release_after)


def _check_new_space(tables: PublishedTables, items: pa.Table, old: pa.Table) -> Iterator[str]:
    """Every item has left the parent's ID space, and `changes/` maps its old SID to its new one.

    Old IDs mean nothing in the new space, so none is reserved there.
    """
    changes = tables.read("changes")
    if not changes.num_rows:
        yield f"the tokenizer changed, and changes/ maps none of {old.num_rows} items"
        return
    known = pc.is_in(changes["item_id"], value_set=old["item_id"].combine_chunks())
    for row in changes.filter(pc.and_(changes["old_sid"].is_valid(), pc.invert(known))).to_pylist():
        yield f"changes/ gives item {row['item_id']!r} an old SID, the parent does not have it"
    now = lookup(items, old["item_id"], "sid")
    said_old, said_new, change = (
        lookup(changes, old["item_id"], name) for name in ("old_sid", "new_sid", "change")
    )
    gone = mask_from_bool(now.is_null())
    moved = mask_from_bool(
        pc.is_in(change, value_set=pa.array([Change.MOVED.value, Change.UPDATED.value]))
    )
    moved &= mask_from_bool(pc.equal(said_new, now))
    retired = mask_from_bool(pc.equal(change, Change.RETIRED.value))
    retired &= mask_from_bool(said_new.is_null())
    right = np.where(gone, retired, moved) & mask_from_bool(pc.equal(said_old, old["sid"]))
    for row in np.flatnonzero(~right):
        name, sid, new = old["item_id"][row].as_py(), old["sid"][row].as_py(), now[row].as_py()
        yield (
            f"item {name!r} had SID {sid} under the tokenizer before, has {new}, and changes/ does "
            f"not map one to the other"
        )
    for row in tables.read("reserved").to_pylist():
        yield f"SID {row['sid']} of the ID space before is reserved for item {row['item_id']!r}"
