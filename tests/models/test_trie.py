import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from models import trie_build
from models.sid import SidLayout
from models.trie_build import build_trie, merge_sids
from models.trie_file import read_trie, write_joined_trie, write_trie
from models.trie_join import join_tries


def save(trie, path):
    with open(path, "wb") as file:
        write_trie(trie, file)
    return path


@st.composite
def catalogs(draw, shared=False):
    """A layout and sorted SIDs, dense enough to share prefixes, with and without suffixes."""
    sizes = tuple(draw(st.lists(st.sampled_from([2, 3, 5, 300]), min_size=1, max_size=4)))
    layout = SidLayout(sizes, draw(st.sampled_from([0, 4])))
    rows = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = np.stack([rng.integers(0, min(size, 6), rows) for size in sizes], axis=1)
    suffix = rng.integers(0, 3 if layout.suffix_bits and draw(st.booleans()) else 1, rows)
    sids = np.sort(layout.pack(codes, suffix))
    return layout, sids if shared else np.unique(sids)


def rows_under(layout, sids, prefix):
    codes, suffix = layout.unpack(sids)
    tokens = np.column_stack([codes, suffix])
    return np.flatnonzero((tokens[:, : len(prefix)] == np.array(prefix)).all(1)), tokens


def assert_same(trie, other):
    assert trie.layout == other.layout and trie.depth == other.depth
    for left, right in zip(
        trie.tokens + trie.child_start, other.tokens + other.child_start, strict=True
    ):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert (trie.row_start is None) == (other.row_start is None)
    if trie.row_start is not None:
        np.testing.assert_array_equal(trie.row_start, other.row_start)


@settings(deadline=None)
@given(catalogs(shared=True), st.data())
def test_answers_equal_those_of_the_sorted_table(catalog, data):
    layout, sids = catalog
    trie = build_trie([sids], layout, allow_shared=True)
    assert trie.num_rows == len(sids)
    np.testing.assert_array_equal(trie.leaf_sids(), np.unique(sids))
    queries = np.concatenate([sids, sids + 1, np.array([0, 1, 2**62], sids.dtype)])
    np.testing.assert_array_equal(trie.contains(queries), np.isin(queries, sids))
    first, stop = trie.leaf_rows(trie.find(sids))
    np.testing.assert_array_equal(first, np.searchsorted(sids, sids))
    np.testing.assert_array_equal(stop, np.searchsorted(sids, sids, "right"))
    prefix = data.draw(st.lists(st.integers(-1, 6), max_size=trie.depth))
    if len(sids) and data.draw(st.booleans()):
        _, tokens = rows_under(layout, sids, [])
        prefix = tokens[data.draw(st.integers(0, len(sids) - 1)), : len(prefix)].tolist()
    rows, tokens = rows_under(layout, sids, prefix)
    begin, end = trie.prefix_range(prefix)
    np.testing.assert_array_equal(np.arange(begin, end), rows)
    if len(prefix) < trie.depth:
        np.testing.assert_array_equal(trie.children(prefix), np.unique(tokens[rows, len(prefix)]))
    else:
        assert len(trie.children(prefix)) == 0


@settings(deadline=None)
@given(catalogs(shared=True))
def test_node_tables_equal_a_group_by(catalog):
    layout, sids = catalog
    trie = build_trie([sids], layout, allow_shared=True)
    for depth in range(layout.num_levels + 1):
        table = trie.node_table(depth)
        prefixes, first, counts = np.unique(
            layout.prefixes(sids, depth), return_index=True, return_counts=True
        )
        if depth == 0:
            prefixes, first, counts = np.zeros(1), np.zeros(1), np.array([len(sids)])
        np.testing.assert_array_equal(table.prefixes, prefixes)
        np.testing.assert_array_equal(table.first_rows, first)
        np.testing.assert_array_equal(table.item_counts, counts)
        codes, _ = layout.unpack(sids)
        if depth:
            np.testing.assert_array_equal(table.codes, codes[first, :depth])
            half = trie.num_nodes[depth - 1] // 2
            pieces = [trie.node_table(depth, 0, half), trie.node_table(depth, half)]
            np.testing.assert_array_equal(
                np.concatenate([piece.codes for piece in pieces]), table.codes
            )
            np.testing.assert_array_equal(
                np.concatenate([piece.item_counts for piece in pieces]), counts
            )


@settings(deadline=None)
@given(catalogs(shared=True), st.lists(st.integers(0, 40), max_size=5))
def test_chunks_and_shards_give_the_same_trie(catalog, cuts):
    layout, sids = catalog
    whole = build_trie([sids], layout, allow_shared=True)
    chunks = np.split(sids, sorted(min(cut, len(sids)) for cut in cuts))
    assert_same(build_trie(chunks, layout, allow_shared=True), whole)
    shards = [build_trie([chunk], layout, allow_shared=True) for chunk in chunks]
    assert_same(join_tries(shards, layout), whole)


@settings(deadline=None)
@given(catalogs(shared=True), st.lists(st.integers(0, 40), max_size=5))
def test_files_of_shards_are_joined_without_loading_them(tmp_path_factory, catalog, cuts):
    layout, sids = catalog
    folder = tmp_path_factory.mktemp("shards")
    whole = save(build_trie([sids], layout, allow_shared=True), folder / "whole")
    shards = [
        read_trie(save(build_trie([chunk], layout, allow_shared=True), folder / f"shard-{number}"))
        for number, chunk in enumerate(np.split(sids, sorted(min(c, len(sids)) for c in cuts)))
    ]
    with open(folder / "joined", "wb") as file:
        write_joined_trie(shards, layout, file)
    assert (folder / "joined").read_bytes() == whole.read_bytes()


@settings(deadline=None)
@given(catalogs(), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_merging_a_delta_equals_building_anew(catalog, seed, chunk):
    layout, sids = catalog
    new = np.random.default_rng(seed).random(len(sids)) < 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_build, "CHUNK_SIDS", chunk)
        merged = merge_sids(build_trie([sids[~new]], layout), sids[new][::-1])
    assert_same(merged, build_trie([sids], layout))


@settings(deadline=None)
@given(catalogs(shared=True), st.integers(0, 9), st.sampled_from([1, 3, 1 << 22]))
def test_removing_and_adding_equals_building_anew(catalog, seed, chunk):
    layout, sids = catalog
    rng = np.random.default_rng(seed)
    gone, new = rng.random(len(sids)) < 0.3, rng.random(len(sids)) < 0.3
    before = build_trie([sids[~new]], layout, allow_shared=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_build, "CHUNK_SIDS", chunk)
        left = merge_sids(before, sids[new & ~gone], True, sids[gone & ~new][::-1])
    assert_same(left, build_trie([sids[~gone]], layout, allow_shared=True))


def test_only_what_is_there_can_be_removed():
    layout = SidLayout((4, 4), 4)
    sids = layout.pack(np.array([[0, 1], [2, 3]]))
    trie = build_trie([sids], layout)
    for removed in (sids[[0, 0]], sids[1:] + 1):
        with pytest.raises(ValueError, match="cannot be removed"):
            merge_sids(trie, sids[:0], removed=removed)


@settings(deadline=None)
@given(catalogs(shared=True))
def test_the_file_is_the_trie(tmp_path_factory, catalog):
    layout, sids = catalog
    trie = build_trie([sids], layout, allow_shared=True)
    path = save(trie, tmp_path_factory.mktemp("trie") / "trie.safetensors")
    assert_same(read_trie(path), trie)
    again = save(read_trie(path), path.with_name("again"))
    assert again.read_bytes() == path.read_bytes()


def test_safetensors_alone_reads_it(tmp_path):
    layout = SidLayout((256, 300), 16)
    codes = np.array([[17, 5], [17, 299], [17, 299], [200, 0]])
    suffix = np.array([0, 0, 2, 0])
    trie = build_trie([layout.pack(codes, suffix)], layout)
    path = save(trie, tmp_path / "trie.safetensors")
    tensors = safetensors.numpy.load_file(path)
    assert {name: (tensor.dtype.name, tensor.tolist()) for name, tensor in tensors.items()} == {
        "tokens.1": ("uint8", [17, 200]),
        "tokens.2": ("uint16", [5, 299, 0]),
        "tokens.3": ("uint16", [0, 0, 2, 0]),
        "child_start.1": ("uint32", [0, 2, 3]),
        "child_start.2": ("uint32", [0, 1, 3, 4]),
    }
    node = np.searchsorted(tensors["tokens.1"], 17)
    begin, end = tensors["child_start.1"][node : node + 2]
    assert tensors["tokens.2"][begin:end].tolist() == [5, 299]
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {
            "format": "semid.trie",
            "version": "1",
            "layout": '{"codebook_sizes": [256, 300], "suffix_bits": 16, "hierarchical": true}',
            "depth": "3",
            "rows": "4",
        }


