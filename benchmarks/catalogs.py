"""Runs the whole job on item files, twice, and prints time and quality beside residual k-means.

  python -m benchmarks.catalogs ITEMS.parquet [ITEMS.parquet ...] [--config FILE]

The first run embeds, fits and publishes; the second, on the same catalog, must change nothing and
embed nothing. Both generations are verified. The baseline is faiss residual k-means with the same
codebook sizes on the embeddings the first run wrote.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.commands import run_measured
from models.metrics import code_use, collisions, one_minus_r2, prefix_cosine
from models.tokenizers import fit_quantizer, quantizer_config
from pipelines.root import Root
from semid_transforms import files
from semid_transforms.sampling import sample_embeddings


def row(name: str, codes: np.ndarray, sizes: tuple[int, ...], values: dict) -> str:
    """One line of the quality table."""
    use = " ".join(f"{level['perplexity_share']:.3f}" for level in code_use(codes, sizes))
    cosine = " ".join(f"{value:.3f}" for value in values["cosine"][1:] if value is not None)
    return (
        f"  {name:<22} B {collisions(codes)['b']:6.2%}   perplexity/K {use}   "
        f"cosine {cosine}   1-R2 {values['error']:.3f}"
    )


def measure(items: Path, config: str | None) -> None:
    """Runs and measures one catalog."""
    with tempfile.TemporaryDirectory() as folder:
        root = str(Path(folder) / "root")
        job = ["tokenize", "--catalog", str(items), "--root", root]
        job += ["--config", config] if config else []
        once, again = run_measured(*job), run_measured(*job)
        verified = run_measured("verify", "--root", root)
        first, second = once.output, again.output
        links = "  ".join(f"{name} {link['seconds']:.1f}" for name, link in first["links"].items())
        encoded = second["links"]["embed"]["counters"].get("embed/texts-encoded", 0)
        changed = sum(second["counts"][name] for name in ("new", "updated", "moved", "retired"))
        print(f"{items.name}: {first['rows']['live']:,} items")
        print(f"  first run  {once.wall:6.1f} s   ({links})")
        print(
            f"  second run {again.wall:6.1f} s   {again.wall / once.wall:.1%} of the "
            f"first; {encoded} texts encoded, {changed} items changed"
        )
        print(f"  verify     {verified.wall:6.1f} s   both generations sound")
        metrics = first["metrics"]
        after = metrics["after"]
        generation, manifest = Root(root).require_published()
        parts = [
            files.join(Root(root).folder(generation), part.path)
            for part in manifest.table("embeddings")
        ]
        sample, _ = sample_embeddings(parts, 10**6)
        sizes = tuple(manifest.fingerprints.layout["codebook_sizes"])
        baseline, _ = fit_quantizer(quantizer_config("rqkmeans")(codebook_sizes=sizes), sample)
        codes = baseline.encode(sample)
        before = metrics["before"]
        use = " ".join(f"{level['perplexity_share']:.3f}" for level in before["levels"])
        cosine = " ".join(f"{value:.3f}" for value in before["prefix_cosine"][1:])
        print(
            f"  {manifest.config['quantizer']['kind']:<22} B {before['collisions']['b']:6.2%}   "
            f"perplexity/K {use}   cosine {cosine}   1-R2 {before['one_minus_r2']:.3f}"
        )
        values = {
            "cosine": prefix_cosine(codes, sample),
            "error": one_minus_r2(sample, baseline.decode(codes)),
        }
        print(row("residual k-means", codes, sizes, values))
        print(
            f"  after resolution       B {after['shared_sids']['b']:6.2%}   1-R2 "
            f"{after['one_minus_r2']:.3f} "
            f"({after['one_minus_r2'] / before['one_minus_r2'] - 1:+.1%})   "
            f"{metrics['placements']}",
            flush=True,
        )


def main() -> None:
    """Measures every file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", nargs="+", type=Path)
    parser.add_argument("--config")
    options = parser.parse_args()
    for items in options.items:
        measure(items, options.config)


if __name__ == "__main__":
    main()
