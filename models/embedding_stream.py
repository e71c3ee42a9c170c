"""Training batches read from Parquet, for samples that do not fit in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Rows shuffled together: 100 MB at 384 values.
BUFFER_ROWS = 65_536


@dataclasses.dataclass(frozen=True)
class EmbeddingStream:
    """Batches of the embedding column of Parquet files, shuffled, for ever.

    Row groups come in a new random order each time round, and rows are mixed within a buffer of
    several groups. Memory stays at the buffer plus one row group. Called as a function it is
    the `stream` of `TrainingInputs`.

    Attributes:
      paths: local Parquet files.
      column: list<float> or fixed-size list column, all of one length and without nulls.
      buffer_rows: rows mixed together.
    """

    paths: tuple[str, ...]
    column: str = "embedding"
    buffer_rows: int = BUFFER_ROWS

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths must name at least 1 Parquet file, got none")
        if self.buffer_rows < 1:
            raise ValueError(f"buffer_rows must be at least 1, got {self.buffer_rows}")

    def __call__(self, batch_size: int, seed: int) -> Iterator[np.ndarray]:
        """Gives (batch_size, D) float32 batches.

        Args:
          batch_size: rows a batch.
          seed: of the order.

        Raises:
          ValueError: there is no row, or the column is not as described.
        """
        random = np.random.default_rng(seed)
        groups = [
            (path, group)
            for path in self.paths
            for group in range(pq.ParquetFile(path).metadata.num_row_groups)
            if pq.ParquetFile(path).metadata.row_group(group).num_rows
        ]
        if not groups:
            raise ValueError(f"no rows to train on in {', '.join(self.paths)}")
        waiting: list[np.ndarray] = []
        rows = 0
        while True:
            for number in random.permutation(len(groups)):
                path, group = groups[number]
                waiting.append(self._read(path, group))
                rows += len(waiting[-1])
                if rows < max(batch_size, self.buffer_rows):
                    continue
                buffer = np.concatenate(waiting)[random.permutation(rows)]
                whole = rows - rows % batch_size
                yield from np.split(buffer[:whole], whole // batch_size)
                waiting, rows = [buffer[whole:]], rows - whole

    def _read(self, path: str, group: int) -> np.ndarray:
        """Returns the (n, D) float32 rows of one row group."""
        column = pq.ParquetFile(path).read_row_group(group, columns=[self.column]).column(0)
        return embedding_matrix(column.chunks, f"{path} row group {group}")


def embedding_matrix(chunks: Sequence[pa.Array], where: str) -> np.ndarray:
    """Converts list arrays of one length to an (n, D) float32 matrix.

    Args:
      chunks: list<float> or fixed-size list arrays.
      where: named in errors.

    Raises:
      ValueError: a row is null, has a null inside, or another length than the first.
    """
    parts = []
    for chunk in chunks:
        lists = chunk.cast(pa.list_(pa.float32()))
        values = lists.flatten()
        if lists.null_count or values.null_count:
            raise ValueError(f"{where}: an embedding is null or has a null inside")
        lengths = np.diff(lists.offsets.to_numpy())
        if len(lengths):
            if (lengths != lengths[0]).any():
                raise ValueError(
                    f"{where}: embeddings have {int(lengths.min())} to {int(lengths.max())} values"
                )
            parts.append(values.to_numpy(zero_copy_only=False).reshape(len(lists), -1))
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
