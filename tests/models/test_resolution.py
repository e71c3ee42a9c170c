import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import resolution
from models.exact_products import exact_dot, split_rows
from models.placement import assign_apart, assign_codes, equal_rows, fill_rounds
from models.resolution import resolve, settle
from models.sid import SidLayout


def nearest_codes(latents, codebooks):
    rest, codes = latents.astype(np.float64), []
    for book in codebooks:
        codes.append(((rest[:, None] - book[None].astype(np.float64)) ** 2).sum(-1).argmin(1))
        rest = rest - book[codes[-1]]
    return np.stack(codes, axis=1).astype(np.int32)


def squared_distance(latent, codes, codebooks):
    return float(
        np.square(
            latent.astype(np.float64)
            - sum(
                book[code].astype(np.float64) for book, code in zip(codebooks, codes, strict=True)
            )
        ).sum()
    )


def random_case(seed, sizes=(2, 3, 4), rows=9, pinned=3, copies=0.4):
    """Latents with repeated rows, so that ties and full prefixes are common."""
    rng = np.random.default_rng(seed)
    codebooks = [
        rng.normal(size=(size, 3)).astype(np.float32) / (level + 1)
        for level, size in enumerate(sizes)
    ]
    latents = rng.normal(size=(rows, 3)).astype(np.float32)
    repeated = np.flatnonzero(rng.random(rows) < copies)
    latents[repeated] = latents[0]
    layout = SidLayout(sizes, 6)
    tuples = np.stack([rng.integers(0, size, pinned) for size in sizes], axis=1)
    occupied = np.unique(layout.pack(tuples, rng.integers(0, 2, pinned)))
    ties = rng.permutation(rows).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return latents, nearest_codes(latents, codebooks), ties, codebooks, occupied, layout


