"""Distortions of batches of images: each takes images in [0, 1] and a strength in [-1, 1] per image.

Strength 0 leaves an image as it is, but for :func:`autocontrast`, which has none. Everything is element-wise or a
resampling per image, so that what becomes of an image does not depend on its batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

ROTATION = math.radians(15)
SHEAR = 0.15
SHIFT = 0.125  # of the side
CHANGE = 0.5  # of brightness, contrast, saturation and sharpness


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Images resampled: the new image at a place has the bilinear value of the old one at ``matrix`` of the place.

    Args:
        x: (N, channels, height, width).
        matrix: (N, 2, 3) over (right, down, 1), in pixels from the centre of the image. Beyond the border all is 0.
    """
    height, width = x.shape[-2:]
    half = x.new_tensor([width / 2, height / 2])
    turn = matrix[:, :, :2] * half / half[:, None]  # torch counts places from -1 to 1 on either axis
    theta = torch.cat([turn, matrix[:, :, 2:] / half[:, None]], 2)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def turned(angle: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """The matrix of :func:`warp` that turns by an angle (radians) and moves by pixels, one of each per image."""
    cosine, sine = angle.cos(), angle.sin()
    rows = [torch.stack([cosine, sine, -right], 1), torch.stack([-sine, cosine, -down], 1)]
    return torch.stack(rows, 1)


def rotate(x: Tensor, strength: Tensor) -> Tensor:
    """Turned by up to 15 degrees."""
    none = torch.zeros_like(strength)
    return warp(x, turned(ROTATION * strength, none, none))


def translate_x(x: Tensor, strength: Tensor) -> Tensor:
    """Moved sideways by up to an eighth of the width."""
    none = torch.zeros_like(strength)
    return warp(x, turned(none, SHIFT * x.shape[-1] * strength, none))


def translate_y(x: Tensor, strength: Tensor) -> Tensor:
    """Moved up or down by up to an eighth of the height."""
    none = torch.zeros_like(strength)
    return warp(x, turned(none, none, SHIFT * x.shape[-2] * strength))


def shear_x(x: Tensor, strength: Tensor) -> Tensor:
    """Rows moved in proportion to their distance from the middle."""
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    rows = [torch.stack([one, SHEAR * strength, none], 1), torch.stack([none, one, none], 1)]
    return warp(x, torch.stack(rows, 1))


def shear_y(x: Tensor, strength: Tensor) -> Tensor:
    """Columns moved in proportion to their distance from the middle."""
    return shear_x(x.transpose(-1, -2), strength).transpose(-1, -2)


def brightness(x: Tensor, strength: Tensor) -> Tensor:
    """Nearer to black, or farther from it."""
    return _away_from(torch.zeros_like(x), x, strength)


def contrast(x: Tensor, strength: Tensor) -> Tensor:
    """Nearer to the mean level of the image, or farther from it."""
    return _away_from(x.mean((1, 2, 3), keepdim=True), x, strength)


def saturation(x: Tensor, strength: Tensor) -> Tensor:
    """Nearer to grey, or farther from it; grey images stay as they are."""
    return _away_from(x.mean(1, keepdim=True), x, strength)


def sharpness(x: Tensor, strength: Tensor) -> Tensor:
    """Nearer to a blurred image, or farther from it."""
    return _away_from(functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), x, strength)


def posterise(x: Tensor, strength: Tensor) -> Tensor:
    """Fewer levels: 256 at strength 0, 16 at either end."""
    levels = (2 ** (8 - 4 * strength.abs())).round()[:, None, None, None] - 1
    return (x * levels).round() / levels


def solarise(x: Tensor, strength: Tensor) -> Tensor:
    """What is lighter than a level, at most 0.6 to 1, inverted."""
    level = (1 - 0.4 * strength.abs())[:, None, None, None]
    return torch.where(x > level, 1 - x, x)


def autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    """Every channel stretched to the range from 0 to 1, unless it has one level only."""
    del strength
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (x - low) / span.clamp_min(1e-6), x)


def identity(x: Tensor, strength: Tensor) -> Tensor:
    """As it is."""
    del strength
    return x


def _away_from(origin: Tensor, x: Tensor, strength: Tensor) -> Tensor:
    return (origin + (x - origin) * (1 + CHANGE * strength)[:, None, None, None]).clamp(0, 1)


DISTORTIONS = (
    identity,
    rotate,
    translate_x,
    translate_y,
    shear_x,
    shear_y,
    brightness,
    contrast,
    saturation,
    sharpness,
    posterise,
    solarise,
    autocontrast,
)
