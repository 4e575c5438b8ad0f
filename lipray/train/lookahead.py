"""Lookahead (Zhang, Lucas, Hinton & Ba 2019): every few steps the weights go half way back to where they were."""

from __future__ import annotations

from collections.abc import Iterable

import torch

SHARE = 0.5


class Lookahead:
    """Slow weights beside an optimiser's fast ones.

    Args:
        parameters: that the optimiser moves.
        every: steps between averages; 0 does nothing.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], every: int) -> None:
        self.every = every
        self._fast = list(parameters) if every else []
        self._slow = [parameter.detach().clone() for parameter in self._fast]
        self._count = 0

    @torch.no_grad()
    def step(self) -> None:
        """After each step of the optimiser."""
        self._count += 1
        if self.every == 0 or self._count % self.every:
            return
        for slow, fast in zip(self._slow, self._fast, strict=True):
            slow.lerp_(fast, SHARE)
            fast.copy_(slow)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"slow": self._slow, "count": self._count}

    def restore(self, state: dict[str, object]) -> None:
        """Go on from ``state``."""
        slow, count = state["slow"], state["count"]
        assert isinstance(slow, list)  # noqa: S101 (as written)
        assert isinstance(count, int)  # noqa: S101
        for own, kept in zip(self._slow, slow, strict=True):
            own.copy_(kept)
        self._count = count