def best_in_prefix(rows, latents, base, codebooks, free):
    """Brute force: (rows placed, rows kept, least added distance) over every placement."""
    best = (0, 0, 0.0)
    size = len(codebooks[-1])
    room = min(len(rows), len(free))
    for chosen in itertools.permutations(rows, room):
        for codes in itertools.combinations(sorted(free), room):
            kept = sum(base[row, -1] == code for row, code in zip(chosen, codes, strict=True))
            added = sum(
                squared_distance(latents[row], (*base[row, :-1], code), codebooks)
                - squared_distance(latents[row], base[row], codebooks)
                for row, code in zip(chosen, codes, strict=True)
            )
            best = min(best, (-room, -kept, added))
    assert size >= room
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_moves_then_distance_are_least_inside_every_prefix(seed):
    latents, base, ties, codebooks, occupied, layout = random_case(seed, (2, 2, 4), 7)
    result = resolve(base, latents, ties, codebooks, occupied, layout)
    pinned, _ = layout.unpack(occupied)
    for prefix in np.unique(base[:, :-1], axis=0):
        rows = np.flatnonzero((base[:, :-1] == prefix).all(1))
        taken = {int(codes[-1]) for codes in pinned if (codes[:-1] == prefix).all()}
        placed, kept, added = best_in_prefix(rows, latents, base, codebooks, set(range(4)) - taken)
        stays = rows[np.isin(result.placement[rows], ["nearest", "reassigned"])]
        assert len(stays) == -placed
        assert (result.placement[rows] == "nearest").sum() == -kept
        assert result.added_distance[stays].sum() == pytest.approx(added, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(5,), (3, 4), (2, 3, 4), (2, 2, 2, 3)]),
    st.sampled_from(["reassign", "suffix"]),
    st.sampled_from([0, 4, 512]),
)
def test_ids_are_unique_and_independent_of_order(seed, sizes, policy, limit):
    latents, base, ties, codebooks, occupied, layout = random_case(seed, sizes, rows=16, pinned=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolution, "ASSIGNMENT_LIMIT", limit)
        result = resolve(base, latents, ties, codebooks, occupied, layout, policy)
        order = np.random.default_rng(seed).permutation(len(base))
        other = resolve(
            base[order], latents[order], ties[order], codebooks, occupied, layout, policy
        )
    sids = layout.pack(result.codes, result.suffix)
    assert len(np.unique(sids)) == len(sids)
    assert not np.isin(sids, occupied).any()
    np.testing.assert_array_equal(result.codes[order], other.codes)
    np.testing.assert_array_equal(result.suffix[order], other.suffix)
    np.testing.assert_array_equal(result.placement[order], other.placement)
    np.testing.assert_array_equal(result.added_distance[order], other.added_distance)
    moved = (result.codes != base).any(1)
    assert set(result.placement[moved]) <= {"reassigned", "spilled"}
    assert ((result.suffix > 0) == (result.placement == "suffixed")).all()
    assert (result.codes[:, :-2] == base[:, :-2]).all()
    stays = result.placement == "reassigned"
    assert (result.codes[stays, :-1] == base[stays, :-1]).all()
    assert sum(result.counts().values()) == len(base)
    for row in range(len(base)):
        added = squared_distance(latents[row], result.codes[row], codebooks) - squared_distance(
            latents[row], base[row], codebooks
        )
        assert result.added_distance[row] == pytest.approx(added, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_settling_first_changes_nothing(seed):
    latents, base, ties, codebooks, occupied, layout = random_case(seed, rows=14)
    settled = settle(base, layout.prefixes(occupied, layout.num_levels), layout)
    whole = resolve(base, latents, ties, codebooks, occupied, layout)
    assert (whole.placement[settled] == "nearest").all()
    rest = ~settled
    taken = np.union1d(occupied, layout.pack(base[settled]))
    result = resolve(base[rest], latents[rest], ties[rest], codebooks, taken, layout)
    assert result.counts()["nearest"] + settled.sum() == whole.counts()["nearest"]
    # In an over-full prefix several choices of the rows that leave it can be equally good.
    full = {tuple(row) for row in base[np.isin(whole.placement, ["spilled", "suffixed"]), :-1]}
    same = np.array([tuple(row) not in full for row in base[:, :-1]])
    np.testing.assert_array_equal(result.codes[same[rest]], whole.codes[rest & same])
    assert (result.suffix[same[rest]] == 0).all()


def test_settle_names_exactly_the_free_and_unwanted():
    layout = SidLayout((4, 4), 4)
    base = np.array([[0, 0], [0, 0], [1, 1], [2, 2], [3, 3]])
    occupied = layout.prefixes(layout.pack(np.array([[2, 2], [2, 2]]), np.array([0, 1])), 2)
    assert settle(base, occupied, layout).tolist() == [False, False, True, False, True]


def test_a_shard_gives_what_the_whole_gives():
    latents, base, ties, codebooks, occupied, layout = random_case(3, (4, 3, 4), rows=60, pinned=9)
    whole = resolve(base, latents, ties, codebooks, occupied, layout)
    first = layout.prefixes(occupied, 1)
    for code in range(4):
        here = base[:, 0] == code
        part = resolve(
            base[here], latents[here], ties[here], codebooks, occupied[first == code], layout
        )
        np.testing.assert_array_equal(part.codes, whole.codes[here])
        np.testing.assert_array_equal(part.suffix, whole.suffix[here])


def test_identical_rows_stay_spill_and_then_take_suffixes_in_hash_order():
    codebooks = [np.eye(2, dtype=np.float32) * 4, np.eye(2, dtype=np.float32)]
    latents = np.tile(np.array([[5.0, 0.1]], np.float32), (6, 1))
    base = nearest_codes(latents, codebooks)
    ties = np.array([50, 40, 30, 20, 10, 0], np.uint64)
    layout = SidLayout((2, 2), 4)
    result = resolve(base, latents, ties, codebooks, np.empty(0, np.int64), layout)
    assert result.codes.tolist()[::-1] == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [0, 0]]
    assert result.placement.tolist()[::-1] == [
        "nearest", "reassigned", "spilled", "spilled", "suffixed", "suffixed",
    ]  # fmt: skip
    assert result.suffix.tolist()[::-1] == [0, 0, 0, 0, 1, 2]
    assert result.counts() == {"nearest": 1, "reassigned": 1, "spilled": 2, "suffixed": 2}


