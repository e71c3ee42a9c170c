"""The checkpoint of a fit: a killed run goes on from it and ends with the same tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time

import numpy as np
import torch

from models.tokenizers import QuantizerConfig
from schemas.config import canonical_json
from semid_transforms import files

_log = logging.getLogger(__name__)

SECONDS_BETWEEN = 15.0
"""A checkpoint of the default tokenizer has 25 MB; written at every look it would cost 2 %."""


@dataclasses.dataclass
class FitCheckpoint:
    """Keeps the newest state of one fit in a folder.

    Attributes:
      folder: in the run's scratch folder.
      name: of the file. It is a digest of what decides the result, so that a fit of anything else
        never goes on from it.
    """

    folder: str
    name: str

    def __post_init__(self) -> None:
        self._last = time.monotonic()

    @classmethod
    def of(cls, folder: str, config: QuantizerConfig, *decisive: np.ndarray | str) -> FitCheckpoint:
        """Names the checkpoint of a fit.

        Args:
          folder: where it is kept.
          config: of the tokenizer.
          decisive: whatever else decides the result: content hashes of the rows and so on.
        """
        digest = hashlib.sha256(canonical_json(config))
        for value in (torch.__version__, *decisive):
            data = value.encode() if isinstance(value, str) else value.tobytes()
            digest.update(len(data).to_bytes(8, "big") + data)
        return cls(folder, f"{digest.hexdigest()[:16]}.safetensors")

    @property
    def path(self) -> str:
        """Path of the checkpoint."""
        return files.join(self.folder, self.name)

    def load(self) -> bytes | None:
        """Returns the state an earlier attempt left, or None."""
        if not files.exists(self.path):
            return None
        _log.info("fit      goes on from the checkpoint of an earlier attempt")
        return files.read_bytes(self.path)

    def save(self, state: bytes) -> None:
        """Keeps a state, unless the last one is only seconds old."""
        if time.monotonic() - self._last >= SECONDS_BETWEEN:
            files.write_bytes(self.path, state)
            self._last = time.monotonic()

    def discard(self) -> None:
        """Removes the folder once the tokenizer is written."""
        files.remove_tree(self.folder)
