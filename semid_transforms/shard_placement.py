"""Giving every item its one ID, shard by shard of the SID space.

Published items stay where they are; new ones fill what is free. Carried rows never enter a shuffle:
a shard reads its part of the parent generation from disk, and a shard without changes is not
touched at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.resolution import SuffixOverflowError, resolve, settle
from models.runs import runs
from schemas.arrays import (
    list_from_matrix,
    mask_from_bool,
    matrix_from_list,
    unsigned_from_integers,
)
from schemas.tables import (
    Change,
    Placement,
    changes_schema,
    items_schema,
    reserved_schema,
)
from semid_transforms.features import FeatureColumns
from semid_transforms.hashing import item_hashes
from semid_transforms.identity import Identity, Stamp
from semid_transforms.shard_roles import (
    PIN,
    PLACE,
    RETIRE,
    VACATE,
    has_role,
    settled_schema,
)


def settle_rows(rows: pa.RecordBatch, occupied: np.ndarray, identity: Identity) -> pa.RecordBatch:
    """Finds the rows of a shard that must compete for their codes.

    Args:
      rows: `routed_schema`.
      occupied: sorted SIDs of the parent generation, live and reserved, at least those in the
        rows' `touched_range`.
      identity: layout and policies.

    Returns:
      `settled_schema`, sorted by item id and role, so that nothing depends on order of arrival.
    """
    layout = identity.layout
    keys = [("item_id", "ascending"), ("role", "ascending")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=keys))
    if identity.leaves is not None:
        rows, pinned = _pin_once(rows, identity)
        occupied = np.sort(np.r_[occupied, pinned])
    contested = np.zeros(rows.num_rows, bool)
    placing = np.flatnonzero(has_role(rows, PLACE))
    if identity.policy == "reassign" and len(placing):
        codes = matrix_from_list(rows["base_codes"].take(pa.array(placing)), layout.num_levels)
        taken = layout.prefixes(occupied, layout.num_levels)
        taken = taken[runs(taken)[0]]
        contested[placing] = ~settle(codes, taken, layout)
    return pa.RecordBatch.from_arrays(
        [*rows.columns, pa.array(contested)], schema=settled_schema(identity.old_type)
    )


def _pin_once(rows: pa.RecordBatch, identity: Identity) -> tuple[pa.RecordBatch, np.ndarray]:
    """Leaves each SID to one item: under policy `none` several had the same in the old space.

    Returns:
      The rows, all but the first owner of a SID to be placed instead, and the pinned SIDs.
    """
    pinned = np.flatnonzero(has_role(rows, PIN))
    sids = unsigned_from_integers(pc.fill_null(rows["sid"], 0))[pinned]
    if identity.policy == "none":
        return rows, sids
    first = np.unique(sids, return_index=True)[1]
    placed = np.zeros(rows.num_rows, bool)
    placed[np.delete(pinned, first)] = True
    column = rows.schema.get_field_index("role")
    roles = pc.if_else(pa.array(placed), PLACE, rows["role"])
    return rows.set_column(column, rows.schema.field(column), roles), sids[first]


@dataclasses.dataclass(frozen=True)
class PlacedShard:
    """The tables of one shard: `items`, `reserved` and `changes`."""

    items: pa.RecordBatch
    reserved: pa.RecordBatch
    changes: pa.RecordBatch


@dataclasses.dataclass(frozen=True)
class ParentShard:
    """What the parent generation has in a shard's SID range.

    Attributes:
      items: rows of `items`, without n-grams.
      reserved: rows of `reserved`.
      others: (N,) uint64 SIDs of items, live or retired, whose rows are not at hand because they
        stay where they are.
    """

    items: pa.RecordBatch
    reserved: pa.RecordBatch
    others: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))

    @property
    def occupied(self) -> np.ndarray:
        """Sorted uint64 SIDs that belong to an item, live or retired."""
        own = [
            unsigned_from_integers(self.items["sid"]),
            unsigned_from_integers(self.reserved["sid"]),
        ]
        return np.sort(np.concatenate([*own, self.others]))


def place_rows(
    rows: pa.RecordBatch,
    latents: np.ndarray,
    parent: ParentShard,
    codebooks: Sequence[np.ndarray],
    identity: Identity,
    stamp: Stamp,
    features: FeatureColumns,
) -> PlacedShard:
    """Builds the tables of one shard.

    Args:
      rows: `settled_schema`, what changed in the shard.
      latents: (M, d) float32, of the contested rows in their order.
      parent: what is already there.
      codebooks: of the tokenizer, L arrays (K_l, d).
      identity: layout and policies.
      stamp: of the run.
      features: computes the n-gram columns.

    Raises:
      ValueError: an item needs a suffix that does not fit; the message names it.
    """
    leaving = rows.filter(pa.array(has_role(rows, RETIRE, VACATE)))
    staying = rows.filter(pa.array(has_role(rows, PIN, PLACE)))
    returning = pc.and_(
        pc.equal(staying["change"], Change.NEW.value), pc.equal(staying["role"], PIN)
    )

    reserved = parent.reserved
    if identity.leaves is None:
        back = staying.filter(returning)
        taken_back = back["sid"].take(pc.index_in(reserved["item_id"], back["item_id"]))
        # An item that moved before it was retired left another ID behind, which stays reserved.
        reserved = reserved.filter(
            pc.invert(pc.fill_null(pc.equal(reserved["sid"], taken_back), False))
        )
        reserved = _reserve(reserved, leaving, identity, stamp)
    changed = _place_staying(staying, latents, parent, codebooks, identity)
    items = _item_rows(staying, changed, parent, identity, stamp)
    untouched = ~mask_from_bool(pc.is_in(parent.items["item_id"], value_set=rows["item_id"]))
    merged = _merge(parent.items.select(items.schema.names), np.flatnonzero(untouched), items)
    return PlacedShard(
        items=add_ngrams(merged, identity, features),
        reserved=reserved,
        changes=_changes(rows, staying, changed.sids, identity),
    )


def _merge(parent: pa.RecordBatch, untouched: np.ndarray, items: pa.RecordBatch) -> pa.RecordBatch:
    """Puts items among some rows of the parent, in order of SID, then of item id."""
    rows = pa.concat_batches([parent, items])
    chosen = np.append(untouched, np.arange(parent.num_rows, rows.num_rows))
    sids = rows["sid"].to_numpy()[chosen]
    order = np.argsort(sids, kind="stable")  # the parent's rows are in order: it only merges
    merged = rows.take(pa.array(chosen[order]))
    if (sids[order[1:]] == sids[order[:-1]]).any():
        keys = [("sid", "ascending"), ("item_id", "ascending")]
        merged = merged.take(pc.sort_indices(merged, sort_keys=keys))
    return merged


@dataclasses.dataclass(frozen=True)
class _Placed:
    """Where the staying rows of a shard are, in their order."""

    sids: np.ndarray
    codes: np.ndarray
    suffix: np.ndarray
    placement: np.ndarray


def _place_staying(
    staying: pa.RecordBatch,
    latents: np.ndarray,
    parent: ParentShard,
    codebooks: Sequence[np.ndarray],
    identity: Identity,
) -> _Placed:
    layout = identity.layout
    base = matrix_from_list(staying["base_codes"], layout.num_levels)
    codes = base.copy()
    suffix = np.zeros(staying.num_rows, np.int32)
    placement = np.full(staying.num_rows, Placement.NEAREST.value, object)

    pinned = has_role(staying, PIN)
    if pinned.any():
        own = unsigned_from_integers(staying["sid"].filter(pa.array(pinned)))
        codes[pinned], suffix[pinned] = layout.unpack(own)
        placement[pinned] = _describe(codes[pinned], suffix[pinned], base[pinned])

    contested = mask_from_bool(staying["contested"])
    competing = contested if identity.policy == "reassign" else ~pinned
    settled = ~pinned & ~competing
    taken = [parent.occupied, layout.pack(codes[settled]).astype(np.uint64)]
    if identity.leaves is not None:  # the parent has nothing here: pinned SIDs come with the rows
        taken.append(layout.pack(codes[pinned], suffix[pinned]).astype(np.uint64))
    occupied = np.sort(np.concatenate(taken))
    if competing.any():
        item_ids = staying["item_id"].filter(pa.array(competing))
        try:
            found = resolve(
                base[competing],
                latents if identity.policy == "reassign" else None,
                item_hashes(item_ids),
                codebooks,
                occupied,
                layout,
                identity.policy,
            )
        except SuffixOverflowError as error:
            raise ValueError(f"item {item_ids[error.row].as_py()!r}: {error.reason}") from error
        codes[competing], suffix[competing] = found.codes, found.suffix
        placement[competing] = found.placement
    return _Placed(layout.pack(codes, suffix), codes, suffix, placement)


def _describe(codes: np.ndarray, suffix: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Names the placement of rows that kept their ID, from where it stands to their base codes."""
    placement = np.full(len(codes), Placement.SPILLED.value, object)
    placement[(codes[:, :-1] == base[:, :-1]).all(axis=1)] = Placement.REASSIGNED.value
    placement[(codes == base).all(axis=1)] = Placement.NEAREST.value
    placement[suffix > 0] = Placement.SUFFIXED.value
    return placement