def test_suffixes_continue_after_the_highest_occupied():
    layout = SidLayout((4,), 3)
    occupied = layout.pack(np.array([[1], [1]]), np.array([0, 4]))
    base, ties = np.array([[1], [2], [1], [2]]), np.array([7, 3, 2, 1], np.uint64)
    result = resolve(base, None, ties, (), occupied, layout, "suffix")
    assert result.suffix.tolist() == [6, 1, 5, 0]
    assert result.placement.tolist() == ["suffixed", "suffixed", "suffixed", "nearest"]


def test_a_suffix_that_does_not_fit_names_the_row():
    layout = SidLayout((2, 2), 1)
    base = np.zeros((3, 2), np.int32)
    with pytest.raises(ValueError, match=r"row 1: 0-0 is full .* above 1"):
        resolve(base, None, np.array([0, 9, 1], np.uint64), (), np.empty(0, int), layout, "suffix")


def test_policy_none_shares_and_counts():
    layout = SidLayout((4, 4), 0)
    base = np.array([[0, 0], [0, 0], [1, 1], [2, 2]])
    occupied = layout.pack(np.array([[1, 1]]))
    result = resolve(base, None, np.arange(4, dtype=np.uint64), (), occupied, layout, "none")
    np.testing.assert_array_equal(result.codes, base)
    assert result.num_shared == 3 and set(result.placement) == {"nearest"}


@pytest.mark.parametrize("policy", ["reassign", "suffix", "none"])
def test_no_rows_at_all(policy):
    layout = SidLayout((2, 2), 1)
    books = [np.eye(2, dtype=np.float32)] * 2
    empty = np.empty((0, 2), np.float32)
    result = resolve(
        np.empty((0, 2), int), empty, np.empty(0, np.uint64), books, np.empty(0), layout, policy
    )
    assert result.codes.shape == (0, 2) and result.num_shared == 0
    assert settle(np.empty((0, 2), int), np.empty(0, np.uint64), layout).shape == (0,)


def test_64_bit_ids():
    latents, base, ties, codebooks, _, _ = random_case(5, (256, 256), rows=30)
    layout = SidLayout((256,) * 8, 0)
    base = np.concatenate([np.full((30, 6), 255, np.int32), base], axis=1)
    codebooks = [np.zeros((256, 3), np.float32)] * 6 + codebooks
    occupied = np.sort(layout.pack(np.unique(base, axis=0)))
    result = resolve(base, latents, ties, codebooks, occupied, layout)
    sids = layout.pack(result.codes)
    assert len(np.unique(sids)) == 30 and not np.isin(sids, occupied).any()
    assert set(result.placement) == {"reassigned"}


def test_bad_arguments_are_named():
    layout = SidLayout((2, 2), 1)
    books = [np.eye(2, dtype=np.float32)] * 2
    base, ties = np.zeros((2, 2), int), np.arange(2, dtype=np.uint64)
    vectors, none = np.zeros((2, 2), np.float32), np.empty(0, int)
    with pytest.raises(ValueError, match="'best' is not one of reassign, suffix, none"):
        resolve(base, vectors, ties, books, none, layout, "best")
    with pytest.raises(ValueError, match="needs latents for all 2 rows"):
        resolve(base, None, ties, books, none, layout)
    with pytest.raises(ValueError, match="2 base codes but 1 tie breakers"):
        resolve(base, vectors, ties[:1], books, none, layout)
    with pytest.raises(ValueError, match=r"codebooks of \[2\] codes do not fit .*\[2, 2\]"):
        resolve(base, vectors, ties, books[:1], none, layout)


