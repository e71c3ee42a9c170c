"""What can be set on a tokenizer, with defaults and limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from models.sid import SidLayout

MAX_LEVELS = 8
MAX_CODEBOOK_SIZE = 8192
DEFAULT_SIZES = (256, 256, 256)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a neural tokenizer is trained.

    Attributes:
      steps: optimizer steps in all.
      warmup_steps: first steps without quantization, so that k-means starts from latents that
        already mean something.
      batch_size: rows a step.
      learning_rate: AdamW's peak rate; it follows a cosine to zero.
      weight_decay: AdamW's decoupled decay.
      holdout: share of rows kept from training, at most 4096 rows, for early stopping.
      evaluate_every: steps between looks at the held-out rows.
      patience: looks without progress after which training stops.
      seed: seeds initialisation, batches and re-seeding.
      device: where to train; `auto` is the GPU when there is one.
    """

    steps: int = 1500
    warmup_steps: int = 300
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    holdout: float = 0.02
    evaluate_every: int = 100
    patience: int = 5
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_range("training.steps", self.steps, 1, 10_000_000)
        check_range("training.warmup_steps", self.warmup_steps, 0, self.steps - 1)
        check_range("training.batch_size", self.batch_size, 2, 1 << 20)
        check_range("training.learning_rate", self.learning_rate, 1e-7, 1.0)
        check_range("training.weight_decay", self.weight_decay, 0.0, 1.0)
        check_range("training.holdout", self.holdout, 0.0, 0.5)
        check_range("training.evaluate_every", self.evaluate_every, 1, 10_000_000)
        check_range("training.patience", self.patience, 1, 10_000_000)
        check_range("training.seed", self.seed, 0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class RqvaeConfig:
    """The residual-quantized autoencoder (Rajput et al. 2305.05065; Singh et al. 2306.08121).

    Attributes:
      codebook_sizes: codes per level, coarse to fine, 2 to 8 levels.
      latent_dim: length of the vector that is quantized.
      hidden: widths of the encoder's hidden layers; the decoder mirrors them.
      shortcut: adds a linear path around the hidden layers (a residual MLP).
      commitment: weight of the pull of latents towards their codewords.
      ema_decay: share of a codeword's running mean that one step keeps.
      training: the training loop's settings.
    """

    codebook_sizes: tuple[int, ...] = DEFAULT_SIZES
    latent_dim: int = 64
    hidden: tuple[int, ...] = (768,)
    shortcut: bool = True
    commitment: float = 0.25
    ema_decay: float = 0.99
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_codebook_sizes(self.codebook_sizes, min_levels=2)
        check_range("latent_dim", self.latent_dim, 1, 4096)
        for width in self.hidden:
            check_range("hidden", width, 1, 65536)
        check_range("commitment", self.commitment, 0.0, 100.0)
        check_range("ema_decay", self.ema_decay, 0.0, 0.9999)


@dataclasses.dataclass(frozen=True)
class RqkmeansConfig:
    """Residual k-means in embedding space (OneRec 2506.13695).

    Attributes:
      codebook_sizes: codes per level, coarse to fine, 1 to 8 levels.
      iterations: Lloyd iterations a level.
      seed: seeds the first centroids.
    """

    codebook_sizes: tuple[int, ...] = DEFAULT_SIZES
    iterations: int = 25
    seed: int = 0

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_codebook_sizes(self.codebook_sizes, min_levels=1)
        check_range("iterations", self.iterations, 1, 10_000)
        check_range("seed", self.seed, 0, 2**31 - 1)


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Refuses a value outside low..high.

    Raises:
      ValueError: naming key, value and limits.
    """
    if not low <= value <= high:
        raise ValueError(f"{key} must lie in {low}..{high}, got {value}")


def check_codebook_sizes(sizes: tuple[int, ...], min_levels: int) -> None:
    """Refuses codebook sizes that no packed SID or no codebook can have.

    Raises:
      ValueError: naming the sizes and the limit.
    """
    if not min_levels <= len(sizes) <= MAX_LEVELS:
        raise ValueError(
            f"codebook_sizes must name {min_levels} to {MAX_LEVELS} levels, got {list(sizes)}"
        )
    for size in sizes:
        check_range("codebook_sizes", size, 2, MAX_CODEBOOK_SIZE)
    SidLayout.fitting(sizes)
