"""Mixture of codes: independent codebooks on one latent (2410.09560)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from models.arithmetic import Array, Codewords, default_arithmetic
from models.config import LossConfig, MocConfig, RqvaeConfig
from models.nearest import exact_parallel_codes, search_codes
from models.quantizer import Quantizer
from models.residual import checked_codes, checked_embeddings
from models.trained_autoencoder import TrainedAutoencoder

if TYPE_CHECKING:
    from models.autoencoder_training import Progress, TrainingInputs


class Moc(Quantizer):
    """Each codebook quantizes the whole latent; reconstruction averages their codewords.

    The codes of an item have no order, so prefixes mean nothing.

    Args:
      autoencoder: its networks and codebooks; the decoder takes averaged codewords.
    """

    kind: ClassVar[str] = "moc"
    hierarchical: ClassVar[bool] = MocConfig.hierarchical

    def __init__(self, autoencoder: TrainedAutoencoder) -> None:
        self.autoencoder = autoencoder

    @property
    def embedding_dim(self) -> int:
        """Length D of the embeddings it was fitted on."""
        return self.autoencoder.embedding_dim

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """L float32 codebooks of shape (K_l, d) in latent space, in no order."""
        return self.autoencoder.codebooks

    @functools.cached_property
    def _codewords(self) -> Codewords:
        return default_arithmetic().codewords(self.codebooks)

    @functools.cached_property
    def _fast_encoder(self) -> Callable[[Array], Array]:
        return default_arithmetic().network(self.autoencoder.encoder)

    @functools.cached_property
    def _fast_decoder(self) -> Callable[[Array], Array]:
        return default_arithmetic().network(self.autoencoder.decoder)

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to the (N, d) float32 vectors every codebook quantizes."""
        return self.autoencoder.encoder.exact(checked_embeddings(embeddings, self.embedding_dim))

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """Maps (N, D) embeddings to (N, L) int32 codes; see `Quantizer.encode`."""
        embeddings = checked_embeddings(embeddings, self.embedding_dim)
        arithmetic = default_arithmetic()

        def fast(block: slice) -> tuple[np.ndarray, np.ndarray]:
            latents = self._fast_encoder(arithmetic.put(embeddings[block]))
            codes, near_tie = self._codewords.parallel_codes(latents)
            return arithmetic.get(codes), arithmetic.get(near_tie)

        def exact(chosen: np.ndarray) -> np.ndarray:
            return exact_parallel_codes(self.latents(embeddings[chosen]), self.codebooks)

        return search_codes((len(embeddings), self.num_levels), fast, exact)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32: the decoded mean of their codewords."""
        codes = checked_codes(codes, self.codebook_sizes)
        total = np.zeros((len(codes), self.autoencoder.encoder.out_dim))
        for level, book in enumerate(self.codebooks):
            total += book[codes[:, level]]
        return self.autoencoder.decoder.exact((total / self.num_levels).astype(np.float32))

    def nearly_decode(self, codes: np.ndarray) -> np.ndarray:
        """Maps (N, L) codes to (N, D) float32 by float32 products; see `Quantizer`."""
        arithmetic = default_arithmetic()
        latents = self._codewords.sums(arithmetic.put(codes)) / self.num_levels
        return arithmetic.get(self._fast_decoder(latents))

    def state(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """Returns the JSON configuration and the named float32 arrays."""
        return {}, self.autoencoder.arrays()

    @classmethod
    def from_state(cls, config: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuilds the quantizer from what `state` returned."""
        return cls(TrainedAutoencoder.from_arrays(arrays))


def fit_moc(
    config: MocConfig,
    embeddings: np.ndarray,
    progress: Progress | None = None,
    inputs: TrainingInputs | None = None,
) -> tuple[Moc, dict[str, float]]:
    """Trains a mixture of codes; see `train_autoencoder`.

    Returns:
      The quantizer and what was measured on held-out rows.

    Raises:
      ValueError: tags are given; they supervise prefixes, which these codes do not have.
    """
    from models.autoencoder_training import train_autoencoder  # imports torch

    if inputs is not None and inputs.tags is not None:
        raise ValueError("moc has no prefixes for tags to supervise: use rqvae")
    shared = RqvaeConfig(
        codebook_sizes=config.codebook_sizes,
        latent_dim=config.latent_dim,
        hidden=config.hidden,
        shortcut=config.shortcut,
        ema_decay=config.ema_decay,
        losses=LossConfig(commitment=config.commitment, balance=0.0, separation=0.0),
        training=config.training,
    )
    trained = train_autoencoder(shared, embeddings, progress, inputs, parallel=True)
    return Moc(trained.autoencoder), trained.scalars
