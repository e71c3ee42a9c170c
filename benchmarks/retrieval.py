"""Hierarchical retrieval against exact flat search: recall, time, and growth with the catalog.

  python -m benchmarks.retrieval beauty.npy instacart.npy --rows 1000000 2000000
  python -m benchmarks.retrieval instacart.npy --rows 0          # the file's own rows, once

Arguments are .npy files of unit-norm float32 embeddings. A catalog of R rows repeats them with
isotropic noise of the given norm, renormalised; queries are other noisy copies. IDs are residual
k-means codes of 3 x 256 fitted on the unrepeated rows, shared where they collide. Exact search is
faiss.knn, what IndexFlatIP does, with the same threads. Both searches take turns; times are the
best of all turns.
"""

from __future__ import annotations

import argparse
import time

import faiss
import numpy as np
import torch

from models.config import RqkmeansConfig
from models.retrieval import HierarchicalIndex, SearchWidths
from models.rqkmeans import Rqkmeans, fit_rqkmeans
from models.sid import SidLayout
from models.trie_build import build_trie

BLOCK = 100_000


def noisy_copies(rows: np.ndarray, count: int, noise: float, seed: int) -> np.ndarray:
    """Draws rows at random and moves each by noise of the given norm."""
    rng = np.random.default_rng(seed)
    result = np.empty((count, rows.shape[1]), np.float32)
    for start in range(0, count, BLOCK):
        block = result[start : start + BLOCK]
        block[:] = rng.standard_normal(block.shape, dtype=np.float32)
        block *= noise / np.sqrt(rows.shape[1])
        block += rows[rng.integers(0, len(rows), len(block))]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return result


def index_of(catalog: np.ndarray, quantizer: Rqkmeans) -> HierarchicalIndex:
    """Encodes a catalog and builds its index; rows are put in SID order."""
    layout = SidLayout.fitting(quantizer.codebook_sizes)
    sids = np.concatenate(
        [
            layout.pack(quantizer.encode(catalog[start : start + BLOCK]))
            for start in range(0, len(catalog), BLOCK)
        ]
    )
    order = np.argsort(sids, kind="stable")
    trie = build_trie([sids[order]], layout, allow_shared=True)
    return HierarchicalIndex(trie, quantizer.codebooks, catalog[order])


def main() -> None:
    """Runs every catalog size and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", nargs="+")
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 2 * 10**6])
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--beam", type=int, default=SearchWidths.beam)
    parser.add_argument("--candidates", type=int, default=SearchWidths.candidates)
    parser.add_argument("--rerank", type=int, default=SearchWidths.rerank)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    real = np.concatenate([np.load(path) for path in args.embeddings]).astype(np.float32)
    quantizer = fit_rqkmeans(RqkmeansConfig(iterations=10), real)
    queries = noisy_copies(real, args.queries, args.noise, seed=2)
    latents = quantizer.latents(queries)
    widths = SearchWidths(args.beam, args.candidates, args.rerank)
    print(f"{args.queries} queries a batch, noise {args.noise}, {widths}", flush=True)
    previous = None
    for rows in args.rows:
        catalog = noisy_copies(real, rows, args.noise, seed=1) if rows else real
        index = index_of(catalog, quantizer)
        del catalog
        items = index.embeddings.numpy()
        times: dict[str, list[float]] = {"flat": [], "hierarchical": []}
        for _ in range(args.turns):
            start = time.perf_counter()
            _, exact = faiss.knn(queries, items, 10, faiss.METRIC_INNER_PRODUCT)
            times["flat"].append(time.perf_counter() - start)
            start = time.perf_counter()
            found = index.search(queries, latents, 10, widths)
            times["hierarchical"].append(time.perf_counter() - start)
        hits = [len(set(row) & set(best)) for row, best in zip(found.rows, exact, strict=True)]
        ours, theirs = min(times["hierarchical"]), min(times["flat"])
        growth = f", time x {ours / previous:.2f}" if previous else ""
        previous = ours
        print(
            f"{index.trie.num_rows:>9,} rows: recall@10 {np.mean(hits) / 10:.4f}, hierarchical "
            f"{1e3 * ours:.0f} ms, flat {1e3 * theirs:.0f} ms, time saved {1 - ours / theirs:.1%}"
            f"{growth}",
            flush=True,
        )


if __name__ == "__main__":
    main()
