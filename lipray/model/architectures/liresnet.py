"""LiResNet as it is deployed (Hu, Zou, Wang, Leino & Fredrikson 2023; Hu, Leino, Wang & Fredrikson 2024).

Every layer is a plain convolution or dense layer: what training does to the weights (the identity merged into a
kernel, Cholesky orthogonalisation, normalised rows, centring) has been done, and ``lipray.train`` writes the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lipray.model.architectures.minmax import MinMax


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a LiResNet is; the defaults are the papers' on CIFAR-10.

    Attributes:
        classes: number of outputs.
        channels: of the input.
        width: channels of the maps; even.
        depth: convolutions of kernel 3 after the stem.
        kernel: side of the stem's kernel, odd.
        stride: of the stem.
        patch: side and stride of the neck's patches.
        neck: channels after the neck.
        side: height and width of the input.
        dense: outputs of every dense layer; even.
        dense_depth: their number, at least one.
    """

    classes: int = 10
    channels: int = 3
    width: int = 512
    depth: int = 12
    kernel: int = 5
    stride: int = 2
    patch: int = 4
    neck: int = 512
    side: int = 32
    dense: int = 2048
    dense_depth: int = 8

    @property
    def features(self) -> int:
        """What enters the first dense layer."""
        return self.neck * (-(-self.side // self.stride) // self.patch) ** 2


class LiResNet(nn.Module):
    """Stem, convolutions, a neck of patches, dense layers, head; MinMax after all but the neck and the head."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, dense = sizes.width, sizes.dense
        self.stem = nn.Conv2d(sizes.channels, width, sizes.kernel, sizes.stride, sizes.kernel // 2)
        self.backbone = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(sizes.depth))
        self.neck = nn.Conv2d(width, sizes.neck, sizes.patch, sizes.patch)
        entering = [sizes.features, *[dense] * (sizes.dense_depth - 1)]
        self.dense = nn.ModuleList(nn.Linear(features, dense) for features in entering)
        self.head = nn.Linear(dense, sizes.classes)
        self.activation = MinMax()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, side, side)."""
        x = self.activation(self.stem(x))
        for convolution in self.backbone:
            x = self.activation(convolution(x))
        x = torch.flatten(self.neck(x), 1)
        for layer in self.dense:
            x = self.activation(layer(x))
        logits: torch.Tensor = self.head(x)
        return logits


def liresnet(**sizes: int) -> LiResNet:
    """The CIFAR network of the papers, unless sizes are given: the fields of ``Sizes``."""
    return LiResNet(Sizes(**sizes))
