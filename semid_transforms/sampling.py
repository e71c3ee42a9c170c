"""A bounded, order-independent sample of distinct embeddings to fit a tokenizer on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from schemas.arrays import keys_from_fixed_binary, matrix_from_list
from semid_transforms import files


def sample_embeddings(parts: Sequence[str], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Takes the distinct contents with the smallest content hashes.

    Content hashes are uniform, so the smallest ones are a fair sample, and the same one whatever
    the order of rows and parts. Reads every hash (16 bytes a row) but only the embeddings it keeps.

    Args:
      parts: paths of `embedding_schema` files.
      rows: most embeddings to take.

    Returns:
      (n, D) float32 embeddings and their (n, 16) uint8 content hashes, in hash order; n is
      `rows` or the number of distinct contents.

    Raises:
      ValueError: the parts hold no embedding.
    """
    hashes = np.empty(0, "S16")
    origin = np.empty((0, 2), np.int64)  # part number, row in the part
    for number, path in enumerate(parts):
        column = files.read_table(path, ["content_hash"])["content_hash"]
        stored = keys_from_fixed_binary(column)
        place = np.stack([np.full(len(stored), number), np.arange(len(stored))], axis=1)
        hashes, first = np.unique(np.concatenate([hashes, stored]), return_index=True)
        origin = np.concatenate([origin, place])[first][:rows]
        hashes = hashes[:rows]
    if not len(hashes):
        raise ValueError(f"no embeddings in {len(parts)} parts: there is nothing to fit on")
    sample: np.ndarray | None = None
    for number, path in enumerate(parts):
        wanted = np.flatnonzero(origin[:, 0] == number)
        if not len(wanted):
            continue
        rows_of_part = origin[wanted, 1]
        with files.parquet_file(path) as file:
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                inside = (rows_of_part >= start) & (rows_of_part < stop)
                if inside.any():
                    column = file.read_row_group(group, columns=["embedding"])["embedding"]
                    taken = column.combine_chunks().take(pa.array(rows_of_part[inside] - start))
                    vectors = matrix_from_list(taken)
                    if sample is None:
                        sample = np.empty((len(hashes), vectors.shape[1]), np.float32)
                    sample[wanted[inside]] = vectors
                start = stop
    assert sample is not None
    return sample, np.frombuffer(hashes.tobytes(), np.uint8).reshape(-1, 16)
