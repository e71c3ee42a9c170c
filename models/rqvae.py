"""RQ-VAE: residual codebooks on the latent of an autoencoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from models.arithmetic import Array, default_arithmetic
from models.config import RqvaeConfig
from models.residual import ResidualQuantizer, checked_embeddings
from models.rounded_latents import RoundedLatents
from models.tag_heads import TagHeads, TagPrediction
from models.trained_autoencoder import TrainedAutoencoder

if TYPE_CHECKING:
    from models.autoencoder_training import Progress, TrainingInputs


class Rqvae(ResidualQuantizer):
    """A fitted RQ-VAE. Centring and scaling of the input are part of its two networks.

    Args:
      autoencoder: its networks and codebooks.
      beam: code tuples kept per level when encoding; 1 is greedy.
      tags: tag classifiers, when it was fitted with tags.
    """

    kind: ClassVar[str] = "rqvae"

    def __init__(
        self, autoencoder: TrainedAutoencoder, beam: int = 1, tags: TagHeads | None = None
    ) -> None:
        super().__init__(beam)
        self.autoencoder = autoencoder
        self._tags = tags

    @property
    def embedding_dim(self) -> int:
        """Length D of the embeddings it was fitted on."""
        return self.autoencoder.embedding_dim

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """L float32 codebooks of shape (K_l, d) in latent space, coarse to fine."""
        return self.autoencoder.codebooks

    @functools.cached_property
    def _fast_encoder(self) -> Callable[[Array], Array]:
        return default_arithmetic().network(self.autoencoder.encoder)

    @functools.cached_property
    def _fast_decoder(self) -> Callable[[Array], Array]:
        return default_arithmetic().network(self.autoencoder.decoder)

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to (N, d) float32 latents; see `Quantizer.latents`."""
        return self.autoencoder.encoder.exact(checked_embeddings(embeddings, self.embedding_dim))

    def encode_with_latents(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (N, L) int32 codes and (N, d) float32 latents, rounded; see `Quantizer`."""
        encoder = self.autoencoder.encoder
        rounded = RoundedLatents((len(embeddings), encoder.out_dim), encoder.grid)
        return self._search(embeddings, rounded), rounded.values

    def _fast_latents(self, rows: Array) -> Array:
        return self._fast_encoder(rows)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32 reconstructed embeddings."""
        return self.autoencoder.decoder.exact(self.quantized(codes))

    def nearly_decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32 by float32 products; see `Quantizer`."""
        arithmetic = default_arithmetic()
        latents = self._codewords.sums(arithmetic.put(codes))
        return arithmetic.get(self._fast_decoder(latents))

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
        arrays = self.autoencoder.arrays()
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
        return cls(TrainedAutoencoder.from_arrays(arrays), beam, tags)


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
    from models.autoencoder_training import train_autoencoder  # imports torch

    trained = train_autoencoder(config, embeddings, progress, inputs)
    return Rqvae(trained.autoencoder, config.beam, trained.tags), trained.scalars
