"""The tag classifiers that a fitted tokenizer keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from models.dense import DenseNetwork


@dataclasses.dataclass(frozen=True, eq=False)
class TagPrediction:
    """Predicted tags of N items at T depths.

    Attributes:
      tags: (N, T) int32 positions in the depth's names.
      confidence: (N, T) float32 softmax probability of that tag.
      names: per depth the tags' paths.
    """

    tags: np.ndarray
    confidence: np.ndarray
    names: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TagHeads:
    """Fitted tag classifiers.

    Attributes:
      names: per depth the tags' paths.
      networks: per depth a network from a quantized prefix (d) to tag scores.
    """

    names: tuple[tuple[str, ...], ...]
    networks: tuple[DenseNetwork, ...]

    def predict(self, prefixes: Sequence[np.ndarray]) -> TagPrediction:
        """Predicts from L arrays (N, d) float32, the sums of the first 1..L codewords."""
        tags = np.empty((len(prefixes[0]), len(self.names)), np.int32)
        confidence = np.empty(tags.shape, np.float32)
        for depth, network in enumerate(self.networks):
            scores = network.exact(prefixes[min(depth, len(prefixes) - 1)]).astype(np.float64)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            tags[:, depth] = scores.argmax(axis=1)
            confidence[:, depth] = scores.max(axis=1) / scores.sum(axis=1)
        return TagPrediction(tags, confidence, self.names)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the networks' arrays, named `tags.<depth>...`."""
        named: dict[str, np.ndarray] = {}
        for depth, network in enumerate(self.networks):
            named |= network.arrays(f"tags.{depth}")
        return named

    @classmethod
    def from_arrays(
        cls, names: Sequence[Sequence[str]], arrays: Mapping[str, np.ndarray]
    ) -> TagHeads:
        """Reads what `arrays` returned."""
        networks = tuple(
            DenseNetwork.from_arrays(arrays, f"tags.{depth}") for depth in range(len(names))
        )
        return cls(tuple(tuple(level) for level in names), networks)
