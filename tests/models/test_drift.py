"""Drift figures: nothing for more of the same, clear numbers for something else."""

import numpy as np
import pytest

from models.drift import DriftBounds, advice_on, drift_of, reference_of

SIZES = (16, 8)
BOUNDS = DriftBounds(min_items=100, max_error_ratio=2.0, max_code_divergence=0.5)


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 16, 4000), rng.binomial(7, 0.4, 4000)], axis=1)
    return codes, rng.chisquare(4, 4000).astype(np.float32)


def counts(codes):
    return [
        np.bincount(column, minlength=size) for column, size in zip(codes.T, SIZES, strict=True)
    ]


def test_the_sample_itself_has_not_drifted(sample):
    codes, errors = sample
    reference = reference_of(codes, errors, SIZES)
    assert [len(level) for level in reference["code_counts"]] == [16, 8]
    drift = drift_of(counts(codes), errors, reference)
    assert drift["error_ratio"] == pytest.approx(1)
    assert drift["far_share"] == pytest.approx(0.05, abs=0.002)
    assert [level["divergence"] for level in drift["levels"]] == pytest.approx([0, 0], abs=1e-3)
    assert drift["levels"][0]["perplexity"] == pytest.approx(
        drift["levels"][0]["sample_perplexity"]
    )
    assert advice_on(drift, BOUNDS) == []


def test_few_items_of_the_same_kind_give_no_advice(sample):
    codes, errors = sample
    reference = reference_of(codes, errors, SIZES)
    for size in (100, 300):
        drift = drift_of(counts(codes[:size]), errors[:size], reference)
        assert max(level["divergence"] for level in drift["levels"]) < 0.1
        assert advice_on(drift, BOUNDS) == []


def test_other_items_are_told_apart_and_named(sample):
    codes, errors = sample
    reference = reference_of(codes, errors, SIZES)
    crowded = np.stack([np.zeros(200, int), codes[:200, 1]], axis=1)
    drift = drift_of(counts(crowded), 3 * errors[:200], reference)
    # All on one of 16 codes of equal use: ln 16 less what chance gives, 15 / 400.
    assert drift["levels"][0]["divergence"] == pytest.approx(np.log(16) - 15 / 400, abs=0.1)
    first, second = advice_on(drift, BOUNDS)
    assert "times as far from their codewords" in first and "drift.max_error_ratio (2)" in first
    assert "codes of level 1" in second and "drift.max_code_divergence (0.5)" in second
    assert advice_on(drift, DriftBounds(201, 2.0, 0.5)) == []


def test_a_sample_without_error_has_no_ratio():
    codes = np.array([[1, 1], [2, 2]])
    reference = reference_of(codes, np.zeros(2, np.float32), SIZES)
    drift = drift_of(counts(codes), np.ones(2, np.float32), reference)
    assert drift["error_ratio"] is None
    assert advice_on(drift, DriftBounds(1, 1.0, 10.0)) == []
