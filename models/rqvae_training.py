"""The RQ-VAE training loop."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from models.codebook_training import LearningCodebooks
from models.config import RqvaeConfig, TrainingConfig
from models.dense import DenseNetwork
from models.rqvae import Rqvae

MAX_HOLDOUT = 4096
Progress = Callable[[int, int, Mapping[str, float]], None]


class ResidualMlp(nn.Module):
    """Affine layers with ReLU between them, and an optional linear path around them.

    Args:
      widths: input, hidden and output widths.
      shortcut: whether there is a linear path.
    """

    def __init__(self, widths: tuple[int, ...], shortcut: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(widths)
        )
        self.shortcut = nn.Linear(widths[0], widths[-1], bias=False) if shortcut else None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps (B, widths[0]) to (B, widths[-1])."""
        hidden = self.layers[0](rows)
        for layer in list(self.layers)[1:]:
            hidden = layer(hidden.relu())
        return hidden if self.shortcut is None else hidden + self.shortcut(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class InputScaling:
    """Centre and scale of the training rows: raw unit-norm rows collapse an RQ-VAE.

    Attributes:
      mean: (D,).
      scale: root mean square length of the centred rows.
    """

    mean: torch.Tensor
    scale: float

    @classmethod
    def of(cls, embeddings: np.ndarray) -> InputScaling:
        """Measures (N, D) rows; rows that are all equal get scale 1."""
        wide = embeddings.astype(np.float64)
        mean = wide.mean(axis=0)
        scale = math.sqrt(float(((wide - mean) ** 2).sum(axis=1).mean()))
        return cls(torch.from_numpy(mean.astype(np.float32)), scale if scale > 1e-6 else 1.0)


def fit_rqvae(
    config: RqvaeConfig, embeddings: np.ndarray, progress: Progress | None = None
) -> tuple[Rqvae, dict[str, float]]:
    """Trains an RQ-VAE.

    Args:
      config: architecture, losses and training settings.
      embeddings: (N, D) float32, N at least 1, in canonical order: the result depends on it.
      progress: called as (step, steps, scalars) at every evaluation.

    Returns:
      The fitted quantizer and what was measured when it was best on the held-out rows.
    """
    settings = config.training
    device = _device(settings)
    generator = torch.Generator(device).manual_seed(settings.seed)
    scaling = InputScaling.of(embeddings)
    widths = (embeddings.shape[1], *config.hidden, config.latent_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder = ResidualMlp(widths, config.shortcut).to(device)
        decoder = ResidualMlp(widths[::-1], config.shortcut).to(device)
    rows = ((torch.from_numpy(embeddings) - scaling.mean) / scaling.scale).to(device)
    train, held_out = _split(len(rows), settings, generator)
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *decoder.parameters()],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    )
    codebooks: LearningCodebooks | None = None
    best: Rqvae | None = None
    best_scalars: dict[str, float] = {}
    looks_without_progress = 0
    for step in range(settings.steps):
        if step == settings.warmup_steps:
            codebooks = LearningCodebooks.from_kmeans(
                in_blocks(encoder, rows[train]),
                config.codebook_sizes,
                settings.batch_size,
                settings.seed,
            )
        chosen = torch.randint(
            len(train), (settings.batch_size,), generator=generator, device=device
        )
        batch = rows[train[chosen]]
        latents = encoder(batch)
        if codebooks is None:
            loss = squared_error(decoder(latents), batch)
        else:
            with torch.no_grad():
                codes, residuals = codebooks.quantize(latents)
                quantized = latents - residuals[-1]
                seeds = torch.randint(
                    settings.batch_size,
                    (max(config.codebook_sizes),),
                    generator=generator,
                    device=device,
                )
                codebooks.follow(codes, residuals, config.ema_decay, seeds)
            straight_through = latents + (quantized - latents).detach()
            loss = squared_error(decoder(straight_through), batch)
            loss = loss + config.commitment * commitment_loss(latents, residuals)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if codebooks is None or (
            (step + 1) % settings.evaluate_every and step + 1 < settings.steps
        ):
            continue
        scalars = {"loss": float(loss.detach())} | _evaluate(
            encoder, decoder, codebooks, rows[held_out]
        )
        if progress is not None:
            progress(step + 1, settings.steps, scalars)
        looks_without_progress += 1
        if not best_scalars or scalars["error"] + scalars["colliding"] <= (
            best_scalars["error"] + best_scalars["colliding"]
        ):
            best, best_scalars = _export(encoder, decoder, codebooks, scaling), scalars
            looks_without_progress = 0
        if looks_without_progress >= settings.patience:
            break
    if best is None:
        raise ValueError(f"training ended after {settings.steps} steps without an evaluation")
    return best, best_scalars


