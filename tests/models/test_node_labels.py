import math

import numpy as np
import pytest

from models.node_labels import node_labels, row_terms
from models.sid import SidLayout
from models.trie_build import build_trie

CODES = np.array([[0, 0], [0, 1], [0, 1], [1, 0], [1, 2], [1, 2]])
TEXTS = [
    "Shampoo for dry hair",
    "Shampoo, argan oil (250 ml)",
    "SHAMPOO argan oil",
    "Laptop 13",
    "Laptop sleeve",
    "Laptop sleeve, leather",
]


def trie_over(codes):
    layout = SidLayout((4, 4), 4)
    changed = np.append(True, (codes[1:] != codes[:-1]).any(1))
    suffix = np.arange(len(codes)) - np.maximum.accumulate(
        np.where(changed, np.arange(len(codes)), 0)
    )
    return build_trie([layout.pack(codes, suffix)], layout)


def test_a_path_reads_from_coarse_to_fine():
    labels = node_labels(trie_over(CODES), row_terms(TEXTS))
    assert labels[0] == ["shampoo argan", "laptop sleeve"]
    assert labels[1] == ["dry for", "oil", "", "leather"]
    single = node_labels(trie_over(CODES), row_terms(TEXTS), num_terms=1)
    assert single == [["shampoo", "laptop"], ["dry", "argan", "", "sleeve"]]


def test_weights_are_class_based_tf_idf():
    rows = row_terms(["common rare rare", "common", "common other", "common other"])
    trie = trie_over(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    # Six distinct words over two nodes: A = 3; common: 2 log(1 + 3/4), rare: log(1 + 3/1).
    assert 2 * math.log(1 + 3 / 4) < math.log(1 + 3 / 1)
    assert node_labels(trie, rows, 1)[0] == ["rare", "other"]


def test_names_do_not_depend_on_the_order_within_a_node():
    labels = node_labels(trie_over(CODES), row_terms(TEXTS))
    swapped = [TEXTS[row] for row in (0, 2, 1, 3, 5, 4)]
    assert node_labels(trie_over(CODES), row_terms(swapped)) == labels


def test_no_words_give_empty_names():
    labels = node_labels(trie_over(CODES), row_terms(["", None, "12", "a", "!!", "x1"]))
    assert labels == [["", ""], [""] * 4]
    empty = node_labels(build_trie([], SidLayout((4, 4), 4)), row_terms([]))
    assert empty == [[], []]


def test_words_of_any_script_count():
    rows = row_terms(["масло Арганы", "ÉCLAIR éclair"])
    assert rows.terms == ["éclair", "арганы", "масло"]
    assert rows.row_start.tolist() == [0, 2, 3]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="words of 1 rows for 6 items"):
        node_labels(trie_over(CODES), row_terms(["one"]))
