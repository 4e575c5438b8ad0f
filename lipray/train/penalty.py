"""A Lipschitz constant as a term of anyone's own loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lipray.train.bounds import ITERATIONS, make_bound, refresh
from lipray.train.live import live


class LipschitzPenalty:
    """log L(W) of a module as it is now, differentiable in its parameters.

        penalty = LipschitzPenalty(module, (1, 28, 28), bound="optimised")
        for epoch in range(epochs):
            penalty.refresh()
            for x, y in batches:
                loss = F.cross_entropy(module(x), y) + 0.01 * penalty()
                ...

    Values are by power iteration, from below: they steer the training and certify nothing. ``lipray.estimate(module,
    input_shape)`` does.

    Args:
        module: a network that lipray can import; weights that are worked out in forward need a property ``weight`` of
            their layer, as those of ``lipray.train.layers`` have.
        input_shape: of one input.
        bound: ``"product"``, ``"liplt"``, ``"closed-form"`` or ``"optimised"``.
        steps: iterations per call, each going on where the last ended.
        iterations: of the solver at ``refresh``, for ``"optimised"``.

    Raises:
        LiprayError: the module cannot be imported, or its weights cannot be followed.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        *,
        bound: str = "product",
        steps: int = 1,
        iterations: int = ITERATIONS,
    ) -> None:
        self.module = module
        self._graph = live(module, input_shape)
        self._bound = make_bound(bound, self._graph, steps=steps, iterations=iterations)
        self.refresh()

    def refresh(self) -> None:
        """New multipliers for the weights as they are, where the bound has any: once an epoch."""
        refresh(self._bound, self._graph, self.module)

    def constant(self) -> torch.Tensor:
        """L(W), a scalar."""
        return self._bound(self._graph.weights(self.module))

    def __call__(self) -> torch.Tensor:
        """The logarithm of L(W), a scalar."""
        return self.constant().clamp(min=1e-30).log()


@torch.no_grad()
def project(module: nn.Module, constant: torch.Tensor | float, limit: float, layers: Sequence[str]) -> float:
    """Scale the weights of some layers together so that a network whose bound is their product has at most ``limit``.

    For networks without biases in between and with positively homogeneous activations this changes outputs by a factor
    alone; elsewhere it changes the function, as any projection does.

    Args:
        module: the network.
        constant: its bound, a product in which each layer of ``layers`` is one factor.
        limit: the largest constant wanted, positive.
        layers: names of layers with a parameter ``weight``.

    Returns:
        The factor that each layer's weight was multiplied by, at most 1.
    """
    value = float(constant)
    if value <= limit:
        return 1.0
    factor: float = (limit / value) ** (1.0 / len(layers))
    for name in layers:
        module.get_parameter(f"{name}.weight").mul_(factor)
    return factor
