"""Names for trie nodes from the words of their items, for catalogs without category paths."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from models.trie import Trie

# Words of three letters or more, in any script; numbers and codes name nothing.
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclasses.dataclass(frozen=True)
class RowTerms:
    """The distinct words of every row, as numbers.

    Attributes:
      terms: V words in alphabetical order.
      row_start: (N + 1,) int64, row i has `numbers[row_start[i]:row_start[i + 1]]`.
      numbers: (T,) int32 positions in `terms`.
    """

    terms: list[str]
    row_start: np.ndarray
    numbers: np.ndarray


def row_terms(texts: Iterable[str | None]) -> RowTerms:
    """Splits texts into words, case folded, each counted once per row."""
    known: dict[str, int] = {}
    numbers: list[int] = []
    lengths: list[int] = []
    for text in texts:
        words = sorted(set(_WORD.findall((text or "").casefold())))
        numbers.extend(known.setdefault(word, len(known)) for word in words)
        lengths.append(len(words))
    terms = sorted(known)
    # Alphabetical numbers, so that ties do not depend on which row came first.
    rank = np.empty(len(terms), np.int32)
    rank[[known[word] for word in terms]] = np.arange(len(terms), dtype=np.int32)
    row_start = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return RowTerms(terms, row_start, rank[np.array(numbers, np.int64)])


def node_labels(trie: Trie, rows: RowTerms, num_terms: int = 2) -> list[list[str]]:
    """Names every node by its most distinctive words.

    The weight of word t in node c is class-based TF-IDF (Grootendorst, 2203.05794), over all nodes
    of one depth as classes:

        W(t, c) = tf(t, c) * log(1 + A / f(t))

    with tf the items of c that have t, f the items of all nodes that have t, and A the mean number
    of words per node. A word that already names an ancestor is passed over, so that a path reads
    from coarse to fine; ties go to the alphabetically first.

    Example: a node whose items are all shampoos, half of them with argan oil, is named "shampoo",
    and the child that holds those with argan oil "argan oil".

    Args:
      trie: over the items.
      rows: words of each row of the items table, in its order.
      num_terms: words per name, joined by a space.

    Returns:
      Per depth 1 to L one name per node, empty where its items have no word left.

    Raises:
      ValueError: `rows` has another length than the trie.
    """
    if len(rows.row_start) != trie.num_rows + 1:
        raise ValueError(f"words of {len(rows.row_start) - 1} rows for {trie.num_rows} items")
    size = max(len(rows.terms), 1)
    row_of_term = np.repeat(np.arange(trie.num_rows), np.diff(rows.row_start))
    labels = []
    used = np.empty(0, np.int64)
    parents = np.zeros(trie.num_rows, np.int64)
    for depth in range(1, trie.layout.num_levels + 1):
        table = trie.node_table(depth)
        node_of_row = np.repeat(np.arange(len(table.prefixes)), table.item_counts)
        pairs, counts = np.unique(
            node_of_row[row_of_term] * size + rows.numbers, return_counts=True
        )
        node, term = np.divmod(pairs, size)
        frequency = np.bincount(rows.numbers, minlength=size)
        mean_words = len(rows.numbers) / max(len(table.prefixes), 1)
        weight = counts * np.log1p(mean_words / frequency[term])
        parent = parents[table.first_rows]
        fresh = ~np.isin(parent[node] * size + term, used)
        node, term, weight = node[fresh], term[fresh], weight[fresh]
        order = np.lexsort((term, -weight, node))
        first = np.searchsorted(node, np.arange(len(table.prefixes)))
        top = order[np.arange(len(order)) - first[node] < num_terms]
        names: list[list[str]] = [[] for _ in range(len(table.prefixes))]
        for owner, number in zip(node[top].tolist(), term[top].tolist(), strict=True):
            names[owner].append(rows.terms[number])
        labels.append([" ".join(words) for words in names])
        # What named this depth, or one above it, names nothing below.
        inherited = _inherited(used, parent, size)
        used = np.union1d(inherited, node[top] * size + term[top])
        parents = node_of_row
    return labels


def _inherited(used: np.ndarray, parent: np.ndarray, size: int) -> np.ndarray:
    """Rewrites (parent, term) pairs as (child, term) pairs for all children of the parents."""
    owner, term = np.divmod(used, size)
    first = np.searchsorted(owner, parent)
    counts = np.searchsorted(owner, parent, side="right") - first
    child = np.repeat(np.arange(len(parent)), counts)
    position = np.arange(len(child)) - np.repeat(np.cumsum(counts) - counts, counts)
    return child * size + term[first[child] + position]
