"""Tag losses on quantized prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.config import TagConfig
from models.losses import focal_cross_entropy, info_nce
from models.mlp import ResidualMlp, dense_network
from models.tag_heads import TagHeads


class TagSupervision(nn.Module):
    """Per depth a projection of tag embeddings and a classifier of quantized prefixes.

    Depth t reads the sum of the first t codewords, or of all where a path is deeper than the
    codes.

    Args:
      config: weights, temperature and widths.
      tag_embeddings: per depth (tags, D).
      latent_dim: length of the quantized vectors.
    """

    def __init__(
        self, config: TagConfig, tag_embeddings: Sequence[torch.Tensor], latent_dim: int
    ) -> None:
        super().__init__()
        self.config = config
        for depth, tags in enumerate(tag_embeddings):
            self.register_buffer(f"tag_embeddings_{depth}", tags, persistent=False)
        self.projections = nn.ModuleList(
            nn.Linear(tags.shape[1], latent_dim) for tags in tag_embeddings
        )
        # A classifier grows with depth, as the number of tags does.
        self.classifiers = nn.ModuleList(
            ResidualMlp((latent_dim, config.hidden * (depth + 1), len(tags)), shortcut=True)
            for depth, tags in enumerate(tag_embeddings)
        )

    def losses(
        self, prefixes: Sequence[torch.Tensor], tags: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Alignment and prediction loss, each averaged over depths.

        Args:
          prefixes: L tensors (B, d): sums of the first 1..L codewords, with the latents'
            gradient.
          tags: (B, T) tags, -1 for none.

        Returns:
          Two scalars, unweighted.
        """
        alignment, prediction = [], []
        for depth in range(len(self.classifiers)):
            prefix = prefixes[min(depth, len(prefixes) - 1)]
            projected = self.projections[depth](self.get_buffer(f"tag_embeddings_{depth}"))
            target = tags[:, depth]
            alignment.append(info_nce(prefix, projected, target, self.config.temperature))
            logits = self.classifiers[depth](prefix)
            prediction.append(focal_cross_entropy(logits, target, self.config.focus))
        return torch.stack(alignment).mean(), torch.stack(prediction).mean()

    def accuracy(self, prefixes: Sequence[torch.Tensor], tags: torch.Tensor) -> list[float]:
        """Returns per depth the share of rows with a tag whose tag is predicted.

        Args:
          prefixes: L tensors (B, d).
          tags: (B, T) tags, -1 for none.
        """
        shares = []
        for depth, classifier in enumerate(self.classifiers):
            target = tags[:, depth]
            right = classifier(prefixes[min(depth, len(prefixes) - 1)]).argmax(dim=1) == target
            known = int((target >= 0).sum())
            shares.append(float(right.sum()) / known if known else 0.0)
        return shares

    def export(self, names: tuple[tuple[str, ...], ...]) -> TagHeads:
        """Returns the classifiers as they are saved."""
        networks = [
            dense_network(head, grid=2.0**-20)
            for head in self.classifiers
            if isinstance(head, ResidualMlp)
        ]
        return TagHeads(names, tuple(networks))
