"""A bounded, order-independent sample of distinct embeddings to fit a tokenizer on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from schemas.arrays import keys_from_fixed_binary, list_from_matrix, matrix_from_list
from semid_transforms import files

_SPILLED_GROUP_ROWS = 1 << 13


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Which embeddings a tokenizer is fitted on, and where they are; none of them is in memory.

    Attributes:
      parts: paths of `embedding_schema` files.
      hashes: (n,) 16 bytes, the content hashes, ascending.
      origin: (n, 2) int64, part and row of each.
    """

    parts: tuple[str, ...]
    hashes: np.ndarray
    origin: np.ndarray

    def hash_bytes(self, stop: int) -> np.ndarray:
        """Returns (min(stop, n), 16) uint8, the first content hashes."""
        return np.frombuffer(self.hashes[:stop].tobytes(), np.uint8).reshape(-1, 16)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the (m, D) float32 embeddings of some rows; reads only row groups with them."""
        origin = self.origin[start:stop]
        sample: np.ndarray | None = None
        for number, path in enumerate(self.parts):
            wanted = np.flatnonzero(origin[:, 0] == number)
            if not len(wanted):
                continue
            rows_of_part = origin[wanted, 1]
            with files.parquet_file(path) as file:
                first = 0
                for group in range(file.num_row_groups):
                    last = first + file.metadata.row_group(group).num_rows
                    inside = (rows_of_part >= first) & (rows_of_part < last)
                    if inside.any():
                        column = file.read_row_group(group, columns=["embedding"])["embedding"]
                        taken = column.combine_chunks().take(pa.array(rows_of_part[inside] - first))
                        vectors = matrix_from_list(taken)
                        if sample is None:
                            sample = np.empty((len(origin), vectors.shape[1]), np.float32)
                        sample[wanted[inside]] = vectors
                    first = last
        assert sample is not None
        return sample

    def spill(self, folder: str, start: int, block_rows: int) -> list[str]:
        """Writes the rows from `start` on as local Parquet, to be streamed in any order.

        Args:
          folder: local.
          start: rows before it stay where they are.
          block_rows: most rows in memory, and in a file; every block reads the parts once.

        Returns:
          Paths of the files. Their bytes depend on the sample and `block_rows` alone.
        """
        paths: list[str] = []
        schema = pa.schema([pa.field("embedding", pa.list_(pa.float32()), nullable=False)])
        for block in range(start, len(self.hashes), block_rows):
            vectors = self.read(block, min(block + block_rows, len(self.hashes)))
            batch = pa.RecordBatch.from_arrays(
                [list_from_matrix(vectors, pa.float32())], schema=schema
            )
            paths.append(os.path.join(folder, f"sample-{len(paths):05d}.parquet"))
            files.write_table(paths[-1], schema, [batch], _SPILLED_GROUP_ROWS)
        return paths


def choose_sample(parts: Sequence[str], rows: int) -> Sample:
    """Takes the distinct contents with the smallest content hashes.

    Content hashes are uniform, so the smallest ones are a fair sample, and the same one whatever
    the order of rows and parts; so is the beginning of the sample. Reads every hash (16 bytes a
    row) and no embedding.

    Args:
      parts: paths of `embedding_schema` files.
      rows: most embeddings to take.

    Returns:
      `rows` or the number of distinct contents.

    Raises:
      ValueError: the parts hold no embedding.
    """
    hashes = np.empty(0, "S16")
    origin = np.empty((0, 2), np.int64)
    for number, path in enumerate(parts):
        column = files.read_table(path, ["content_hash"])["content_hash"]
        stored = keys_from_fixed_binary(column)
        place = np.stack([np.full(len(stored), number), np.arange(len(stored))], axis=1)
        hashes, first = np.unique(np.concatenate([hashes, stored]), return_index=True)
        origin = np.concatenate([origin, place])[first][:rows]
        hashes = hashes[:rows]
    if not len(hashes):
        raise ValueError(f"no embeddings in {len(parts)} parts: there is nothing to fit on")
    return Sample(tuple(parts), hashes, origin)


def sample_embeddings(parts: Sequence[str], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the whole of `choose_sample`.

    Returns:
      (n, D) float32 embeddings and their (n, 16) uint8 content hashes, in hash order.
    """
    sample = choose_sample(parts, rows)
    return sample.read(0, rows), sample.hash_bytes(rows)
