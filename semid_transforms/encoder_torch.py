"""Sentence encoders in PyTorch: any model, any device."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from schemas.config import EncoderConfig
from semid_transforms.encoder_batches import TokenBatch
from semid_transforms.encoder_identity import model_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load_model(config: EncoderConfig, *, lower: bool) -> SentenceTransformer:
    """Loads a model from its local folder.

    Args:
      config: names model, device and maximum length.
      lower: in bfloat16 instead of float32.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.utils.logging.disable_progress_bar()
    model = SentenceTransformer(
        str(model_folder(config.model)),
        device=device_of(config),
        trust_remote_code=config.trust_remote_code,
        local_files_only=True,
        model_kwargs={
            "dtype": torch.bfloat16 if lower else torch.float32,
            "use_safetensors": True,
        },
    )
    if config.max_length is not None:
        model.max_seq_length = config.max_length
    return model.eval()


def device_of(config: EncoderConfig) -> str:
    """Returns `cuda` or `cpu`."""
    if config.device != "auto":
        return config.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def lowers(config: EncoderConfig) -> bool:
    """True when the configuration asks for bfloat16, or the device multiplies it in hardware.

    Elsewhere bfloat16 is slower than float32.
    """
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device_of(config) == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported())
    if platform.machine() in ("aarch64", "arm64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def run_torch(
    model: SentenceTransformer, batches: Iterable[TokenBatch], vectors: np.ndarray
) -> None:
    """Encodes batches of tokens.

    Args:
      model: loaded.
      batches: of N texts.
      vectors: (N, D) float32, filled in.
    """
    import torch

    with torch.inference_mode():
        for batch in batches:
            features = {
                name: torch.from_numpy(values).to(model.device)
                for name, values in batch.features.items()
            }
            vectors[batch.rows] = model(features)["sentence_embedding"].float().cpu().numpy()
