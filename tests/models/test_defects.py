"""What goes wrong in public implementations, one test a defect; each fails if it is put back."""

import dataclasses

import numpy as np
import pytest
import torch

from models import metrics, pair_mining
from models.autoencoder_training import train_autoencoder
from models.codebook_training import LearningCodebooks
from models.config import LossConfig, RqkmeansConfig, RqvaeConfig, TrainingConfig
from models.losses import commitment_per_level, uniqueness_loss
from models.rqkmeans import fit_rqkmeans
from models.rqvae import Rqvae, fit_rqvae
from models.tokenizers import from_files, to_files
from tests.models.catalog import clustered_embeddings

CONFIG = RqvaeConfig(
    codebook_sizes=(16, 16, 16),
    latent_dim=8,
    hidden=(32,),
    losses=LossConfig(uniqueness=2.0, uniqueness_margin=0.5, separation=0.0, paired_rows=0.5),
    training=TrainingConfig(
        steps=100,
        warmup_steps=20,
        batch_size=256,
        learning_rate=5e-3,
        decoder_steps=10,
        evaluate_every=20,
        mine_every=10,
    ),
)


@pytest.fixture(scope="module")
def rows():
    return clustered_embeddings(2000)


@pytest.fixture(scope="module")
def fitted(rows):
    return fit_rqvae(CONFIG, rows)[0]


def test_a_raw_unit_norm_inputs_do_not_collapse(rows):
    # Most of each vector is the same for all of them, and the rest is small.
    narrow = (np.float32(3.0) + rows / 50).astype("f4")
    codes = fit_rqvae(CONFIG, narrow)[0].encode(narrow)
    shares = [level["perplexity_share"] for level in metrics.code_use(codes, (16, 16, 16))]
    assert min(shares) > 0.6
    decoded_well = fit_rqvae(CONFIG, narrow)[0]
    assert metrics.one_minus_r2(narrow, decoded_well.decode(codes)) < 0.5


def test_b_every_level_sends_a_gradient_to_the_encoder(rows):
    encoder = torch.nn.Linear(24, 8)
    latents = encoder(torch.from_numpy(rows[:256]))
    codebooks = LearningCodebooks.from_kmeans(latents.detach(), (16, 16, 16), 256, 0)
    # k-means leaves the residuals of its own rows with mean zero; other rows are not so lucky.
    latents = encoder(torch.from_numpy(rows[256:512]))
    terms = commitment_per_level(latents, codebooks.quantize(latents))
    for term in terms:
        gradient = torch.autograd.grad(term, encoder.weight, retain_graph=True)[0]
        assert float(gradient.norm()) > 1e-4


def test_c_kmeans_ends_with_fewer_distinct_rows_than_codes(rows):
    few = np.repeat(rows[:5], 200, axis=0)
    for quantizer in (
        fit_rqkmeans(RqkmeansConfig(codebook_sizes=(16, 16)), few),
        fit_rqvae(CONFIG, few)[0],
    ):
        assert len(np.unique(quantizer.encode(few), axis=0)) == 5


def test_d_kmeans_starts_from_the_whole_sample(rows, monkeypatch):
    seen = []
    original = LearningCodebooks.from_kmeans

    def spy(latents, *rest):
        seen.append(latents.clone())
        return original(latents, *rest)

    monkeypatch.setattr(LearningCodebooks, "from_kmeans", spy)
    train_autoencoder(CONFIG, rows)
    # All rows but the 2 % held out, each once.
    assert len(seen) == 1
    assert len(np.unique(seen[0].numpy(), axis=0)) == 1960 == len(seen[0])


def test_e_dead_codes_come_back_with_every_option_off(rows, monkeypatch):
    original = LearningCodebooks.from_kmeans

    def half_dead(latents, *rest):
        codebooks = original(latents, *rest)
        for book in codebooks.words:
            book[::2] = 1e3
        return codebooks

    monkeypatch.setattr(LearningCodebooks, "from_kmeans", half_dead)
    off = LossConfig(commitment=0.0, separation=0.0, balance=0.0)
    quicker = dataclasses.replace(CONFIG, losses=off, ema_decay=0.8)
    quantizer = fit_rqvae(quicker, rows)[0]
    used = [level["used_codes"] for level in metrics.code_use(quantizer.encode(rows), (16,) * 3)]
    assert min(used) >= 14


def test_f_the_uniqueness_loss_acts_on_pairs_that_collide(rows, monkeypatch):
    calls = []

    def spy(left, right, weights, margin):
        loss = uniqueness_loss(left, right, weights, margin)
        gradient = torch.autograd.grad(loss, left, retain_graph=True)[0]
        calls.append((float(loss), float(gradient.norm()), int((weights > 0).sum())))
        return loss

    monkeypatch.setattr(pair_mining, "uniqueness_loss", spy)
    fit_rqvae(CONFIG, rows)
    losses, gradients, pairs = zip(*calls, strict=True)
    # 2,000 clustered rows in 4,096 cells collide all the time; with the codes transposed, or
    # the pairs left to chance, the loss is zero nearly always.
    assert np.mean(np.array(pairs) > 10) > 0.9
    assert np.mean(np.array(losses) > 0) > 0.9
    assert np.mean(np.array(gradients) > 0) > 0.9


def test_g_codes_are_the_same_after_saving_and_loading(fitted, rows):
    again = from_files(to_files(fitted, {}))
    assert isinstance(again, Rqvae)
    assert np.array_equal(again.encode(rows), fitted.encode(rows))
    assert again.latents(rows).tobytes() == fitted.latents(rows).tobytes()


def test_h_rounding_of_the_fast_path_cannot_change_a_code(fitted, rows, monkeypatch):
    # Many rows on the border of two codewords of some level.
    level_rows = np.concatenate([rows, near_borders(fitted, rows)])
    expected = fitted.encode(level_rows)
    random = np.random.default_rng(0)
    original = Rqvae._fast_latents

    def another_rounding(self, block):
        latents = original(self, block)
        noise = random.uniform(-1, 1, latents.shape).astype("f4")
        # 16 units in the last place of the latent's length.
        return latents + noise * np.linalg.norm(latents, axis=1, keepdims=True) * 2.0**-20

    monkeypatch.setattr(Rqvae, "_fast_latents", another_rounding)
    for _ in range(3):
        assert np.array_equal(fitted.encode(level_rows), expected)


def near_borders(quantizer, rows):
    """Moves rows, two of different first code at a time, to where the code changes."""
    codes = quantizer.encode(rows)[:, 0]
    low, high = rows[:-1].astype("f8"), rows[1:].astype("f8")
    differ = codes[:-1] != codes[1:]
    low, high, low_codes = low[differ], high[differ], codes[:-1][differ]
    for _ in range(40):
        middle = (low + high) / 2
        same = quantizer.encode(middle.astype("f4"))[:, 0] == low_codes
        low[same], high[~same] = middle[same], middle[~same]
    return low.astype("f4")
