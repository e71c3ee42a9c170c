import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from pipelines.sample_catalog import generate_products
from schemas.config import EncoderConfig
from semid_transforms import encoder as encoder_module
from semid_transforms import encoder_cache
from semid_transforms.encoder import SentenceEncoder

PRODUCTS = [f"{product['title']} {product['description']}" for product in generate_products(40)]
TEXTS = [*PRODUCTS, "", " \n", "ÀÉÎ ñ e\u0301", "wok " * 500, "🫖 日本語"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="2026-11-22: the extra `cpu` has openvino on x86-64 Linux alone",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where encoders are kept in a test; 10 texts are enough for OpenVINO."""
    monkeypatch.setenv("SEMID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder_module, "FEWEST_TEXTS", 10)
    return tmp_path / "cache" / "encoders"


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


def refuse(*_, **__):
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_kept_encoder_gives_the_same_vectors_without_its_model(
    tiny_model, cache, monkeypatch, precision
):
    config = EncoderConfig(tiny_model, precision=precision, batch_size=8)
    made = SentenceEncoder(config)
    expected, few = made.encode(TEXTS), made.encode(TEXTS[:9])
    assert {path.name for path in entries(cache)[0].iterdir()} == {
        "encoder.json",
        "model.blob",
        "tokenizer.json",
    }
    kept = SentenceEncoder(config)
    assert kept.embedding_dim == made.embedding_dim
    with monkeypatch.context() as patch:
        patch.setattr(encoder_module, "load_model", refuse)
        np.testing.assert_array_equal(kept.encode(TEXTS), expected)
        with pytest.raises(AssertionError, match="the model was loaded"):
            kept.encode(TEXTS[:9])  # few texts are encoded by torch, kept or not
    np.testing.assert_array_equal(kept.encode(TEXTS[:9]), few)


def test_other_settings_and_packages_are_other_encoders(tiny_model, cache, monkeypatch):
    SentenceEncoder(EncoderConfig(tiny_model)).encode(PRODUCTS)
    SentenceEncoder(EncoderConfig(tiny_model, max_length=8)).encode(PRODUCTS)
    assert len(entries(cache)) == 2
    assert encoder_cache.read_encoder(EncoderConfig(tiny_model, max_length=9)) is None
    assert encoder_cache.read_encoder(EncoderConfig(tiny_model, backend="torch")) is None
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    assert encoder_cache.read_encoder(EncoderConfig(tiny_model)) is None


@pytest.mark.parametrize("name", ["model.blob", "encoder.json"])
def test_a_damaged_encoder_is_made_anew(tiny_model, cache, name):
    config = EncoderConfig(tiny_model)
    expected = SentenceEncoder(config).encode(PRODUCTS)
    damaged = entries(cache)[0] / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    np.testing.assert_array_equal(SentenceEncoder(config).encode(PRODUCTS), expected)
    assert encoder_cache.read_encoder(config) is not None


def test_a_folder_that_cannot_be_written_is_no_failure(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    config = EncoderConfig(tiny_model)
    vectors = []
    for named in (str(tmp_path / "file"), ""):
        monkeypatch.setenv("SEMID_CACHE", named)
        vectors.append(SentenceEncoder(config).encode(PRODUCTS))
    np.testing.assert_array_equal(*vectors)


def test_tokens_that_are_not_the_tokenizers_alone_are_not_kept(tiny_model, tmp_path, cache):
    modules = [Transformer(tiny_model, max_seq_length=64), Pooling(32)]
    prompts = {"item": "item: "}
    model = SentenceTransformer(
        modules=modules, prompts=prompts, default_prompt_name="item", device="cpu"
    )
    model.save(str(tmp_path / "prompted"), create_model_card=False)
    SentenceEncoder(EncoderConfig(str(tmp_path / "prompted"))).encode(PRODUCTS)
    assert entries(cache) == []


def test_the_longest_unused_encoders_are_dropped(tiny_model, cache, monkeypatch):
    monkeypatch.setattr(encoder_cache, "_MOST_KEPT", 2)
    first, unused, last = (EncoderConfig(tiny_model, max_length=length) for length in (8, 9, 10))
    for config in (first, unused):
        SentenceEncoder(config).encode(PRODUCTS)
    assert encoder_cache.read_encoder(first) is not None
    SentenceEncoder(last).encode(PRODUCTS)
    assert len(entries(cache)) == 2
    assert encoder_cache.read_encoder(first) is not None
    assert encoder_cache.read_encoder(unused) is None
