"""Finds items that share their first codes, and what training does to part them."""

from __future__ import annotations

import dataclasses

import torch

from models.codebook_training import Quantization
from models.config import RqvaeConfig
from models.losses import separation_loss, uniqueness_loss

# Rows looked at per search: 100 ms of encoding on two cores.
MINED_ROWS = 65_536


@dataclasses.dataclass(frozen=True, eq=False)
class SharedPairs:
    """Pairs of row numbers that shared some first codes when they were looked for.

    Attributes:
      left: (P,) row numbers.
      right: (P,) their partners.
    """

    left: torch.Tensor
    right: torch.Tensor

    @classmethod
    def among(
        cls, codes: torch.Tensor, rows: torch.Tensor, generator: torch.Generator
    ) -> SharedPairs:
        """Pairs each item with the next one of its bucket, in random order.

        In a batch of 1,024 of 12,000 rows both halves of a given pair meet once in 140 steps, so
        waiting for chance leaves the uniqueness loss at zero nearly always.

        Args:
          codes: (M, l) first codes.
          rows: (M,) the row numbers they belong to.
          generator: on the codes' device.
        """
        order = torch.randperm(len(codes), generator=generator, device=codes.device)
        bucket = torch.unique(codes, dim=0, return_inverse=True)[1][order]
        by_bucket = torch.argsort(bucket, stable=True)
        order, bucket = order[by_bucket], bucket[by_bucket]
        same = torch.nonzero(bucket[1:] == bucket[:-1]).flatten()
        return cls(rows[order[same]], rows[order[same + 1]])

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Returns (2 * count,) row numbers, lefts before partners; none if there is no pair."""
        if not len(self.left):
            return self.left
        chosen = torch.randint(
            len(self.left), (count,), generator=generator, device=self.left.device
        )
        return torch.cat([self.left[chosen], self.right[chosen]])


def paired_depths(config: RqvaeConfig) -> dict[int, int]:
    """Returns, by prefix length, how many pairs of items that share it a batch gets.

    Half of the paired rows share all codes; the prefixes of length 2 to L-1 share the other half.
    """
    losses, levels = config.losses, len(config.codebook_sizes)
    pairs = int(config.training.batch_size * losses.paired_rows / 2)
    inner = list(range(2, levels)) if losses.separation > 0 else []
    if pairs == 0 or losses.separation == losses.uniqueness == 0:
        return {}
    if not inner:
        return {levels: pairs}
    return dict.fromkeys(inner, max(1, pairs // 2 // len(inner))) | {levels: pairs - pairs // 2}


def pair_loss(
    config: RqvaeConfig,
    latents: torch.Tensor,
    targets: torch.Tensor,
    found: Quantization,
    depth: int,
    left: slice,
    right: slice,
) -> torch.Tensor:
    """Separation, and for colliding items uniqueness, of pairs drawn for sharing `depth` codes.

    Args:
      config: weights of the losses.
      latents: (B, d) with gradient.
      targets: (B, D) centred and scaled embeddings.
      found: the latents' codes.
      depth: codes the pairs shared when they were looked for; those that no longer do are left
        alone.
      left: rows of the batch that hold one item of each pair.
      right: rows that hold their partners.

    Returns:
      A scalar, weighted.
    """
    losses = config.losses
    same = (found.codes[left, :depth] == found.codes[right, :depth]).all(dim=1).to(latents)
    weights = same
    if depth < len(config.codebook_sizes):
        # Like items may share a prefix, so unlike ones are parted first.
        weights = same * (targets[left] - targets[right]).square().sum(dim=1)
    before = latents - (latents.detach() - found.residuals[depth - 1])
    loss = losses.separation * separation_loss(before[left], before[right], weights)
    if depth == len(config.codebook_sizes) and losses.uniqueness > 0:
        loss = loss + losses.uniqueness * uniqueness_loss(
            latents[left], latents[right], same, losses.uniqueness_margin
        )
    return loss
