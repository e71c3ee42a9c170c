"""Constrained decoding inside Hugging Face `generate`."""

from __future__ import annotations

import dataclasses

import torch
from transformers import LogitsProcessor

from models.trie_decoder import TrieDecoder

# `generate` marks a beam that does not count with -1e9, then divides by the sequence length.
SURPLUS_SCORE = -1e6


@dataclasses.dataclass(frozen=True)
class SidVocabulary:
    """How a language model spells SIDs.

    Attributes:
      token_offsets: T vocabulary ids; token c of level t is the id `token_offsets[t] + c`. With
        tokens added level by level that is where each level's block begins.
      eos_token_id: ends an ID.
      prompt_length: ids before the first SID token in what `generate` passes on: the prompt's
        (padded) length for a causal model, 1 (the decoder's start token) for an encoder-decoder.
    """

    token_offsets: tuple[int, ...]
    eos_token_id: int
    prompt_length: int


class SidLogitsProcessor(LogitsProcessor):
    """Lets `generate` produce SIDs of the trie only, then the end token.

    States are found anew from the ids of each call, T small lookups, so nothing has to follow the
    reordering of beams. `generate` starts all beams but one at -1e9 and, with fewer items than
    beams, returns such beams too: `leaves` tells them from items by their scores.

    Example:
      vocabulary = SidVocabulary((100, 356, 612), eos_token_id=1, prompt_length=1)
      processor = SidLogitsProcessor(TrieDecoder(read_trie(path)), vocabulary)
      output = t5.generate(
          **inputs, num_beams=20, num_return_sequences=20, max_new_tokens=4,
          logits_processor=LogitsProcessorList([processor]),
          return_dict_in_generate=True, output_scores=True,
      )
      rows = processor.leaves(output.sequences, output.sequences_scores)

    Raises:
      ValueError: `token_offsets` does not name one block per level of the trie.
    """

    def __init__(self, decoder: TrieDecoder, vocabulary: SidVocabulary) -> None:
        if len(vocabulary.token_offsets) != decoder.depth:
            raise ValueError(
                f"token_offsets has {len(vocabulary.token_offsets)} blocks, the trie has "
                f"{decoder.depth} levels"
            )
        self.decoder = decoder
        self.vocabulary = vocabulary

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Sets the (B, V) scores of every id that leads to no item to -inf."""
        level = input_ids.shape[1] - self.vocabulary.prompt_length
        forbidden = torch.ones_like(scores, dtype=torch.bool)
        if level < self.decoder.depth:
            states = self._states(input_ids, level)
            mask = self.decoder.allowed_next(states.clamp(min=0), level) & (states >= 0)[:, None]
            offset = self.vocabulary.token_offsets[level]
            if offset + mask.shape[1] > scores.shape[1]:
                raise ValueError(
                    f"level {level + 1} needs ids {offset}..{offset + mask.shape[1] - 1}, the "
                    f"model has {scores.shape[1]}: resize its embeddings or correct token_offsets"
                )
            forbidden[:, offset : offset + mask.shape[1]] = ~mask
            # A beam that left the trie, or an empty trie, can only end; its score is -inf already.
            forbidden[:, self.vocabulary.eos_token_id] = mask.any(dim=1)
        else:
            forbidden[:, self.vocabulary.eos_token_id] = False
        return scores.masked_fill(forbidden, -torch.inf)

    def leaves(self, sequences: torch.Tensor, scores: torch.Tensor | None = None) -> torch.Tensor:
        """Reads generated sequences.

        Args:
          sequences: (B, t) ids as `generate` returns them.
          scores: (B,) `sequences_scores`; without them, surplus beams repeat items.

        Returns:
          (B,) int64 leaves, -1 where a sequence spells no item or was a surplus beam.
        """
        if sequences.shape[1] < self.vocabulary.prompt_length + self.decoder.depth:
            return torch.full((len(sequences),), -1, dtype=torch.int64, device=sequences.device)
        leaves = self._states(sequences, self.decoder.depth)
        return leaves if scores is None else leaves.masked_fill(scores < SURPLUS_SCORE, -1)

    def _states(self, ids: torch.Tensor, length: int) -> torch.Tensor:
        first = self.vocabulary.prompt_length
        offsets = torch.tensor(self.vocabulary.token_offsets[:length], device=ids.device)
        tokens = ids[:, first : first + length] - offsets
        return self.decoder.walk(tokens.to(self.decoder.device)).to(ids.device)
