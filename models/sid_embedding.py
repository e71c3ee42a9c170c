"""Embedding tables over n-gram columns, and the random-hash baseline to compare them with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

# Multipliers of the baseline's hash functions, odd 63-bit numbers from the digits of pi.
_MULTIPLIERS = (0x243F6A8885A308D3, 0x13198A2E03707345, 0x24093822299F31D1, 0x082EFA98EC4E6C89)

# A DataLoader turns a pair into a list.
Ids = torch.Tensor | Sequence[torch.Tensor]


class SemanticIdEmbedding(nn.Module):
    """Sums one embedding per n-gram id, as ranking models take semantic IDs (2306.08121).

    Reads the n-gram columns of the items table as they are written: ids of different positions
    never meet, so a feature needs one table only.

    Example:
      >>> from models.ngrams import NgramFeature, ngram_ids, vocabulary_size
      >>> feature = NgramFeature("bigram")
      >>> ids = torch.from_numpy(ngram_ids(np.array([[2, 0, 3]]), (4, 4, 4), feature))
      >>> module = SemanticIdEmbedding({"bigram": vocabulary_size((4, 4, 4), feature)}, 8)
      >>> module({"bigram": ids}).shape
      torch.Size([1, 8])
    """

    def __init__(self, table_sizes: Mapping[str, int], embedding_dim: int) -> None:
        """Creates the tables.

        Args:
          table_sizes: feature name to rows, `vocabulary_size` of each feature.
          embedding_dim: length of the embeddings.
        """
        super().__init__()
        self.embedding_dim = embedding_dim
        self.tables = nn.ModuleDict(
            {
                name: nn.EmbeddingBag(rows, embedding_dim, mode="sum")
                for name, rows in table_sizes.items()
            }
        )
        for weight in self.parameters():
            nn.init.normal_(weight, std=embedding_dim**-0.5)

    @property
    def num_rows(self) -> int:
        """Rows of all tables together."""
        return sum(len(weight) for weight in self.parameters())

    def forward(self, columns: Mapping[str, Ids]) -> torch.Tensor:
        """Embeds B items.

        Args:
          columns: per feature (B, P) int64 ids or, where rows differ in length as in `spm`, the
            pair of (V,) values and (B + 1,) offsets.

        Returns:
          (B, embedding_dim), the sum over all ids of all features.

        Raises:
          KeyError: a feature of `table_sizes` is missing from the columns.
        """
        return torch.stack(
            [_bag_sum(table, columns[name]) for name, table in self.tables.items()]
        ).sum(dim=0)


class RandomHashEmbedding(nn.Module):
    """Hashes item ids into one table: the baseline with as many parameters but no semantics.

    Example:
      >>> semantic = SemanticIdEmbedding({"unigram": 768}, 8)
      >>> baseline = RandomHashEmbedding(semantic.num_rows, 8, num_hashes=3)
      >>> baseline(torch.tensor([17, 2**62])).shape
      torch.Size([2, 8])
    """

    def __init__(self, num_rows: int, embedding_dim: int, num_hashes: int = 1) -> None:
        """Creates the table.

        Args:
          num_rows: rows of the table; `SemanticIdEmbedding.num_rows` for a fair comparison.
          embedding_dim: length of the embeddings.
          num_hashes: independent hashes summed per item, 1 to 4; as many as the semantic
            embedding sums ids makes the cost of a lookup equal as well.

        Raises:
          ValueError: `num_hashes` is out of range.
        """
        super().__init__()
        if not 1 <= num_hashes <= len(_MULTIPLIERS):
            raise ValueError(f"num_hashes must lie in 1..{len(_MULTIPLIERS)}, got {num_hashes}")
        self.num_hashes = num_hashes
        self.table = nn.EmbeddingBag(num_rows, embedding_dim, mode="sum")
        nn.init.normal_(self.table.weight, std=embedding_dim**-0.5)

    def rows(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the (B, num_hashes) int64 table rows of (B,) int64 item numbers or hashes."""
        multipliers = torch.tensor(_MULTIPLIERS[: self.num_hashes], device=items.device)
        # Multiply and fold: the high half of a product depends on every bit of the item.
        product = items[:, None] * multipliers
        product = (product ^ ((product >> 32) & 0xFFFFFFFF)) * multipliers
        return ((product >> 31) & 0xFFFFFFFF) % self.table.num_embeddings

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Embeds (B,) int64 item numbers or hashes as (B, embedding_dim)."""
        return self.table(self.rows(items))


def _bag_sum(table: nn.Module, ids: Ids) -> torch.Tensor:
    if isinstance(ids, torch.Tensor):
        return table(ids)
    values, offsets = ids
    return table(values, offsets[:-1])
