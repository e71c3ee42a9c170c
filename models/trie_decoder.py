"""The trie in torch: which tokens may come next, for whole batches of beams, on CPU or GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from models.trie import Trie

# A node with at least K/64 and at least 16 children is also kept as a bitmap of K bits (11 MB
# beside the 71 MB of 10M IDs in 4 levels of 2048). The others have so few children that listing
# them is cheap, so the work for one beam is bounded by K alone, never by the catalog.
_DENSE_SHARE = 64
_DENSE_CHILDREN = 16
_BITMAP_CHUNK = 1 << 12


@dataclasses.dataclass(frozen=True)
class Continuations:
    """The children of B states, padded to the widest.

    Attributes:
      tokens: (B, C) int64 tokens, ascending from the left; 0 where not valid.
      next_states: (B, C) int64 states after them; 0 where not valid.
      valid: (B, C) bool.
    """

    tokens: torch.Tensor
    next_states: torch.Tensor
    valid: torch.Tensor


class TrieDecoder:
    """Vectorised steps down a trie.

    A state is the position of a node in its level: 0 at the root (level 0), a leaf number at level
    T. All states of a call are at one level, as in a beam search. Tensors share memory with the
    trie on a CPU and are copied once to any other device.

    Attributes:
      trie: the trie as loaded.
      device: of all tensors.
    """

    def __init__(
        self,
        trie: Trie,
        device: str | torch.device = "cpu",
        eligible: np.ndarray | None = None,
    ) -> None:
        """Prepares a trie for decoding.

        Args:
          trie: the trie; its arrays are not changed.
          device: where steps run.
          eligible: (leaves,) bool, the IDs that may be reached (fresh, in stock, ...); all when
            None. Costs one pass over the trie's levels and no rebuild.

        Raises:
          ValueError: `eligible` has another length than the trie has leaves.
        """
        if eligible is not None and len(eligible) != trie.num_leaves:
            raise ValueError(
                f"eligible has {len(eligible)} entries, the trie has {trie.num_leaves} leaves"
            )
        self.trie = trie
        self.device = torch.device(device)
        alive = None if eligible is None else _alive(trie, eligible)
        self._alive = None if alive is None else [self._tensor(level) for level in alive]
        self._tokens = [self._tensor(tokens) for tokens in trie.tokens]
        self._starts = [self._tensor(start) for start in trie.child_start]
        dense = [_bitmaps(trie, level, alive) for level in range(trie.depth)]
        self._dense_nodes = [self._tensor(nodes) for nodes, _ in dense]
        self._bitmaps = [self._tensor(bits) for _, bits in dense]
        # Byte value to the eight booleans it stands for, as one 64-bit word.
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
        self._unpacked = self._tensor(bits.view(np.int64)[:, 0])

    @property
    def token_sizes(self) -> tuple[int, ...]:
        """Number of possible tokens per level, `Trie.token_sizes`."""
        return self.trie.token_sizes

    @property
    def depth(self) -> int:
        """Tokens of a whole ID, T."""
        return self.trie.depth

    def root(self, count: int) -> torch.Tensor:
        """Returns (count,) int64 root states."""
        return torch.zeros(count, dtype=torch.int64, device=self.device)

    def allowed_next(self, states: torch.Tensor, level: int) -> torch.Tensor:
        """Says which tokens may follow; `advance` gives the states they lead to.

        Args:
          states: (B,) int64 states of `level`.
          level: tokens already chosen, 0 to T - 1.

        Returns:
          (B, K) bool, K = `token_sizes[level]`.
        """
        begin, end = self._children(states, level)
        counts = end - begin
        # Only wide nodes are looked up: at 10M IDs that is a search among 44,000.
        dense = (counts >= _dense_children(self.token_sizes[level])).nonzero().flatten()
        nodes = self._dense_nodes[level]
        # The last bitmap is empty: sparse beams start from it and add their tokens one by one.
        row = torch.full_like(states, len(nodes))
        row[dense] = torch.searchsorted(nodes, states[dense])
        packed = self._bitmaps[level].index_select(0, row)
        mask = self._unpacked.index_select(0, packed.flatten().int()).view(packed.shape)
        mask = mask.view(torch.bool)
        owner, child = self._listed(begin, counts.index_fill(0, dense, 0), level)
        tokens = self._read(self._tokens[level], child)
        mask.view(-1).index_fill_(0, owner * mask.shape[1] + tokens, True)
        return mask[:, : self.token_sizes[level]]

    def list_next(self, states: torch.Tensor, level: int) -> Continuations:
        """Lists the tokens that may follow and the states they lead to.

        Children are gathered as one flat list and laid out once, so the work is that of the
        children there are and the memory that of the widest node; where a mask will do,
        `allowed_next` costs the same whatever the nodes' widths.

        Args:
          states: (B,) int64 states of `level`.
          level: tokens already chosen, 0 to T - 1.
        """
        distinct, which = torch.unique(states, return_inverse=True)
        if 0 < 2 * len(distinct) <= len(states):  # near the root many beams stand at one node
            once = self.list_next(distinct, level)
            parts = (once.tokens, once.next_states, once.valid)
            return Continuations(*(part.index_select(0, which) for part in parts))
        begin, end = self._children(states, level)
        owner, child = self._listed(begin, end - begin, level)
        counts = torch.bincount(owner, minlength=len(states))
        width = int(counts.max()) if len(states) else 0
        shape = (len(states), width)
        tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        next_states = torch.zeros_like(tokens)
        valid = torch.arange(width, device=self.device) < counts[:, None]
        # Children come by owner, so they fill the valid places in order.
        first = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(child), device=self.device)
        place += (torch.arange(len(states), device=self.device) * width - first).index_select(
            0, owner
        )
        tokens.view(-1)[place] = self._read(self._tokens[level], child)
        next_states.view(-1)[place] = child
        return Continuations(tokens, next_states, valid)

    def _listed(
        self, begin: torch.Tensor, counts: torch.Tensor, level: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lists (B,) ranges of children of `level`: whose each is, and its state, in order."""
        owner = torch.repeat_interleave(torch.arange(len(counts), device=self.device), counts)
        child = torch.arange(len(owner), device=self.device)
        child += (begin - torch.cumsum(counts, 0) + counts).index_select(0, owner)
        if self._alive is not None:
            alive = self._alive[level].index_select(0, child)
            owner, child = owner[alive], child[alive]
        return owner, child

    def advance(self, states: torch.Tensor, level: int, tokens: torch.Tensor) -> torch.Tensor:
        """Takes one step.

        Args:
          states: (B,) int64 states of `level`; -1 stays -1.
          level: tokens already chosen, 0 to T - 1.
          tokens: (B,) int64, any numbers.

        Returns:
          (B,) int64 states of `level + 1`, -1 where the token does not follow.
        """
        begin, end = self._children(states.clamp(min=0), level)
        last = len(self._tokens[level]) - 1
        if last < 0:
            return torch.full_like(states, -1)
        low, width = begin, end - begin
        for _ in range(int(self.token_sizes[level]).bit_length()):
            half = width >> 1
            middle = low + half
            right = (width > 0) & (self._read(self._tokens[level], middle.clamp(max=last)) < tokens)
            low = torch.where(right, middle + 1, low)
            width = torch.where(right, width - half - 1, half)
        found = low.clamp(max=last)
        good = (states >= 0) & (low < end) & (self._read(self._tokens[level], found) == tokens)
        if self._alive is not None:
            good &= self._alive[level][found]
        return torch.where(good, found, -1)

    def walk(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the (B,) states that (B, t) token prefixes lead to, -1 where none does."""
        states = self.root(len(tokens))
        for level in range(tokens.shape[1]):
            states = self.advance(states, level, tokens[:, level])
        return states

    def _children(self, states: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        if level == 0:
            return torch.zeros_like(states), torch.full_like(states, len(self._tokens[0]))
        start = self._starts[level - 1]
        if len(start) == 1:  # An empty catalog has no states below the root.
            return torch.zeros_like(states), torch.zeros_like(states)
        return self._read(start, states), self._read(start, states + 1)

    def _read(self, array: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Reads unsigned numbers that are stored under a signed type of equal width."""
        values = array.index_select(0, index.flatten()).view(index.shape).to(torch.int64)
        bits = 8 * array.itemsize
        return values if array.dtype in (torch.uint8, torch.int64) else values & ((1 << bits) - 1)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        # Few torch operations know uint16 and uint32: the bits travel under int16 and int32.
        if array.dtype.kind == "u" and array.itemsize > 1:
            array = array.view(f"i{array.itemsize}")
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)


