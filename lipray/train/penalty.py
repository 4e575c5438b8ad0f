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
