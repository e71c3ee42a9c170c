import importlib.util
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    LayerNorm,
    Pooling,
    StaticEmbedding,
    Transformer,
)

from pipelines.sample_catalog import generate_products
from schemas.config import EncoderConfig
from semid_transforms import encoder as encoder_module
from semid_transforms import encoder_openvino
from semid_transforms.encoder import SentenceEncoder

TEXTS = ["espresso machine", "wok", "a b c " * 50, "", "dutch oven in forest green"]
PRODUCTS = [f"{product['title']} {product['description']}" for product in generate_products(40)]

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="2026-11-22: the extra `cpu` has openvino on x86-64 Linux alone",
)


@pytest.fixture(autouse=True)
def nothing_is_reported(monkeypatch):
    """By default, OpenVINO and nncf tell Intel that they were imported and used."""

    def send(sender, backend, message):
        raise AssertionError(f"sent to Intel: {message}")

    if importlib.util.find_spec("openvino_telemetry"):
        monkeypatch.setattr("openvino_telemetry.utils.sender.TelemetrySender.send", send)


def cosines(one, two):
    return (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)


@pytest.fixture(scope="module", params=["torch", pytest.param("openvino", marks=needs_openvino)])
def encoder(request, tiny_model):
    return SentenceEncoder(
        EncoderConfig(tiny_model, backend=request.param, batch_size=4, precision="float32")
    )


def test_vectors_are_those_of_the_model_in_the_order_of_the_texts(encoder, tiny_model):
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    plain = SentenceTransformer(tiny_model, device="cpu")
    np.testing.assert_allclose(vectors, plain.encode(TEXTS, normalize_embeddings=True), atol=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)
    assert encoder.encode([]).shape == (0, 32)


def test_a_huge_text_costs_no_more_than_its_beginning(encoder):
    start = "stock pot " * 2000
    np.testing.assert_array_equal(
        encoder.encode([start + "x" * (10 << 20)]), encoder.encode([start + "y" * 100])
    )


@needs_openvino
def test_max_length_keeps_that_many_tokens(tiny_model):
    long, cut = " ".join("abcdefghij"), "a b c d e f"  # with [CLS] and [SEP] 8 tokens are left
    for backend in ("torch", "openvino"):
        config = EncoderConfig(tiny_model, backend=backend, max_length=8, precision="float32")
        one, two = SentenceEncoder(config).encode([long, cut])
        np.testing.assert_allclose(one, two, atol=1e-5)


@needs_openvino
def test_threads_change_no_vector(tiny_model):
    encoder = SentenceEncoder(EncoderConfig(tiny_model, backend="openvino"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = encoder.encode(PRODUCTS)
        torch.set_num_threads(1)
        np.testing.assert_array_equal(encoder.encode(PRODUCTS), two)
        with ThreadPoolExecutor(2) as workers:  # as Beam's worker threads share a model
            for vectors in workers.map(encoder.encode, [PRODUCTS] * 4):
                np.testing.assert_array_equal(vectors, two)
    finally:
        torch.set_num_threads(before)


@needs_openvino
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("bfloat16", 0.999)])
def test_every_pooling_is_converted(tiny_model, tmp_path, precision, least):
    """All of them side by side, each with a norm of its own."""
    transformer = Transformer(tiny_model, max_seq_length=64)
    pooling = Pooling(32, pooling_mode=Pooling.POOLING_MODES)
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu").eval()
    model.save(str(tmp_path), safe_serialization=True)
    config = EncoderConfig(str(tmp_path), backend="openvino", precision=precision, normalize=False)
    expected, got = model.encode(PRODUCTS), SentenceEncoder(config).encode(PRODUCTS)
    for at, mode in enumerate(Pooling.POOLING_MODES):
        part = slice(32 * at, 32 * at + 32)
        assert cosines(expected[:, part], got[:, part]).min() >= least, mode