def _alive(trie: Trie, eligible: np.ndarray) -> list[np.ndarray]:
    """Returns per level which nodes have an eligible leaf below them."""
    alive = [np.asarray(eligible, bool)]
    for start in reversed(trie.child_start):
        below = np.concatenate([[0], np.cumsum(alive[0], dtype=np.int64)])[start.astype(np.int64)]
        alive.insert(0, below[1:] > below[:-1])
    return alive


def _dense_children(size: int) -> float:
    """Returns from how many children on a node with `size` possible tokens has a bitmap."""
    return max(size / _DENSE_SHARE, _DENSE_CHILDREN)


def _bitmaps(
    trie: Trie, level: int, alive: list[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the dense parents of a level, (n,) int64, and their bitmaps, (n, bytes) uint8.

    One more bitmap, an empty one, follows.
    """
    size = trie.token_sizes[level]
    tokens = trie.tokens[level]
    start = trie.child_start[level - 1] if level else np.array([0, len(tokens)])
    start = start.astype(np.int64)
    nodes = np.flatnonzero(np.diff(start) >= _dense_children(size))
    bitmaps = np.zeros((len(nodes) + 1, -(-size // 8)), np.uint8)
    for first in range(0, len(nodes), _BITMAP_CHUNK):
        some = nodes[first : first + _BITMAP_CHUNK]
        counts = start[some + 1] - start[some]
        owner = np.repeat(np.arange(len(some)), counts)
        child = np.arange(len(owner)) + np.repeat(start[some] - np.cumsum(counts) + counts, counts)
        if alive is not None:
            owner, child = owner[alive[level][child]], child[alive[level][child]]
        bits = np.zeros((len(some), size), bool)
        bits[owner, tokens[child]] = True
        bitmaps[first : first + len(some)] = np.packbits(bits, axis=1)
    return nodes, bitmaps
