"""Sentence encoders in OpenVINO: the fastest path on processors."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from models.cores import usable_cores
from schemas.config import EncoderConfig
from semid_transforms.calibration import calibration_texts
from semid_transforms.encoder_batches import BatchLimits, TextTokenizer, TokenBatch, token_batches
from semid_transforms.encoder_torch import device_of, load_model, lowers, run_torch

if TYPE_CHECKING:
    import openvino
    from sentence_transformers import SentenceTransformer

_log = logging.getLogger(__name__)

FEWEST_TEXTS = 256
"""With fewer texts, torch is done sooner: converting and compiling MiniLM takes about a second,
and bfloat16 in torch 4 milliseconds a text more."""

TOKENS_PER_BATCH = 1024
"""Most tokens of a batch. One thread computes a batch, and what 1,024 tokens need stays in its
cache: MiniLM ran 1.15 times as fast as with batches of 32 long texts."""

_LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.999, "int8": 0.95}
_CHECKED_TEXTS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledEncoder:
    """A model compiled for this processor; threads may share it.

    Every batch is computed by one thread, so its vectors do not depend on the number of threads.

    Attributes:
      model: takes `features` by position, returns (B, D) float32.
      features: names of the inputs.
    """

    model: openvino.CompiledModel
    features: tuple[str, ...]

    def run(self, batches: Iterable[TokenBatch], vectors: np.ndarray) -> None:
        """Encodes batches of tokens, as many at once as torch may use threads.

        Args:
          batches: of N texts.
          vectors: (N, D) float32, filled in.
        """
        import torch

        remaining = iter(batches)
        one_at_a_time = threading.Lock()

        def work() -> None:
            request = self.model.create_infer_request()
            while True:
                with one_at_a_time:
                    batch = next(remaining, None)
                if batch is None:
                    return
                inputs = [batch.features[name] for name in self.features]
                vectors[batch.rows] = request.infer(inputs)[0]

        # Not openvino.AsyncInferQueue: its callbacks need the interpreter in OpenVINO's threads.
        threads = min(torch.get_num_threads(), usable_cores())
        with ThreadPoolExecutor(threads) as workers:
            for worker in [workers.submit(work) for _ in range(threads)]:
                worker.result()


def openvino_limits(config: EncoderConfig) -> BatchLimits:
    """Returns how much shares a batch."""
    return BatchLimits(config.batch_size, TOKENS_PER_BATCH)


def why_not_openvino(config: EncoderConfig, model: SentenceTransformer) -> str | None:
    """Returns why a model that takes nothing but tokens runs in torch, None if it need not.

    Args:
      config: of the encoder.
      model: any loaded one.
    """
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Normalize,
        Pooling,
        Transformer,
    )

    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed"
    if device_of(config) != "cpu":
        return "the device is a GPU"
    if config.trust_remote_code:
        return "the model runs code of its own (encoder.trust_remote_code)"
    for module in model:
        if type(module) not in (Transformer, Pooling, Dense, Normalize):
            return f"the model has a module {type(module).__name__}"
    return None


def compile_encoder(config: EncoderConfig, tokenizer: TextTokenizer) -> CompiledEncoder | str:
    """Converts and compiles a model that `why_not_openvino` has nothing against.

    A few texts are encoded both ways, so that an operation that was converted wrongly is found.

    Args:
      config: of the encoder.
      tokenizer: of the model.

    Returns:
      The compiled model, or why there is none.
    """
    openvino = import_openvino()
    model = load_model(config, lower=False)
    precision = _precision(config)
    texts = calibration_texts()
    checked = texts[:_CHECKED_TEXTS]
    batches = list(token_batches(checked, tokenizer, openvino_limits(config)))
    converted = _convert(model, batches[0].features)
    if isinstance(converted, str):
        return converted
    if precision == "int8":
        converted = _quantize(converted, texts, tokenizer)
    compiled = openvino.Core().compile_model(converted, "CPU", compile_options(config))
    encoder = CompiledEncoder(compiled, tuple(batches[0].features))
    expected, got = np.empty((2, len(checked), model.get_embedding_dimension() or 0), np.float32)
    run_torch(model, batches, expected)
    encoder.run(batches, got)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    least = float(((expected * got).sum(1) / norms).min())
    if not least >= _LEAST_COSINE[precision]:
        return f"its vectors are not those of torch, cosine {least:.4f}"
    _log.info("embed    OpenVINO, %s, cosine to float32 at least %.5f", precision, least)
    return encoder


def import_openvino() -> ModuleType:
    """Imports OpenVINO, ready for use by several threads.

    It is kept, and nncf too, from telling Intel of every import and call. They do by default, and
    do without where `openvino_telemetry` is missing.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    openvino = importlib.import_module("openvino")
    # Its bindings look numpy up when an array is first made of a tensor. When two threads are first
    # at once, one waits for the lookup with the interpreter's lock in its hands, and the other for
    # that lock in the middle of the lookup, for ever.
    assert openvino.Tensor(np.zeros(1, np.float32)).data.size
    return openvino


