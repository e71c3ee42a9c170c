"""Runs the whole job on generated catalogs and compares it with its bare kernels, size by size.

  python -m benchmarks.pipeline FOLDER --rows 1000000 10000000 [--repeats N] [--config FILE]
      [--tokenizer ROOT]

Catalogs bring 384-d embeddings and are generated under FOLDER once. A tokenizer is fitted on the
first size, or taken from a root that holds one, and serves every run, so no run's time has a fit in
it. The kernels of a size run in the same process environment just after the job: reading the
catalog's columns, encoding with bare matrix products and argmin, writing what the job has written
(embeddings as they are made, the other tables from memory), with nothing checked and nothing
flushed to disk; both find the catalog in the page cache. Of several repeats the middle one counts.
With --text the same items are embedded from their text.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from benchmarks.commands import Measured, run_measured
from benchmarks.scaled_catalog import EMBEDDING_DIM, write_catalog
from models.quantizer import Quantizer
from models.rqvae import Rqvae
from schemas.arrays import fixed_binary, list_from_matrix, matrix_from_list
from schemas.tables import embedding_schema
from semid_transforms.quantizing import load_tokenizer

_BLOCK_ROWS = 1024


def time_kernels(parts: Sequence[Path], quantizer: Quantizer, generation: Path) -> dict[str, float]:
    """Reads, encodes and writes a catalog's embeddings by bare kernels, and its tables.

    Args:
      parts: of the catalog.
      quantizer: what the job encoded with.
      generation: what the job wrote.

    Returns:
      Processor seconds of each, and `wall` seconds of all.
    """
    seconds = _time_encoding(parts, quantizer)
    for path in sorted(generation.glob("*/*.parquet")):
        if path.parent.name == "embeddings":
            continue
        table = pq.read_table(path)
        started, wall = time.process_time(), time.perf_counter()
        with tempfile.NamedTemporaryFile(dir=parts[0].parent) as file:
            pq.write_table(table, file.name, compression="zstd")
        seconds["tables"] += time.process_time() - started
        seconds["wall"] += time.perf_counter() - wall
    return seconds


def _time_encoding(parts: Sequence[Path], quantizer: Quantizer) -> dict[str, float]:
    seconds = dict.fromkeys(("read", "encode", "write", "tables", "wall"), 0.0)
    schema = embedding_schema()
    columns = ["item_id", "title", "category_path", "popularity", "updated_at", "embedding"]
    options: dict[str, Any] = {
        "compression": {
            "item_id": "zstd",
            "content_hash": "zstd",
            "embedding.list.element": "none",
        },
        "use_dictionary": False,
        "write_statistics": ["item_id", "content_hash"],
    }
    kernel = _encoder(quantizer)
    with tempfile.TemporaryDirectory(dir=parts[0].parent) as folder:
        for part in parts:
            with pq.ParquetWriter(Path(folder) / "embeddings.parquet", schema, **options) as writer:
                batches = pq.ParquetFile(part, memory_map=True).iter_batches(
                    8192, columns=columns, use_threads=False
                )
                while True:
                    started, wall = time.process_time(), time.perf_counter()
                    batch = next(batches, None)
                    seconds["read"] += time.process_time() - started
                    seconds["wall"] += time.perf_counter() - wall
                    if batch is None:
                        break
                    vectors = np.array(matrix_from_list(batch["embedding"]))
                    hashes = fixed_binary(vectors.view(np.uint8)[:, :16], 16)
                    columns_out = [
                        batch["item_id"],
                        hashes,
                        list_from_matrix(vectors, pa.float32()),
                    ]
                    rows = pa.table(columns_out, schema=schema)
                    started, wall = time.process_time(), time.perf_counter()
                    kernel(torch.from_numpy(vectors))
                    encoded = time.process_time()
                    writer.write_table(rows)
                    seconds["encode"] += encoded - started
                    seconds["write"] += time.process_time() - encoded
                    seconds["wall"] += time.perf_counter() - wall
    return seconds


def _encoder(quantizer: Quantizer) -> Any:
    """Returns a function of (n, D) float32 rows that does no more than find nearest codewords."""
    books = [torch.from_numpy(np.array(book)) for book in quantizer.codebooks]
    halves = [(book * book).sum(1) / 2 for book in books]
    turned = [book.t().contiguous() for book in books]
    network = quantizer.autoencoder.encoder if isinstance(quantizer, Rqvae) else None
    layers = [] if network is None else list(zip(network.weights, network.biases, strict=True))
    layers = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in layers]
    assert network is None or network.shortcut is None

    @torch.inference_mode()
    def encode(rows: torch.Tensor) -> None:
        for block in rows.split(_BLOCK_ROWS):
            rest = block
            for number, (weight, bias) in enumerate(layers):
                rest = torch.addmm(bias, rest, weight)
                rest = rest.relu_() if number < len(layers) - 1 else rest
            for book, half, words in zip(books, halves, turned, strict=True):
                rest = rest - book[torch.addmm(half, rest, words, alpha=-1).argmin(1)]

    return encode


def fit(catalog: str, root: str, config: Sequence[str]) -> Measured:
    """Fits a tokenizer in a root of its own."""
    return run_measured("fit", "--catalog", catalog, "--root", root, *config)


def with_tokenizer(tokenizers: Path, root: Path) -> Path:
    """Gives a new root the tokenizers of another."""
    shutil.copytree(tokenizers / "tokenizers", root / "tokenizers")
    return root


def describe(name: str, run: Measured) -> str:
    """One line of times and memory, and one per link."""
    lines = [
        f"  {name:<9} {run.wall:8.1f} s wall {run.cpu:8.1f} s CPU   peak "
        f"{run.peak_bytes / 2**30:.2f} GiB"
    ]
    links = run.output.get("links", {})
    lines += [
        f"    {link:<7} {values['seconds']:8.1f} s wall {values['cpu_seconds']:8.1f} s CPU"
        for link, values in links.items()
    ]
    rest = run.wall - sum(values["seconds"] for values in links.values())
    return "\n".join([*lines, f"    rest    {rest:8.1f} s wall (start and publishing)"])


def load(parts: Sequence[Path]) -> None:
    """Reads a catalog's bytes, so that job and kernels alike find it in the page cache."""
    for part in parts:
        with part.open("rb") as file:
            while file.read(1 << 24):
                pass


