"""Float32 arithmetic of fitted tokenizers in torch, see `models.arithmetic`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from models.dense import DenseNetwork
from models.nearest import NEAR_TIE, half_norms


def is_available() -> bool:
    """True when torch finds a GPU."""
    return torch.cuda.is_available()


class TorchArithmetic:
    """Arithmetic in torch.

    Args:
      device: where; None takes the first GPU.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cuda")

    def put(self, rows: np.ndarray) -> torch.Tensor:
        """Copies rows to the device; memory that is read-only, as Arrow's is, is copied before."""
        return torch.from_numpy(rows if rows.flags.writeable else rows.copy()).to(self._device)

    def get(self, array: torch.Tensor) -> np.ndarray:
        """Copies a tensor from the device."""
        return array.cpu().numpy()

    def codewords(self, codebooks: Sequence[np.ndarray]) -> CodewordTensors:
        """Prepares L float32 arrays (K_l, d)."""
        return CodewordTensors(codebooks, self._device)

    def network(self, network: DenseNetwork) -> Callable[[torch.Tensor], torch.Tensor]:
        """Prepares a network that maps (N, in_dim) to (N, out_dim)."""
        return DenseTensors(network, self._device)


class DenseTensors:
    """A `DenseNetwork`'s parameters on a device, evaluated in float32.

    Args:
      network: its parameters.
      device: where they go.
    """

    def __init__(self, network: DenseNetwork, device: torch.device) -> None:
        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.array(array)).to(device)

        self._layers = [
            (put(weight), put(bias))
            for weight, bias in zip(network.weights, network.biases, strict=True)
        ]
        self._shortcut = None if network.shortcut is None else put(network.shortcut)

    @torch.inference_mode()
    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Maps (N, in_dim) to (N, out_dim)."""
        hidden = rows
        for layer, (weight, bias) in enumerate(self._layers):
            hidden = (hidden.relu_() if layer else hidden) @ weight
            hidden = hidden.add_(bias)
        return hidden if self._shortcut is None else hidden.add_(rows @ self._shortcut)


class CodewordTensors:
    """Codebooks on a device; its methods do what those of `CodewordArrays` do.

    Args:
      codebooks: L float32 arrays of shape (K_l, d).
      device: where the search runs.
    """

    def __init__(self, codebooks: Sequence[np.ndarray], device: torch.device) -> None:
        halves, self._scale = half_norms(codebooks)
        self._half_norms = [torch.from_numpy(half).to(device) for half in halves]
        self._codewords = [torch.from_numpy(np.array(book)).to(device) for book in codebooks]
        self._transposed = [words.t().contiguous() for words in self._codewords]

    @torch.inference_mode()
    def residual_codes(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Picks the nearest codeword of each level in turn.

        Args:
          latents: (N, d) float32.

        Returns:
          (N, L) int64 codes, and (N,) bool: True where a level was too close to call.
        """
        residual = latents
        tolerance = self._tolerance(latents)
        near_tie = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        codes = []
        for level, words in enumerate(self._codewords):
            code, near = self._nearest(residual, level, tolerance)
            codes.append(code)
            near_tie |= near
            if level < len(self._codewords) - 1:
                residual = residual - words[code]
        return torch.stack(codes, dim=1), near_tie

    @torch.inference_mode()
    def beam_codes(self, latents: torch.Tensor, beam: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps the `beam` best code tuples of each level and returns the best of the last.

        Args:
          latents: (N, d) float32.
          beam: tuples kept, at least 2.

        Returns:
          (N, L) int64 codes, and (N,) bool: True where what was kept or chosen was too close to
          call.
        """
        count, width = latents.shape
        tolerance = self._tolerance(latents)
        near_tie = torch.zeros(count, dtype=torch.bool, device=latents.device)
        residuals = latents[:, None]
        scores = torch.zeros(count, 1, device=latents.device)
        tuples = torch.zeros(count, 1, 0, dtype=torch.int64, device=latents.device)
        for level, words in enumerate(self._codewords):
            # Half the squared distance of the tuple, less the latent's own |latent|^2 / 2.
            step = self._scores(residuals.reshape(-1, width), level).view(count, -1, len(words))
            candidates = (scores[:, :, None] + step).flatten(1)
            last = level == len(self._codewords) - 1
            keep = min(1 if last else beam, candidates.shape[1])
            ahead = min(keep + 1, candidates.shape[1])
            values, positions = candidates.topk(ahead, dim=1, largest=False)
            if ahead > keep:
                near_tie |= values[:, keep] - values[:, keep - 1] <= tolerance
            scores, positions = values[:, :keep], positions[:, :keep]
            parent = torch.div(positions, len(words), rounding_mode="floor")
            code = positions % len(words)
            tuples = torch.cat(
                [tuples.gather(1, parent[:, :, None].expand(-1, -1, level)), code[:, :, None]], 2
            )
            residuals = residuals.gather(1, parent[:, :, None].expand(-1, -1, width)) - words[code]
        return tuples[:, 0], near_tie

    @torch.inference_mode()
    def parallel_codes(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Picks the nearest codeword of each codebook independently; shapes as above."""
        tolerance = self._tolerance(latents)
        near_tie = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        codes = []
        for level in range(len(self._codewords)):
            code, near = self._nearest(latents, level, tolerance)
            codes.append(code)
            near_tie |= near
        return torch.stack(codes, dim=1), near_tie

    @torch.inference_mode()
    def sums(self, codes: torch.Tensor) -> torch.Tensor:
        """Maps (N, L) codes to the (N, d) float32 sums of their codewords."""
        total = self._codewords[0][codes[:, 0]]
        for words, column in zip(self._codewords[1:], codes.T[1:], strict=True):
            total += words[column]
        return total

    def _tolerance(self, latents: torch.Tensor) -> torch.Tensor:
        return NEAR_TIE * ((latents * latents).sum(dim=1) / 2 + self._scale)

    def _nearest(
        self, rows: torch.Tensor, level: int, tolerance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (N,) nearest codes and (N,) whether another codeword is within tolerance."""
        scores = self._scores(rows, level)
        best, code = scores.min(dim=1)
        near = (scores <= (best + tolerance)[:, None]).sum(dim=1) > 1
        return code, near

    def _scores(self, rows: torch.Tensor, level: int) -> torch.Tensor:
        """Returns (N, K) half squared distances without the |row|^2 / 2 that all of a row share."""
        return torch.addmm(self._half_norms[level], rows, self._transposed[level], alpha=-1)
