"""Category paths as training tags: one tag per depth, rare ones merged, gaps allowed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

NO_TAG = -1
SEPARATOR = " > "
RARE = "(rare)"


@dataclasses.dataclass(frozen=True, eq=False)
class TagTable:
    """Tags of N items at T depths.

    Attributes:
      names: per depth the tags, each a path such as `Beauty > Hair`; the last one of a depth is
        `(rare)` where rare tags were merged.
      ids: (N, T) int64 positions in `names`, -1 where an item's path ends before that depth.
    """

    names: tuple[tuple[str, ...], ...]
    ids: np.ndarray

    @classmethod
    def from_paths(
        cls, paths: Sequence[Sequence[str] | None], num_levels: int, rare: int
    ) -> TagTable:
        """Reads category paths.

        A tag is the whole path down to its depth, so equal names under different parents stay
        apart. Tags are numbered by name, whatever the order of items.

        Args:
          paths: N paths, coarse to fine; None or empty for no category.
          num_levels: depths read at most; fewer when no path is that long.
          rare: tags with fewer items are merged into one a depth.

        Returns:
          The table.

        Raises:
          ValueError: no item has a category.
        """
        depths = min(num_levels, max((len(path or ()) for path in paths), default=0))
        if not depths:
            raise ValueError(
                f"tag supervision needs category paths, all {len(paths)} items are without: map "
                f"category_path or set tags.alignment and tags.prediction to 0"
            )
        names, columns = [], []
        for depth in range(1, depths + 1):
            keys = [
                SEPARATOR.join(path[:depth]) if path is not None and len(path) >= depth else None
                for path in paths
            ]
            counts = Counter(key for key in keys if key is not None)
            frequent = sorted(key for key, count in counts.items() if count >= rare)
            numbers = {key: number for number, key in enumerate(frequent)}
            merged = len(frequent) < len(counts)
            columns.append(
                [NO_TAG if key is None else numbers.get(key, len(frequent)) for key in keys]
            )
            names.append(tuple([*frequent, RARE] if merged else frequent))
        return cls(tuple(names), np.array(columns, np.int64).T.reshape(len(paths), depths))

    @property
    def num_depths(self) -> int:
        """Depths T."""
        return len(self.names)

    def embeddings(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns per depth the (tags, D) mean embedding of each tag's items.

        Args:
          rows: (N, D) embeddings of the items.
        """
        means = []
        for depth, names in enumerate(self.names):
            known = self.ids[:, depth] != NO_TAG
            ids = self.ids[known, depth]
            sums = np.zeros((len(names), rows.shape[1]))
            np.add.at(sums, ids, rows[known])
            sizes = np.bincount(ids, minlength=len(names)).clip(min=1)
            means.append((sums / sizes[:, None]).astype(np.float32))
        return means
