"""Beam search over the trie: a model that scores tokens retrieves items, nothing but items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from models.trie_decoder import TrieDecoder

ScoreNext = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class BeamResult:
    """What a search found, best first.

    Attributes:
      leaves: (batch, beams) int64 leaf numbers (rows of the items table unless IDs are shared),
        -1 after the last reachable item.
      tokens: (batch, beams, T) int64 codes, then the suffix where the trie has that level; -1 in
        empty places.
      scores: (batch, beams) float32 sums of log probabilities, -inf in empty places.
    """

    leaves: torch.Tensor
    tokens: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def constrained_beam_search(
    decoder: TrieDecoder, score_next: ScoreNext, batch_size: int, num_beams: int
) -> BeamResult:
    """Finds the best-scoring items per batch row, walking the trie level by level.

    An item's score is the sum over levels of log softmax over all tokens of the level; tokens that
    lead to no item are then left out, without renormalising, as `generate` of Hugging Face does.
    Every returned ID is a leaf of the trie, also when there are fewer items than beams (the rest
    of the places stay empty) and whatever the logits hold: NaN counts as impossible.

    Args:
      decoder: the trie, perhaps restricted to eligible items.
      score_next: maps tokens chosen so far, (batch * beams, t) int64 with all beams of a batch row
        together, and the row each one continues, (batch * beams,) int64 (the order in which
        cached keys and values must be taken), to logits (batch * beams, K_t). Dead beams hold
        token 0.
      batch_size: batch rows.
      num_beams: beams and results per batch row.

    Raises:
      ValueError: fewer than one beam, or logits of another shape.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, got {num_beams}")
    rows, device = batch_size * num_beams, decoder.device
    states = decoder.root(rows)
    tokens = torch.zeros(rows, 0, dtype=torch.int64, device=device)
    parents = torch.arange(rows, device=device)
    first_of_row = (torch.arange(batch_size, device=device) * num_beams)[:, None]
    # One live beam a row to begin with, or all beams would be the same.
    scores = torch.full((batch_size, num_beams), -torch.inf, device=device)
    scores[:, 0] = 0.0
    for level, size in enumerate(decoder.token_sizes):
        logits = score_next(tokens, parents)
        if logits.shape != (rows, size):
            raise ValueError(
                f"score_next must return logits of shape {(rows, size)} at level {level + 1}, got "
                f"{tuple(logits.shape)}"
            )
        steps = torch.log_softmax(logits.float(), dim=1)
        impossible = ~decoder.allowed_next(states.clamp(min=0), level) | steps.isnan()
        steps = steps.masked_fill(impossible, -torch.inf)
        total = (scores.view(rows, 1) + steps).view(batch_size, num_beams * size)
        scores, best = total.topk(num_beams, dim=1)
        parents = (first_of_row + best // size).flatten()
        chosen = (best % size).flatten()
        states = decoder.advance(states[parents], level, chosen)
        # A place without a live beam still gets some token from topk; it must stay dead.
        dead = scores.flatten().isneginf() | (states < 0)
        states, chosen = states.masked_fill(dead, -1), chosen.masked_fill(dead, 0)
        scores = scores.masked_fill(dead.view_as(scores), -torch.inf)
        tokens = torch.cat([tokens[parents], chosen[:, None]], dim=1)
    empty = states < 0
    return BeamResult(
        states.view(batch_size, num_beams),
        tokens.masked_fill(empty[:, None], -1).view(batch_size, num_beams, decoder.depth),
        scores,
    )
