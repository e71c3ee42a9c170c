import numpy as np
import pytest

from models.kmeans import kmeans
from tests.models.catalog import clustered_embeddings


def test_fewer_distinct_rows_than_centroids_ends_with_the_rows_themselves():
    rows = np.repeat(np.array([[3, 0], [1, 0], [2, 0]], "f4"), 100, axis=0)
    centroids = kmeans(rows, 8, iterations=10, seed=0)
    assert centroids.shape == (8, 2)
    assert centroids[:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]


def test_one_distinct_row():
    assert kmeans(np.ones((5, 3), "f4"), 4, 10, 0).tolist() == [[1, 1, 1]] * 4


def test_distinct_rows_that_come_late_are_found():
    rows = np.concatenate([np.zeros((1000, 2), "f4"), np.arange(60).reshape(30, 2).astype("f4")])
    centroids = kmeans(rows, 4, 10, 0)
    assert len(np.unique(centroids, axis=0)) == 4


def test_uses_every_row_and_is_deterministic():
    rows = clustered_embeddings(20_000, dim=4)
    first, second = kmeans(rows, 16, 20, 3), kmeans(rows, 16, 20, 3)
    assert first.tobytes() == second.tobytes()
    # A centroid is the mean of its rows only if no row was left out.
    nearest = ((rows[:, None] - first[None]) ** 2).sum(-1).argmin(1)
    means = np.stack([rows[nearest == code].mean(axis=0) for code in range(16)])
    assert np.abs(means - first).max() < 0.05


def test_splitting_the_largest_clusters_lowers_the_error_and_evens_use(monkeypatch):
    """Lloyd iterations alone end in the optimum nearest to their start."""
    rows = clustered_embeddings(6000, dim=8)

    def measured(centroids):
        distances = ((rows[:, None] - centroids[None]) ** 2).sum(-1)
        sizes = np.bincount(distances.argmin(1), minlength=len(centroids))
        return distances.min(1).mean(), sizes.max()

    error, largest = measured(kmeans(rows, 64, 10, 3))
    monkeypatch.setattr("models.kmeans.SPLIT_ROUNDS", 0)
    error_before, largest_before = measured(kmeans(rows, 64, 10, 3))
    assert error < error_before and largest < largest_before


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least 1 row"):
        kmeans(np.zeros((0, 3), "f4"), 4, 10, 0)
