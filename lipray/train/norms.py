"""Norms of live linear maps by warm-started power iteration: from below, for training only, never for a certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Map = Callable[[torch.Tensor], torch.Tensor]

FIRST = 30
"""Iterations the first time."""


class Iterates:
    """The power iterates of several maps, by name; ``state`` and ``restore`` keep them over a checkpoint.

    Args:
        steps: iterations every time a norm is asked for, from where the last time ended.
        seed: of the first vectors.
    """

    def __init__(self, steps: int = 1, seed: int = 0) -> None:
        self.steps = steps
        self._vectors: dict[str, torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def state(self) -> dict[str, torch.Tensor]:
        """The vectors, and the generator's state as ``*``."""
        return {**self._vectors, "*": self._generator.get_state()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from ``state``."""
        self._vectors = {name: value for name, value in state.items() if name != "*"}
        self._generator.set_state(state["*"].cpu())

    def norm(self, name: str, apply: Map, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """uᵀ A v at the iterates, whose gradient is that of ‖A‖ where they have converged.

        Args:
            name: of the map.
            apply: x (1, *shape) → A x, linear, differentiable in x and in the weights.
            shape: of one input.
            like: a tensor of the wanted precision and device.
        """
        v = self._vectors.get(name)
        steps = self.steps
        if v is None:
            v, steps = torch.randn(1, *shape, generator=self._generator), max(FIRST, self.steps)
        v = v.detach().to(like)
        for _ in range(steps):
            v, _ = _step(apply, v)
        self._vectors[name] = v
        with torch.no_grad():
            image = apply(v)
            u = image / image.norm().clamp(min=1e-30)
        value: torch.Tensor = (apply(v) * u).sum()
        return value


def _step(apply: Map, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """AᵀA v normalised, and ‖AᵀA v‖."""
    with torch.enable_grad():
        point = v.detach().requires_grad_()
        image = apply(point)
        (back,) = torch.autograd.grad(image, point, image.detach())
    size = back.norm()
    return torch.where(size > 0.0, back / size.clamp(min=1e-30), v), size
