"""The training loop of the neural tokenizers: an autoencoder with codebooks in between."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from models.autoencoder import (
    Autoencoder,
    build_autoencoder,
    fast_forward,
    in_blocks,
    order_axes,
    training_device,
)
from models.codebook_training import LearningCodebooks
from models.config import RqvaeConfig, TrainingConfig
from models.input_scaling import InputScaling
from models.losses import (
    balance_loss,
    commitment_loss,
    rotated,
    squared_error,
    straight_through,
)
from models.mlp import dense_network
from models.pair_mining import MINED_ROWS, SharedPairs, pair_loss, paired_depths
from models.tag_heads import TagHeads
from models.tags import TagTable
from models.trained_autoencoder import TrainedAutoencoder
from models.training_state import TrainingState
from models.warm_start import warm_training

MAX_HOLDOUT = 4096
# Rows on which collisions are watched while training: enough to have some, 40 ms on two cores.
WATCHED_ROWS = 4096
# Rows of a batch that are compared with their tags, and steps from one such batch to the next,
# each weighing as much more: as good as all 1,024 rows at every step for a quarter of the cost.
TAGGED_ROWS, STEPS_PER_TAGGED = 512, 2

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingInputs:
    """What a training run may be given besides the embeddings.

    Attributes:
      tags: tags of the same rows, for tag supervision.
      stream: called as (batch_size, seed), gives (batch_size, D) float32 batches for ever; most
        of each batch then comes from there, and the embeddings serve for scaling, k-means,
        colliding pairs and evaluation.
      checkpoint: called with bytes after every look at the held-out rows.
      resume: such bytes, to go on from.
      start: a trained model to go on from, in fewer and smaller steps (`warm_training`).
    """

    tags: TagTable | None = None
    stream: Callable[[int, int], Iterator[np.ndarray]] | None = None
    checkpoint: Callable[[bytes], None] | None = None
    resume: bytes | None = None
    start: TrainedAutoencoder | None = None

    def __post_init__(self) -> None:
        if self.tags is not None and self.stream is not None:
            raise ValueError(
                "streamed rows have no tags: fit on a sample that fits in memory, or without tags"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What training gives.

    Attributes:
      autoencoder: the networks and codebooks.
      tags: the tag classifiers, when there were tags.
      scalars: what was measured on held-out rows.
    """

    autoencoder: TrainedAutoencoder
    tags: TagHeads | None
    scalars: dict[str, float]


