"""Fits every tokenizer and the public baselines on the same embeddings and prints one table.

  python -m benchmarks.tokenizers ITEMS.parquet...                      # seeds 0, 1, 2; medians
  python -m benchmarks.tokenizers ITEMS.parquet --only "rqvae;rqkmeans" --seeds 0
  python -m benchmarks.tokenizers ITEMS.parquet --equal-time 10,20,40   # quality against seconds
  python -m benchmarks.tokenizers ITEMS.parquet --ablations             # losses and tags off and on
  pip install vector-quantize-pytorch                                   # adds its rows

Embeddings come from the default encoder and are kept in --cache. `rqvae` is what `semid tokenize`
fits by default: category paths supervise it where the catalog has them; "rqvae, embeddings alone"
is not supervised, like every other row. All hierarchical tokenizers use 3 levels of 256, 24 bits an
item; vq has one level of 8192, which is what a single codebook can have.
Seconds are wall time with whatever else the machine does: run it alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.baselines import (
    Baseline,
    faiss_residual_kmeans,
    faiss_residual_quantizer,
    vector_quantize_pytorch,
)
from benchmarks.items import Items, load_items
from models import metrics
from models.autoencoder_training import TrainingInputs, split_rows
from models.config import (
    MocConfig,
    PqConfig,
    RqkmeansConfig,
    RqvaeConfig,
    TrainingConfig,
    VqConfig,
)
from models.neighbours import find_neighbours
from models.rqvae import Rqvae
from models.tags import NO_TAG, TagTable
from models.tokenizers import QuantizerConfig, fit_quantizer, from_files, to_files

SIZES = (256, 256, 256)
SUPERVISED = "rqvae"
Row = dict[str, object]


def measure(
    items: Items,
    sizes: tuple[int, ...],
    encode: Callable[[np.ndarray], np.ndarray],
    decode: Callable[[np.ndarray], np.ndarray],
    seconds: float,
) -> Row:
    """Returns all columns of one fitted tokenizer; encoding is timed on the second call."""
    encode(items.embeddings[:4096])
    started = time.perf_counter()
    codes = encode(items.embeddings)
    rate = len(codes) / (time.perf_counter() - started)
    collided = metrics.collisions(codes)
    row: Row = {
        "fit_s": seconds,
        "encode_per_s": rate,
        "a": collided["a"],
        "b": collided["b"],
        "perplexity": [u["perplexity_share"] for u in metrics.code_use(codes, sizes)],
        "cosine": metrics.prefix_cosine(codes, items.embeddings)[1:],
        "one_minus_r2": metrics.one_minus_r2(items.embeddings, decode(codes)),
        "neighbourhood": metrics.neighbourhood(codes, find_neighbours(items.embeddings)),
    }
    if any(items.category_paths):
        agreement = metrics.category_agreement(codes, items.category_paths, 1, 1)
        row["category"] = agreement["share"]
    return row


def fit_and_measure(
    items: Items, config: QuantizerConfig, inputs: TrainingInputs | None = None
) -> tuple[Row, Rqvae | None]:
    """Fits one of this package's tokenizers; it is measured after a round trip through bytes."""
    started = time.perf_counter()
    fitted, report = fit_quantizer(config, items.embeddings, None, inputs)
    seconds = time.perf_counter() - started
    quantizer = from_files(to_files(fitted, report))
    row = measure(items, config.codebook_sizes, quantizer.encode, quantizer.decode, seconds)
    last = report["last"]
    assert isinstance(last, dict)
    row |= {name: value for name, value in last.items() if name.startswith("tag_accuracy")}
    return row, quantizer if isinstance(quantizer, Rqvae) else None


def with_seed(config: QuantizerConfig, seed: int) -> QuantizerConfig:
    """Returns the configuration with another seed."""
    if isinstance(config, RqvaeConfig | MocConfig):
        return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
    return dataclasses.replace(config, seed=seed)


def category_tags(items: Items) -> TrainingInputs | None:
    """Returns category paths as the job gives them to a fit, None where there are none."""
    if not any(items.category_paths):
        return None
    rare = RqvaeConfig().tags.rare
    return TrainingInputs(tags=TagTable.from_paths(items.category_paths, len(SIZES), rare))