def test_a_hot_code_takes_linear_memory_and_no_quadratic_time():
    rng = np.random.default_rng(0)
    codebooks = [rng.normal(size=(64, 8)).astype(np.float32) / 3**level for level in range(3)]
    latents = np.tile(rng.normal(size=(1, 8)).astype(np.float32), (30_000, 1))
    base = np.tile(nearest_codes(latents[:1], codebooks), (30_000, 1))
    ties = rng.permutation(30_000).astype(np.uint64)
    layout = SidLayout.fitting((64, 64, 64))
    tracemalloc.start()
    result = resolve(base, latents, ties, codebooks, np.empty(0, np.int64), layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One N x N array of bytes would be 900 MB.
    assert peak < 200e6
    assert result.counts() == {
        "nearest": 1, "reassigned": 63, "spilled": 63 * 64, "suffixed": 30_000 - 64 * 64,
    }  # fmt: skip
    assert len(np.unique(layout.pack(result.codes, result.suffix))) == 30_000


def test_exact_dot_ignores_the_rows_around():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(37, 384)) * np.exp(rng.normal(size=(37, 1)) * 3)
    others = rng.normal(size=(11, 384)).astype(np.float32)
    whole = exact_dot(split_rows(rows), split_rows(others))
    for row in range(37):
        alone = exact_dot(split_rows(rows[row : row + 1]), split_rows(others))
        np.testing.assert_array_equal(alone[0], whole[row])
    scale = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    assert np.abs(whole - rows @ others.T.astype(np.float64)).max() < 1e-12 * scale.max()
    assert (exact_dot(split_rows(np.zeros((2, 4))), split_rows(np.ones((1, 4)))) == 0).all()


def test_equal_rows_needs_equal_bits_and_wishes():
    vectors = np.array([[1, 2], [1, 2], [2, 1], [1, 2]], np.float32)
    groups = equal_rows(vectors, np.array([3, 3, 3, 4]))
    assert groups[0] == groups[1] and len(set(groups.tolist())) == 3


@pytest.mark.parametrize("free", [0, 1, 3])
def test_assign_codes_with_little_room(free):
    costs = np.array([[0.0, 1, 2], [1, 0, 2], [0, 2, 1]])
    room = np.arange(3) < free
    chosen = assign_codes(costs, np.array([0, 1, 0]), room, np.arange(3))
    expected = {0: {-1}, 1: {0, -1}, 3: {0, 1, 2}}[free]
    assert set(chosen.tolist()) == expected


def test_fill_rounds_respects_room_over_blocks(monkeypatch):
    monkeypatch.setattr("models.placement.BLOCK_ENTRIES", 8)
    costs = np.array([[0.0, 1, 2, 3], [3, 2, 1, 0]])
    kind = np.array([0, 1, 0, 0, 1, 0, 0])
    room = np.array([2, 1, 0, 2])
    chosen = fill_rounds(lambda rows: (costs, kind[rows]), len(kind), room)
    assert chosen.tolist() == [0, 3, 0, 1, 3, -1, -1]
    assert not room.any()


def test_equal_rows_tells_rounded_vectors_apart():
    random = np.random.default_rng(0)
    rows = random.integers(-40, 40, (4000, 32)) / np.float32(32)
    rows = np.concatenate([rows, rows[:50]]).astype(np.float32)
    groups = equal_rows(rows, np.zeros(len(rows), np.int64))
    assert len(np.unique(groups)) == 4000  # as many rows as groups: two digests have met
    assert (groups[-50:] == groups[:50]).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_problems_solved_side_by_side_have_the_solutions_they_have_alone(seed):
    random = np.random.default_rng(seed)
    size, runs = 12, np.repeat(np.arange(40), random.integers(1, 7, 40))
    kind = np.arange(len(runs))
    twins = np.flatnonzero((random.random(len(runs)) < 0.3) & (runs == np.roll(runs, 1)))
    kind[twins] -= 1
    wanted = random.integers(0, 5, len(runs))[kind]
    costs = random.random((len(runs), size))[kind]
    costs[np.arange(len(runs)), wanted] = 0.0
    free = random.random((40, size)) < 0.8
    free[3] = False
    chosen, solved = assign_apart(costs, wanted, free, runs)
    assert 10 < solved.sum() < 40
    for run in np.flatnonzero(solved):
        here = runs == run
        alone = assign_codes(costs[here], wanted[here], free[run], kind[here])
        assert (chosen[here] == alone).all()
