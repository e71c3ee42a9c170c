"""Nearest items to a query by descending the codebooks with a beam and re-ranking exactly.

The trie over codes is an inverted index with as many levels as the tokenizer. A query's distance to
the reconstruction of any prefix needs no vectors but the codebooks:

    |z - c_1 - ... - c_t|^2 = |z|^2 + |c_1 + ... + c_t|^2 - 2 (z.c_1 + ... + z.c_t)

so a node costs one addition, given its norm and the products of the query with all codewords.
Prefixes of L-1 codes are found with a beam, the items below the best of them are scored by their
whole codes in the same way, and the best of these by their embeddings. All three widths are fixed,
so the time of a query does not grow with the catalog.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from models.trie import Trie

# Embeddings gathered at once for exact scores; 8M float32 are 32 MB.
GATHER_ENTRIES = 1 << 23
_NODE_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class SearchWidths:
    """How much of the catalog a query looks at; each is a trade of recall for time.

    Attributes:
      beam: prefixes kept per level.
      candidates: most items scored by their codes.
      rerank: of these, how many are scored by their embeddings.
    """

    beam: int = 512
    candidates: int = 8192
    rerank: int = 512

    def __post_init__(self) -> None:
        if min(self.beam, self.candidates, self.rerank) < 1:
            raise ValueError(f"beam, candidates and rerank must be at least 1, got {self}")


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Items found for Q queries, best first.

    Attributes:
      rows: (Q, k) int64 rows of the items table, -1 where fewer than k items were looked at.
      scores: (Q, k) float32 inner products of embeddings, -inf there.
    """

    rows: np.ndarray
    scores: np.ndarray


