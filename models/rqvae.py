"""RQ-VAE: residual codebooks on the latent of an autoencoder."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch

from models.autoencoder_arrays import autoencoder_arrays, read_autoencoder
from models.autoencoder_training import Progress, TrainingInputs, train_autoencoder
from models.config import RqvaeConfig
from models.dense import DenseNetwork, DenseTensors
from models.residual import ResidualQuantizer, checked_embeddings
from models.tag_supervision import TagHeads, TagPrediction
from models.warm_start import TrainedAutoencoder


class Rqvae(ResidualQuantizer):
    """A fitted RQ-VAE. Centring and scaling of the input are part of its two networks.

    Args:
      encoder: maps embeddings (D) to latents (d).
      decoder: maps quantized latents (d) to embeddings (D).
      codebooks: L float32 arrays of shape (K_l, d).
      beam: code tuples kept per level when encoding; 1 is greedy.
      tags: tag classifiers, when it was fitted with tags.
    """

    kind: ClassVar[str] = "rqvae"

    def __init__(
        self,
        encoder: DenseNetwork,
        decoder: DenseNetwork,
        codebooks: tuple[np.ndarray, ...],
        beam: int = 1,
        tags: TagHeads | None = None,
    ) -> None:
        super().__init__(beam)
        self._encoder = encoder
        self._decoder = decoder
        self._codebooks = codebooks
        self._tags = tags

    @property
    def embedding_dim(self) -> int:
        """Length D of the embeddings it was fitted on."""
        return self._encoder.in_dim

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """L float32 codebooks of shape (K_l, d) in latent space, coarse to fine."""
        return self._codebooks

    @property
    def starting_point(self) -> TrainedAutoencoder:
        """What another fit can go on from."""
        return TrainedAutoencoder(self._encoder, self._decoder, self._codebooks)

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

    def predict_tags(self, embeddings: np.ndarray) -> TagPrediction:
        """Predicts a tag path with a confidence per depth, from the codes alone.

        Args:
          embeddings: (N, D).

        Raises:
          ValueError: it was fitted without tags.
        """
        return self.predict_tags_of_codes(self.encode(embeddings))

    def predict_tags_of_codes(self, codes: np.ndarray) -> TagPrediction:
        """Predicts a tag path with a confidence per depth for (N, L) codes.

        Raises:
          ValueError: it was fitted without tags.
        """
        if self._tags is None:
            raise ValueError("this tokenizer was fitted without tags, so it predicts none")
        return self._tags.predict(self.prefix_sums(codes))

    def state(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """Returns the JSON configuration and the named float32 arrays."""
        arrays = autoencoder_arrays(self._encoder, self._decoder, self._codebooks)
        config: dict[str, object] = {"beam": self._beam}
        if self._tags is not None:
            arrays |= self._tags.arrays()
            config["tags"] = [list(names) for names in self._tags.names]
        return config, arrays

    @classmethod
    def from_state(cls, config: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuilds the quantizer from what `state` returned."""
        names, beam = config.get("tags"), config["beam"]
        if not isinstance(beam, int) or not isinstance(names, list | None):
            raise ValueError(f"not the configuration of an rqvae: {dict(config)}")
        tags = None if names is None else TagHeads.from_arrays(names, arrays)
        return cls(*read_autoencoder(arrays), beam, tags)


def fit_rqvae(
    config: RqvaeConfig,
    embeddings: np.ndarray,
    progress: Progress | None = None,
    inputs: TrainingInputs | None = None,
) -> tuple[Rqvae, dict[str, float]]:
    """Trains an RQ-VAE; see `train_autoencoder`.

    Returns:
      The quantizer and what was measured on held-out rows.
    """
    trained = train_autoencoder(config, embeddings, progress, inputs)
    model = trained.autoencoder
    quantizer = Rqvae(model.encoder, model.decoder, model.codebooks, config.beam, trained.tags)
    return quantizer, trained.scalars
