"""A small network that says in which direction, and how fast, a noisy image of a class has to go to become one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipray.errors import TrainingError

WAVES = 16  # of either phase, in which the time is written


class FlowNetwork(nn.Module):
    """Patches of an image, mixed along places and along channels in turns, under what time and class say.

    A quarter of a million to half a million weights for small images; what one learns in minutes on one core. No layer
    of it is bounded: it makes training data and is no part of what is certified.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, *, width: int = 96, depth: int = 5, patch: int = 2
    ) -> None:
        """Weights as drawn.

        Args:
            shape: (channels, height, width) of an image.
            classes: their number.
            width: numbers that stand for a patch.
            depth: blocks.
            patch: side of a patch, which divides both sides of the image.

        Raises:
            TrainingError: not the shape of an image, or one that is not made of whole patches.
        """
        super().__init__()
        if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
            raise TrainingError(
                "generative model", f"{shape} is not a shape (channels, height, width) in patches of {patch}"
            )
        self.shape, self.classes, self.patch = shape, classes, patch
        places = shape[1] * shape[2] // patch**2
        values = shape[0] * patch**2
        self.register_buffer("waves", torch.pi * torch.arange(1, WAVES + 1), persistent=False)
        self.enter = nn.Linear(values, width)
        self.places = nn.Parameter(0.02 * torch.randn(places, width))
        self.time = nn.Sequential(nn.Linear(2 * WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(_Block(places, width) for _ in range(depth))
        self.last = _Conditioned(width)
        self.leave = nn.Linear(width, values)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        """The velocity at images (N, *shape), times (N,) in [0, 1] and classes (N,)."""
        angles = time[:, None] * self.get_buffer("waves")
        said = self.time(torch.cat([angles.cos(), angles.sin()], 1)) + self.label(y)
        tokens = self.enter(_patches(x, self.patch)) + self.places
        for block in self.blocks:
            tokens = block(tokens, said)
        return _image(self.leave(self.last(tokens, said)), self.shape, self.patch)


class _Conditioned(nn.Module):
    """Normalised per place, then scaled and shifted as time and class say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.say = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.say.weight)
        nn.init.zeros_(self.say.bias)

    def forward(self, tokens: Tensor, said: Tensor) -> Tensor:
        scale, shift = self.say(nn.functional.silu(said))[:, None].chunk(2, dim=2)
        mixed: Tensor = self.norm(tokens) * (1 + scale) + shift
        return mixed


class _Block(nn.Module):
    """One mixing along places, one along channels, each added to what came in."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.before_places, self.before_channels = _Conditioned(width), _Conditioned(width)
        self.along_places = _two_layers(places, 4 * places)
        self.along_channels = _two_layers(width, 2 * width)

    def forward(self, tokens: Tensor, said: Tensor) -> Tensor:
        turned = self.before_places(tokens, said).transpose(1, 2)
        tokens = tokens + self.along_places(turned).transpose(1, 2)
        mixed: Tensor = tokens + self.along_channels(self.before_channels(tokens, said))
        return mixed


def _two_layers(size: int, inner: int) -> nn.Sequential:
    """Two dense layers that begin as zero, so that a block begins as the identity."""
    second = nn.Linear(inner, size)
    nn.init.zeros_(second.weight)
    nn.init.zeros_(second.bias)
    return nn.Sequential(nn.Linear(size, inner), nn.GELU(), second)


def _patches(x: Tensor, patch: int) -> Tensor:
    return nn.functional.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def _image(tokens: Tensor, shape: tuple[int, ...], patch: int) -> Tensor:
    _, height, width = shape
    planes = tokens.transpose(1, 2).reshape(len(tokens), -1, height // patch, width // patch)
    return nn.functional.pixel_shuffle(planes, patch)
