import numpy as np
import pytest

from models import neighbours
from models.neighbours import Geometry, find_neighbours, unit_rows

ROWS = np.random.default_rng(0).standard_normal((150, 6)).astype("f4")


def by_definition(rows, asked, k):
    unit = unit_rows(rows).astype(np.float64)
    found = []
    for row in asked:
        cosine = (unit[row] * unit).sum(axis=1)
        order = np.lexsort((np.arange(len(rows)), -cosine))
        found.append([other for other in order if other != row][:k])
    return found


@pytest.mark.parametrize(("k", "sample"), [(3, 40), (80, 10), (500, 5)])
def test_neighbours_are_those_of_all_pairs(k, sample, monkeypatch):
    monkeypatch.setattr(neighbours, "_TILE_ROWS", 64)  # three tiles, the last one not full
    found = find_neighbours(ROWS, k, sample)
    assert found.asked.tolist() == np.linspace(0, 149, sample).astype(int).tolist()
    assert found.nearest.tolist() == by_definition(ROWS, found.asked, min(k, 149))


def test_neighbours_among_many_that_are_equally_near(monkeypatch):
    monkeypatch.setattr(neighbours, "_TILE_ROWS", 64)
    crowd = ROWS.copy()
    crowd[20:130] = crowd[0]
    found = find_neighbours(crowd, 4)
    assert found.nearest[0].tolist() == [20, 21, 22, 23]
    assert found.nearest[125].tolist() == [0, 20, 21, 22]
    assert found.nearest.tolist() == by_definition(crowd, range(150), 4)


def test_geometry_is_that_of_rows_at_unit_length():
    geometry = Geometry.of(ROWS, 50)
    assert np.array_equal(geometry.unit, unit_rows(ROWS, np.float64))
    found = find_neighbours(ROWS, sample=50)
    assert np.array_equal(geometry.neighbours.asked, found.asked)
    assert np.array_equal(geometry.neighbours.nearest, found.nearest)
