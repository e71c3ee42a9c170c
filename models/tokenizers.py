"""Fits a tokenizer by name, and turns it into files and back.

Commands that neither fit nor encode read configurations and file names here, so what needs torch is
imported where it is used: torch takes 1.7 s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from models.config import MocConfig, PqConfig, RqkmeansConfig, RqvaeConfig, VqConfig
from models.quantizer import Quantizer

if TYPE_CHECKING:
    from models.autoencoder_training import Progress, TrainingInputs

FORMAT_VERSION = 1
CONFIG_FILE, MODEL_FILE, METRICS_FILE = "config.json", "model.safetensors", "metrics.json"

WARM_KINDS = ("rqvae", "moc", "rqkmeans")
"""Tokenizers that can go on from an earlier one of their kind."""

QuantizerConfig = RqvaeConfig | RqkmeansConfig | MocConfig | VqConfig | PqConfig


def quantizer_config(kind: str) -> type[QuantizerConfig]:
    """Returns the configuration class of a kind of tokenizer.

    Raises:
      ValueError: there is no such kind.
    """
    match kind:
        case "rqvae":
            return RqvaeConfig
        case "rqkmeans":
            return RqkmeansConfig
        case "moc":
            return MocConfig
        case "vq":
            return VqConfig
        case "pq":
            return PqConfig
    raise ValueError(f"quantizer kind {kind!r} is unknown: use rqvae, rqkmeans, moc, vq or pq")


def quantizer_class(kind: str) -> type[Quantizer]:
    """Returns the class of a fitted tokenizer of a kind.

    Raises:
      ValueError: there is no such kind.
    """
    match kind:
        case "rqvae":
            from models.rqvae import Rqvae

            return Rqvae
        case "rqkmeans":
            from models.rqkmeans import Rqkmeans

            return Rqkmeans
        case "moc":
            from models.moc import Moc

            return Moc
        case "vq":
            from models.vq import Vq

            return Vq
        case "pq":
            from models.pq import Pq

            return Pq
    raise ValueError(f"quantizer kind {kind!r} is unknown: use rqvae, rqkmeans, moc, vq or pq")


def fit_quantizer(
    config: QuantizerConfig,
    embeddings: np.ndarray,
    progress: Progress | None = None,
    inputs: TrainingInputs | None = None,
    start: Quantizer | None = None,
) -> tuple[Quantizer, dict[str, object]]:
    """Fits the tokenizer that a configuration describes.

    The same rows in the same order, configuration and seed give the same files on one machine,
    so the caller brings the rows into a canonical order, for example by content hash.

    Args:
      config: one of the configuration classes; its class says which tokenizer.
      embeddings: (N, D) float32, finite, N at least 1.
      progress: called as (step, steps, scalars) while a neural tokenizer trains.
      inputs: tags, a stream of more rows and checkpoints, for neural tokenizers.
      start: a tokenizer to go on from, see `check_start`.

    Returns:
      The quantizer, and a report ready for JSON: rows, configuration and the last scalars. It is
      kept beside the tokenizer, so it holds nothing that another fit of the same would not say.

    Raises:
      ValueError: no rows, rows that are not finite, or a start of another kind or shape.
    """
    from models.autoencoder_training import TrainingInputs
    from models.moc import Moc, fit_moc
    from models.pq import fit_pq
    from models.residual import checked_embeddings
    from models.rqkmeans import fit_rqkmeans
    from models.rqvae import Rqvae, fit_rqvae
    from models.vq import fit_vq

    if np.ndim(embeddings) != 2 or not len(embeddings):
        raise ValueError(
            f"fitting needs embeddings of shape (N, D) with at least 1 row, got "
            f"{np.shape(embeddings)}"
        )
    rows = np.require(checked_embeddings(embeddings, np.shape(embeddings)[1]), requirements="W")
    scalars: dict[str, float] = {}
    quantizer: Quantizer
    if start is not None:
        check_start(config, start, rows.shape[1])
    if isinstance(start, Rqvae | Moc):
        inputs = dataclasses.replace(inputs or TrainingInputs(), start=start.autoencoder)
    match config:
        case RqvaeConfig():
            quantizer, scalars = fit_rqvae(config, rows, progress, inputs)
        case MocConfig():
            quantizer, scalars = fit_moc(config, rows, progress, inputs)
        case RqkmeansConfig():
            quantizer = fit_rqkmeans(config, rows, () if start is None else start.codebooks)
        case VqConfig():
            quantizer = fit_vq(config, rows)
        case PqConfig():
            quantizer = fit_pq(config, rows)
    report: dict[str, object] = {
        "rows": len(rows),
        "config": dataclasses.asdict(config),
        "last": scalars,
    }
    return quantizer, report


def check_start(config: QuantizerConfig, start: Quantizer, dim: int) -> None:
    """Refuses a tokenizer that a fit cannot go on from.

    Codebook sizes and levels may differ: a level of another size, or a new one, starts from
    k-means.

    Args:
      config: of the new tokenizer.
      start: the old one.
      dim: length of the embeddings to fit on.

    Raises:
      ValueError: another kind, embedding length or network; the message names both sides.
    """
    from models.moc import Moc
    from models.rqvae import Rqvae

    if start.kind not in WARM_KINDS or not isinstance(config, quantizer_config(start.kind)):
        raise ValueError(
            f"a {type(config).__name__.removesuffix('Config').lower()} cannot start from a "
            f"tokenizer of kind {start.kind}: both must be {', or both '.join(WARM_KINDS)}"
        )
    if start.embedding_dim != dim:
        raise ValueError(
            f"embeddings have {dim} values, the tokenizer to start from takes {start.embedding_dim}"
        )
    if isinstance(config, RqvaeConfig | MocConfig) and isinstance(start, Rqvae | Moc):
        shape = start.autoencoder.shape
        wanted = (config.hidden, config.latent_dim, config.shortcut)
        if shape != wanted:
            raise ValueError(
                f"hidden, latent_dim and shortcut are {wanted}, those of the tokenizer to start "
                f"from {shape}"
            )


def to_files(quantizer: Quantizer, metrics: Mapping[str, object]) -> dict[str, bytes]:
    """Writes a tokenizer as named files.

    Args:
      quantizer: fitted.
      metrics: anything ready for JSON; not part of the tokenizer's identity.

    Returns:
      `config.json`, `model.safetensors` and `metrics.json` as bytes. The same quantizer gives
      the same first two byte for byte.
    """
    config, arrays = quantizer.state()
    document = {
        "format_version": FORMAT_VERSION,
        "kind": quantizer.kind,
        "embedding_dim": quantizer.embedding_dim,
        "codebook_sizes": list(quantizer.codebook_sizes),
        **config,
    }
    named = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    return {
        CONFIG_FILE: _json(document),
        MODEL_FILE: safetensors.numpy.save(named),
        METRICS_FILE: _json(dict(metrics)),
    }


def tokenizer_id(files: Mapping[str, bytes]) -> str:
    """Returns the sha256 (hex) of configuration and model, each behind its name and length."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, MODEL_FILE):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    return digest.hexdigest()


def read_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Reads what `to_files` wrote about a tokenizer, without building it.

    Returns:
      `kind`, `embedding_dim`, `codebook_sizes`, and what else its kind has.

    Raises:
      ValueError: a file is missing, or was written by another version or kind.
    """
    missing = [name for name in (CONFIG_FILE, MODEL_FILE) if name not in files]
    if missing:
        raise ValueError(f"tokenizer lacks {', '.join(missing)}, it has {sorted(files)}")
    config: dict[str, Any] = json.loads(files[CONFIG_FILE])
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"tokenizer has format version {config.get('format_version')!r}, this release reads "
            f"{FORMAT_VERSION}"
        )
    quantizer_config(config["kind"])
    return config


def from_files(files: Mapping[str, bytes]) -> Quantizer:
    """Rebuilds the tokenizer that `to_files` wrote.

    Raises:
      ValueError: a file is missing, or was written by another version or kind.
    """
    config = read_config(files)
    arrays = safetensors.numpy.load(files[MODEL_FILE])
    return quantizer_class(config["kind"]).from_state(config, arrays)


def _json(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
