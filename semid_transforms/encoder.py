"""The sentence encoder: texts in, vectors out, by the fastest path there is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.config import EncoderConfig
from semid_transforms.encoder_batches import (
    BatchLimits,
    TextTokenizer,
    TokenBatch,
    text_tokenizer,
    token_batches,
)
from semid_transforms.encoder_cache import ReadyEncoder, keep_encoder, read_encoder
from semid_transforms.encoder_openvino import (
    FEWEST_TEXTS,
    CompiledEncoder,
    compile_encoder,
    openvino_limits,
    why_not_openvino,
)
from semid_transforms.encoder_torch import load_model, lowers, run_torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 128
"""Text beyond `max_length * 128` characters is cut before tokenization: a word longer than 100
characters is one unknown token, so no shorter cut is safe, and a 10 MB text must not be tokenized
to keep 256 tokens."""

_LONGEST = 32_768  # a model of static word vectors has no limit of its own
_BATCHES_PER_CALL = 16
_SECONDS_BETWEEN_LINES = 5.0


class SentenceEncoder:
    """A sentence-transformers model, loaded unless it was kept compiled.

    Which backend encodes a list of texts depends on the configuration, the model, the installed
    packages and the number of texts, never on what was encoded before.

    Args:
      config: see `EncoderConfig`.

    Attributes:
      embedding_dim: length D of an embedding.
    """

    def __init__(self, config: EncoderConfig):
        self._config = config
        self._alone = threading.RLock()
        self._loaded: SentenceTransformer | None = None
        self._compiled: CompiledEncoder | str | None = None
        self._tokenizer: TextTokenizer | str
        ready = read_encoder(config)
        if ready is not None:
            self._compiled, self._tokenizer = ready.compiled, ready.tokenizer
            self._max_length, self.embedding_dim = ready.max_length, ready.embedding_dim
            return
        model = self._model()
        self._tokenizer = text_tokenizer(model)
        self._max_length = int(min(config.max_length or model.max_seq_length or 512, _LONGEST))
        self.embedding_dim = int(model.get_embedding_dimension() or 0)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encodes texts, longest first so that batches pad little.

        A vector depends slightly on the texts it shares a batch with (1.5e-7 in float32, 1e-3 in
        bfloat16 of torch), so callers pass texts in a canonical order; equal lengths keep it.

        Returns:
          (N, D) float32, unit length when configured.

        Raises:
          ValueError: the configuration asks for OpenVINO or int8, and this model cannot have it.
        """
        vectors = np.empty((len(texts), self.embedding_dim), np.float32)
        texts = [text[: self._max_length * CHARACTERS_PER_TOKEN] for text in texts]
        compiled = self._openvino(len(texts))
        if isinstance(self._tokenizer, str):
            self._encode_whole(texts, vectors)
        elif compiled is not None:
            limits = openvino_limits(self._config)
            batches = token_batches(texts, self._tokenizer, limits)
            compiled.run(_reported(batches, len(texts)), vectors)
        else:
            batches = token_batches(texts, self._tokenizer, BatchLimits(self._config.batch_size))
            run_torch(self._model(), _reported(batches, len(texts)), vectors)
        if self._config.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _model(self) -> SentenceTransformer:
        with self._alone:
            if self._loaded is None:
                self._loaded = load_model(self._config, lower=lowers(self._config))
            return self._loaded

    def _openvino(self, texts: int) -> CompiledEncoder | None:
        """Returns the compiled model if it should encode so many texts, None for torch."""
        config = self._config
        required = config.backend == "openvino" or config.precision == "int8"
        if config.backend == "torch" or (texts < FEWEST_TEXTS and not required):
            return None
        with self._alone:
            if self._compiled is None:
                self._compiled = self._compile(self._tokenizer)
                if isinstance(self._compiled, str):
                    reason = f"{config.model} is not encoded by OpenVINO: {self._compiled}"
                    if required:
                        raise ValueError(f"encoder.backend, encoder.precision: {reason}")
                    _log.info("embed    %s", reason)
        return self._compiled if isinstance(self._compiled, CompiledEncoder) else None

    def _compile(self, tokenizer: TextTokenizer | str) -> CompiledEncoder | str:
        if isinstance(tokenizer, str):
            return tokenizer
        model = self._model()
        if reason := why_not_openvino(self._config, model):
            return reason
        compiled = compile_encoder(self._config, tokenizer)
        if isinstance(compiled, CompiledEncoder):
            ready = ReadyEncoder(compiled, tokenizer, self._max_length, self.embedding_dim)
            first: Any = model[0]
            keep_encoder(self._config, ready, first.tokenizer.backend_tokenizer)
        return compiled

    def _encode_whole(self, texts: list[str], vectors: np.ndarray) -> None:
        """Encodes by the model's own loop, in blocks of similar length."""
        order = np.argsort([-len(text) for text in texts], kind="stable")
        size = self._config.batch_size * _BATCHES_PER_CALL
        blocks = (TokenBatch(order[at : at + size], {}) for at in range(0, len(order), size))
        for block in _reported(blocks, len(texts)):
            encoded = self._model().encode(
                [texts[row] for row in block.rows],
                batch_size=self._config.batch_size,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
            vectors[block.rows] = encoded.float().cpu().numpy()


def _reported(batches: Iterable[TokenBatch], texts: int) -> Iterator[TokenBatch]:
    """Passes batches on, with a line of progress every few seconds."""
    started = reported = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.rows)
        now = time.monotonic()
        if now - reported >= _SECONDS_BETWEEN_LINES:
            reported = now
            rate = done / (now - started)
            _log.info("embed    %s of %s texts, %.0f/s", f"{done:,}", f"{texts:,}", rate)
