"""A small VGG with batch norm for 3x32x32 images: max-pools and a flattened dense tail, at a size quick to bound."""

from torch import nn


def vgg_digits32() -> nn.Module:
    """3x3 convolutions (padding 1, batch norm, ReLU) 16-16-M-32-32-M-64-64-M, M a 2x2 max-pool, then dense 1024-10."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))
