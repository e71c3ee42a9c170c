import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sid import SidLayout
from models.trie_build import build_trie
from semid_transforms import files
from semid_transforms.naming import NAMED, NAMES, count_names, row_names
from semid_transforms.nodes import NodeInputs, find_labels, path_labels, write_nodes

LAYOUT = SidLayout.fitting((4, 4, 4))
CODES = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=20).map(sorted)
PATHS = st.sampled_from([None, ["A"], ["A", "x"], ["A", "y"], ["B", "x"], ["B", "x", "deep"]])

FEW = settings(max_examples=12, deadline=None)  # every example writes some twenty files


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Makes an empty folder per call."""
    base, count = tmp_path_factory.mktemp("nodes"), iter(range(10**6))
    return lambda: str(base / str(next(count)))


def describe(folder, codes, catalog, cuts, errors=None, parent=()):
    """Writes the nodes of items cut into parts, as the pipeline does; returns their rows."""
    by_category = "category_path" in catalog.schema.names
    bounds = [0, *sorted(cuts), len(codes)]
    parts = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        parts.append(files.join(folder, f"items-{number}.parquet"))
        part = pa.record_batch(
            {
                "item_id": pa.array([f"i{n:02d}" for n in range(start, stop)], pa.string()),
                "quantization_error": pa.array(
                    (errors or [0] * len(codes))[start:stop], pa.float32()
                ),
            }
        )
        files.write_table(parts[-1], part.schema, [part])
    found = row_names(catalog, by_category)
    ones = pa.array([1] * len(found.name), pa.int64())
    names = count_names([pa.RecordBatch.from_arrays([found.name, ones], schema=NAMES)])
    files.write_table(files.join(folder, "names.parquet"), NAMES, [names])
    numbers = names["name"].to_pylist()
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        rows = [
            {
                "row": row - start,
                "names": [
                    numbers.index(name)
                    for owner, name in zip(found.row, found.name.to_pylist(), strict=True)
                    if owner == row
                ],
            }
            for row in range(start, stop)
        ]
        path = files.join(folder, "named", f"{number:05d}.parquet")
        files.write_table(path, NAMED, [pa.RecordBatch.from_pylist(rows, NAMED)])
    trie = build_trie([LAYOUT.pack(np.array(codes))], LAYOUT, allow_shared=True)
    inputs = NodeInputs(
        items=tuple(parts),
        names_path=files.join(folder, "names.parquet"),
        named_folder=files.join(folder, "named"),
        by_category=by_category,
        parent_nodes=tuple(parent),
    )
    write_nodes(trie, inputs, files.join(folder, "nodes"))
    return [row for path in node_parts(folder) for row in pq.read_table(path).to_pylist()]


def node_parts(folder):
    return files.list_files(files.join(folder, "nodes"), ".parquet")


def majority(paths, depth):
    """The most frequent path of at most `depth` names, ties to the first in sorted order."""
    cut = ["\x1f".join(path[:depth]) for path in paths if path]
    best = sorted(set(cut), key=lambda name: (-cut.count(name), name))
    return best[0].split("\x1f")[-1] if best else None


@FEW
@given(CODES, st.data())
def test_nodes_are_described_as_counting_by_hand_would(space, codes, data):
    paths = [data.draw(PATHS) for _ in codes]
    errors = [data.draw(st.integers(0, 3)) for _ in codes]
    cuts = data.draw(st.lists(st.integers(0, len(codes)), max_size=4))
    catalog = pa.table({"category_path": pa.array(paths, pa.list_(pa.string()))})
    expected = []
    for depth in (1, 2, 3):
        for prefix in sorted({code[:depth] for code in codes}):
            rows = [n for n, code in enumerate(codes) if code[:depth] == prefix]
            packed = 0
            for code in prefix:
                packed = packed << 2 | code
            expected.append(
                {
                    "depth": depth,
                    "codes": list(prefix),
                    "prefix": packed,
                    "item_count": len(rows),
                    "label": majority([paths[n] for n in rows], depth),
                    "exemplar_item_id": f"i{min(rows, key=lambda n: (errors[n], n)):02d}",
                }
            )
    assert describe(space(), codes, catalog, cuts, errors) == expected


@FEW
@given(CODES, st.data())
def test_words_name_nodes_whatever_the_cut_and_never_an_ancestor_twice(space, codes, data):
    title = st.lists(st.sampled_from(["wok", "pan", "lid", "tent", "red", "blue"]), max_size=4)
    titles = [" ".join(data.draw(title)) for _ in codes]
    catalog = pa.table({"title": pa.array(titles, pa.string())})
    cuts = data.draw(st.lists(st.integers(0, len(codes)), max_size=4))
    folder = space()
    rows = describe(folder, codes, catalog, cuts)
    assert rows == describe(space(), codes, catalog, [])
    sids = LAYOUT.pack(np.array(codes))
    for code, read in zip(
        codes, path_labels(sids, node_parts(folder), LAYOUT).to_pylist(), strict=True
    ):
        said = [word for label in read if label for word in label.split(" ")]
        assert len(said) == len(set(said))
        under = {w for c, t in zip(codes, titles, strict=True) if c == code for w in t.split()}
        if read[2] is None:
            assert under <= set(said), "a node without a label has words left"


@FEW
@given(CODES, CODES, st.data())
def test_a_node_keeps_its_label(space, before, after, data):
    paths = {code: data.draw(PATHS) for code in {*before, *after}}
    other = {code: data.draw(PATHS) for code in {*before, *after}}

    def catalog(codes, names):
        return pa.table(
            {"category_path": pa.array([names[c] for c in codes], pa.list_(pa.string()))}
        )

    first, second = space(), space()
    old = {
        (row["depth"], row["prefix"]): row["label"]
        for row in describe(first, before, catalog(before, paths), [])
    }
    fresh = describe(space(), after, catalog(after, other), [])
    new = describe(
        second, after, catalog(after, other), [len(after) // 2], parent=node_parts(first)
    )
    for row, unbound in zip(new, fresh, strict=True):
        key = (row["depth"], row["prefix"])
        assert row == {**unbound, "label": old.get(key, unbound["label"])}


def test_labels_are_found_in_the_first_part_that_has_the_node(space):
    folders = space(), space()
    codes = [[(0, 0, 0), (1, 2, 3)], [(1, 2, 3), (2, 0, 0)]]
    for folder, some, name in zip(folders, codes, ("old", "new"), strict=True):
        catalog = pa.table({"category_path": pa.array([[name]] * 2, pa.list_(pa.string()))})
        describe(folder, some, catalog, [])
    parts = [path for folder in folders for path in node_parts(folder)]
    labels, found = find_labels(parts, 1, np.array([0, 1, 2, 3], np.uint64), LAYOUT)
    assert labels.to_pylist() == ["old", "old", "new", None]
    assert found.tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="no node of depth 1 has prefix 3"):
        path_labels(LAYOUT.pack(np.array([[3, 0, 0]])), parts, LAYOUT)