def measure(
    catalog: Path, rows: int, tokenizers: Path, config: Sequence[str], repeats: int
) -> float:
    """Measures one size, job and kernels in turn; returns the job's median wall seconds."""
    parts = write_catalog(catalog / str(rows), rows)
    (tokenizer,) = (tokenizers / "tokenizers").iterdir()
    pattern = f"{catalog / str(rows)}/*.parquet"
    pairs: list[tuple[Measured, dict[str, float]]] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=catalog) as folder:
            root = with_tokenizer(tokenizers, Path(folder) / "root")
            load(parts)
            job = run_measured("tokenize", "--catalog", pattern, "--root", str(root), *config)
            if not pairs:
                verified = run_measured("verify", "--root", str(root))
            (generation,) = (root / "generations").iterdir()
            kernels = time_kernels(parts, load_tokenizer(str(tokenizer)), generation)
        if job.output["links"]["fit"]["fitted"]:
            sys.exit("the run fitted a tokenizer of its own: fit one with the same --config")
        pairs.append((job, kernels))
    ratios = [job.wall / kernels["wall"] for job, kernels in pairs]
    middle = int(np.argsort(ratios)[(repeats - 1) // 2])
    job, kernels = pairs[middle]
    bare_wall = kernels.pop("wall")
    bare = sum(kernels.values())
    before = job.output["metrics"]["before"]["collisions"]["b"]
    print(f"{rows:,} items of {EMBEDDING_DIM} values, B {before:.1%} before resolution")
    each = "  ".join(f"{name} {seconds:.1f}" for name, seconds in kernels.items())
    print(f"  kernels   {bare_wall:8.1f} s wall {bare:8.1f} s CPU   ({each})")
    print(describe("job", job))
    print(f"  job / kernels {ratios[middle]:.2f} by wall, {job.cpu / bare:.2f} by CPU")
    if repeats > 1:
        every = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"  the middle of {repeats}, one after the other: {every}")
    print(f"  verify    {verified.wall:8.1f} s wall   peak {verified.peak_bytes / 2**30:.2f} GiB")
    print(flush=True, end="")
    return float(np.median([job.wall for job, _ in pairs]))


def main() -> None:
    """Measures every size named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--config", help="YAML; the default configuration without it")
    parser.add_argument("--tokenizer", type=Path, help="root with one fitted tokenizer")
    parser.add_argument("--text", action="store_true", help="embed the text of the same items")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = yaml.safe_load(Path(options.config).read_text()) if options.config else {}
        if options.text:
            settings.setdefault("input", {}).setdefault("columns", {})["embedding"] = []
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(settings))
        config = ("--config", str(path))
        tokenizers = options.tokenizer
        if tokenizers is None:
            write_catalog(options.folder / str(options.rows[0]), options.rows[0])
            tokenizers = Path(folder) / "fitted"
            pattern = f"{options.folder / str(options.rows[0])}/*.parquet"
            print(f"fit on {options.rows[0]:,}: {fit(pattern, str(tokenizers), config).wall:.1f} s")
        walls = [
            measure(options.folder, rows, tokenizers, config, options.repeats)
            for rows in options.rows
        ]
    for rows, wall in zip(options.rows[1:], walls[1:], strict=True):
        print(f"{rows:,} / {options.rows[0]:,}: {wall / walls[0]:.1f} times the time")


if __name__ == "__main__":
    main()
