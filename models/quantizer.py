"""The interface every tokenizer implements, and what resolution and search need from it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np


class Quantizer(abc.ABC):
    """Turns content embeddings into code tuples.

    Shapes: N rows, D `embedding_dim`, L `num_levels`, K_l `codebook_sizes[l]`, d `latent_dim`.
    Embeddings are float32 and already valid (finite, non-zero); codes are int32.

    A fitted quantizer is a pure function of its saved files: `encode` gives the same codes for a
    row whatever the rows around it, the batch size, the thread count or the device, because
    near-ties are decided in float64 and exact ties by the lowest code.

    Attributes:
      kind: the name in the configuration, `rqvae` and so on.
      hierarchical: True when codes go coarse to fine, so that prefixes mean something.
      quantizes_embeddings: True when the latent is the embedding itself.
    """

    kind: ClassVar[str]
    hierarchical: ClassVar[bool]
    quantizes_embeddings: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def embedding_dim(self) -> int:
        """Length D of the embeddings it was fitted on."""

    @property
    @abc.abstractmethod
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """L float32 codebooks of shape (K_l, d) in latent space, coarse to fine."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes per level, coarse to fine."""
        return tuple(len(codebook) for codebook in self.codebooks)

    @property
    def num_levels(self) -> int:
        """Number of codes per item, L."""
        return len(self.codebooks)

    @abc.abstractmethod
    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to the (N, d) float32 vectors that are quantized.

        Computed in float64 and rounded once, so the result does not depend on the batch.
        For a residual quantizer the residual before level l is
        `latents - sum(codebooks[j][codes[:, j]] for j < l)`.
        """

    @abc.abstractmethod
    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to (N, L) int32 codes.

        Raises:
          ValueError: D differs from `embedding_dim`, or a value is not finite.
        """

    def encode_with_latents(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns `encode`, and (N, d) float32 latents as collision resolution takes them.

        They are `latents`, or what is left of them when they are rounded so coarsely that float32
        settles most; they depend on the batch no more than codes do.
        """
        return self.encode(embeddings), self.latents(embeddings)

    @abc.abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32 reconstructed embeddings."""

    def nearly_decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to a new (N, D) float32 array, `decode` within float32 accuracy.

        Its last bits may depend on the rows around a row and on the device.
        """
        return self.decode(codes)

    @abc.abstractmethod
    def state(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """Returns (JSON configuration, named arrays) from which `from_state` rebuilds it."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, config: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuilds the quantizer from what `state` returned."""
