"""Encode throughput of rqvae against the bare matrix products of the same shapes.

  python -m benchmarks.encode                 # random weights, 3 x 256, D 384, 200,000 rows
  python -m benchmarks.encode --rows 2000000 --device cuda

The bare products are the encoder's layers and the inner products with every codebook, in float32,
on the same blocks, without bias, activation, argmin, residuals, ties or the trip from numpy: the
floor under any such encoder. Both are timed in turn, several times; the table has medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from models.config import RqvaeConfig, TrainingConfig
from models.nearest import SEARCH_ROWS
from models.rqvae import Rqvae, fit_rqvae


def bare_products(quantizer: Rqvae, rows: torch.Tensor) -> float:
    """Runs the matrix products of encoding all rows and returns the seconds."""
    _, arrays = quantizer.state()
    device = rows.device
    weights = [
        torch.from_numpy(arrays[name]).to(device)
        for name in sorted(arrays)
        if name.startswith("encoder.") and name.endswith(".weight")
    ]
    shortcut = None
    if "encoder.shortcut" in arrays:
        shortcut = torch.from_numpy(arrays["encoder.shortcut"]).to(device)
    books = [torch.from_numpy(book.T.copy()).to(device) for book in quantizer.codebooks]
    _wait(device)
    started = time.perf_counter()
    with torch.inference_mode():
        for block in rows.split(SEARCH_ROWS):
            hidden = block
            for weight in weights:
                hidden = hidden @ weight
            if shortcut is not None:
                hidden = hidden + block @ shortcut
            for book in books:
                hidden @ book
    _wait(device)
    return time.perf_counter() - started


def encoding(quantizer: Rqvae, rows: np.ndarray) -> float:
    """Encodes all rows and returns the seconds."""
    started = time.perf_counter()
    quantizer.encode(rows)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Prints medians of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    centres = random.normal(size=(512, arguments.dim))
    rows = centres[random.integers(512, size=arguments.rows)]
    rows = rows + 0.7 * random.normal(size=rows.shape)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    training = TrainingConfig(steps=200, warmup_steps=50, decoder_steps=0)
    quantizer, _ = fit_rqvae(RqvaeConfig(training=training), rows[:20_000])
    on_device = torch.from_numpy(rows).to(arguments.device)
    bare_products(quantizer, on_device[:8192])
    encoding(quantizer, rows[:8192])
    bare, full = [], []
    for _ in range(arguments.repeats):
        bare.append(bare_products(quantizer, on_device))
        full.append(encoding(quantizer, rows))
    ratio = statistics.median(b / f for b, f in zip(bare, full, strict=True))
    print(f"rows {arguments.rows:,}  dimensions {arguments.dim}  threads {torch.get_num_threads()}")
    print(f"bare products  {arguments.rows / statistics.median(bare):12,.0f} items/s")
    print(f"rqvae.encode   {arguments.rows / statistics.median(full):12,.0f} items/s")
    print(f"encode / bare  {ratio:12.1%}")


if __name__ == "__main__":
    main()
