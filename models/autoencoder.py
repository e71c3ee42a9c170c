"""The networks of the neural tokenizers while they train."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from models.config import RqvaeConfig, TrainingConfig
from models.input_scaling import InputScaling
from models.mlp import ResidualMlp, rotate_between
from models.tag_supervision import TagSupervision
from models.tags import TagTable
from models.trained_autoencoder import TrainedAutoencoder
from models.warm_start import load_networks

Network = Callable[[torch.Tensor], torch.Tensor]


class Autoencoder(nn.Module):
    """Encoder, decoder and tag classifiers.

    Args:
      config: widths.
      dim: embedding length D.
      supervision: tag classifiers, or None.
    """

    def __init__(self, config: RqvaeConfig, dim: int, supervision: TagSupervision | None) -> None:
        super().__init__()
        widths = (dim, *config.hidden, config.latent_dim)
        self.encoder = ResidualMlp(widths, config.shortcut)
        self.decoder = ResidualMlp(widths[::-1], shortcut=True)
        self.supervision = supervision


def build_autoencoder(
    config: RqvaeConfig,
    scaling: InputScaling,
    embeddings: np.ndarray,
    tags: TagTable | None,
    start: TrainedAutoencoder | None,
) -> Autoencoder:
    """Initialises the networks from seed or start, leaving torch's own generator as it was.

    Args:
      config: widths and seed.
      scaling: of the embeddings.
      embeddings: (N, D), from which tags get their embeddings.
      tags: of the same rows, None without supervision.
      start: a trained model to take the parameters of.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        supervision = None
        if tags is not None:
            means = tags.embeddings(scaling.target_rows(embeddings))
            supervision = TagSupervision(
                config.tags, [torch.from_numpy(mean) for mean in means], config.latent_dim
            )
        networks = Autoencoder(config, embeddings.shape[1], supervision)
    if start is not None:
        load_networks(networks.encoder, networks.decoder, start, scaling)
    return networks


def training_device(settings: TrainingConfig) -> torch.device:
    """Returns the configured device; `auto` is the GPU when there is one."""
    if settings.device != "auto":
        return torch.device(settings.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_forward(network: nn.Module, settings: TrainingConfig) -> Network:
    """Returns the network's forward pass, with bfloat16 products where the hardware has them.

    On two AVX-512 BF16 cores a fit takes half the processor time of float32.
    """
    device = training_device(settings)
    on_gpu = device.type == "cuda"
    forward: Network = torch.compile(network) if on_gpu and settings.compile else network
    if settings.precision == "float32" or not (
        on_gpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return forward

    def in_bfloat16(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return forward(rows).float()

    return in_bfloat16


def order_axes(networks: Autoencoder, latents: torch.Tensor) -> None:
    """Turns the latents onto their principal axes, widest first."""
    centred = (latents - latents.mean(dim=0)).double()
    axes = torch.linalg.eigh(centred.t() @ centred)[1].flip(1)
    rotate_between(networks.encoder, networks.decoder, axes.to(latents))


@torch.no_grad()
def in_blocks(network: Network, rows: torch.Tensor) -> torch.Tensor:
    """Evaluates a network on many rows without keeping the hidden layers of all of them."""
    return torch.cat([network(block) for block in rows.split(4096)])
