"""Encoding against plain `SentenceTransformer.encode` in float32, with its defaults.

  python -m benchmarks.embedding amazon_office2018_items.parquet wikimovies_items.parquet

Text comes from the job's own template. Every path encodes the same texts in turn, several times;
the ratio is the median over repeats of plain seconds / seconds. Loading, converting and calibrating
are done before (`prepare`, seconds). Cosines are those to the plain vectors.

`bare products` are what the processor allows: the products of all the model's linear layers with
as many tokens as the texts have, in either type, and nothing else: no attention, activation,
normalization, padding or tokenization.

With --metrics, residual k-means is fitted on the vectors of each path, and the quality figures of
its codes are printed, measured on the plain vectors, with the share of items whose first codes
are the same when the tokenizer fitted on plain vectors encodes them, and of their 10 nearest items.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.items import item_texts
from models import metrics
from models.config import RqkmeansConfig
from models.neighbours import find_neighbours
from models.tokenizers import fit_quantizer
from schemas.config import EncoderConfig
from semid_transforms.encoder import SentenceEncoder
from semid_transforms.encoder_identity import model_folder

PLAIN = "SentenceTransformer.encode"

BARE_TOKENS = 4096

Encode = Callable[[list[str]], np.ndarray]


def paths(only: list[str]) -> dict[str, EncoderConfig]:
    """Returns the paths that this machine can take, by name."""
    plain = EncoderConfig(device="cpu")
    found = {
        "torch float32": dataclasses.replace(plain, backend="torch", precision="float32"),
        "torch bfloat16": dataclasses.replace(plain, backend="torch", precision="bfloat16"),
    }
    if importlib.util.find_spec("openvino"):
        found["OpenVINO"] = dataclasses.replace(plain, backend="openvino")
        if importlib.util.find_spec("nncf"):
            found["OpenVINO int8"] = dataclasses.replace(plain, precision="int8")
    return {name: config for name, config in found.items() if not only or name in only}


def prepare(config: EncoderConfig) -> tuple[Encode, float]:
    """Returns a path ready to encode, and the seconds that took."""
    started = time.perf_counter()
    encoder = SentenceEncoder(config)
    encoder.encode(["a text"])
    return encoder.encode, time.perf_counter() - started


def bare_products(plain: SentenceTransformer, dtype: torch.dtype, repeats: int = 7) -> float:
    """Returns the tokens a second at which all threads multiply by the linear layers' weights."""
    layers = [
        module.weight.detach().to(dtype).T
        for name, module in plain[0].named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    ]
    rows = {width: torch.randn(BARE_TOKENS, width).to(dtype) for width in {len(w) for w in layers}}
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            started = time.perf_counter()
            for weight in layers:
                rows[len(weight)] @ weight
            seconds.append(time.perf_counter() - started)
    return BARE_TOKENS / statistics.median(seconds)


def compare(texts: list[str], encoders: dict[str, Encode], repeats: int) -> dict[str, np.ndarray]:
    """Encodes the texts by every path in turn and prints speeds and cosines.

    Returns:
      (N, D) float32 of each path.
    """
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    vectors = {}
    for _ in range(repeats):
        for name, encode in encoders.items():
            started = time.perf_counter()
            vectors[name] = encode(texts)
            seconds[name].append(time.perf_counter() - started)
    print(f"  {'':28}{'items/s':>9}{'ratio':>8}{'min':>8}{'cosine: least':>17}{'mean':>10}")
    for name, taken in seconds.items():
        ratios = [p / s for p, s in zip(seconds[PLAIN], taken, strict=True)]
        cosine = (unit(vectors[name]) * unit(vectors[PLAIN])).sum(axis=1)
        rate = len(texts) / statistics.median(taken)
        speed = f"{rate:9.1f}{statistics.median(ratios):8.2f}{min(ratios):8.2f}"
        print(f"  {name:28}{speed}{cosine.min():17.6f}{cosine.mean():10.6f}")
    return vectors


def quality(vectors: dict[str, np.ndarray]) -> None:
    """Prints what each path does to the codes of residual k-means; see the module's docstring."""
    plain = unit(vectors[PLAIN])
    neighbours = find_neighbours(plain)
    config = RqkmeansConfig()
    reference, _ = fit_quantizer(config, plain)
    kept = reference.encode(plain)
    for name, embeddings in vectors.items():
        rows = unit(embeddings)
        fitted, _ = fit_quantizer(config, rows)
        codes = fitted.encode(rows)
        collided = metrics.collisions(codes)
        shares = [u["perplexity_share"] for u in metrics.code_use(codes, config.codebook_sizes)]
        same = np.cumprod(reference.encode(rows) == kept, axis=1).mean(axis=0)
        found = find_neighbours(rows).nearest
        pairs = zip(found, neighbours.nearest, strict=True)
        both = np.mean([len(set(one) & set(other)) / len(one) for one, other in pairs])
        print(
            f"  {name}: A {collided['a']:.3f}, B {collided['b']:.3f}, perplexity/K {_join(shares)},"
        )
        print(f"    cosine {_join(metrics.prefix_cosine(codes, plain))},")
        print(f"    neighbourhood {_join(metrics.neighbourhood(codes, neighbours))},")
        print(f"    1-R2 {metrics.one_minus_r2(rows, fitted.decode(codes)):.3f};")
        print(f"    codes kept {_join(same)}, nearest items kept {both:.3f}")


def unit(rows: np.ndarray) -> np.ndarray:
    """Returns the rows at unit length."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _join(values: object) -> str:
    return " ".join("-" if v is None else f"{v:.3f}" for v in values)


def main() -> None:
    """Compares the paths on every file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("items", nargs="+", help="Parquet with title, brand, ...")
    parser.add_argument("--rows", type=int, default=1000, help="random items of each; 0 for all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--paths", nargs="*", default=[], help="names to run, all by default")
    parser.add_argument("--metrics", action="store_true", help="also what becomes of the codes")
    arguments = parser.parse_args()
    plain = SentenceTransformer(str(model_folder("embedded")), device="cpu", local_files_only=True)
    encoders: dict[str, Encode] = {
        PLAIN: lambda texts: plain.encode(texts, show_progress_bar=False)
    }
    print(f"{torch.get_num_threads()} threads")
    for name, config in paths(arguments.paths).items():
        encoders[name], seconds = prepare(config)
        print(f"  {name:28} ready after {seconds:.1f} s")
    for path in arguments.items:
        texts = [text for text in item_texts(pq.read_table(path)) if text]
        chosen = np.random.default_rng(0).permutation(len(texts))[: arguments.rows or len(texts)]
        texts = [texts[row] for row in chosen]
        characters = statistics.mean(map(len, texts))
        print(f"{Path(path).stem}: {len(texts):,} texts of {characters:.0f} characters")
        vectors = compare(texts, encoders, arguments.repeats)
        tokens = np.mean([len(ids) for ids in plain.tokenizer(texts, truncation=True)["input_ids"]])
        for dtype in (torch.float32, torch.bfloat16):
            rate = bare_products(plain, dtype) / tokens
            print(f"  bare products, {str(dtype)[6:]:13}{rate:9.1f}   ({tokens:.0f} tokens a text)")
        if arguments.metrics:
            quality(vectors)


if __name__ == "__main__":
    main()
