"""The bound by shape matrices on live weights: multipliers from lipray's own solvers, held fixed between refreshes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lipray.certify.solve import solve
from lipray.errors import LiprayError
from lipray.model.network import Conv, Network
from lipray.partition.subproblem import Settings, Subproblem
from lipray.train.lifted import Quotient, lift, spread_multipliers
from lipray.train.product import Product

Weights = Mapping[str, torch.Tensor]

WARM_UP = 40
"""Steps towards the maximiser after new multipliers."""

MARGIN = 0.05
"""Share of the closed form mixed into optimised multipliers, so that they stay feasible while the weights move."""


class Optimised:
    """√ρ(λ, W) (``lipray.train.lifted``), λ refreshed by ``refresh``, and the product where the λ have become useless.

    Args:
        network: the graph.
        fixed: keys of arrays that training does not change.
        iterations: of the solver at a refresh; 0 keeps its closed form.
        steps: towards the maximiser, per call.
    """

    def __init__(
        self, network: Network, fixed: frozenset[str] = frozenset(), *, iterations: int = 0, steps: int = 2
    ) -> None:
        self.network = network
        self.iterations, self.steps = iterations, steps
        self.product = Product(network, fixed)
        self._lifted = lift(network)
        self._quotient: Quotient | None = None
        self.stale = 0
        """Calls since the last refresh that fell back on the product."""

    def refresh(self, weights: Weights) -> None:
        """New multipliers for these weights; the product stands in where there are none."""
        self._quotient, self.stale = None, 0
        arrays = {key: value.detach().double().cpu().numpy() for key, value in weights.items()}
        current = Network(self.network.nodes, {**self.network.weights, **arrays})
        method = "frequency" if any(isinstance(node.op, Conv) for node in current.nodes) else "ellipsoid"
        found = self._solve(current, method, self.iterations)
        if found is not None and self.iterations:
            base = self._solve(current, method, 0)
            if base is not None:
                found = [(1.0 - MARGIN) * a + MARGIN * b for a, b in zip(found, base, strict=True)]
        if found is not None:
            self._quotient = Quotient(self._lifted, found)
            if self._quotient.climb(weights, WARM_UP) is None:
                self._quotient = None

    def __call__(self, weights: Weights) -> torch.Tensor:
        """The smaller of √ρ and the product, from below as far as their iterates have not converged."""
        product = self.product(weights)
        if self._quotient is None or self._quotient.climb(weights, self.steps) is None:
            self.stale += 1
            return product
        return torch.minimum(self._quotient.value(weights).clamp(min=1e-30).sqrt(), product)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the product's iterates, the multipliers and the maximiser."""
        kept = {} if self._quotient is None else self._quotient.state()
        return {"product": self.product.state(), "quotient": kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.product.restore(state["product"])
        kept = state["quotient"]
        self._quotient = Quotient(self._lifted, kept["multipliers"]) if kept else None
        if self._quotient is not None:
            self._quotient.restore(kept)

    def _solve(self, network: Network, method: str, iterations: int) -> list[torch.Tensor] | None:
        problem = Subproblem("training", network, method, Settings(iterations=iterations, tolerance=1e-3))
        try:
            found = solve(problem)
        except LiprayError:
            found = solve(replace(problem, method="ellipsoid"))
        if found.proof is None or found.proof.kind not in {"torus", "dense"}:
            return None
        multipliers = tuple(np.asarray(part) for part in found.multipliers)
        return spread_multipliers(self._lifted, found.proof.layers, multipliers)
