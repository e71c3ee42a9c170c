"""Codebooks while they learn: k-means start, running means, dead codes brought back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from models.kmeans import kmeans

# A code whose running use falls below this share of an even share is dead: 0.03 rows of the 4
# that each of 256 codes gets of a batch of 1,024 (all codes stayed in use on real catalogs).
DEAD_SHARE = 0.0075
KMEANS_ITERATIONS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Quantization:
    """What quantizing B latents gave; no tensor has a gradient.

    Attributes:
      codes: (B, L).
      residuals: L tensors (B, d): what each level quantized.
      anchors: L tensors (B, d): where each level would like the latents to be. Residual
        codebooks: the sum of the codewords down to it. Parallel ones: its codeword.
      quantized: (B, d): what the decoder is given.
    """

    codes: torch.Tensor
    residuals: list[torch.Tensor]
    anchors: list[torch.Tensor]
    quantized: torch.Tensor


@dataclasses.dataclass(eq=False)
class LearningCodebooks:
    """Codebooks and how much each code is used.

    Attributes:
      words: L tensors (K_l, d).
      counts: L tensors (K_l,), running number of rows a batch that chose the code.
      parallel: each codebook quantizes the latent itself, not what the last one left over.
      coarse_dim: axes of the latents beyond which the first residual codebook is zero, None for
        no limit.
    """

    words: list[torch.Tensor]
    counts: list[torch.Tensor]
    parallel: bool = False
    coarse_dim: int | None = None

    @classmethod
    def from_kmeans(
        cls,
        latents: torch.Tensor,
        sizes: tuple[int, ...],
        batch_size: int,
        seed: int,
        parallel: bool = False,
        coarse_dim: int | None = None,
        start: Sequence[np.ndarray] = (),
    ) -> LearningCodebooks:
        """Starts each level from k-means on the whole sample, not on one batch of it.

        Args:
          latents: (N, d), the whole sample.
          sizes: codes per level.
          batch_size: rows a step, the scale of `counts`.
          seed: seeds k-means, one more a level, so that parallel codebooks differ.
          parallel: whether codebooks are independent.
          coarse_dim: axes of the latents that the first residual codebook uses.
          start: codebooks that were learned before; a level of the same size starts from its own.

        Returns:
          Codebooks on the latents' device.
        """
        residual = latents
        words, counts = [], []
        for level, size in enumerate(sizes):
            if level < len(start) and len(start[level]) == size:
                centroids = start[level]
            else:
                axes = coarse_dim if level == 0 and not parallel else None
                clustered = residual[:, :axes].cpu().numpy()
                centroids = kmeans(clustered, size, KMEANS_ITERATIONS, seed + level)
            book = torch.zeros(size, latents.shape[1]).to(latents)
            book[:, : centroids.shape[1]] = torch.tensor(centroids).to(latents)
            code = nearest(residual, book)
            used = torch.bincount(code, minlength=size).to(latents)
            # A code that no row chose still counts as one row, or it would be dead at once.
            counts.append(used.clamp(min=1.0) * (batch_size / len(latents)))
            words.append(book)
            if not parallel:
                residual = residual - book[code]
        return cls(words, counts, parallel, coarse_dim)

    @torch.no_grad()
    def quantize(self, latents: torch.Tensor) -> Quantization:
        """Picks codes greedily for (B, d) latents."""
        latents = latents.detach()
        residuals, anchors, codes = [], [], []
        chosen_sum = torch.zeros_like(latents)
        for book in self.words:
            residual = latents if self.parallel else latents - chosen_sum
            code = nearest(residual, book)
            chosen = book[code]
            chosen_sum = chosen_sum + chosen
            codes.append(code)
            residuals.append(residual)
            anchors.append(chosen if self.parallel else chosen_sum)
        quantized = chosen_sum / len(self.words) if self.parallel else chosen_sum
        return Quantization(torch.stack(codes, dim=1), residuals, anchors, quantized)

    @torch.no_grad()
    def follow(self, quantization: Quantization, decay: float, spare: torch.Tensor) -> None:
        """Moves each codeword to the running mean of its residuals; re-seeds dead codes.

        Nothing here waits for the device: dead codes are overwritten through a mask.

        Args:
          quantization: of a batch, by these codebooks.
          decay: share of the running mean that is kept.
          spare: (max K_l,) batch rows whose residuals replace dead codes.
        """
        rows = len(quantization.codes)
        for level, (book, count) in enumerate(zip(self.words, self.counts, strict=True)):
            code, residual = quantization.codes[:, level], quantization.residuals[level]
            used = torch.zeros_like(count).index_add_(0, code, torch.ones_like(residual[:, 0]))
            sums = torch.zeros_like(book).index_add_(0, code, residual)
            count.mul_(decay).add_(used, alpha=1 - decay)
            rate = (1 - decay) / count.clamp(min=1e-6)
            book.add_(rate[:, None] * (sums - used[:, None] * book))
            even = rows / len(book)
            dead = count < DEAD_SHARE * even
            book.copy_(torch.where(dead[:, None], residual[spare[: len(book)]], book))
            if level == 0 and not self.parallel:
                book[:, self.coarse_dim or book.shape[1] :] = 0.0
            # Back with a quarter of an even share: time enough to be chosen before it dies again.
            count.copy_(torch.where(dead, torch.full_like(count, even / 4), count))


def nearest(rows: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Returns (B,) nearest codes in the rows' own precision."""
    return torch.addmm((book * book).sum(dim=1) / 2, rows, book.t(), alpha=-1).argmin(dim=1)
