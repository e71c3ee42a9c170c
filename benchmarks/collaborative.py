"""What behaviour adds to content: quality with and without vectors from interactions.

  python -m benchmarks.collaborative ITEMS.parquet INTERACTIONS.parquet [--tokenizer rqkmeans]

A tenth of the users is held out. Vectors come from the others, as `semid interactions` makes them,
and are fused with the embedding of the text as `semid tokenize` does, at several weights. With the
same seeds, every tokenizer is measured by behaviour: the share of next-item pairs, consecutive
items of held-out users, that share the first 1, 2, ... codes before collision resolution, and the
share of shuffled pairs that share the first. Cosine and neighbours are those of the text's
embedding alone, whatever the tokenizer was fitted on; 1-R2 is in the space it was fitted in.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.items import Items, load_items
from benchmarks.tokenizers import with_seed
from models.collaborative import InteractionConfig, interaction_vectors
from models.metrics import (
    category_agreement,
    code_use,
    collisions,
    neighbourhood,
    one_minus_r2,
    prefix_cosine,
)
from models.neighbours import find_neighbours
from models.tokenizers import fit_quantizer, quantizer_config
from schemas.arrays import list_from_matrix
from semid_transforms.embedding_columns import EmbeddingSpec, combine, fuse_texts
from semid_transforms.hashing import hash_shards, item_hashes

HELD_OUT = 10
WEIGHTS = (0.0, 0.25, 0.5, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Behaviour:
    """Interactions, split by user.

    Attributes:
      vectors: N lists of floats, from users that are not held out; null without interactions.
      pairs: (P, 2) rows of items that a held-out user had one after the other.
    """

    vectors: pa.Array
    pairs: np.ndarray


def load_behaviour(path: str, item_ids: pa.Array) -> Behaviour:
    """Reads interactions with the items; columns user_id, item_id and order."""
    table = pq.read_table(path, columns=["user_id", "item_id", "order"])
    table = table.sort_by([("user_id", "ascending"), ("order", "ascending")]).combine_chunks()
    rows = pc.index_in(table["item_id"], value_set=item_ids)
    table = table.filter(rows.is_valid())
    item = rows.drop_null().to_numpy().astype(np.int64)
    users = item_hashes(table["user_id"])
    held = hash_shards(users, HELD_OUT) == 0
    found = interaction_vectors(users[~held], item[~held], InteractionConfig())
    place = np.full(len(item_ids), -1)
    place[found.item_ids] = np.arange(len(found.item_ids))
    lists = list_from_matrix(found.vectors.astype(np.float64), pa.float64())
    follows = np.flatnonzero(held[1:] & (users[1:] == users[:-1]) & (item[1:] != item[:-1]))
    pairs = np.stack([item[follows], item[follows + 1]], axis=1)
    return Behaviour(lists.take(pa.array(place, mask=place < 0)), pairs)


def fused(embeddings: np.ndarray, behaviour: Behaviour, weight: float) -> np.ndarray:
    """Returns the embeddings that `semid tokenize` would quantize; weight 0 is text alone."""
    if weight == 0:
        return embeddings
    width = len(behaviour.vectors.drop_null()[0])
    spec = EmbeddingSpec(("interactions",), (width,), (weight,), optional=1, text=True)
    columns, problems = combine([behaviour.vectors], spec)
    if problems:
        raise ValueError(f"row {min(problems)}: {problems[min(problems)]}")
    return fuse_texts(embeddings, columns, spec)


def next_item_shares(codes: np.ndarray, pairs: np.ndarray) -> list[float]:
    """Returns the share of pairs of rows that share the first 1..L codes."""
    same = np.logical_and.accumulate(codes[pairs[:, 0]] == codes[pairs[:, 1]], axis=1)
    return [float(share) for share in same.mean(axis=0)]


def measure(items: Items, rows: np.ndarray, pairs: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Fits one tokenizer; returns the figures in the order of the table."""
    shuffled = np.stack([pairs[:, 0], np.random.default_rng(0).permutation(pairs[:, 1])], axis=1)
    quantizer, _ = fit_quantizer(with_seed(quantizer_config(kind)(), seed), rows)
    codes = quantizer.encode(rows)
    use = [level["perplexity_share"] for level in code_use(codes, quantizer.codebook_sizes)]
    cosine = prefix_cosine(codes, items.embeddings)[1:]
    figures = [
        *next_item_shares(codes, pairs),
        next_item_shares(codes, shuffled)[0],
        collisions(codes)["b"],
        *use,
        *(np.nan if value is None else value for value in cosine),
        neighbourhood(codes, find_neighbours(items.embeddings))[0],
        one_minus_r2(rows, quantizer.decode(codes)),
    ]
    agreement = category_agreement(codes, items.category_paths, 1, 1)["share"]
    return np.array([*figures, np.nan if agreement is None else agreement])


def show(weight: float, figures: np.ndarray, levels: int) -> str:
    """Lays one line of medians out."""
    pairs, chance, rest = figures[:levels], figures[levels], figures[levels + 1 :]
    b, use, cosine = rest[0], rest[1 : 1 + levels], rest[1 + levels : 1 + 2 * levels]
    near, error, agreement = rest[1 + 2 * levels :]
    text = {
        "next": " ".join(f"{value:6.2%}" for value in pairs),
        "use": " ".join(f"{value:.2f}" for value in use),
        "cosine": " ".join(f"{value:.3f}" for value in cosine),
    }
    return (
        f"{weight:>6.2f}  {text['next']:<22} {chance:6.2%}  {b:6.2%}  "
        f"{text['use']:<16} {text['cosine']:<18} {near:6.1%}  {error:.3f}  {agreement:.3f}"
    )


def main() -> None:
    """Prints one line per weight."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items")
    parser.add_argument("interactions")
    parser.add_argument("--tokenizer", default="rqvae", choices=["rqvae", "rqkmeans"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    parser.add_argument("--cache", default=".cache")
    options = parser.parse_args()
    items = load_items(options.items, options.cache)
    item_ids = pq.read_table(options.items, columns=["item_id"])["item_id"].combine_chunks()
    behaviour = load_behaviour(options.interactions, item_ids)
    print(
        f"{len(item_ids):,} items, {len(item_ids) - behaviour.vectors.null_count:,} with vectors; "
        f"{len(behaviour.pairs):,} next-item pairs of held-out users; {options.tokenizer}, medians "
        f"of seeds 0..{options.seeds - 1}\n"
        f"{'weight':>6}  {'next item shares 1..L':<22} chance  {'B':>6}  {'perplexity/K':<16} "
        f"{'text cosine':<18} {'text nn':>6}  1-R2   category"
    )
    levels = len(quantizer_config(options.tokenizer)().codebook_sizes)
    for weight in options.weights:
        rows = fused(items.embeddings, behaviour, weight)
        pairs = behaviour.pairs
        seeds = [
            measure(items, rows, pairs, options.tokenizer, seed) for seed in range(options.seeds)
        ]
        print(show(weight, np.median(seeds, axis=0), levels), flush=True)


if __name__ == "__main__":
    main()
