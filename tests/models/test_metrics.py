import json

import numpy as np
import pytest

from models import metrics
from models.neighbours import Geometry, find_neighbours

CODES = np.array([[0, 0], [0, 0], [0, 1], [1, 1], [1, 0]])
EMBEDDINGS = np.array([[1, 0], [1, 0], [0, 1], [0, -2], [1, 1]], "f4")


def test_code_use():
    level = metrics.code_use(np.array([[0], [0], [1], [1]]), [4])[0]
    assert level["used_codes"] == 2
    assert level["perplexity_share"] == pytest.approx(2 / 4)
    assert level["gini"] == pytest.approx(0.5)
    even = metrics.code_use(np.arange(4)[:, None], [4])[0]
    assert even["perplexity_share"] == pytest.approx(1.0)
    assert even["gini"] == pytest.approx(0.0)
    one = metrics.code_use(np.zeros((4, 1), int), [4])[0]
    assert one["gini"] == pytest.approx(0.75)


def test_collisions():
    assert metrics.collisions(CODES) == {"a": pytest.approx(0.2), "b": 0.4, "largest": 2}
    texts = np.array([b"x" * 16, b"x" * 16, b"y" * 16])
    assert metrics.collisions(texts)["largest"] == 2
    assert metrics.collisions(CODES[:0]) == {"a": 0.0, "b": 0.0, "largest": 0}


def test_prefix_cosine_is_the_mean_over_pairs():
    unit = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(5) for j in range(i)]

    def mean(length):
        chosen = [p for p in pairs if (CODES[p[0], :length] == CODES[p[1], :length]).all()]
        return np.mean([unit[i] @ unit[j] for i, j in chosen])

    expected = [mean(0), mean(1), mean(2)]
    assert metrics.prefix_cosine(CODES, EMBEDDINGS) == pytest.approx(expected)
    assert metrics.prefix_cosine(np.arange(5)[:, None], EMBEDDINGS)[1] is None


def test_one_minus_r2():
    rows = np.array([[0.0, 0], [2, 0]])
    assert metrics.one_minus_r2(rows, rows) == 0
    assert metrics.one_minus_r2(rows, np.array([[1.0, 0], [1, 0]])) == 1
    assert metrics.one_minus_r2(rows[:1], rows[:1]) == 0


def test_neighbourhood():
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], "f4")
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]])
    assert metrics.neighbourhood(codes, find_neighbours(rows, 1)) == [1.0, 0.5]
    assert metrics.neighbourhood(codes, find_neighbours(rows, 9)) == [
        pytest.approx(1 / 3),
        1 / 6,
    ]
    assert metrics.neighbourhood(codes[:1], find_neighbours(rows[:1])) == [0.0, 0.0]


def test_neighbourhood_does_not_count_an_item_as_its_own_neighbour():
    same = np.ones((30, 4), "f4")
    codes = np.arange(30)[:, None]
    assert metrics.neighbourhood(codes, find_neighbours(same, 5)) == [0.0]


def test_parallel_codebooks_are_measured_one_by_one():
    unit = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(5) for j in range(i)]

    def mean(column):
        return np.mean([unit[i] @ unit[j] for i, j in pairs if column[i] == column[j]])

    expected = [mean(np.zeros(5)), mean(CODES[:, 0]), mean(CODES[:, 1])]
    assert metrics.code_cosine(CODES, EMBEDDINGS) == pytest.approx(expected)
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], "f4")
    codes = np.array([[0, 7], [1, 7], [2, 3], [2, 3]])
    # An equal second code counts although the first codes differ.
    assert metrics.neighbours_sharing(codes, find_neighbours(rows, 1)) == [1.0, 0.5]
    assert metrics.neighbourhood(codes, find_neighbours(rows, 1)) == [0.5, 0.5]
    assert metrics.neighbours_sharing(codes[:1], find_neighbours(rows[:1])) == [0.0, 0.0]
    paths = [["a"], ["a"], ["b"], ["b"], ["b"]]
    known = Geometry.of(EMBEDDINGS)
    document = metrics.quality(CODES, [2, 2], EMBEDDINGS, category_paths=paths, hierarchical=False)
    assert document == metrics.quality(
        CODES, [2, 2], EMBEDDINGS, category_paths=paths, hierarchical=False, geometry=known
    )
    agreement = document["code_category_agreement"]
    assert [row["codebook"] for row in agreement] == [1, 2]
    assert agreement[1]["share"] == pytest.approx(2 / 4)  # pairs of items 0 1 4, and of 2 3
    measured = set(document) - {"items", "levels", "collisions", "definitions"}
    assert measured == {"code_cosine", "neighbours_sharing", "code_category_agreement"}


def test_category_agreement():
    paths = [["a", "x"], ["a", "y"], ["b"], None, ["b", "z"]]
    one = metrics.category_agreement(CODES, paths, depth=1, length=1)
    assert one == {"share": pytest.approx(1 / 4), "chance": pytest.approx(2 / 10)}
    assert metrics.category_agreement(CODES, paths, depth=2, length=1)["share"] == 0


def test_categories_are_numbered_by_what_they_share():
    paths = [["a", "x"], ["b", "x"], ["a"], None, [], ["a", "x"]]
    assert metrics.number_categories(paths).T.tolist() == [[0, 1, 0, 2, 2, 0], [0, 1, 2, 3, 3, 0]]
    assert metrics.number_categories([None, []]).shape == (2, 0)
    deep = [["a", "x"], ["a", "y"], ["b"], None, ["b", "z"]]
    deeper = metrics.category_agreement(CODES, deep, depth=5, length=1)
    assert deeper == metrics.category_agreement(CODES, deep, depth=2, length=1)
    assert metrics.category_agreement(CODES, [None] * 5, depth=1, length=1)["share"] == 1


def test_kept():
    now = np.array([[1, 2], [3, 4], [5, 6]])
    before = np.array([[1, 2], [3, 0], [0, 6]])
    assert metrics.kept(now, before) == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_quality_is_json_with_definitions():
    document = metrics.quality(
        CODES,
        [2, 2],
        EMBEDDINGS,
        decoded=EMBEDDINGS,
        content_hashes=[b"a" * 16, b"a" * 16, b"b" * 16, b"c" * 16, b"\0" * 16],
        category_paths=[["a"], ["a"], ["b"], ["b"], []],
    )
    read = json.loads(json.dumps(document))
    assert read["collisions_floor"]["b"] == pytest.approx(0.4)
    assert read["one_minus_r2"] == 0
    assert {"used_codes", "prefix_cosine", "kept"} <= set(read["definitions"])
    assert len(read["category_agreement"]) == 2
