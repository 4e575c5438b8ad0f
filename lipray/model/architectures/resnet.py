"""Residual networks (He et al. 2016) with torchvision's state-dict keys.

The bottleneck block strides in its 3x3 convolution, as torchvision does ("ResNet v1.5"), not in the
first 1x1 as the paper: the keys and shapes are the same, the function is not.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn


def _downsample(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, ReLU after the sum.

    Args:
        channels: Input channels.
        width: Output channels.
        stride: Stride of the first convolution and of the shortcut.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(channels, width, stride) if stride != 1 or channels != width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, h, w) to (batch, width, ceil(h / stride), ceil(w / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        out: torch.Tensor = self.relu(self.bn2(self.conv2(y)) + shortcut)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, ReLU after the sum; four times ``width`` channels out.

    Args:
        channels: Input channels.
        width: Channels of the inner convolutions.
        stride: Stride of the 3x3 convolution and of the shortcut.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.downsample = _downsample(channels, out, stride) if stride != 1 or channels != out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, h, w) to (batch, 4 width, ceil(h / stride), ceil(w / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: torch.Tensor = self.relu(self.bn3(self.conv3(y)) + shortcut)
        return out


_BLOCKS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """Stem, four stages, global average pooling and one dense layer.

    Args:
        depth: 18, 34, 50 or 101.
        classes: Number of outputs.
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
        small_images: A 3x3 stem of stride 1 without pooling, for 32x32 images, instead of the 7x7
            stem of stride 2 with a 3x3 max-pool of stride 2.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, *, depth: int, classes: int, width: int, small_images: bool) -> None:
        super().__init__()
        block, repeats = _BLOCKS[depth]
        if small_images:
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for stage, count in enumerate(repeats):
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride))
                channels = width * 2**stage * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet(*, depth: int, classes: int = 1000, width: int = 64) -> ResNet:
    """ResNet with 18, 34, 50 or 101 layers for 224x224 images."""
    return ResNet(depth=depth, classes=classes, width=width, small_images=False)


def resnet_cifar(*, depth: int = 18, classes: int = 10, width: int = 64) -> ResNet:
    """The same stages for 32x32 images: 3x3 stem, no max-pool (the usual CIFAR variant)."""
    return ResNet(depth=depth, classes=classes, width=width, small_images=True)
