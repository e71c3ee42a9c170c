"""Rows of a feature store: what a live item is worth, what changed, and what is gone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.tables import TIMESTAMP

FLOAT_EXACT_BITS = 53
"""Integers of up to this many bits survive a float64."""

_TIMES = ("event_timestamp", "created_timestamp")
_NOT_FEATURES = ("path_labels",)  # words for people; they change while the row's times stay


def feature_rows(items: pa.Table, sid_bits: int) -> pa.Table:
    """Turns `items` into rows that a feature store keeps exactly.

    Feature stores pass columns with missing values through float64, which rounds integers beyond
    2**53. So `sid_text`, the packed SID in decimal digits, is always there, and the number `sid`
    only where its layout has at most 53 bits. Lists keep their integers. All columns are nullable:
    a row of nulls stands for an item that is gone.

    Args:
      items: whole rows of `items_schema`, any number.
      sid_bits: bits of the SID layout, codes and suffix together.

    Returns:
      `item_id`, `sid` (int64, up to 53 bits), `sid_text`, every further column of `items` but the
      labels, in its order, and the two timestamps last.
    """
    columns = {"item_id": items["item_id"]}
    if sid_bits <= FLOAT_EXACT_BITS:
        columns["sid"] = items["sid"].cast(pa.int64())
    columns["sid_text"] = items["sid"].cast(pa.string())
    done = {*columns, "sid", *_TIMES, *_NOT_FEATURES}
    others = [name for name in items.schema.names if name not in done]
    columns |= {name: items[name] for name in (*others, *_TIMES)}
    return pa.table(list(columns.values()), names=list(columns)).combine_chunks()


def gone_rows(item_ids: pa.Array, times: pa.Array, schema: pa.Schema) -> pa.Table:
    """Returns tombstones: the item, the time it went, and null for every feature.

    Args:
      item_ids: N strings.
      times: N timestamps, both event and creation time.
      schema: of `feature_rows`.
    """
    given = {"item_id": item_ids, **{name: times.cast(TIMESTAMP) for name in _TIMES}}
    columns = [
        given[field.name] if field.name in given else pa.nulls(len(item_ids), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def is_gone(rows: pa.Table) -> pa.ChunkedArray:
    """Says which rows are tombstones."""
    return pc.is_null(rows["sid_text"])


def latest_rows(log: pa.Table) -> pa.Table:
    """Returns the last row of every item, in the order they were written."""
    ids = _array(log["item_id"]).dictionary_encode()
    numbers = ids.indices.to_numpy(zero_copy_only=False)
    last = np.zeros(len(ids.dictionary), np.int64)
    last[numbers] = np.arange(len(numbers))  # of repeated indices, the last assignment stays
    return log.take(pa.array(np.sort(last)))


def changed_rows(rows: pa.Table, known: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Compares live rows with what the store was last told.

    Args:
      rows: `feature_rows`, one per live item.
      known: one row per item, tombstones included, of the same schema.

    Returns:
      The rows that are new or differ in any value, and the rows of `known` they replace (nulls for
      a new item), in the same order.
    """
    found = known.take(pc.index_in(rows["item_id"], value_set=_array(known["item_id"])))
    differs = np.zeros(rows.num_rows, bool)
    for name in rows.schema.names:
        differs |= _differs(_array(rows[name]), _array(found[name]))
    return rows.filter(pa.array(differs)), found.filter(pa.array(differs))


def _differs(new: pa.Array, old: pa.Array) -> np.ndarray:
    """Returns (N,) bool: whether values differ; a null equals nothing."""
    if not pa.types.is_list(new.type):
        return _true_or_null(pc.not_equal(new, old))
    differs = _true_or_null(pc.not_equal(pc.list_value_length(new), pc.list_value_length(old)))
    same_length = pa.array(~differs)
    new, old = new.filter(same_length), old.filter(same_length)
    values = _true_or_null(pc.not_equal(pc.list_flatten(new), pc.list_flatten(old)))
    owners = pc.list_parent_indices(new).to_numpy(zero_copy_only=False)
    differs[np.flatnonzero(~differs)[owners[values]]] = True
    return differs


def _true_or_null(mask: pa.Array) -> np.ndarray:
    return pc.fill_null(mask, True).to_numpy(zero_copy_only=False)


def _array(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