def _item_rows(
    staying: pa.RecordBatch,
    placed: _Placed,
    parent: ParentShard,
    identity: Identity,
    stamp: Stamp,
) -> pa.RecordBatch:
    """Builds the `items` rows, without n-grams, of everything that changed in the shard.

    `first_generation` is the one since which the item has been live under its SID.
    """
    schema = items_schema(identity.sid_type, ())
    rows = staying.num_rows
    # The few are the value set: a hash table of all of a shard's ids takes far longer.
    found = pc.index_in(parent.items["item_id"], value_set=staying["item_id"])
    before = np.full(rows, -1)
    known = np.flatnonzero(found.is_valid())
    before[found.drop_null()] = known
    first = parent.items["first_generation"].take(pa.array(before, mask=before < 0))
    first = pc.if_else(pc.equal(staying["role"], PIN), first, None)
    now = pa.repeat(pa.scalar(stamp.time, schema.field("event_timestamp").type), rows)
    unlabelled = pa.ListArray.from_arrays(
        pa.array(np.zeros(rows + 1, np.int32)), pa.array([], pa.string())
    )
    return pa.RecordBatch.from_arrays(
        [
            staying["item_id"],
            pa.array(placed.sids, identity.sid_type),
            list_from_matrix(placed.codes, pa.int32()),
            staying["base_codes"],
            pa.array(placed.suffix, pa.int32()),
            pa.array(placed.placement, pa.string()),
            staying["quantization_error"],
            staying["content_hash"],
            pa.repeat(pa.scalar(stamp.tokenizer_id), rows),
            pc.fill_null(first, stamp.generation),
            now,
            now,
            unlabelled.cast(schema.field("path_labels").type),  # filled when all are placed
        ],
        schema=schema,
    )


