"""The trained networks and codebooks of the neural tokenizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np

from models.dense import DenseNetwork


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedAutoencoder:
    """What a neural tokenizer encodes with, is saved as, and another fit can go on from.

    Attributes:
      encoder: embeddings (D) to latents (d).
      decoder: quantized latents (d) to embeddings (D).
      codebooks: L float32 arrays (K_l, d).

    Raises:
      ValueError: the three differ in d.
    """

    encoder: DenseNetwork
    decoder: DenseNetwork
    codebooks: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        books = (book.shape[1] for book in self.codebooks)
        widths = {self.encoder.out_dim, self.decoder.in_dim, *books}
        if len(widths) != 1:
            raise ValueError(f"encoder, codebooks and decoder differ in latent_dim: {widths}")

    @property
    def embedding_dim(self) -> int:
        """Length D of an embedding."""
        return self.encoder.in_dim

    @property
    def shape(self) -> tuple[tuple[int, ...], int, bool]:
        """Widths of the hidden layers, latent_dim, and whether there is a shortcut."""
        hidden = tuple(int(weight.shape[1]) for weight in self.encoder.weights[:-1])
        return hidden, self.encoder.out_dim, self.encoder.shortcut is not None

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns float32 arrays named `encoder...`, `decoder...` and `codebooks.<level>`."""
        networks = self.encoder.arrays("encoder") | self.decoder.arrays("decoder")
        return networks | {f"codebooks.{level}": book for level, book in enumerate(self.codebooks)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Reads what `arrays` returned; other arrays may be among them."""
        levels = sum(name.startswith("codebooks.") for name in arrays)
        return cls(
            DenseNetwork.from_arrays(arrays, "encoder"),
            DenseNetwork.from_arrays(arrays, "decoder"),
            tuple(arrays[f"codebooks.{level}"] for level in range(levels)),
        )
