import pyarrow as pa
import pytest

from semid_transforms.naming import NAMES, count_names, row_names


def words(*titles):
    found = row_names(pa.table({"title": pa.array(titles, pa.string())}), by_category=False)
    names = found.name.to_pylist()
    return [
        sorted(n for row, n in zip(found.row.tolist(), names, strict=True) if row == number)
        for number in range(len(titles))
    ]


def test_words_are_letters_of_any_script_and_count_once_a_row():
    assert words("Argan OIL, oil (250 ml) x1", None, "масло Арганы", "ÉCLAIR éclair", "हिन्दी") == [
        ["argan", "oil"],
        [],
        ["арганы", "масло"],
        ["éclair"],
        ["हिन्दी"],
    ]
    assert words("", "12 !!", "a b") == [[], [], []]
    assert words() == []


def test_paths_are_whole_and_may_be_missing():
    paths = pa.array([["A", "x"], None, [], ["A"]], pa.list_(pa.string()))
    found = row_names(pa.table({"category_path": paths}), by_category=True)
    assert found.row.tolist() == [0, 3]
    assert found.name.to_pylist() == ["A\x1fx", "A"]


@pytest.mark.parametrize("cut", range(4))
def test_counts_add_up_in_order_of_names(cut):
    names = ["b", "a", "b"]

    def batch(some):
        return pa.record_batch([pa.array(some, pa.string()), pa.array([1] * len(some))], NAMES)

    whole = count_names([count_names([batch(names[:cut])]), batch(names[cut:])])
    assert whole.to_pylist() == [{"name": "a", "rows": 1}, {"name": "b", "rows": 2}]
