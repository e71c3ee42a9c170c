"""What happens to a coded row, and in which shard of the SID space."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrays import mask_from_bool, matrix_from_list, unsigned_from_integers
from schemas.tables import Change, coded_schema
from semid_transforms.identity import Identity

PLACE, PIN, RETIRE, VACATE = "place", "pin", "retire", "vacate"
"""What a shard does with a row: find it an ID, keep the one it has, reserve the ID of an item that
is gone, or of one that moves to other codes. In a new ID space nothing is reserved, and an item is
pinned when its new base codes are the codes it had."""

_ROLES = pa.array([PLACE, PIN, RETIRE, VACATE])
_PLACE, _PIN, _RETIRE, _VACATE = range(len(_ROLES))


def routed_schema(old_type: pa.DataType) -> pa.Schema:
    """`coded_schema` and the role of the row in the shard it is sent to."""
    return coded_schema(old_type).append(pa.field("role", pa.string(), nullable=False))


def settled_schema(old_type: pa.DataType) -> pa.Schema:
    """`routed_schema` sorted by item id, and whether a placed row must compete for its codes."""
    return routed_schema(old_type).append(pa.field("contested", pa.bool_(), nullable=False))


def assign_roles(batch: pa.RecordBatch, identity: Identity) -> tuple[pa.RecordBatch, np.ndarray]:
    """Decides what happens to coded rows and where.

    An item that moves becomes two rows: one that vacates its old SID, one that finds a new one.

    Args:
      batch: `coded_schema` of the old SIDs, N rows.
      identity: layout and policies.

    Returns:
      `routed_schema`, N rows and one more per moving item, and (M,) uint64 SIDs that say which
      shard each goes to.
    """
    layout = identity.layout
    retired = mask_from_bool(pc.equal(batch["change"], Change.RETIRED.value))
    known = mask_from_bool(batch["sid"].is_valid())
    sids = unsigned_from_integers(pc.fill_null(batch["sid"], 0))
    base = np.zeros(batch.num_rows, np.uint64)
    coded = batch["base_codes"].filter(pa.array(~retired))
    base[~retired] = layout.pack(matrix_from_list(coded, layout.num_levels))
    moving = np.zeros(batch.num_rows, bool)
    if identity.leaves is not None:
        known &= _keeps_codes(sids, base, identity)
    elif identity.move_changed:
        before = unsigned_from_integers(pc.fill_null(batch["base_sid"], 0))
        moving = known & ~retired & (before != base)
    role = np.select([retired, known & ~moving], [_RETIRE, _PIN], _PLACE)
    goal = np.where(role == _PLACE, base, sids)
    vacating = np.flatnonzero(
        moving & mask_from_bool(pc.equal(batch["change"], Change.UPDATED.value))
    )
    rows = pa.array(np.r_[np.arange(batch.num_rows), vacating])
    roles = np.r_[role, np.full(len(vacating), _VACATE)]
    routed = batch.take(rows).append_column("role", _ROLES.take(pa.array(roles)))
    return (
        pa.RecordBatch.from_arrays(routed.columns, schema=routed_schema(identity.old_type)),
        np.r_[goal, sids[vacating]],
    )


def _keeps_codes(sids: np.ndarray, base: np.ndarray, identity: Identity) -> np.ndarray:
    """Finds items whose base codes in a new ID space are the codes they had in the old one.

    They come before others that want the same codes. A suffix is kept only where it is the policy:
    under `reassign` there may be room for the item now.

    Args:
      sids: (N,) uint64, in the old space.
      base: (N,) uint64, packed in the new space.
      identity: layout and policies.
    """
    layout = identity.layout
    if identity.leaves != layout:
        return np.zeros(len(sids), bool)
    if identity.policy == "suffix":
        return layout.prefixes(sids, layout.num_levels) == layout.prefixes(base, layout.num_levels)
    return sids == base


def has_role(rows: pa.RecordBatch, *roles: str) -> np.ndarray:
    """Returns (N,) bool, which rows have one of some roles."""
    return mask_from_bool(pc.is_in(rows["role"], value_set=pa.array(roles)))


def touched_range(rows: pa.RecordBatch, identity: Identity) -> tuple[int, int] | None:
    """Returns the SIDs, inclusive, among which the rows of a shard can be placed.

    They may spill under their prefix of L-2 codes, and no further.

    Args:
      rows: `routed_schema`.
      identity: layout and policies.

    Returns:
      None when every row keeps the ID it has.
    """
    layout = identity.layout
    placing = rows.filter(pc.equal(rows["role"], PLACE))
    if not placing.num_rows:
        return None
    goals = layout.pack(matrix_from_list(placing["base_codes"], layout.num_levels))
    first, last = int(goals.min()), int(goals.max())
    below = (1 << layout.shift(max(0, layout.num_levels - 2))) - 1
    return first & ~below, last | below
