"""How good a tokenizer is: every figure with its definition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from models.neighbours import Geometry, Neighbours, unit_rows

_BLOCK_ROWS = 4096
_AGREEMENT_DEPTHS = 4

AGREEMENT = ("category_agreement", "code_category_agreement")
"""What category agreement is called: of prefixes, and of the codes of parallel codebooks."""

DEFINITIONS = {
    "used_codes": "codes of the level that at least one item has",
    "perplexity_share": "exp(entropy in nats of the level's codes over items) / codebook size",
    "gini": "Gini coefficient of items per code over all codes of the level: 0 even, 1 one code",
    "collisions.a": "1 - distinct code tuples / items",
    "collisions.b": "share of items whose code tuple another item has too",
    "collisions.largest": "items in the fullest code tuple",
    "collisions.floor": "a, b and largest of the items' texts: identical texts must collide",
    "one_minus_r2": "sum |x - decoded|^2 / sum |x - mean x|^2 over items",
    "prefix_cosine": "mean cosine over pairs of items with the same first l codes, l = 0..L "
    "(0: all pairs); null when no pair shares the prefix",
    "neighbourhood": "of an item's k nearest other items by cosine, the share with the same "
    "first l codes, l = 1..L, mean over (sampled) items",
    "category_agreement": "share of the pairs with the same first l codes whose first d "
    "categories are equal too, and chance: that share over all pairs",
    "tag_accuracy": "tokenizers that categories supervise: of the items held out while fitting "
    "that have a category at a depth, the share whose category their codes predict",
    "code_cosine": "codes of parallel codebooks: mean cosine over all pairs of items, then over "
    "pairs with the same code of codebook l, l = 1..L; null when no pair shares one",
    "neighbours_sharing": "codes of parallel codebooks: of an item's k nearest other items by "
    "cosine, the share with at least n equal codes, n = 1..L, mean over (sampled) items",
    "code_category_agreement": "codes of parallel codebooks: share of the pairs with the same "
    "code of codebook l whose first d categories are equal too, and chance",
    "kept": "share of items, live in both, whose first l codes are unchanged, l = 1..L",
}


def code_use(codes: np.ndarray, codebook_sizes: Sequence[int]) -> list[dict[str, float]]:
    """Returns used codes, perplexity / K and Gini per level of (N, L) codes."""
    return [
        use_of_counts(np.bincount(column, minlength=size))
        for column, size in zip(codes.T, codebook_sizes, strict=True)
    ]


def use_of_counts(counts: np.ndarray) -> dict[str, float]:
    """Returns the same of one level, from the items of each of its K codes."""
    size, total = len(counts), int(counts.sum())
    share = counts[counts > 0] / max(1.0, total)
    rank = np.arange(1, size + 1)
    ascending = np.sort(counts).astype(np.float64)
    gini = (2 * (rank * ascending).sum() / (size * total) - (size + 1) / size) if total else 0.0
    return {
        "codebook_size": size,
        "used_codes": int((counts > 0).sum()),
        "perplexity_share": float(np.exp(-(share * np.log(share)).sum()) / size),
        "gini": float(gini),
    }


def collisions(keys: np.ndarray) -> dict[str, float]:
    """Counts items that share a key.

    Args:
      keys: (N, L) codes, or (N,) anything numpy can sort: SIDs, content hashes.

    Returns:
      `a`, `b` and `largest`; see `DEFINITIONS`.
    """
    values = _one_value_each(keys)
    return collisions_of_counts(np.unique(values, axis=_rows(values), return_counts=True)[1])


def collisions_of_counts(counts: np.ndarray) -> dict[str, float]:
    """Returns the same as `collisions`, from the items of each distinct key."""
    if not len(counts):
        return {"a": 0.0, "b": 0.0, "largest": 0}
    items = counts.sum()
    return {
        "a": float(1 - len(counts) / items),
        "b": float(counts[counts > 1].sum() / items),
        "largest": int(counts.max()),
    }


def one_minus_r2(embeddings: np.ndarray, decoded: np.ndarray) -> float:
    """Returns the unexplained share of variance; 0 when all embeddings are equal and exact."""
    total = np.zeros(embeddings.shape[1])
    for block in _blocks(len(embeddings)):
        total += embeddings[block].sum(axis=0, dtype=np.float64)
    mean = total / max(1, len(embeddings))
    spread = error = 0.0
    for block in _blocks(len(embeddings)):
        wide = embeddings[block].astype(np.float64)
        spread += float(((wide - mean) ** 2).sum())
        error += float(((wide - decoded[block]) ** 2).sum())
    return error / spread if spread > 0 else float(error > 0)


def prefix_cosine(codes: np.ndarray, embeddings: np.ndarray) -> list[float | None]:
    """Returns the mean cosine of item pairs that share 0..L codes.

    Args:
      codes: (N, L).
      embeddings: (N, D), non-zero rows; they are normalised here.

    Returns:
      L + 1 means, None where no two items share the prefix.
    """
    return _prefix_cosine(codes, unit_rows(embeddings, np.float64))


def _prefix_cosine(codes: np.ndarray, unit: np.ndarray) -> list[float | None]:
    everything = np.zeros(len(codes), np.int64)
    prefixes = (group_by_value(codes[:, :length]) for length in range(1, codes.shape[1] + 1))
    return [_mean_cosine(unit, group) for group in (everything, *prefixes)]


def code_cosine(codes: np.ndarray, embeddings: np.ndarray) -> list[float | None]:
    """Returns the mean cosine of all item pairs, then of those that share the code of a codebook.

    Args:
      codes: (N, L) of parallel codebooks.
      embeddings: (N, D), non-zero rows; they are normalised here.

    Returns:
      L + 1 means, None where no two items share a code.
    """
    return _code_cosine(codes, unit_rows(embeddings, np.float64))


def _code_cosine(codes: np.ndarray, unit: np.ndarray) -> list[float | None]:
    everything = np.zeros(len(codes), np.int64)
    return [_mean_cosine(unit, group_by_value(group)) for group in (everything, *codes.T)]


def neighbourhood(codes: np.ndarray, neighbours: Neighbours) -> list[float]:
    """Returns, per prefix length 1..L, how many nearest neighbours share the prefix.

    Args:
      codes: (N, L).
      neighbours: among the N items.

    Returns:
      L shares; zeros for fewer than two items.
    """
    same = _equal_codes(codes, neighbours)
    return _shares(np.logical_and.accumulate(same, axis=2))


def neighbours_sharing(codes: np.ndarray, neighbours: Neighbours) -> list[float]:
    """Returns, per number of codes 1..L, how many nearest neighbours share that many or more.

    Args and shape of the result are those of `neighbourhood`; the order of codes does not matter.
    """
    shared = _equal_codes(codes, neighbours).sum(axis=2, keepdims=True)
    return _shares(shared >= np.arange(1, codes.shape[1] + 1))


def _shares(hits: np.ndarray) -> list[float]:
    """Averages (n, k, L) over items and neighbours; zeros without any."""
    return (
        [float(share) for share in hits.mean(axis=(0, 1))] if hits.size else [0.0] * hits.shape[2]
    )


def _equal_codes(codes: np.ndarray, neighbours: Neighbours) -> np.ndarray:
    """Returns (asked items, k, L) bool: which codes each of the nearest neighbours has too."""
    return codes[neighbours.nearest] == codes[neighbours.asked][:, None]


def agreement(
    codes: np.ndarray, categories: np.ndarray, hierarchical: bool = True
) -> dict[str, list[dict[str, float | None]]]:
    """Measures category agreement at every depth, of at most four, and every prefix length.

    Args:
      codes: (N, L) of the items.
      categories: (N, D) from `number_categories`.
      hierarchical: False for codes of parallel codebooks.

    Returns:
      What it calls the figures, and a row for each; nothing when no item has a category.
    """
    if not categories.size:
        return {}
    unit, key = ("prefix", AGREEMENT[0]) if hierarchical else ("codebook", AGREEMENT[1])
    alike = (codes[:, :n] for n in range(1, codes.shape[1] + 1)) if hierarchical else codes.T
    groups = [group_by_value(keys) for keys in alike]
    return {
        key: [
            {"depth": depth, unit: n} | _agreement(group, category)
            for depth, category in enumerate(categories[:, :_AGREEMENT_DEPTHS].T, start=1)
            for n, group in enumerate(groups, start=1)
        ]
    }


def category_agreement(
    codes: np.ndarray, paths: Sequence[Sequence[str] | None], depth: int, length: int
) -> dict[str, float | None]:
    """Returns P(same first `depth` categories | same first `length` codes), and chance.

    Args:
      codes: (N, L); any one column of them for codes of parallel codebooks.
      paths: N category paths, coarse to fine; a path shorter than `depth` is compared whole,
        and no path is a category of its own.
      depth: categories compared.
      length: codes shared.
    """
    categories = number_categories(paths)
    deepest = min(depth, categories.shape[1])
    category = categories[:, deepest - 1] if deepest else np.zeros(len(codes), np.int64)
    return _agreement(group_by_value(codes[:, :length]), category)


def number_categories(paths: Sequence[Sequence[str] | None]) -> np.ndarray:
    """Numbers the first 1..D categories of N paths, in order of appearance.

    Returns:
      (N, D) int64, D the length of the longest path; two rows are alike in column d - 1 where the
      first d categories are. A shorter path counts whole, and no path is a category of its own.
    """
    numbers: dict[tuple[str, ...], int] = {}
    whole = [numbers.setdefault(tuple(path or ()), len(numbers)) for path in paths]
    columns = []
    for depth in range(1, max(map(len, numbers), default=0) + 1):
        cut: dict[tuple[str, ...], int] = {}
        columns.append([cut.setdefault(path[:depth], len(cut)) for path in numbers])
    return np.array(columns, np.int64).reshape(len(columns), len(numbers)).T[whole]


def _agreement(group: np.ndarray, category: np.ndarray) -> dict[str, float | None]:
    """Returns how often pairs of one group, and all pairs, are of one category."""
    by_category = np.bincount(category).astype(np.float64)
    by_group = np.bincount(group).astype(np.float64)
    pairs_of = group * len(by_category) + category
    both = np.unique(pairs_of, return_counts=True)[1].astype(np.float64)
    pairs = (by_group * (by_group - 1)).sum()
    all_pairs = float(len(category)) * (len(category) - 1)
    return {
        "share": float((both * (both - 1)).sum() / pairs) if pairs else None,
        "chance": float((by_category * (by_category - 1)).sum() / all_pairs) if all_pairs else None,
    }


def kept(codes: np.ndarray, previous: np.ndarray) -> list[float]:
    """Returns the share of rows whose first 1..L codes are the same in both (N, L) arrays."""
    if not len(codes):
        return [1.0] * codes.shape[1]
    same = np.logical_and.accumulate(codes == previous, axis=1)
    return [float(share) for share in same.mean(axis=0)]


def quality(
    codes: np.ndarray,
    codebook_sizes: Sequence[int],
    embeddings: np.ndarray,
    *,
    decoded: np.ndarray | None = None,
    content_hashes: Sequence[bytes] | None = None,
    category_paths: Sequence[Sequence[str] | None] | None = None,
    hierarchical: bool = True,
    geometry: Geometry | None = None,
) -> dict[str, object]:
    """Measures everything that needs no second tokenizer.

    Args:
      codes: (N, L) of the items.
      codebook_sizes: L sizes.
      embeddings: (N, D) of the same items.
      decoded: (N, D) reconstructions; without them there is no `one_minus_r2`.
      content_hashes: N digests of the items' texts, for the collision floor.
      category_paths: N paths, for category agreement at every depth and prefix length.
      hierarchical: False for codes of parallel codebooks: what is measured by prefix is then
        measured by codebook, under other names.
      geometry: of the embeddings, where it is known.

    Returns:
      A document ready for JSON, with `definitions`.
    """
    document: dict[str, object] = {
        "items": len(codes),
        "levels": code_use(codes, codebook_sizes),
        "collisions": collisions(codes),
    }
    known = geometry or Geometry.of(embeddings)
    near = known.neighbours
    if hierarchical:
        document["prefix_cosine"] = _prefix_cosine(codes, known.unit)
        document["neighbourhood"] = {"k": 10, "share": neighbourhood(codes, near)}
    else:
        document["code_cosine"] = _code_cosine(codes, known.unit)
        document["neighbours_sharing"] = {"k": 10, "share": neighbours_sharing(codes, near)}
    if decoded is not None:
        document["one_minus_r2"] = one_minus_r2(embeddings, decoded)
    if content_hashes is not None:
        document["collisions_floor"] = collisions(np.array(list(content_hashes), dtype=np.bytes_))
    if category_paths is not None:
        document |= agreement(codes, number_categories(category_paths), hierarchical)
    document["definitions"] = DEFINITIONS
    return document


def group_by_value(keys: np.ndarray) -> np.ndarray:
    """Numbers equal rows (or values) of `keys` alike, 0 upwards in sorted order."""
    values = _one_value_each(keys)
    numbers = np.unique(values, axis=_rows(values), return_inverse=True)[1]
    return numbers.reshape(-1).astype(np.int64)


def _rows(values: np.ndarray) -> int | None:
    """Returns the axis along which `np.unique` tells values apart; None for plain ones."""
    return 0 if values.ndim == 2 else None


def _one_value_each(keys: np.ndarray) -> np.ndarray:
    """Returns (N,) int64 in the order of (N, L) integers, the keys where 63 bits do not hold them.

    Sorting rows as they are takes ten times as long.
    """
    if keys.ndim != 2 or not keys.size or not np.issubdtype(keys.dtype, np.integer):
        return keys
    low = keys.min(axis=0)
    spans = [int(high) - int(first) + 1 for first, high in zip(low, keys.max(axis=0), strict=True)]
    if math.prod(spans) >= 1 << 63:
        return keys
    packed = np.zeros(len(keys), np.int64)
    for column, first, span in zip(keys.T, low, spans, strict=True):
        packed = packed * span + (column - first)
    return packed


def _mean_cosine(unit: np.ndarray, group: np.ndarray) -> float | None:
    """Returns the mean cosine of pairs of (N, D) unit rows in one group; None without a pair."""
    paired = np.flatnonzero(np.bincount(group)[group] > 1)
    if not len(paired):
        return None
    sums, sizes = _group_sums(unit, paired, np.unique(group[paired], return_inverse=True)[1])
    return float(((sums**2).sum(axis=1) - sizes).sum() / (sizes * (sizes - 1)).sum())


def _group_sums(
    rows: np.ndarray, chosen: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (G, D) sums and (G,) sizes of the chosen rows of each group.

    Args:
      rows: (N, D).
      chosen: (n,) row numbers.
      group: (n,) their groups, 0 to G - 1, every one occurring.
    """
    import scipy.sparse

    sizes = np.bincount(group)
    membership = scipy.sparse.csr_array(
        (
            np.ones(len(chosen)),
            chosen[np.argsort(group, kind="stable")],
            np.r_[0, np.cumsum(sizes)],
        ),
        shape=(len(sizes), len(rows)),
    )
    return membership @ rows, sizes.astype(np.float64)


def _blocks(count: int) -> Iterator[slice]:
    """Cuts rows into stretches whose float64 copies stay small."""
    for start in range(0, count, _BLOCK_ROWS):
        yield slice(start, start + _BLOCK_ROWS)
