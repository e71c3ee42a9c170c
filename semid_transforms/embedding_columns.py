"""Embeddings that the catalog brings: finding, checking, combining and reading them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.config import InputConfig
from semid_transforms.coercion import Kind
from semid_transforms.rows import Field

DEFAULT_COLUMN = "embedding"


@dataclasses.dataclass(frozen=True)
class EmbeddingSpec:
    """Which columns of the catalog make the embedding.

    Attributes:
      columns: their names.
      widths: length of the vectors of each.
      weights: of each; only their ratio matters, since the result has unit length.
    """

    columns: tuple[str, ...]
    widths: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def embedding_dim(self) -> int:
        """Length D of the combined embedding."""
        return sum(self.widths)


def vector_fields(columns: Sequence[str]) -> list[Field]:
    """Returns the fields that read embedding columns."""
    return [Field(vector_name(i), column, Kind.VECTOR) for i, column in enumerate(columns)]


def vector_name(position: int) -> str:
    """Returns the field of an embedding column; no template field can have this name."""
    return f"embedding {position}"


def combine(columns: Sequence[pa.Array], spec: EmbeddingSpec) -> tuple[np.ndarray, dict[int, str]]:
    """Makes embeddings: every column to unit length, times its weight, side by side, unit length.

    The arithmetic is float64 row by row and rounded once, so that a row's embedding does not
    depend on the rows around it.

    Args:
      columns: N lists of float64 each, in the order of the spec.
      spec: widths and weights.

    Returns:
      (N, D) float32, zero where a row has a problem; and what is wrong by row.
    """
    total = float(np.sqrt(np.sum(np.square(spec.weights))))
    blocks = []
    problems: dict[int, str] = {}
    for name, array, width, weight in zip(
        spec.columns, columns, spec.widths, spec.weights, strict=True
    ):
        values, wrong = _dense(array, width)
        finite = np.isfinite(values)
        largest = np.abs(np.where(finite, values, 0)).max(axis=1, initial=0)
        values = np.where(finite, values, 0) / np.where(largest > 0, largest, 1)[:, None]
        norms = np.sqrt(np.add.reduce(values * values, axis=1))  # at least 1 unless all are zero
        for row in np.flatnonzero(~finite.all(axis=1)).tolist():
            place = int(np.flatnonzero(~finite[row])[0])
            wrong.setdefault(row, f"value {place} is missing, NaN or infinite")
        for row in np.flatnonzero(largest == 0).tolist():
            wrong.setdefault(row, "all its values are zero")
        for row, text in wrong.items():
            problems.setdefault(row, f"column {name}: {text}")
        blocks.append(values / np.where(norms > 0, norms, 1)[:, None] * (weight / total))
    matrix = np.concatenate(blocks, axis=1).astype(np.float32) + np.float32(0)  # no negative zero
    matrix[list(problems)] = 0
    return matrix, problems


def _dense(array: pa.Array, width: int) -> tuple[np.ndarray, dict[int, str]]:
    """Returns lists as (N, width) float64, zero rows where a list does not have that length."""
    lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
    right = lengths == width
    wrong = {
        int(row): "no embedding"
        if lengths[row] < 0
        else f"{int(lengths[row])} values, expected {width}"
        for row in np.flatnonzero(~right)
    }
    values = np.zeros((len(array), width), np.float64)
    kept = pc.list_flatten(array.filter(pa.array(right)))
    values[right] = kept.to_numpy(zero_copy_only=False).reshape(-1, width)  # nulls become NaN
    return values, wrong


def embedding_weights(input_config: InputConfig, num_columns: int) -> tuple[float, ...]:
    """Returns the configured weight of every column, 1 without one."""
    weights = input_config.embedding_weights
    return tuple(weights) if weights is not None else (1.0,) * num_columns
