"""Seeded initial weights, for trying the estimator on an architecture without a checkpoint."""

from __future__ import annotations

import math

import torch
from torch import nn

from lipray.model.architectures.registry import Architecture

SEED = 0
"""Seed of the initial weights when none is given."""


def skeleton(architecture: Architecture, **arguments: object) -> nn.Module:
    """The module with shapes but without storage (torch's meta device): instant and free of memory."""
    with torch.device("meta"):
        return architecture.build(**arguments)


def initialised(architecture: Architecture, *, seed: int = SEED, **arguments: object) -> nn.Module:
    """The module in eval mode with seeded random weights; the global random state stays as it is.

    The distributions are those torchvision starts training from: convolutions He-normal over the
    fan-out, batch norm the identity, VGG's dense layers normal with deviation 0.01 and bias 0, all
    other dense layers torch's default, uniform on ±1/sqrt(fan-in).
    """
    module = skeleton(architecture, **arguments).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    narrow = architecture.name.startswith("vgg")
    with torch.no_grad():
        for layer in module.modules():
            _initialise(layer, generator, narrow=narrow)
    return module.eval()


def _initialise(layer: nn.Module, generator: torch.Generator, *, narrow: bool) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    elif isinstance(layer, nn.BatchNorm2d):
        layer.reset_running_stats()
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    elif isinstance(layer, nn.Linear):
        if narrow:
            layer.weight.normal_(0.0, 0.01, generator=generator)
            layer.bias.zero_()
        else:
            limit = 1.0 / math.sqrt(layer.in_features)
            layer.weight.uniform_(-limit, limit, generator=generator)
            layer.bias.uniform_(-limit, limit, generator=generator)
