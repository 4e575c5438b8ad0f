"""LiResNet as it is deployed (Hu, Zou, Wang, Leino & Fredrikson 2023; Hu, Leino, Wang & Fredrikson 2024).

Every layer is a plain convolution or dense layer: what training does to the weights (the identity merged into a
kernel, Cholesky orthogonalisation, normalised rows, centring) has been done, and ``lipray.train`` writes the result.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from lipray.model.architectures.minmax import MinMax


class LiResNet(nn.Module):
    """Stem, ``depth`` convolutions, a neck of patches, dense layers, head; MinMax after all but the neck and the head.

    Args:
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
        classes: number of outputs.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        depth: int,
        kernel: int,
        stride: int,
        patch: int,
        neck: int,
        side: int,
        dense: int,
        dense_depth: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        self.backbone = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.neck = nn.Conv2d(width, neck, patch, patch)
        features = neck * (-(-side // stride) // patch) ** 2
        sizes = [features, *[dense] * dense_depth]
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(dense, classes)
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


def liresnet(
    *,
    classes: int = 10,
    channels: int = 3,
    width: int = 512,
    depth: int = 12,
    kernel: int = 5,
    stride: int = 2,
    patch: int = 4,
    neck: int = 512,
    side: int = 32,
    dense: int = 2048,
    dense_depth: int = 8,
) -> LiResNet:
    """The CIFAR network of the papers, unless sizes are given."""
    return LiResNet(
        channels=channels,
        width=width,
        depth=depth,
        kernel=kernel,
        stride=stride,
        patch=patch,
        neck=neck,
        side=side,
        dense=dense,
        dense_depth=dense_depth,
        classes=classes,
    )
