"""VGG (Simonyan and Zisserman 2015, configurations A, B, D, E), with torchvision's state-dict keys."""

from __future__ import annotations

import torch
from torch import nn

_STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions before each of the five poolings."""

_CHANNELS = (64, 128, 256, 512, 512)


def _features(depth: int, *, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, convolutions in zip(_CHANNELS, _STAGES[depth], strict=True):
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """``features``, adaptive average pooling to 7x7, and a ``classifier`` of three dense layers.

    Args:
        features: The convolutional part, with 512 output channels.
        classes: Number of outputs.
    """

    def __init__(self, features: nn.Sequential, classes: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width), both sides at least 32."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


class CifarVGG(nn.Module):
    """``features`` on 32x32 images, which end at 512x1x1, and one dense layer ``classifier``.

    Args:
        features: The convolutional part, with 512 output channels.
        classes: Number of outputs.
    """

    def __init__(self, features: nn.Sequential, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, 3, 32, 32)."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def vgg(*, depth: int, batch_norm: bool, classes: int = 1000) -> VGG:
    """VGG with 11, 13, 16 or 19 weight layers for 224x224 images."""
    return VGG(_features(depth, batch_norm=batch_norm), classes)


def vgg_cifar(*, depth: int = 16, batch_norm: bool = False, classes: int = 10) -> CifarVGG:
    """VGG for 32x32 images: the same convolutions, one dense layer instead of three."""
    return CifarVGG(_features(depth, batch_norm=batch_norm), classes)
