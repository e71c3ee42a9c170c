import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.tables import CATALOG, PARSED, changed_schema, parent_schema
from semid_transforms import diffing
from semid_transforms.diffing import Leaving

SIDS = pa.int64()
FILES = ("file-0", "file-1", "file-2")


def parsed(*rows):
    """Rows of (item id, content, updated_at day or None)."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "item_id": name,
                "text": content,
                "title": content.title(),
                "updated_at": None if day is None else day * 86_400_000_000,
                "content_hash": content.encode().ljust(16, b"."),
                "source": number % 3,
                "split": 0,
                "row": number,
            }
            for number, (name, content, day) in enumerate(rows)
        ],
        PARSED,
    )


def parent(*rows):
    """Rows of (item id, content, SID, retired generation or None)."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "item_id": name,
                "content_hash": content.encode().ljust(16, b"."),
                "sid": sid,
                "base_sid": sid + 1,
                "retired_generation": retired,
            }
            for name, content, sid, retired in rows
        ],
        parent_schema(SIDS),
    )


def diff_items(parsed_rows, parent_rows, leaving=None):
    return diffing.diff_items(parsed_rows, parent_rows, FILES, leaving)


def changes(diff):
    return {row["item_id"]: (row["change"], row["sid"]) for row in diff.changed.to_pylist()}


def test_what_is_new_changed_unchanged_and_gone():
    diff = diff_items(
        parsed(("new", "a", None), ("same", "b", None), ("edited", "c2", None), ("back", "d", 1)),
        parent(
            ("same", "b", 10, None),
            ("edited", "c", 20, None),
            ("gone", "e", 30, None),
            ("back", "d", 40, "000003-x"),
            ("long gone", "f", 50, "000001-x"),
        ),
    )
    assert changes(diff) == {"new": ("new", None), "edited": ("updated", 20), "back": ("new", 40)}
    assert diff.retired["item_id"].to_pylist() == ["gone"]
    assert diff.catalog["item_id"].to_pylist() == ["back", "edited", "new", "same"]
    assert diff.catalog.schema.equals(CATALOG)
    assert diff.changed.schema.equals(changed_schema(SIDS))


@pytest.mark.parametrize(("same_hashes", "edited"), [(True, "updated"), (False, "moved")])
def test_leaving_an_id_space_every_live_item_needs_codes(same_hashes, edited):
    diff = diff_items(
        parsed(("new", "a", None), ("same", "b", None), ("edited", "c2", None)),
        parent(("same", "b", 10, None), ("edited", "c", 20, None), ("gone", "e", 30, None)),
        Leaving(same_hashes),
    )
    assert changes(diff) == {"new": ("new", None), "same": ("moved", 10), "edited": (edited, 20)}
    assert diff.retired["item_id"].to_pylist() == ["gone"]


def test_an_item_that_moved_is_compared_with_where_it_lives():
    diff = diff_items(
        parsed(("m", "new", None)), parent(("m", "old", 90, "000002-x"), ("m", "new", 10, None))
    )
    assert changes(diff) == {}
    assert diff.retired.num_rows == 0


@pytest.mark.parametrize("sids", [(10, 90), (90, 10)])
def test_an_item_that_moved_and_left_returns_to_its_last_id(sids):
    first, last = sids
    both = parent(("m", "old", first, "000002-x"), ("m", "new", last, "000010-x"))
    assert changes(diff_items(parsed(("m", "new", None)), both)) == {"m": ("new", last)}


def test_the_newest_row_is_kept_and_the_losers_are_named():
    diff = diff_items(
        parsed(("a", "old", 1), ("a", "new", 2), ("a", "undated", None), ("a", "new", None)),
        parent(),
    )
    assert diff.catalog["title"].to_pylist() == ["New"]
    assert diff.changed["row"].to_pylist() == [1]
    assert diff.changed["source"].to_pylist() == diff.catalog["source"].to_pylist() == ["file-1"]
    rejects = diff.rejects.to_pylist()
    assert {row["reason"] for row in rejects} == {"duplicate_id"}
    assert sorted(row["detail"] for row in rejects) == [
        "split 0, row 0: kept the row of file-1, split 0, row 1",
        "split 0, row 2: kept the row of file-1, split 0, row 1",
    ]
    assert {row["source"]: row["rejected"] for row in diff.counts.to_pylist()} == {
        "file-0": 1,
        "file-1": 0,
        "file-2": 1,
    }
    assert sum(row["duplicate"] for row in diff.counts.to_pylist()) == 1


ROW = st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.sampled_from([None, 1, 2]))


@given(st.lists(ROW, max_size=12), st.randoms())
def test_order_decides_nothing_and_no_row_is_lost(rows, shuffler):
    batch = parsed(*rows)
    known = parent(("a", "x", 1, None), ("b", "y", 2, None), ("c", "z", 3, "000001-x"))
    diff = diff_items(batch, known)
    order = list(range(len(rows)))
    random.Random(shuffler.random()).shuffle(order)
    mixed = diff_items(batch.take(pa.array(order, pa.int64())), known.take(pa.array([2, 0, 1])))
    for name in ("catalog", "changed", "retired", "counts"):
        assert getattr(diff, name).equals(getattr(mixed, name)), name
    assert diff.rejects.num_rows == mixed.rejects.num_rows
    counts = diff.counts.to_pylist()
    assert len(rows) == sum(c["live"] + c["rejected"] + c["duplicate"] for c in counts)
    assert sum(c["live"] for c in counts) == len({name for name, _, _ in rows})
    assert sum(c["rejected"] for c in counts) == diff.rejects.num_rows
    here = {name for name, _, _ in rows}
    assert set(diff.retired["item_id"].to_pylist()) == {"a", "b"} - here
    assert np.all(np.diff([ord(name) for name in diff.catalog["item_id"].to_pylist()]) > 0)


def test_a_shard_with_nothing_is_nothing():
    diff = diff_items(parsed(), parent())
    assert [getattr(diff, name).num_rows for name in ("catalog", "changed", "counts")] == [0, 0, 0]
