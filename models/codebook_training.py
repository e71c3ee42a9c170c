"""Codebooks while they learn: k-means start, running means, dead codes brought back."""

from __future__ import annotations

import dataclasses

import torch

from models.kmeans import kmeans

# A code whose running use falls below this share of an even share is dead. 0.03 rows of the 4
# that 256 codes get of a batch of 1024 (measured: all codes in use after 1,500 steps).
DEAD_SHARE = 0.0075
KMEANS_ITERATIONS = 20


@dataclasses.dataclass(eq=False)
class LearningCodebooks:
    """Residual codebooks and how much each code is used.

    Attributes:
      words: L tensors (K_l, d).
      counts: L tensors (K_l,), running number of rows a batch that chose the code.
    """

    words: list[torch.Tensor]
    counts: list[torch.Tensor]

    @classmethod
    def from_kmeans(
        cls, latents: torch.Tensor, sizes: tuple[int, ...], batch_size: int, seed: int
    ) -> LearningCodebooks:
        """Starts each level from k-means on all residuals, not on one batch of them.

        Args:
          latents: (N, d), the whole sample.
          sizes: codes per level.
          batch_size: rows a step, the scale of `counts`.
          seed: seeds k-means, one more a level.

        Returns:
          Codebooks on the latents' device.
        """
        residual = latents
        words, counts = [], []
        for level, size in enumerate(sizes):
            centroids = kmeans(residual.cpu().numpy(), size, KMEANS_ITERATIONS, seed + level)
            book = torch.from_numpy(centroids).to(latents)
            code = nearest(residual, book)
            used = torch.bincount(code, minlength=size).to(latents)
            # A code that no row chose still counts as one row, or it would be dead at once.
            counts.append(used.clamp(min=1.0) * (batch_size / len(latents)))
            words.append(book)
            residual = residual - book[code]
        return cls(words, counts)

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Picks codes greedily.

        Args:
          latents: (B, d).

        Returns:
          (B, L) codes and the L + 1 residuals (B, d): before each level, and what is left.
        """
        residuals, codes = [latents], []
        for book in self.words:
            code = nearest(residuals[-1], book)
            codes.append(code)
            residuals.append(residuals[-1] - book[code])
        return torch.stack(codes, dim=1), residuals

    def follow(
        self, codes: torch.Tensor, residuals: list[torch.Tensor], decay: float, seeds: torch.Tensor
    ) -> None:
        """Moves each codeword to the running mean of its residuals; re-seeds dead codes.

        Nothing here waits for the device: dead codes are overwritten through a mask.

        Args:
          codes: (B, L) from `quantize`.
          residuals: from `quantize`.
          decay: share of the running mean that is kept.
          seeds: (max K_l,) batch rows whose residuals replace dead codes.
        """
        for level, book in enumerate(self.words):
            code, residual = codes[:, level], residuals[level]
            size = len(book)
            used = torch.zeros(size, device=book.device).index_add_(
                0, code, torch.ones_like(code, dtype=book.dtype)
            )
            sums = torch.zeros_like(book).index_add_(0, code, residual)
            count = self.counts[level]
            count.mul_(decay).add_(used, alpha=1 - decay)
            rate = (1 - decay) / count.clamp(min=1e-6)
            book.add_(rate[:, None] * (sums - used[:, None] * book))
            even = len(codes) / size
            dead = count < DEAD_SHARE * even
            book.copy_(torch.where(dead[:, None], residual[seeds[:size]], book))
            count.copy_(torch.where(dead, torch.full_like(count, even / 4), count))


def nearest(rows: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Returns (B,) nearest codes in the rows' own precision."""
    return torch.addmm((book * book).sum(dim=1) / 2, rows, book.t(), alpha=-1).argmin(dim=1)
