"""Float32 arithmetic of fitted tokenizers: numpy on the processor, torch on a GPU.

Both do the same, and neither has the last word: what float32 cannot decide is decided in float64,
see `models.nearest` and `models.dense`. So codes do not depend on where they were computed, and a
machine without a GPU never imports torch to apply a tokenizer.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from models.dense import DenseNetwork
from models.nearest import CodewordArrays

Array = Any
"""A numpy array, or a tensor on a GPU."""

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""Where Linux shows a GPU that torch can use, or the driver of one."""


class Codewords(Protocol):
    """Codebooks ready for the float32 search, see `CodewordArrays`."""

    def residual_codes(self, latents: Array) -> tuple[Array, Array]:
        """Picks the nearest codeword of each level in turn."""

    def beam_codes(self, latents: Array, beam: int) -> tuple[Array, Array]:
        """Keeps the best code tuples of each level."""

    def parallel_codes(self, latents: Array) -> tuple[Array, Array]:
        """Picks the nearest codeword of each codebook."""

    def sums(self, codes: Array) -> Array:
        """Adds up codewords."""


class Arithmetic(Protocol):
    """Where float32 arithmetic happens."""

    def put(self, rows: np.ndarray) -> Array:
        """Returns rows where the arithmetic happens."""

    def get(self, array: Array) -> np.ndarray:
        """Returns what was computed."""

    def codewords(self, codebooks: Sequence[np.ndarray]) -> Codewords:
        """Prepares L float32 arrays (K_l, d)."""

    def network(self, network: DenseNetwork) -> Callable[[Array], Array]:
        """Prepares a network that maps (N, in_dim) to (N, out_dim)."""


class ProcessorArithmetic:
    """Arithmetic in numpy.

    Its OpenBLAS reaches 147 GFlop/s on a Zen 4 core where torch's MKL, which takes older
    instructions on processors of other makers, reaches 70; and it finds minima of rows faster.
    """

    def put(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows as they are."""
        return rows

    def get(self, array: np.ndarray) -> np.ndarray:
        """Returns the array as it is."""
        return array

    def codewords(self, codebooks: Sequence[np.ndarray]) -> CodewordArrays:
        """Prepares L float32 arrays (K_l, d)."""
        return CodewordArrays(codebooks)

    def network(self, network: DenseNetwork) -> Callable[[np.ndarray], np.ndarray]:
        """Returns the network's own float32 evaluation."""
        return network.nearly


@functools.cache
def default_arithmetic() -> Arithmetic:
    """Returns the GPU's arithmetic where there is one, else the processor's."""
    if "torch" in sys.modules or may_have_gpu():
        gpu = importlib.import_module("models.gpu_arithmetic")
        if gpu.is_available():
            found: Arithmetic = gpu.TorchArithmetic()
            return found
    return ProcessorArithmetic()


def may_have_gpu() -> bool:
    """False where torch would find no GPU; to ask torch itself takes a second of imports."""
    return not sys.platform.startswith("linux") or any(map(os.path.exists, _GPU_DEVICES))