def commitment_loss(latents: torch.Tensor, residuals: list[torch.Tensor]) -> torch.Tensor:
    """Mean squared distance of each level's residual to its codeword, averaged over levels.

    The residual before level l is the latent minus the codewords chosen above, which are
    constants here. Subtracting a straight-through estimate instead makes the derivative of every
    level after the first exactly zero.

    Args:
      latents: (B, d) with gradient.
      residuals: L + 1 tensors (B, d) without, from `LearningCodebooks.quantize`.

    Returns:
      A scalar.
    """
    levels = [squared_error(latents, latents.detach() - after) for after in residuals[1:]]
    return torch.stack(levels).mean()


def squared_error(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the squared distance."""
    return ((left - right) ** 2).sum(dim=1).mean()


@torch.no_grad()
def in_blocks(network: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Evaluates a network on many rows without keeping the hidden layers of all of them."""
    return torch.cat([network(block) for block in rows.split(4096)])


def _device(settings: TrainingConfig) -> torch.device:
    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _split(
    count: int, settings: TrainingConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns row numbers to train on and to hold out; a tiny sample serves as both."""
    order = torch.randperm(count, generator=generator, device=generator.device)
    kept = min(int(count * settings.holdout), MAX_HOLDOUT)
    return (order[kept:], order[:kept]) if kept >= 2 else (order, order[:MAX_HOLDOUT])


@torch.no_grad()
def _evaluate(
    encoder: nn.Module, decoder: nn.Module, codebooks: LearningCodebooks, rows: torch.Tensor
) -> dict[str, float]:
    """Measures held-out rows.

    Returns:
      `error`, 1 - R2 in the scaled space; `colliding`, the share of rows that share all codes
      with another; `use`, of the worst level the share of codes with some use.
    """
    latents = in_blocks(encoder, rows)
    codes, residuals = codebooks.quantize(latents)
    decoded = in_blocks(decoder, latents - residuals[-1])
    spread = ((rows - rows.mean(dim=0)) ** 2).sum().clamp(min=1e-12)
    counts = torch.unique(codes, dim=0, return_counts=True)[1]
    return {
        "error": float(((decoded - rows) ** 2).sum() / spread),
        "colliding": float(counts[counts > 1].sum() / len(rows)),
        "use": min(float((c > 0.1 * c.mean()).float().mean()) for c in codebooks.counts),
    }


def _export(
    encoder: ResidualMlp, decoder: ResidualMlp, codebooks: LearningCodebooks, scaling: InputScaling
) -> Rqvae:
    """Folds the scaling into the first and last layers and rounds to float32 once."""
    mean, scale = scaling.mean.numpy().astype(np.float64), scaling.scale
    weights, biases, shortcut = _float64_parameters(encoder)
    # W ((x - m) / s) + b = (W / s) x + (b - W m / s), for the first layer and the shortcut.
    weights[0] = weights[0] / scale
    biases[0] = biases[0] - mean @ weights[0]
    if shortcut is not None:
        shortcut = shortcut / scale
        biases[-1] = biases[-1] - mean @ shortcut
    typical = float(codebooks.words[0].square().mean().sqrt())
    encoding = _network(weights, biases, shortcut, _grid(typical))
    weights, biases, shortcut = _float64_parameters(decoder)
    weights[-1] = weights[-1] * scale
    biases[-1] = biases[-1] * scale + mean
    if shortcut is not None:
        shortcut = shortcut * scale
    decoding = _network(weights, biases, shortcut, _grid(scale / math.sqrt(len(mean))))
    return Rqvae(encoding, decoding, tuple(book.cpu().numpy().copy() for book in codebooks.words))


def _grid(typical: float) -> float:
    """Returns a power of two about 2^-18 of a typical coordinate."""
    return 2.0 ** (math.floor(math.log2(max(typical, 2.0**-40))) - 18)


def _float64_parameters(
    network: ResidualMlp,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray | None]:
    """Returns weights as (in, out), biases, and the shortcut as (in, out) or None."""
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    return (
        [_float64(layer.weight).T for layer in linear],
        [_float64(layer.bias) for layer in linear],
        None if network.shortcut is None else _float64(network.shortcut.weight).T,
    )


def _float64(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().cpu().double().numpy()


def _network(
    weights: list[np.ndarray],
    biases: list[np.ndarray],
    shortcut: np.ndarray | None,
    grid: float,
) -> DenseNetwork:
    return DenseNetwork(
        tuple(np.ascontiguousarray(weight, dtype=np.float32) for weight in weights),
        tuple(bias.astype(np.float32) for bias in biases),
        None if shortcut is None else np.ascontiguousarray(shortcut, dtype=np.float32),
        grid,
    )
