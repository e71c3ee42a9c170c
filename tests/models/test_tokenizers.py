import dataclasses
import json

import numpy as np
import pytest
import torch

from models.config import (
    MocConfig,
    PqConfig,
    RqkmeansConfig,
    RqvaeConfig,
    TrainingConfig,
    VqConfig,
)
from models.tokenizers import (
    fit_quantizer,
    from_files,
    quantizer_class,
    quantizer_config,
    to_files,
    tokenizer_id,
)
from tests.models.catalog import clustered_embeddings

TRAINING = TrainingConfig(
    steps=60, warmup_steps=20, batch_size=128, decoder_steps=10, evaluate_every=20
)
SIZES = (16, 8, 8)
SMALL = {
    "rqvae": RqvaeConfig(codebook_sizes=SIZES, latent_dim=8, hidden=(32,), training=TRAINING),
    "rqvae-beam": RqvaeConfig(
        codebook_sizes=SIZES, latent_dim=8, hidden=(32,), whitening=0.5, beam=3, training=TRAINING
    ),
    "rqkmeans": RqkmeansConfig(codebook_sizes=SIZES),
    "rqkmeans-beam": RqkmeansConfig(codebook_sizes=SIZES, beam=4),
    "moc": MocConfig(codebook_sizes=SIZES, latent_dim=8, hidden=(32,), training=TRAINING),
    "vq": VqConfig(codebook_sizes=(64,)),
    "pq": PqConfig(codebook_sizes=SIZES),
}


@pytest.fixture(scope="module")
def rows():
    return clustered_embeddings(1500)


@pytest.fixture(scope="module", params=sorted(SMALL))
def fitted(request, rows):
    return fit_quantizer(SMALL[request.param], rows)[0]


def test_codes_do_not_depend_on_batch_order_or_threads(fitted, rows):
    whole = fitted.encode(rows)
    assert whole.dtype == np.int32
    for size in (1, 7, 4096):
        parts = [fitted.encode(rows[i : i + size]) for i in range(0, len(rows), size)]
        assert np.array_equal(np.concatenate(parts), whole)
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(fitted.encode(rows[order]), whole[order])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert np.array_equal(fitted.encode(rows), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["rqvae", "rqkmeans"])
def test_latents_explain_the_codes(kind, rows):
    quantizer = fit_quantizer(SMALL[kind], rows)[0]
    residual = quantizer.latents(rows).astype("f8")
    codes = quantizer.encode(rows)
    for level, book in enumerate(quantizer.codebooks):
        distances = ((residual[:, None] - book[None]) ** 2).sum(-1)
        assert np.array_equal(distances.argmin(1), codes[:, level])
        residual -= book[codes[:, level]]


@pytest.mark.parametrize("kind", ["rqvae", "rqkmeans"])
def test_a_wider_beam_is_nearer(kind, rows):
    def error(quantizer):
        return ((quantizer.latents(rows) - quantizer.quantized(quantizer.encode(rows))) ** 2).sum()

    config = dataclasses.replace(SMALL[kind], beam=1)
    greedy = fit_quantizer(config, rows)[0]
    wide = fit_quantizer(dataclasses.replace(config, beam=8), rows)[0]
    assert error(wide) < error(greedy)


def test_saved_and_loaded_gives_the_same_codes_and_id(fitted, rows):
    files = to_files(fitted, {"note": 1})
    again = from_files(files)
    assert np.array_equal(again.encode(rows), fitted.encode(rows))
    codes = fitted.encode(rows)
    assert again.decode(codes).tobytes() == fitted.decode(codes).tobytes()
    assert tokenizer_id(to_files(again, {"note": 2})) == tokenizer_id(files)
    assert json.loads(files["config.json"])["kind"] == fitted.kind


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_fitting_twice_gives_the_same_bytes(kind, rows):
    first, second = (to_files(fit_quantizer(SMALL[kind], rows)[0], {}) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("kind", sorted(SMALL))
@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_fits_any_number_of_rows(kind, count):
    rows = clustered_embeddings(count)
    quantizer = fit_quantizer(SMALL[kind], rows)[0]
    assert quantizer.encode(rows).shape == (count, quantizer.num_levels)
    assert np.isfinite(quantizer.decode(quantizer.encode(rows))).all()


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_fits_identical_rows(kind):
    rows = np.repeat(clustered_embeddings(1), 300, axis=0)
    quantizer = fit_quantizer(SMALL[kind], rows)[0]
    assert len(np.unique(quantizer.encode(rows), axis=0)) == 1
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(rows[:1])), rows[:1], atol=0.1)


def test_bad_input_is_named(fitted, rows):
    with pytest.raises(ValueError, match=r"shape \(N, 24\), got \(2, 3\)"):
        fitted.encode(np.ones((2, 3), "f4"))
    bad = rows[:3].copy()
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match="row 1 has a value that is not finite"):
        fitted.encode(bad)
    codes = fitted.encode(rows[:1])
    codes[0, -1] = 99
    with pytest.raises(ValueError, match=rf"row 0: code 99 at level {fitted.num_levels} is"):
        fitted.decode(codes)
    assert fitted.encode(rows[:0]).shape == (0, fitted.num_levels)


def test_fitting_nothing_is_refused():
    with pytest.raises(ValueError, match=r"at least 1 row, got \(0, 4\)"):
        fit_quantizer(RqkmeansConfig(), np.zeros((0, 4), "f4"))


@pytest.mark.parametrize("kind", ["rqvae", "rqkmeans", "moc", "vq", "pq"])
def test_configurations_know_whether_codes_are_hierarchical(kind):
    assert quantizer_config(kind).hierarchical is quantizer_class(kind).hierarchical


def test_kinds_and_versions():
    assert quantizer_config("rqvae") is RqvaeConfig
    with pytest.raises(ValueError, match="kind 'nope' is unknown"):
        quantizer_config("nope")
    with pytest.raises(ValueError, match=r"lacks config\.json"):
        from_files({"model.safetensors": b""})
    with pytest.raises(ValueError, match="format version 9"):
        from_files({"config.json": b'{"format_version": 9}', "model.safetensors": b""})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codebook_sizes", (256,), "2 to 8 levels"),
        ("codebook_sizes", (256, 1), r"2\.\.8192, got 1"),
        ("codebook_sizes", (8192,) * 8, "104 bits"),
        ("latent_dim", 0, "latent_dim must lie in"),
        ("beam", 0, "beam must lie in"),
    ],
)
def test_bad_configuration_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RqvaeConfig(), **{field: value})
