"""A Lipschitz constant as a constraint: weights scaled back after every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from lipray.errors import TrainingError
from lipray.model.network import ChannelAffine, Conv, Dense
from lipray.train.live import Live

ROUNDS = 8
"""Scalings at most in one call: one is enough for a chain, sums need several."""


@torch.no_grad()
def project(module: nn.Module, constant: Callable[[], torch.Tensor], limit: float, weights: Sequence[str]) -> float:
    """Scale some weights together until the constant is at most ``limit``, if that can be reached.

    Of a chain of n layers whose constant is homogeneous of degree n in these weights, as the bounds of
    ``lipray.train.bounds`` are, the factor (limit / L)^(1/n) gives ``limit`` at once. Where skips make it less than
    homogeneous the constant falls by less, and the scaling is repeated.

    Args:
        module: the network, changed in place.
        constant: its bound as it is now.
        limit: the largest constant wanted, positive.
        weights: names of parameters of linear layers.

    Returns:
        The factor that every one of them was multiplied by, at most 1.
    """
    total = 1.0
    for _ in range(ROUNDS):
        value = float(constant())
        if not value > limit:
            break
        factor = (limit / value) ** (1.0 / len(weights))
        for name in weights:
            module.get_parameter(name).mul_(factor)
        total *= factor
    return total


def scalable(module: nn.Module, graph: Live) -> list[str]:
    """The parameters that are weights of linear layers as they are: what ``project`` may scale.

    Raises:
        TrainingError: there is none, or a batch norm would undo what is scaled.
    """
    for node in graph.network.nodes:
        if isinstance(node.op, ChannelAffine) and node.op.scale in graph.followed:
            raise TrainingError(
                f"limit: layer {node.name!r}",
                "normalises what is scaled before it, so that no scaling lasts",
                hint="Use penalty instead, or a network without batch normalisation.",
            )
    own = dict(module.named_parameters())
    keys = [node.op.weight for node in graph.network.nodes if isinstance(node.op, Conv | Dense)]
    found = [key for key in dict.fromkeys(keys) if key in graph.followed and key in own]
    if not found:
        raise TrainingError("limit", "the network has no layer whose weight is a parameter of its own")
    return found
