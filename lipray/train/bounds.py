"""The differentiable bounds by name, and K_ij of the margins from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from lipray.errors import TrainingError
from lipray.train.liplt import LipLT
from lipray.train.live import Live, live, without_head
from lipray.train.losses import row_distances
from lipray.train.optimised import Optimised
from lipray.train.product import Product

Kind = Literal["product", "liplt", "closed-form", "optimised"]
KINDS: tuple[str, ...] = get_args(Kind)

ITERATIONS = 60
"""Of the solver at a refresh of the optimised bound."""

Bound = Product | LipLT | Optimised


def make_bound(kind: str, graph: Live, *, steps: int = 1, iterations: int = ITERATIONS) -> Bound:
    """A bound of a graph's constant as a function of its live weights.

    Args:
        kind: ``"product"``, ``"liplt"``, ``"closed-form"`` (shape matrices, multipliers in closed form) or
            ``"optimised"`` (multipliers of the solver).
        graph: the network.
        steps: power iterations per call.
        iterations: of the solver at a refresh.

    Raises:
        TrainingError: no such bound, or not of this network.
    """
    fixed = frozenset(graph.constant)
    match kind:
        case "product":
            return Product(graph.network, fixed, steps)
        case "liplt":
            return LipLT(graph.network, steps)
        case "closed-form":
            return Optimised(graph.network, fixed, iterations=0, steps=steps + 1)
        case "optimised":
            return Optimised(graph.network, fixed, iterations=iterations, steps=steps + 1)
        case _:
            raise TrainingError(f"bound {kind!r}", f"there is no such bound; there are {', '.join(KINDS)}")


def refresh(bound: Bound, graph: Live, module: nn.Module) -> None:
    """What is done once an epoch: new multipliers for the weights as they are, where the bound has any."""
    if isinstance(bound, Optimised):
        with torch.no_grad():
            weights = graph.weights(module)
        bound.refresh(weights)


class Constants:
    """K_ij of a classifier as it is trained: L · ‖w_i - w_j‖, L of what precedes its last dense layer.

    Args:
        module: the network; its last operation is a dense layer.
        input_shape: of one input.
        kind: see ``make_bound``.
        steps: power iterations per call.
        iterations: of the solver at a refresh.

    Raises:
        TrainingError: the network does not end in a dense layer, or has weights that cannot be followed.
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: Sequence[int],
        kind: str = "product",
        *,
        steps: int = 1,
        iterations: int = ITERATIONS,
    ) -> None:
        graph = live(module, input_shape)
        features, head = without_head(graph.network)
        if head is None:
            raise TrainingError(
                "the network",
                "its last operation is no dense layer, so there are no margins of class scores",
                hint="End in torch.nn.Linear, without softmax.",
            )
        self.graph, self._head = graph, head
        kept = features.weights
        self._features = Live(
            features,
            {key: read for key, read in graph.followed.items() if key in kept},
            {key: value for key, value in graph.constant.items() if key in kept},
        )
        self.bound = make_bound(kind, self._features, steps=steps, iterations=iterations)

    def refresh(self, module: nn.Module) -> None:
        """What is done once an epoch: new multipliers, where the bound has any."""
        refresh(self.bound, self._features, module)

    def __call__(self, module: nn.Module) -> torch.Tensor:
        """K (classes, classes), with gradients."""
        head = self.graph.followed[self._head](module) if self._head in self.graph.followed else None
        if head is None:
            head = self.graph.constant[self._head].to(next(module.parameters()))
        return self.before(module) * row_distances(head)

    def before(self, module: nn.Module) -> torch.Tensor:
        """L of what precedes the last dense layer."""
        return self.bound(self._features.weights(module))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that training goes on exactly."""
        return self.bound.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.bound.restore(state)
