"""The network that ``make estimate`` bounds: two convolutions and one dense layer for 8x8 digits."""

from torch import nn


def digits_cnn() -> nn.Module:
    """Convolution 1 to 8 (3x3, padding 1), 8 to 16 (3x3, stride 2, padding 1), dense 256 to 10."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )
