"""Small feed-forward networks whose output does not depend on the batch a row came in."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np

BLOCK_ROWS = 4096
_UNIT_ROUNDOFF = 2.0**-53


@dataclasses.dataclass(frozen=True, eq=False)
class _WideLayer:
    """One layer in float64, and what bounds how far the order of its sums can move its outputs.

    Attributes:
      weight: (in, out).
      bias: (out,).
      columns: (out,) 2-norms of the weight's columns.
      norm: 2-norm of those, which is the weight's Frobenius norm.
      bias_bound: (out,), how far adding the bias can move each output.
      bias_norm: its 2-norm.
    """

    weight: np.ndarray
    bias: np.ndarray
    columns: np.ndarray
    norm: float
    bias_bound: np.ndarray
    bias_norm: float

    @classmethod
    def of(cls, weight: np.ndarray, bias: np.ndarray) -> _WideLayer:
        """Takes float32 parameters."""
        wide, wide_bias = weight.astype(np.float64), bias.astype(np.float64)
        columns = np.sqrt((wide**2).sum(axis=0))
        bound = 2 * (len(wide) + 2) * _UNIT_ROUNDOFF * np.abs(wide_bias)
        norm, bias_norm = (float(np.linalg.norm(values)) for values in (columns, bound))
        return cls(wide, wide_bias, columns, norm, bound, bias_norm)

    def moved(self, rows: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Returns (n,): times the norm of a column, how far that output can move.

        Args:
          rows: (n, in) float64.
          error: (n,) bounds of the 2-norm of what is wrong with each row already.
        """
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        return error + 2 * (len(self.weight) + 2) * _UNIT_ROUNDOFF * lengths


