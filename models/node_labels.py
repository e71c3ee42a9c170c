"""Names for trie nodes: what most of their items are called, or what tells them from the others."""

from __future__ import annotations

import dataclasses

import numpy as np

from models.runs import runs

LABEL_TERMS = 2
"""Words in a label made of words."""


@dataclasses.dataclass(frozen=True, eq=False)
class Votes:
    """How many items of each node have each name.

    Attributes:
      node: (V,) int64, ascending.
      name: (V,) int64 number of a name, ascending within a node; numbers are in name order.
      count: (V,) int64 items.
    """

    node: np.ndarray
    name: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, node: np.ndarray, name: np.ndarray, count: np.ndarray | None = None) -> Votes:
        """Adds up (node, name) pairs, each of weight 1 or as counted."""
        if not len(node):
            empty = np.empty(0, np.int64)
            return cls(empty, empty, empty)
        size = int(name.max()) + 1
        pairs = node * size + name
        if count is None:
            pairs.sort()
            starts, ends = runs(pairs)
            totals = ends - starts
        else:
            order = np.argsort(pairs)
            pairs = pairs[order]
            starts, _ = runs(pairs)
            totals = np.add.reduceat(count[order], starts)
        node, name = np.divmod(pairs[starts], size)
        return cls(node, name, totals)

    def join(self, other: Votes) -> Votes:
        """Adds two counts up."""
        return Votes.of(
            *(
                np.concatenate([getattr(self, field.name), getattr(other, field.name)])
                for field in dataclasses.fields(self)
            )
        )

    def where(self, mask: np.ndarray) -> Votes:
        """Returns some of the votes."""
        return Votes(self.node[mask], self.name[mask], self.count[mask])


def majority(votes: Votes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes that have votes and the most frequent name of each, ties to the first."""
    starts, ends = runs(votes.node)
    if not len(starts):
        return votes.node, votes.name
    most = np.maximum.reduceat(votes.count, starts)
    winners = np.flatnonzero(votes.count == np.repeat(most, ends - starts))
    first = winners[np.searchsorted(winners, starts)]
    return votes.node[first], votes.name[first]


def distinctive_terms(
    votes: Votes,
    frequency: np.ndarray,
    mean_words: float,
    used: tuple[np.ndarray, np.ndarray],
    num_terms: int = LABEL_TERMS,
) -> tuple[np.ndarray, np.ndarray]:
    """Picks the words that name each node.

    The weight of word t in node c is class-based TF-IDF (Grootendorst, 2203.05794), over all nodes
    of one depth as classes:

        W(t, c) = tf(t, c) * log(1 + A / f(t))

    with tf the items of c that have t, f the items that have t, and A the mean number of words per
    node. A word that already names an ancestor is passed over, so that a path reads from coarse to
    fine; ties go to the alphabetically first.

    Example: a node whose items are all shampoos, half of them with argan oil, is named "shampoo",
    and the child that holds those with argan oil "argan oil".

    Args:
      votes: items per node and word, words numbered alphabetically.
      frequency: (words,) f.
      mean_words: A.
      used: pairs of node and word that must not name it.
      num_terms: most words per node.

    Returns:
      Pairs of node and word, by node, the heaviest word first.
    """
    weight = votes.count * np.log1p(mean_words / frequency[votes.name])
    size = max(len(frequency), 1)
    fresh = ~np.isin(votes.node * size + votes.name, used[0] * size + used[1])
    node, term, weight = votes.node[fresh], votes.name[fresh], weight[fresh]
    order = np.lexsort((term, -weight, node))
    node, term = node[order], term[order]
    rank = np.arange(len(node)) - np.searchsorted(node, node)
    top = rank < num_terms
    return node[top], term[top]