def add_ngrams(
    items: pa.RecordBatch, identity: Identity, features: FeatureColumns
) -> pa.RecordBatch:
    """Appends one list<int64> column per feature to `items` rows without them."""
    codes = matrix_from_list(items["codes"], identity.layout.num_levels)
    schema = items_schema(identity.sid_type, features.names)
    return pa.RecordBatch.from_arrays([*items.columns, *features.columns(codes)], schema=schema)


def _reserve(
    reserved: pa.RecordBatch, leaving: pa.RecordBatch, identity: Identity, stamp: Stamp
) -> pa.RecordBatch:
    schema = reserved_schema(identity.sid_type)
    rows = leaving.num_rows
    added = pa.RecordBatch.from_arrays(
        [
            leaving["item_id"],
            leaving["sid"],
            leaving["base_sid"],
            leaving["content_hash"],
            pa.repeat(pa.scalar(stamp.generation), rows),
            pa.repeat(pa.scalar(stamp.time, schema.field("retired_timestamp").type), rows),
        ],
        schema=schema,
    )
    merged = pa.concat_batches([reserved.cast(schema), added])
    return merged.take(
        pc.sort_indices(merged, sort_keys=[("sid", "ascending"), ("item_id", "ascending")])
    )


def _changes(
    rows: pa.RecordBatch, staying: pa.RecordBatch, sids: np.ndarray, identity: Identity
) -> pa.RecordBatch:
    """Lists what happened: a moving item once, in the shard it moves to."""
    schema = changes_schema(identity.sid_type, identity.old_type)
    retired = rows.filter(pc.equal(rows["role"], RETIRE))
    updated = mask_from_bool(pc.equal(staying["change"], Change.UPDATED.value))
    moved = updated & (
        sids.astype(np.uint64) != unsigned_from_integers(pc.fill_null(staying["sid"], 0))
    )
    moved &= identity.leaves is None  # between two ID spaces every number moves
    change = pc.if_else(pa.array(moved), Change.MOVED.value, staying["change"])
    merged = pa.concat_batches(
        [
            pa.RecordBatch.from_arrays(
                [
                    staying["item_id"],
                    change,
                    staying["sid"],
                    pa.array(sids, identity.sid_type),
                ],
                schema=schema,
            ),
            pa.RecordBatch.from_arrays(
                [
                    retired["item_id"],
                    pa.repeat(pa.scalar(Change.RETIRED.value), retired.num_rows),
                    retired["sid"],
                    pa.nulls(retired.num_rows, identity.sid_type),
                ],
                schema=schema,
            ),
        ]
    )
    return merged.take(pc.sort_indices(merged, sort_keys=[("item_id", "ascending")]))
