"""RQ-VAE: residual codebooks on the latent of an autoencoder."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from models.dense import DenseNetwork, DenseTensors
from models.residual import ResidualQuantizer, checked_embeddings


class Rqvae(ResidualQuantizer):
    """A fitted RQ-VAE. Centring and scaling of the input are part of its two networks.

    Args:
      encoder: maps embeddings (D) to latents (d).
      decoder: maps quantized latents (d) to embeddings (D).
      codebooks: L float32 arrays of shape (K_l, d).
    """

    kind: ClassVar[str] = "rqvae"

    def __init__(
        self, encoder: DenseNetwork, decoder: DenseNetwork, codebooks: tuple[np.ndarray, ...]
    ) -> None:
        widths = {encoder.out_dim, decoder.in_dim, *(book.shape[1] for book in codebooks)}
        if len(widths) != 1:
            raise ValueError(f"encoder, codebooks and decoder differ in latent_dim: {widths}")
        self._encoder = encoder
        self._decoder = decoder
        self._codebooks = codebooks

    @property
    def embedding_dim(self) -> int:
        """Length D of the embeddings it was fitted on."""
        return self._encoder.in_dim

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """L float32 codebooks of shape (K_l, d) in latent space, coarse to fine."""
        return self._codebooks

    @functools.cached_property
    def _fast_encoder(self) -> DenseTensors:
        return self._encoder.tensors(self._device)

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to (N, d) float32 latents; see `Quantizer.latents`."""
        return self._encoder.exact(checked_embeddings(embeddings, self.embedding_dim))

    def _fast_latents(self, rows: torch.Tensor) -> torch.Tensor:
        return self._fast_encoder(rows)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32 reconstructed embeddings."""
        return self._decoder.exact(self.quantized(codes))

    def state(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """Returns the JSON configuration and the named float32 arrays."""
        arrays = self._encoder.arrays("encoder") | self._decoder.arrays("decoder")
        arrays |= {f"codebooks.{level}": book for level, book in enumerate(self._codebooks)}
        return {"codebook_sizes": list(self.codebook_sizes)}, arrays

    @classmethod
    def from_state(cls, config: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> Rqvae:
        """Rebuilds the quantizer from what `state` returned."""
        levels = sum(name.startswith("codebooks.") for name in arrays)
        return cls(
            DenseNetwork.from_arrays(dict(arrays), "encoder"),
            DenseNetwork.from_arrays(dict(arrays), "decoder"),
            tuple(arrays[f"codebooks.{level}"] for level in range(levels)),
        )
