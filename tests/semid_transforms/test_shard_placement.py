import datetime

import numpy as np
import pyarrow as pa
import pytest

from models.ngrams import NgramFeature
from models.sid import SidLayout
from schemas.tables import coded_schema, items_schema, reserved_schema
from semid_transforms import files
from semid_transforms.features import FeatureColumns
from semid_transforms.identity import Identity, Stamp
from semid_transforms.routing import empty_batch
from semid_transforms.shard_placement import ParentShard, place_rows, settle_rows
from semid_transforms.shard_plan import PartIndex, ShardPlan, shards_to_rewrite
from semid_transforms.shard_roles import assign_roles

LAYOUT = SidLayout.fitting((4, 4, 4))
STAMP = Stamp("000002-b", "t" * 64, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
FEATURES = FeatureColumns((NgramFeature("unigram"),), LAYOUT.codebook_sizes)
BOOKS = tuple(np.arange(4, dtype=np.float32)[:, None] * step for step in (100, 10, 1))


def sid(*codes, suffix=0):
    return int(LAYOUT.pack(np.array([codes]), np.array([suffix]))[0])


def identity(policy="reassign", move=False):
    return Identity(LAYOUT, policy, move)


def coded(*rows):
    """Rows of (item id, change, SID or None, old base codes or None, base codes or None)."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "item_id": name,
                "content_hash": name.encode().ljust(16, b"."),
                "change": change,
                "sid": own,
                "base_sid": None if before is None else sid(*before),
                "base_codes": base,
                "quantization_error": None if base is None else 0.5,
                "part": None if base is None else "part",
                "part_row": None if base is None else number,
            }
            for number, (name, change, own, before, base) in enumerate(rows)
        ],
        coded_schema(pa.int64()),
    )


def place(batch, policy="reassign", move=False, parent=None):
    """Runs a shard that holds the whole SID space."""
    empty = ParentShard(
        empty_batch(items_schema(pa.int64(), ())), empty_batch(reserved_schema(pa.int64()))
    )
    parent = parent or empty
    routed, _ = assign_roles(batch, identity(policy, move))
    rows = settle_rows(routed, parent.occupied, identity(policy, move))
    contested = rows.filter(rows["contested"])
    base = np.array(contested["base_codes"].to_pylist()).reshape(-1, 3)
    latents = (base @ [100, 10, 1]).astype(np.float32)[:, None]
    return place_rows(rows, latents, parent, BOOKS, identity(policy, move), STAMP, FEATURES)


def parent_of(placed, **_):
    items = placed.items.select(items_schema(pa.int64(), ()).names)
    return ParentShard(items, placed.reserved)


def where(placed):
    return {
        row["item_id"]: (tuple(row["codes"]), row["suffix"], row["placement"])
        for row in placed.items.to_pylist()
    }


def test_an_item_alone_keeps_its_codes_and_rivals_share_the_neighbourhood():
    placed = place(
        coded(
            ("a", "new", None, None, [1, 2, 3]),
            ("b", "new", None, None, [1, 0, 0]),
            ("c", "new", None, None, [1, 0, 0]),
        )
    )
    found = where(placed)
    assert found["a"] == ((1, 2, 3), 0, "nearest")
    assert sorted((found["b"], found["c"])) == [
        ((1, 0, 0), 0, "nearest"),
        ((1, 0, 1), 0, "reassigned"),
    ]
    assert placed.items["sid"].to_pylist() == sorted(placed.items["sid"].to_pylist())
    assert placed.items["unigram"][0].as_py() == [1, 4, 8]
    assert {row["change"] for row in placed.changes.to_pylist()} == {"new"}


def test_a_full_neighbourhood_spills_then_numbers():
    rows = [(f"i{n:02d}", "new", None, None, [2, 1, 1]) for n in range(20)]
    placements = [placement for _, _, placement in where(place(coded(*rows))).values()]
    counts = {name: placements.count(name) for name in set(placements)}
    assert counts == {"nearest": 1, "reassigned": 3, "spilled": 12, "suffixed": 4}


def test_who_arrives_first_does_not_matter():
    rows = [(f"i{n:02d}", "new", None, None, [2, n % 2, 1]) for n in range(20)]
    assert (
        place(coded(*rows))
        .items.drop_columns(["quantization_error"])
        .equals(place(coded(*rows[::-1])).items.drop_columns(["quantization_error"]))
    )


def test_published_items_stay_and_their_ids_are_taken():
    before = parent_of(place(coded(("old", "new", None, None, [0, 0, 0]))))
    after = place(coded(("new", "new", None, None, [0, 0, 0])), parent=before)
    assert where(after)["old"] == ((0, 0, 0), 0, "nearest")
    assert where(after)["new"] == ((0, 0, 1), 0, "reassigned")
    old = next(row for row in after.items.to_pylist() if row["item_id"] == "old")
    assert old == {**before.items.to_pylist()[0], "unigram": [0, 4, 8]}


def test_a_retired_item_leaves_its_id_behind_and_gets_it_back():
    first = place(coded(("a", "new", None, None, [0, 0, 0])))
    own = sid(0, 0, 0)
    gone = place(coded(("a", "retired", own, (0, 0, 0), None)), parent=parent_of(first))
    assert gone.items.num_rows == 0
    assert gone.reserved.to_pylist() == [
        {
            "item_id": "a",
            "sid": own,
            "base_sid": own,
            "content_hash": b"a".ljust(16, b"."),
            "retired_generation": "000002-b",
            "retired_timestamp": STAMP.time,
        }
    ]
    other = place(coded(("b", "new", None, None, [0, 0, 0])), parent=parent_of(gone))
    assert where(other)["b"][0] != (0, 0, 0)
    back = place(coded(("a", "new", own, (0, 0, 0), [0, 0, 0])), parent=parent_of(gone))
    assert where(back) == {"a": ((0, 0, 0), 0, "nearest")}
    assert back.reserved.num_rows == 0
    assert back.changes.to_pylist() == [
        {"item_id": "a", "change": "new", "old_sid": own, "new_sid": own}
    ]


@pytest.mark.parametrize("move", [False, True])
def test_a_changed_item_stays_or_moves_as_configured(move):
    first = place(coded(("a", "new", None, None, [0, 0, 0])))
    own, goal = sid(0, 0, 0), sid(3, 3, 3)
    batch = coded(("a", "updated", own, (0, 0, 0), [3, 3, 3]))
    routed, shards = assign_roles(batch, identity(move=move))
    assert routed["role"].to_pylist() == (["place", "vacate"] if move else ["pin"])
    assert shards.tolist() == ([goal, own] if move else [own])
    after = place(batch, move=move, parent=parent_of(first))
    (change,) = after.changes.to_pylist()
    assert change["old_sid"] == own
    if move:
        assert (change["change"], change["new_sid"]) == ("moved", goal)
        assert after.reserved["sid"].to_pylist() == [own]
    else:
        assert (change["change"], change["new_sid"]) == ("updated", own)
        assert where(after) == {"a": ((0, 0, 0), 0, "spilled")}
    assert after.items["base_codes"].to_pylist() == [[3, 3, 3]]


def test_suffixes_number_and_sharing_shares():
    rows = [(f"i{n}", "new", None, None, [1, 1, 1]) for n in range(3)]
    numbered = where(place(coded(*rows), "suffix"))
    assert sorted(suffix for _, suffix, _ in numbered.values()) == [0, 1, 2]
    shared = place(coded(*rows), "none")
    assert set(shared.items["sid"].to_pylist()) == {sid(1, 1, 1)}


def test_a_plan_sends_every_sid_to_one_shard():
    plan = ShardPlan(starts=(0, 100, 200))
    sids = np.array([0, 99, 100, 199, 200, (1 << 64) - 1], np.uint64)
    assert plan.shard_of(sids).tolist() == [0, 0, 1, 1, 2, 2]
    assert [plan.bounds(n) for n in range(3)] == [(0, 99), (100, 199), (200, (1 << 64) - 1)]
    assert shards_to_rewrite(plan) == []


def test_an_index_finds_the_parts_of_a_range_and_those_that_were_appended(tmp_path):
    def write(name, *sids, retired=None):
        columns = {"sid": pa.array(sids, pa.int64())}
        if retired is not None:
            columns["retired_generation"] = retired
        table = pa.table(columns)
        files.write_table(str(tmp_path / name), table.schema, table.to_batches())
        return name

    paths = [
        write("items/part-00000.parquet", 3, 90),
        write("items/part-00001.parquet", 150, 170),
        write("items/delta-000002-00000.parquet", 88, 160),
        write("reserved/part-00000.parquet", 5, 7, retired=["000001-a", "000003-b"]),
    ]
    index = PartIndex.of(str(tmp_path), [0, 150], paths)
    names = [path[len(str(tmp_path)) + 1 :] for path in index.files("items", (0, 80))]
    assert names == paths[:1]
    assert [path[-14:-8] for path in index.files("items", (89, 99))] == ["-00000"] * 2
    assert len(index.files("items", (160, 1 << 63))) == 2
    assert index.read_occupied((4, 160), pa.int64()).tolist() == [5, 7, 88, 90, 150, 160]
    plan = ShardPlan((0, 100), index)
    assert shards_to_rewrite(plan) == [0, 1]

    late = PartIndex.of(str(tmp_path), [0, 150], [*paths[:2], paths[3]], release_before="000003")
    assert late.read_occupied((0, 80), pa.int64()).tolist() == [3, 7]
    assert shards_to_rewrite(ShardPlan((0, 100), late)) == [0]


@pytest.mark.parametrize("change", ["updated", "new"])
def test_equal_base_codes_move_nothing_though_the_item_was_reassigned(change):
    """An edit within its cell, and a return with the same content, under `on_change: reassign`."""
    batch = coded(("a", change, sid(0, 0, 1), (0, 0, 0), [0, 0, 0]))
    routed, shards = assign_roles(batch, identity(move=True))
    assert routed["role"].to_pylist() == ["pin"]
    assert shards.tolist() == [sid(0, 0, 1)]


def leave(batch, layout=LAYOUT, policy="reassign"):
    """Places coded rows in a new ID space, out of one of a layout."""
    space = Identity(LAYOUT, policy, False, layout)
    routed, goals = assign_roles(batch, space)
    rows = settle_rows(routed, np.array([], np.uint64), space)
    contested = rows.filter(rows["contested"])
    base = np.array(contested["base_codes"].to_pylist()).reshape(-1, 3)
    latents = (base @ [100, 10, 1]).astype(np.float32)[:, None]
    nothing = ParentShard(
        empty_batch(items_schema(pa.int64(), ())), empty_batch(reserved_schema(pa.int64()))
    )
    return place_rows(rows, latents, nothing, BOOKS, space, STAMP, FEATURES), goals


def test_in_a_new_space_who_had_the_codes_keeps_them():
    """Item z had the tuple, a and b come before it by distance and by name; c's ID is given up."""
    had = sid(1, 0, 0)
    placed, _ = leave(
        coded(
            ("a", "new", None, None, [1, 0, 0]),
            ("b", "moved", sid(3, 3, 3), (3, 3, 3), [1, 0, 0]),
            ("c", "retired", sid(1, 0, 1), (1, 0, 1), None),
            ("z", "updated", had, (1, 0, 0), [1, 0, 0]),
        )
    )
    found = where(placed)
    assert found["z"] == ((1, 0, 0), 0, "nearest")
    assert {found["a"][0], found["b"][0]} == {(1, 0, 1), (1, 0, 2)}
    assert placed.reserved.num_rows == 0
    assert set(placed.items["first_generation"].to_pylist()) == {STAMP.generation}
    said = {row["item_id"]: row for row in placed.changes.to_pylist()}
    assert {name: row["change"] for name, row in said.items()} == {
        "a": "new",
        "b": "moved",
        "c": "retired",
        "z": "updated",
    }
    assert (said["z"]["old_sid"], said["z"]["new_sid"]) == (had, had)
    assert (said["c"]["old_sid"], said["c"]["new_sid"]) == (sid(1, 0, 1), None)


def test_a_suffix_is_kept_only_where_it_is_the_policy():
    rows = coded(
        ("a", "moved", sid(1, 0, 0, suffix=3), (1, 0, 0), [1, 0, 0]),
        ("b", "moved", sid(1, 0, 0), (1, 0, 0), [1, 0, 0]),
    )
    kept = where(leave(rows, policy="suffix")[0])
    assert (kept["a"][1], kept["b"][1]) == (3, 0)
    assert where(leave(rows)[0])["a"] == ((1, 0, 1), 0, "reassigned")


def test_ids_that_were_shared_become_unique_in_a_new_space():
    same = sid(1, 0, 0)
    rows = coded(*((name, "moved", same, (1, 0, 0), [1, 0, 0]) for name in "cab"))
    found = where(leave(rows)[0])
    assert found["a"][0] == (1, 0, 0), "the first by item id"
    assert len({codes for codes, _, _ in found.values()}) == 3
    shared = where(leave(rows, policy="none")[0])
    assert {codes for codes, _, _ in shared.values()} == {(1, 0, 0)}


def test_codes_of_another_layout_mean_nothing():
    other = SidLayout.fitting((8, 4))
    old = int(other.pack(np.array([[0, 1]]))[0])
    rows = coded(
        ("a", "new", None, None, [0, 0, 1]),
        ("z", "moved", old, None, [0, 0, 1]),
    )
    placed, goals = leave(rows, other)
    assert set(goals.tolist()) == {sid(0, 0, 1)}
    assert {codes for codes, _, _ in where(placed).values()} == {(0, 0, 1), (0, 0, 0)}
    assert placed.changes.to_pylist()[1]["old_sid"] == old