@needs_openvino
def test_few_texts_are_not_worth_a_conversion(tiny_model, monkeypatch):
    monkeypatch.setattr(encoder_module, "FEWEST_TEXTS", 10)
    by_torch, by_openvino = (
        SentenceEncoder(EncoderConfig(tiny_model, backend=backend))
        for backend in ("torch", "openvino")
    )
    chosen = SentenceEncoder(EncoderConfig(tiny_model))
    for texts, expected in ((PRODUCTS, by_openvino), (PRODUCTS[:9], by_torch)):
        np.testing.assert_array_equal(chosen.encode(texts), expected.encode(texts))
    assert not np.array_equal(by_torch.encode(PRODUCTS), by_openvino.encode(PRODUCTS))


def saved(folder, modules, **settings):
    model = SentenceTransformer(modules=modules, device="cpu", **settings)
    model.save(str(folder), safe_serialization=True)
    return str(folder)


def static(folder, transformer):
    return saved(folder, [StaticEmbedding(transformer.tokenizer, embedding_dim=8)])


def prompted(folder, transformer):
    modules = [transformer, Pooling(32, include_prompt=False)]
    return saved(folder, modules, prompts={"item": "item: "}, default_prompt_name="item")


def with_layer_norm(folder, transformer):
    return saved(folder, [transformer, Pooling(32), LayerNorm(32)])


def shortened(folder, transformer):
    return saved(folder, [transformer, Pooling(32)], truncate_dim=16)


@needs_openvino
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (static, "its first module is StaticEmbedding"),
        (prompted, "its pooling leaves its prompt out"),
        (shortened, "it keeps 16 dimensions of each vector"),
        (with_layer_norm, "the model has a module LayerNorm"),
    ],
)
def test_other_models_are_encoded_by_torch(
    tiny_model, tmp_path, monkeypatch, caplog, build, reason
):
    monkeypatch.setattr(encoder_module, "FEWEST_TEXTS", 1)
    folder = build(tmp_path, Transformer(tiny_model, max_seq_length=64))
    settings = {"precision": "float32", "normalize": False, "batch_size": 8}
    with caplog.at_level(logging.INFO, "semid_transforms.encoder"):
        vectors = SentenceEncoder(EncoderConfig(folder, **settings)).encode(PRODUCTS)
    assert reason in caplog.text
    expected = SentenceTransformer(folder, device="cpu").encode(PRODUCTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    with pytest.raises(ValueError, match=reason):
        SentenceEncoder(EncoderConfig(folder, backend="openvino")).encode(PRODUCTS)


def test_without_openvino_torch_encodes(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(encoder_module, "FEWEST_TEXTS", 1)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.INFO, "semid_transforms.encoder"):
        vectors = SentenceEncoder(EncoderConfig(tiny_model)).encode(PRODUCTS)
    assert "openvino is not installed" in caplog.text
    expected = SentenceEncoder(EncoderConfig(tiny_model, backend="torch")).encode(PRODUCTS)
    np.testing.assert_array_equal(vectors, expected)


@needs_openvino
def test_a_wrong_conversion_is_noticed(tiny_model, monkeypatch):
    def run_otherwise(model, batches, vectors):
        vectors[:] = np.random.default_rng(0).normal(size=vectors.shape)

    monkeypatch.setattr(encoder_openvino, "run_torch", run_otherwise)
    with pytest.raises(ValueError, match="its vectors are not those of torch, cosine"):
        SentenceEncoder(EncoderConfig(tiny_model, backend="openvino")).encode(PRODUCTS)


def test_int8_is_near_and_the_same_in_every_process(tiny_model, monkeypatch, capsys):
    pytest.importorskip("nncf", reason="2026-11: needs the extra `int8`, which CI installs")
    few = encoder_openvino.calibration_texts()[:16]
    monkeypatch.setattr(encoder_openvino, "calibration_texts", lambda: few)
    config = EncoderConfig(tiny_model, precision="int8")
    one, two = (SentenceEncoder(config) for _ in range(2))
    vectors = one.encode(PRODUCTS)
    np.testing.assert_array_equal(two.encode(PRODUCTS), vectors)
    exact = SentenceEncoder(EncoderConfig(tiny_model, precision="float32")).encode(PRODUCTS)
    assert 0.99 < cosines(exact, vectors).mean() < 0.99999
    # Static scales: a vector does not depend on what is encoded with it.
    alone = np.concatenate([one.encode([text]) for text in PRODUCTS[:5]])
    assert cosines(alone, vectors[:5]).min() > 0.9999
    assert capsys.readouterr().out == ""
