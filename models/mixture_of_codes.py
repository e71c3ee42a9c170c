"""The fusion block of Mixture-of-Codes (2410.09560)."""

from __future__ import annotations

import torch
from torch import nn


class MixtureOfCodesFusion(nn.Module):
    """Lets the embeddings of N parallel codebooks see each other before a ranking model.

    All N embeddings are joined, pass a bottleneck (down, GELU, up), are added to what came in, and
    are split again, so that a model that took N separate code embeddings takes the result.

    Example:
      >>> fusion = MixtureOfCodesFusion(num_codes=4, embedding_dim=16, bottleneck_dim=8)
      >>> fusion(torch.randn(32, 4, 16)).shape
      torch.Size([32, 4, 16])
    """

    def __init__(self, num_codes: int, embedding_dim: int, bottleneck_dim: int) -> None:
        """Creates the bottleneck; it starts as the identity.

        Args:
          num_codes: codebooks N.
          embedding_dim: length of each code embedding.
          bottleneck_dim: width between down and up.
        """
        super().__init__()
        joined = num_codes * embedding_dim
        self.down = nn.Linear(joined, bottleneck_dim)
        self.activation = nn.GELU()
        self.up = nn.Linear(bottleneck_dim, joined)
        # The ranking model starts from the separate embeddings and learns how far to mix them.
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Fuses (B, N, embedding_dim) into the same shape."""
        joined = embeddings.flatten(1)
        fused = joined + self.up(self.activation(self.down(joined)))
        return fused.view_as(embeddings)
