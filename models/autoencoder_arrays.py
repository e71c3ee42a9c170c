"""The named arrays a quantized autoencoder is saved as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.dense import DenseNetwork


def autoencoder_arrays(
    encoder: DenseNetwork, decoder: DenseNetwork, codebooks: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns float32 arrays named `encoder...`, `decoder...` and `codebooks.<level>`.

    Args:
      encoder: maps embeddings (D) to latents (d).
      decoder: maps quantized latents (d) to embeddings (D).
      codebooks: L arrays (K_l, d).

    Raises:
      ValueError: the three differ in d.
    """
    widths = {encoder.out_dim, decoder.in_dim, *(book.shape[1] for book in codebooks)}
    if len(widths) != 1:
        raise ValueError(f"encoder, codebooks and decoder differ in latent_dim: {widths}")
    arrays = encoder.arrays("encoder") | decoder.arrays("decoder")
    return arrays | {f"codebooks.{level}": book for level, book in enumerate(codebooks)}


def read_autoencoder(
    arrays: Mapping[str, np.ndarray],
) -> tuple[DenseNetwork, DenseNetwork, tuple[np.ndarray, ...]]:
    """Reads encoder, decoder and codebooks from what `autoencoder_arrays` returned.

    Other arrays may be among them.
    """
    levels = sum(name.startswith("codebooks.") for name in arrays)
    return (
        DenseNetwork.from_arrays(arrays, "encoder"),
        DenseNetwork.from_arrays(arrays, "decoder"),
        tuple(arrays[f"codebooks.{level}"] for level in range(levels)),
    )
