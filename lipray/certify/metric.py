"""Multipliers of all tiles of a block, optimised together for the composition of their metrics.

The value is λmax(S), S = Σ_i E_iᵀ P_i(λ_i) E_i (``lipray.verify.metric``). Every P_i is matrix-convex in its
multipliers, hence so is S, and the weighting D Dᵀ of S that is the derivative of the smoothed λmax gives every tile its
own task: the derivative of <E_i D (E_i D)ᵀ, P_i> in λ_i. So one step is a map (metrics), a reduction (the sum and its
weighting), and a map (gradients). Tiles with the same network share their multipliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lipray.certify import lbfgs
from lipray.certify.descent import DescentResult, gradient, solve_back, weigh
from lipray.certify.lbfgs import Point
from lipray.verify.elimination import Blocks, Factor, eliminate

LIMIT = 600.0
"""Logarithms of multipliers stay below this."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Distinct tiles of a block, and where their metrics come to lie.

    ``blocks[k]`` is the prepared transposed sector form of the k-th distinct tile; ``places[k]`` (copies, n_k) holds,
    for every tile that is one, the indices of its receptive field in the block's flattened input of ``size`` entries.
    """

    blocks: tuple[Blocks, ...]
    places: tuple[torch.Tensor, ...]
    size: int

    def sum(self, metrics: Sequence[torch.Tensor]) -> torch.Tensor:
        """S from the distinct tiles' metrics."""
        total = torch.zeros(self.size, self.size, dtype=torch.float64)
        for metric, places in zip(metrics, self.places, strict=True):
            for at in places:
                total[at[:, None], at] += metric
        return total


def minimise(
    tiling: Tiling,
    start: Sequence[Sequence[np.ndarray]],
    *,
    iterations: int,
    tolerance: float = 1e-5,
    deadline: float | None = None,
) -> tuple[tuple[tuple[np.ndarray, ...], ...], DescentResult]:
    """Minimise λmax(S) from feasible multipliers, in this process.

    Args:
        tiling: the distinct tiles.
        start: multipliers of every distinct tile's transposed form.
        iterations: at most so many evaluations with gradient.
        tolerance: relative improvement per step below which a stage ends.
        deadline: ``time.monotonic()`` at which to stop.

    Returns:
        The multipliers per distinct tile, and how the descent ended; its value is the unproven λmax(S).
    """
    theta = torch.log(torch.from_numpy(np.concatenate([lam for tile in start for lam in tile])))
    found = lbfgs.minimise(
        lambda point, power: _measure(tiling, point, power),
        theta,
        iterations=iterations,
        tolerance=tolerance,
        deadline=deadline,
    )
    parts = tuple(tuple(lam.numpy() for lam in tile) for tile in _split(tiling, torch.exp(found.theta)))
    flat = tuple(lam for tile in parts for lam in tile)
    return parts, DescentResult(flat, found.value, found.iterations, stalled=found.stalled)


def _split(tiling: Tiling, values: torch.Tensor) -> list[list[torch.Tensor]]:
    parts, at = [], 0
    for blocks in tiling.blocks:
        count = sum(blocks.widths)
        parts.append(list(torch.split(values[at : at + count], list(blocks.widths))))
        at += count
    return parts


def _measure(tiling: Tiling, theta: torch.Tensor, power: float) -> Point | None:
    if not bool(torch.isfinite(theta).all()) or float(theta.abs().max()) > LIMIT:
        return None
    factors: list[Factor] = []
    for blocks, lams in zip(tiling.blocks, _split(tiling, torch.exp(theta)), strict=True):
        factor = eliminate(blocks, lams, proof=False)
        if factor is None:
            return None
        factors.append(factor)
    weighed = weigh(tiling.sum([factor.gram for factor in factors]), power)
    if weighed is None:
        return None
    value, top, directions = weighed
    slopes = [
        pull(blocks, factor, torch.cat([directions[at] for at in places], dim=1))
        for blocks, factor, places in zip(tiling.blocks, factors, tiling.places, strict=True)
    ]
    return Point(value, top, torch.cat(slopes) * torch.exp(theta))


def pull(blocks: Blocks, factor: Factor, directions: torch.Tensor) -> torch.Tensor:
    """Derivative of <D Dᵀ, P> in a tile's λ; D (n, r) weighs S on its receptive field, the columns of all copies."""
    return gradient(blocks, factor, solve_back(blocks, factor, directions), directions)
