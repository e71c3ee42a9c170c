"""What every test shares: one thread per process, and a sentence encoder that loads in a moment."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["SEMID_CACHE"] = ""  # encoders are made anew, and nothing stays on the machine

from pathlib import Path

import pytest
from hypothesis import settings

from pipelines.sample_catalog import generate_products
from tests.gcs_emulator import GcsEmulator, running_gcs

settings.register_profile("semid", deadline=None, derandomize=True)
settings.load_profile("semid")


@pytest.fixture(scope="session")
def gcs() -> Iterator[GcsEmulator]:
    """A Google Cloud Storage of this test process; `gs://` paths lead to it."""
    with running_gcs() as (emulator, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield emulator


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence-transformers folder with a random two-layer BERT of 32 dimensions."""
    return build_model(tmp_path_factory.mktemp("encoder"), seed=0)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same encoder with other weights."""
    return build_model(tmp_path_factory.mktemp("other-encoder"), seed=1)


def build_model(folder: Path, seed: int) -> str:
    """Saves a small random encoder over the words of the generated catalog."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    transformers.utils.logging.disable_progress_bar()
    words = sorted(
        {
            word
            for product in generate_products(400)
            for word in f"{product['title']} {product['category_path']}".lower().split()
            if word.isalnum()
        }
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [prefix + chr(code) for prefix in ("", "##") for code in range(97, 123)]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys([*special, *letters, *words])), "utf-8")
    bert = folder / "bert"
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), model_max_length=64)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,  # the usual 0.02 gives every text nearly the same vector
    )
    BertModel(config).save_pretrained(bert, safe_serialization=True)
    tokenizer.save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=64)
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu"
    )
    model.save(str(folder / "model"), safe_serialization=True)
    return str(folder / "model")
