import dataclasses

import numpy as np
import pytest
import torch

from models.alignment import align_codes, renumber_codes
from models.config import RqkmeansConfig, VqConfig
from models.input_scaling import InputScaling
from models.metrics import kept, one_minus_r2
from models.mlp import ResidualMlp
from models.tokenizers import fit_quantizer, from_files, to_files
from models.warm_start import WARM_RATE, WARM_STEPS, load_networks, warm_training
from tests.models.catalog import clustered_embeddings
from tests.models.test_tokenizers import SMALL, TRAINING


@pytest.fixture(scope="module")
def rows():
    return clustered_embeddings(1500)


@pytest.fixture(scope="module", params=["rqvae", "moc", "rqkmeans"])
def old(request, rows):
    """A tokenizer of the first 1,300 rows, as it comes back from its files."""
    config = SMALL[request.param]
    return config, from_files(to_files(fit_quantizer(config, rows[:1300])[0], {}))


def other_seed(config):
    if isinstance(config, RqkmeansConfig):
        return dataclasses.replace(config, seed=9)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=9))


def test_a_warm_start_keeps_more_codes_than_a_cold_one_and_is_as_good(old, rows):
    config, before = old
    codes = before.encode(rows[:1300])
    shares, errors = {}, {}
    for name, start in (("cold", None), ("warm", before)):
        fitted = fit_quantizer(other_seed(config), rows, start=start)[0]
        now = fitted.encode(rows)
        numbering = align_codes(now[:1300], codes, config.codebook_sizes, fitted.hierarchical)
        shares[name] = kept(renumber_codes(now[:1300], numbering), codes)
        errors[name] = one_minus_r2(rows, fitted.decode(now))
    assert all(w > c for w, c in zip(shares["warm"], shares["cold"], strict=True))
    assert shares["warm"][0] > 0.8
    assert errors["warm"] < 1.1 * errors["cold"]


def test_warm_starts_are_equal_byte_for_byte(old, rows):
    config, before = old
    first, second = (to_files(fit_quantizer(config, rows, start=before)[0], {}) for _ in range(2))
    assert first == second
    assert first["model.safetensors"] != to_files(before, {})["model.safetensors"]


def test_levels_of_another_size_or_number_start_anew(old, rows):
    config, before = old
    for sizes in ((16, 12, 8), (16, 8), (16, 8, 8, 4)):
        changed = dataclasses.replace(config, codebook_sizes=sizes)
        fitted = fit_quantizer(changed, rows, start=before)[0]
        assert fitted.codebook_sizes == sizes
        share = kept(fitted.encode(rows)[:, :1], before.encode(rows)[:, :1])[0]
        assert share > 0.8, "level 1 has the same size and starts from its codebook"


@pytest.mark.parametrize("hidden", [(), (5,), (6, 7)])
@pytest.mark.parametrize("shortcut", [True, False])
def test_networks_compute_the_same_under_another_scaling(hidden, shortcut, rows):
    """The start was scaled by one sample; the new fit scales, and whitens, by another."""
    config = dataclasses.replace(SMALL["rqvae"], hidden=hidden, shortcut=shortcut)
    start = fit_quantizer(config, rows[:200])[0].autoencoder
    scaling = InputScaling.of(rows[100:], whitening=0.5)
    widths = (rows.shape[1], *hidden, config.latent_dim)
    encoder, decoder = ResidualMlp(widths, shortcut), ResidualMlp(widths[::-1], shortcut=True)
    load_networks(encoder, decoder, start, scaling)
    with torch.no_grad():
        latents = encoder(torch.from_numpy(scaling.encoder_rows(rows))).numpy()
        decoded = decoder(torch.from_numpy(latents)).numpy() * scaling.scale + scaling.mean
    np.testing.assert_allclose(latents, start.encoder.exact(rows), atol=1e-4)
    np.testing.assert_allclose(decoded, start.decoder.exact(latents), atol=1e-4)


def test_what_cannot_be_a_start_is_refused(old, rows):
    config, before = old
    with pytest.raises(ValueError, match=f"vq cannot start from .* kind {before.kind}"):
        fit_quantizer(VqConfig(codebook_sizes=(8,)), rows, start=before)
    with pytest.raises(ValueError, match=r"embeddings have 8 values, .* takes 24"):
        fit_quantizer(config, rows[:, :8], start=before)
    if before.kind != "rqkmeans":
        wider = dataclasses.replace(config, hidden=(64,))
        wanted = rf"\(\(64,\), 8, {config.shortcut}\), those .* \(\(32,\), 8, {config.shortcut}\)"
        with pytest.raises(ValueError, match=wanted):
            fit_quantizer(wider, rows, start=before)


def test_a_warm_fit_takes_fewer_and_smaller_steps():
    settings = warm_training(TRAINING)
    assert settings.steps == round(TRAINING.steps * WARM_STEPS)
    assert settings.learning_rate == pytest.approx(TRAINING.learning_rate * WARM_RATE)
    assert settings.warmup_steps == 0