@dataclasses.dataclass(frozen=True, eq=False)
class DenseNetwork:
    """Affine layers with ReLU between them and an optional affine shortcut around them all.

    Attributes:
      weights: float32 (in, out) matrices, first layer first.
      biases: float32 (out,) vectors, one a layer.
      shortcut: float32 (in, out) matrix added to the output as `x @ shortcut`, or None.
      grid: outputs of `exact` are multiples of it; a power of two.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    shortcut: np.ndarray | None = None
    grid: float = 2.0**-24

    def __post_init__(self) -> None:
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.ndim != 2 or bias.shape != (weight.shape[1],):
                raise ValueError(
                    f"layer {layer}: weight {weight.shape} and bias {bias.shape} do not fit"
                )
        for layer in range(len(self.weights) - 1):
            if self.weights[layer].shape[1] != self.weights[layer + 1].shape[0]:
                raise ValueError(
                    f"layer {layer} gives {self.weights[layer].shape[1]} values, layer "
                    f"{layer + 1} takes {self.weights[layer + 1].shape[0]}"
                )
        if self.shortcut is not None and self.shortcut.shape != (self.in_dim, self.out_dim):
            raise ValueError(
                f"shortcut has shape {self.shortcut.shape}, expected {self.in_dim, self.out_dim}"
            )
        if self.grid <= 0 or math.frexp(self.grid)[0] != 0.5:
            raise ValueError(f"grid must be a power of two, got {self.grid}")

    @property
    def in_dim(self) -> int:
        """Values a row brings."""
        return int(self.weights[0].shape[0])

    @property
    def out_dim(self) -> int:
        """Values a row leaves with."""
        return int(self.weights[-1].shape[1])

    def nearly(self, rows: np.ndarray) -> np.ndarray:
        """Evaluates the network in float32; last bits may depend on N and on threads.

        Args:
          rows: (N, in_dim) float32.

        Returns:
          (N, out_dim) float32.
        """
        hidden = rows
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                np.maximum(hidden, 0, out=hidden)
            hidden = hidden @ weight
            hidden += bias
        if self.shortcut is not None:
            hidden += rows @ self.shortcut
        return hidden

    def exact(self, rows: np.ndarray) -> np.ndarray:
        """Evaluates the network in float64, rounded to the grid; a pure function of each row.

        A matrix product may add its terms in another order when the number of rows or threads
        changes, so two float64 evaluations can differ by their rounding error. That error is
        bounded by `n u |h| |w|` a layer (Higham, Accuracy and Stability, eq. 3.5, u = 2^-53).
        Where all values within the bound round to the same point of the grid, that point is
        final. The few rows where they do not (1 in 1,000 at a grid of 2^-18 of the output's size)
        are evaluated again, adding in index order.

        Args:
          rows: (N, in_dim) float32.

        Returns:
          (N, out_dim) float32.
        """
        out = np.empty((len(rows), self.out_dim), np.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS].astype(np.float64)
            # Adding zero turns -0.0, which only its bytes tell from 0.0, into 0.0.
            out[start : start + len(block)] = self._grid_points(block) * self.grid + 0.0
        return out

    def _grid_points(self, block: np.ndarray) -> np.ndarray:
        """Maps (n, in_dim) float64 rows to outputs in whole multiples of the grid."""
        value, bound = self._float64(block)
        points = np.rint((value - bound) / self.grid)
        open_rows = np.flatnonzero((points != np.rint((value + bound) / self.grid)).any(axis=1))
        if len(open_rows):
            points[open_rows] = np.rint(self._in_index_order(block[open_rows]) / self.grid)
        return points

    @functools.cached_property
    def _wide(self) -> tuple[_WideLayer, ...]:
        return tuple(map(_WideLayer.of, self.weights, self.biases))

    @functools.cached_property
    def _wide_shortcut(self) -> _WideLayer:
        assert self.shortcut is not None
        return _WideLayer.of(self.shortcut, np.zeros(self.out_dim, np.float32))

    def _float64(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns float64 outputs and how far another summation order can move them."""
        hidden, error = block, np.zeros(len(block))
        *inner, last = self._wide
        for layer in inner:
            # `error` bounds the 2-norm of the error of `hidden`.
            error = layer.moved(hidden, error) * layer.norm + layer.bias_norm
            hidden = hidden @ layer.weight
            hidden += layer.bias
            np.maximum(hidden, 0.0, out=hidden)
        bound = last.moved(hidden, error)[:, None] * last.columns + last.bias_bound
        hidden = hidden @ last.weight + last.bias
        if self.shortcut is not None:
            straight = block @ self._wide_shortcut.weight
            moved = self._wide_shortcut.moved(block, np.zeros(len(block)))
            bound += moved[:, None] * self._wide_shortcut.columns
            bound += 2 * _UNIT_ROUNDOFF * (np.abs(hidden) + np.abs(straight))
            hidden += straight
        return hidden, bound

    def _in_index_order(self, block: np.ndarray) -> np.ndarray:
        """Evaluates (n, in_dim) float64 rows by elementwise sums, input 0 first."""
        hidden = block
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = _product_in_index_order(hidden, weight) + bias
            if layer < len(self.weights) - 1:
                hidden = np.maximum(hidden, 0.0)
        if self.shortcut is not None:
            hidden = hidden + _product_in_index_order(block, self.shortcut)
        return hidden

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns named float32 arrays from which `from_arrays` rebuilds the network."""
        named: dict[str, np.ndarray] = {}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            named[f"{prefix}.{layer}.weight"] = weight
            named[f"{prefix}.{layer}.bias"] = bias
        if self.shortcut is not None:
            named[f"{prefix}.shortcut"] = self.shortcut
        named[f"{prefix}.grid"] = np.array([self.grid], np.float32)
        return named

    @classmethod
    def from_arrays(cls, named: Mapping[str, np.ndarray], prefix: str) -> DenseNetwork:
        """Reads what `arrays` wrote.

        Raises:
          ValueError: there is no layer under that prefix.
        """
        layers = 0
        while f"{prefix}.{layers}.weight" in named:
            layers += 1
        if not layers:
            raise ValueError(f"no array named {prefix}.0.weight among {sorted(named)}")
        return cls(
            tuple(named[f"{prefix}.{layer}.weight"] for layer in range(layers)),
            tuple(named[f"{prefix}.{layer}.bias"] for layer in range(layers)),
            named.get(f"{prefix}.shortcut"),
            float(named[f"{prefix}.grid"][0]),
        )


def _product_in_index_order(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns rows @ weight, each output summed from input 0 upwards whatever the batch."""
    total = np.zeros((len(rows), weight.shape[1]))
    for column in range(weight.shape[0]):
        total += rows[:, column, None] * weight[column].astype(np.float64)
    return total
