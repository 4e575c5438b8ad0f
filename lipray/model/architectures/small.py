"""LeNet-5 and the two networks of Sulehman and Mu (2024), "Scalable Lipschitz Estimation for CNNs"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with fully connected feature maps, for 28x28 images padded to 32x32.

    Args:
        classes: Number of outputs.
        classic: Tanh and average pooling, as in 1998 (without that paper's trained pooling
            coefficients and radial output units); otherwise ReLU and max-pooling, as it is usually
            trained today.
    """

    def __init__(self, classes: int, *, classic: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.activation: nn.Module = nn.Tanh() if classic else nn.ReLU()
        self.pool: nn.Module = nn.AvgPool2d(2) if classic else nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, 1, 28, 28)."""
        x = self.pool(self.activation(self.conv1(x)))
        x = self.pool(self.activation(self.conv2(x)))
        x = self.activation(self.fc1(torch.flatten(x, 1)))
        logits: torch.Tensor = self.fc3(self.activation(self.fc2(x)))
        return logits


class ValidCNN(nn.Module):
    """Unpadded convolutions ``conv1`` ..., then dense layers ``fc1`` and ``fc2``, ReLU between all.

    Args:
        input_shape: (channels, side, side) of one image.
        channels: Output channels of each convolution.
        kernel: Side of every kernel.
        hidden: Outputs of ``fc1``.
        classes: Outputs of ``fc2``.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], channels: Sequence[int], kernel: int, hidden: int, classes: int
    ) -> None:
        super().__init__()
        previous, side = input_shape[0], input_shape[1]
        self.convolutions = len(channels)
        for index, width in enumerate(channels, start=1):
            setattr(self, f"conv{index}", nn.Conv2d(previous, width, kernel))
            previous, side = width, side - kernel + 1
        self.fc1 = nn.Linear(previous * side * side, hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, side, side)."""
        for index in range(1, self.convolutions + 1):
            x = self.relu(self.get_submodule(f"conv{index}")(x))
        logits: torch.Tensor = self.fc2(self.relu(self.fc1(torch.flatten(x, 1))))
        return logits


def lenet5(*, classes: int = 10, classic: bool = False) -> LeNet5:
    """LeNet-5: the modern ReLU and max-pool variant, or the classic tanh and average-pool one."""
    return LeNet5(classes, classic=classic)


def cnn1(*, channels: Sequence[int] = (3, 4), classes: int = 10) -> ValidCNN:
    """CNN1: 28x28x1, two 5x5 valid convolutions, dense 50, dense 10.

    Layers and sizes are those of Sulehman and Mu (2024); the number of channels is our choice, 3 and
    4, which makes 1728 and 1600 neurons after the convolutions.
    """
    return ValidCNN((1, 28, 28), channels, 5, 50, classes)


def cnn2(*, channels: Sequence[int] = (3, 3, 4, 4, 4), classes: int = 100) -> ValidCNN:
    """CNN2: 32x32x3, five 3x3 valid convolutions, dense 50, dense 100.

    Layers and sizes are those of Sulehman and Mu (2024); the number of channels is our choice, which
    makes 2700, 2352, 2704, 2304 and 1936 neurons after the convolutions.
    """
    return ValidCNN((3, 32, 32), channels, 3, 50, classes)