def contenders(only: set[str]) -> dict[str, Callable[[Items, int], Row]]:
    """Returns, by name, how a tokenizer is fitted and measured with a seed."""
    own: dict[str, QuantizerConfig] = {
        SUPERVISED: RqvaeConfig(),
        "rqvae, embeddings alone": RqvaeConfig(),
        "rqvae, beam 8": RqvaeConfig(beam=8),
        "rqkmeans": RqkmeansConfig(),
        "rqkmeans, beam 8": RqkmeansConfig(beam=8),
        "moc": MocConfig(),
        "vq 8192": VqConfig(),
        "pq": PqConfig(),
    }
    found: dict[str, Callable[[Items, int], Row]] = {}
    for name, config in own.items():
        found[name] = lambda items, seed, config=config, name=name: fit_and_measure(
            items,
            with_seed(config, seed),
            category_tags(items) if name == SUPERVISED else None,
        )[0]
    baselines: dict[str, Callable[[np.ndarray, int], Baseline]] = {
        "faiss residual k-means": lambda rows, seed: faiss_residual_kmeans(rows, SIZES, seed),
        "faiss ResidualQuantizer": lambda rows, seed: faiss_residual_quantizer(rows, SIZES, seed),
    }
    if importlib.util.find_spec("vector_quantize_pytorch"):
        baselines["vector-quantize-pytorch"] = lambda rows, seed: vector_quantize_pytorch(
            RqvaeConfig(), rows, seed
        )
    for name, fit in baselines.items():

        def run(items: Items, seed: int, fit: Callable[[np.ndarray, int], Baseline] = fit) -> Row:
            fitted = fit(items.embeddings, seed)
            return measure(items, SIZES, fitted.encode, fitted.decode, fitted.seconds)

        found[name] = run
    return {name: run for name, run in found.items() if not only or name in only}


def median_row(rows: list[Row]) -> Row:
    """Returns the median of every column over seeds, element by element for lists."""
    out: Row = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, list):
            out[name] = [
                None if None in column else statistics.median(column)
                for column in zip(*values, strict=True)
            ]
        else:
            out[name] = statistics.median(values)
    return out


def equal_time(items: Items, budgets: list[float], seed: int) -> list[tuple[str, Row]]:
    """Fits rqvae and vector-quantize-pytorch in the same wall time.

    The steps of rqvae are set from the speed of a short fit, so that its schedule ends in time;
    the baseline gets as many steps of the same schedule and is stopped when the time is up.
    """
    probe = dataclasses.replace(TrainingConfig(), seed=seed, steps=200, warmup_steps=100)
    started = time.perf_counter()
    fit_quantizer(RqvaeConfig(training=probe), items.embeddings)
    step_seconds = (time.perf_counter() - started) / (200 + probe.decoder_steps / 2)
    rows = []
    default = TrainingConfig()
    for budget in budgets:
        share = budget / step_seconds / (default.steps + default.decoder_steps / 2)
        training = dataclasses.replace(
            default,
            seed=seed,
            steps=max(20, int(default.steps * share)),
            warmup_steps=int(default.warmup_steps * share),
            decoder_steps=int(default.decoder_steps * share),
        )
        config = RqvaeConfig(training=training)
        rows.append((f"rqvae, {budget:g} s", fit_and_measure(items, config)[0]))
        if importlib.util.find_spec("vector_quantize_pytorch"):
            fitted = vector_quantize_pytorch(config, items.embeddings, seed, budget)
            row = measure(items, SIZES, fitted.encode, fitted.decode, fitted.seconds)
            rows.append((f"vector-quantize-pytorch, {budget:g} s", row))
    return rows