def test_policy_none_keeps_row_runs(tmp_path):
    layout = SidLayout((4, 4), 0)
    sids = layout.pack(np.array([[0, 1], [0, 1], [0, 3], [2, 2], [2, 2]]))
    trie = build_trie([sids[:1], sids[1:]], layout, allow_shared=True)
    assert trie.num_leaves == 3 and trie.num_rows == 5
    assert trie.row_start.tolist() == [0, 2, 3, 5]
    assert trie.prefix_range([0, 1]) == (0, 2) and trie.prefix_range([2]) == (3, 5)
    stored = safetensors.numpy.load_file(save(trie, tmp_path / "t"))
    assert stored["row_start"].tolist() == [0, 2, 3, 5]


def test_64_bit_ids():
    layout = SidLayout((256,) * 8, 0)
    codes = np.array([[0] * 8, [127] * 8, [255] * 7 + [254], [255] * 8])
    sids = layout.pack(codes)
    trie = build_trie([sids], layout)
    assert trie.leaf_sids().dtype == np.uint64
    np.testing.assert_array_equal(trie.find(sids), np.arange(4))
    assert trie.prefix_range([255]) == (2, 4)


def test_large_codebooks_take_wide_tokens():
    layout = SidLayout((1 << 17, 300), 0)
    trie = build_trie([layout.pack(np.array([[70_000, 299]]))], layout)
    assert [tokens.dtype for tokens in trie.tokens] == [np.uint32, np.uint16]
    assert trie.children([70_000]).tolist() == [299]


def test_an_empty_catalog(tmp_path):
    layout = SidLayout((4, 4), 2)
    trie = read_trie(save(build_trie([], layout), tmp_path / "t"))
    assert trie.num_rows == 0 and trie.num_nodes == (0, 0)
    assert trie.prefix_range([]) == (0, 0) and trie.children([]).tolist() == []
    assert not trie.contains(np.array([0, 5])).any()
    assert trie.node_table(0).item_counts.tolist() == [0]
    assert merge_sids(trie, np.array([5])).num_rows == 1


def test_input_errors_name_the_row():
    layout = SidLayout((4, 4), 0)
    with pytest.raises(ValueError, match="row 2 has 3 after 5"):
        build_trie([np.array([1, 5, 3])], layout)
    with pytest.raises(ValueError, match=r"row 1 repeats SID 5 \(1-1\)"):
        build_trie([np.array([5, 5])], layout)
    with pytest.raises(ValueError, match=r"chunk 1 starts at 0-3, before the end.*1-1"):
        build_trie([np.array([5]), np.array([3])], layout)
    trie = build_trie([np.array([5])], layout)
    with pytest.raises(ValueError, match="prefix 1-1-0 has 3 tokens, the trie has 2 levels"):
        trie.children([1, 1, 0])
    with pytest.raises(ValueError, match=r"depth must lie in 0\.\.2, got 3"):
        trie.node_table(3)


def test_a_shared_id_across_chunks_needs_permission():
    layout = SidLayout((4, 4), 0)
    with pytest.raises(ValueError, match="repeats SID 5"):
        build_trie([np.array([1, 5]), np.array([5])], layout)


def test_damaged_files_are_refused(tmp_path):
    trie = build_trie([np.array([1, 5])], SidLayout((4, 4), 0))
    whole = save(trie, tmp_path / "trie").read_bytes()
    path = tmp_path / "bad"
    for content, message in [
        (whole[:-1], "cut short"),
        (whole[:40], "not a safetensors file"),
        (b"PAR1" * 4, "not a safetensors file"),
        (whole.replace(b'"version": "1"', b'"version": "9"'), "version 9, this code reads"),
        (safetensors.numpy.save({"a": np.zeros(1)}), "not a trie file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_trie(path)
