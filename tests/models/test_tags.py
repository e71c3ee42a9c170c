import numpy as np
import pytest

from models.tags import TagTable

PATHS = [["a", "x"], ["a", "x", "deep"], ["b", "x"], ["b"], None, [], ["c", "y"]]


def test_tags_are_whole_paths_and_gaps_are_minus_one():
    table = TagTable.from_paths(PATHS, num_levels=2, rare=1)
    assert table.names == (("a", "b", "c"), ("a > x", "b > x", "c > y"))
    assert table.ids[:, 0].tolist() == [0, 0, 1, 1, -1, -1, 2]
    assert table.ids[:, 1].tolist() == [0, 0, 1, -1, -1, -1, 2]


def test_rare_tags_are_merged():
    table = TagTable.from_paths(PATHS, num_levels=2, rare=2)
    assert table.names == (("a", "b", "(rare)"), ("a > x", "(rare)"))
    assert table.ids[:, 0].tolist() == [0, 0, 1, 1, -1, -1, 2]
    assert table.ids[:, 1].tolist() == [0, 0, 1, -1, -1, -1, 1]


def test_tags_do_not_depend_on_the_order_of_items():
    forward = TagTable.from_paths(PATHS, 3, 1)
    backward = TagTable.from_paths(PATHS[::-1], 3, 1)
    assert forward.names == backward.names
    assert np.array_equal(forward.ids, backward.ids[::-1])


def test_embeddings_are_means_of_the_tagged_rows():
    table = TagTable.from_paths(PATHS, 1, 1)
    rows = np.arange(7, dtype="f4")[:, None] * [1, 2]
    assert table.embeddings(rows)[0].tolist() == [[0.5, 1.0], [2.5, 5.0], [6.0, 12.0]]


def test_a_catalog_without_categories_is_refused():
    with pytest.raises(ValueError, match="all 2 items are without"):
        TagTable.from_paths([None, []], 3, 1)