def linear_probe(items: Items, tags: TagTable, training: TrainingConfig) -> list[float]:
    """Accuracy per depth of softmax regression on the raw embedding, on the same held-out items."""
    generator = torch.Generator().manual_seed(training.seed)
    train, held_out = split_rows(len(items.embeddings), training, generator)
    rows = torch.from_numpy(items.embeddings - items.embeddings.mean(axis=0))
    rows = rows / rows.square().sum(dim=1).mean().sqrt()
    shares = []
    for depth, names in enumerate(tags.names):
        target = torch.from_numpy(tags.ids[:, depth])
        known = train[target[train] != NO_TAG]
        probe = torch.nn.Linear(rows.shape[1], len(names))
        optimizer = torch.optim.AdamW(probe.parameters(), lr=0.03, weight_decay=1e-3)
        for step in range(400):
            for group in optimizer.param_groups:
                group["lr"] = 0.03 * (1 - step / 400)
            batch = known[torch.randint(len(known), (1024,), generator=generator)]
            loss = torch.nn.functional.cross_entropy(probe(rows[batch]), target[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        asked = held_out[target[held_out] != NO_TAG]
        right = probe(rows[asked]).argmax(dim=1) == target[asked]
        shares.append(float(right.float().mean()))
    return shares


def ablations(path: str, cache: str, seed: int) -> list[tuple[str, Row]]:
    """Uniqueness loss off and on, and tag supervision off and on with text without categories."""
    items = load_items(path, cache)
    default = RqvaeConfig()
    off = dataclasses.replace(default.losses, separation=0.0)
    training = default.training
    rows = []
    for name, config in {
        "embeddings alone": default,
        "separation off": dataclasses.replace(default, losses=off),
        "separation off, uniqueness of HiD-VAE": dataclasses.replace(
            default, losses=dataclasses.replace(off, uniqueness=2.0)
        ),
        "balance 0.07": dataclasses.replace(
            default, losses=dataclasses.replace(default.losses, balance=0.07)
        ),
        "all axes at level 1": dataclasses.replace(default, coarse_dim=default.latent_dim),
        "residual MLP": dataclasses.replace(default, shortcut=True),
        "rotation trick": dataclasses.replace(default, estimator="rotation"),
        "whitening 0.5": dataclasses.replace(default, whitening=0.5),
        "no decoder phase": dataclasses.replace(
            default, training=dataclasses.replace(training, decoder_steps=0)
        ),
        "float32 products": dataclasses.replace(
            default, training=dataclasses.replace(training, precision="float32")
        ),
    }.items():
        rows.append((name, fit_and_measure(items, with_seed(config, seed))[0]))
    rows.append(
        ("tags on", fit_and_measure(items, with_seed(default, seed), category_tags(items))[0])
    )
    bare = load_items(path, cache, with_categories=False)
    training = dataclasses.replace(training, holdout=0.2, seed=seed)
    held = dataclasses.replace(default, training=training)
    inputs = category_tags(bare)
    assert inputs is not None and inputs.tags is not None, f"{path} has no category paths"
    tags = inputs.tags
    rows.append(("text without categories, tags off", fit_and_measure(bare, held)[0]))
    for weight in (default.tags.prediction, 0.1, 1.0):
        weighted = dataclasses.replace(default.tags, alignment=weight, prediction=weight)
        config = dataclasses.replace(held, tags=weighted)
        row = fit_and_measure(bare, config, inputs)[0]
        rows.append((f"text without categories, tags {weight:g}", row))
    probe = linear_probe(bare, tags, training)
    rows.append(("linear probe", {f"tag_accuracy_{n + 1}": share for n, share in enumerate(probe)}))
    return rows


def show(title: str, rows: list[tuple[str, Row]], floor: dict[str, float]) -> None:
    """Prints a Markdown table."""
    print(f"\n{title}   (identical texts: A {floor['a']:.4f}, B {floor['b']:.4f})\n")
    extra = sorted({key for _, row in rows for key in row if key.startswith("tag_accuracy")})
    columns = [
        ("fit s", "fit_s", "{:.1f}"),
        ("encode/s", "encode_per_s", "{:,.0f}"),
        ("A", "a", "{:.4f}"),
        ("B", "b", "{:.4f}"),
        ("perplexity/K", "perplexity", "{:.3f}"),
        ("cosine at prefix 1..L", "cosine", "{:.3f}"),
        ("1-R2", "one_minus_r2", "{:.4f}"),
        ("10 neighbours share prefix", "neighbourhood", "{:.3f}"),
        ("category", "category", "{:.4f}"),
        *((key.replace("_", " "), key, "{:.4f}") for key in extra),
    ]
    print("| tokenizer | " + " | ".join(title for title, _, _ in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in rows:
        cells = []
        for _, key, form in columns:
            value = row.get(key)
            values = value if isinstance(value, list) else [value]
            cells.append(" ".join("-" if v is None else form.format(v) for v in values))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("items", nargs="+", help="Parquet files of items")
    parser.add_argument("--cache", default="build/embeddings", help="folder of embeddings")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="names of tokenizers, by semicolons")
    parser.add_argument("--equal-time", default="", help="seconds, by commas")
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--json", help="file that gets the table's numbers")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    document: dict[str, dict[str, Row]] = {}
    for path in arguments.items:
        items = load_items(path, arguments.cache)
        if arguments.equal_time:
            budgets = [float(budget) for budget in arguments.equal_time.split(",")]
            rows = equal_time(items, budgets, seeds[0])
        elif arguments.ablations:
            rows = ablations(path, arguments.cache, seeds[0])
        else:
            chosen = contenders({name for name in arguments.only.split(";") if name})
            rows = [
                (name, median_row([run(items, seed) for seed in seeds]))
                for name, run in chosen.items()
            ]
        show(items.name, rows, metrics.collisions(np.array(items.text_hashes, dtype=np.bytes_)))
        document[items.name] = dict(rows)
    if arguments.json:
        with open(arguments.json, "w") as handle:
            json.dump(document, handle, indent=2)


if __name__ == "__main__":
    main()
