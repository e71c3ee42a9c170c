"""What can be set on a tokenizer, with defaults and limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

from models.sid import SidLayout

MAX_LEVELS = 8
MAX_CODEBOOK_SIZE = 8192
MAX_BEAM = 64
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
      decoder_steps: steps after the others that train only the decoder, on the final codes.
      mine_every: steps between looks for colliding pairs.
      holdout: share of rows kept from training, at most 4096 rows, for early stopping.
      evaluate_every: steps between looks at the held-out rows.
      patience: looks without progress after which training stops.
      seed: seeds initialisation, batches and re-seeding.
      device: where to train; `auto` is the GPU when there is one.
      precision: of the networks' matrix products; `auto` is bfloat16 where the hardware has it,
        with float32 parameters and sums. A fitted tokenizer always encodes exactly.
      compile: compiles encoder and decoder; only on a GPU.
    """

    steps: int = 1300
    warmup_steps: int = 200
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    decoder_steps: int = 300
    mine_every: int = 50
    holdout: float = 0.02
    evaluate_every: int = 100
    patience: int = 5
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32"] = "auto"
    compile: bool = False

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_range("training.steps", self.steps, 1, 10_000_000)
        check_range("training.warmup_steps", self.warmup_steps, 0, self.steps - 1)
        check_range("training.batch_size", self.batch_size, 2, 1 << 20)
        check_range("training.learning_rate", self.learning_rate, 1e-7, 1.0)
        check_range("training.weight_decay", self.weight_decay, 0.0, 1.0)
        check_range("training.decoder_steps", self.decoder_steps, 0, 10_000_000)
        check_range("training.mine_every", self.mine_every, 1, 10_000_000)
        check_range("training.holdout", self.holdout, 0.0, 0.5)
        check_range("training.evaluate_every", self.evaluate_every, 1, 10_000_000)
        check_range("training.patience", self.patience, 1, 10_000_000)
        check_range("training.seed", self.seed, 0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of what is added to the reconstruction error; 0 switches a loss off.

    Attributes:
      commitment: pull of latents towards their codewords.
      balance: push towards even use of the first level's codes, on soft assignments.
      separation: push apart, level by level, of items that share the codes down to it: all
        that share every code, and those that share a shorter prefix by their distance.
      paired_rows: share of a batch that is drawn as such pairs, half of it colliding items.
      uniqueness: push apart of the whole latents of items that collide (HiD-VAE 2508.04618,
        eq. 7; weight 2.0 there).
      uniqueness_margin: cosine of latents above which a colliding pair is pushed apart.
    """

    commitment: float = 0.25
    balance: float = 0.0
    separation: float = 0.1
    paired_rows: float = 0.125
    uniqueness: float = 0.0
    uniqueness_margin: float = 0.9

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_range("losses.commitment", self.commitment, 0.0, 100.0)
        check_range("losses.balance", self.balance, 0.0, 100.0)
        check_range("losses.uniqueness", self.uniqueness, 0.0, 100.0)
        check_range("losses.uniqueness_margin", self.uniqueness_margin, -1.0, 1.0)
        check_range("losses.separation", self.separation, 0.0, 100.0)
        check_range("losses.paired_rows", self.paired_rows, 0.0, 0.9)


@dataclasses.dataclass(frozen=True)
class TagConfig:
    """Supervision by category paths (HiD-VAE 2508.04618); off without tags.

    Attributes:
      alignment: weight of eq. 5, InfoNCE of quantized prefix against tag embedding.
      prediction: weight of eq. 6, focal cross-entropy of a tag classifier per level.
      temperature: of the InfoNCE.
      focus: exponent gamma of the focal factor (1 - p)^gamma.
      rare: a tag with fewer items is merged with the other rare ones of its level.
      hidden: width of the first level's classifier; deeper ones are wider by as much again.
    """

    alignment: float = 0.01
    prediction: float = 0.01
    temperature: float = 0.07
    focus: float = 2.0
    rare: int = 10
    hidden: int = 64

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_range("tags.alignment", self.alignment, 0.0, 100.0)
        check_range("tags.prediction", self.prediction, 0.0, 100.0)
        check_range("tags.temperature", self.temperature, 1e-3, 10.0)
        check_range("tags.focus", self.focus, 0.0, 10.0)
        check_range("tags.rare", self.rare, 1, 1_000_000)
        check_range("tags.hidden", self.hidden, 1, 65536)


@dataclasses.dataclass(frozen=True)
class RqvaeConfig:
    """The residual-quantized autoencoder (Rajput et al. 2305.05065; Singh et al. 2306.08121).

    Attributes:
      codebook_sizes: codes per level, coarse to fine, 2 to 8 levels.
      latent_dim: length of the vector that is quantized.
      coarse_dim: principal axes of the latents that the first level quantizes; it leaves the
        others to deeper levels. Coarse codes then follow what most of the catalog varies in.
      hidden: widths of the encoder's hidden layers; the decoder mirrors them.
      shortcut: adds a linear path around the encoder's hidden layers (a residual MLP); the
        decoder always has one.
      whitening: exponent w of a scaling of the input's principal axes by variance^(-w/2):
        0 leaves them, 1 makes all variances equal.
      estimator: how the decoder's gradient passes the quantization: `ste` copies it, `rotation`
        turns it with the codeword (Fifty et al. 2410.06424).
      ema_decay: share of a codeword's running mean that one step keeps.
      beam: code tuples kept per level when encoding; 1 is greedy.
      losses: weights of the losses.
      tags: supervision by category paths.
      training: the training loop's settings.
    """

    codebook_sizes: tuple[int, ...] = DEFAULT_SIZES
    latent_dim: int = 32
    coarse_dim: int = 24
    hidden: tuple[int, ...] = (768,)
    shortcut: bool = False
    whitening: float = 0.0
    estimator: Literal["ste", "rotation"] = "ste"
    ema_decay: float = 0.99
    beam: int = 1
    losses: LossConfig = dataclasses.field(default_factory=LossConfig)
    tags: TagConfig = dataclasses.field(default_factory=TagConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    hierarchical: ClassVar[bool] = True
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_codebook_sizes(self.codebook_sizes, min_levels=2)
        check_network(self.latent_dim, self.hidden)
        check_range("coarse_dim", self.coarse_dim, 1, 4096)
        check_range("whitening", self.whitening, 0.0, 1.0)
        check_range("ema_decay", self.ema_decay, 0.0, 0.9999)
        check_range("beam", self.beam, 1, MAX_BEAM)


@dataclasses.dataclass(frozen=True)
class MocConfig:
    """Mixture of codes (2410.09560): independent codebooks on one latent, averaged.

    Attributes:
      codebook_sizes: codes of each codebook, 1 to 8 of them; they have no order.
      latent_dim: length of the vector that every codebook quantizes.
      hidden: widths of the encoder's hidden layers; the decoder mirrors them.
      shortcut: adds a linear path around the encoder's hidden layers; the decoder always has
        one.
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

    hierarchical: ClassVar[bool] = False
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_codebook_sizes(self.codebook_sizes, min_levels=1)
        check_network(self.latent_dim, self.hidden)
        check_range("commitment", self.commitment, 0.0, 100.0)
        check_range("ema_decay", self.ema_decay, 0.0, 0.9999)


@dataclasses.dataclass(frozen=True)
class VqConfig:
    """One k-means codebook in embedding space.

    Attributes:
      codebook_sizes: one size.
      iterations: Lloyd iterations.
      seed: seeds the first centroids.
    """

    codebook_sizes: tuple[int, ...] = (8192,)
    iterations: int = 25
    seed: int = 0

    hierarchical: ClassVar[bool] = False
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if len(self.codebook_sizes) != 1:
            raise ValueError(
                f"codebook_sizes of vq must name 1 codebook, got {list(self.codebook_sizes)}: "
                f"use rqkmeans for several levels"
            )
        check_codebook_sizes(self.codebook_sizes, min_levels=1)
        check_range("iterations", self.iterations, 1, 10_000)
        check_range("seed", self.seed, 0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class PqConfig:
    """Product quantization: each codebook quantizes its own slice of the embedding.

    Attributes:
      codebook_sizes: codes of each slice, 1 to 8 slices; they have no order.
      iterations: Lloyd iterations a slice.
      seed: seeds the first centroids.
    """

    codebook_sizes: tuple[int, ...] = DEFAULT_SIZES
    iterations: int = 25
    seed: int = 0

    hierarchical: ClassVar[bool] = False
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_codebook_sizes(self.codebook_sizes, min_levels=1)
        check_range("iterations", self.iterations, 1, 10_000)
        check_range("seed", self.seed, 0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class RqkmeansConfig:
    """Residual k-means in embedding space (OneRec 2506.13695).

    Attributes:
      codebook_sizes: codes per level, coarse to fine, 1 to 8 levels.
      iterations: Lloyd iterations a level.
      beam: code tuples kept per level when encoding; 1 is greedy.
      seed: seeds the first centroids.
    """

    codebook_sizes: tuple[int, ...] = DEFAULT_SIZES
    iterations: int = 25
    beam: int = 1
    seed: int = 0

    hierarchical: ClassVar[bool] = True
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_codebook_sizes(self.codebook_sizes, min_levels=1)
        check_range("iterations", self.iterations, 1, 10_000)
        check_range("beam", self.beam, 1, MAX_BEAM)
        check_range("seed", self.seed, 0, 2**31 - 1)


def multi_resolution(first: int, num_levels: int) -> tuple[int, ...]:
    """Returns codebook sizes that halve from level to level (PLUM 2510.07784), 2 at least."""
    return tuple(max(2, first >> level) for level in range(num_levels))


def check_range(key: str, value: float, low: float, high: float) -> None:
    """Refuses a value outside low..high.

    Raises:
      ValueError: naming key, value and limits.
    """
    if not low <= value <= high:
        raise ValueError(f"{key} must lie in {low}..{high}, got {value}")


def check_network(latent_dim: int, hidden: tuple[int, ...]) -> None:
    """Refuses widths outside 1..4096 (latent) and 1..65536 (hidden).

    Raises:
      ValueError: naming key, value and limits.
    """
    check_range("latent_dim", latent_dim, 1, 4096)
    for width in hidden:
        check_range("hidden", width, 1, 65536)


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
