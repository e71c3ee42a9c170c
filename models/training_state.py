"""Everything a training run has learned so far, as bytes that it can go on from."""

from __future__ import annotations

import dataclasses
import json

import safetensors.torch
import torch
from torch import nn

from models.codebook_training import LearningCodebooks
from models.pair_mining import SharedPairs


@dataclasses.dataclass(eq=False)
class TrainingState:
    """What changes while an autoencoder with codebooks trains.

    Attributes:
      networks: encoder, decoder and classifiers, under one module.
      optimizer: of the networks' parameters.
      generator: draws batches, pairs and seeds of dead codes.
      parallel: whether the codebooks are parallel.
      coarse_dim: axes of the latents that the first residual codebook uses.
      codebooks: None before they are initialised.
      pairs: pairs of items that shared a prefix when last looked for, by its length.
      step: steps done.
      best: tensors of the best model so far, by name; empty before the first look.
      best_scalars: what was measured on it.
      looks_without_progress: looks since then.
    """

    networks: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    parallel: bool = False
    coarse_dim: int | None = None
    codebooks: LearningCodebooks | None = None
    pairs: dict[int, SharedPairs] = dataclasses.field(default_factory=dict)
    step: int = 0
    best: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    best_scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    looks_without_progress: int = 0

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """Returns copies of the networks' and codebooks' tensors by name."""
        named = {f"networks.{k}": v.detach() for k, v in self.networks.state_dict().items()}
        if self.codebooks is not None:
            for level, (words, counts) in enumerate(
                zip(self.codebooks.words, self.codebooks.counts, strict=True)
            ):
                named[f"words.{level}"], named[f"counts.{level}"] = words, counts
        return {name: tensor.clone() for name, tensor in named.items()}

    def load_model_tensors(self, named: dict[str, torch.Tensor]) -> None:
        """Takes over what `model_tensors` returned."""
        device = self.generator.device
        prefix = "networks."
        self.networks.load_state_dict(
            {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}
        )
        levels = sum(name.startswith("words.") for name in named)
        if levels:
            self.codebooks = LearningCodebooks(
                [named[f"words.{level}"].to(device, copy=True) for level in range(levels)],
                [named[f"counts.{level}"].to(device, copy=True) for level in range(levels)],
                self.parallel,
                self.coarse_dim,
            )

    def to_bytes(self) -> bytes:
        """Returns the state as safetensors; nothing in it is ever unpickled."""
        tensors = {f"now.{name}": tensor for name, tensor in self.model_tensors().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in slots.items()}
        tensors["generator"] = self.generator.get_state()
        for depth, pairs in self.pairs.items():
            tensors[f"pairs.{depth}"] = torch.stack([pairs.left, pairs.right])
        document = {
            "step": self.step,
            "best_scalars": self.best_scalars,
            "looks_without_progress": self.looks_without_progress,
        }
        plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        return safetensors.torch.save(plain, {"state": json.dumps(document)})

    def load_bytes(self, checkpoint: bytes) -> None:
        """Goes back to what `to_bytes` wrote.

        Raises:
          ValueError: the checkpoint is of a model of another shape.
        """
        tensors = safetensors.torch.load(checkpoint)
        header_length = int.from_bytes(checkpoint[:8], "little")
        header = json.loads(checkpoint[8 : 8 + header_length])
        document = json.loads(header["__metadata__"]["state"])
        device = self.generator.device
        try:
            self.load_model_tensors(_under("now.", tensors))
        except RuntimeError as error:
            raise ValueError(
                f"the checkpoint is of another model than the configuration describes: start "
                f"without it ({error})"
            ) from error
        self.best = {k: v.to(device) for k, v in _under("best.", tensors).items()}
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            number, slot = name.split(".")
            slots.setdefault(int(number), {})[slot] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.pairs = {
            int(depth): SharedPairs(*pairs.to(device))
            for depth, pairs in sorted(_under("pairs.", tensors).items())
        }
        self.step = document["step"]
        self.best_scalars = document["best_scalars"]
        self.looks_without_progress = document["looks_without_progress"]


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
