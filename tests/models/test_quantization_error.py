import numpy as np
import pytest

from models.config import MocConfig, RqkmeansConfig, RqvaeConfig, TrainingConfig
from models.quantization_error import DECODED_WITHIN, ERROR_BITS, quantization_errors
from models.tokenizers import fit_quantizer

SHORT = TrainingConfig(steps=30, warmup_steps=10, batch_size=64, decoder_steps=0)


@pytest.fixture(scope="module")
def embeddings():
    rows = np.random.default_rng(0).normal(size=(400, 12)).astype("f4")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(
    scope="module",
    params=[
        RqkmeansConfig(codebook_sizes=(8, 8), iterations=3),
        RqvaeConfig(codebook_sizes=(8, 8), latent_dim=4, coarse_dim=3, training=SHORT),
        MocConfig(codebook_sizes=(8, 8), latent_dim=4, training=SHORT),
    ],
    ids=["rqkmeans", "rqvae", "moc"],
)
def quantizer(request, embeddings):
    return fit_quantizer(request.param, embeddings)[0]


def test_errors_are_the_exact_ones_rounded_whatever_the_batch(quantizer, embeddings):
    codes = quantizer.encode(embeddings)
    distance = quantizer.decode(codes).astype("f8") - embeddings
    exact = np.square(distance).sum(axis=1)
    step = 2.0 ** (np.frexp(exact)[1] - ERROR_BITS)
    expected = np.rint(exact / step) * step
    for rows in (1, 7, 400):
        errors = [
            quantization_errors(quantizer, embeddings[i : i + rows], codes[i : i + rows])
            for i in range(0, 400, rows)
        ]
        assert np.concatenate(errors).tolist() == expected.tolist()


def test_float32_reconstructions_are_as_near_as_errors_rely_on(quantizer, embeddings):
    codes = quantizer.encode(embeddings)
    decoded = quantizer.decode(codes).astype("f8")
    distance = np.linalg.norm(quantizer.nearly_decode(codes) - decoded, axis=1)
    assert (distance <= DECODED_WITHIN / 2 * (1 + np.linalg.norm(decoded, axis=1))).all()


def test_an_exact_reconstruction_has_no_error(embeddings):
    few = embeddings[:5]
    quantizer, _ = fit_quantizer(RqkmeansConfig(codebook_sizes=(8, 8), iterations=3), few)
    assert quantization_errors(quantizer, few, quantizer.encode(few)).max() < 1e-12