def compile_options(config: EncoderConfig) -> dict[str, Any]:
    """Returns OpenVINO's options for an encoder on this machine."""
    return {
        "INFERENCE_PRECISION_HINT": "f32" if _precision(config) == "float32" else "bf16",
        "NUM_STREAMS": str(usable_cores()),
        "INFERENCE_NUM_THREADS": usable_cores(),
        "ENABLE_CPU_PINNING": False,  # two worker processes would share the first core
    }


def _precision(config: EncoderConfig) -> str:
    if config.precision == "int8":
        return "int8"
    return "bfloat16" if lowers(config) else "float32"


def _convert(model: SentenceTransformer, features: dict[str, np.ndarray]) -> openvino.Model | str:
    """Traces a model with the features of some texts; returns why not where that fails."""
    import torch
    import transformers
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    names = tuple(features)

    class Traced(torch.nn.Module):
        """The model with its features as positional arguments."""

        def __init__(self) -> None:
            super().__init__()
            self.modules_in_turn = torch.nn.ModuleList(model)

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            computed = dict(zip(names, values, strict=True))
            for module in self.modules_in_turn:
                computed = module(computed)
            return computed["sentence_embedding"]

    example = tuple(torch.from_numpy(features[name]) for name in names)
    verbosity = transformers.utils.logging.get_verbosity()
    try:
        transformers.utils.logging.set_verbosity_error()  # tracing reads deprecated attributes
        with warnings.catch_warnings(), torch.no_grad():
            # Branches on shapes that are the same for every text; the vectors are checked.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(Traced().eval(), example, strict=False, check_trace=False)
        # openvino.convert_model traces the model three times, and takes six times as long.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # must outlive the conversion
        converted = frontend.convert(frontend.load(decoder))
    except Exception as error:  # OpenVINO's failures have no base class of their own
        return f"it cannot be converted ({str(error).strip().splitlines()[-1]})"
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    if len(converted.inputs) != len(names):
        return f"it takes {len(converted.inputs)} of {', '.join(names)}"
    return converted


def _quantize(model: openvino.Model, texts: list[str], tokenizer: TextTokenizer) -> openvino.Model:
    """Returns the model with its matrix products in int8, but for those that narrow.

    The scales of activations are static, measured on the same texts everywhere: dynamic ones
    would change a vector with the texts it shares a batch with.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    singles = token_batches(texts, tokenizer, BatchLimits(1))
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars that nothing turns off
        return nncf.quantize(
            model,
            nncf.Dataset([list(batch.features.values()) for batch in singles]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(texts),
            ignored_scope=nncf.IgnoredScope(names=_narrowing(model), validate=False),
        )


def _narrowing(model: openvino.Model) -> list[str]:
    """Returns the matrix products that map vectors to shorter ones.

    In a feed-forward network that is the second one. Its inputs have rare large values, which one
    scale spoils: without it in int8, MiniLM's cosine to float32 is .9987 instead of .9966, at 0.9
    of the speed.
    """
    names = []
    for operation in model.get_ops():
        if operation.get_type_name() == "MatMul":
            weights = operation.input_value(1).get_partial_shape()
            if weights.is_static and len(weights) == 2:
                rows, columns = weights.to_shape()
                if not operation.get_attributes()["transpose_b"]:
                    rows, columns = columns, rows
                if rows < columns:
                    names.append(operation.get_friendly_name())
    return names