class HierarchicalIndex:
    """A search index over published items; it adds 4 to 8 bytes an item to trie and embeddings.

    Example:
      index = HierarchicalIndex(read_trie(path), quantizer.codebooks, embeddings)
      found = index.search(query, quantizer.latents(query), k=10)

    Attributes:
      trie: over the items.
      embeddings: (N, D) float32, row i belongs to row i of the items table; None where the caller
        ranks candidates.
    """

    def __init__(
        self, trie: Trie, codebooks: Sequence[np.ndarray], embeddings: np.ndarray | None = None
    ) -> None:
        """Prepares norms and offsets.

        Args:
          trie: over N items.
          codebooks: L arrays (K_l, d) whose sums are the reconstructions.
          embeddings: see the class; may be memory-mapped. Without them only `candidates` works.

        Raises:
          ValueError: codebooks or embeddings do not fit the trie.
        """
        sizes = tuple(len(book) for book in codebooks)
        if sizes != trie.layout.codebook_sizes:
            raise ValueError(
                f"codebooks of {list(sizes)} codes do not fit the trie's "
                f"{list(trie.layout.codebook_sizes)}"
            )
        if embeddings is not None and len(embeddings) != trie.num_rows:
            raise ValueError(f"{len(embeddings)} embeddings for {trie.num_rows} items")
        self.trie = trie
        self.embeddings = None
        if embeddings is not None:
            self.embeddings = torch.from_numpy(np.require(embeddings, np.float32, ["C", "W"]))
        self._books = [torch.from_numpy(np.array(book, np.float32)) for book in codebooks]
        products = _cross_products(codebooks)
        last = trie.layout.num_levels
        self._norms, self._tokens, self._bounds = [], [], []
        for depth in range(1, last):
            self._norms.append(torch.from_numpy(_node_norms(trie, depth, products)))
            self._tokens.append(torch.from_numpy(trie.tokens[depth - 1].astype(np.int64)))
            if depth < last - 1:
                self._bounds.append(torch.from_numpy(trie.child_start[depth - 1].astype(np.int64)))
        above = trie.node_table(last - 1)
        self._bounds.append(torch.from_numpy(np.append(above.first_rows, trie.num_rows)))
        leaves = trie.node_table(last)
        repeats = leaves.item_counts
        code = np.int16 if sizes[-1] <= 1 << 15 else np.int32
        self._row_codes = torch.from_numpy(np.repeat(leaves.codes[:, -1].astype(code), repeats))
        self._row_norms = torch.from_numpy(np.repeat(_node_norms(trie, last, products), repeats))

    @torch.inference_mode()
    def search(
        self,
        queries: np.ndarray,
        latents: np.ndarray,
        k: int,
        widths: SearchWidths = SearchWidths(),
    ) -> SearchResult:
        """Finds the items of largest inner product with each query.

        Args:
          queries: (Q, D) float32, as the items were embedded.
          latents: (Q, d) float32, `Quantizer.latents(queries)`.
          k: results per query.
          widths: see `SearchWidths`.

        Raises:
          ValueError: k is below 1, queries and latents differ in number, or the index has no
            embeddings.
        """
        if self.embeddings is None:
            raise ValueError("the index was made without embeddings: rank `candidates` yourself")
        if k < 1 or len(queries) != len(latents):
            raise ValueError(f"k is {k}, with {len(queries)} queries and {len(latents)} latents")
        vectors = torch.from_numpy(np.array(queries, np.float32))
        found = torch.full((len(vectors), k), -1, dtype=torch.int64)
        scores = torch.full((len(vectors), k), -torch.inf)
        if not self.trie.num_rows or not len(vectors):
            return SearchResult(found.numpy(), scores.numpy())
        rows = torch.from_numpy(self.candidates(latents, widths))
        step = max(1, GATHER_ENTRIES // (rows.shape[1] * vectors.shape[1]))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            gathered = self.embeddings.index_select(0, some.clamp(min=0).flatten())
            exact = torch.bmm(
                gathered.view(*some.shape, -1), vectors[start : start + step, :, None]
            ).squeeze(2)
            exact.masked_fill_(some < 0, -torch.inf)
            best = exact.topk(min(k, some.shape[1]), dim=1)
            width = best.values.shape[1]
            scores[start : start + step, :width] = best.values
            found[start : start + step, :width] = some.gather(1, best.indices)
        return SearchResult(found.numpy(), scores.numpy())

    @torch.inference_mode()
    def candidates(self, latents: np.ndarray, widths: SearchWidths = SearchWidths()) -> np.ndarray:
        """Finds the items whose codes are nearest, without looking at embeddings.

        Args:
          latents: (Q, d) float32, `Quantizer.latents` of the queries.
          widths: see `SearchWidths`.

        Returns:
          (Q, n) int64 rows of the items table, nearest first, n at most `widths.rerank`; -1 in
          empty places.
        """
        if not self.trie.num_rows or not len(latents):
            return np.full((len(latents), 0), -1, np.int64)
        z = torch.from_numpy(np.array(latents, np.float32))
        return self._candidates([z @ book.T for book in self._books], widths).numpy()

    def _candidates(self, dots: list[torch.Tensor], widths: SearchWidths) -> torch.Tensor:
        """Returns (Q, rerank) rows by distance to their codes, -1 in empty places."""
        count = len(dots[0])
        query = torch.arange(count)
        # Beams are flat lists, ordered by query: node, the products so far, whose beam it is.
        node, product, owner = torch.zeros_like(query), torch.zeros(count), query
        for level in range(len(self._norms)):
            begin, end = self._children(level, node)
            child, parent = _expand(begin, end)
            owner, product = owner[parent], product[parent]
            product += dots[level][owner, self._tokens[level][child]]
            distance = self._norms[level][child] - 2.0 * product
            keep, _ = _best_per_query(distance, owner, count, widths.beam)
            node, product, owner = child[keep], product[keep], owner[keep]
        begin, end = self._bounds[-1][node], self._bounds[-1][node + 1]
        # Beams are in order of distance: take whole prefixes until the budget is used up.
        before = torch.cumsum(end - begin, 0) - (end - begin)
        first = before[torch.searchsorted(owner, query)]
        left = widths.candidates - (before - first[owner])
        rows, parent = _expand(begin, torch.minimum(end, begin + left.clamp(min=0)))
        owner = owner[parent]
        distance = self._row_norms[rows] - 2.0 * (
            product[parent] + dots[-1][owner, self._row_codes[rows].int()]
        )
        keep, place = _best_per_query(distance, owner, count, widths.rerank)
        result = torch.full((count, int(place.max()) + 1), -1)
        result[owner[keep], place] = rows[keep]
        return result

    def _children(self, level: int, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if level == 0:
            return torch.zeros_like(node), torch.full_like(node, len(self._tokens[0]))
        return self._bounds[level - 1][node], self._bounds[level - 1][node + 1]


def _expand(begin: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists the numbers of all ranges, and which range each came from."""
    counts = end - begin
    parent = torch.repeat_interleave(torch.arange(len(counts)), counts)
    offset = begin - torch.cumsum(counts, 0) + counts
    return torch.arange(len(parent)) + offset[parent], parent


def _best_per_query(
    distance: torch.Tensor, owner: torch.Tensor, count: int, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks the `limit` smallest distances of every query, in order.

    Args:
      distance: (n,) of all queries together.
      owner: (n,) ascending query numbers; every query has at least one.
      count: number of queries.
      limit: most to keep per query.

    Returns:
      Positions to keep, ordered by query and distance, and each one's rank within its query.
    """
    first = torch.searchsorted(owner, torch.arange(count + 1))
    sizes = first[1:] - first[:-1]
    width = int(sizes.max())
    table = torch.full((count, width), torch.inf)
    table[owner, torch.arange(len(owner)) - first[owner]] = distance
    best = table.topk(min(limit, width), dim=1, largest=False)
    rank = torch.arange(best.indices.shape[1]).expand_as(best.indices)
    real = rank < sizes[:, None]
    return (best.indices + first[:-1, None])[real], rank[real]


def _cross_products(codebooks: Sequence[np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """Returns the float64 inner products of all codewords of every pair of levels."""
    books = [np.asarray(book, np.float64) for book in codebooks]
    return {
        (upper, lower): books[upper] @ books[lower].T
        for lower in range(len(books))
        for upper in range(lower + 1)
    }


def _node_norms(trie: Trie, depth: int, products: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """Returns the float32 squared norms of the summed codewords of all nodes of a depth."""
    norms = np.empty(trie.num_nodes[depth - 1], np.float32)
    for start in range(0, len(norms), _NODE_CHUNK):
        stop = min(len(norms), start + _NODE_CHUNK)
        codes = trie.node_table(depth, start, stop).codes
        total = np.zeros(stop - start)
        for (upper, lower), table in products.items():
            if lower < depth:
                term = table[codes[:, upper], codes[:, lower]]
                total += term if upper == lower else 2.0 * term
        norms[start:stop] = total
    return norms
