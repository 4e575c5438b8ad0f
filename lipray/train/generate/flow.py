"""Rectified flow: straight lines from noise to images, and the field that a network learns of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lipray.data.labelled import Labelled
from lipray.errors import TrainingError
from lipray.train.generate.network import FlowNetwork


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """How the flow is trained. ``average`` is the share of the old in the running mean of the weights."""

    steps: int = 2000
    batch: int = 128
    rate: float = 2e-3
    warm_up: int = 100
    average: float = 0.998
    weight_decay: float = 1e-2
    seed: int = 0


def train_flow(
    network: FlowNetwork,
    data: Labelled,
    settings: FlowSettings,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> FlowNetwork:
    """Train the network on images in [0, 1]; what comes back has the running mean of its weights.

    Args:
        network: its weights are changed.
        data: labelled images of its shape.
        settings: steps, batch, learning rate and seed.
        progress: told each step and its loss.

    Raises:
        TrainingError: images of another shape or of more classes than the network knows, or a loss that is not finite.
    """
    if data.shape != network.shape or data.classes > network.classes:
        raise TrainingError(
            "generative model",
            f"knows {network.classes} classes of {network.shape}; {data.source} has {data.classes} of {data.shape}",
        )
    generator = torch.Generator().manual_seed(settings.seed)
    order = np.random.default_rng(settings.seed)
    x, y = 2 * torch.from_numpy(data.x) - 1, torch.from_numpy(data.y)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings))
    mean = copy.deepcopy(network).requires_grad_(requires_grad=False)
    network.train()
    rows = np.empty(0, np.int64)
    for step in range(settings.steps):
        while len(rows) < settings.batch:
            rows = np.concatenate([rows, order.permutation(len(data))])
        taken, rows = torch.from_numpy(rows[: settings.batch]), rows[settings.batch :]
        optimiser.zero_grad(set_to_none=True)
        loss = flow_loss(network, x[taken], y[taken], generator)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        _keep_mean(mean, network, min(settings.average, (1 + step) / (10 + step)))
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError("generative model", f"its loss is {value} at step {step}", hint="Lower the rate.")
        if progress is not None:
            progress(step, value)
    return mean.eval()


def flow_loss(network: FlowNetwork, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity at random places of the lines from random noise to the images.

    Args:
        network: the field.
        x: images (N, *shape) in [-1, 1].
        y: their classes.
        generator: of the noise and of the times, which are taken more often from the middle of a line.
    """
    noise = torch.randn(x.shape, generator=generator)
    time = torch.randn(len(x), generator=generator).sigmoid()
    share = time.view(-1, *[1] * (x.ndim - 1))
    velocity = network((1 - share) * noise + share * x, time, y)
    return nn.functional.mse_loss(velocity, x - noise)


@torch.no_grad()
def sample_flow(network: FlowNetwork, y: Tensor, *, seed: int, steps: int = 12) -> Tensor:
    """Images in [0, 1] of the classes asked for: noise, taken along the field by Heun's method.

    The same classes, seed and steps give the same images on the same machine.

    Args:
        network: trained.
        y: classes (N,).
        seed: of the noise.
        steps: of equal length; each but the last evaluates the field twice.
    """
    x = torch.randn(len(y), *network.shape, generator=torch.Generator().manual_seed(seed))
    times = torch.linspace(0, 1, steps + 1)
    for now, then in itertools.pairwise(times):
        velocity = network(x, now.expand(len(y)), y)
        ahead = x + (then - now) * velocity
        if then < 1:
            velocity = (velocity + network(ahead, then.expand(len(y)), y)) / 2
        x = x + (then - now) * velocity
    return ((x + 1) / 2).clamp(0, 1)


def _rate(step: int, settings: FlowSettings) -> float:
    """Rises, then falls like half a cosine to nothing."""
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    done = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    return 0.5 * (1 + float(np.cos(np.pi * done)))


@torch.no_grad()
def _keep_mean(mean: nn.Module, network: nn.Module, share: float) -> None:
    for old, new in zip(mean.parameters(), network.parameters(), strict=True):
        old.lerp_(new, 1 - share)
