"""Fits a tokenizer again on a catalog that has grown by a tenth: how many codes stay?

  python -m benchmarks.refit ITEMS.parquet...
  python -m benchmarks.refit ITEMS.parquet --only rqkmeans --seed 3

The first tokenizer is fitted on 1 / 1.1 of the items, drawn at random. Then, on all of them: a
naive re-fit from another seed; the same, its codes numbered after the first one's (`semid fit`);
and one that starts from the first one and is numbered after it (`semid fit --warm-start`). Kept is
the share of the first items whose base codes, the first 1, 2 and 3 of them, are what they were.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from benchmarks.items import load_items
from benchmarks.tokenizers import with_seed
from models import metrics
from models.alignment import align_codes, renumber
from models.config import RqkmeansConfig, RqvaeConfig
from models.quantizer import Quantizer
from models.tokenizers import QuantizerConfig, fit_quantizer

GROWTH = 1.1
KINDS: dict[str, QuantizerConfig] = {"rqvae": RqvaeConfig(), "rqkmeans": RqkmeansConfig()}
Row = dict[str, object]


def refit(embeddings: np.ndarray, config: QuantizerConfig, seed: int) -> dict[str, Row]:
    """Fits four times.

    Args:
      embeddings: (N, D) float32.
      config: of the tokenizer.
      seed: of the first fit and of the warm-started one; the naive re-fit and the draw of the
        first items take the next one.

    Returns:
      A row of figures per way to fit.
    """
    draw = np.random.default_rng(seed + 1).permutation(len(embeddings))
    first_rows = np.sort(draw[: round(len(embeddings) / GROWTH)])

    def fit(fit_seed: int, rows: np.ndarray, start: Quantizer | None = None) -> tuple:
        started = time.perf_counter()
        fitted = fit_quantizer(with_seed(config, fit_seed), rows, start=start)[0]
        return fitted, time.perf_counter() - started

    def figures(quantizer: Quantizer, seconds: float) -> Row:
        codes = quantizer.encode(embeddings)
        use = metrics.code_use(codes, quantizer.codebook_sizes)
        return {
            "fit_s": seconds,
            "kept": metrics.kept(codes[first_rows], before),
            "b": metrics.collisions(codes)["b"],
            "perplexity": [level["perplexity_share"] for level in use],
            "one_minus_r2": metrics.one_minus_r2(embeddings, quantizer.decode(codes)),
        }

    def aligned(quantizer: Quantizer) -> Quantizer:
        codes = quantizer.encode(embeddings[first_rows])
        return renumber(quantizer, align_codes(codes, before, quantizer.codebook_sizes))

    first, seconds = fit(seed, embeddings[first_rows])
    before = first.encode(embeddings[first_rows])
    rows = {"first": figures(first, seconds)}
    naive, seconds = fit(seed + 1, embeddings)
    rows["naive"] = figures(naive, seconds)
    rows["aligned"] = figures(aligned(naive), seconds)
    warm, seconds = fit(seed, embeddings, first)
    rows["warm start, aligned"] = figures(aligned(warm), seconds)
    return rows


def show(name: str, kind: str, rows: dict[str, Row]) -> None:
    """Prints one table."""
    print(f"\n### {name}, {kind}\n")
    print("| fit | s | kept 1, 2, 3 codes | B | perplexity/K | 1-R2 |\n|---|---|---|---|---|---|")
    for title, row in rows.items():
        kept, use = row["kept"], row["perplexity"]
        assert isinstance(kept, list) and isinstance(use, list)
        print(
            f"| {title} | {row['fit_s']:.1f} | {' '.join(f'{share:.3f}' for share in kept)} | "
            f"{row['b']:.3f} | {' '.join(f'{share:.3f}' for share in use)} | "
            f"{row['one_minus_r2']:.4f} |",
            flush=True,
        )


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("items", nargs="+", help="Parquet files of items")
    parser.add_argument("--cache", default="build/embeddings", help="folder of embeddings")
    parser.add_argument("--only", choices=sorted(KINDS), help="one kind of tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file that gets the tables' numbers")
    arguments = parser.parse_args()
    document: dict[str, dict[str, dict[str, Row]]] = {}
    for path in arguments.items:
        items = load_items(path, arguments.cache)
        document[items.name] = {}
        for kind in [arguments.only] if arguments.only else KINDS:
            rows = refit(items.embeddings, KINDS[kind], arguments.seed)
            show(items.name, kind, rows)
            document[items.name][kind] = rows
    if arguments.json:
        with open(arguments.json, "w") as handle:
            json.dump(document, handle, indent=2)


if __name__ == "__main__":
    main()
