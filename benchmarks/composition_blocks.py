"""Blocks of maps for ``compositions.py``: the paper's two networks without their dense layers, and two deeper kinds."""

from __future__ import annotations

import torch
from harness import ROOT
from safetensors.torch import load_file
from torch import nn

from lipray.model.architectures.small import cnn1, cnn2

WIDTH = 4
"""Channels of the residual stage and of the VGG block: those of the published networks take hours by any tiling."""


def cnn1_maps() -> nn.Module:
    """Two convolutions 5×5 of CNN1, trained on digits."""
    network = cnn1()
    network.load_state_dict(load_file(ROOT / "examples" / "cnn1_digits28.safetensors"))
    return nn.Sequential(network.conv1, nn.ReLU(), network.conv2, nn.ReLU())


def cnn2_maps() -> nn.Module:
    """Five convolutions 3×3 of CNN2, as torch initialises them, seeded."""
    torch.manual_seed(0)
    network = cnn2()
    layers: list[nn.Module] = []
    for number in range(1, network.convolutions + 1):
        layers += [network.get_submodule(f"conv{number}"), nn.ReLU()]
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two padded convolutions 3×3 beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum, through a ReLU."""
        out: torch.Tensor = self.relu(x + self.conv2(self.relu(self.conv1(x))))
        return out


def resnet_stage() -> nn.Module:
    """Two residual blocks, seeded."""
    torch.manual_seed(0)
    return nn.Sequential(BasicBlock(), BasicBlock())


def vgg_block() -> nn.Module:
    """Two padded convolutions 3×3 and a max-pool, seeded."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2)]
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), nn.MaxPool2d(2))
