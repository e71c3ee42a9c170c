import numpy as np
import pytest

from models.input_scaling import InputScaling
from tests.models.catalog import clustered_embeddings


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_rows_are_centred_with_squared_length_one(whitening):
    rows = clustered_embeddings(3000)
    scaled = InputScaling.of(rows, whitening).encoder_rows(rows)
    assert np.abs(scaled.mean(axis=0)).max() < 1e-5
    assert (scaled**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)
    variance = np.linalg.eigvalsh(np.cov(scaled.T))
    ratio = variance[-1] / variance[0]
    raw = np.linalg.eigvalsh(np.cov(rows.T))
    assert ratio == pytest.approx((raw[-1] / raw[0]) ** (1 - whitening), rel=0.05)


def test_the_decoders_target_is_not_whitened():
    rows = clustered_embeddings(500)
    scaling = InputScaling.of(rows, 1.0)
    target = scaling.target_rows(rows)
    np.testing.assert_allclose(target * scaling.scale + scaling.mean, rows, atol=1e-6)


def test_noise_dimensions_are_not_blown_up():
    rows = np.random.default_rng(0).normal(size=(1000, 3)).astype("f4") * [1, 1, 1e-6]
    scaled = InputScaling.of(rows.astype("f4"), 1.0).encoder_rows(rows.astype("f4"))
    assert scaled[:, 2].std() < 0.01 * scaled[:, 0].std()


def test_equal_rows_get_scale_one():
    scaling = InputScaling.of(np.ones((10, 4), "f4"), 1.0)
    assert scaling.scale == 1.0
    assert np.abs(scaling.encoder_rows(np.ones((2, 4), "f4"))).max() == 0
