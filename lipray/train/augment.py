"""Augmentation of batches of images by named policies.

What is random is drawn first, one row of numbers per image, and the rest is a function of an image and its row. A
worker that draws for the global batch and takes the rows of its own share therefore does what one worker would have
done with those images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lipray.errors import TrainingError
from lipray.train.distort import DISTORTIONS, turned, warp

ANGLE = math.radians(10)
MOVE = 1.0  # pixels of the digits
PADDING = 8  # a crop moves by up to one part in this of the side
ROUNDS = 2  # distortions of an image that is distorted


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a policy: how many random numbers it takes per image, and what it does with them."""

    draws: int
    apply: Callable[[Tensor, Tensor], Tensor]


def draw(policy: str, count: int, generator: torch.Generator) -> Tensor:
    """The random numbers, uniform in [0, 1), that a policy takes for ``count`` images: (count, some) on the CPU.

    Raises:
        TrainingError: no such policy.
    """
    return torch.rand(count, sum(step.draws for step in _steps(policy)), generator=generator)


def augment(x: Tensor, policy: str, draws: Tensor | torch.Generator) -> Tensor:
    """A batch augmented; the batch given stays as it is.

    Args:
        x: (N, channels, height, width) in [0, 1]; so is what is returned.
        policy: one of ``POLICIES``: ``none``; ``shift``, small shifts and turns of half of the images, for digits;
            ``crop-flip``, a crop of the padded image and a flip of every other one; ``crop-flip-rand``, and then two
            random distortions of half of the images.
        draws: what :func:`draw` gave for these images, or a generator on the CPU to draw from.

    Raises:
        TrainingError: no such policy, or numbers drawn for another policy or other images.
    """
    steps = _steps(policy)
    if isinstance(draws, torch.Generator):
        draws = draw(policy, len(x), draws)
    needed = sum(step.draws for step in steps)
    if draws.shape != (len(x), needed):
        raise TrainingError(
            f"augmentation {policy}", f"{len(x)} images take numbers ({len(x)}, {needed}), not {tuple(draws.shape)}"
        )
    draws = draws.to(x.device)
    for step in steps:
        x, draws = step.apply(x, draws[:, : step.draws]), draws[:, step.draws :]
    return x


def _steps(policy: str) -> tuple[Step, ...]:
    if policy not in POLICIES:
        raise TrainingError(f"augmentation {policy}", "no such policy", hint=f"There are {', '.join(POLICIES)}.")
    return POLICIES[policy]


def _shift(x: Tensor, draws: Tensor) -> Tensor:
    """Half of the images turned by up to 10 degrees and moved by up to a pixel."""
    either = (2 * draws[:, 1:] - 1).to(x)
    moved = warp(x, turned(ANGLE * either[:, 0], MOVE * either[:, 1], MOVE * either[:, 2]))
    return _where(draws[:, 0] < 0.5, moved, x)


def _crop(x: Tensor, draws: Tensor) -> Tensor:
    """Images moved by whole pixels, up to an eighth of a side either way; what comes in is black."""
    height, width = x.shape[-2:]
    down, right = height // PADDING, width // PADDING
    padded = functional.pad(x, (right, right, down, down))
    rows = (draws[:, 0] * (2 * down + 1)).long()[:, None] + torch.arange(height, device=x.device)
    columns = (draws[:, 1] * (2 * right + 1)).long()[:, None] + torch.arange(width, device=x.device)
    images, channels = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
    rows, columns = rows[:, None, :, None], columns[:, None, None, :]
    return padded[images[:, None, None, None], channels[:, None, None], rows, columns]


def _flip(x: Tensor, draws: Tensor) -> Tensor:
    """Half of the images mirrored, left for right."""
    return _where(draws[:, 0] < 0.5, x.flip(-1), x)


def _distort(x: Tensor, draws: Tensor) -> Tensor:
    """Half of the images distorted, by one of the distortions after another."""
    x = x.clone()
    distorted = draws[:, 0] < 0.5
    for turn in range(ROUNDS):
        chosen = (draws[:, 1 + 2 * turn] * len(DISTORTIONS)).long()
        strength = (2 * draws[:, 2 + 2 * turn] - 1).to(x)
        for number, distortion in enumerate(DISTORTIONS):
            rows = torch.nonzero(distorted & (chosen == number))[:, 0]
            if len(rows):
                x[rows] = distortion(x[rows], strength[rows])
    return x


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], one, other)


SHIFTED = Step(4, _shift)
CROPPED = Step(2, _crop)
FLIPPED = Step(1, _flip)
DISTORTED = Step(1 + 2 * ROUNDS, _distort)

POLICIES: dict[str, tuple[Step, ...]] = {
    "none": (),
    "shift": (SHIFTED,),
    "crop-flip": (CROPPED, FLIPPED),
    "crop-flip-rand": (CROPPED, FLIPPED, DISTORTED),
}
