"""Compiled encoders kept on this machine, so that the next process need not make them again.

Importing sentence-transformers takes 5 s of processor time, and loading, converting, compiling and
checking MiniLM 3 more; reading it back compiled takes 0.2. What is kept is the compiled model as
OpenVINO exports it, and the model's tokenizer, if its tokens alone are those of the model. Vectors
are the same to the last bit.

Encoders are kept in `encoders/` under $SEMID_CACHE, else under `semid/` in $XDG_CACHE_HOME or in
`~/.cache`; an empty SEMID_CACHE keeps none. If anything is wrong with what is there, or with the
folder, the encoder is made anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.config import EncoderConfig, fingerprint
from semid_transforms.calibration import calibration_texts
from semid_transforms.encoder_batches import TextTokenizer, Tokens
from semid_transforms.encoder_identity import identify_encoder
from semid_transforms.encoder_openvino import CompiledEncoder, compile_options, import_openvino
from semid_transforms.encoder_torch import device_of, lowers

if TYPE_CHECKING:
    import tokenizers

_log = logging.getLogger(__name__)

_FORMAT = 1
_MODEL, _TOKENIZER, _ABOUT = "model.blob", "tokenizer.json", "encoder.json"
_MOST_KEPT = 4
"""Encoders kept: what older releases or models left behind must not fill a disk."""

_PACKAGES = ("openvino", "nncf", "sentence-transformers", "tokenizers", "torch", "transformers")
_HARD_TEXTS = (
    "",
    " ",
    "\n\t",
    "  Wide  SPACE ",
    "ÀÉÎ ñ ß Ω",
    "e\u0301",
    "日本語 한국어",
    "🫖",
    "\0x",
    "a" * 999,
)


@dataclasses.dataclass(frozen=True, eq=False)
class ReadyEncoder:
    """An encoder that can encode without its sentence-transformers model.

    Attributes:
      compiled: the model.
      tokenizer: its tokenizer.
      max_length: most tokens of a text.
      embedding_dim: length D of an embedding.
    """

    compiled: CompiledEncoder
    tokenizer: TextTokenizer
    max_length: int
    embedding_dim: int


def cache_folder() -> Path | None:
    """Returns where encoders are kept, None where they are not to be."""
    named = os.environ.get("SEMID_CACHE")
    if named is not None:
        return Path(named, "encoders") if named else None
    parent = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home
        return Path(parent or Path.home() / ".cache", "semid", "encoders")
    return None


def read_encoder(config: EncoderConfig) -> ReadyEncoder | None:
    """Returns an encoder that was kept for a configuration on a machine like this, if one was."""
    folder = _folder_of(config)
    if folder is None or not folder.is_dir():
        return None
    try:
        about = json.loads((folder / _ABOUT).read_text())
        if about["sha256"] != {name: _sha256(folder / name) for name in (_MODEL, _TOKENIZER)}:
            raise ValueError("its files are not as they were written")
        tokenizer = _tokenizer_of((folder / _TOKENIZER).read_text())
        openvino = import_openvino()
        with (folder / _MODEL).open("rb") as blob:
            model = openvino.Core().import_model(blob.read(), "CPU", compile_options(config))
        os.utime(folder)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        _log.info("embed    made anew, the encoder in %s cannot be used: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    features = tuple(about["features"])
    return ReadyEncoder(
        CompiledEncoder(model, features),
        TextTokenizer(_tokenize(tokenizer, features), about["padding"], about["left"]),
        about["max_length"],
        about["embedding_dim"],
    )


def keep_encoder(config: EncoderConfig, ready: ReadyEncoder, fast: tokenizers.Tokenizer) -> None:
    """Keeps an encoder, unless its tokens come from more than its fast tokenizer.

    Args:
      config: that it was made for.
      ready: made with sentence-transformers.
      fast: the tokenizer inside `ready.tokenizer`, set up as for its last texts.
    """
    folder = _folder_of(config)
    if folder is None:
        return
    texts = [*calibration_texts(), *_HARD_TEXTS]
    expected = ready.tokenizer.tokenize(texts)
    definition = fast.to_str()
    if _tokenize(_tokenizer_of(definition), ready.compiled.features)(texts) != expected:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
            made = Path(temporary, "encoder")
            made.mkdir()
            (made / _TOKENIZER).write_text(definition)
            (made / _MODEL).write_bytes(ready.compiled.model.export_model().getvalue())
            about = {
                "model": config.model,
                "sha256": {name: _sha256(made / name) for name in (_MODEL, _TOKENIZER)},
                "features": ready.compiled.features,
                "padding": ready.tokenizer.padding,
                "left": ready.tokenizer.left,
                "max_length": ready.max_length,
                "embedding_dim": ready.embedding_dim,
            }
            (made / _ABOUT).write_text(json.dumps(about, indent=2))
            made.rename(folder)  # another process may have been first, with the same encoder
        kept = sorted(folder.parent.glob("[!.]*"), key=lambda each: each.stat().st_mtime)
        for old in kept[:-_MOST_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        _log.info("embed    the encoder is not kept in %s: %s", folder, error)


def _folder_of(config: EncoderConfig) -> Path | None:
    """Returns the folder of a configuration's encoder on machines like this one.

    Its name is a digest of all that decides what was compiled: model, settings, packages, processor
    and number of cores.
    """
    folder = cache_folder()
    if folder is None or config.backend == "torch" or device_of(config) != "cpu":
        return None
    if config.trust_remote_code:
        return None
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    key: dict[str, Any] = {
        "format": _FORMAT,
        "encoder": identify_encoder(config).fingerprint,
        "options": {name: str(value) for name, value in compile_options(config).items()},
        "lowers": lowers(config),
        "packages": versions,
        "processor": [platform.machine(), _processor_flags()],
    }
    return folder / fingerprint(key)[:32]


def _processor_flags() -> str:
    """Returns what the processor can do; compiled code may use all of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _tokenizer_of(definition: str) -> tokenizers.Tokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import tokenizers

    return tokenizers.Tokenizer.from_str(definition)


def _tokenize(
    tokenizer: tokenizers.Tokenizer, features: tuple[str, ...]
) -> Callable[[list[str]], Tokens]:
    """Returns a function that maps texts to the values of the features."""
    attributes = {"input_ids": "ids", "attention_mask": "attention_mask"}
    attributes["token_type_ids"] = "type_ids"

    def tokenize(texts: list[str]) -> Tokens:
        encodings = tokenizer.encode_batch(texts)
        return {name: [getattr(each, attributes[name]) for each in encodings] for name in features}

    return tokenize


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
