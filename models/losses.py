"""What an RQ-VAE is trained on besides reconstruction, and how gradients pass the codes."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from models.codebook_training import Quantization

# Softness of the assignments in the balance loss, as a share of the mean squared residual.
BALANCE_TEMPERATURE = 0.1


def squared_error(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the squared distance of (B, d) vectors."""
    return ((left - right) ** 2).sum(dim=1).mean()


def commitment_loss(latents: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """Mean squared distance of the latents to each level's anchor, averaged over levels.

    For residual codebooks the term of level l is the distance of its residual to its codeword:
    the residual is the latent minus codewords that are constants here. Subtracting a
    straight-through estimate instead makes the gradient of every level after the first zero.

    Args:
      latents: (B, d) with gradient.
      quantization: of these latents.

    Returns:
      A scalar.
    """
    return torch.stack(commitment_per_level(latents, quantization)).mean()


def commitment_per_level(latents: torch.Tensor, quantization: Quantization) -> list[torch.Tensor]:
    """The L terms of `commitment_loss`, each with a gradient to the latents."""
    return [squared_error(latents, anchor) for anchor in quantization.anchors]


def balance_loss(
    latents: torch.Tensor, quantization: Quantization, words: list[torch.Tensor]
) -> torch.Tensor:
    """How far the batch's soft use of the codes is from even, averaged over the levels given.

    `log K - H(p)` with p the mean over the batch of softmax(-distance^2 / t), t a tenth of the
    mean squared residual: 0 when all codes are used alike.

    Args:
      latents: (B, d) with gradient.
      quantization: of these latents.
      words: codebooks (K_l, d) of the first levels, of those that are to be balanced.

    Returns:
      A scalar in nats.
    """
    losses = []
    for before, book in zip(quantization.residuals, words, strict=False):
        residual = latents - (latents.detach() - before)
        scale = BALANCE_TEMPERATURE * before.square().sum(dim=1).mean().clamp(min=1e-12)
        scores = torch.addmm((book * book).sum(dim=1), residual, book.t(), alpha=-2)
        use = torch.softmax(-scores / scale, dim=1).mean(dim=0)
        # A code that nobody is near underflows to 0, where the gradient of u log u is not finite.
        losses.append(math.log(len(book)) + (use * use.clamp(min=1e-12).log()).sum())
    return torch.stack(losses).mean()


def uniqueness_loss(
    left: torch.Tensor, right: torch.Tensor, weights: torch.Tensor, margin: float
) -> torch.Tensor:
    """Pushes apart the latents of pairs that share every code (HiD-VAE 2508.04618, eq. 7).

    Args:
      left: (P, d) latents before quantization, with gradient.
      right: (P, d) latents of their partners.
      weights: (P,) how much a pair counts: 0 where its codes differ.
      margin: cosine up to which a pair is left alone.

    Returns:
      Sum over pairs of weight * max(0, cosine - margin), over P.
    """
    cosine = functional.cosine_similarity(left, right, dim=1)
    return (functional.relu(cosine - margin) * weights).sum() / max(1, len(left))


def separation_loss(left: torch.Tensor, right: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Turns the residuals of pairs that got the same code away from each other.

    Unlike `uniqueness_loss` it acts on what one level quantizes, not on the whole latent: the
    codes above stay as they are, where pushing near-equal latents below a cosine of 0.9 moves
    them across coarse cells (amazon_beauty, seed 0, 3 x 256: mean cosine at prefix 2 and 3
    .818 and .925 with eq. 7, .837 and .952 with this).

    Args:
      left: (P, d) residuals before a level, with gradient.
      right: (P, d) of their partners.
      weights: (P,) how much a pair counts: 0 where its codes down to the level differ.

    Returns:
      Sum over pairs of weight * max(0, cosine), over P.
    """
    return uniqueness_loss(left, right, weights, margin=0.0)


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Returns `quantized` with the gradient of `latents`."""
    return latents + (quantized - latents).detach()


def rotated(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Returns `quantized` with the latents' gradient turned and scaled from latent to codeword.

    The rotation trick (Fifty et al. 2410.06424, section 4.2): with unit vectors z, q and
    r = (z + q) / |z + q|, the rotation of z onto q is I - 2 r r' + 2 q z', held constant.

    Args:
      latents: (B, d) with gradient.
      quantized: (B, d) sum of codewords.

    Returns:
      (B, d).
    """
    with torch.no_grad():
        norm = latents.norm(dim=1, keepdim=True).clamp(min=1e-12)
        length = quantized.norm(dim=1, keepdim=True)
        unit = latents / norm
        target = quantized / length.clamp(min=1e-12)
        middle = functional.normalize(unit + target, dim=1)
    along = (latents * middle).sum(dim=1, keepdim=True)
    onto = (latents * unit).sum(dim=1, keepdim=True)
    turned = latents - 2 * along * middle + 2 * onto * target
    return turned * (length / norm)


def info_nce(
    vectors: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of finding each row's own candidate by cosine (eq. 5).

    Args:
      vectors: (B, d).
      candidates: (T, d).
      targets: (B,) candidate of each row, -1 where it has none; those rows are left out.
      temperature: divides the cosines.

    Returns:
      A scalar: the mean over rows with a target, 0 when there is none.
    """
    known = targets >= 0
    cosine = functional.normalize(vectors, dim=1) @ functional.normalize(candidates, dim=1).t()
    losses = functional.cross_entropy(cosine / temperature, targets.clamp(min=0), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def focal_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, focus: float) -> torch.Tensor:
    """Cross-entropy weighted by (1 - p)^focus, so that easy rows count little (eq. 6).

    Args:
      logits: (B, T).
      targets: (B,) tags, -1 where the row has none; those rows are left out.
      focus: exponent gamma, 0 for plain cross-entropy.

    Returns:
      A scalar: the mean over rows with a tag, 0 when there is none.
    """
    known = targets >= 0
    losses = functional.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    weighted = (1 - torch.exp(-losses)) ** focus * losses * known
    return weighted.sum() / known.sum().clamp(min=1)
