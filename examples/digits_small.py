"""A smaller network for 8x8 digits, on which the reference semidefinite program still finishes."""

from torch import nn


def digits_small() -> nn.Module:
    """Convolution 1 to 4 (3x3, padding 1), 4 to 4 (3x3, stride 2, padding 1), dense 64 to 10."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 10),
    )