def train_autoencoder(
    config: RqvaeConfig,
    embeddings: np.ndarray,
    progress: Progress | None = None,
    inputs: TrainingInputs | None = None,
    *,
    parallel: bool = False,
) -> Trained:
    """Trains encoder, codebooks and decoder together, then the decoder alone.

    Args:
      config: architecture, losses and training settings.
      embeddings: (N, D) float32, N at least 1, in canonical order: the result depends on it.
      progress: called as (step, steps, scalars) at every look at the held-out rows.
      inputs: tags, a stream of more rows, checkpoints.
      parallel: independent codebooks whose codewords are averaged, instead of residual ones.

    Returns:
      The model that was best on the held-out rows.
    """
    inputs = inputs or TrainingInputs()
    sizes, words = config.codebook_sizes, () if inputs.start is None else inputs.start.codebooks
    settings, losses = config.training, config.losses
    if inputs.start is not None:
        settings = warm_training(settings)
    device = training_device(settings)
    generator = torch.Generator(device).manual_seed(settings.seed)
    scaling = InputScaling.of(embeddings, config.whitening)
    rows = torch.from_numpy(scaling.encoder_rows(embeddings)).to(device)
    targets = torch.from_numpy(scaling.target_rows(embeddings)).to(device)
    train, held_out = split_rows(len(rows), settings, generator)
    networks = build_autoencoder(config, scaling, embeddings, inputs.tags, inputs.start)
    networks = networks.to(device)
    tags = None if inputs.tags is None else torch.from_numpy(inputs.tags.ids).to(device)
    optimizer = _optimizer(networks, settings)
    state = TrainingState(networks, optimizer, generator, parallel, config.coarse_dim)
    if inputs.resume is not None:
        state.load_bytes(inputs.resume)
    encode, decode = (
        fast_forward(networks.encoder, settings),
        fast_forward(networks.decoder, settings),
    )
    fresh = inputs.stream and inputs.stream(settings.batch_size, settings.seed + state.step)
    depths = paired_depths(config)
    through = straight_through if config.estimator == "ste" else rotated

    while state.step < settings.steps and state.looks_without_progress < settings.patience:
        if state.step >= settings.warmup_steps and state.codebooks is None:
            if not (words or parallel):
                order_axes(networks, in_blocks(encode, rows[train]))
                # Its running means belong to the axes as they were.
                optimizer = state.optimizer = _optimizer(networks, settings)
            state.codebooks = LearningCodebooks.from_kmeans(
                in_blocks(encode, rows[train]),
                sizes,
                settings.batch_size,
                settings.seed,
                parallel,
                config.coarse_dim,
                words,
            )
        codebooks = state.codebooks
        if depths and codebooks is not None and state.step % settings.mine_every == 0:
            some = train[torch.randperm(len(train), generator=generator, device=device)]
            some = some[:MINED_ROWS]
            codes = codebooks.quantize(in_blocks(encode, rows[some])).codes
            state.pairs = {d: SharedPairs.among(codes[:, :d], some, generator) for d in depths}

        drawn = [(d, pairs.draw(depths[d], generator)) for d, pairs in state.pairs.items()]
        chosen = torch.cat([*(rows_of for _, rows_of in drawn), train[:0]])
        paired = len(chosen)
        rest = _draw(len(train), settings.batch_size - paired, generator)
        chosen = torch.cat([chosen, train[rest]])
        batch, target = rows[chosen], targets[chosen]
        if fresh is not None:
            new = next(fresh)[paired:]
            streamed = torch.from_numpy(scaling.encoder_rows(new)).to(device)
            batch = torch.cat([batch[:paired], streamed])
            streamed = torch.from_numpy(scaling.target_rows(new)).to(device)
            target = torch.cat([target[:paired], streamed])

        latents = encode(batch)
        if codebooks is None:
            loss = squared_error(decode(latents), target)
        else:
            found = codebooks.quantize(latents)
            spare = _draw(settings.batch_size, max(config.codebook_sizes), generator)
            codebooks.follow(found, config.ema_decay, spare)
            # Paired rows are there to be parted: reconstructing them too would bend the encoder
            # towards the dense regions they come from.
            quantized = through(latents, found.quantized)[paired:]
            loss = squared_error(decode(quantized), target[paired:])
            loss = loss + losses.commitment * commitment_loss(latents, found)
            if losses.balance > 0:
                # Deeper levels come out even by themselves: .95 of K and more, the first .89.
                first = codebooks.words if parallel else codebooks.words[:1]
                loss = loss + losses.balance * balance_loss(latents, found, first)
            start = 0
            for depth, rows_of in drawn:
                half = len(rows_of) // 2
                left, right = slice(start, start + half), slice(start + half, start + 2 * half)
                start += 2 * half
                loss = loss + pair_loss(config, latents, target, found, depth, left, right)
            tagged_step = state.step % STEPS_PER_TAGGED == 0
            if networks.supervision is not None and tags is not None and tagged_step:
                tagged = slice(paired, paired + TAGGED_ROWS)
                prefixes = [through(latents[tagged], anchor[tagged]) for anchor in found.anchors]
                aligned, predicted = networks.supervision.losses(prefixes, tags[chosen[tagged]])
                weighted = config.tags.alignment * aligned + config.tags.prediction * predicted
                loss = loss + STEPS_PER_TAGGED * weighted
        _set_rate(optimizer, settings.learning_rate * _cosine(state.step / settings.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        state.step += 1

        last = state.step == settings.steps
        if codebooks is None or not (last or state.step % settings.evaluate_every == 0):
            continue
        watched = torch.cat([held_out, train])[:WATCHED_ROWS]
        scalars = {"loss": float(loss.detach())}
        scalars |= _evaluate(state, rows[watched], targets[watched], len(held_out))
        if progress is not None:
            progress(state.step, settings.steps, scalars)
        _remember_best(state, scalars)
        if inputs.checkpoint is not None:
            inputs.checkpoint(state.to_bytes())
        # Begun anew where a run may be resumed, so that both runs draw the same rows from here on.
        fresh = inputs.stream and inputs.stream(settings.batch_size, settings.seed + state.step)

    state.load_model_tensors(state.best)
    if settings.decoder_steps:
        _train_readers(
            config, state, rows[train], targets[train], None if tags is None else tags[train]
        )
    scalars = _measure(state, rows, targets, tags, held_out)
    return _export(state, scaling, inputs.tags, scalars)


def split_rows(
    count: int, settings: TrainingConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns row numbers to train on and to hold out; a tiny sample serves as both."""
    order = torch.randperm(count, generator=generator, device=generator.device)
    kept = min(int(count * settings.holdout), MAX_HOLDOUT)
    return (order[kept:], order[:kept]) if kept >= 2 else (order, order[:MAX_HOLDOUT])


def _draw(limit: int, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(limit, (count,), generator=generator, device=generator.device)


def _optimizer(networks: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        networks.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def _evaluate(
    state: TrainingState, rows: torch.Tensor, targets: torch.Tensor, held_out: int
) -> dict[str, float]:
    """Measures rows of which the first `held_out` are not trained on.

    Returns:
      `error`, 1 - R2 of the held-out rows in the scaled space; `colliding`, the share of all
      rows that share all codes with another; `use`, of the least used level the share of codes
      with more than a tenth of an even share.
    """
    networks, codebooks = state.networks, state.codebooks
    assert isinstance(networks, Autoencoder) and codebooks is not None
    found = codebooks.quantize(in_blocks(networks.encoder, rows))
    wanted = targets[:held_out]
    decoded = in_blocks(networks.decoder, found.quantized[:held_out])
    spread = ((wanted - wanted.mean(dim=0)) ** 2).sum().clamp(min=1e-12)
    counts = torch.unique(found.codes, dim=0, return_counts=True)[1]
    return {
        "error": float(((decoded - wanted) ** 2).sum() / spread),
        "colliding": float(counts[counts > 1].sum() / len(rows)),
        "use": min(float((c > 0.1 * c.mean()).float().mean()) for c in codebooks.counts),
    }


def _remember_best(state: TrainingState, scalars: dict[str, float]) -> None:
    """Keeps the model if error plus collisions is the lowest seen."""
    best = state.best_scalars
    state.looks_without_progress += 1
    if not best or scalars["error"] + scalars["colliding"] <= best["error"] + best["colliding"]:
        state.best, state.best_scalars = state.model_tensors(), scalars
        state.looks_without_progress = 0


def _train_readers(
    config: RqvaeConfig,
    state: TrainingState,
    rows: torch.Tensor,
    targets: torch.Tensor,
    tags: torch.Tensor | None,
) -> None:
    """Trains decoder and tag classifiers on the final codes, which no longer move under them."""
    settings = config.training
    networks, codebooks = state.networks, state.codebooks
    assert isinstance(networks, Autoencoder) and codebooks is not None
    latents = in_blocks(networks.encoder, rows)
    found = [codebooks.quantize(block) for block in latents.split(4096)]
    quantized = torch.cat([block.quantized for block in found])
    anchors = [torch.cat(level) for level in zip(*(block.anchors for block in found), strict=True)]
    networks.encoder.requires_grad_(False)
    optimizer = _optimizer(networks, settings)
    decode = fast_forward(networks.decoder, settings)
    for step in range(settings.decoder_steps):
        chosen = _draw(len(quantized), settings.batch_size, state.generator)
        loss = squared_error(decode(quantized[chosen]), targets[chosen])
        if networks.supervision is not None and tags is not None:
            some = chosen[:TAGGED_ROWS]
            prefixes = [level[some] for level in anchors]
            loss = loss + networks.supervision.losses(prefixes, tags[some])[1]
        _set_rate(optimizer, settings.learning_rate * _cosine(step / settings.decoder_steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _measure(
    state: TrainingState,
    rows: torch.Tensor,
    targets: torch.Tensor,
    tags: torch.Tensor | None,
    held_out: torch.Tensor,
) -> dict[str, float]:
    """Returns the best look's scalars, with the error and tag accuracy of the final model."""
    networks, codebooks = state.networks, state.codebooks
    assert isinstance(networks, Autoencoder) and codebooks is not None
    scalars = dict(state.best_scalars)
    now = _evaluate(state, rows[held_out], targets[held_out], len(held_out))
    scalars["error"] = now["error"]
    scalars["steps"] = state.step
    if networks.supervision is not None and tags is not None:
        found = codebooks.quantize(in_blocks(networks.encoder, rows[held_out]))
        accuracy = networks.supervision.accuracy(found.anchors, tags[held_out])
        scalars |= {f"tag_accuracy_{depth + 1}": share for depth, share in enumerate(accuracy)}
    return scalars


def _export(
    state: TrainingState,
    scaling: InputScaling,
    tags: TagTable | None,
    scalars: dict[str, float],
) -> Trained:
    """Folds the scaling into the networks and rounds everything to float32 once."""
    networks, codebooks = state.networks, state.codebooks
    assert isinstance(networks, Autoencoder) and codebooks is not None
    dim = len(scaling.mean)
    typical = float(codebooks.words[0].square().mean().sqrt())
    heads = None
    if networks.supervision is not None and tags is not None:
        heads = networks.supervision.export(tags.names)
    autoencoder = TrainedAutoencoder(
        encoder=dense_network(
            networks.encoder, _grid(typical), before=(scaling.matrix, scaling.mean)
        ),
        decoder=dense_network(
            networks.decoder,
            _grid(scaling.scale / math.sqrt(dim)),
            after=(np.eye(dim) * scaling.scale, scaling.mean),
        ),
        codebooks=tuple(book.cpu().numpy().copy() for book in codebooks.words),
    )
    return Trained(autoencoder, heads, scalars)


def _grid(typical: float) -> float:
    """Returns a power of two about 2^-18 of a typical coordinate."""
    return 2.0 ** (math.floor(math.log2(max(typical, 2.0**-40))) - 18)
