"""Public ways to make the same codes, as they come from PyPI, for `benchmarks/tokenizers.py`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from models.config import RqvaeConfig
from models.input_scaling import InputScaling
from models.mlp import ResidualMlp


@dataclasses.dataclass(frozen=True, eq=False)
class Baseline:
    """A fitted public quantizer.

    Attributes:
      encode: (N, D) float32 to (N, L) codes.
      decode: (N, L) codes to (N, D) reconstructions.
      seconds: what fitting took.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    seconds: float


def faiss_residual_kmeans(rows: np.ndarray, sizes: tuple[int, ...], seed: int) -> Baseline:
    """`faiss.Kmeans` per level on the residual, all rows, 25 iterations."""
    started = time.perf_counter()
    books, residual = [], rows
    for level, size in enumerate(sizes):
        clustering = faiss.Kmeans(
            rows.shape[1],
            size,
            niter=25,
            seed=seed + level + 1,
            min_points_per_centroid=1,
            max_points_per_centroid=len(rows),
        )
        clustering.train(residual)
        books.append(clustering.centroids.copy())
        residual = residual - books[-1][clustering.index.search(residual, 1)[1][:, 0]]
    seconds = time.perf_counter() - started
    indexes = []
    for book in books:
        indexes.append(faiss.IndexFlatL2(book.shape[1]))
        indexes[-1].add(book)

    def encode(embeddings: np.ndarray) -> np.ndarray:
        left, codes = embeddings, []
        for index, book in zip(indexes, books, strict=True):
            codes.append(index.search(left, 1)[1][:, 0])
            left = left - book[codes[-1]]
        return np.stack(codes, axis=1)

    def decode(codes: np.ndarray) -> np.ndarray:
        return np.sum([book[codes[:, level]] for level, book in enumerate(books)], axis=0)

    return Baseline(encode, decode, seconds)


def faiss_residual_quantizer(rows: np.ndarray, sizes: tuple[int, ...], seed: int) -> Baseline:
    """`faiss.ResidualQuantizer`, progressive-dimension training, beam of 5 (its default)."""
    started = time.perf_counter()
    bits = faiss.UInt64Vector()
    for size in sizes:
        bits.push_back(int(math.log2(size)))
    quantizer = faiss.ResidualQuantizer(rows.shape[1], bits)
    quantizer.cp.seed = seed + 1
    quantizer.train(rows)
    seconds = time.perf_counter() - started

    def encode(embeddings: np.ndarray) -> np.ndarray:
        packed = quantizer.compute_codes(embeddings)
        codes = np.unpackbits(packed, axis=1, bitorder="little")
        columns, start = [], 0
        for size in sizes:
            width = int(math.log2(size))
            columns.append(codes[:, start : start + width] @ (1 << np.arange(width)))
            start += width
        return np.stack(columns, axis=1)

    def decode(codes: np.ndarray) -> np.ndarray:
        bits_of = [
            (codes[:, level, None] >> np.arange(int(math.log2(size)))) & 1
            for level, size in enumerate(sizes)
        ]
        packed = np.packbits(np.concatenate(bits_of, 1).astype(np.uint8), 1, bitorder="little")
        return quantizer.decode(np.ascontiguousarray(packed))

    return Baseline(encode, decode, seconds)


def vector_quantize_pytorch(
    config: RqvaeConfig, rows: np.ndarray, seed: int, seconds: float = math.inf
) -> Baseline:
    """`vector_quantize_pytorch.ResidualVQ` in the autoencoder of the configuration.

    Same widths, steps, batch, warm-up, learning rate and schedule; k-means initialisation, EMA and
    the library's own dead-code reset switched on. Stops early when the seconds are used up.

    Raises:
      ImportError: the package is not installed.
    """
    from vector_quantize_pytorch import ResidualVQ

    training = config.training
    torch.manual_seed(seed)
    started = time.perf_counter()
    scaling = InputScaling.of(rows, 0.0)
    inputs = torch.from_numpy(scaling.target_rows(rows))
    widths = (rows.shape[1], *config.hidden, config.latent_dim)
    encoder = ResidualMlp(widths, config.shortcut)
    decoder = ResidualMlp(widths[::-1], shortcut=True)
    quantizer = ResidualVQ(
        dim=config.latent_dim,
        num_quantizers=len(config.codebook_sizes),
        codebook_size=config.codebook_sizes[0],
        kmeans_init=True,
        kmeans_iters=20,
        decay=config.ema_decay,
        threshold_ema_dead_code=0.03,
        commitment_weight=config.losses.commitment,
    )
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *decoder.parameters()],
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=True,
    )
    for step in range(training.steps):
        if time.perf_counter() - started > seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = (
                training.learning_rate * 0.5 * (1 + math.cos(math.pi * step / training.steps))
            )
        batch = inputs[torch.randint(len(inputs), (training.batch_size,))]
        latents = encoder(batch)
        commitment = torch.zeros(())
        if step >= training.warmup_steps:
            latents, _, losses = quantizer(latents[None])
            latents, commitment = latents[0], losses.sum()
        loss = ((decoder(latents) - batch) ** 2).sum(dim=1).mean() + commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    quantizer.eval()
    spent = time.perf_counter() - started

    @torch.inference_mode()
    def encode(embeddings: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy(scaling.target_rows(embeddings))
        parts = [quantizer(encoder(block)[None])[1][0] for block in scaled.split(2048)]
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def decode(codes: np.ndarray) -> np.ndarray:
        summed = quantizer.get_output_from_indices(torch.from_numpy(codes)[None])[0]
        return decoder(summed).numpy() * scaling.scale + scaling.mean

    return Baseline(encode, decode, spent)
