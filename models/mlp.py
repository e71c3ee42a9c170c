"""The trainable network of encoder and decoder, and how it becomes a `DenseNetwork`."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from models.dense import DenseNetwork


class ResidualMlp(nn.Module):
    """Affine layers with ReLU between them, and an optional linear path around them.

    Args:
      widths: input, hidden and output widths.
      shortcut: whether there is a linear path.
    """

    def __init__(self, widths: tuple[int, ...], shortcut: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(widths)
        )
        self.shortcut = nn.Linear(widths[0], widths[-1], bias=False) if shortcut else None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps (B, widths[0]) to (B, widths[-1])."""
        hidden = self.layers[0](rows)
        for layer in list(self.layers)[1:]:
            hidden = layer(hidden.relu())
        return hidden if self.shortcut is None else hidden + self.shortcut(rows)


@torch.no_grad()
def rotate_between(encoder: ResidualMlp, decoder: ResidualMlp, rotation: torch.Tensor) -> None:
    """Turns what passes from one network to the other; together they compute the same as before.

    Args:
      encoder: gives (B, d); gives `... @ rotation` afterwards.
      decoder: takes (B, d); takes them turned afterwards.
      rotation: (d, d) orthogonal.
    """
    last, first = encoder.layers[-1], decoder.layers[0]
    assert isinstance(last, nn.Linear) and isinstance(first, nn.Linear)
    last.bias.copy_(last.bias @ rotation)
    for given in (last, encoder.shortcut):
        if given is not None:
            given.weight.copy_(rotation.t() @ given.weight)
    for taken in (first, decoder.shortcut):
        if taken is not None:
            taken.weight.copy_(taken.weight @ rotation)


def dense_network(
    network: ResidualMlp,
    grid: float,
    *,
    before: tuple[np.ndarray, np.ndarray] | None = None,
    after: tuple[np.ndarray, np.ndarray] | None = None,
) -> DenseNetwork:
    """Copies a trained network, with affine maps folded into its first and last layers.

    Args:
      network: trained.
      grid: outputs of the copy are multiples of it.
      before: matrix (in, in) and offset (in,); the copy takes x and feeds
        `(x - offset) @ matrix` to the network.
      after: matrix (out, out) and offset (out,) float64; the copy gives
        `network(...) @ matrix + offset`.

    Returns:
      The copy, computed in float64 and rounded to float32 once.
    """
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    weights = [_float64(layer.weight).T for layer in linear]
    biases = [_float64(layer.bias) for layer in linear]
    shortcut = None if network.shortcut is None else _float64(network.shortcut.weight).T
    if before is not None:
        matrix, offset = before
        weights[0] = matrix @ weights[0]
        biases[0] = biases[0] - offset @ weights[0]
        if shortcut is not None:
            shortcut = matrix @ shortcut
            biases[-1] = biases[-1] - offset @ shortcut
    if after is not None:
        matrix, offset = after
        weights[-1] = weights[-1] @ matrix
        biases[-1] = biases[-1] @ matrix + offset
        if shortcut is not None:
            shortcut = shortcut @ matrix
    return DenseNetwork(
        tuple(np.ascontiguousarray(weight, dtype=np.float32) for weight in weights),
        tuple(bias.astype(np.float32) for bias in biases),
        None if shortcut is None else np.ascontiguousarray(shortcut, dtype=np.float32),
        grid,
    )


def load_dense_network(
    network: ResidualMlp,
    dense: DenseNetwork,
    *,
    before: tuple[np.ndarray, np.ndarray] | None = None,
    after: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Undoes `dense_network`: gives a network the parameters whose copy `dense` would be.

    Args:
      network: of the same widths; its parameters are overwritten.
      dense: to start from.
      before: the affine map that will be folded into the network's copy, see `dense_network`; it
        need not be the one that was folded into `dense`.
      after: likewise.

    Raises:
      ValueError: widths or shortcut differ.
    """
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    ours = [(layer.in_features, layer.out_features) for layer in linear]
    theirs = [weight.shape for weight in dense.weights]
    if ours != theirs or (network.shortcut is None) != (dense.shortcut is None):
        raise ValueError(
            f"layers {ours} cannot start from layers {theirs}, or only one side has a shortcut"
        )
    weights = [weight.astype(np.float64) for weight in dense.weights]
    biases = [bias.astype(np.float64) for bias in dense.biases]
    shortcut = None if dense.shortcut is None else dense.shortcut.astype(np.float64)
    if before is not None:
        matrix, offset = before
        biases[0] = biases[0] + offset @ weights[0]
        weights[0] = np.linalg.solve(matrix, weights[0])
        if shortcut is not None:
            biases[-1] = biases[-1] + offset @ shortcut
            shortcut = np.linalg.solve(matrix, shortcut)
    if after is not None:
        matrix, offset = after
        weights[-1] = np.linalg.solve(matrix.T, weights[-1].T).T
        biases[-1] = np.linalg.solve(matrix.T, biases[-1] - offset)
        if shortcut is not None:
            shortcut = np.linalg.solve(matrix.T, shortcut.T).T
    with torch.no_grad():
        for layer, weight, bias in zip(linear, weights, biases, strict=True):
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.copy_(torch.from_numpy(bias))
        if network.shortcut is not None and shortcut is not None:
            network.shortcut.weight.copy_(torch.from_numpy(shortcut.T))


def _float64(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().cpu().double().numpy()
